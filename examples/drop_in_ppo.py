"""A stock TorchRL ``PPOTrainer`` that gets a far smaller student, by the lines marked ``# added``.

    python examples/drop_in_ppo.py
    python examples/drop_in_ppo.py --seed 1 --out results/drop_in_ppo

The teacher is a policy, not a Q-network: the student learns KL(teacher || student) between the softmax of their logits,
both at temperature 1, since logits have a scale of their own.

Half a minute on an idle CPU core. The networks scored are the last ones, on 50 games without exploration, of at most
500. Runs of three seeds: docs/students.md.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AutoresetMode
from scoreboard import begin, compare, report
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import EnvBase, GymWrapper, RewardSum
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.trainers.algorithms.ppo import PPOTrainer

from torchrl_rtpd import DistillationLoss, RealTimeDistillTrainer  # added

STEPS_PER_BATCH = 1_024  # agent steps, of all slots together


def make_env(slots: int) -> EnvBase:
    """CartPole, ``slots`` games side by side; a game ends after 500 steps at the latest, each worth 1."""
    # GymEnv(..., num_envs=slots) would reset one step late and mix up the transitions around it.
    games = gymnasium.make_vec("CartPole-v1", slots, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
    return GymWrapper(games, categorical_action_encoding=True).append_transform(RewardSum())


def make_network(units: int, outputs: int, *, seed: int) -> nn.Module:
    """Two hidden layers of ``units``. Drawing the weights leaves the random stream of training alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(4, units), nn.Tanh(), nn.Linear(units, units), nn.Tanh(), nn.Linear(units, outputs)]
    return nn.Sequential(*layers)


def make_policy(units: int, *, seed: int) -> ProbabilisticActor:
    """A policy in two parts: the first writes ``logits`` ``[*B, 2]``, the second draws an action from them."""
    logits = TensorDictModule(make_network(units, 2, seed=seed), in_keys=["observation"], out_keys=["logits"])
    return ProbabilisticActor(logits, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True)


def build(steps: int, *, seed: int, with_student: bool = True) -> tuple[PPOTrainer, dict[str, TensorDictModule]]:
    """A trainer of the teacher, and of its student, and the networks."""
    torch.manual_seed(seed)
    env = make_env(8)
    env.set_seed(seed)
    teacher = make_policy(128, seed=seed)
    critic = ValueOperator(make_network(128, 1, seed=seed + 1), in_keys=["observation"])
    networks = {"teacher": teacher}
    collector = Collector(
        env,
        teacher,
        frames_per_batch=STEPS_PER_BATCH,
        total_frames=steps,
        auto_register_policy_transforms=False,
    )
    loss = ClipPPOLoss(teacher, critic, clip_epsilon=0.2, entropy_coeff=0.01)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    batches = steps / STEPS_PER_BATCH
    trainer = PPOTrainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        num_epochs=4,
        optim_steps_per_batch=None,  # as many as an epoch has minibatches; exactly that number would skip every second
        loss_module=loss,
        optimizer=optimizer,
        # The learning rate falls to nothing, so that the last network, which is the one we score, is a settled one.
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda batch: max(0.0, 1 - batch / batches)),
        clip_norm=0.5,
        progress_bar=False,
        replay_buffer=TensorDictReplayBuffer(
            storage=LazyTensorStorage(STEPS_PER_BATCH), sampler=SamplerWithoutReplacement(), batch_size=128
        ),
        log_actions=False,  # it would average them, and these are integers
    )
    if with_student:
        student = networks["student"] = make_policy(16, seed=seed + 1_000)  # added
        # The parts that write logits: a whole policy would draw an action too, from the random stream of training.
        kl = DistillationLoss(student[0], teacher[0], teacher_temperature=1.0, student_temperature=1.0)  # added
        kl.set_keys(teacher_action_value=("teacher", "logits"), student_action_value="logits")  # added
        RealTimeDistillTrainer(kl, optimizer=partial(torch.optim.Adam, lr=3e-3)).register(trainer)  # added
    return trainer, networks


def train(steps: int, *, seed: int, with_student: bool = True) -> tuple[PPOTrainer, dict[str, TensorDictModule]]:
    """Train the teacher, and its student; returns the trainer at its end and the networks."""
    trainer, networks = build(steps, seed=seed, with_student=with_student)
    trainer.train()
    return trainer, networks


def run(
    *,
    steps: int = 24 * STEPS_PER_BATCH,
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
    parser.add_argument("--steps", type=int, default=24 * STEPS_PER_BATCH, help="agent steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-only", action="store_true", help="train without the added lines")
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = vars(parser.parse_args())
    begin()
    run(with_student=not options.pop("teacher_only"), **options)


if __name__ == "__main__":
    main()
