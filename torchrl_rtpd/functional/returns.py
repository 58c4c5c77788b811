"""Pure maths of returns: targets of action values, and the action values that a distribution of returns has.

Conventions: ``*B`` are batch dimensions, ``N`` is the number of atoms or quantiles, ``A`` the number of actions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchrl_rtpd.functional.checks import at_least_single, check_same_shape
from torchrl_rtpd.functional.choices import VarNums, split_choices

__all__ = ["categorical_q_values", "discounted_target", "imitation_value", "quantile_q_values"]


def imitation_value(
    next_teacher_q_values: Tensor,
    next_student_q_values: Tensor,
    action_mask: Tensor | None = None,
    var_nums: VarNums | None = None,
) -> Tensor:
    r"""Next-state value of the *imitation* target: :math:`Q_S(s', \arg\max_a Q_T(s', a))`.

    Eq. 5 of the paper: the teacher chooses the action, the student values it. Both values come from target networks.

    Args:
        next_teacher_q_values: the teacher's values at the next state, ``[*B, A]``.
        next_student_q_values: the student's values at the next state, ``[*B, A]``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed in the next state.
        var_nums: actions of each choice if there are several, which add up to ``A``.

    Returns:
        ``[*B]``, the sum over the choices; 0 where no action is allowed.

    Examples:
        >>> imitation_value(torch.tensor([1.0, 5.0, 2.0]), torch.tensor([9.0, 3.0, 4.0]))
        tensor(3.)
    """
    check_same_shape("next_student_q_values", next_student_q_values, "next_teacher_q_values", next_teacher_q_values)
    if var_nums is not None:
        choices = split_choices(var_nums, next_teacher_q_values, next_student_q_values, action_mask)
        return torch.stack([imitation_value(*choice) for choice in choices]).sum(0)
    if action_mask is not None:
        check_same_shape("action_mask", action_mask, "next_student_q_values", next_student_q_values)
        next_teacher_q_values = torch.where(action_mask, next_teacher_q_values, -math.inf)
    greedy = next_teacher_q_values.argmax(-1, keepdim=True)
    value = next_student_q_values.gather(-1, greedy).squeeze(-1)
    return value if action_mask is None else torch.where(action_mask.any(-1), value, 0.0)


def discounted_target(
    reward: Tensor, next_value: Tensor, terminated: Tensor, gamma: float | Tensor, num_steps: Tensor | None = None
) -> Tensor:
    r"""One-step or n-step target :math:`r + \gamma^n (1 - \text{terminated}) v`, Eq. 2 and 5 of the paper.

    Args:
        reward: reward, or the discounted sum of ``n`` rewards, ``[*B]``.
        next_value: value ``v`` of the state ``n`` steps later, ``[*B]``.
        terminated: boolean ``[*B]``, True where nothing follows.
        gamma: discount factor of one step.
        num_steps: ``n`` of each sample, ``[*B]``; None is 1.

    Returns:
        ``[*B]``.

    Raises:
        ValueError: shapes that differ.

    Examples:
        >>> discounted_target(torch.tensor([1.0]), torch.tensor([8.0]), torch.tensor([False]), 0.5, torch.tensor([2]))
        tensor([3.])
    """
    for name, tensor in (("next_value", next_value), ("terminated", terminated), ("num_steps", num_steps)):
        if tensor is not None and tensor.shape != reward.shape:
            raise ValueError(
                f"{name} must have the shape of reward: got {list(tensor.shape)} and {list(reward.shape)}; "
                "pass one number a sample."
            )
    discount = gamma if num_steps is None else gamma**num_steps
    return reward + discount * (~terminated).int() * next_value


def categorical_q_values(log_probs: Tensor, support: Tensor) -> Tensor:
    r"""Action values of a categorical distribution of returns, :math:`\sum_j z_j p_j` (C51).

    Bellemare et al., "A Distributional Perspective on Reinforcement Learning", 2017 (https://arxiv.org/abs/1707.06887).
    TorchRL's ``DistributionalQValueActor`` writes such log-probabilities as ``"action_value"``.

    Args:
        log_probs: log-probability of each return, ``[*B, N, A]``.
        support: the returns :math:`z`, ``[N]``.

    Returns:
        ``[*B, A]``, in units of the support.

    Raises:
        ValueError: ``log_probs`` has another number of atoms than ``support``.

    Examples:
        >>> log_probs = torch.tensor([[0.5, 0.25], [0.5, 0.75]]).log()
        >>> categorical_q_values(log_probs, torch.tensor([0.0, 4.0]))
        tensor([2., 3.])
    """
    if support.ndim != 1 or log_probs.ndim < 2 or log_probs.shape[-2] != len(support):
        raise ValueError(
            f"log_probs must be [*B, N, A] with N atoms as in the support: got {list(log_probs.shape)} and "
            f"{list(support.shape)}; pass the support of the network that wrote them."
        )
    log_probs = log_probs.to(at_least_single(log_probs.dtype))
    return (log_probs.exp() * support.to(log_probs).unsqueeze(-1)).sum(-2)


def quantile_q_values(quantile_values: Tensor) -> Tensor:
    """Action values of a distribution of returns given by its quantiles: their mean (QR-DQN, IQN).

    Dabney et al., "Distributional Reinforcement Learning with Quantile Regression", 2018
    (https://arxiv.org/abs/1710.10044), Eq. 9.

    Args:
        quantile_values: the return at each quantile, ``[*B, N, A]``.

    Returns:
        ``[*B, A]``.

    Raises:
        ValueError: there is no dimension of quantiles.

    Examples:
        >>> quantile_q_values(torch.tensor([[0.0, 1.0], [4.0, 5.0]]))
        tensor([2., 3.])
    """
    if quantile_values.ndim < 2:
        raise ValueError(f"quantile_values must be [*B, N, A]: got {list(quantile_values.shape)}.")
    return quantile_values.to(at_least_single(quantile_values.dtype)).mean(-2)
