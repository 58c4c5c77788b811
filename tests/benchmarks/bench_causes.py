"""What an update of the quick preset takes beyond its kernels, and why: by experiments that add up.

    python tests/benchmarks/bench_causes.py --out docs/results/causes.json
    python tests/benchmarks/bench_causes.py --avx2 --out docs/results/causes_avx2.json    without AVX512, where there is

One update of the main example is recorded operation by operation, with the very tensors and their memory layout. Then

1. each operation is repeated by itself until its data lie in the caches: ``kernels``, of which ``layout`` are those
   that only copy or convert;
2. all are repeated in their order, so that their data push each other out: what that takes beyond 1 is ``caches``. It
   takes more where the heap lies in pages of 4 KiB, and more again where freed memory is given back to the system;
3. a sum of two numbers is repeated as often: ``dispatch``, what it takes PyTorch to choose and start as many
   operations, and to make tensors of their results. It is part of 1;
4. the whole update is timed as it runs: what it takes beyond 2 is ``program``: Python, TensorDicts, autograd, TorchRL.

Every setting is a process of its own, with one thread and with two. ``wake-ups`` is what two threads take in 1 beyond
half of what one takes.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from main_example import ROOT, rtpd_atari
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_rtpd.runs import process
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json

QUICK = ["preset=quick", "game=road_runner", "student_updates=1"]
TASKS = {
    "quick": [*QUICK, "batch_size=16", "students=[net1,net17]", "td_coeff=1"],
    "student": [*QUICK, "batch_size=32", "students=[net17]", "td_coeff=0", "n_step=1", "steps_per_update=4"],
}
MEMORY = ("large pages", "small pages", "given back")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
LAYOUT = ("aten._to_copy", "aten.copy_", "aten.clone", "aten._unsafe_view", "aten.contiguous")
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An operation, its arguments, and those with a name."""


class Recorded(TorchDispatchMode):
    """Collects the operations that run inside, each with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def built(task: str, threads: int) -> Callable[[], None]:
    """A call that makes one update of the main example, sampled minibatches included; some are over."""
    short = ["total_steps=1920", "warmup_steps=1600", "replay_capacity=1920", "recycle_every_updates=null"]
    quiet = ["evaluate_every_steps=null", "output_dir=unused", "concurrent=false", f"threads={threads}"]
    with initialize_config_dir(str(ROOT / "examples" / "config"), version_base="1.3"):
        config = compose("rtpd_atari", [*TASKS[task], *short, *quiet])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    env = rtpd_atari.make_env(config, config.num_envs, seed=0)
    networks = rtpd_atari.build_networks(config, env)
    trainer, _ = rtpd_atari.build_trainer(config, env, networks, None)
    trainer.train()
    trainer.optim_steps_per_batch = 1
    batch = trainer.replay_buffer.sample()
    trainer._pre_epoch_ops.clear()
    trainer._post_optim_complete_log_ops.clear()
    return lambda: trainer.optim_steps(batch)


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def update_ms(update: Callable[[], None], repeats: int) -> float:
    """Time of an update, the share of a sample included, of which four are made at once."""

    def four() -> None:
        for _ in range(4):
            update()

    return median_ms(four, repeats) / 4


def measured(task: str, threads: int, memory: str, repeats: int) -> dict[str, float]:
    """Milliseconds of an update and of its operations, alone and in order; see the head of this file."""
    hold(memory)
    update = built(task, threads)
    for _ in range(20):
        update()
    whole = update_ms(update, repeats)
    with Recorded() as recorded:
        update()
    with torch.no_grad():
        return {"update": whole, **operations(recorded.calls, repeats)}


def operations(calls: list[Call], repeats: int) -> dict[str, float]:
    """Milliseconds of an update's operations, alone and in order."""
    times = [median_ms(partial(func, *args, **kwargs), repeats) for func, args, kwargs in calls]
    copies = [ms for ms, (func, *_) in zip(times, calls, strict=True) if str(func).startswith(LAYOUT)]

    def in_order(some: list[Call]) -> None:
        for func, args, kwargs in some:
            func(*args, **kwargs)

    one = torch.ones(1)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    in_turn = median_ms(partial(in_order, calls), repeats)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {
        "kernels": sum(times),
        "layout": sum(copies),
        "in_order": in_turn,
        "dispatch": len(calls) * median_ms(partial(torch.ops.aten.add.Tensor, one, one), 100 * repeats),
        "operations": len(calls),
        "faults": faults / repeats,
    }


def hold(memory: str) -> None:
    """Let this process hold its memory in one of the ways of ``MEMORY``."""
    if memory == "small pages":
        process.mmap = SimpleNamespace(MADV_HUGEPAGE=mmap.MADV_NOHUGEPAGE)  # type: ignore[assignment]
    if memory != "given back":
        process.keep_freed_memory()


def in_process(arguments: list[str], avx2: bool) -> dict[str, float]:
    """What :func:`measured` returns in a process of its own."""
    command = [sys.executable, __file__, "--measure", *arguments]
    environment = {**os.environ, **(AVX2 if avx2 else {})}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def causes(found: dict[str, dict[str, float]], alone: dict[str, float]) -> dict[str, float]:
    """Parts of an update in milliseconds.

    Args:
        found: what was measured, by memory.
        alone: the same with one thread and large pages.
    """
    large, small, back = (found[memory] for memory in MEMORY)
    return {
        "update": large["update"],
        "kernels": large["kernels"],
        "caches": large["in_order"] - large["kernels"],
        "program": large["update"] - large["in_order"],
        "of kernels: layout": large["layout"],
        "of kernels: dispatch": large["dispatch"],
        "of kernels: wake-ups": large["kernels"] - alone["kernels"] / large["threads"],
        "more with small pages": small["in_order"] - large["in_order"],
        "more if memory is given back": back["in_order"] - small["in_order"],
        "page faults then": back["faults"],
        "operations": large["operations"],
    }


def main() -> None:
    """Measure every setting in a process of its own, print and save the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each setting, in turns")
    parser.add_argument("--repeats", type=int, default=30, help="repetitions within a process")
    parser.add_argument("--avx2", action="store_true", help="no AVX512")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)  # task, threads, memory, repeats
    options = parser.parse_args()
    if options.measure:
        task, threads, memory, repeats = options.measure
        print(json.dumps({**measured(task, int(threads), memory, int(repeats)), "threads": int(threads)}))
        return
    runs: dict[str, dict[int, dict[str, list[dict[str, float]]]]] = {}
    for _ in range(options.rounds):
        for task in TASKS:
            for threads in (1, 2):
                for memory in MEMORY:
                    run = in_process([task, str(threads), memory, str(options.repeats)], options.avx2)
                    runs.setdefault(task, {}).setdefault(threads, {}).setdefault(memory, []).append(run)
                    print(task, threads, memory, {key: round(value, 2) for key, value in run.items()}, flush=True)
    rows = []
    for task, by_threads in runs.items():
        medians = {
            threads: {
                memory: {key: statistics.median(run[key] for run in some) for key in some[0]}
                for memory, some in by_memory.items()
            }
            for threads, by_memory in by_threads.items()
        }
        for threads, found in medians.items():
            rows.append({"task": task, "threads": threads, **causes(found, medians[1]["large pages"])})
    result = {"rows": rows, "avx2": options.avx2, "rounds": options.rounds, "environment": run_environment()}
    print(json.dumps(rows, indent=1))
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
