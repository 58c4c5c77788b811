"""Losses without a target network: errors by hand, values left for students, keys, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from objective_parts import TEACHER_VALUES, actor, table_actor
from tensordict import TensorDict
from torch import nn

from torchrl_rtpd import PQNLoss, StudentPQNLoss
from torchrl_rtpd.objectives import DistillationLoss

CHOSEN = torch.tensor([1, 1])  # values 0 and ln 4 of the table
TARGET = torch.tensor([[2.0], [0.0]])


def batch(**kwargs) -> TensorDict:
    return TensorDict({"observation": torch.eye(2), "action": CHOSEN, "value_target": TARGET, **kwargs}, [2])


def loss(**kwargs) -> PQNLoss:
    return PQNLoss(table_actor(TEACHER_VALUES), **kwargs)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("l2", 1.480453),  # (2^2 + (ln 4)^2) / 4
        ("smooth_l1", 1.193147),  # (2 - 1/2 + ln 4 - 1/2) / 2
        ("l1", 1.693147),  # (2 + ln 4) / 2
    ],
)
def test_the_loss_of_two_states_by_hand(function: str, expected: float) -> None:
    """The chosen values are 0 and ln 4, the targets 2 and 0."""
    out = loss(loss_function=function)(batch())
    assert out["loss"].item() == pytest.approx(expected, abs=1e-5)
    assert out["td_error"].item() == pytest.approx(1.693147, abs=1e-5)
    assert not out["td_error"].requires_grad


def test_the_gradient_is_the_error_and_reaches_the_chosen_value_alone() -> None:
    """-2/2 for the first state's second action, ln 4 / 2 for the second state's."""
    teacher = loss()
    teacher(batch())["loss"].backward()
    (weight,) = teacher.parameters()
    assert weight.grad.tolist() == [[0.0, 0.0], [pytest.approx(-1.0), pytest.approx(0.693147)]]


def test_values_are_left_for_students_and_have_no_gradient() -> None:
    data = batch()
    loss()(data)
    torch.testing.assert_close(data["teacher", "action_value"], torch.tensor(TEACHER_VALUES))
    assert not data["teacher", "action_value"].requires_grad


def test_layers_that_act_differently_in_training_leave_no_values() -> None:
    """Students would learn from values of a teacher with units missing."""
    network = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    data = batch()
    teacher = PQNLoss(network)
    teacher(data)
    assert not teacher.shares_values and ("teacher", "action_value") not in data.keys(True)


def test_tensors_in_place_of_tensordicts_give_the_same() -> None:
    teacher = loss()
    found = teacher(observation=torch.eye(2), action=CHOSEN, value_target=TARGET)
    assert [value.item() for value in found] == [value.item() for value in teacher(batch()).values()]


def test_names_are_set_and_no_reduction_keeps_samples() -> None:
    teacher = loss(reduction="none")
    teacher.set_keys(value_target="goal", action="move")
    data = TensorDict({"observation": torch.eye(2), "move": CHOSEN, "goal": TARGET}, [2])
    assert teacher(data)["loss"].tolist() == [pytest.approx(2.0), pytest.approx(0.960906, abs=1e-5)]
    assert teacher.in_keys == ["observation", "move", "goal"]


def test_greedy_values_leave_out_actions_that_are_not_allowed() -> None:
    """Ln 3 and ln 4; without the first state's first action 0."""
    states = TensorDict({"observation": torch.eye(2)}, [2])
    assert loss().greedy_value(states).tolist() == [pytest.approx(1.098612), pytest.approx(1.386294)]
    masked = states.set("action_mask", torch.tensor([[False, True], [True, True]]))
    assert loss().greedy_value(masked).tolist() == [0.0, pytest.approx(1.386294)]


def test_the_network_is_the_actor_that_an_on_policy_trainer_asks_for() -> None:
    teacher = loss()
    assert teacher.actor_network is teacher.value_network


@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules is deprecated:FutureWarning")
def test_a_compiled_loss_has_the_same_value_and_gradient() -> None:
    teacher, compiled = loss(), loss()
    compiled.compile(backend="aot_eager")
    for one in (teacher, compiled):
        one(batch())["loss"].backward()
    for one, other in zip(teacher.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


# Students


def student(**kwargs) -> StudentPQNLoss:
    return StudentPQNLoss(table_actor([[0.0, 1.0], [0.0, 0.5]]), **kwargs)


def test_a_student_regresses_to_its_teachers_returns() -> None:
    """Chosen values 1 and 1/2, targets 2 and 0: (1 + 1/4) / 4; the divergence is that of DistillationLoss."""
    data = batch(**{"teacher": TensorDict({"action_value": torch.tensor(TEACHER_VALUES)}, [2])})
    out = student(teacher_temperature=1.0)(data)
    assert out["loss_td"].item() == pytest.approx(0.3125)
    alone = DistillationLoss(table_actor([[0.0, 1.0], [0.0, 0.5]]), teacher_temperature=1.0, student_temperature=None)
    torch.testing.assert_close(out["loss_distill"], alone(data)["loss_distill"])


def test_weights_scale_the_two_terms() -> None:
    data = batch(**{"teacher": TensorDict({"action_value": torch.tensor(TEACHER_VALUES)}, [2])})
    once, scaled = student()(data), student(td_coeff=3.0, distill_coeff=0.5)(data)
    torch.testing.assert_close(scaled["loss_td"], 3 * once["loss_td"])
    torch.testing.assert_close(scaled["loss_distill"], once["loss_distill"] / 2)


def test_a_student_follows_the_names_and_the_function_of_its_teachers_loss() -> None:
    teacher, pupil = loss(loss_function="smooth_l1"), student()
    teacher.set_keys(value_target="goal", action="move")
    assert pupil.follow(teacher) == {}
    assert (pupil.tensor_keys.value_target, pupil.tensor_keys.action) == ("goal", "move")
    assert pupil.loss_function == "smooth_l1"
    assert student(loss_function="l1").follow(teacher) == {"loss_function": ("l1", "smooth_l1")}


def test_a_student_has_no_target_parameters() -> None:
    assert {name.split(".")[0] for name in student().state_dict()} == {
        "student_network_params",
        "teacher_temperature",
        "td_coeff",
        "distill_coeff",
    }
    assert copy.deepcopy(student()).state_dict().keys() == student().state_dict().keys()


# Refusals


@pytest.mark.parametrize("build", [lambda **kw: PQNLoss(actor(), **kw), lambda **kw: StudentPQNLoss(actor(), **kw)])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"loss_function": "huber"}, "loss_function must be one of l1, l2, smooth_l1: got 'huber'"),
        ({"reduction": "max"}, "reduction must be none, mean or sum: got 'max'"),
    ],
)
def test_unknown_options_are_refused(build, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize("build", [PQNLoss, StudentPQNLoss])
def test_a_batch_without_targets_is_told_who_writes_them(build) -> None:
    with pytest.raises(
        KeyError, match=r"the batch has no .value_target.; register torchrl_rtpd\.trainers\.LambdaTargets"
    ):
        build(actor(2, 2))(batch().exclude("value_target"))


@pytest.mark.parametrize("build", [PQNLoss, StudentPQNLoss])
def test_a_batch_without_actions_and_targets_of_another_shape_are_named(build) -> None:
    with pytest.raises(KeyError, match="action"):
        build(actor(2, 2))(batch().exclude("action"))
    with pytest.raises(ValueError, match=r"'value_target' must be \[\*B, 1\]: got \[2\]; add a last dimension"):
        build(actor(2, 2))(batch(value_target=torch.zeros(2)))
