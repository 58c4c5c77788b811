"""Arguments that the divergences and targets refuse: each message says the rule and the shapes it met."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchrl_rtpd.functional.discrete import (
    forward_kl,
    greedy_agreement,
    greedy_nll,
    jensen_shannon,
    policy_log_probs,
    q_huber,
    q_mse,
    reverse_kl,
    value_spread,
)
from torchrl_rtpd.functional.returns import imitation_value


class TestErrors:
    """Each says the rule and the shapes it met."""

    @pytest.mark.parametrize(
        "function", [forward_kl, reverse_kl, jensen_shannon, q_mse, q_huber, greedy_nll, greedy_agreement]
    )
    def test_different_numbers_of_actions_are_named(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        """They would broadcast or gather something."""
        with pytest.raises(
            ValueError, match=r"must have the shape of .*\[5, (3|1)\] and \[5, (1|3)\].*same action spec"
        ):
            function(torch.zeros(5, 1), torch.zeros(5, 3))

    def test_imitation_value_names_both_shapes(self) -> None:
        """The student's first."""
        with pytest.raises(ValueError, match=r"next_student_q_values must .* \[5, 3\] and \[5, 4\]"):
            imitation_value(torch.zeros(5, 4), torch.zeros(5, 3))

    @pytest.mark.parametrize(
        "call",
        [
            lambda values, mask: policy_log_probs(values, 1.0, mask),
            lambda values, mask: q_mse(values, values, mask),
            lambda values, mask: q_huber(values, values, mask),
            lambda values, mask: greedy_agreement(values, values, mask),
            lambda values, mask: imitation_value(values, values, mask),
            lambda values, mask: value_spread(values, mask),
        ],
        ids=["policy_log_probs", "q_mse", "q_huber", "greedy_agreement", "imitation_value", "value_spread"],
    )
    def test_mask_of_another_shape_is_refused(self, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Also one that would broadcast."""
        with pytest.raises(ValueError, match=r"action_mask must have the shape of .*q_values: got \[3\] and \[5, 3\]"):
            call(torch.zeros(5, 3), torch.ones(3, dtype=torch.bool))

    @pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
    def test_temperature_must_be_positive(self, temperature: float) -> None:
        """A negative one would prefer the worst action."""
        with pytest.raises(ValueError, match=f"temperature must be positive: got {temperature}"):
            policy_log_probs(torch.zeros(3), temperature)
