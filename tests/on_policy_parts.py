"""Parts of the tests of on-policy trainers: PQN and PPO on CartPole, eight games side by side."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AutoresetMode
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import EnvBase, GymWrapper, RewardSum
from torchrl.modules import MLP, EGreedyModule, ProbabilisticActor, QValueActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.trainers.algorithms.on_policy import OnPolicyTrainer
from torchrl.trainers.algorithms.ppo import PPOTrainer

from torchrl_rtpd import DistillationLoss, DualNetworkCollector, LambdaTargets, PQNLoss, StudentPQNLoss

ROLLOUT = 128  # steps of all games
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Pixels(nn.Module):
    """Values of brightness, for speed."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.values = nn.Linear(1, num_actions)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.values(pixels.float().mean((-3, -2, -1)).unsqueeze(-1))


def make_env(slots: int) -> EnvBase:
    games = gymnasium.make_vec("CartPole-v1", slots, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
    return GymWrapper(games, categorical_action_encoding=True, device="cpu").append_transform(RewardSum())


def network(units: int, env: EnvBase, seed: int, device: str = "cpu") -> QValueActor:
    torch.manual_seed(seed)
    cells = {"num_cells": [units, units], "activation_class": nn.ReLU, "norm_class": nn.LayerNorm}
    mlp = MLP(4, 2, **cells, norm_kwargs=[{"normalized_shape": units}] * 2)
    return QValueActor(mlp, in_keys=["observation"], spec=env.action_spec_unbatched).to(device)


def weights(*modules: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the weights of some modules, on the CPU."""
    states = enumerate(module.state_dict() for module in modules)
    return {
        f"{number}.{name}": value.detach().cpu().clone() for number, state in states for name, value in state.items()
    }


def buffer_of(storage: int, batch: int, device: str) -> TensorDictReplayBuffer:
    sampler = SamplerWithoutReplacement()
    storage = LazyTensorStorage(storage, device=device)
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=batch)


def pqn_trainer(
    rollouts: int = 3,
    *,
    storage: int = ROLLOUT,
    batch: int = 32,
    rate: float = 1e-3,
    steps_an_epoch: int | None = None,
    device: str = "cpu",
    names: dict[str, Any] | None = None,
    **others: Any,
) -> tuple[OnPolicyTrainer, QValueActor, LambdaTargets]:
    """A trainer of PQN, its teacher and the hook of its targets.

    ``names`` are set as the loss's keys before it is given to the trainer, and ``others`` are arguments of the trainer
    in place of those here.
    """
    torch.manual_seed(0)
    env = make_env(8)
    env.set_seed(0)
    teacher = network(64, env, 1, device)
    loss = PQNLoss(teacher)
    loss.set_keys(**names or {})
    exploration = EGreedyModule(
        env.action_spec_unbatched, 1.0, 0.05, annealing_num_steps=64 * rollouts, device=torch.device(device)
    )
    collector = DualNetworkCollector(
        env,
        teacher,
        exploration=exploration,
        frames_per_batch=ROLLOUT,
        total_frames=ROLLOUT * rollouts,
        keep=["action_value"],
        policy_device=device,
        env_device="cpu",
        storing_device=device,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {
            "collector": collector,
            "total_frames": ROLLOUT * rollouts,
            "frame_skip": 1,
            "optim_steps_per_batch": steps_an_epoch,
            "loss_module": loss,
            "optimizer": torch.optim.RAdam(loss.parameters(), lr=rate),
            "replay_buffer": buffer_of(storage, batch, device),
            "num_epochs": 2,
            "add_gae": False,
            "clip_norm": 10.0,
            "progress_bar": False,
            "episode_reward_key": "episode_reward",
        }
        trainer = OnPolicyTrainer(**options | others)
    trainer.register_op("post_steps", lambda: exploration.step(ROLLOUT))
    hook = LambdaTargets(gamma=0.98)
    hook.register(trainer)
    return trainer, teacher, hook


def policy(units: int, seed: int, device: str = "cpu") -> ProbabilisticActor:
    """A policy in two parts: ``logits``, and an action drawn from them."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, units), nn.Tanh(), nn.Linear(units, 2)).to(device)
    logits = TensorDictModule(net, in_keys=["observation"], out_keys=["logits"])
    return ProbabilisticActor(logits, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True)


def ppo_trainer(
    rollouts: int = 3, *, batch: int = 32, entropy_bonus: bool = False, device: str = "cpu"
) -> tuple[PPOTrainer, ProbabilisticActor]:
    """A trainer of PPO, and its teacher."""
    torch.manual_seed(0)
    env = make_env(8)
    env.set_seed(0)
    teacher = policy(32, 1, device)
    critic = ValueOperator(nn.Linear(4, 1).to(device), in_keys=["observation"])
    loss = ClipPPOLoss(teacher, critic, entropy_bonus=entropy_bonus)
    collector = DualNetworkCollector(
        env,
        teacher,
        keep=["action_log_prob"],
        frames_per_batch=ROLLOUT,
        total_frames=ROLLOUT * rollouts,
        policy_device=device,
        env_device="cpu",
        storing_device=device,
    )
    trainer = PPOTrainer(
        collector=collector,
        total_frames=ROLLOUT * rollouts,
        frame_skip=1,
        num_epochs=2,
        optim_steps_per_batch=None,
        loss_module=loss,
        optimizer=torch.optim.RAdam(loss.parameters(), lr=1e-3),
        clip_norm=0.5,
        progress_bar=False,
        replay_buffer=buffer_of(ROLLOUT, batch, device),
        log_actions=False,
        log_rewards=False,
    )
    return trainer, teacher


def pupils(method: str, trainer: Any, device: str = "cpu") -> dict[str, DistillationLoss]:
    """Students of a teacher trained by PQN or PPO; those of PQN are of two kinds."""
    if method == "pqn":
        small, tiny = (network(units, make_env(1), seed, device) for seed, units in ((2, 8), (3, 4)))
        return {"paper": StudentPQNLoss(small), "pure": DistillationLoss(tiny)}
    student = policy(8, 2, device)
    loss = DistillationLoss(student[0], trainer.loss_module.actor_network[0], teacher_temperature=1.0)
    loss.set_keys(teacher_action_value=("teacher", "logits"), student_action_value="logits")
    return {"policy": loss}


TRAINERS = {"pqn": pqn_trainer, "ppo": ppo_trainer}
RADAM: Optimizer = partial(torch.optim.RAdam, lr=1e-3)
