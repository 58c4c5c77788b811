"""A teacher without replay (PQN) in a stock TorchRL ``OnPolicyTrainer``, and a far smaller student beside it.

    python examples/drop_in_pqn.py
    python examples/drop_in_pqn.py --seed 1 --out results/drop_in_pqn

The trainer learns from each rollout alone, in passes over it, towards returns that ``LambdaTargets`` writes. The
student's lines, marked ``# added``, are the same as beside any other trainer.

A dozen seconds on an idle CPU core. The networks scored are the last ones, on 50 games without exploration, of at most
500.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from drop_in_ppo import make_env
from scoreboard import begin, compare, report
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.trainers.algorithms.on_policy import OnPolicyTrainer

from torchrl_rtpd import AnnealExploration, DualNetworkCollector, LambdaTargets, PQNLoss
from torchrl_rtpd.objectives import StudentPQNLoss  # added
from torchrl_rtpd.trainers import RealTimeDistillTrainer  # added

SLOTS = 32  # games side by side
STEPS_PER_BATCH = 1_024  # agent steps of a rollout, of all slots together


def make_actor(units: int, env: EnvBase, *, seed: int) -> QValueActor:
    """Values ``[*B, 2]`` from two hidden layers with norms, and the greedy action."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norms = {"norm_class": nn.LayerNorm, "norm_kwargs": [{"normalized_shape": units}] * 2}
        mlp = MLP(4, 2, num_cells=[units, units], activation_class=nn.ReLU, **norms)
    return QValueActor(mlp, in_keys=["observation"], spec=env.action_spec_unbatched)


def build(steps: int, *, seed: int, with_student: bool = True) -> tuple[OnPolicyTrainer, dict[str, TensorDictModule]]:
    """A trainer of the teacher, and of its student, and the networks."""
    torch.manual_seed(seed)
    env = make_env(SLOTS)
    env.set_seed(seed)
    teacher = make_actor(128, env, seed=seed)
    networks = {"teacher": teacher}
    exploration = EGreedyModule(env.action_spec_unbatched, 1.0, 0.05, annealing_num_steps=steps // 2)
    loss = PQNLoss(teacher)
    optimizer = torch.optim.RAdam(loss.parameters(), lr=1e-3)
    rollouts = steps / STEPS_PER_BATCH
    trainer = OnPolicyTrainer(
        collector=DualNetworkCollector(
            env,
            teacher,
            exploration=exploration,
            keep=["action_value"],  # the values that acted: returns bootstrap with them
            frames_per_batch=STEPS_PER_BATCH,
            total_frames=steps,
        ),
        total_frames=steps,
        frame_skip=1,
        num_epochs=4,
        optim_steps_per_batch=None,  # as many as an epoch has minibatches
        loss_module=loss,
        optimizer=optimizer,
        # The learning rate falls to nothing, so that the last network, which is the one we score, is a settled one.
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda rollout: max(0.0, 1 - rollout / rollouts)),
        clip_norm=10.0,
        progress_bar=False,
        replay_buffer=TensorDictReplayBuffer(
            storage=LazyTensorStorage(STEPS_PER_BATCH), sampler=SamplerWithoutReplacement(), batch_size=128
        ),
        add_gae=False,  # the next line writes what to learn from
    )
    LambdaTargets(gamma=0.99, lmbda=0.65).register(trainer)
    AnnealExploration(exploration).register(trainer)
    if with_student:
        student = networks["student"] = make_actor(16, env, seed=seed + 1_000)  # added
        kl = StudentPQNLoss(student)  # added
        RealTimeDistillTrainer(kl, optimizer=partial(torch.optim.Adam, lr=3e-3)).register(trainer)  # added
    return trainer, networks


def train(steps: int, *, seed: int, with_student: bool = True) -> tuple[OnPolicyTrainer, dict[str, TensorDictModule]]:
    """Train the teacher, and its student; returns the trainer at its end and the networks."""
    trainer, networks = build(steps, seed=seed, with_student=with_student)
    trainer.train()
    return trainer, networks


def run(
    *,
    steps: int = 64 * STEPS_PER_BATCH,
    seed: int = 0,
    with_student: bool = True,
    episodes: int = 50,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train, score the last networks, report; returns the content of results.json."""
    start = time.perf_counter()
    _, networks = train(steps, seed=seed, with_student=with_student)
    seconds = round(time.perf_counter() - start, 1)
    results = {"game": "CartPole-v1", "seed": seed, "steps": steps, "seconds": seconds}
    return report({**results, **compare(make_env, networks, episodes=episodes, seed=seed)}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=64 * STEPS_PER_BATCH, help="agent steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-only", action="store_true", help="train without the added lines")
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = vars(parser.parse_args())
    begin()
    run(with_student=not options.pop("teacher_only"), **options)


if __name__ == "__main__":
    main()
