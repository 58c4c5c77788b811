"""A DQN trainer of a tiny game and two students of it, for the tests of steppers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torchrl.data import Categorical, LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer
from torchrl.envs import Compose, GymEnv, RewardSum, SerialEnv, Transform, TransformedEnv
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss, HardUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import DualNetworkCollector, StudentDQNLoss
from torchrl_rtpd.objectives.discrete import DistillationLoss

ADAM = partial(torch.optim.Adam, lr=1e-2)


def actor(hidden: int, seed: int, device: str) -> QValueActor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    return QValueActor(network, in_keys=["observation"], spec=Categorical(2)).to(device)


def students(device: str) -> dict[str, DistillationLoss]:
    """Two of different kinds."""
    return {
        "paper": StudentDQNLoss(actor(8, 1, device), teacher_temperature="auto"),
        "pure": DistillationLoss(actor(4, 2, device), divergence="reverse_kl"),
    }


def trainer_with(
    device: str,
    attach: Callable[[DQNTrainer], None],
    *,
    prioritized: bool = False,
    clip_norm: float | None = 0.5,
    loss_class: type[DQNLoss] = DQNLoss,
    teacher: QValueActor | None = None,
    transforms: Sequence[Transform] = (),
    **loss_options: Any,
) -> DQNTrainer:
    """A DQN trainer of a tiny game, ready to be run for eight batches of four updates."""
    torch.manual_seed(0)
    teacher = actor(16, 0, device) if teacher is None else teacher
    env = TransformedEnv(
        SerialEnv(2, lambda: GymEnv("CartPole-v1", device="cpu"), device="cpu"),
        Compose(RewardSum(in_keys=["reward"], out_keys=["reward_sum"]), *transforms),
    )
    env.set_seed(0)
    collector = DualNetworkCollector(
        env,
        teacher,
        frames_per_batch=32,
        total_frames=256,
        policy_device=device,
        env_device="cpu",
        storing_device=device,
    )
    loss = loss_class(teacher, action_space="categorical", delay_value=True, **loss_options)
    sampler = {"sampler": PrioritizedSampler(256, 0.6, 0.4)} if prioritized else {}
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(256, device=device), batch_size=16, priority_key="td_error", **sampler
    )
    trainer = DQNTrainer(
        collector=collector,
        total_frames=256,
        frame_skip=1,
        optim_steps_per_batch=4,
        loss_module=loss,
        optimizer=ADAM(loss.parameters()),
        clip_norm=clip_norm,
        replay_buffer=buffer,
        target_net_updater=HardUpdate(loss, value_network_update_interval=5),
        progress_bar=False,
    )
    attach(trainer)
    return trainer


def weights(*modules: nn.Module) -> list[torch.Tensor]:
    return [value.cpu() for module in modules for value in module.state_dict().values()]
