"""What distributions of returns and targets are worth, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from torchrl_rtpd.functional.returns import categorical_q_values, discounted_target, quantile_q_values


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestReturns:
    """Distributions of returns, and targets."""

    def test_categorical_q_values_are_expectations(self) -> None:
        """1/2 * 0 + 1/2 * 4 and 1/4 * 0 + 3/4 * 4; numpy agrees on random ones of any batch shape."""
        log_probs = torch.tensor([[0.5, 0.25], [0.5, 0.75]]).log()
        torch.testing.assert_close(categorical_q_values(log_probs, torch.tensor([0.0, 4.0])), torch.tensor([2.0, 3.0]))
        log_probs, support = randn(2, 7, 51, 3).log_softmax(-2), torch.linspace(-10, 10, 51, dtype=torch.float64)
        expected = np.einsum("...na,n->...a", np.exp(log_probs.numpy()), support.numpy())
        np.testing.assert_allclose(categorical_q_values(log_probs, support).numpy(), expected, rtol=1e-12, atol=1e-12)

    def test_impossible_returns_count_nothing(self) -> None:
        """Value and gradient are finite."""
        log_probs = torch.tensor([[0.0], [-math.inf]], requires_grad=True)
        value = categorical_q_values(log_probs, torch.tensor([3.0, 1e6]))
        value.sum().backward()
        assert value.tolist() == [3.0]
        assert log_probs.grad.isfinite().all()

    def test_quantile_q_values_are_means(self) -> None:
        """Over the dimension before the last."""
        assert quantile_q_values(torch.tensor([[0.0, 1.0], [4.0, 6.0]])).tolist() == [2.0, 3.5]
        values = randn(2, 7, 11, 3)
        np.testing.assert_allclose(quantile_q_values(values).numpy(), values.numpy().mean(-2), atol=1e-12)

    def test_half_precision_is_computed_in_single(self) -> None:
        """Sums of many atoms lose too much otherwise."""
        assert categorical_q_values(torch.zeros(2, 3, dtype=torch.bfloat16), torch.arange(2.0)).dtype == torch.float32
        assert quantile_q_values(torch.zeros(2, 3, dtype=torch.float16)).dtype == torch.float32

    @pytest.mark.parametrize("shape", [(3,), (4, 3), (5, 4, 3)])
    def test_atoms_must_be_those_of_the_support(self, shape: tuple[int, ...]) -> None:
        """Both shapes are named."""
        message = rf"N atoms as in the support: got \[{', '.join(map(str, shape))}\] and \[2\]"
        with pytest.raises(ValueError, match=message):
            categorical_q_values(torch.zeros(shape), torch.arange(2.0))

    def test_quantiles_need_a_dimension(self) -> None:
        """Action values are none."""
        with pytest.raises(ValueError, match=r"must be \[\*B, N, A\]: got \[3\]"):
            quantile_q_values(torch.zeros(3))

    def test_discounted_target_by_hand(self) -> None:
        """1 + 8/2, 1 + 8/4 after two steps, 1 where nothing follows."""
        reward, value = torch.ones(3), torch.full((3,), 8.0)
        terminated, steps = torch.tensor([False, False, True]), torch.tensor([1, 2, 1])
        assert discounted_target(reward, value, terminated, 0.5, steps).tolist() == [5.0, 3.0, 1.0]
        assert discounted_target(reward, value, terminated, torch.tensor(0.5)).tolist() == [5.0, 5.0, 1.0]

    @pytest.mark.parametrize("position", [1, 2, 3])
    def test_discounted_target_does_not_broadcast(self, position: int) -> None:
        """``[B, 1]`` against ``[B]`` would give ``[B, B]``."""
        arguments = [torch.ones(3), torch.ones(3), torch.zeros(3, dtype=torch.bool), torch.ones(3)]
        arguments[position] = arguments[position].unsqueeze(-1)
        name = ("", "next_value", "terminated", "num_steps")[position]
        with pytest.raises(ValueError, match=rf"{name} must have the shape of reward: got \[3, 1\] and \[3\]"):
            discounted_target(*arguments[:3], 0.9, arguments[3])
