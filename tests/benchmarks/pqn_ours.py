"""A replay-free teacher and its students with this package: the program that ``bench_pqn.py`` times.

    python tests/benchmarks/pqn_ours.py --steps 10240

The parts as a user puts them together: TorchRL's ``OnPolicyTrainer`` with ``PQNLoss`` and ``LambdaTargets``, single
frames in the replay, and students by ``RealTimeDistillTrainer``. Prints ``{"steps_per_second": ...}``, agent steps a
second without the first rollout, and the most memory that was resident.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from torchrl.data import SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.modules import EGreedyModule
from torchrl.trainers.algorithms.on_policy import OnPolicyTrainer

from torchrl_rtpd import (
    AtariVecEnv,
    DistillationLoss,
    DualNetworkCollector,
    FrameStackStorage,
    LambdaTargets,
    PQNLoss,
    RealTimeDistillTrainer,
    make_actor,
)
from torchrl_rtpd.runs.process import keep_freed_memory

NUMBERS = {"envs": 8, "rollout": 128, "batch": 256, "epochs": 4, "steps": 4_096, "threads": 2, "seed": 0}


def build(options: argparse.Namespace) -> OnPolicyTrainer:
    """The trainer of a teacher and its students."""
    env = AtariVecEnv(options.game, options.envs, num_threads=options.threads, seed=options.seed, frame_stack=1)
    make = partial(make_actor, action_spec=env.action_spec, norm="layer")
    teacher = make("teacher", seed=options.seed)
    size = options.envs * options.rollout
    exploration = EGreedyModule(env.action_spec_unbatched, 1.0, 0.01, annealing_num_steps=max(1, options.steps // 10))
    collector = DualNetworkCollector(
        env,
        teacher,
        exploration=exploration,
        frames_per_batch=size,
        total_frames=options.steps // size * size,
        frame_stack=4,
        keep=["action_value"],
    )
    loss = PQNLoss(teacher)
    storage = FrameStackStorage(size, num_envs=options.envs, steps_per_write=options.rollout)
    storage.next_stacks = False  # no loss of PQN reads next states
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRL's trainer is a prototype and uses stages that will be replaced
        trainer = OnPolicyTrainer(
            collector=collector,
            total_frames=options.steps // size * size,
            frame_skip=1,
            optim_steps_per_batch=None,
            num_epochs=options.epochs,
            loss_module=loss,
            optimizer=torch.optim.RAdam(loss.parameters(), lr=2.5e-4),
            replay_buffer=TensorDictReplayBuffer(
                storage=storage, sampler=SamplerWithoutReplacement(), batch_size=options.batch
            ),
            add_gae=False,
            clip_norm=10.0,
            progress_bar=False,
            episode_reward_key="episode_reward",
        )
    loss.set_keys(terminated="end_of_life")
    trainer.register_op("post_steps", lambda: exploration.step(size))
    LambdaTargets(gamma=0.99, lmbda=0.65).register(trainer)
    names = [name for name in options.students.split(",") if name]
    if names:
        students = {name: DistillationLoss(make(name, seed=seed)) for seed, name in enumerate(names, 1)}
        optimizer = partial(torch.optim.Adam, lr=1e-3, eps=1e-5, fused=True)
        RealTimeDistillTrainer(students, optimizer=optimizer).register(trainer)
    return trainer


def resident_gb() -> float:
    """Most memory of this process that was resident at once, as Linux counts."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0]) / 1e9


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--students", default="net17", help="names of towers with commas between them, or nothing")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args(arguments)


def main() -> None:
    """Train, print speed and memory."""
    options = parsed()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    trainer = build(options)
    marks: list[tuple[float, float, int]] = []
    trainer.register_op(
        "post_steps", lambda: marks.append((time.perf_counter(), time.process_time(), trainer.collected_frames))
    )
    trainer.train()
    (begin, begin_cpu, before), (end, end_cpu, after) = marks[0], marks[-1]
    steps = after - before
    speeds = {"steps_per_second": steps / (end - begin), "steps_per_cpu_second": steps / (end_cpu - begin_cpu)}
    print(json.dumps({**speeds, "resident_gb_most": resident_gb()}))


if __name__ == "__main__":
    main()
