"""What checkpoints cost: time of the quick run's, and of a replay of a million transitions against a plain copy.

    python tests/benchmarks/bench_checkpoint.py --capacity 1000000 --out docs/results/checkpoint.json

The disk's own time is that of ``dd``, which reads the file from the disk and writes it to the disk.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from main_example import ROOT, rtpd_atari
from turns import parsed_options

from torchrl_rtpd import AtariVecEnv, FrameStackStorage, make_replay_buffer
from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.checkpoints import SaveCheckpoints
from torchrl_rtpd.runs.components import ReplayState
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def forget_cache(folder: Path) -> None:
    """Let the system drop what it keeps of these files in memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def quick_run(folder: Path, repetitions: int, threads: int, overrides: Sequence[str] = ()) -> dict[str, float]:
    """The quick run's whole state without its replay: bytes, seconds to save, and its share of the time of training.

    Args:
        folder: to save in.
        repetitions: of saving.
        threads: of torch and ALE.
        overrides: keys of the main example that make another run of it.
    """
    with initialize_config_dir(str(ROOT / "examples" / "config"), version_base="1.3"):
        short = ["total_steps=2240", f"output_dir={folder}", f"threads={threads}"]
        config = compose("rtpd_atari", [*short, *overrides])
    torch.set_num_threads(config.threads)
    env = AtariVecEnv(config.game, config.num_envs, num_threads=config.threads, seed=0)
    trainer, _ = rtpd_atari.build_trainer(config, env, rtpd_atari.build_networks(config, env), None)
    saver = SaveCheckpoints(folder / "checkpoints", every_steps=config.checkpoint_every_steps)
    saver.register(trainer)
    saves: list[float] = []
    clock: dict[int, float] = {}

    def after_batch() -> None:
        clock[trainer.collected_frames] = time.perf_counter()
        if trainer.collected_frames == config.total_steps:
            saves.extend(seconds(saver.save) for _ in range(repetitions))

    trainer.register_op("post_steps", after_batch)
    trainer.train()
    learning = [steps for steps in clock if steps >= config.warmup_steps]
    first, last = min(learning), max(learning)
    interval = (clock[last] - clock[first]) / (last - first) * config.checkpoint_every_steps
    size = sum(path.stat().st_size for path in saver.latest().rglob("*") if path.is_file())
    save = statistics.median(saves)
    return {
        "megabytes": size / 1e6,
        "save_seconds": save,
        "interval_steps": config.checkpoint_every_steps,
        "interval_seconds": interval,
        "percent_of_training": 100 * save / interval,
    }


def filled_buffer(capacity: int) -> object:
    """A prioritised replay, full."""
    slots, steps = 8, 50
    capacity -= capacity % (slots * steps)
    storage = FrameStackStorage(capacity, num_envs=slots, steps_per_write=steps)
    buffer = make_replay_buffer(storage, batch_size=32, prioritized=True)
    env = AtariVecEnv("road_runner", slots, num_threads=1, seed=0)
    rollout = env.rollout(steps, policy=None, break_when_any_done=False).reshape(-1)
    env.close()
    while len(buffer) < capacity:
        storage.cut()
        buffer.extend(rollout)
    buffer.update_priority(torch.arange(capacity), torch.rand(capacity) + 0.1)
    return buffer


def dd(*arguments: str) -> None:
    """The system's plain copy."""
    subprocess.run(["dd", "bs=4M", *arguments], check=True, capture_output=True)


def replay(folder: Path, capacity: int) -> dict[str, float]:
    """A full replay saved and restored, against ``dd`` of as many bytes."""
    buffer = filled_buffer(capacity)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    saving = seconds(partial(VerifiedCheckpoint(replay_buffer=ReplayState(buffer)).save, folder / "replay"))
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    size = sum(path.stat().st_size for path in (folder / "replay").rglob("*") if path.is_file())
    forget_cache(folder)
    large = max((folder / "replay").rglob("*"), key=lambda path: path.stat().st_size)
    copying = seconds(partial(dd, f"if={large}", f"of={folder / 'copy'}", "conv=fsync"))
    (folder / "copy").unlink()
    index = torch.arange(0, len(buffer), max(1, len(buffer) // 1_000))
    wanted = buffer[index]
    del buffer
    storage = FrameStackStorage(len_capacity(capacity), num_envs=8, steps_per_write=50)
    other = make_replay_buffer(storage, batch_size=32, prioritized=True)
    forget_cache(folder)
    restoring = seconds(lambda: VerifiedCheckpoint(replay_buffer=ReplayState(other)).load(folder / "replay"))
    if not (other[index] == wanted).all():
        raise RuntimeError("what was restored is not what was saved")
    return {
        "transitions": len(other),
        "gigabytes": size / 1e9,
        "save_seconds": saving,
        "restore_seconds": restoring,
        "disk_copy_seconds": copying,
        "extra_megabytes_while_saving": growth / 1e3,
    }


def len_capacity(capacity: int) -> int:
    """As :func:`filled_buffer` rounds it."""
    return capacity - capacity % 400


def main() -> None:
    """Measure, print, save."""
    options = parsed_options(__doc__, {"capacity": 1_000_000, "repetitions": 5, "threads": 2})
    (ROOT / "outputs").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=ROOT / "outputs"))  # not /tmp, which may lie in memory
    try:
        run = quick_run(folder, options.repetitions, options.threads)
        result = {"run": run, "replay": replay(folder, options.capacity)}
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result))
    if options.out is not None:
        write_json(options.out, {**result, "environment": run_environment()})


if __name__ == "__main__":
    main()
