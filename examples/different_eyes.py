"""Teacher and student see different things of the same stream: the teacher the whole state, the student less.

    python examples/different_eyes.py

CartPole, a minute. The teacher reads the four numbers of the state. The student, a twentieth of its size, reads
what a camera would give: position and angle of the last three steps, without velocities. Each network's ``in_keys`` say
what it reads; environment, replay and hook carry both. Another resolution or frame stack for the student works alike.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scoreboard import begin, compare, report
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import CatFrames, EnvBase, GymEnv, RewardSum, SerialEnv, UnaryTransform
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate
from torchrl.trainers import LRSchedulerHook
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import DistillationLoss, DualNetworkCollector, RealTimeDistillTrainer

STEPS_PER_BATCH = 64
GAMMA = 0.98
PIXELS = torch.tensor([5.0, 50.0])  # per unit of position and of angle: what the student sees changes by about 1 a step


def make_env(slots: int) -> EnvBase:
    """CartPole with two views of it: ``observation`` [4] and ``seen`` [6], the last three positions and angles."""
    env = SerialEnv(slots, partial(GymEnv, "CartPole-v1", categorical_action_encoding=True))
    view = UnaryTransform(["observation"], ["seen"], fn=lambda state: state[..., ::2] * PIXELS)
    env = env.append_transform(view)
    return env.append_transform(CatFrames(3, dim=-1, in_keys=["seen"])).append_transform(RewardSum())


def make_actor(key: str, features: int, units: int, env: EnvBase) -> QValueActor:
    """Two hidden layers on one of the views."""
    network = MLP(in_features=features, out_features=2, num_cells=[units, units], activation_class=torch.nn.ReLU)
    return QValueActor(network, in_keys=[key], spec=env.action_spec_unbatched)


def train(steps: int, *, seed: int) -> dict[str, TensorDictModule]:
    """Train both; returns the networks."""
    torch.manual_seed(seed)
    env = make_env(8)
    env.set_seed(seed)
    teacher = make_actor("observation", 4, 128, env)
    student = make_actor("seen", 6, 24, env)
    exploration = EGreedyModule(env.action_spec_unbatched, eps_end=0.05, annealing_num_steps=steps // 2)
    loss = DQNLoss(teacher, action_space="categorical", loss_function="smooth_l1", delay_value=True, double_dqn=True)
    loss.make_value_estimator(gamma=GAMMA)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    trainer = DQNTrainer(
        collector=DualNetworkCollector(
            env, teacher, exploration=exploration, frames_per_batch=STEPS_PER_BATCH, total_frames=steps
        ),
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=8,
        loss_module=loss,
        optimizer=optimizer,
        clip_norm=10.0,
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(steps), batch_size=128),
        target_net_updater=SoftUpdate(loss, tau=0.02),
        greedy_module=exploration,
        episode_reward_key="episode_reward",
        progress_bar=False,
    )
    # The teacher's learning rate has fallen to nothing after two thirds of the run, the student's at its end: what the
    # student follows at last is a settled policy.
    student_loss = DistillationLoss(student, teacher_temperature="auto", student_temperature=1.0)
    hook = RealTimeDistillTrainer(student_loss, optimizer=partial(torch.optim.Adam, lr=3e-3), updates_per_step=2)
    hook.register(trainer)
    batches = steps / STEPS_PER_BATCH
    for name, settling, share in (("teacher", optimizer, 2 / 3), ("student", hook.optimizers["student"], 1.0)):
        fall = torch.optim.lr_scheduler.LambdaLR(settling, partial(_falling, batches=share * batches))
        LRSchedulerHook(fall).register(trainer, name=f"lr_scheduler.{name}")
    trainer.train()
    return {"teacher": teacher, "student": student}


def _falling(batch: int, batches: float) -> float:
    """Factor of the learning rate, which falls from 1 to 0."""
    return max(0.0, 1 - batch / batches)


def run(*, steps: int = 12_288, seed: int = 0, episodes: int = 50, out: Path | None = None) -> dict[str, Any]:
    """Train, score the last networks, report; returns the content of results.json."""
    networks = train(steps, seed=seed)
    scores = compare(make_env, networks, episodes=episodes, seed=seed)
    return report({"game": "CartPole-v1", "seed": seed, "steps": steps, **scores}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12_288, help="agent steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = vars(parser.parse_args())
    begin()
    run(**options)


if __name__ == "__main__":
    main()
