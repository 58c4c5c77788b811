"""Checks and timings for a machine with a GPU, in one script.

    python tests/benchmarks/gpu.py --out docs/results/gpu.json

1. A CPU and the GPU give the same losses for the same networks and minibatch.
2. Updates make the host wait for the device at no point (checked with torch's synchronisation debugger).
3. A captured update learns what the same update learns uncaptured, and the teacher the same bits with and without
   students.
4. The update of the teacher alone, with one student, with the paper's five: eager and as one CUDA graph, each in
   float32 and with bfloat16 below the heads.
5. Sampling from a replay in GPU memory, one minibatch at a time and many together.
6. Short trainings of the main example, with the GPU's utilisation.
7. Last, since it takes longest: captured updates, compiled by torch.compile before.

``--device cpu`` runs what needs no GPU, to try the script. On the machine: torch, and this package's dependencies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from main_example import steps_per_second
from tensordict import TensorDict
from torchrl.data import Categorical
from torchrl.objectives import HardUpdate
from torchrl.trainers import DefaultOptimizationStepper
from turns import take_turns

from torchrl_rtpd import (
    CudaGraphStepper,
    FrameStackStorage,
    RealTimeDistillTrainer,
    StudentDQNLoss,
    TeacherDQNLoss,
    make_actor,
    make_replay_buffer,
)
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json

FLEETS = {"teacher": [], "one student": ["net17"], "the paper's five": ["net1", "net2", "net3", "net4", "net5"]}
NUM_ACTIONS = 18


def minibatch(size: int, device: str, seed: int = 0) -> TensorDict:
    """What the replay gives for a batch."""
    generator = torch.Generator().manual_seed(seed)

    def pixels() -> torch.Tensor:
        frames = torch.randint(256, (size, 84, 84, 4), dtype=torch.uint8, generator=generator)
        return frames.permute(0, 3, 1, 2)

    over = torch.rand(size, 1, generator=generator) < 0.01
    following = {"pixels": pixels(), "reward": torch.randn(size, 1, generator=generator), "done": over}
    following["terminated"] = over
    action = torch.randint(NUM_ACTIONS, (size,), generator=generator)
    return TensorDict({"pixels": pixels(), "action": action, "next": following}, [size]).to(device)


class Update:
    """One update of a teacher and its students on a minibatch, by the package's own parts.

    Args:
        students: names of towers.
        device: where everything lies.
        captured: as one CUDA graph.
        bfloat16: below the heads.
        compiled: the teacher's network and the students' losses, by torch.compile.
    """

    def __init__(
        self,
        students: list[str],
        device: str,
        *,
        captured: bool = False,
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        make = partial(make_actor, device=device, autocast_dtype=torch.bfloat16 if bfloat16 else None)
        teacher = make("teacher", Categorical(NUM_ACTIONS), seed=0)
        loss = TeacherDQNLoss(teacher, loss_function="smooth_l1", action_space="categorical", delay_value=True)
        actors = {name: make(name, Categorical(NUM_ACTIONS), seed=1 + i) for i, name in enumerate(students)}
        losses = {name: StudentDQNLoss(actor, loss_function="smooth_l1") for name, actor in actors.items()}
        if compiled:
            torch._dynamo.config.recompile_limit = 100
            teacher.module[0].module.compile()
            for student in losses.values():
                student.compile()
        self.trainer: Any = SimpleNamespace(
            loss_module=loss,
            compute_loss=loss,
            optimizer=torch.optim.Adam(loss.parameters(), lr=1e-4, fused=True),
            clip_grad_norm=True,
            clip_norm=10.0,
            target_net_updater=HardUpdate(loss, value_network_update_interval=1_000),
        )
        self.hook = None
        if losses:
            optimizer = partial(torch.optim.Adam, lr=1e-4, fused=True)
            self.hook = RealTimeDistillTrainer(losses, optimizer=optimizer, checks=[])
            self.hook.attach(self.trainer)
        self.stepper: Any = CudaGraphStepper(self.hook) if captured else DefaultOptimizationStepper()

    def __call__(self, batch: TensorDict) -> TensorDict:
        """The teacher's metrics."""
        metrics = self.stepper.step(self.trainer, batch)
        if self.hook is not None and not isinstance(self.stepper, CudaGraphStepper):
            self.hook.step(batch)
        self.trainer.target_net_updater.step()
        return metrics

    def weights(self) -> dict[str, list[torch.Tensor]]:
        """Weights of the teacher and of every student."""
        modules = {"teacher": self.trainer.loss_module, **({} if self.hook is None else self.hook.students)}
        return {name: [value.cpu() for value in module.state_dict().values()] for name, module in modules.items()}


def same_losses(device: str) -> dict[str, float]:
    """Largest relative difference between both devices over the metrics of the teacher and of the five students."""
    found = []
    for where in ("cpu", device):
        update = Update(FLEETS["the paper's five"], where)
        metrics = update(minibatch(32, where))
        assert update.hook is not None
        found.append({"loss": float(metrics["loss"]), **(update.hook.log() or {})})
    differences = {key: abs(value - found[1][key]) / max(abs(value), 1e-3) for key, value in found[0].items()}
    if max(differences.values()) > 1e-2:
        raise AssertionError(f"losses of the CPU and {device} must agree to 1e-2: got {differences}.")
    return {"largest_relative_difference": max(differences.values()), "metrics": len(differences)}


def captured_is_same(device: str, updates: int = 50) -> dict[str, Any]:
    """Weights after some updates, captured and not, with and without students."""
    batches = [minibatch(32, device, seed) for seed in range(updates)]
    five = FLEETS["the paper's five"]
    found: dict[tuple[str, str], dict[str, list[torch.Tensor]]] = {}
    torch.backends.cudnn.deterministic = True
    for way in ("eager", "captured"):
        for fleet, students in {"five": five, "alone": []}.items():
            update = Update(students, device, captured=way == "captured")
            for batch in batches:
                update(batch)
            found[way, fleet] = update.weights()
    torch.backends.cudnn.deterministic = False
    eager, captured = found["eager", "five"], found["captured", "five"]
    return {
        "updates": updates,
        "largest_difference_of_weights": {
            name: max(_distance(*pair) for pair in zip(eager[name], captured[name], strict=True)) for name in eager
        },
        "largest_weight_change": 1e-4 * updates,  # Adam's learning rate times its steps
        "teacher_identical_without_students": {
            way: all(
                torch.equal(*pair)
                for pair in zip(found[way, "five"]["teacher"], found[way, "alone"]["teacher"], strict=True)
            )
            for way in ("eager", "captured")
        },
    }


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one.double() - other.double()).abs().max().item()


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Inside, whatever makes the host wait for a CUDA device raises."""
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits_nowhere(device: str) -> dict[str, int]:
    """Students' updates under the debugger; calls that look at numbers (1st, 2nd, 4th, 8th, 16th) come before."""
    update = Update(["net17"], device)
    batch = minibatch(32, device)
    hook = update.hook
    assert hook is not None
    for _ in range(17):
        update(batch)
    with no_waiting(device):
        for _ in range(6):
            update.trainer.compute_loss(batch)
            hook.step(batch)
    captured = Update(["net17"], device, captured=True)
    for _ in range(17):
        captured(batch)
    with no_waiting(device):
        for _ in range(6):
            captured(batch)
    return {"students_updates_without_waiting": 6, "whole_captured_updates_without_waiting": 6}


def update_times(device: str, repetitions: int, compiled: bool = False) -> dict[str, dict[str, float]]:
    """Median milliseconds of an update by fleet and way of running it, with as many in flight as the host can start."""
    batch = minibatch(32, device)
    at_once = 10
    times: dict[str, dict[str, float]] = {}
    fleets = {name: students for name, students in FLEETS.items() if len(students) < 2 or not compiled}
    for fleet, students in fleets.items():
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
    return times


def captured_profile(device: str, updates: int = 20) -> dict[str, dict[str, Any]]:
    """Where the time of a captured update goes, by fleet: host, device, and the device's kernels by name."""
    if not device.startswith("cuda"):
        return {}
    batch = minibatch(32, device)
    found: dict[str, dict[str, Any]] = {}
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
        graph = update.stepper._update._graph
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
        print(fleet, json.dumps(found[fleet], indent=1), flush=True)
    return found


def replay_times(device: str, repetitions: int) -> dict[str, float]:
    """Median milliseconds of a minibatch of 32 from a replay on the device."""
    slots, steps, together = 32, 8, 64
    storage = FrameStackStorage(slots * steps * 400, num_envs=slots, steps_per_write=steps, device=device)
    one = make_replay_buffer(storage, batch_size=32)
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
    for _ in range(20):
        one.extend(batch)
        storage.cut()
    many = make_replay_buffer(storage, batch_size=32, minibatches_at_once=together)

    def drain(buffer: Any) -> None:
        for _ in range(together):
            buffer.sample()

    calls = {"one at a time": partial(drain, one), "64 together": partial(drain, many)}
    times = take_turns(calls, max(2, repetitions // 20), warmup=2)
    return {name: statistics.median(values) / together for name, values in times.items()}


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


def short_trainings(device: str, steps: int) -> dict[str, dict[str, float]]:
    """Agent steps a second of the main example, and the minutes that the paper's ten million would take."""
    captured = {"cudagraph": "true"} if device.startswith("cuda") else {}
    five = "[net1,net2,net3,net4,net5]"
    overlapped = {"num_envs": 256, "rollout_steps": 1, "overlap": "true", "replay_capacity": 1_000_192}
    runs: dict[str, dict[str, Any]] = {
        "one student": {"students": "[net17]", "total_steps": max(steps // 8, min(steps, 4_096))},
        "one student, captured": {"students": "[net17]", **captured},
        "five students, captured": {"students": five, **captured},
        "five students, captured, overlapped": {"students": five, **captured, **overlapped},
        "five students, captured, overlapped, bfloat16": {"students": five, "amp": "true", **captured, **overlapped},
    }
    found = {}
    for name, options in runs.items():
        with utilisation() as measured:
            speed = steps_per_second(
                **{
                    "device": device,
                    "total_steps": steps,
                    "warmup_steps": min(1_024, steps // 2),
                    "num_envs": 64,
                    "rollout_steps": 4,
                    "batch_size": 32,
                    "steps_per_update": 4,
                    "n_step": 1,
                    "replay_capacity": 1_000_192,
                    "threads": torch.get_num_threads(),
                    **options,
                }
            )
        found[name] = {"steps_per_second": speed, "minutes_for_ten_million": 1e7 / speed / 60, **measured}
        print(name, found[name], flush=True)
    return found


def main() -> None:
    """Check, time, train, save; what fails is reported and does not keep the rest from running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40_000, help="of the short trainings")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--only", nargs="*", help="parts to run; default: all")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    device = options.device
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "same_losses": partial(same_losses, device),
        "waits_nowhere": partial(waits_nowhere, device),
        "captured_is_same": partial(captured_is_same, device),
        "update_ms": partial(update_times, device, options.repetitions),
        "captured_profile": partial(captured_profile, device),
        "replay_ms": partial(replay_times, device, options.repetitions),
        "training": partial(short_trainings, device, options.steps),
        "compiled_update_ms": partial(update_times, device, options.repetitions, True),
    }
    if options.no_compile:
        del parts["compiled_update_ms"]
    result: dict[str, Any] = {}
    failed = False
    for name, part in parts.items():
        if options.only and name not in options.only:
            continue
        start = time.perf_counter()
        try:
            result[name] = part()
        except Exception as error:  # a lent machine is gone before a second try: the other parts are still worth having
            traceback.print_exc()
            result[name], failed = {"error": f"{type(error).__name__}: {error}"}, True
        print(f"{name} ({time.perf_counter() - start:.0f} s)", json.dumps(result[name]), flush=True)
        if options.out is not None:
            write_json(options.out, {**result, "environment": run_environment(device)})
    if failed:
        raise SystemExit("some parts failed, see above")


if __name__ == "__main__":
    main()
