"""Pure maths of policy distillation on tensors.

Conventions: ``*B`` are batch dimensions, ``A`` is the number of actions. Every divergence is summed over actions and
returned per sample, ``[*B]``; averaging over the batch is the caller's. ``teacher_`` arguments come first; nothing here
detaches anything, so callers detach the teacher. An action that a mask forbids has log-probability ``-inf`` and takes
part in no sum; a row whose every action is forbidden yields 0 with zero gradient. Half precision is computed and
returned in single: values over a small temperature, and squares of values, leave the range of float16.

An action may consist of several choices, such as a direction and a button. Its values lie side by side in ``A``, and
``var_nums`` says how many belong to each choice, as in :class:`torchrl.modules.QValueModule`. Choices are independent
and their values add up, as in TorchRL's DQN: the policy is a softmax over each choice, a divergence is the sum over the
choices, and two actions are equal if all choices are. The distances of values need no ``var_nums``.

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
from torchrl_rtpd.functional.choices import VarNums, split_choices

__all__ = [
    "entropy",
    "forward_kl",
    "greedy_agreement",
    "greedy_nll",
    "jensen_shannon",
    "policy_log_probs",
    "q_huber",
    "q_mse",
    "reverse_kl",
    "teacher_regret",
    "value_spread",
]

_FLOOR = -1e30  # far below any log-probability of finite values, and no overflow in sums and squares of its gradient


def policy_log_probs(
    q_values: Tensor,
    temperature: float | Tensor,
    action_mask: Tensor | None = None,
    var_nums: VarNums | None = None,
) -> Tensor:
    r"""Log-probabilities of the softened policy, :math:`\log \mathrm{softmax}(q / \tau)`.

    A large temperature flattens the policy, a small one sharpens it towards the greedy action (the paper, Eq. 1).

    Args:
        q_values: action values or logits, ``[*B, A]``.
        temperature: :math:`\tau > 0`, a number or a scalar tensor, in units of ``q_values``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed. None allows all.
        var_nums: actions of each choice if there are several, which add up to ``A``.

    Returns:
        Log-probabilities ``[*B, A]``; ``-inf`` where the mask forbids the action. Those of each choice add up to 1.

    Raises:
        ValueError: ``temperature`` is a number that is not positive, ``action_mask`` has another shape than
            ``q_values``, or ``var_nums`` do not add up to ``A``.

    Examples:
        >>> policy_log_probs(torch.tensor([0.0, math.log(3.0)]), 1.0).exp()
        tensor([0.2500, 0.7500])
        >>> policy_log_probs(torch.tensor([0.0, math.log(3.0), 7.0, 7.0]), 1.0, var_nums=(2, 2)).exp()
        tensor([0.2500, 0.7500, 0.5000, 0.5000])
    """
    if var_nums is not None:
        choices = split_choices(var_nums, q_values, action_mask)
        return torch.cat([policy_log_probs(values, temperature, mask) for values, mask in choices], -1)
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


def greedy_nll(teacher_q_values: Tensor, student_log_probs: Tensor, var_nums: VarNums | None = None) -> Tensor:
    """Negative log-likelihood of the teacher's greedy action under the student (Rusu et al., section 3).

    Args:
        teacher_q_values: ``[*B, A]``.
        student_log_probs: ``[*B, A]``, from :func:`policy_log_probs`. Actions it forbids are never the greedy one.
        var_nums: actions of each choice if there are several, which add up to ``A``.

    Returns:
        ``[*B]``, in nats. Unlike a KL it is 0 only for a student that is certain.

    Examples:
        >>> greedy_nll(torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.75]).log())
        tensor(0.2877)
    """
    check_same_shape("student_log_probs", student_log_probs, "teacher_q_values", teacher_q_values)
    if var_nums is not None:
        choices = split_choices(var_nums, teacher_q_values, student_log_probs)
        return torch.stack([greedy_nll(values, log_probs) for values, log_probs in choices]).sum(0)
    allowed = student_log_probs > -math.inf
    greedy = torch.where(allowed, teacher_q_values, -math.inf).argmax(-1, keepdim=True)
    chosen = student_log_probs.gather(-1, greedy).squeeze(-1)
    return torch.where(allowed.any(-1), -chosen, 0.0)


def greedy_agreement(
    teacher_q_values: Tensor,
    student_q_values: Tensor,
    action_mask: Tensor | None = None,
    var_nums: VarNums | None = None,
) -> Tensor:
    """Agreement of teacher and student: 1 where both would take the same greedy action.

    Args:
        teacher_q_values: ``[*B, A]``.
        student_q_values: ``[*B, A]``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed.
        var_nums: actions of each choice if there are several, which add up to ``A``.

    Returns:
        ``[*B]``, 1.0 where they agree in all choices and 0.0 elsewhere, also where no action is allowed.

    Examples:
        >>> greedy_agreement(torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]]))
        tensor([1., 0.])
    """
    check_same_shape("student_q_values", student_q_values, "teacher_q_values", teacher_q_values)
    if var_nums is not None:
        choices = split_choices(var_nums, teacher_q_values, student_q_values, action_mask)
        return torch.stack([greedy_agreement(*choice) for choice in choices]).amin(0)
    dtype = at_least_single(student_q_values.dtype)  # bfloat16 counts no further than 256
    if action_mask is None:
        return (teacher_q_values.argmax(-1) == student_q_values.argmax(-1)).to(dtype)
    check_same_shape("action_mask", action_mask, "student_q_values", student_q_values)
    teacher = torch.where(action_mask, teacher_q_values, -math.inf)
    student = torch.where(action_mask, student_q_values, -math.inf)
    return ((teacher.argmax(-1) == student.argmax(-1)) & action_mask.any(-1)).to(dtype)


def teacher_regret(
    teacher_q_values: Tensor,
    student_q_values: Tensor,
    action_mask: Tensor | None = None,
    var_nums: VarNums | None = None,
) -> Tensor:
    r"""Price of the student's greedy action in the teacher's values, 0 where it is the teacher's own.

    :math:`(\max_a Q_T(a) - Q_T(\arg\max_a Q_S(a))) / \sigma_T`. Where two actions are nearly as good, agreement counts
    a harmless difference as much as a fatal one, and this does not. The unit is the standard deviation :math:`\sigma_T`
    of the teacher's values over the allowed actions, so that games with other scores compare.

    Args:
        teacher_q_values: ``[*B, A]``. Actions with a value of ``-inf`` count as the worst of the others.
        student_q_values: ``[*B, A]``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed.
        var_nums: actions of each choice if there are several, which add up to ``A``.

    Returns:
        ``[*B]``, at least 0; 0 where the teacher would take the same action, does not care or has no action. Of
        several choices both gap and deviation are those of whole actions, whose values are sums.

    Examples:
        >>> teacher_q_values = torch.tensor([1.0, 3.0, 3.0, 1.0])  # with a standard deviation of 1
        >>> teacher_regret(teacher_q_values, torch.tensor([0.0, 0.0, 5.0, 0.0]))
        tensor(0.)
        >>> teacher_regret(teacher_q_values, torch.tensor([5.0, 0.0, 0.0, 0.0]))
        tensor(2.)
    """
    check_same_shape("student_q_values", student_q_values, "teacher_q_values", teacher_q_values)
    if var_nums is None:
        gap, deviation = _gap_and_deviation(teacher_q_values, student_q_values, action_mask)
    else:
        choices = split_choices(var_nums, teacher_q_values, student_q_values, action_mask)
        gaps, deviations = zip(*[_gap_and_deviation(*choice) for choice in choices], strict=True)
        gap, deviation = torch.stack(gaps).sum(0), torch.stack(deviations).square().sum(0).sqrt()
    return torch.where(deviation > 0, gap / deviation, 0.0)


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


def value_spread(q_values: Tensor, action_mask: Tensor | None = None, var_nums: VarNums | None = None) -> Tensor:
    """Standard deviation of the values over the allowed actions: the scale of a temperature.

    Args:
        q_values: ``[*B, A]``.
        action_mask: boolean ``[*B, A]``, True where the action is allowed.
        var_nums: actions of each choice if there are several, which add up to ``A``.

    Returns:
        ``[*B]``, in units of ``q_values``, the mean over the choices; 0 where no action is allowed.

    Examples:
        >>> value_spread(torch.tensor([1.0, 3.0, 3.0, 1.0]))
        tensor(1.)
    """
    if var_nums is not None:
        return torch.stack([value_spread(*choice) for choice in split_choices(var_nums, q_values, action_mask)]).mean(0)
    q_values = q_values.to(at_least_single(q_values.dtype))
    if action_mask is None:
        return q_values.std(-1, correction=0)
    check_same_shape("action_mask", action_mask, "q_values", q_values)
    num_allowed = action_mask.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(action_mask, q_values, 0.0).sum(-1, keepdim=True) / num_allowed
    deviation = torch.where(action_mask, q_values - mean, 0.0)
    return (deviation.square().sum(-1) / num_allowed.squeeze(-1)).sqrt()


def _gap_and_deviation(teacher: Tensor, student: Tensor, action_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Distance of the student's action from the teacher's best in one choice, and the spread of the values there."""
    teacher = teacher.to(at_least_single(teacher.dtype))
    if action_mask is not None:
        check_same_shape("action_mask", action_mask, "student_q_values", student)
        student = torch.where(action_mask, student, -math.inf)
        teacher = torch.where(action_mask, teacher, -math.inf)
    worst = torch.where(teacher == -math.inf, math.inf, teacher).min(-1, keepdim=True).values
    worst = torch.where(worst == math.inf, 0.0, worst)  # no action is possible: nothing can be lost
    teacher = torch.maximum(teacher, worst)
    gap = teacher.max(-1).values - teacher.gather(-1, student.argmax(-1, keepdim=True)).squeeze(-1)
    if action_mask is not None:
        return gap, value_spread(teacher, action_mask)
    # value_spread by hand: PyTorch's std takes ten times as long.
    return gap, (teacher - teacher.mean(-1, keepdim=True)).square().mean(-1).sqrt()


def _below_best(q_values: Tensor) -> Tensor:
    """Values less the row's best: their gaps survive a division by a small temperature, which large values do not."""
    return q_values - q_values.detach().max(-1, keepdim=True).values  # on a CPU in half the time of amax


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
