"""A long run of the main example: resident memory, open files and speed as time goes by.

    python tests/benchmarks/bench_soak.py --minutes 60 --out docs/results/soak.json

The quick run's parts on as many steps as the time allows, with evaluations, checkpoints, recycling, metrics and
TensorBoard; the replay is full before the clock starts, since memory must grow while it fills.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench_memory import resident_bytes
from hydra import compose, initialize_config_dir
from main_example import ROOT, rtpd_atari
from turns import parsed_options

from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.monitor import RunMonitor

ENDLESS = 100_000_000  # steps


class Watch:
    """Notes what the process takes, once a second or so; asks it to end when its time is over."""

    def __init__(self, minutes: int, warmup: int) -> None:
        self.minutes, self.warmup = minutes, warmup
        self.rows: list[dict[str, float]] = []
        self.start: float | None = None

    def look(self, monitor: RunMonitor) -> None:
        """After a batch."""
        if self.start is None:
            if monitor.clock.steps < self.warmup:
                return
            self.start = time.monotonic()
        seconds = time.monotonic() - self.start
        if not self.rows or seconds - self.rows[-1]["seconds"] >= max(1.0, 0.2 * self.minutes):
            self.rows.append(
                {
                    "seconds": seconds,
                    "steps": monitor.clock.steps,
                    "evaluation_seconds": monitor.clock.evaluation_seconds,
                    "cpu_seconds": monitor.clock.cpu_seconds,
                    "resident_mb": resident_bytes() / 1e6,
                    "files": len(os.listdir("/proc/self/fd")),
                    "threads": threading.active_count(),
                    "logged_values": sum(map(len, monitor._trainer._log_dict.values())),
                }
            )
        if seconds > 60 * self.minutes:
            monitor._trainer.request_stop("time is over")


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Growth and drift between the second fifth of the time and the last, and per hour."""
    fifth = len(rows) // 5
    early, late = rows[fifth : 2 * fifth], rows[-fifth:]
    mean = {name: [statistics.fmean(row[name] for row in part) for part in (early, late)] for name in rows[0]}
    hours = (mean["seconds"][1] - mean["seconds"][0]) / 3600
    growth = 100 * (mean["resident_mb"][1] / mean["resident_mb"][0] - 1)

    def passed(part: list[dict[str, float]], name: str) -> float:
        return part[-1][name] - part[0][name]

    speeds = [
        passed(part, "steps") / (passed(part, "seconds") - passed(part, "evaluation_seconds")) for part in (early, late)
    ]
    cpu_speeds = [passed(part, "steps") / passed(part, "cpu_seconds") for part in (early, late)]
    return {
        "minutes": rows[-1]["seconds"] / 60,
        "steps": rows[-1]["steps"],
        "resident_mb_early": mean["resident_mb"][0],
        "resident_mb_late": mean["resident_mb"][1],
        "growth_percent_an_hour": growth / hours,
        "files": [min(row["files"] for row in rows), max(row["files"] for row in rows)],
        "threads": [min(row["threads"] for row in rows), max(row["threads"] for row in rows)],
        "logged_values_most": max(row["logged_values"] for row in rows),
        "steps_per_second_early": speeds[0],
        "steps_per_second_late": speeds[1],
        "drift_percent": 100 * (speeds[1] / speeds[0] - 1),
        "cpu_drift_percent": 100 * (cpu_speeds[1] / cpu_speeds[0] - 1),  # whatever else the machine does
    }


def main() -> None:
    """Run, note, save."""
    options = parsed_options(__doc__, {"minutes": 60, "threads": 2, "capacity": 14_400})
    watch = Watch(options.minutes, warmup=options.capacity)
    original = RunMonitor.watch

    def watched(monitor: RunMonitor) -> None:
        original(monitor)
        watch.look(monitor)

    rtpd_atari.RunMonitor.watch = watched
    (ROOT / "outputs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as folder:
        settings = [f"output_dir={folder}", f"total_steps={ENDLESS}", f"threads={options.threads}"]
        settings += [f"replay_capacity={options.capacity}", f"warmup_steps={min(1_600, options.capacity // 2)}"]
        settings += ["evaluate_from_steps=0", "recycle_every_updates=1000", "progress_bar=false", "final_episodes=8"]
        settings += ["teacher_settles=null", "student_settles=null"]
        with initialize_config_dir(str(ROOT / "examples" / "config"), version_base="1.3"):
            rtpd_atari.run(compose("rtpd_atari", settings))
    result = summary(watch.rows)
    print(json.dumps(result))
    if options.out is not None:
        write_json(Path(options.out), {**result, "rows": watch.rows, "environment": run_environment()})


if __name__ == "__main__":
    sys.exit(main())
