r"""Pure maths of divergences between continuous policies.

Conventions: ``*B`` are batch dimensions, ``D`` is the number of action dimensions, ``K`` the number of samples. A
policy is a :class:`GaussianPolicy`: a diagonal Gaussian over an unbounded value :math:`u`, and with bounds the law of
the action :math:`a = f(u)`, :math:`f(u) = m + h \tanh u` with :math:`m` the middle and :math:`h` half the width of
``(low, high)``, as in :class:`torchrl.modules.TanhNormal`. Everything is summed over action dimensions and returned per
sample, ``[*B]``, in nats unless said otherwise. ``teacher`` arguments come first; nothing here detaches anything or
draws from a random generator. Half precision is computed and returned in single. Standard deviations from 1e-6 to
1e3 keep every value and gradient finite; a policy without one is deterministic and has no divergence, only an action.

Temperatures have no place here: a Gaussian carries its own sharpness.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrl_rtpd.functional.checks import at_least_single, check_same_shape

__all__ = [
    "Bounds",
    "GaussianPolicy",
    "action_distance",
    "action_mse",
    "action_nll",
    "base_entropy",
    "deterministic_action",
    "gaussian_forward_kl",
    "gaussian_reverse_kl",
    "kl_form",
    "log_prob",
    "sampled_kl",
]

Bounds = tuple[Tensor, Tensor]
"""Lowest and highest action, each a scalar or ``[D]``."""

_HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


class GaussianPolicy(NamedTuple):
    """A diagonal Gaussian, or its image under a tanh.

    Attributes:
        loc: mean of the Gaussian, ``[*B, D]``; for a tanh-Gaussian, before the tanh.
        scale: standard deviation of the Gaussian, positive, ``[*B, D]``.
        bounds: actions lie between these; None for a plain Gaussian, whose actions are unbounded.
    """

    loc: Tensor
    scale: Tensor
    bounds: Bounds | None = None

    def detach(self) -> GaussianPolicy:
        """The same policy, through which no gradient flows."""
        return self._replace(loc=self.loc.detach(), scale=self.scale.detach())


def gaussian_forward_kl(teacher: GaussianPolicy, student: GaussianPolicy) -> Tensor:
    r"""Exact :math:`KL(\text{teacher} \,\|\, \text{student})` of two Gaussians, or two tanh-Gaussians of equal bounds.

    With means :math:`\mu` and standard deviations :math:`\sigma`,
    :math:`\sum_d \tfrac12 (\sigma_T^2 / \sigma_S^2 - 1 - \ln (\sigma_T^2 / \sigma_S^2) + (\mu_T - \mu_S)^2 /
    \sigma_S^2)`: what :func:`torch.distributions.kl_divergence` returns, arranged so that it is exactly 0 at equality
    and keeps its digits near it. A KL does not change under a bijection that both share, so between tanh-Gaussians of
    equal bounds it is that of their Gaussians. The values of the bounds are not compared here; see :func:`kl_form`.

    Args:
        teacher: ``[*B, D]``.
        student: ``[*B, D]``, with the teacher's bounds.

    Returns:
        ``[*B]``, in nats.

    Raises:
        ValueError: one policy has bounds and the other has none, or they differ in shape.

    Examples:
        >>> teacher = GaussianPolicy(torch.tensor([1.0]), torch.tensor([1.0]))
        >>> student = GaussianPolicy(torch.tensor([0.0]), torch.tensor([2.0]))
        >>> gaussian_forward_kl(teacher, student)  # (1/4 - 1 - ln 1/4 + 1/4) / 2
        tensor(0.4431)
    """
    teacher, student = _checked(teacher), _checked(student)
    check_same_shape("the student's loc", student.loc, "the teacher's loc", teacher.loc)
    if (teacher.bounds is None) != (student.bounds is None):
        raise ValueError(
            "the exact KL needs policies of one kind: got a Gaussian and a tanh-Gaussian; use sampled_kl, where "
            "kl_form says that it is finite."
        )
    ratio = teacher.scale / student.scale
    # (ratio - 1)(ratio + 1) for ratio^2 - 1: the first factor is exact near 1, where the square would lose its digits.
    distance = ((teacher.loc - student.loc) / student.scale).square()
    return 0.5 * ((ratio - 1) * (ratio + 1) - 2 * ratio.log() + distance).sum(-1)


def gaussian_reverse_kl(teacher: GaussianPolicy, student: GaussianPolicy) -> Tensor:
    r"""Exact :math:`KL(\text{student} \,\|\, \text{teacher})`; as :func:`gaussian_forward_kl`, the other way round.

    Args:
        teacher: ``[*B, D]``.
        student: ``[*B, D]``, with the teacher's bounds.

    Returns:
        ``[*B]``, in nats.

    Examples:
        >>> teacher = GaussianPolicy(torch.tensor([1.0]), torch.tensor([1.0]))
        >>> student = GaussianPolicy(torch.tensor([0.0]), torch.tensor([2.0]))
        >>> gaussian_reverse_kl(teacher, student)  # (4 - 1 - ln 4 + 1) / 2
        tensor(1.3069)
    """
    return gaussian_forward_kl(student, teacher)


def kl_form(first: Bounds | None, second: Bounds | None) -> str:
    r"""Form in which :math:`KL(\text{first} \,\|\, \text{second})` of policies with these bounds can be computed.

    It is infinite where the first may take actions that the second never takes: a Gaussian against a tanh-Gaussian, or
    a tanh-Gaussian of wider bounds. Reads the values of the bounds, so it belongs where a loss is built.

    Args:
        first: bounds of the policy whose actions are averaged over; None for a Gaussian.
        second: bounds of the other.

    Returns:
        ``"exact"`` (:func:`gaussian_forward_kl`), ``"sampled"`` (:func:`sampled_kl`) or ``"infinite"``.

    Examples:
        >>> unit = (torch.tensor(-1.0), torch.tensor(1.0))
        >>> kl_form(unit, unit), kl_form(unit, None), kl_form(None, unit)
        ('exact', 'sampled', 'infinite')
    """
    if first is None or second is None:
        if second is None:
            return "exact" if first is None else "sampled"
        return "infinite"
    (first_low, first_high), (second_low, second_high) = first, second
    if bool((first_low == second_low).all()) and bool((first_high == second_high).all()):
        return "exact"
    within = bool((first_low >= second_low).all()) and bool((first_high <= second_high).all())
    return "sampled" if within else "infinite"


def sampled_kl(first: GaussianPolicy, second: GaussianPolicy, noise: Tensor) -> Tensor:
    r"""Monte-Carlo estimate of :math:`KL(\text{first} \,\|\, \text{second})`, for pairs without a closed form.

    :math:`\frac1K \sum_k \ln p_1(a_k) - \ln p_2(a_k)` with :math:`a_k = f_1(\mu_1 + \sigma_1 \epsilon_k)`. For standard
    normal noise it is unbiased in value and, the samples being reparameterised, in gradient, with variance
    :math:`\mathrm{Var}[\ln p_1 - \ln p_2] / K`, which falls to 0 as the policies become equal. A single estimate may
    be negative. (Only where the two share one bound, actions within 1e-6 of it, relative to the half width, are moved
    there.) Infinite divergences, see :func:`kl_form`, are not recognised here.

    Args:
        first: the policy whose actions are averaged over, ``[*B, D]``.
        second: the other, ``[*B, D]``.
        noise: standard normal :math:`\epsilon`, ``[K, *B, D]``.

    Returns:
        ``[*B]``, in nats.

    Raises:
        ValueError: ``noise`` is not ``[K, *B, D]``.

    Examples:
        >>> bounded = GaussianPolicy(torch.zeros(1), torch.ones(1), (torch.tensor(-1.0), torch.tensor(1.0)))
        >>> gaussian = GaussianPolicy(torch.zeros(1), torch.ones(1))
        >>> sampled_kl(bounded, gaussian, torch.zeros(1, 1))  # both densities at 0 are 1 / sqrt(2 pi)
        tensor(0.)
    """
    first, second = _checked(first), _checked(second)
    check_same_shape("the second policy's loc", second.loc, "the first policy's loc", first.loc)
    if noise.shape[1:] != first.loc.shape:
        raise ValueError(
            f"noise must be [K, *B, D] for policies [*B, D]: got {list(noise.shape)} and {list(first.loc.shape)}; "
            "draw it as torch.randn(K, *loc.shape)."
        )
    base = first.loc + first.scale * noise
    first_log_probs = -0.5 * noise.square() - first.scale.log() - _HALF_LOG_2_PI
    actions = base
    if first.bounds is not None:  # from the values before the tanh, since a saturated tanh cannot be undone
        first_log_probs = first_log_probs - _log_slope(base, first.bounds)
        actions = _squashed(base, first.bounds)
    return (first_log_probs.sum(-1) - log_prob(second, actions)).mean(0)


def log_prob(policy: GaussianPolicy, action: Tensor) -> Tensor:
    """Log-density of an action.

    At a bound the density of a tanh-Gaussian has no value; like TorchRL's, an action is taken to be at least 1e-6 of
    the half width (1e-15 in double precision) away from it, so that value and gradient are finite.

    Args:
        policy: ``[*B, D]``.
        action: ``[*B, D]``, or with more dimensions in front.

    Returns:
        ``[*B]``, in nats.

    Examples:
        >>> log_prob(GaussianPolicy(torch.zeros(1), torch.ones(1)), torch.zeros(1))  # -ln sqrt(2 pi)
        tensor(-0.9189)
    """
    policy = _checked(policy)
    base = action.to(policy.loc.dtype)
    slope: Tensor | float = 0.0
    if policy.bounds is not None:
        middle, half = _middle_and_half(policy.bounds, base)
        limit = 1 - torch.finfo(base.dtype).resolution
        base = ((base - middle) / half).clamp(-limit, limit).atanh()
        slope = _log_slope(base, policy.bounds)
    deviation = (base - policy.loc) / policy.scale
    return (-0.5 * deviation.square() - policy.scale.log() - _HALF_LOG_2_PI - slope).sum(-1)


def base_entropy(policy: GaussianPolicy) -> Tensor:
    r"""Differential entropy of the Gaussian, :math:`\sum_d \ln \sigma_d + \tfrac12 \ln 2 \pi e`.

    For a tanh-Gaussian it is the entropy *before* the tanh, which has a closed form; that of the action has none.

    Args:
        policy: ``[*B, D]``.

    Returns:
        ``[*B]``, in nats; negative for narrow policies.

    Examples:
        >>> base_entropy(GaussianPolicy(torch.zeros(1), torch.ones(1)))
        tensor(1.4189)
    """
    policy = _checked(policy)
    return (policy.scale.log() + (0.5 + _HALF_LOG_2_PI)).sum(-1)


def deterministic_action(policy: GaussianPolicy) -> Tensor:
    """Action of a policy that does not explore: the mean, and for a tanh-Gaussian the tanh of the mean.

    Args:
        policy: ``[*B, D]``.

    Returns:
        ``[*B, D]``, in units of the action.

    Examples:
        >>> deterministic_action(GaussianPolicy(torch.zeros(1), torch.ones(1), (torch.tensor(0.0), torch.tensor(4.0))))
        tensor([2.])
    """
    loc = policy.loc.to(at_least_single(policy.loc.dtype))
    return loc if policy.bounds is None else _squashed(loc, policy.bounds)


def action_nll(teacher_action: Tensor, student: GaussianPolicy) -> Tensor:
    """Negative log-likelihood of the teacher's action under the student, the loss for a deterministic teacher.

    Unlike a KL it is not 0 at its best, and falls without limit as the student's scale shrinks around the action.

    Args:
        teacher_action: ``[*B, D]``.
        student: ``[*B, D]``.

    Returns:
        ``[*B]``, in nats.

    Examples:
        >>> action_nll(torch.ones(1), GaussianPolicy(torch.zeros(1), torch.ones(1)))
        tensor(1.4189)
    """
    check_same_shape("the student's loc", student.loc, "teacher_action", teacher_action)
    return -log_prob(student, teacher_action)


def action_mse(teacher_action: Tensor, student_action: Tensor) -> Tensor:
    """Squared distance of actions, summed over their dimensions.

    Args:
        teacher_action: ``[*B, D]``.
        student_action: ``[*B, D]``.

    Returns:
        ``[*B]``, in squared units of the action.

    Examples:
        >>> action_mse(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
        tensor(5.)
    """
    check_same_shape("student_action", student_action, "teacher_action", teacher_action)
    dtype = at_least_single(torch.promote_types(teacher_action.dtype, student_action.dtype))
    return F.mse_loss(student_action.to(dtype), teacher_action.to(dtype), reduction="none").sum(-1)


def action_distance(teacher_action: Tensor, student_action: Tensor) -> Tensor:
    """Euclidean distance of actions: how far apart two policies are when neither explores.

    Args:
        teacher_action: ``[*B, D]``.
        student_action: ``[*B, D]``.

    Returns:
        ``[*B]``, in units of the action.

    Examples:
        >>> action_distance(torch.tensor([0.0, 4.0]), torch.tensor([3.0, 0.0]))
        tensor(5.)
    """
    return action_mse(teacher_action, student_action).sqrt()


def _middle_and_half(bounds: Bounds, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (bound.to(like) for bound in bounds)
    return (high + low) / 2, (high - low) / 2


def _squashed(base: Tensor, bounds: Bounds) -> Tensor:
    middle, half = _middle_and_half(bounds, base)
    return middle + half * base.tanh()


def _log_slope(base: Tensor, bounds: Bounds) -> Tensor:
    """Logarithm of the derivative of the action by ``base``, element by element, finite however large ``base`` is."""
    half = _middle_and_half(bounds, base)[1]
    return half.log() + 2 * (math.log(2.0) - base - F.softplus(-2 * base))


def _checked(policy: GaussianPolicy) -> GaussianPolicy:
    check_same_shape("scale", policy.scale, "loc", policy.loc)
    dtype = at_least_single(torch.promote_types(policy.loc.dtype, policy.scale.dtype))
    return policy._replace(loc=policy.loc.to(dtype), scale=policy.scale.to(dtype))
