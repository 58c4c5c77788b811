"""Networks of a run: at the places and under the names that trainer and hook have for them."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_rtpd import DistillationLoss, RealTimeDistillTrainer, TeacherDQNLoss
from torchrl_rtpd.runs.players import check_networks, distiller_of


def actor() -> QValueActor:
    return QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))


@pytest.fixture
def parts():
    """A teacher, two students, the teacher's loss and the students' hook."""
    teacher, small, tiny = actor(), actor(), actor()
    losses = {"small": DistillationLoss(small), "tiny": DistillationLoss(tiny)}
    hook = RealTimeDistillTrainer(losses, optimizer=torch.optim.Adam)
    loss = TeacherDQNLoss(teacher, action_space="categorical")
    return SimpleNamespace(teacher=teacher, small=small, tiny=tiny, hook=hook, loss=loss)


def test_networks_as_the_hook_has_them_pass(parts) -> None:
    """In any order of the students; networks that nothing trains may stand beside them."""
    networks = {"teacher": parts.teacher, "tiny": parts.tiny, "small": parts.small, "random": actor()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_networks(networks, parts.loss, parts.hook)
        check_networks({"alone": parts.teacher}, parts.loss, None)


def test_a_student_in_the_teachers_place_is_refused(parts) -> None:
    networks = {"small": parts.small, "teacher": parts.teacher, "tiny": parts.tiny}
    with pytest.raises(ValueError, match="the first network is the teacher: got 'small', a student of the hook; put"):
        check_networks(networks, parts.loss, parts.hook)


def test_a_student_under_another_name_is_refused(parts) -> None:
    networks = {"teacher": parts.teacher, "large": parts.small, "tiny": parts.tiny}
    with pytest.raises(ValueError, match="one name in the hook and among the networks: got 'small' and 'large'; use"):
        check_networks(networks, parts.loss, parts.hook)


def test_students_that_are_left_out_are_warned_of(parts) -> None:
    with pytest.warns(
        UserWarning, match=r"the hook trains small, not among the networks of the run \['teacher', 'tiny'\]"
    ):
        check_networks({"teacher": parts.teacher, "tiny": parts.tiny}, parts.loss, parts.hook)


def test_the_hook_is_found_inside_a_stepper(parts) -> None:
    trainer = SimpleNamespace(_modules={}, optimization_stepper=SimpleNamespace(hook=parts.hook))
    assert distiller_of(trainer) is parts.hook
