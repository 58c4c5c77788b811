"""The same training with the environments elsewhere: in worker processes or Ray actors.

    python examples/rtpd_distributed.py                                  two worker processes, out of step
    python examples/rtpd_distributed.py --backend ray --workers 2 --sync
    python examples/rtpd_distributed.py --acting 0.3                     the student acts in 30 % of the steps

TorchRL distributes: the collector is its own, made by one constructor for every engine. The trainer sends the teacher's
weights to the workers after each batch, the hook the student's, where it acts. CartPole, about a minute.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scoreboard import compare, report
from tensordict.nn import TensorDictModule
from torchrl import torchrl_logger
from torchrl.data import Categorical, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase, GymEnv, RewardSum, SerialEnv
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import DualNetworkCollector, RealTimeDistillTrainer, StudentDQNLoss

GAMMA = 0.98


def make_env(slots: int = 4) -> EnvBase:
    """CartPole, ``slots`` games side by side; a game ends after 500 steps at the latest, each worth 1."""
    games = SerialEnv(slots, partial(GymEnv, "CartPole-v1", categorical_action_encoding=True))
    return games.append_transform(RewardSum())


def make_actor(units: int) -> QValueActor:
    """Two hidden layers."""
    network = MLP(in_features=4, out_features=2, num_cells=[units, units], activation_class=torch.nn.ReLU)
    return QValueActor(network, in_keys=["observation"], spec=Categorical(2))


def train(
    steps: int, *, seed: int, backend: str, workers: int, sync: bool, acting: float, backend_options: dict | None = None
) -> dict[str, TensorDictModule]:
    """Train both; returns the networks."""
    torch.manual_seed(seed)
    teacher, student = make_actor(128), make_actor(16)
    exploration = EGreedyModule(Categorical(2), eps_end=0.05, annealing_num_steps=steps // 2)
    collector = DualNetworkCollector(
        make_env,
        teacher,
        student,
        acting=acting,
        acting_seed=seed,
        exploration=exploration,
        frames_per_batch=64 * workers,
        total_frames=steps,
        backend=backend,
        backend_options=backend_options,
        num_collectors=workers,
        sync=sync,
    )
    loss = DQNLoss(teacher, action_space="categorical", loss_function="smooth_l1", delay_value=True, double_dqn=True)
    loss.make_value_estimator(gamma=GAMMA)
    trainer = DQNTrainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=8 * workers if sync else 8,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-3),
        clip_norm=10.0,
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(steps), batch_size=128),
        target_net_updater=SoftUpdate(loss, tau=0.02),
        greedy_module=exploration,
        episode_reward_key="episode_reward",
        progress_bar=False,
    )
    student_loss = StudentDQNLoss(student)
    student_loss.make_value_estimator(gamma=GAMMA)
    RealTimeDistillTrainer(student_loss, optimizer=partial(torch.optim.Adam, lr=2e-3)).register(trainer)
    try:
        trainer.train()
    finally:
        collector.shutdown()
    return {"teacher": teacher, "student": student}


def run(
    *,
    steps: int = 16_384,
    seed: int = 0,
    backend: str = "process",
    workers: int = 2,
    sync: bool = False,
    acting: float = 0.0,
    backend_options: dict[str, Any] | None = None,
    episodes: int = 50,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train, score the last networks, report; returns the content of results.json."""
    networks = train(
        steps,
        seed=seed,
        backend=backend,
        workers=workers,
        sync=sync,
        acting=acting,
        backend_options=backend_options,
    )
    scores = compare(make_env, networks, episodes=episodes, seed=seed)
    return report({"game": "CartPole-v1", "seed": seed, "steps": steps, **scores}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["process", "ray"], default="process")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sync", action="store_true", help="every batch holds a part from each worker")
    parser.add_argument("--acting", type=float, default=0.0, help="probability that the student acts")
    parser.add_argument("--steps", type=int, default=16_384, help="agent steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = vars(parser.parse_args())
    # TorchRL says that DQNTrainer is experimental and that its own optimiser hook will be replaced; neither helps here.
    warnings.filterwarnings("ignore", message="DQNTrainer is an experimental", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torchrl")
    torchrl_logger.setLevel("WARNING")
    torch.set_num_threads(1)  # the networks are too small for more
    run(**options)


if __name__ == "__main__":
    main()
