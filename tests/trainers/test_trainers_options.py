"""Schedules and recycling as options of the trainer hook."""

from __future__ import annotations

import copy
from functools import partial

import pytest
from hook_parts import (
    FAST,
    cartpole_trainer,
    content,
    dead,
    filled,
    minibatches,
    student_loss,
    student_state,
    teacher_state,
    trained,
    update,
)
from torch import nn
from torch.optim import SGD, Adam
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_rtpd.networks.recycling import UnitRecycler
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.schedules import GapSchedule, KLGate, LinearSchedule
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer

FADING = {"distill_coeff": LinearSchedule(1.0, 0.0, end_updates=12)}


def test_scheduled_values_are_set_once_a_batch_and_logged() -> None:
    """Three updates a batch, six batches: the log holds the value for the next batch."""
    trainer = cartpole_trainer()
    loss = student_loss()
    trained(trainer, loss, schedules=FADING)
    assert trainer._log_dict["distill/student/distill_coeff"] == [0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    assert loss.distill_coeff.item() == 0.0


def test_the_first_value_holds_from_the_first_update_on() -> None:
    trainer = filled(cartpole_trainer())
    loss = student_loss()
    hook = RealTimeDistillTrainer(
        loss, optimizer=FAST, schedules={"distill_coeff": LinearSchedule(0.0, 1.0, end_updates=10)}
    )
    hook.register(trainer)
    update(trainer, hook, *minibatches(trainer, 1))
    assert hook.averages()["distill/student/loss_distill"] == 0.0
    assert loss.distill_coeff.item() == pytest.approx(0.1)


def test_each_student_has_schedules_of_its_own() -> None:
    """By student name, or one mapping of which each student gets a copy."""
    losses = {"a": student_loss(seed=1), "b": student_loss(seed=2)}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, schedules={"b": FADING})
    assert hook.schedules == {"b": FADING}
    gate = {"distill_coeff": KLGate(2)}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, schedules=gate)
    assert len({id(own["distill_coeff"]) for own in (gate, *hook.schedules.values())}) == 3


def test_a_gap_schedule_follows_the_returns_it_is_told() -> None:
    """Teacher 100, random 0: a student at 75 lacks a quarter."""
    trainer = filled(cartpole_trainer())
    losses = {"a": student_loss(seed=1), "b": student_loss(seed=2)}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, schedules={"distill_coeff": GapSchedule(floor=0.1)})
    hook.register(trainer)
    assert [loss.distill_coeff.item() for loss in losses.values()] == [1.0, 1.0]
    hook.report_returns({"a": 75.0, "b": 100.0}, teacher_return=100.0, random_return=0.0)
    update(trainer, hook, *minibatches(trainer, 1))
    hook.averages()
    assert [loss.distill_coeff.item() for loss in losses.values()] == pytest.approx([0.25, 0.1])


def test_schedules_and_returns_survive_a_restart() -> None:
    """A restored hook gives the values of the one that went on."""
    batches = minibatches(trained_trainer := filled(cartpole_trainer()), 2)
    hooks = [
        RealTimeDistillTrainer(
            student_loss(), optimizer=FAST, schedules={"distill_coeff": GapSchedule(), "td_coeff": KLGate(2, floor=0.5)}
        )
        for _ in range(2)
    ]
    hooks[0].register(trained_trainer)
    hooks[0].report_returns({"student": 40.0}, teacher_return=100.0, random_return=0.0)
    update(trained_trainer, hooks[0], batches[0])
    hooks[0].averages()
    hooks[1].load_state_dict(copy.deepcopy(hooks[0].state_dict()))
    hooks[1].register(other := filled(cartpole_trainer()))
    assert hooks[1].students["student"].distill_coeff.item() == pytest.approx(0.6)
    other.loss_module.load_state_dict(trained_trainer.loss_module.state_dict())
    values = []
    for trainer, hook in zip((trained_trainer, other), hooks, strict=True):
        update(trainer, hook, batches[1])
        metrics = hook.averages()
        values.append([metrics[f"distill/student/{name}"] for name in ("distill_coeff", "td_coeff")])
    assert values[0] == values[1]


def test_what_cannot_be_scheduled_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="DistillationLoss cannot schedule 'td_coeff'"):
        pure = DistillationLoss(student_loss().student_network)
        RealTimeDistillTrainer(pure, optimizer=FAST, schedules={"td_coeff": FADING["distill_coeff"]})
    with pytest.raises(ValueError, match=r"by student name, \['student'\]: got \['tiny'\]; write"):
        RealTimeDistillTrainer(student_loss(), optimizer=FAST, schedules={"tiny": FADING})


def test_dormant_units_are_recycled_when_due_and_counted() -> None:
    """All eight units die before the run; at the second update they get a new start, and the student learns again."""
    trainer = cartpole_trainer()
    loss = dead(student_loss(), 8)
    hook = trained(
        trainer,
        loss,
        optimizer=partial(SGD, lr=1e-6),
        recycler=UnitRecycler(every_updates=2, until_updates=2),
        dormant_every_updates=None,
    )
    assert trainer._log_dict["distill/student/recycled"] == [8, 0, 0, 0, 0, 0]
    assert (loss.student_network.module[0].module[0].bias.abs() < 1e-3).all()  # they were -1
    assert hook.updates == 18


@pytest.mark.parametrize("option", ["schedules", "recycler"])
def test_the_teacher_is_bit_identical_with_options(option: str) -> None:
    """Neither schedules nor recycling touch the teacher or its random stream."""
    options = {"schedules": FADING, "recycler": UnitRecycler(every_updates=1)}
    states = []
    for students in (None, {"a": dead(student_loss(), 4)}):
        trainer = cartpole_trainer()
        trained(trainer, students, **({option: options[option]} if students else {}))
        states.append(teacher_state(trainer))
    assert states[0] == states[1]


def test_recycling_is_the_same_alone_and_in_a_fleet() -> None:
    """Each student draws its new weights from a generator of its own."""
    states = []
    for names in (("a",), ("a", "b")):
        losses = {name: dead(student_loss(seed=index), 8) for index, name in enumerate(names)}
        hook = trained(
            cartpole_trainer(),
            losses,
            recycler=UnitRecycler(every_updates=3),
            optimizer=partial(Adam, lr=1e-3),
            dormant_every_updates=None,
        )
        states.append(student_state(hook, "a"))
    assert states[0] == states[1]
    assert content(hook.students["a"].state_dict()) != content(hook.students["b"].state_dict())


def test_a_student_that_cannot_be_recycled_is_named_before_anything_has_learned() -> None:
    trainer = filled(cartpole_trainer())
    linear = QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
    losses = {"fine": student_loss(), "linear": DistillationLoss(linear, teacher_temperature=0.1)}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, recycler=UnitRecycler())
    hook.register(trainer)
    before = content(hook.state_dict())
    with pytest.raises(ValueError, match="units of student 'linear' cannot be recycled: recycling needs Conv2d or Li"):
        update(trainer, hook, *minibatches(trainer, 1))
    assert content(hook.state_dict()) == before
