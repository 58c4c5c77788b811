"""Pure maths of policy distillation on tensors.

Conventions: ``*B`` are batch dimensions, ``A`` is the number of actions. Every divergence is summed over actions and
returned per sample, ``[*B]``; averaging over the batch is the caller's. ``teacher_`` arguments come first; nothing here
detaches anything, so callers detach the teacher. An action that a mask forbids has log-probability ``-inf`` and takes
part in no sum; a row whose every action is forbidden yields 0 with zero gradient. Half precision is computed and
returned in single: values over a small temperature, and squares of values, leave the range of float16.

The method is Sun & Fazli, "Real-time Policy Distillation in Deep Reinforcement Learning", 2019
(https://arxiv.org/abs/1912.12630), called "the paper" below; Rusu et al., "Policy Distillation", 2015
(https://arxiv.org/abs/1511.06295), is its two-phase ancestor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrl_rtpd.functional.checks import at_least_single, check_same_shape

__all__ = [
    "categorical_q_values",
    "discounted_target",
    "entropy",
    "forward_kl",
    "greedy_agreement",
    "greedy_nll",
    "imitation_value",
    "jensen_shannon",
    "policy_log_probs",
    "q_huber",
    "q_mse",
    "quantile_q_values",
    "reverse_kl",
    "value_spread",
]

_FLOOR = -1e30  # far below any log-probability of finite values, and no overflow in sums and squares of its gradient


def policy_log_probs(q_values: Tensor, temperature: float | Tensor, action_mask: Tensor | None = None) -> Tensor:
    r"""Log-probabilities of the softened policy, :math:`\log \mathrm{softmax}(q / \tau)`.

    A large temperature flattens the policy, a small one sharpens it towards the greedy action (the paper, Eq. 1).

    Args:
        q_values: action values or logits, ``[*B, A]``.
        temperature: :math:`\tau > 0`, a number or a scalar tensor, in units of ``q_values``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed. None allows all.

    Returns:
        Log-probabilities ``[*B, A]``; ``-inf`` where the mask forbids the action.

    Raises:
        ValueError: ``temperature`` is a number that is not positive, or ``action_mask`` has another shape than
            ``q_values``.

    Examples:
        >>> policy_log_probs(torch.tensor([0.0, math.log(3.0)]), 1.0).exp()
        tensor([0.2500, 0.7500])
    """
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be positive: got {temperature!r}; near 0 the policy is the greedy one.")
    q_values = q_values.to(at_least_single(q_values.dtype))
    if action_mask is None:
        return F.log_softmax(_below_best(q_values) / temperature, dim=-1)
    check_same_shape("action_mask", action_mask, "q_values", q_values)
    # A fully masked row becomes all zeros before the softmax, so that neither its value nor its gradient is NaN.
    masked = torch.where(action_mask, q_values, -math.inf)
    masked = torch.where(action_mask.any(-1, keepdim=True), masked, 0.0)
    return torch.where(action_mask, F.log_softmax(_below_best(masked) / temperature, dim=-1), -math.inf)


def forward_kl(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    r"""Forward divergence :math:`KL(\text{teacher} \,\|\, \text{student}) = \sum_i p_{T,i} \ln (p_{T,i} / p_{S,i})`.

    Eq. 1 of the paper. Mean-seeking: the student is punished wherever the teacher puts probability and it does not.

    Args:
        teacher_log_probs: ``[*B, A]``, from :func:`policy_log_probs`.
        student_log_probs: ``[*B, A]``, with the same mask.

    Returns:
        ``[*B]``, in nats; 0 when the two are equal.

    Examples:
        >>> teacher = torch.tensor([0.5, 0.5]).log()
        >>> student = torch.tensor([0.25, 0.75]).log()
        >>> forward_kl(teacher, student)  # 0.5 ln 2 + 0.5 ln (2/3)
        tensor(0.1438)
    """
    check_same_shape("student_log_probs", student_log_probs, "teacher_log_probs", teacher_log_probs)
    return _kl(_floored(teacher_log_probs), _floored(student_log_probs))


def reverse_kl(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    r"""Reverse divergence :math:`KL(\text{student} \,\|\, \text{teacher}) = \sum_i p_{S,i} \ln (p_{S,i} / p_{T,i})`.

    Eq. 6 of the paper. Mode-seeking: the student is punished for probability where the teacher has none. The gradient
    printed as Eq. 7 of the paper is wrong in general and is not used.

    Args:
        teacher_log_probs: ``[*B, A]``, from :func:`policy_log_probs`.
        student_log_probs: ``[*B, A]``, with the same mask.

    Returns:
        ``[*B]``, in nats; 0 when the two are equal.

    Examples:
        >>> teacher = torch.tensor([0.5, 0.5]).log()
        >>> student = torch.tensor([0.25, 0.75]).log()
        >>> reverse_kl(teacher, student)  # 0.25 ln 0.5 + 0.75 ln 1.5
        tensor(0.1308)
    """
    return forward_kl(student_log_probs, teacher_log_probs)


def jensen_shannon(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence, :math:`\tfrac12 KL(T \| M) + \tfrac12 KL(S \| M)` with :math:`M = (T + S) / 2`.

    Symmetric and bounded by ln 2, a middle way between the two KL directions; not in the paper.

    Args:
        teacher_log_probs: ``[*B, A]``, from :func:`policy_log_probs`.
        student_log_probs: ``[*B, A]``, with the same mask.

    Returns:
        ``[*B]``, in nats, within [0, ln 2].

    Examples:
        >>> jensen_shannon(torch.tensor([0.9, 0.1]).log(), torch.tensor([0.1, 0.9]).log())
        tensor(0.3681)
    """
    check_same_shape("student_log_probs", student_log_probs, "teacher_log_probs", teacher_log_probs)
    teacher, student = _floored(teacher_log_probs), _floored(student_log_probs)
    middle = torch.logaddexp(teacher, student) - math.log(2.0)
    return 0.5 * (_kl(teacher, middle) + _kl(student, middle))


def q_mse(teacher_q_values: Tensor, student_q_values: Tensor, action_mask: Tensor | None = None) -> Tensor:
    """Squared distance of action values, summed over the allowed actions (Rusu et al., section 3).

    Args:
        teacher_q_values: ``[*B, A]``.
        student_q_values: ``[*B, A]``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed.

    Returns:
        ``[*B]``, in squared units of the values.

    Examples:
        >>> q_mse(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
        tensor(5.)
    """
    return _summed_distance(F.mse_loss, teacher_q_values, student_q_values, action_mask)


def q_huber(teacher_q_values: Tensor, student_q_values: Tensor, action_mask: Tensor | None = None) -> Tensor:
    """Huber distance of action values with threshold 1, summed over the allowed actions.

    Quadratic (``d**2 / 2``) within 1 and linear (``|d| - 1/2``) beyond, so a far-off value cannot dominate.

    Args:
        teacher_q_values: ``[*B, A]``.
        student_q_values: ``[*B, A]``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed.

    Returns:
        ``[*B]``.

    Examples:
        >>> q_huber(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
        tensor(2.)
    """
    return _summed_distance(F.huber_loss, teacher_q_values, student_q_values, action_mask)


def greedy_nll(teacher_q_values: Tensor, student_log_probs: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's greedy action under the student (Rusu et al., section 3).

    Args:
        teacher_q_values: ``[*B, A]``.
        student_log_probs: ``[*B, A]``, from :func:`policy_log_probs`. Actions it forbids are never the greedy one.

    Returns:
        ``[*B]``, in nats. Unlike a KL it is 0 only for a student that is certain.

    Examples:
        >>> greedy_nll(torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.75]).log())
        tensor(0.2877)
    """
    check_same_shape("student_log_probs", student_log_probs, "teacher_q_values", teacher_q_values)
    allowed = student_log_probs > -math.inf
    greedy = torch.where(allowed, teacher_q_values, -math.inf).argmax(-1, keepdim=True)
    chosen = student_log_probs.gather(-1, greedy).squeeze(-1)
    return torch.where(allowed.any(-1), -chosen, 0.0)


def greedy_agreement(teacher_q_values: Tensor, student_q_values: Tensor, action_mask: Tensor | None = None) -> Tensor:
    """Whether teacher and student would take the same greedy action.

    Args:
        teacher_q_values: ``[*B, A]``.
        student_q_values: ``[*B, A]``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed.

    Returns:
        ``[*B]``, 1.0 where they agree and 0.0 elsewhere, also where no action is allowed.

    Examples:
        >>> greedy_agreement(torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]]))
        tensor([1., 0.])
    """
    check_same_shape("student_q_values", student_q_values, "teacher_q_values", teacher_q_values)
    dtype = at_least_single(student_q_values.dtype)  # bfloat16 counts no further than 256
    if action_mask is None:
        return (teacher_q_values.argmax(-1) == student_q_values.argmax(-1)).to(dtype)
    check_same_shape("action_mask", action_mask, "student_q_values", student_q_values)
    teacher = torch.where(action_mask, teacher_q_values, -math.inf)
    student = torch.where(action_mask, student_q_values, -math.inf)
    return ((teacher.argmax(-1) == student.argmax(-1)) & action_mask.any(-1)).to(dtype)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy of a policy given by its log-probabilities.

    Args:
        log_probs: ``[*B, A]``, from :func:`policy_log_probs`.

    Returns:
        ``[*B]``, in nats.

    Examples:
        >>> entropy(torch.tensor([0.5, 0.5]).log())
        tensor(0.6931)
    """
    log_probs = _floored(log_probs)
    return -(log_probs.exp() * log_probs).sum(-1)


def imitation_value(
    next_teacher_q_values: Tensor, next_student_q_values: Tensor, action_mask: Tensor | None = None
) -> Tensor:
    r"""Next-state value of the *imitation* target: :math:`Q_S(s', \arg\max_a Q_T(s', a))`.

    Eq. 5 of the paper: the teacher chooses the action, the student values it. Both values come from target networks.

    Args:
        next_teacher_q_values: the teacher's values at the next state, ``[*B, A]``.
        next_student_q_values: the student's values at the next state, ``[*B, A]``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed in the next state.

    Returns:
        ``[*B]``; 0 where no action is allowed.

    Examples:
        >>> imitation_value(torch.tensor([1.0, 5.0, 2.0]), torch.tensor([9.0, 3.0, 4.0]))
        tensor(3.)
    """
    check_same_shape("next_student_q_values", next_student_q_values, "next_teacher_q_values", next_teacher_q_values)
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


def value_spread(q_values: Tensor, action_mask: Tensor | None = None) -> Tensor:
    """Standard deviation of the values over the allowed actions: the scale of a temperature.

    Args:
        q_values: ``[*B, A]``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed.

    Returns:
        ``[*B]``, in units of ``q_values``; 0 where no action is allowed.

    Examples:
        >>> value_spread(torch.tensor([1.0, 3.0, 3.0, 1.0]))
        tensor(1.)
    """
    q_values = q_values.to(at_least_single(q_values.dtype))
    if action_mask is None:
        return q_values.std(-1, correction=0)
    check_same_shape("action_mask", action_mask, "q_values", q_values)
    num_allowed = action_mask.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(action_mask, q_values, 0.0).sum(-1, keepdim=True) / num_allowed
    deviation = torch.where(action_mask, q_values - mean, 0.0)
    return (deviation.square().sum(-1) / num_allowed.squeeze(-1)).sqrt()


def _below_best(q_values: Tensor) -> Tensor:
    """Values less the row's best: their gaps survive a division by a small temperature, which large values do not."""
    return q_values - q_values.detach().amax(-1, keepdim=True)


def _kl(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    return (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum(-1)


def _floored(log_probs: Tensor) -> Tensor:
    """Impossible actions at a finite number: 0 times their log-probability is then 0, not NaN, also in gradients."""
    return log_probs.to(at_least_single(log_probs.dtype)).clamp_min(_FLOOR)


def _summed_distance(
    distance: Callable[..., Tensor], teacher_q_values: Tensor, student_q_values: Tensor, action_mask: Tensor | None
) -> Tensor:
    check_same_shape("student_q_values", student_q_values, "teacher_q_values", teacher_q_values)
    if action_mask is not None:
        check_same_shape("action_mask", action_mask, "student_q_values", student_q_values)
        # Before the distance: networks mark forbidden actions by huge or infinite values, whose gradient would be NaN.
        teacher_q_values = torch.where(action_mask, teacher_q_values, 0.0)
        student_q_values = torch.where(action_mask, student_q_values, 0.0)
    dtype = at_least_single(torch.promote_types(teacher_q_values.dtype, student_q_values.dtype))
    return distance(student_q_values.to(dtype), teacher_q_values.to(dtype), reduction="none").sum(-1)
