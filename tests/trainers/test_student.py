"""One student: its update, optimiser and schedules."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hook_parts import (
    FAST,
    cartpole_trainer,
    filled,
    fleet,
    minibatches,
    student_loss,
    student_state,
    trained,
    update,
)
from torch.optim import SGD, Adam
from torchrl.objectives import HardUpdate

from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.schedules import GapSchedule, KLGate, LinearSchedule
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.stepper import RealTimeDistillStepper


@pytest.mark.parametrize(("clip_norm", "clipped"), [(0.01, True), (1e6, False), (None, False)])
def test_a_students_gradient_is_clipped_to_the_norm(clip_norm: float | None, clipped: bool) -> None:
    """Plain gradient descent with rate 1 moves the parameters by the gradient."""
    trainer = filled(cartpole_trainer())
    loss = student_loss()
    hook = RealTimeDistillTrainer(loss, optimizer=partial(SGD, lr=1.0), clip_norm=clip_norm)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    before = [parameter.detach().clone() for parameter in loss.parameters()]
    update(trainer, hook, batch)
    moved = [(parameter - old).flatten() for parameter, old in zip(loss.parameters(), before, strict=True)]
    norm = torch.cat(moved).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3) if clipped else norm > 0.02


def test_every_student_has_an_optimiser_of_its_own() -> None:
    """By one factory for all, or by a mapping."""
    losses = fleet(3)
    hook = RealTimeDistillTrainer(losses, optimizer={"small": partial(SGD, lr=0.1), "pure": FAST, "large": FAST})
    assert type(hook.optimizers["small"]) is SGD
    assert type(hook.optimizers["pure"]) is Adam
    held = [parameter for optimizer in hook.optimizers.values() for parameter in optimizer.param_groups[0]["params"]]
    assert len(held) == len({id(parameter) for parameter in held}) == 3 * 4
    for name, optimizer in hook.optimizers.items():
        for given, own in zip(optimizer.param_groups[0]["params"], losses[name].parameters(), strict=True):
            assert given is own


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
    assert hook.log()["distill/student/loss_distill"] == 0.0
    assert loss.distill_coeff.item() == pytest.approx(0.1)


def test_each_student_has_schedules_of_its_own() -> None:
    """By student name, or one mapping of which each student gets a copy."""
    losses = {"a": student_loss(seed=1), "b": student_loss(seed=2)}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, schedules={"b": FADING})
    assert {name: student.schedules for name, student in hook.learners.items()} == {"a": {}, "b": FADING}
    gate = {"distill_coeff": KLGate(2)}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, schedules=gate)
    own = [student.schedules for student in hook.learners.values()]
    assert len({id(schedules["distill_coeff"]) for schedules in (gate, *own)}) == 3


def test_a_gap_schedule_follows_the_returns_it_is_told() -> None:
    """Teacher 100, random 0: a student at 75 lacks a quarter."""
    trainer = filled(cartpole_trainer())
    losses = {"a": student_loss(seed=1), "b": student_loss(seed=2)}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, schedules={"distill_coeff": GapSchedule(floor=0.1)})
    hook.register(trainer)
    assert [loss.distill_coeff.item() for loss in losses.values()] == [1.0, 1.0]
    hook.report_returns({"a": 75.0, "b": 100.0}, teacher_return=100.0, random_return=0.0)
    update(trainer, hook, *minibatches(trainer, 1))
    hook.log()
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
    hooks[0].log()
    hooks[1].load_state_dict(copy.deepcopy(hooks[0].state_dict()))
    hooks[1].register(other := filled(cartpole_trainer()))
    assert hooks[1].students["student"].distill_coeff.item() == pytest.approx(0.6)
    other.loss_module.load_state_dict(trained_trainer.loss_module.state_dict())
    values = []
    for trainer, hook in zip((trained_trainer, other), hooks, strict=True):
        update(trainer, hook, batches[1])
        metrics = hook.log()
        values.append([metrics[f"distill/student/{name}"] for name in ("distill_coeff", "td_coeff")])
    assert values[0] == values[1]


def test_what_cannot_be_scheduled_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="DistillationLoss cannot schedule 'td_coeff'"):
        pure = DistillationLoss(student_loss().student_network)
        RealTimeDistillTrainer(pure, optimizer=FAST, schedules={"td_coeff": FADING["distill_coeff"]})
    with pytest.raises(ValueError, match=r"by student name, \['student'\]: got \['tiny'\]; write"):
        RealTimeDistillTrainer(student_loss(), optimizer=FAST, schedules={"tiny": FADING})


# Equal by construction


def test_a_student_that_was_told_nothing_learns_as_one_that_was_told_the_teachers_settings() -> None:
    """Discount, entry that ends bootstrapping, loss function and target interval, bit for bit."""
    states = []
    for told in (False, True):
        trainer = cartpole_trainer(updater=partial(HardUpdate, value_network_update_interval=2))
        trainer.loss_module.loss_function = "smooth_l1"
        trainer.loss_module.set_keys(terminated="done")
        loss = student_loss(**({"loss_function": "smooth_l1"} if told else {}))
        if told:
            loss.make_value_estimator(gamma=0.9)
            loss.set_keys(terminated="done")
        options = {"target_updater": partial(HardUpdate, value_network_update_interval=2)} if told else {}
        states.append(student_state(trained(trainer, {"net": loss}, **options), "net"))
        assert (loss.tensor_keys.terminated, loss.loss_function) == ("done", "smooth_l1")
        assert loss.value_estimator.gamma.item() == pytest.approx(0.9)
    assert states[0] == states[1]


def test_settings_that_differ_on_purpose_are_kept_and_reported_once_a_student() -> None:
    trainer = cartpole_trainer()
    losses = {"far": student_loss(seed=1), "near": student_loss(seed=2)}
    losses["far"].make_value_estimator(gamma=0.5)
    losses["far"].set_keys(terminated="truncated")
    hook = RealTimeDistillTrainer(losses, optimizer=FAST)
    with pytest.warns(UserWarning, match="told other things") as caught:
        hook.register(trainer)
    (message,) = [str(warning.message) for warning in caught]
    assert "student 'far' was told other things than its teacher's loss" in message
    assert "terminated is 'truncated', not 'terminated'" in message
    assert "gamma is 0.5, not 0.8999" in message
    assert losses["far"].value_estimator.gamma.item() == 0.5
    assert losses["near"].value_estimator.gamma.item() == pytest.approx(0.9)


def test_a_student_follows_its_teacher_in_a_stepper() -> None:
    """Which attaches the hook at the first update, maybe in another process."""
    trainer = filled(cartpole_trainer())
    loss = student_loss()
    stepper = RealTimeDistillStepper(RealTimeDistillTrainer(loss, optimizer=FAST))
    stepper.step(trainer, *minibatches(trainer, 1))
    assert loss.value_estimator.gamma.item() == pytest.approx(0.9)
