"""Classic two-phase distillation: ``DistillationLoss`` as the loss of a plain TorchRL ``Trainer``.

    python examples/drop_in_dqn.py --teacher-only --save teacher.pt
    python examples/drop_in_two_phase.py --teacher teacher.pt
    python examples/drop_in_two_phase.py --seed 1 --out results/drop_in_two_phase      trains a teacher first

Rusu et al. 2015 (https://arxiv.org/abs/1511.06295): a finished teacher plays, its action values are stored beside what
it saw, and a far smaller student learns them from a replay buffer.

Half a minute on an idle CPU core, most of which trains a teacher if none is given. The student scored is the last one,
on 50 games without exploration. Runs of three seeds: docs/methods.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from drop_in_dqn import make_actor, make_env
from drop_in_dqn import train as train_dqn
from scoreboard import begin, compare, report
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import EGreedyModule
from torchrl.trainers import ReplayBufferTrainer, Trainer

from torchrl_rtpd import DistillationLoss

STEPS_PER_BATCH = 256  # agent steps, of all slots together
UPDATES_PER_BATCH = 32


def load_teacher(path: Path) -> TensorDictModule:
    """The teacher of drop_in_dqn.py, with the weights it saved, frozen."""
    teacher = make_actor(128, make_env(1), seed=0)
    teacher.load_state_dict(torch.load(path, weights_only=True))
    return teacher.requires_grad_(False).eval()


def train(steps: int, teacher: TensorDictModule, *, seed: int) -> tuple[Trainer, dict[str, TensorDictModule]]:
    """Distil the teacher; returns the trainer at its end and the networks."""
    torch.manual_seed(seed)
    env = make_env(8)
    env.set_seed(seed)
    student = make_actor(16, env, seed=seed + 1_000)
    # One action in ten is random, so that the student also sees how to recover.
    exploration = EGreedyModule(env.action_spec_unbatched, eps_init=0.1, eps_end=0.1)
    collector = Collector(
        env,
        TensorDictSequential(teacher, exploration),
        frames_per_batch=STEPS_PER_BATCH,
        total_frames=steps,
        auto_register_policy_transforms=False,
    )
    loss = DistillationLoss(student)  # at Rusu's temperatures, 0.01 and 1
    loss.set_keys(teacher_action_value="action_value")  # where the collector stores the values its actor computed
    trainer = Trainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=UPDATES_PER_BATCH,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=3e-3),
        progress_bar=False,
    )
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(steps), batch_size=128)
    ReplayBufferTrainer(buffer, flatten_tensordicts=True).register(trainer)
    trainer.train()
    return trainer, {"teacher": teacher, "student": student}


def run(
    *,
    steps: int = 10_240,
    seed: int = 0,
    teacher: Path | None = None,
    teacher_steps: int = 20_480,
    episodes: int = 50,
    out: Path | None = None,
) -> dict[str, Any]:
    """Distil, score the last student, report; returns the content of results.json."""
    with tempfile.TemporaryDirectory() as folder:
        if teacher is None:
            _, networks = train_dqn(teacher_steps, seed=seed, with_student=False)
            teacher = Path(folder if out is None else out) / "teacher.pt"
            teacher.parent.mkdir(parents=True, exist_ok=True)
            torch.save(networks["teacher"].state_dict(), teacher)
        frozen = load_teacher(teacher)
    start = time.perf_counter()
    _, networks = train(steps, frozen, seed=seed)
    seconds = round(time.perf_counter() - start, 1)
    results = {"game": "CartPole-v1", "seed": seed, "steps": steps, "seconds": seconds}
    return report({**results, **compare(make_env, networks, episodes=episodes, seed=seed)}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_240, help="agent steps the teacher plays for its student")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher", type=Path, help="weights saved by drop_in_dqn.py; trained first if not given")
    parser.add_argument("--teacher-steps", type=int, default=20_480, help="agent steps of a teacher trained first")
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--out", type=Path, help="folder for results.json, and teacher.pt if trained first")
    options = vars(parser.parse_args())
    begin()
    run(**options)


if __name__ == "__main__":
    main()
