"""What the continuous loss refuses, and by which words."""

from __future__ import annotations

import math

import pytest
import torch
from continuous_parts import STUDENT, actor, observations, table, two_states
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.distributions import Beta, Normal
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor

from torchrl_rtpd.objectives.continuous import CONTINUOUS_DIVERGENCES, ContinuousDistillationLoss

# Bad input


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(
        ValueError, match="divergence must be one of forward_kl, reverse_kl, mse, nll: got 'jensen_shannon'"
    ):
        ContinuousDistillationLoss(actor(), divergence="jensen_shannon")
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1: got 0; 16 suits"):
        ContinuousDistillationLoss(actor(), num_samples=0)
    with pytest.raises(ValueError, match="reduction must be none, mean or sum: got 'median'"):
        ContinuousDistillationLoss(actor(), reduction="median")


def test_networks_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="the student_network must be a TensorDictModule: got Linear"):
        ContinuousDistillationLoss(nn.Linear(4, 2))
    parameters = TensorDictModule(nn.Softplus(), in_keys=["observation"], out_keys=["alpha"])
    beta = ProbabilisticActor(
        parameters, in_keys={"concentration1": "alpha", "concentration0": "alpha"}, distribution_class=Beta
    )
    with pytest.raises(
        ValueError, match=r"the student's distribution must be Normal, IndependentNormal or TanhNormal.*Beta"
    ):
        ContinuousDistillationLoss(beta)


def test_disagreeing_action_dimensions_are_named() -> None:
    with pytest.raises(ValueError, match=r"disagree on the action dimensions: \[8, 3\] and \[8, 2\]"):
        ContinuousDistillationLoss(actor(dims=2), actor(dims=3))(observations())
    wide = Bounded(low=-torch.ones(3), high=torch.ones(3)).space
    bounded = actor(dims=3, low=wide.low, high=wide.high)
    with pytest.raises(ValueError, match="disagree on the action dimensions: 3 and 2; build both from the same"):
        ContinuousDistillationLoss(actor(low=-torch.ones(2), high=torch.ones(2)), bounded)


def test_missing_values_and_keys_are_named() -> None:
    with pytest.raises(
        RuntimeError, match=r"there are no teacher values.*\('teacher', 'loc'\), \('teacher', 'scale'\)"
    ):
        ContinuousDistillationLoss(actor())(observations())
    with pytest.raises(RuntimeError, match=r"the batch lacks \[\('teacher', 'action'\)\]"):
        ContinuousDistillationLoss(actor(), divergence="mse")(observations())
    with pytest.raises(KeyError, match="observation"):
        ContinuousDistillationLoss(actor(), actor())(TensorDict({"pixels": torch.zeros(2, 4)}, [2]))
    logits = TensorDictModule(nn.Linear(4, 4), in_keys=["observation"], out_keys=["logits"])
    with pytest.raises(KeyError, match=r"the teacher network wrote no 'loc': it wrote .*'logits'"):
        ContinuousDistillationLoss(actor(), logits)(observations())
    loss = ContinuousDistillationLoss(table(STUDENT))
    loss.set_keys(student_loc="mean")
    with pytest.raises(KeyError, match=r"the student network wrote no 'mean'.*set_keys\(student_loc=\.\.\.\)"):
        loss(two_states())


def test_scales_that_do_not_fit_are_named() -> None:
    one = TensorDictSequential(
        TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["loc"]),
        TensorDictModule(lambda loc: torch.ones(8, 3), in_keys=["loc"], out_keys=["scale"]),
    )
    with pytest.raises(ValueError, match=r"the student's scale must fit its loc: got \[8, 3\] and \[8, 2\]"):
        ContinuousDistillationLoss(one, actor(Normal))(observations())


@pytest.mark.parametrize("divergence", CONTINUOUS_DIVERGENCES)
def test_a_student_whose_actions_are_not_finite_is_named_with_the_number_of_samples(divergence: str) -> None:
    batch = observations()
    batch["teacher"] = TensorDict(
        {"loc": torch.zeros(8, 2), "scale": torch.ones(8, 2), "action": torch.zeros(8, 2)}, [8]
    )
    batch["observation"][1:3] = math.nan
    loss = ContinuousDistillationLoss(actor(), divergence=divergence)
    with pytest.raises(ValueError, match="student's actions must be finite: 2 of 8 samples are not; check its inputs"):
        loss(batch)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_student_whose_scales_are_not_positive_is_named(scale: float) -> None:
    student = TensorDictModule(
        lambda observation: (observation[..., :2], torch.full_like(observation[..., :2], scale)),
        in_keys=["observation"],
        out_keys=["loc", "scale"],
    )
    batch = observations()
    batch["teacher"] = TensorDict({"loc": torch.zeros(8, 2), "scale": torch.ones(8, 2)}, [8])
    with pytest.raises(ValueError, match="student's scales must be finite and positive: 8 of 8 samples are not"):
        ContinuousDistillationLoss(student)(batch)
