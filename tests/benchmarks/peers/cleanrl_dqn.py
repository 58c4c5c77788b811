"""CleanRL's DQN on the main benchmark's work, the teacher alone: for an environment with its requirements.

    python tests/benchmarks/peers/cleanrl_dqn.py --cleanrl CHECKOUT --game road_runner --steps 4000 --start 1000

Runs ``cleanrl/dqn_atari.py`` of a checkout as it is, with its own environment, network and replay, and with as many
updates and threads as ``bench_loop.py`` gives ours; it plays one game at a time and has no option for more. Prints
``{"steps_per_second": ...}``, agent steps a second between the first and the last of the points that the script logs
every 100 steps while it learns, by the times that its event file has for them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SPEED = "charts/SPS"  # a mean since the start; only the steps and times of its points are used here


def logged_speed(folder: Path) -> float:
    """Agent steps a second between the first and the last logged point of the only run below a folder."""
    (events,) = folder.glob("runs/*/events.out.tfevents.*")
    log = EventAccumulator(str(events), size_guidance={"scalars": 0}).Reload()
    points = log.Scalars(SPEED) if SPEED in log.Tags()["scalars"] else []
    if len(points) < 2:
        raise RuntimeError(f"points of {SPEED} in the script's log: {len(points)}, two are needed; give more --steps")
    first, last = points[0], points[-1]
    return (last.step - first.step) / (last.wall_time - first.wall_time)


def trained(options: argparse.Namespace) -> float:
    """Speed of one run of the script, which writes into a folder that is then deleted."""
    checkout = options.cleanrl.resolve()
    name = "".join(word.capitalize() for word in options.game.split("_"))
    command = [sys.executable, str(checkout / "cleanrl" / "dqn_atari.py"), "--no-cuda"]
    numbers = {
        "env-id": f"{name}NoFrameskip-v4",
        "seed": options.seed,
        "total-timesteps": options.steps,
        "learning-starts": options.start,
        "buffer-size": options.steps,
        "batch-size": options.batch,
        "train-frequency": options.every,
        "target-network-frequency": 200 * options.every,
        "exploration-fraction": 1.0,
    }
    command += [word for key, value in numbers.items() for word in (f"--{key}", str(value))]
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**os.environ, **threads, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        return logged_speed(Path(folder))


def main() -> None:
    """Train, print the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cleanrl", type=Path, required=True, help="a checkout of CleanRL")
    parser.add_argument("--game", default="road_runner")
    parser.add_argument("--envs", type=int, default=1, help="accepted as by the other programs; it plays one game")
    numbers = {"steps": 4_000, "start": 1_000, "batch": 32, "every": 4, "threads": 2, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    updates = (options.steps - 1) // options.every - options.start // options.every
    print(json.dumps({"steps_per_second": trained(options), "updates": updates}))


if __name__ == "__main__":
    main()
