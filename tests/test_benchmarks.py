"""The benchmarks, with as little work as they take, so that they are known to run when an idle machine can be had."""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
SMALL = {
    "bench_env.py": ["--repetitions", "2", "--envs", "2", "--steps", "2"],
    "bench_replay.py": ["--repetitions", "2", "--capacity", "640"],
    "bench_collector.py": ["--repetitions", "1", "--envs", "2"],
    "bench_objectives.py": ["--repetitions", "2"],
    "bench_fleet.py": ["--repetitions", "1", "--steps", "1700"],
    "bench_profile.py": ["total_steps=640", "warmup_steps=320"],
    "bench_memory.py": ["--capacity", "4096", "--updates", "800"],
    "bench_loop.py": ["--repeats", "1", "--steps", "640", "--start", "320"],
    "bench_kills.py": ["--kills", "1"],
    "bench_checkpoint.py": ["--capacity", "4000", "--repetitions", "2"],
    "bench_soak.py": ["--minutes", "1", "--threads", "1", "--capacity", "640"],
    "gpu.py": ["--device", "cpu", "--no-compile", "--repetitions", "1", "--steps", "640"],
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_every_benchmark_runs_and_says_where(script: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    subprocess.run([sys.executable, str(BENCHMARKS / script), "--out", str(out), *SMALL[script]], check=True)
    result = json.loads(out.read_text())
    assert len(result) > 1 and {"command", "commit", "cpu"} <= result["environment"].keys()


def test_every_benchmark_is_among_them() -> None:
    helpers = {"main_example.py", "turns.py"}
    assert {path.name for path in BENCHMARKS.glob("*.py")} == SMALL.keys() | helpers


@pytest.mark.parametrize("program", ["plain", "plain_kept"])
def test_the_speed_benchmark_times_the_method_by_hand(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very file of the examples, which says a speed, with freed memory kept or not."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = runpy.run_path(str(BENCHMARKS / "bench_loop.py"))
    assert str(Path(__file__).parents[1] / "examples" / "by_hand.py") in " ".join(bench["OTHERS"][program])
    sizes = {"game": "road_runner", "steps": 48, "start": 32, "envs": 4, "batch": 4, "every": 4, "threads": 1}
    assert bench["other"](bench["OTHERS"][program], argparse.Namespace(**sizes), 0) > 0
