"""The benchmarks, with as little work as they take, so that they are known to run when an idle machine can be had."""

from __future__ import annotations

import argparse
import functools
import json
import runpy
import subprocess
import sys
import time
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
    "bench_deploy.py": [
        *["--games", "road_runner", "--networks", "net17", "--turns", "2"],
        *["--frames", "64", "--episodes", "2", "--max_steps", "100"],
    ],
    "bench_soak.py": ["--minutes", "1", "--threads", "1", "--capacity", "640"],
    "bench_cluster.py": ["--repetitions", "2", "--collectors", "2", "--batches", "8"],
    "bench_distributed.py": ["--seeds", "1", "--steps", "1024", "--games", "2"],
    "gpu.py": ["--device", "cpu", "--no-compile", "--repetitions", "1", "--steps", "640", "--patience", "20"],
}


NEED_RAY = ("bench_cluster.py", "bench_distributed.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=pytest.mark.ray if name in NEED_RAY else ()) for name in SMALL]
)
def test_every_benchmark_runs_and_says_where(script: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    subprocess.run([sys.executable, str(BENCHMARKS / script), "--out", str(out), *SMALL[script]], check=True)
    result = json.loads(out.read_text())
    assert len(result) > 1 and {"command", "commit", "cpu"} <= result["environment"].keys()


@pytest.fixture(scope="module")
def gpu():
    """The script for a machine with a GPU, as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu
    finally:
        sys.path.remove(str(BENCHMARKS))
    return gpu


def test_a_part_that_is_cut_off_leaves_what_it_found_and_goes_on_from_there(gpu, tmp_path: Path) -> None:
    """In the file as soon as it is found, and marked as unfinished until all of it is there."""
    out = tmp_path / "gpu.json"
    save = functools.partial(gpu.add_to, out, "part", "cpu", time.perf_counter())
    seen = []

    def slow(found: dict) -> None:
        for name in [name for name in ("first", "second") if name not in found]:
            found[name] = 1
            seen.append(gpu.read(out)["part"])
            time.sleep(30 if len(seen) == 1 else 0)

    cut = gpu.limited(slow, 0.2, {}, save)
    assert cut == {"first": 1, "error": "OutOfTime: cut off after 0 s"}
    assert gpu.limited(slow, 60, cut, save) == {"first": 1, "second": 1}
    assert seen == [{"first": 1, "error": "not finished"}, {"first": 1, "second": 1, "error": "not finished"}]
    assert gpu.read(out)["made"]["part"].keys() == {"command", "commit", "device", "date", "seconds"}


def test_a_part_that_fails_says_so_and_does_not_end_the_script(gpu) -> None:
    assert gpu.limited(lambda _: {"fine": 1}, 60, {"error": "before"}, lambda _: None) == {"fine": 1}
    found = gpu.limited(lambda _: 1 / 0, 60, {"kept": 1}, lambda _: None)
    assert found == {"kept": 1, "error": "ZeroDivisionError: division by zero"}


def test_a_guard_in_an_update_of_the_script_leaves_out_what_is_not_finite(gpu, monkeypatch) -> None:
    monkeypatch.setitem(gpu.FLEETS, "the paper's five", ["net17"])
    found = gpu.guarded("cpu", updates=14)
    assert (found["left_out"], found["finite"]) == (2, True)
    assert found["identical_to_never_made"] == {"teacher": True, "net17": True}


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
