"""A mixture of teachers is the weighted mean of their softened policies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import MultiOneHot
from torchrl.modules import QValueActor

from torchrl_rtpd.networks import TeacherByKey, TeacherMixture

# Policies at temperature 1: (3/4, 1/4), and (1/5, 4/5).
FIRST, SECOND = [[3.0, 1.0]], [[1.0, 4.0]]


def table(odds: list[list[float]], key: str = "action_value") -> TensorDictModule:
    """A network whose policy at temperature 1 has these odds in the states, observed as one-hot rows."""
    layer = nn.Linear(len(odds), len(odds[0]), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(odds).log().T)
    return TensorDictModule(layer, in_keys=["observation"], out_keys=[key])


def states(count: int = 1, **entries: Any) -> TensorDict:
    return TensorDict({"observation": torch.eye(count), **entries}, [count])


def policy(mixture: TeacherMixture, data: TensorDict) -> Tensor:
    return (mixture(data)["logits"] / mixture.temperature).softmax(-1).detach()


def test_policies_are_averaged_and_not_values() -> None:
    """Half of each: (3/4 + 1/5) / 2 = 0.475. The mean of the values would give sqrt(3 / 4) / (1 + sqrt(3 / 4))."""
    mixture = TeacherMixture([table(FIRST), table(SECOND)], temperature=1.0)
    torch.testing.assert_close(policy(mixture, states()), torch.tensor([[0.475, 0.525]]))


def test_weights_are_shares_and_zero_leaves_a_teacher_out() -> None:
    """0.8 * 3/4 + 0.2 * 1/5 = 0.64; and the second alone."""
    teachers = [table(FIRST), table(SECOND)]
    mixture = TeacherMixture(teachers, temperature=1.0, weights=[0.8, 0.2])
    torch.testing.assert_close(policy(mixture, states()), torch.tensor([[0.64, 0.36]]))
    alone = TeacherMixture(teachers, temperature=1.0, weights=[0.0, 1.0])
    torch.testing.assert_close(policy(alone, states()), torch.tensor([[0.2, 0.8]]))


def test_the_logits_are_those_of_the_mixture_at_its_temperature() -> None:
    """At temperature 2 odds become their roots: 9 and 1 are 3/4 and 1/4. The logits are 2 ln p."""
    mixture = TeacherMixture([table([[9.0, 1.0]]), table([[1.0, 1.0]])], temperature=2.0)
    logits = mixture(states())["logits"]
    torch.testing.assert_close(logits, 2 * torch.tensor([[0.625, 0.375]]).log())


def test_each_state_may_have_weights_of_its_own() -> None:
    """All of the first, then 0.4 * 3/4 + 0.6 * 1/5 = 0.42."""
    teachers = [table(FIRST * 2), table(SECOND * 2)]
    mixture = TeacherMixture(teachers, temperature=1.0, weights=("mix", "weights"))
    weights = torch.tensor([[1.0, 0.0], [0.4, 0.6]])
    data = states(2, mix=TensorDict({"weights": weights}, [2]))
    assert mixture.in_keys == ["observation", ("mix", "weights")] and mixture.weights is None
    torch.testing.assert_close(policy(mixture, data), torch.tensor([[0.75, 0.25], [0.42, 0.58]]))


def test_each_policy_is_one_over_the_allowed_actions() -> None:
    """Odds 1, 1, 2 and 0.1, 0.3, 9.6 without the last: (1/2 + 1/4) / 2. Masked afterwards it would be near 1/2."""
    teachers = [table([[1.0, 1.0, 2.0]]), table([[0.1, 0.3, 9.6]])]
    mixture = TeacherMixture(teachers, temperature=1.0, action_mask_key="action_mask")
    data = states(1, action_mask=torch.tensor([[True, True, False]]))
    torch.testing.assert_close(policy(mixture, data), torch.tensor([[0.375, 0.625, 0.0]]))


def test_probabilities_are_taken_as_such() -> None:
    """(1/2, 1/2) and (1, 0), which has no logarithm, at temperature 1."""
    teachers = [
        TensorDictModule(lambda seen, p=p: torch.tensor([p]), in_keys=["observation"], out_keys=["probs"])
        for p in ([0.5, 0.5], [1.0, 0.0])
    ]
    mixture = TeacherMixture(teachers, temperature=1.0)
    torch.testing.assert_close(policy(mixture, states()), torch.tensor([[0.75, 0.25]]))


def test_small_temperatures_and_large_values_stay_finite() -> None:
    """At 0.01 the second action of the first teacher has a probability of exp(-100_000)."""
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1000.0], [0.0]]))
    mixture = TeacherMixture([layer, layer], temperature=0.01)
    logits = mixture(states())["logits"]
    torch.testing.assert_close(logits.detach(), torch.tensor([[0.0, -1000.0]]), atol=1e-3, rtol=0)


def test_copies_states_and_types() -> None:
    """Weights are saved and move along; a copy shares nothing."""
    mixture = TeacherMixture([table(FIRST), table(SECOND)], temperature=1.0, weights=[0.8, 0.2])
    other = TeacherMixture([table(SECOND), table(SECOND)], temperature=1.0)
    other.load_state_dict(copy.deepcopy(mixture).double().float().state_dict())
    torch.testing.assert_close(policy(other, states()), torch.tensor([[0.64, 0.36]]))
    assert mixture.double().weights.dtype is torch.float64
    assert other.weights.dtype is torch.float32


def test_teachers_by_key_may_be_part_of_a_mixture() -> None:
    """The first of both in one state, the second of both in the other: 0.475 as above, and 3/4 of a teacher twice."""
    by_key = TeacherByKey([table(SECOND * 2), table(FIRST * 2)])
    mixture = TeacherMixture([table(FIRST * 2), by_key], temperature=1.0)
    found = policy(mixture, states(2, teacher_id=torch.tensor([0, 1])))
    torch.testing.assert_close(found, torch.tensor([[0.475, 0.525], [0.75, 0.25]]))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.6], r"at least 0 and add up to 1: got \[0.5, 0.6"),
        ([1.5, -0.5], r"at least 0 and add up to 1: got \[1.5, -0.5\]"),
        ([float("nan"), 1.0], r"at least 0 and add up to 1: got \[nan, 1.0\]"),
        ([1.0], r"one a teacher, \[2\]: got \[1\]"),
    ],
)
def test_weights_that_are_no_shares_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherMixture([table(FIRST), table(SECOND)], temperature=1.0, weights=weights)


def test_weights_of_the_data_are_looked_at_in_every_call_on_a_cpu() -> None:
    """The third included, at which no look is due where a device would have to be waited for."""
    mixture = TeacherMixture([table(FIRST), table(SECOND)], temperature=1.0, weights="weights")
    wrong = states(1, weights=torch.tensor([[0.5, 0.75]]))
    for _ in range(4):
        with pytest.raises(ValueError, match=r"add up to 1: got \[0.5, 0.75\]; divide them by their sum"):
            mixture(wrong.copy())
    with pytest.raises(ValueError, match=r"one a state and teacher, \[1, 2\]: 'weights' is \[1, 3\]"):
        mixture(states(1, weights=torch.ones(1, 3)))
    with pytest.raises(KeyError, match=r"reads \['weights'\], which the batch, or its next, lacks"):
        mixture(states(1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), "auto"])
def test_a_temperature_must_be_a_positive_number(temperature: Any) -> None:
    with pytest.raises(ValueError, match=r"temperature must lie in \(0, inf\): got"):
        TeacherMixture([table(FIRST)], temperature=temperature)


def test_teachers_of_continuous_actions_are_refused() -> None:
    """The mean of two Gaussians is no Gaussian."""
    layer = TensorDictModule(lambda seen: (seen, seen), in_keys=["observation"], out_keys=["loc", "scale"])
    with pytest.raises(ValueError, match=r"policies over discrete actions, .*: got loc, scale; .*by TeacherByKey"):
        TeacherMixture([layer, layer], temperature=1.0)
    action = TensorDictModule(lambda seen: seen, in_keys=["observation"], out_keys=["action"])
    with pytest.raises(ValueError, match=r"discrete actions, .*: got action"):
        TeacherMixture([action], temperature=1.0)


def test_teachers_of_several_choices_are_refused() -> None:
    several = QValueActor(nn.Linear(1, 4), in_keys=["observation"], spec=MultiOneHot([2, 2]))
    with pytest.raises(ValueError, match=r"over a single choice: got teachers of the choices \(2, 2\)"):
        TeacherMixture([several], temperature=1.0)
