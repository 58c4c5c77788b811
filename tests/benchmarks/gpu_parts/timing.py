"""Times of an update, of sampling, of the guard and of checkpoints."""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_checkpoint import quick_run, seconds
from tensordict import TensorDict
from turns import take_turns

from gpu_parts.update import FLEETS, Update, minibatch
from torchrl_rtpd import FrameStackStorage, make_replay_buffer
from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.components import ReplayState

__all__ = ["captured_profile", "checkpoints", "guard_times", "replay_times", "update_times"]


def guard_times(device: str, repetitions: int) -> dict[str, float]:
    """Median milliseconds of a captured update of the paper's five with a guard inside, and without."""
    five, batch, at_once = FLEETS["the paper's five"], minibatch(32, device), 10
    updates = {
        "guard": Update(five, device, captured=True, guarded=True),
        "no guard": Update(five, device, captured=True),
    }

    def several(update: Update) -> None:
        for _ in range(at_once):
            update(batch)

    calls = {name: partial(several, update) for name, update in updates.items()}
    times = take_turns(calls, max(2, repetitions // at_once), warmup=3)
    return {name: statistics.median(values) / at_once for name, values in times.items()}


def update_times(times: dict[str, Any], device: str, repetitions: int, compiled: bool = False) -> None:
    """Median milliseconds of an update by fleet and way of running it, with as many in flight as the host can start."""
    batch = minibatch(32, device)
    at_once = 10
    fleets = {name: students for name, students in FLEETS.items() if len(students) < 2 or not compiled}
    for fleet, students in fleets.items():
        if fleet in times:
            continue
        make = partial(Update, students, device)
        ways = {
            "eager": make(),
            "captured": make(captured=True),
            "eager, bfloat16": make(bfloat16=True),
            "captured, bfloat16": make(captured=True, bfloat16=True),
        }
        if compiled:
            ways = {"captured": make(captured=True), "captured, compiled": make(captured=True, compiled=True)}

        def several(update: Update) -> None:
            for _ in range(at_once):
                update(batch)

        calls = {name: partial(several, update) for name, update in ways.items()}
        measured = take_turns(calls, max(2, repetitions // at_once), warmup=3)
        times[fleet] = {name: statistics.median(values) / at_once for name, values in measured.items()}
        print(fleet, times[fleet], flush=True)


def captured_profile(found: dict[str, Any], device: str, updates: int = 20) -> None:
    """Where the time of a captured update goes, by fleet: host, device, and the device's kernels by name."""
    if not device.startswith("cuda"):
        return
    batch = minibatch(32, device)
    for fleet, students in FLEETS.items():
        update = Update(students, device, captured=True)
        for _ in range(20):
            update(batch)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(updates):
            update(batch)
        host = time.perf_counter() - start
        torch.cuda.synchronize()
        whole = time.perf_counter() - start
        graph = update.stepper._update.graphs[0]
        start = time.perf_counter()
        for _ in range(updates):
            graph.replay()
        torch.cuda.synchronize()
        alone = time.perf_counter() - start
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(updates):
                graph.replay()
            torch.cuda.synchronize()
        kernels: dict[str, list[float]] = {}
        for event in profile.events():
            if event.device_type != torch.autograd.DeviceType.CUDA or event.name.startswith(("cuda", "Activity")):
                continue  # what the host does
            kernels.setdefault(event.name, []).append(event.time_range.elapsed_us())
        slowest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:15]
        found[fleet] = {
            "host_ms": 1e3 * host / updates,
            "whole_ms": 1e3 * whole / updates,
            "graph_alone_ms": 1e3 * alone / updates,
            "kernels": sum(map(len, kernels.values())) / updates,
            "kernels_ms": sum(map(sum, kernels.values())) / 1e3 / updates,
            "slowest_kernels": [
                {"name": name[:80], "calls": len(times) / updates, "ms": sum(times) / 1e3 / updates}
                for name, times in slowest
            ],
        }
        print(fleet, {key: value for key, value in found[fleet].items() if key != "slowest_kernels"}, flush=True)


def filled_storage(device: str, capacity: int) -> FrameStackStorage:
    """Full of noise, in games of eight steps."""
    slots, steps = 32, 8
    storage = FrameStackStorage(capacity, num_envs=slots, steps_per_write=steps, device=device)
    buffer = make_replay_buffer(storage, batch_size=32)
    frames = torch.randint(256, (slots, steps + 4, 84, 84), dtype=torch.uint8)
    frames[:, :3] = 0  # a game begins
    stacks = frames.unfold(1, 4, 1).permute(0, 1, 4, 2, 3)
    over = torch.zeros(slots, steps, 1, dtype=torch.bool)
    following = {"pixels": stacks[:, 1 : steps + 1], "reward": torch.zeros(slots, steps, 1), "done": over}
    following.update(terminated=over, truncated=over)
    batch = TensorDict(
        {"pixels": stacks[:, :steps], "action": torch.zeros(slots, steps, dtype=torch.long), "next": following},
        [slots, steps],
    ).reshape(-1)
    if device.startswith("cuda"):
        batch = batch.to(device)
    while len(storage) < capacity:
        buffer.extend(batch)
        storage.cut()
    return storage


def replay_times(device: str, repetitions: int) -> dict[str, float]:
    """Median milliseconds of a minibatch of 32 on the device, from a replay there and from one in the host's memory."""
    together = 64
    storage, in_host = (filled_storage(where, 40 * 256) for where in (device, "cpu"))

    def drain(buffer: Any) -> None:
        for _ in range(together):
            buffer.sample().to(device)

    calls = {}
    for name, place in (("", storage), (", from the host", in_host)):
        calls[f"one at a time{name}"] = partial(drain, make_replay_buffer(place, batch_size=32))
        many = make_replay_buffer(place, batch_size=32, minibatches_at_once=together)
        calls[f"64 together{name}"] = partial(drain, many)
    times = take_turns(calls, max(2, repetitions // 20), warmup=2)
    return {name: statistics.median(values) / together for name, values in times.items()}


def checkpoints(device: str, steps: int) -> dict[str, Any]:
    """What the paper's preset saves with five students, and a replay in the device's memory saved and restored."""
    capacity = max(256, min(steps * 4, 131_072) // 256 * 256)
    fleet = ["preset=paper", "students=[net1,net2,net3,net4,net5]", f"device={device}", "num_envs=64"]
    fleet += [f"cudagraph={str(device.startswith('cuda')).lower()}", "replay_capacity=20480", "warmup_steps=1024"]
    fleet += [f"total_steps={max(1_280, min(steps, 8_192) // 256 * 256)}"]
    with tempfile.TemporaryDirectory() as place:
        run = quick_run(Path(place) / "run", 3, torch.get_num_threads(), fleet)
        buffer, other = (
            make_replay_buffer(storage, batch_size=32)
            for storage in (
                filled_storage(device, capacity),
                FrameStackStorage(capacity, num_envs=32, steps_per_write=8, device=device),
            )
        )
        path = Path(place) / "replay"
        saving = seconds(partial(VerifiedCheckpoint(replay_buffer=ReplayState(buffer)).save, path))
        restoring = seconds(partial(VerifiedCheckpoint(replay_buffer=ReplayState(other)).load, path))
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    index = torch.arange(0, capacity, max(1, capacity // 1_000), device=device)
    return {
        "run": run,
        "replay": {
            "transitions": len(other),
            "gigabytes": size / 1e9,
            "save_seconds": saving,
            "restore_seconds": restoring,
            "identical": bool((other[index] == buffer[index]).all()),
        },
    }
