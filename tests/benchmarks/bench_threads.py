"""Training speed of the main example by threads and by how they wait, alone and beside a busy neighbour.

    python tests/benchmarks/bench_threads.py --out docs/results/threads.json

Threads of torch meet at the end of each parallel loop. Those that came first spin for a while before they sleep; where
a neighbour has the processor of one that is still working, they spin in vain. ``OMP_WAIT_POLICY`` and
``GOMP_SPINCOUNT`` say for how long (libgomp's manual). The neighbour is a process that computes without end, at low
priority (``nice -n 10``) or at the same one as the run. Ways take turns; speeds are agent steps a second of the quick
preset from the first update on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from main_example import steps_per_second
from neighbours import neighbour

from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json

NUMBERS = {"repeats": 5, "steps": 2_560, "start": 1_600}
NEIGHBOURS = {"none": None, "low priority": 10, "same priority": 0}
"""Niceness of the neighbour."""
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "1 thread": ("1", {}),
    "2 threads, as libgomp has it": ("2", {}),
    "2 threads that sleep at once": ("2", {"OMP_WAIT_POLICY": "PASSIVE"}),
    "2 threads that spin 1,000 times": ("2", {"GOMP_SPINCOUNT": "1000"}),
    "2 threads that spin 10,000 times": ("2", {"GOMP_SPINCOUNT": "10000"}),
}
"""``threads`` of the example and the process's environment."""
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


@contextmanager
def waiting(environment: dict[str, str]) -> Iterator[None]:
    """Variables of the processes begun meanwhile; what this one was given of them does not count."""
    before = {name: os.environ.pop(name) for name in WAITING if name in os.environ}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in environment:
            del os.environ[name]
        os.environ.update(before)


def main() -> None:
    """Let all ways take turns beside each neighbour, print and save their speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    run = {"game": "road_runner", "students": "[net1,net17]", "td_coeff": 1, "student_updates": 1}
    run |= {"total_steps": options.steps, "warmup_steps": options.start, "replay_capacity": options.steps}
    speeds: dict[str, dict[str, list[float]]] = {name: {way: [] for way in WAYS} for name in NEIGHBOURS}
    for _ in range(options.repeats):
        for name, niceness in NEIGHBOURS.items():
            for way, (threads, environment) in WAYS.items():
                with neighbour(niceness), waiting(environment):
                    speeds[name][way].append(steps_per_second(**run, threads=threads))
            print(name, {way: round(found[-1], 1) for way, found in speeds[name].items()}, flush=True)
    medians = {name: {way: statistics.median(found) for way, found in ways.items()} for name, ways in speeds.items()}
    print(json.dumps(medians))
    if options.out is not None:
        write_json(
            options.out,
            {"speeds": speeds, "medians": medians, "options": vars(options) | {"out": None}}
            | {"environment": run_environment()},
        )


if __name__ == "__main__":
    main()
