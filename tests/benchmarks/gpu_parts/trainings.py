"""Games and collector alone, and short trainings of the main example, with the GPU's utilisation."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench_env import stepping
from main_example import steps_per_second
from turns import take_turns

from torchrl_rtpd import AtariVecEnv, DualNetworkCollector, make_actor

__all__ = ["GAMES", "playing", "short_trainings", "utilisation"]

GAMES = ((64, 4), (256, 1))  # at once, and steps of each in a batch


def playing(found: dict[str, Any], device: str, repetitions: int, games: Sequence[tuple[int, int]]) -> None:
    """Steps a second of games alone, and of a collector whose teacher acts on the device: bounds for a training.

    ALE takes its time to open games, which nothing interrupts.

    Args:
        found: what to fill.
        device: of the teacher.
        repetitions: ten times the number of batches.
        games: how many at once, and steps of each in a batch.
    """
    turns = max(2, repetitions // 10)
    threads = sorted({min(count, os.cpu_count() or 1) for count in (8, 16)})
    for slots, rollout in games:
        speeds = found[f"{slots} games"] = {}
        for count in threads:
            env = AtariVecEnv("pong", slots, num_threads=count, seed=0)
            times = take_turns({"": stepping(argparse.Namespace(envs=slots, steps=4), env)}, turns, warmup=2)[""]
            speeds[f"games alone, {count} threads"] = 4e3 * slots / statistics.median(times)
            env.close()
        for name, frames in (("stacks", 4), ("single frames", 1)):
            env = AtariVecEnv("pong", slots, num_threads=threads[-1], seed=0, frame_stack=frames)
            collector = DualNetworkCollector(
                env,
                make_actor("teacher", env.action_spec, seed=0, device=device),
                frames_per_batch=slots * rollout,
                total_frames=-1,
                policy_device=device,
                env_device="cpu",
                storing_device=device,
                frame_stack=None if frames == 4 else 4,
            )
            times = take_turns({"": partial(next, iter(collector))}, turns, warmup=3)[""]
            speeds[f"collector, {name}"] = 1e3 * slots * rollout / statistics.median(times)
            collector.shutdown()
        print(slots, speeds, flush=True)


@contextmanager
def utilisation(every_seconds: float = 0.2) -> Iterator[dict[str, float]]:
    """The GPU's busy share in percent, by the driver's own account, as a mean over the context's busiest two thirds."""
    found: dict[str, float] = {}
    samples: list[float] = []
    ended = threading.Event()

    def look() -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not ended.wait(every_seconds):
            answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
            if answer.replace(".", "").isdigit():
                samples.append(float(answer))

    thread = threading.Thread(target=look, daemon=True)
    if shutil.which("nvidia-smi"):
        thread.start()
    try:
        yield found
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()
        busiest = sorted(samples)[len(samples) // 3 :]  # a process starts and ends with an idle GPU
        if busiest:
            found["gpu_busy_percent"] = statistics.mean(busiest)


def short_trainings(found: dict[str, Any], device: str, steps: int) -> None:
    """Agent steps a second of the main example, and the minutes that the paper's ten million would take."""
    captured = {"cudagraph": "true"} if device.startswith("cuda") else {}
    five = "[net1,net2,net3,net4,net5]"
    overlapped = {"num_envs": 256, "rollout_steps": 1, "overlap": "true", "replay_capacity": 1_000_192}
    single = {"single_frames": "true"}
    runs: dict[str, dict[str, Any]] = {
        "five students, captured": {"students": five, **captured},
        "five students, captured, overlapped": {"students": five, **captured, **overlapped},
        "one student, captured": {"students": "[net17]", **captured},
        "teacher alone, captured": {"method": "teacher_only", **captured},
        "five students, captured, single frames": {"students": five, **captured, **single},
        "five students, captured, overlapped, single frames": {"students": five, **captured, **overlapped, **single},
        "five students, captured, overlapped, bfloat16": {"students": five, "amp": "true", **captured, **overlapped},
        "one student": {"students": "[net17]", "total_steps": max(steps // 8, min(steps, 4_096))},
    }
    for name in [name for name in runs if name not in found]:
        options = runs[name]
        with utilisation() as measured:
            speed = steps_per_second(
                **{
                    "game": "pong",
                    "device": device,
                    "total_steps": steps,
                    "warmup_steps": min(1_024, steps // 2),
                    "num_envs": 64,
                    "rollout_steps": 4,
                    "batch_size": 32,
                    "steps_per_update": 4,
                    "n_step": 1,
                    "replay_capacity": 1_000_192,
                    "threads": os.cpu_count(),
                    **options,
                }
            )
        found[name] = {"steps_per_second": speed, "minutes_for_ten_million": 1e7 / speed / 60, **measured}
        print(name, found[name], flush=True)
