"""Cost of students in training: one more against the same by hand, and a fleet against separate runs.

    python tests/benchmarks/bench_fleet.py --out docs/results/fleet.json

First part: the hook's update of one student on a minibatch with the teacher's values, and the same in plain PyTorch:
the paper's loss (forward KL and TD error, the teacher choosing the target's action), fused Adam, a target network.
Second part: seconds a step of the main example with all six students, and with each of them alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from main_example import steps_per_second
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.objectives import HardUpdate
from turns import median_ratio, parsed_options, take_turns

from torchrl_rtpd import RealTimeDistillTrainer, StudentDQNLoss, make_actor
from torchrl_rtpd.networks.towers import TOWERS
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.process import keep_freed_memory

NUMBERS = {"repetitions": 100, "batch": 32, "threads": 2, "steps": 2_400, "num_actions": 18}
STUDENTS = [name for name in TOWERS if name != "teacher"]
TEMPERATURE, GAMMA, LEARNING_RATE = 0.1, 0.99, 5e-4


def minibatch(options: argparse.Namespace) -> TensorDict:
    """What a sample holds, with the teacher's values of both states."""
    size = options.batch

    def side() -> dict[str, Any]:
        pixels = torch.randint(256, (size, 84, 84, 4), dtype=torch.uint8).permute(0, 3, 1, 2)  # as our storage gives
        return {"pixels": pixels, "teacher": {"action_value": torch.randn(size, options.num_actions)}}

    over = torch.rand(size, 1) < 0.01
    following = {**side(), "reward": torch.randn(size, 1), "done": over, "terminated": over}
    action = torch.randint(options.num_actions, (size,))
    return TensorDict({**side(), "action": action, "next": following}, [size])


def by_hand(name: str, batch: TensorDict, *, metrics: bool = False) -> Callable[[], None]:
    """One update of one student, as one would write it, on demand with the metrics that the hook logs."""
    network = make_actor(name, Categorical(batch["teacher", "action_value"].shape[-1]), seed=0).module[0].module
    target = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, eps=1e-5, fused=True)
    pixels, next_pixels = batch["pixels"], batch["next", "pixels"]
    reward, alive = batch["next", "reward"].squeeze(-1), 1 - batch["next", "terminated"].squeeze(-1).float()
    wanted_values, next_values = batch["teacher", "action_value"], batch["next", "teacher", "action_value"]
    sums = torch.zeros(5)

    def call() -> None:
        values = network(pixels)
        with torch.no_grad():
            best = next_values.argmax(-1, keepdim=True)
            wanted = reward + GAMMA * alive * target(next_pixels).gather(-1, best).squeeze(-1)
        chosen = values.gather(-1, batch["action"][:, None]).squeeze(-1)
        teacher = F.log_softmax(wanted_values / TEMPERATURE, -1)
        student = F.log_softmax(values / TEMPERATURE, -1)
        divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
        td_error = F.smooth_l1_loss(chosen, wanted)
        (divergence + td_error).backward()
        optimizer.step()
        optimizer.zero_grad()
        if metrics:
            with torch.no_grad():
                agreement = (values.argmax(-1) == wanted_values.argmax(-1)).float().mean()
                entropies = [-(log_probs.exp() * log_probs).sum(-1).mean() for log_probs in (teacher, student)]
                sums.add_(torch.stack([divergence, td_error, agreement, *entropies]))

    return call


def by_hook(name: str, batch: TensorDict) -> Callable[[], None]:
    """The hook's update of the same student."""
    student = make_actor(name, Categorical(batch["teacher", "action_value"].shape[-1]), seed=0)
    loss = StudentDQNLoss(student, teacher_temperature=TEMPERATURE, loss_function="smooth_l1")
    loss.make_value_estimator(gamma=GAMMA)
    hook = RealTimeDistillTrainer(
        {name: loss},
        optimizer=partial(torch.optim.Adam, lr=LEARNING_RATE, eps=1e-5, fused=True),
        target_updater=partial(HardUpdate, value_network_update_interval=1_000),
    )
    hook.attach(BareTrainer())  # type: ignore[arg-type]
    return lambda: hook.step(batch)


class BareTrainer:
    """What the hook asks of a trainer when the minibatch brings the teacher's values."""

    loss_module = nn.Module()


def seconds_a_step(students: list[str], options: argparse.Namespace) -> float:
    """Of the main example in training."""
    return 1 / steps_per_second(
        students=f"[{','.join(students)}]",
        total_steps=options.steps,
        batch_size=options.batch,
        steps_per_update=4,
        threads=options.threads,
    )


def main() -> None:
    """Measure, print, save."""
    options = parsed_options(__doc__, NUMBERS)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # for all alternatives alike
    batch = minibatch(options)
    updates = {}
    for name in STUDENTS:
        calls = {
            "hook": by_hook(name, batch),
            "hand": by_hand(name, batch),
            "hand_with_metrics": by_hand(name, batch, metrics=True),
        }
        times = take_turns(calls, options.repetitions)
        updates[name] = {key: statistics.median(values) for key, values in times.items()}
        updates[name]["ratio"] = median_ratio(times["hook"], times["hand"])
        updates[name]["ratio_with_metrics"] = median_ratio(times["hook"], times["hand_with_metrics"])
        print(name, updates[name], flush=True)
    fleet = seconds_a_step(STUDENTS, options)
    alone = {name: seconds_a_step([name], options) for name in STUDENTS}
    fleet = statistics.mean([fleet, seconds_a_step(STUDENTS, options)])  # before and after, for a machine that drifts
    result = {
        "updates_ms": updates,
        "fleet_seconds_a_step": fleet,
        "alone_seconds_a_step": alone,
        "separate_over_fleet": sum(alone.values()) / fleet,
        "options": {name: getattr(options, name) for name in NUMBERS},
    }
    print(json.dumps(result))
    if options.out is not None:
        write_json(options.out, {**result, "environment": run_environment()})


if __name__ == "__main__":
    main()
