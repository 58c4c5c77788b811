"""What the divergences of continuous policies are worth by hand, by torch and by numerical integration."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torchrl.modules import TanhNormal

from torchrl_rtpd.functional import gaussian as RD
from torchrl_rtpd.functional.gaussian import GaussianPolicy

WIDE = (torch.tensor(-2.0), torch.tensor(2.0))
UNIT = (torch.tensor(-1.0), torch.tensor(1.0))


def policy(loc: float | list[float], scale: float | list[float], bounds: RD.Bounds | None = None) -> GaussianPolicy:
    return GaussianPolicy(torch.tensor(loc).reshape(-1), torch.tensor(scale).reshape(-1), bounds)


def random_policies(count: int, dtype: torch.dtype, seed: int = 0) -> tuple[GaussianPolicy, GaussianPolicy]:
    """Two policies ``[count, 3]`` with means to 20 and standard deviations from 1e-3 to 1e3."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> GaussianPolicy:
        loc = 20 * (2 * torch.rand(count, 3, generator=generator, dtype=dtype) - 1)
        exponent = 6 * torch.rand(count, 3, generator=generator, dtype=dtype) - 3
        return GaussianPolicy(loc, 10**exponent)

    return draw(), draw()


def normal(policy: GaussianPolicy) -> Independent:
    return Independent(Normal(policy.loc.double(), policy.scale.double()), 1)


def integrated_kl(first: GaussianPolicy, second: GaussianPolicy) -> float:
    """KL of one action dimension by the trapezoidal rule over the first policy's Gaussian, in numpy."""
    (loc, other_loc), (scale, other_scale) = (
        [float(getattr(policy, name)) for policy in (first, second)] for name in ("loc", "scale")
    )
    base = np.linspace(loc - 9 * scale, loc + 9 * scale, 200_001)
    log_density = -0.5 * ((base - loc) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi))
    weight = np.exp(log_density)
    action = base
    if first.bounds is not None:
        low, high = (float(bound) for bound in first.bounds)
        action = (high + low) / 2 + (high - low) / 2 * np.tanh(base)
        log_density = log_density - np.log((high - low) / 2 / np.cosh(base) ** 2)
    other_slope = 0.0
    other_base = action
    if second.bounds is not None:
        low, high = (float(bound) for bound in second.bounds)
        other_base = np.arctanh((action - (high + low) / 2) / ((high - low) / 2))
        other_slope = np.log((high - low) / 2 / np.cosh(other_base) ** 2)
    other = -0.5 * ((other_base - other_loc) / other_scale) ** 2 - np.log(other_scale * np.sqrt(2 * np.pi))
    return float(np.trapezoid(weight * (log_density - other + other_slope), base))


# Literals


def test_kl_of_two_gaussians_by_hand() -> None:
    """Teacher N(1, 1), student N(0, 2): (1/4 - 1 + ln 4 + 1/4) / 2 forward, (4 - 1 - ln 4 + 1) / 2 reverse."""
    teacher, student = policy(1.0, 1.0), policy(0.0, 2.0)
    assert RD.gaussian_forward_kl(teacher, student).item() == pytest.approx(0.443147, abs=1e-6)
    assert RD.gaussian_reverse_kl(teacher, student).item() == pytest.approx(1.306853, abs=1e-6)


def test_kl_sums_over_action_dimensions_and_keeps_the_batch() -> None:
    """Twice the same dimension is twice the divergence, for any batch shape."""
    teacher = GaussianPolicy(torch.ones(4, 3, 2), torch.ones(4, 3, 2))
    student = GaussianPolicy(torch.zeros(4, 3, 2), torch.full((4, 3, 2), 2.0))
    torch.testing.assert_close(RD.gaussian_forward_kl(teacher, student), torch.full((4, 3), 2 * 0.443147))


def test_log_prob_by_hand() -> None:
    """At the middle of (-2, 2) the density of a centred tanh-Gaussian is half the Gaussian's."""
    assert RD.log_prob(policy(0.0, 1.0), torch.zeros(1)).item() == pytest.approx(-0.918939, abs=1e-6)
    assert RD.log_prob(policy(0.0, 1.0, WIDE), torch.zeros(1)).item() == pytest.approx(-1.612086, abs=1e-6)


def test_actions_and_their_distances_by_hand() -> None:
    squashed = RD.deterministic_action(
        policy([0.0, math.atanh(0.5)], [1.0, 1.0], (torch.tensor(0.0), torch.tensor(4.0)))
    )
    torch.testing.assert_close(squashed, torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(RD.deterministic_action(policy([5.0], [1.0])), torch.tensor([5.0]))
    teacher_action, student_action = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert RD.action_mse(teacher_action, student_action).item() == 25.0
    assert RD.action_distance(teacher_action, student_action).item() == 5.0
    assert RD.action_nll(torch.ones(1), policy(0.0, 1.0)).item() == pytest.approx(1.418939, abs=1e-6)


def test_entropy_is_that_of_the_gaussian_also_behind_a_tanh() -> None:
    """It is ln 2 + (1 + ln 2 pi) / 2 for a standard deviation of 2."""
    for bounds in (None, WIDE):
        assert RD.base_entropy(policy(3.0, 2.0, bounds)).item() == pytest.approx(2.112086, abs=1e-6)


# Laws


@pytest.mark.parametrize("kl", [RD.gaussian_forward_kl, RD.gaussian_reverse_kl])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
def test_kl_and_its_gradient_are_exactly_zero_at_equality(kl: Callable[..., Tensor], scale: float) -> None:
    loc = torch.tensor([0.3, -7.0], requires_grad=True)
    scales = torch.full((2,), scale, requires_grad=True)
    value = kl(GaussianPolicy(loc.detach(), scales.detach()), GaussianPolicy(loc, scales))
    value.backward()
    assert value.item() == 0.0
    assert loc.grad.tolist() == [0.0, 0.0]
    assert (scales.grad * scale).abs().max() == 0.0


def test_kl_keeps_its_digits_near_equality() -> None:
    """For a relative difference d of the scales it is d^2, which rounding would swallow in the textbook's form."""
    teacher, student = policy(0.0, 1.0), policy(0.0, 1.0 + 2**-10)
    assert RD.gaussian_forward_kl(teacher, student).item() == pytest.approx(2**-20, rel=0.01)


def test_the_kl_of_equal_policies_behind_one_tanh_is_that_of_their_gaussians() -> None:
    """The integral over actions gives the same."""
    teacher, student = policy(0.4, 0.7, WIDE), policy(-0.3, 1.1, WIDE)
    expected = integrated_kl(teacher, student)
    assert RD.gaussian_forward_kl(teacher, student).item() == pytest.approx(expected, abs=1e-5)
    assert RD.gaussian_forward_kl(*(each._replace(bounds=None) for each in (teacher, student))).item() == pytest.approx(
        expected, abs=1e-5
    )


def test_directions_differ_where_one_policy_is_wider() -> None:
    """A narrow student of a wide teacher is punished forward, a wide student of a narrow teacher in reverse."""
    wide, narrow = policy(0.0, 4.0), policy(0.0, 0.5)
    assert RD.gaussian_forward_kl(wide, narrow) > 5 * RD.gaussian_reverse_kl(wide, narrow)
    assert RD.gaussian_forward_kl(narrow, wide) == RD.gaussian_reverse_kl(wide, narrow)


def test_gradient_of_the_kl_by_hand() -> None:
    """d/d mu = (mu_S - mu_T) / sigma_S^2; d/d sigma = 1 / sigma_S - (sigma_T^2 + (mu_T - mu_S)^2) / sigma_S^3."""
    loc, scale = torch.tensor([0.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    RD.gaussian_forward_kl(policy(1.0, 1.0), GaussianPolicy(loc, scale)).backward()
    assert loc.grad.item() == pytest.approx(-0.25)
    assert scale.grad.item() == pytest.approx(0.25)


# Oracles


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_kl_equals_that_of_torch_in_ten_thousand_cases(dtype: torch.dtype, tolerance: float) -> None:
    teacher, student = random_policies(10_000, dtype)
    for value, expected in (
        (RD.gaussian_forward_kl(teacher, student), kl_divergence(normal(teacher), normal(student))),
        (RD.gaussian_reverse_kl(teacher, student), kl_divergence(normal(student), normal(teacher))),
    ):
        assert value.dtype == dtype
        assert value.min() >= 0.0
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)


def test_entropy_and_log_prob_equal_those_of_torch_in_ten_thousand_cases() -> None:
    one, other = random_policies(10_000, torch.float64)
    torch.testing.assert_close(RD.base_entropy(one), normal(one).entropy(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(RD.log_prob(one, other.loc), normal(one).log_prob(other.loc), rtol=1e-10, atol=1e-10)


def test_tanh_log_prob_equals_that_of_torchrl_in_ten_thousand_cases() -> None:
    """Bounds of their own for each dimension."""
    generator = torch.Generator().manual_seed(0)
    loc, spread = (torch.randn(10_000, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    low, high = torch.tensor([-1.0, -2.0, 0.0]).double(), torch.tensor([1.0, 2.0, 5.0]).double()
    action = low + (high - low) * torch.rand(10_000, 3, generator=generator, dtype=torch.float64)
    theirs = TanhNormal(loc, spread.exp(), low=low, high=high)
    ours = GaussianPolicy(loc, spread.exp(), (low, high))
    torch.testing.assert_close(RD.log_prob(ours, action), theirs.log_prob(action), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(RD.deterministic_action(ours), theirs.deterministic_sample, rtol=1e-8, atol=1e-8)


def test_tanh_density_integrates_to_one() -> None:
    actions = torch.linspace(-2, 2, 400_001, dtype=torch.float64)[1:-1]
    bounds = (torch.tensor(-2.0), torch.tensor(2.0))
    density = RD.log_prob(
        GaussianPolicy(torch.tensor([0.5]).double(), torch.tensor([0.8]).double(), bounds), actions[:, None]
    )
    assert np.trapezoid(density.exp().numpy(), actions.numpy()) == pytest.approx(1.0, abs=1e-6)


# Estimates

PAIRS = {
    "tanh-Gaussian, Gaussian": (policy(0.4, 0.7, WIDE), policy(-0.3, 1.1)),
    "saturated tanh-Gaussian, Gaussian": (policy(3.0, 0.5, UNIT), policy(0.5, 0.4)),
    "tanh-Gaussian, wider tanh-Gaussian": (policy(0.4, 0.7, UNIT), policy(-0.3, 1.1, WIDE)),
}


@pytest.mark.parametrize(("first", "second"), PAIRS.values(), ids=PAIRS.keys())
def test_the_estimate_is_that_of_numerical_integration(first: GaussianPolicy, second: GaussianPolicy) -> None:
    """Within four standard errors, over 400,000 single-sample estimates."""
    noise = torch.randn(1, 400_000, 1, generator=torch.Generator().manual_seed(0))
    many = [
        each._replace(loc=each.loc.expand(400_000, 1), scale=each.scale.expand(400_000, 1)) for each in (first, second)
    ]
    estimates = RD.sampled_kl(*many, noise).double()
    error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - integrated_kl(first, second)) < 4 * error
    assert RD.kl_form(first.bounds, second.bounds) == "sampled"


@pytest.mark.parametrize("trained", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize(("first", "second"), PAIRS.values(), ids=PAIRS.keys())
def test_the_gradient_of_the_estimate_is_that_of_the_integral(
    first: GaussianPolicy, second: GaussianPolicy, trained: int
) -> None:
    """Against central differences of the integral, for the mean and the scale of either policy."""
    pair = [first, second]
    loc, scale = (value.clone().requires_grad_() for value in pair[trained][:2])
    pair[trained] = GaussianPolicy(loc, scale, pair[trained].bounds)
    noise = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(1))
    RD.sampled_kl(*pair, noise).sum().backward()
    for name, gradient in (("loc", loc.grad), ("scale", scale.grad)):
        ends = []
        for step in (1e-3, -1e-3):
            moved = [each._replace(loc=each.loc.detach().double(), scale=each.scale.detach().double()) for each in pair]
            moved[trained] = moved[trained]._replace(**{name: getattr(moved[trained], name) + step})
            ends.append(integrated_kl(*moved))
        assert gradient.item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=0.02, abs=0.01)


def test_the_variance_of_the_estimate_falls_with_the_number_of_samples() -> None:
    first, second = (
        each._replace(loc=each.loc.expand(4000, 1), scale=each.scale.expand(4000, 1))
        for each in PAIRS["tanh-Gaussian, Gaussian"]
    )
    generator = torch.Generator().manual_seed(2)
    few, many = (RD.sampled_kl(first, second, torch.randn(count, 4000, 1, generator=generator)) for count in (4, 64))
    assert few.var() / many.var() == pytest.approx(16.0, rel=0.15)


def test_the_estimate_of_equal_gaussians_has_no_noise_at_all() -> None:
    same = policy([0.3, 1.0], [0.5, 2.0])
    torch.testing.assert_close(RD.sampled_kl(same, same, torch.randn(8, 2)), torch.tensor(0.0), atol=1e-6, rtol=0)


# Forms


def test_form_of_a_kl_follows_who_acts_where() -> None:
    tall = (torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 3.0]))
    assert (
        RD.kl_form(None, None)
        == RD.kl_form(UNIT, UNIT)
        == RD.kl_form(UNIT, tuple(bound.clone() for bound in UNIT))
        == "exact"
    )
    assert RD.kl_form(UNIT, None) == RD.kl_form(UNIT, WIDE) == RD.kl_form(UNIT, tall) == "sampled"
    assert RD.kl_form(None, UNIT) == RD.kl_form(WIDE, UNIT) == RD.kl_form(WIDE, tall) == "infinite"


# Numbers at their limits

SCALES = [1e-6, 1e-3, 1.0, 1e3]


@pytest.mark.parametrize("student_scale", SCALES)
@pytest.mark.parametrize("teacher_scale", SCALES)
def test_values_and_gradients_stay_finite(teacher_scale: float, student_scale: float) -> None:
    """Scales from 1e-6 to 1e3, saturated means, actions at and beyond the bounds, in single precision."""
    loc = torch.tensor([-1000.0, -20.0, 0.0, 20.0, 1000.0], requires_grad=True)
    scale = torch.full((5,), student_scale, requires_grad=True)
    teacher = GaussianPolicy(torch.tensor([1000.0, 20.0, 0.0, 20.0, 1000.0]), torch.full((5,), teacher_scale))
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    edge = torch.tensor([-1.0, 1.0, 1.0, -1.0, 2.0])

    def bounded(bounds: RD.Bounds | None) -> GaussianPolicy:
        return GaussianPolicy(loc, scale, bounds)

    values = [
        RD.gaussian_forward_kl(teacher, bounded(None)),
        RD.gaussian_reverse_kl(teacher, bounded(None)),
        RD.action_nll(edge, bounded(UNIT)),
        RD.action_nll(edge, bounded(None)),
        RD.sampled_kl(bounded(UNIT), teacher, noise),
        RD.sampled_kl(bounded(UNIT), teacher._replace(bounds=WIDE), noise),
        RD.sampled_kl(teacher._replace(bounds=UNIT), bounded(None), noise),
        RD.sampled_kl(teacher._replace(bounds=UNIT), bounded(WIDE), noise),
        RD.base_entropy(bounded(UNIT)),
        RD.action_mse(edge, RD.deterministic_action(bounded(UNIT))),
    ]
    for value in values:
        gradients = torch.autograd.grad(value, [loc, scale], retain_graph=True, allow_unused=True)
        assert all(bool(each.isfinite().all()) for each in (value, *gradients) if each is not None)


def test_half_precision_is_computed_in_single() -> None:
    teacher, student = (
        each._replace(loc=each.loc.half(), scale=each.scale.half()) for each in (policy(300.0, 1.0), policy(0.0, 0.5))
    )
    value = RD.gaussian_forward_kl(teacher, student)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(180000.8068, rel=1e-6)  # (4 - 1 - ln 4 + 360000) / 2


# Bad input


def test_shapes_that_disagree_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"the student's loc must have the shape of the teacher's loc: got \[2\] and \[3\]"
    ):
        RD.gaussian_forward_kl(policy([0.0] * 3, [1.0] * 3), policy([0.0] * 2, [1.0] * 2))
    with pytest.raises(ValueError, match=r"scale must have the shape of loc: got \[1\] and \[2\]"):
        RD.base_entropy(policy([0.0, 0.0], 1.0))
    with pytest.raises(ValueError, match=r"student_action must have the shape of teacher_action: got \[1\] and \[2\]"):
        RD.action_mse(torch.zeros(2), torch.zeros(1))
    with pytest.raises(
        ValueError, match=r"the student's loc must have the shape of teacher_action: got \[1\] and \[2\]"
    ):
        RD.action_nll(torch.zeros(2), policy(0.0, 1.0))
    with pytest.raises(ValueError, match=r"noise must be \[K, \*B, D\] for policies \[\*B, D\]: got \[5\] and \[2\]"):
        RD.sampled_kl(policy([0.0] * 2, [1.0] * 2), policy([0.0] * 2, [1.0] * 2), torch.zeros(5))


def test_the_exact_kl_refuses_policies_of_two_kinds() -> None:
    with pytest.raises(ValueError, match="the exact KL needs policies of one kind: got a Gaussian and a tanh-Gaussian"):
        RD.gaussian_forward_kl(policy(0.0, 1.0), policy(0.0, 1.0, UNIT))
