"""Target networks of students: which updater they get, and how often it copies."""

from __future__ import annotations

from collections.abc import Callable
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
    update,
)
from torchrl.objectives import HardUpdate, SoftUpdate

from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.targets import hard_update_every, step_target


def test_a_student_gets_a_hard_update_of_the_trainers_interval() -> None:
    trainer = cartpole_trainer(updater=partial(HardUpdate, value_network_update_interval=7))
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    hook.register(trainer)
    assert type(hook.target_updaters["student"]) is HardUpdate
    assert hook.target_updaters["student"].value_network_update_interval == 7
    assert hook.target_updaters["student"].loss_module is hook.students["student"]


def test_a_student_gets_a_soft_update_of_the_trainers_rate_that_works() -> None:
    """After one update: target = 0.75 * old + 0.25 * new."""
    trainer = filled(cartpole_trainer(updater=partial(SoftUpdate, eps=0.75)))
    loss = student_loss()
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    old = loss.target_student_network_params.clone()
    update(trainer, hook, *minibatches(trainer, 1))
    new, target = loss.student_network_params, loss.target_student_network_params
    for key in old.keys(True, True):
        torch.testing.assert_close(target[key], (0.75 * old[key] + 0.25 * new[key]).detach())
        assert not torch.equal(target[key], old[key])


def test_a_target_updater_can_be_given() -> None:
    trainer = cartpole_trainer()
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST, target_updater=partial(SoftUpdate, tau=0.125))
    hook.register(trainer)
    assert hook.target_updaters["student"].eps == 0.875


def test_targets_without_an_updater_are_an_error() -> None:
    trainer = cartpole_trainer()
    trainer.target_net_updater = None
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    with pytest.raises(RuntimeError, match=r"no HardUpdate or SoftUpdate to copy: got NoneType; pass target_updater="):
        hook.register(trainer)
    RealTimeDistillTrainer(fleet(2)["pure"], optimizer=FAST).register(trainer)  # it has no target


def copies(updater: HardUpdate, loss: StudentDQNLoss, steps: int, step: Callable[[HardUpdate], None]) -> list[int]:
    """The steps after which the target equals the student, whose weights change at each."""
    (parameter, *_), (target, *_) = loss.parameters(), loss.target_student_network_params.values(True, True)
    found = []
    for number in range(1, steps + 1):
        parameter.data.fill_(number)
        step(updater)
        found += [number] if bool((target == number).all()) else []
    return found


@pytest.mark.parametrize(("updates", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (7, [7])])
def test_an_exact_interval_copies_at_its_multiples(updates: int, expected: list[int]) -> None:
    loss = student_loss()
    assert copies(hard_update_every(loss, updates), loss, 7, step_target) == expected


def test_torchrls_hard_update_copies_one_step_later_than_its_interval_says() -> None:
    """Stepped by itself and by us: the mirrored behaviour is TorchRL's."""
    for step in (HardUpdate.step, step_target):
        loss = student_loss()
        assert copies(HardUpdate(loss, value_network_update_interval=3), loss, 9, step) == [4, 8]


def test_an_exact_interval_of_the_trainer_is_mirrored_exactly() -> None:
    trainer = cartpole_trainer(updater=partial(hard_update_every, updates=5))
    loss = student_loss()
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    assert copies(hook.target_updaters["student"], loss, 11, step_target) == [5, 10]


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="updates must be an integer of at least 1: got 0; 1 copies at every step"):
        hard_update_every(student_loss(), 0)
