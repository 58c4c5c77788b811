"""Checks and timings for a machine with a GPU, in one script.

    python tests/benchmarks/gpu.py --out docs/results/gpu.json

1. A CPU and the GPU give the same losses for the same networks and minibatch.
2. A student's update makes the host wait for the device at no point (checked with torch's synchronisation debugger).
3. The update of the teacher alone, with one student, with the paper's five: eager, compiled, as one CUDA graph.
4. Sampling from a replay in GPU memory.
5. A short training of the main example on the GPU.

``--device cpu`` runs what needs no GPU, to try the script. On the machine: torch, and this package's dependencies.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_fleet import BareTrainer
from main_example import steps_per_second
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule
from torch import nn
from torchrl.data import Categorical
from torchrl.objectives import DQNLoss, HardUpdate
from turns import take_turns

from torchrl_rtpd import FrameStackStorage, RealTimeDistillTrainer, StudentDQNLoss, make_actor, make_replay_buffer
from torchrl_rtpd.report import run_environment, write_json

FLEETS = {"teacher": [], "one student": ["net17"], "the paper's five": ["net1", "net2", "net3", "net4", "net5"]}
NUM_ACTIONS = 18


def minibatch(size: int, device: str) -> TensorDict:
    """What the replay gives for a batch."""
    generator = torch.Generator().manual_seed(0)

    def pixels() -> torch.Tensor:
        frames = torch.randint(256, (size, 84, 84, 4), dtype=torch.uint8, generator=generator)
        return frames.permute(0, 3, 1, 2)

    over = torch.rand(size, 1, generator=generator) < 0.01
    following = {"pixels": pixels(), "reward": torch.randn(size, 1, generator=generator), "done": over}
    following["terminated"] = over
    action = torch.randint(NUM_ACTIONS, (size,), generator=generator)
    return TensorDict({"pixels": pixels(), "action": action, "next": following}, [size]).to(device)


class Update:
    """One update of a teacher and its students, as one function of a minibatch."""

    def __init__(self, students: list[str], device: str) -> None:
        spec = Categorical(NUM_ACTIONS)
        teacher = make_actor("teacher", spec, seed=0, device=device)
        self.teacher_loss = DQNLoss(teacher, loss_function="smooth_l1", action_space="categorical", delay_value=True)
        HardUpdate(self.teacher_loss, value_network_update_interval=1_000)
        self.losses: list[nn.Module] = [self.teacher_loss]
        for index, name in enumerate(students):
            student = make_actor(name, spec, seed=1 + index, device=device)
            loss = StudentDQNLoss(student, teacher, loss_function="smooth_l1")
            HardUpdate(loss, value_network_update_interval=1_000)
            self.losses.append(loss)
        on_gpu = device.startswith("cuda")
        make = partial(torch.optim.Adam, lr=1e-4, fused=True, capturable=on_gpu)
        self.optimizers = [make(list(loss.parameters())) for loss in self.losses]

    def __call__(self, batch: TensorDict) -> TensorDict:
        """Losses ``[]`` by name."""
        values = {}
        for index, (loss, optimizer) in enumerate(zip(self.losses, self.optimizers, strict=True)):
            out = loss(batch)
            total = sum(value for key, value in out.items() if key.startswith("loss"))
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
            values[f"loss_{index}"] = total.detach()
        return TensorDict(values, [])


def same_losses(device: str) -> dict[str, float]:
    """Largest relative difference between both devices over the five students and the teacher."""
    students = FLEETS["the paper's five"]
    first, second = (Update(students, where)(minibatch(32, where)) for where in ("cpu", device))
    differences = [
        abs(first[key].item() - second[key].item()) / max(abs(first[key].item()), 1e-6) for key in first.keys()
    ]
    if max(differences) > 1e-3:
        raise AssertionError(f"losses of the CPU and {device} must agree to 1e-3: got {differences}.")
    return {"largest_relative_difference": max(differences)}


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
    """Update a student by the hook under the debugger; calls that look at numbers (1st, 2nd, 4th, 8th) come before."""
    spec = Categorical(NUM_ACTIONS)
    teacher = make_actor("teacher", spec, seed=0, device=device)
    loss = StudentDQNLoss(make_actor("net17", spec, seed=1, device=device), teacher, loss_function="smooth_l1")
    hook = RealTimeDistillTrainer(
        {"net17": loss},
        optimizer=partial(torch.optim.Adam, lr=1e-4, fused=True),
        target_updater=partial(HardUpdate, value_network_update_interval=1_000),
        dormant_every_updates=None,
    )
    hook.prepare(BareTrainer())  # type: ignore[arg-type]
    batch = minibatch(32, device)
    for _ in range(9):
        hook.step(batch)
    with no_waiting(device):
        for _ in range(6):
            hook.step(batch)
    return {"updates_without_waiting": 6}


def update_times(device: str, repetitions: int, compiled: bool) -> dict[str, dict[str, float]]:
    """Median milliseconds of an update by fleet and way of running it."""
    batch = minibatch(32, device)
    times: dict[str, dict[str, float]] = {}
    for fleet, students in FLEETS.items():
        calls: dict[str, Callable[[TensorDict], object]] = {"eager": Update(students, device)}
        if compiled:
            calls["compiled"] = torch.compile(Update(students, device))
        if device.startswith("cuda"):
            calls["CUDA graph"] = CudaGraphModule(Update(students, device))
        measured = take_turns({name: partial(call, batch) for name, call in calls.items()}, repetitions, warmup=20)
        times[fleet] = {name: statistics.median(values) for name, values in measured.items()}
        print(fleet, times[fleet], flush=True)
    return times


def replay_times(device: str, repetitions: int) -> dict[str, float]:
    """Median milliseconds of a sample of 32 from a replay on the device."""
    slots, steps = 32, 8
    storage = FrameStackStorage(slots * steps * 400, num_envs=slots, steps_per_write=steps, device=device)
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
    for _ in range(20):
        buffer.extend(batch)
        storage.cut()
    times = take_turns({"sample": buffer.sample}, repetitions, warmup=20)
    return {name: statistics.median(values) for name, values in times.items()}


def short_training(device: str, steps: int) -> dict[str, float]:
    """Agent steps a second of the main example, and the hours that the paper's ten million would take."""
    speeds = {}
    for fleet in ("one student", "the paper's five"):
        speed = steps_per_second(
            device=device,
            students=f"[{','.join(FLEETS[fleet])}]",
            total_steps=steps,
            warmup_steps=steps // 10,
            num_envs=32,
            rollout_steps=8,
            batch_size=32,
            steps_per_update=4,
            n_step=1,
            replay_capacity=steps,
            threads=torch.get_num_threads(),
        )
        speeds[f"{fleet}, steps a second"] = speed
        speeds[f"{fleet}, hours for ten million"] = 1e7 / speed / 3600
    return speeds


def main() -> None:
    """Check, time, train, save; what fails is reported and does not keep the rest from running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40_000, help="of the short training")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    device = options.device
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "same_losses": partial(same_losses, device),
        "waits_nowhere": partial(waits_nowhere, device),
        "replay_ms": partial(replay_times, device, options.repetitions),
        "update_ms": partial(update_times, device, options.repetitions, not options.no_compile),
        "training": partial(short_training, device, options.steps),
    }
    result: dict[str, Any] = {}
    failed = False
    for name, part in parts.items():
        try:
            result[name] = part()
        except Exception as error:  # a lent machine is gone before a second try: the other parts are still worth having
            result[name], failed = {"error": f"{type(error).__name__}: {error}"}, True
        print(name, json.dumps(result[name]), flush=True)
        if options.out is not None:
            write_json(options.out, {**result, "environment": run_environment(device)})
    if failed:
        raise SystemExit("some parts failed, see above")


if __name__ == "__main__":
    main()
