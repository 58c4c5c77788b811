"""What keeps tiny students alive beside a teacher that learns by PQN: many in one run, which differ in one thing each.

All see the same minibatches of the same teacher on Pong. Most of a screen there never changes, and for long no action
is better than another; a student that has nothing to tell apart may come to give the same values for every screen, and
stay so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torchrl.modules import QValueActor

from gpu_parts.loop import Sizes, build_with, make_env
from torchrl_rtpd import DistillationLoss, DormancyCheck, RealTimeDistillTrainer, StudentPQNLoss, make_actor

__all__ = ["FOUR_EPOCHS", "VARIANTS", "Variant", "survival"]

ADAM = partial(torch.optim.Adam, eps=1e-5, fused=True)
SHOWN = ("agreement", "kl_to_teacher", "student_entropy", "dormant")

FOUR_EPOCHS = Sizes(128, 32, 128, 128)
"""The preset's rollouts with twice its passes, so that students make more updates in the time there is."""


@dataclass(frozen=True)
class Variant:
    """How a student differs from the main example's with ``preset=pqn``.

    Attributes:
        tower: its size.
        norm: before each ReLU.
        rate: of Adam.
        optimizer: builds it from parameters and rate.
        clip_norm: of its gradient; None does not clip.
        loss: of a student.
    """

    tower: str = "net5"
    norm: Any = "layer"
    rate: float = 2.5e-4
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM
    clip_norm: float | None = None
    loss: Callable[[QValueActor], DistillationLoss] = StudentPQNLoss


PRESET = Variant()
VARIANTS = {
    "preset": PRESET,
    "clipped at 10": replace(PRESET, clip_norm=10.0),
    "clipped at 1": replace(PRESET, clip_norm=1.0),
    "rate 1e-4": replace(PRESET, rate=1e-4),
    "RAdam": replace(PRESET, optimizer=partial(torch.optim.RAdam, eps=1e-5)),
    "no norm": replace(PRESET, norm=None),
    "no norm, clipped at 10": replace(PRESET, norm=None, clip_norm=10.0),
    "KL alone": replace(PRESET, loss=partial(DistillationLoss, teacher_temperature=0.1, student_temperature=0.1)),
    "TD alone": replace(PRESET, loss=partial(StudentPQNLoss, distill_coeff=0.0)),
    "temperature auto": replace(PRESET, loss=partial(StudentPQNLoss, teacher_temperature="auto")),
}


class Clipped:
    """Step of an optimiser that clips its gradient before, since a hook clips all students alike."""

    def __init__(self, optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
        self._step, self._clip_norm = optimizer.step, clip_norm
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def __call__(self, *arguments: Any) -> Any:
        nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        return self._step(*arguments)


def _optimizer(variant: Variant, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = variant.optimizer(parameters, lr=variant.rate)
    if variant.clip_norm is not None:
        optimizer.step = Clipped(optimizer, variant.clip_norm)  # type: ignore[method-assign]
    return optimizer


def survival(found: dict[str, Any], device: str, seconds: float, sizes: Sizes = FOUR_EPOCHS, seeds: int = 2) -> None:
    """Train for some seconds, and note agreement, divergence, entropy and dormant units of every student on the way.

    Args:
        found: what to fill: ``"steps"``, ``"updates"`` and, by variant and seed, what was measured then.
        device: of all networks.
        seconds: of training.
        sizes: of rollouts and minibatches.
        seeds: students of each variant.
    """
    for key in ("steps", "updates", "students"):  # of a call that was cut: this one begins anew
        found.pop(key, None)
    env = make_env(sizes, device, "pong")
    found["num_actions"] = env.action_spec.n
    students = {f"{name}; seed {seed}": variant for name, variant in VARIANTS.items() for seed in range(seeds)}
    actors = {
        name: make_actor(
            variant.tower, env.action_spec, seed=1 + int(name.split()[-1]), device=device, norm=variant.norm
        )
        for name, variant in students.items()
    }

    def hook_of(_: QValueActor) -> RealTimeDistillTrainer:
        return RealTimeDistillTrainer(
            {name: students[name].loss(actor) for name, actor in actors.items()},
            optimizer={name: partial(_optimizer, variant) for name, variant in students.items()},
            checks=[DormancyCheck(every_updates=sizes.updates, warning=1.0)],
        )

    loop = build_with("pqn", hook_of, env, sizes, total_steps=1_000_000)
    hook, trainer, end, rows = loop.hook, loop.trainer, time.perf_counter() + seconds, _Rows(found, list(students))
    assert hook is not None

    def after_batch() -> None:
        over = time.perf_counter() > end
        if over or hook.updates >= rows.next:
            rows.add(trainer.collected_frames, hook)
        if over:
            trainer.request_stop("timed")

    trainer.register_op("post_steps", after_batch)
    trainer.train()
    env.close()


class _Rows:
    """What was measured, a row for every thousand updates."""

    def __init__(self, found: dict[str, Any], students: list[str]) -> None:
        self.next = 0
        self._found, self._students = found, students

    def add(self, steps: int, hook: RealTimeDistillTrainer) -> None:
        self.next = hook.updates + 1_000
        rows = {key: self._found.get(key, []) for key in ("steps", "updates")}
        rows["students"] = self._found.get("students", {name: {} for name in self._students})
        rows["steps"].append(steps)
        rows["updates"].append(hook.updates)
        for name in self._students:
            for metric in SHOWN:
                value = hook.metrics.get(f"distill/{name}/{metric}")
                rows["students"][name].setdefault(metric, []).append(value)
        self._found.update(rows)
        shown = {name: round(row["agreement"][-1] or 0, 2) for name, row in rows["students"].items()}
        print(steps, hook.updates, shown, flush=True)
