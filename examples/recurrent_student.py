"""A student with a memory, distilled live from a feed-forward teacher that sees more: TorchRL's GRU and ``PPOTrainer``.

    python examples/recurrent_student.py
    python examples/recurrent_student.py --seed 1 --out results/recurrent

The teacher sees all of CartPole's state. The students see positions and no velocities: how fast the cart moves and the
pole falls must be remembered. One student has a GRU, the other, of about the same size, has not. Both learn from the
teacher's own minibatches, which are rows of 32 steps here; the first 8 only warm the memory (burn-in, Kapturowski et
al. 2019, R2D2).

One minute on an idle CPU core. The networks scored are the last ones, on 50 games without exploration, of at most 500.
Runs of three seeds: docs/students.md.
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
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SliceSamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import EnvBase, GymWrapper, InitTracker, RewardSum
from torchrl.modules import GRUModule, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.trainers.algorithms.ppo import PPOTrainer

from torchrl_rtpd import DistillationLoss, RealTimeDistillTrainer, SliceBatches

SLOTS = 32  # games side by side
ROW_STEPS = 32  # consecutive steps of one slot: those of a batch
STEPS_PER_BATCH = SLOTS * ROW_STEPS  # agent steps, of all slots together
BURN_IN_STEPS = 8  # of each row
ROWS_PER_UPDATE = 4


class Positions(nn.Module):
    """Position and angle of CartPole's state ``[*B, 4]``, in shares of those that end a game: ``[*B, 2]``."""

    def forward(self, observation: Tensor) -> Tensor:
        return observation[..., ::2] / observation.new_tensor([2.4, 0.21])


def make_env(slots: int) -> EnvBase:
    """CartPole, ``slots`` games side by side; ``is_init`` says where a game begins, for networks that remember."""
    # GymEnv(..., num_envs=slots) would reset one step late and mix up the transitions around it.
    games = gymnasium.make_vec("CartPole-v1", slots, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
    env = GymWrapper(games, categorical_action_encoding=True).append_transform(RewardSum())
    return env.append_transform(InitTracker())


def make_network(inputs: int, units: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of ``units``."""
    layers = [nn.Linear(inputs, units), nn.Tanh(), nn.Linear(units, units), nn.Tanh(), nn.Linear(units, outputs)]
    return nn.Sequential(*layers)


def make_policy(*parts: TensorDictModule) -> ProbabilisticActor:
    """A policy that draws an action from the logits that its parts write."""
    logits = TensorDictSequential(*parts) if len(parts) > 1 else parts[0]
    return ProbabilisticActor(logits, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True)


def make_students(seed: int) -> dict[str, ProbabilisticActor]:
    """Students that see positions alone. Drawing their weights leaves the random stream of training alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        seen = TensorDictModule(Positions(), in_keys=["observation"], out_keys=["positions"])
        memory = GRUModule(input_size=2, hidden_size=32, in_key="positions", out_key="features")
        head = TensorDictModule(nn.Linear(32, 2), in_keys=["features"], out_keys=["logits"])
        plain = TensorDictModule(make_network(2, 56, 2), in_keys=["positions"], out_keys=["logits"])
    return {"recurrent": make_policy(seen, memory, head), "feed_forward": make_policy(seen, plain)}


def make_replay() -> TensorDictReplayBuffer:
    """Rows of one slot's steps, one behind the other; games end and begin within them."""
    sampler = SliceSamplerWithoutReplacement(slice_len=ROW_STEPS, end_key="slot_ends")
    storage = LazyTensorStorage(STEPS_PER_BATCH)
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=ROWS_PER_UPDATE * ROW_STEPS)


def build(steps: int, *, seed: int, with_students: bool = True) -> tuple[PPOTrainer, dict[str, TensorDictModule]]:
    """A trainer of the teacher, and of its students, and the networks."""
    torch.manual_seed(seed)
    env = make_env(SLOTS)
    env.set_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = make_policy(TensorDictModule(make_network(4, 128, 2), in_keys=["observation"], out_keys=["logits"]))
        critic = ValueOperator(make_network(4, 128, 1), in_keys=["observation"])
    networks: dict[str, TensorDictModule] = {"teacher": teacher}
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
        optim_steps_per_batch=None,  # as many as an epoch has minibatches
        loss_module=loss,
        optimizer=optimizer,
        # The learning rate falls to nothing, so that the last network, which is the one we score, is a settled one.
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda batch: max(0.0, 1 - batch / batches)),
        clip_norm=0.5,
        progress_bar=False,
        replay_buffer=make_replay(),
        log_actions=False,  # it would average them, and these are integers
    )
    SliceBatches(ROW_STEPS).register(trainer)
    if with_students:
        students = make_students(seed + 1_000)
        networks |= students
        teach(trainer, students, teacher)
    return trainer, networks


def teach(trainer: PPOTrainer, students: dict[str, ProbabilisticActor], teacher: ProbabilisticActor) -> None:
    """Let students learn from the trainer's minibatches, as rows of steps."""
    # The parts that write logits: a whole policy would draw an action too, from the random stream of training.
    losses = {
        name: DistillationLoss(
            student[0],
            teacher[0],
            teacher_temperature=1.0,
            student_temperature=1.0,
            burn_in=BURN_IN_STEPS if name == "recurrent" else 0,
        )
        for name, student in students.items()
    }
    optimizer = partial(torch.optim.Adam, lr=3e-3)
    RealTimeDistillTrainer(losses, optimizer=optimizer, clip_norm=1.0, updates_per_step=2).register(trainer)


def train(steps: int, *, seed: int, with_students: bool = True) -> tuple[PPOTrainer, dict[str, TensorDictModule]]:
    """Train the teacher, and its students; returns the trainer at its end and the networks."""
    trainer, networks = build(steps, seed=seed, with_students=with_students)
    trainer.train()
    return trainer, networks


def run(
    *,
    steps: int = 48 * STEPS_PER_BATCH,
    seed: int = 0,
    with_students: bool = True,
    episodes: int = 50,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train, score the last networks, report; returns the content of results.json."""
    start = time.perf_counter()
    _, networks = train(steps, seed=seed, with_students=with_students)
    seconds = round(time.perf_counter() - start, 1)
    results = {"game": "CartPole-v1", "seed": seed, "steps": steps, "seconds": seconds}
    return report({**results, **compare(make_env, networks, episodes=episodes, seed=seed)}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=48 * STEPS_PER_BATCH, help="agent steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-only", action="store_true", help="train without students")
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = vars(parser.parse_args())
    begin()
    run(with_students=not options.pop("teacher_only"), **options)


if __name__ == "__main__":
    main()
