"""Checks and timings for a machine with a GPU, in one script.

    python tests/benchmarks/gpu.py --out docs/results/gpu.json

1. A CPU and the GPU give the same losses for the same networks and minibatch.
2. Updates make the host wait for the device at no point (checked with torch's synchronisation debugger).
3. A captured update learns what the same update learns uncaptured, and the teacher the same bits with and without
   students; one that is not finite is left out, by the guard inside the graph, as if it had not been.
4. The tests that need a GPU, and the main example cut and resumed twice from one checkpoint.
5. The update of the teacher alone, with one student, with the paper's five: eager and as one CUDA graph, each in
   float32 and with bfloat16 below the heads; and what the guard costs in it.
6. Sampling from a replay in GPU memory, one minibatch at a time and many together, and from one in the host's.
7. Checkpoints of the paper's preset, and of a replay in GPU memory.
8. Short trainings of the main example, with the GPU's utilisation; games and collector alone, which bound them.
9. Last, since it takes longest: captured updates, compiled by torch.compile before.

A machine may be lent for minutes. Parts come in order of value, each has a limit of its own, and what it has found is
saved when it ends or is cut off. A second call with the same ``--out`` leaves out the parts that are there, and several
calls at once may fill one file. ``--device cpu`` runs what needs no GPU, to try the script. On the machine: torch, and
this package's dependencies.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench_checkpoint import quick_run, seconds
from bench_env import stepping
from hydra import compose, initialize_config_dir
from main_example import ROOT, rtpd_atari, steps_per_second
from safetensors.torch import load_file
from tensordict import TensorDict
from torchrl.data import Categorical
from torchrl.objectives import HardUpdate
from torchrl.trainers import DefaultOptimizationStepper
from turns import take_turns

from torchrl_rtpd import (
    AtariVecEnv,
    CudaGraphStepper,
    DivergenceGuard,
    DualNetworkCollector,
    FrameStackStorage,
    RealTimeDistillTrainer,
    StudentDQNLoss,
    TeacherDQNLoss,
    make_actor,
    make_replay_buffer,
)
from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.components import ReplayState
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import read_metrics, write_json

FLEETS = {"teacher": [], "one student": ["net17"], "the paper's five": ["net1", "net2", "net3", "net4", "net5"]}
NUM_ACTIONS = 18
GAMES = ((64, 4), (256, 1))  # at once, and steps of each in a batch


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
        guarded: leaves out what is not finite.
    """

    def __init__(
        self,
        students: list[str],
        device: str,
        *,
        captured: bool = False,
        bfloat16: bool = False,
        compiled: bool = False,
        guarded: bool = False,
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
        self.guard = DivergenceGuard(self.hook, policy="skip")
        if guarded:
            self.trainer.register_op = self.trainer.register_module = lambda *_: None
            self.trainer.collected_frames = self.trainer._optim_count = 0
            self.guard.register(self.trainer)
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


def guarded(device: str, updates: int = 24) -> dict[str, Any]:
    """Weights after updates of which one has a reward that is no number, against those without that update."""
    five = FLEETS["the paper's five"]
    batches = [minibatch(32, device, seed) for seed in range(updates)]
    broken = batches[12].clone()
    broken["next", "reward"] = torch.full_like(broken["next", "reward"], torch.nan)
    torch.backends.cudnn.deterministic = True
    found = []
    for given in ([*batches[:12], broken, *batches[12:]], batches):
        update = Update(five, device, captured=True, guarded=True)
        for batch in given:
            metrics = update(batch)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            update.guard.look(len(given), metrics)
        found.append((update.weights(), update.guard.skipped, len(said)))
    torch.backends.cudnn.deterministic = False
    (weights, skipped, said_so), (wanted, skipped_without, _) = found
    if skipped != 1 + len(five) or skipped_without:
        raise AssertionError(f"one update of each of {1 + len(five)} is left out: got {skipped}, {skipped_without}.")
    return {
        "updates": updates,
        "left_out": skipped,
        "warnings": said_so,
        "finite": all(bool(value.isfinite().all()) for values in weights.values() for value in values),
        "identical_to_never_made": {
            name: all(torch.equal(*pair) for pair in zip(weights[name], wanted[name], strict=True)) for name in weights
        },
    }


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


def suite(device: str) -> dict[str, Any]:
    """The tests marked ``gpu``: how many passed, and what became of the others."""
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
        if importlib.util.find_spec("xdist"):
            command += ["-n", "6"]
        # Warnings are none of a GPU's: the image's torch need not be the one TorchRL's extension was built for.
        done = subprocess.run([*command, "-W", "default", *files], cwd=ROOT, text=True, capture_output=True)
        print(done.stdout[-6_000:], done.stderr[-2_000:], flush=True)
        cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    found: dict[str, Any] = {"passed": [], "skipped": {}, "failed": {}}
    for case in cases:
        name = f"{case.get('classname')}.{case.get('name')}"
        bad = [child for child in case if child.tag in ("skipped", "failure", "error")]
        if not bad:
            found["passed"].append(name)
        else:
            found["skipped" if bad[0].tag == "skipped" else "failed"][name] = bad[0].get("message", "")[:300]
    return found


def example_config(folder: Path, device: str, *overrides: str) -> Any:
    """The main example's, for a run that only trains, captured where there is a GPU."""
    training_alone = ["recycle_every_updates=null", "evaluate_every_steps=null", "tensorboard=false"]
    graph = f"cudagraph={str(device.startswith('cuda')).lower()}"
    with initialize_config_dir(str(ROOT / "examples" / "config"), version_base="1.3"):
        return compose(
            "rtpd_atari",
            [*training_alone, "progress_bar=false", graph, f"device={device}", f"output_dir={folder}", *overrides],
        )


def resumed(device: str, steps: int) -> dict[str, Any]:
    """The main example to its end, and twice more from the checkpoint in its middle, replay included.

    Games of ALE cannot be saved and begin anew, so that the two resumed runs can be alike, and the first one cannot.
    """
    steps = max(256, min(steps, 4_096) // 256 * 256)
    small = [f"total_steps={steps}", f"warmup_steps={steps // 4}", f"replay_capacity={steps}", "num_envs=16"]
    small += ["students=[net1,net2,net3,net4,net5]", "steps_per_update=4", "batch_size=32", "n_step=3", "game=pong"]
    small += [f"checkpoint_every_steps={steps // 4}", "checkpoint_keep=9", "checkpoint_replay=true", "threads=2"]
    torch.backends.cudnn.deterministic = True
    warnings.filterwarnings("ignore", message="DQNTrainer is an experimental", category=UserWarning)
    with tempfile.TemporaryDirectory() as place:
        first = Path(place) / "first"
        rtpd_atari.run(example_config(first, device, *small))
        middle = min((first / "checkpoints").glob("checkpoint-*"), key=lambda path: abs(_steps(path) - steps // 2))
        size = sum(path.stat().st_size for path in middle.rglob("*") if path.is_file())
        runs = []
        for name in ("one", "other"):
            folder = Path(place) / name
            shutil.copytree(first, folder)
            config = example_config(folder, device, *small)
            config.resume = str(folder / "checkpoints" / middle.name)
            rtpd_atari.run(config)
            weights = {path.stem: load_file(path) for path in sorted((folder / "weights" / "last").iterdir())}
            runs.append((weights, read_metrics(folder / "metrics.csv")))
    torch.backends.cudnn.deterministic = False
    (one, rows), (other, other_rows) = runs
    clocks = ("seconds", "training_seconds", "cpu_seconds", "steps_per_second")
    differences = {name: max(_distance(one[name][key], other[name][key]) for key in one[name]) for name in one}
    return {
        "steps": steps,
        "cut_at": _steps(middle),
        "captured": device.startswith("cuda"),
        "checkpoint_megabytes": size / 1e6,
        "steps_at_the_end": rows["steps"][-1],
        "updates_at_the_end": rows["updates"][-1],
        "largest_difference_of_weights_of_two_resumes": differences,
        "same_rows": all(str(rows[key]) == str(other_rows[key]) for key in rows if key not in clocks),
    }


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


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


class OutOfTime(Exception):
    """A part's limit, or the call's."""


class Found(dict[str, Any]):
    """What a part has found so far; each entry is passed on as soon as it is there."""

    def __init__(self, before: Mapping[str, Any], save: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(before)
        self._save = save

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._save({**self, "error": "not finished"})


def limited(
    part: Callable[[dict[str, Any]], dict[str, Any] | None],
    limit: float,
    before: Mapping[str, Any],
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """What a part finds in so many seconds, on top of what it found before; with ``error`` if it fails or is cut."""

    def cut(*_: object) -> None:
        raise OutOfTime(f"cut off after {limit:.0f} s")

    found = Found({key: value for key, value in before.items() if key != "error"}, save)
    handler = signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        found.update(part(found) or {})
    except Exception as error:  # a lent machine is gone before a second try: the other parts are still worth having
        traceback.print_exc()
        found.update(error=f"{type(error).__name__}: {str(error)[-2_000:]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    return dict(found)


def add_to(out: Path | None, name: str, device: str, start: float, found: dict[str, Any]) -> None:
    """Put a part, begun at ``start``, into the file if there is one; other processes may be writing it, too."""
    if out is None:
        return
    environment = run_environment(device)
    made = {key: environment[key] for key in ("command", "commit", "device")}
    made.update(date=str(date.today()), seconds=time.perf_counter() - start)
    with Path(f"{out}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = read(out)
        result["made"] = {**result.get("made", {}), name: made}
        write_json(out, {**result, name: found, "environment": environment})


def read(out: Path) -> dict[str, Any]:
    """What the file holds so far."""
    return json.loads(out.read_text()) if out.exists() else {}


def main() -> None:
    """Check, time, train, save; what fails is reported and does not keep the rest from running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40_000, help="of the short trainings")
    parser.add_argument("--seconds", type=float, default=86_400.0, help="for all parts of this call together")
    parser.add_argument("--patience", type=float, default=1.0, help="times the limits of the parts")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--only", nargs="*", help="parts to run; default: all")
    parser.add_argument("--out", type=Path, help="a JSON file to write, or to add to")
    options = parser.parse_args()
    device, repetitions, steps = options.device, options.repetitions, options.steps
    parts: dict[str, tuple[float, Callable[[dict[str, Any]], dict[str, Any] | None]]] = {  # seconds at most
        "same_losses": (60, lambda _: same_losses(device)),
        "waits_nowhere": (60, lambda _: waits_nowhere(device)),
        "captured_is_same": (90, lambda _: captured_is_same(device)),
        "guarded": (60, lambda _: guarded(device)),
        "suite": (120, lambda _: suite(device)),
        "resumed": (120, lambda _: resumed(device, steps)),
        "update_ms": (120, partial(update_times, device=device, repetitions=repetitions)),
        "replay_ms": (60, lambda _: replay_times(device, repetitions)),
        "guard_ms": (60, lambda _: guard_times(device, repetitions)),
        "captured_profile": (60, partial(captured_profile, device=device)),
        "checkpoints": (60, lambda _: checkpoints(device, steps)),
        "training": (400, partial(short_trainings, device=device, steps=steps)),
        "playing": (240, partial(playing, device=device, repetitions=repetitions, games=GAMES)),
        "compiled_update_ms": (300, partial(update_times, device=device, repetitions=repetitions, compiled=True)),
    }
    if options.no_compile:
        del parts["compiled_update_ms"]
    there = {} if options.out is None else read(options.out)
    end = time.perf_counter() + options.seconds
    failed = False
    for name, (limit, part) in parts.items():
        start = time.perf_counter()
        if (options.only and name not in options.only) or "error" not in there.get(name, {"error": ""}) or start > end:
            continue
        save = partial(add_to, options.out, name, device, start)
        found = limited(part, min(options.patience * limit, end - start), there.get(name, {}), save)
        failed = failed or "error" in found
        save(found)
        print(f"{name} ({time.perf_counter() - start:.0f} s)", json.dumps(found)[:3_000], flush=True)
    if failed:
        raise SystemExit("some parts failed, see above")


if __name__ == "__main__":
    main()
