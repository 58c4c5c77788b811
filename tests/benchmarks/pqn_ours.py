"""A replay-free teacher and its students with this package: the program that ``bench_pqn.py`` times.

    python tests/benchmarks/pqn_ours.py --steps 10240

The main example's own networks, trainer and hook, with single frames all the way. Prints ``{"steps_per_second": ...}``,
agent steps a second without the first rollout, and the most memory that was resident.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from main_example import ROOT, rtpd_atari
from torchrl.trainers import Trainer

from torchrl_rtpd.runs.process import keep_freed_memory

NUMBERS = {"envs": 8, "rollout": 128, "batch": 256, "epochs": 4, "steps": 4_096, "threads": 2, "seed": 0}
SETTINGS = [
    *("teacher=pqn", "single_frames=true", "td_coeff=0", "loss_function=l2", "gamma=0.99", "lmbda=0.65"),
    *("teacher_learning_rate=2.5e-4", "student_learning_rate=1e-3", "teacher_settles=null", "student_settles=null"),
    *("epsilon_end=0.01", "recycle_every_updates=null", "output_dir=unused"),
]
KEYS = {"envs": "num_envs", "rollout": "rollout_steps", "batch": "batch_size", "epochs": "num_epochs"}


def build(options: argparse.Namespace) -> Trainer:
    """The main example's trainer of a teacher and its students."""
    size = options.envs * options.rollout
    own = {KEYS.get(name, name): getattr(options, name) for name in ("game", "threads", "seed", *KEYS)}
    own |= {"total_steps": options.steps // size * size, "epsilon_steps": max(1, options.steps // 10)}
    settings = [*SETTINGS, f"students=[{options.students}]", *(f"{key}={value}" for key, value in own.items())]
    with initialize_config_dir(str(ROOT / "examples" / "config"), version_base="1.3"):
        config = compose("rtpd_atari", settings)
    env = rtpd_atari.make_env(config, config.num_envs, seed=config.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRL's trainer is a prototype and uses stages that will be replaced
        return rtpd_atari.build_trainer(config, env, rtpd_atari.build_networks(config, env), None)[0]


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
