"""Students that are dropped on the way: the others and the teacher learn on as they would have."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stepper_parts import ADAM, actor, students, trainer_with, weights

from torchrl_rtpd import ConcurrentStepper, CudaGraphStepper, DormancyCheck, RealTimeDistillTrainer
from torchrl_rtpd.collectors.policy import TeacherStudentPolicy
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.schedules import RunState

WAYS: dict[str, Callable[[RealTimeDistillTrainer], Any]] = {
    "hook": lambda hook: hook,
    "beside": ConcurrentStepper,
    "captured": CudaGraphStepper,
}


def trained(way: str, *, drop_after: int | None) -> tuple[Any, RealTimeDistillTrainer]:
    """Trainer and hook of three students after eight batches, one of them dropped after some of these."""
    losses = {"more": DistillationLoss(actor(6, 5, "cpu")), **students("cpu")}
    hook = RealTimeDistillTrainer(losses, optimizer=ADAM, checks=[DormancyCheck(4)])
    trainer = trainer_with("cpu", WAYS[way](hook).register)
    batches = 0

    def after_batch() -> None:
        nonlocal batches
        batches += 1
        if batches == drop_after:
            hook.drop("more")

    trainer.register_op("post_steps", after_batch)
    trainer.train()
    return trainer, hook


@pytest.mark.parametrize("way", WAYS)
def test_the_others_learn_on_bit_for_bit(way: str) -> None:
    """Teacher and remaining students, with one dropped after three of eight batches and with none."""
    (one, hook), (other, whole) = trained(way, drop_after=3), trained(way, drop_after=None)
    assert list(hook.learners) == ["paper", "pure"] and hook.dropped == ["more"]
    mine = weights(one.loss_module, *hook.students.values())
    theirs = weights(other.loss_module, *(whole.students[name] for name in hook.students))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert hook.updates == whole.updates == 32
    assert not [name for name in hook.metrics if name.startswith("distill/more/")]


def test_the_dropped_student_acts_no_more() -> None:
    """Three students act in a fifth of the steps each; without one of them its fifth is the teacher's."""
    losses = {"more": DistillationLoss(actor(6, 5, "cpu")), **students("cpu")}
    networks = {name: loss.student_network for name, loss in losses.items()}
    policy = TeacherStudentPolicy(actor(1, 9, "cpu"), networks, acting=dict.fromkeys(losses, 0.2), seed=0)
    assert policy.update_acting(RunState()) == pytest.approx(dict.fromkeys(losses, 0.2))
    wanted = {**dict.fromkeys(losses, 0.2), "more": 0.0}
    assert policy.update_acting(RunState(), dropped=["more"]) == pytest.approx(wanted)
    policy.acting = lambda state: 0.3
    assert policy.update_acting(RunState(), dropped=["more"])["more"] == 0.0


def test_the_collector_hears_of_a_drop_at_once() -> None:
    """No batch later: the probabilities are changed when the call returns."""
    losses = students("cpu")
    hook = RealTimeDistillTrainer(losses, optimizer=ADAM)
    networks = {name: loss.student_network for name, loss in losses.items()}
    trainer_with("cpu", hook.register)
    policy = TeacherStudentPolicy(actor(1, 9, "cpu"), networks, acting=dict.fromkeys(losses, 0.2), seed=0)
    heard: list[Any] = []
    hook._collector = SimpleNamespace(
        update_students=lambda state, dropped: heard.append(policy.update_acting(state, dropped=dropped)) or {}
    )
    hook.load_state_dict(hook.state_dict())
    assert heard == []  # of a state in which nobody was dropped
    hook.drop("pure")
    assert heard == [pytest.approx({"paper": 0.2, "pure": 0.0})]


def test_a_state_that_does_not_fit_drops_nobody() -> None:
    saved = trained("hook", drop_after=3)[1].state_dict()
    other = RealTimeDistillTrainer(
        {"more": DistillationLoss(actor(6, 5, "cpu")), "unknown": DistillationLoss(actor(7, 5, "cpu"))}, optimizer=ADAM
    )
    with pytest.raises(ValueError, match=r"must be those of this hook, \['unknown'\]: got \['paper', 'pure'\]"):
        other.load_state_dict(saved)
    assert list(other.learners) == ["more", "unknown"]
    alone = RealTimeDistillTrainer({"more": DistillationLoss(actor(6, 5, "cpu"))}, optimizer=ADAM)
    with pytest.raises(ValueError, match=r"must be those of this hook, \[\]: got \['paper', 'pure'\]"):
        alone.load_state_dict(saved)


def test_the_dropped_student_learns_no_more() -> None:
    """Its weights after three batches are those at the end."""
    losses = {"more": DistillationLoss(actor(6, 5, "cpu")), **students("cpu")}
    hook = RealTimeDistillTrainer(losses, optimizer=ADAM)
    trainer = trainer_with("cpu", hook.register)
    found: list[list[torch.Tensor]] = []

    def after_batch() -> None:
        found.append([value.clone() for value in weights(losses["more"])])
        if len(found) == 3:
            hook.drop("more")

    trainer.register_op("post_steps", after_batch)
    trainer.train()
    changed = [any(not torch.equal(*pair) for pair in zip(one, other, strict=True)) for one, other in pairwise(found)]
    assert changed == [True, True, False, False, False, False, False]


def test_a_state_remembers_who_was_dropped() -> None:
    """A hook built with all of them is one without, and goes on with the states of the others."""
    _, hook = trained("hook", drop_after=3)
    state = hook.state_dict()
    fresh = RealTimeDistillTrainer(
        {"more": DistillationLoss(actor(6, 5, "cpu")), **students("cpu")}, optimizer=ADAM, checks=[DormancyCheck(4)]
    )
    fresh.load_state_dict(state)
    assert list(fresh.learners) == ["paper", "pure"] and fresh.dropped == ["more"]
    mine, theirs = weights(*fresh.students.values()), weights(*hook.students.values())
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_state_of_before_the_drop_can_be_restored() -> None:
    """As by a guard that rolls back; who was dropped stays so."""
    losses = {"more": DistillationLoss(actor(6, 5, "cpu")), **students("cpu")}
    hook = RealTimeDistillTrainer(losses, optimizer=ADAM)
    before = hook.state_dict()
    hook.drop("more")
    hook.load_state_dict(before)
    assert list(hook.learners) == ["paper", "pure"] and hook.dropped == ["more"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["net1"], r"must be some of \['paper', 'pure'\]: got \['net1'\]"),
        (["paper", "pure"], r"must be left to learn: got all of \['paper', 'pure'\]; keep one"),
    ],
)
def test_names_that_cannot_go_are_refused_and_all_stay(names: list[str], message: str) -> None:
    hook = RealTimeDistillTrainer(students("cpu"), optimizer=ADAM)
    with pytest.raises(ValueError, match=message):
        hook.drop(*names)
    assert list(hook.learners) == ["paper", "pure"] and hook.dropped == []
