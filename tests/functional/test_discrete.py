"""What the divergences and targets are worth, by hand and by PyTorch's own implementations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from torchrl_rtpd.functional.discrete import (
    entropy,
    forward_kl,
    greedy_agreement,
    greedy_nll,
    jensen_shannon,
    policy_log_probs,
    q_huber,
    q_mse,
    reverse_kl,
    teacher_regret,
    value_spread,
)
from torchrl_rtpd.functional.returns import imitation_value

Pairwise = Callable[..., Tensor]  # teacher, student and, optionally, a mask
LN2, LN3 = math.log(2.0), math.log(3.0)

# Every function of two networks, as a function of their action values and a mask.
PAIRWISE: dict[str, Pairwise] = {
    "forward_kl": lambda t, s, mask: forward_kl(policy_log_probs(t, 0.7, mask), policy_log_probs(s, 1.3, mask)),
    "reverse_kl": lambda t, s, mask: reverse_kl(policy_log_probs(t, 0.7, mask), policy_log_probs(s, 1.3, mask)),
    "jensen_shannon": lambda t, s, mask: jensen_shannon(policy_log_probs(t, 0.7, mask), policy_log_probs(s, 1.3, mask)),
    "q_mse": q_mse,
    "q_huber": q_huber,
    "greedy_nll": lambda t, s, mask: greedy_nll(t, policy_log_probs(s, 1.3, mask)),
    "student_entropy": lambda t, s, mask: entropy(policy_log_probs(s, 1.3, mask)),
    "greedy_agreement": greedy_agreement,
    "imitation_value": imitation_value,
    "teacher_regret": teacher_regret,
    "value_spread": lambda t, s, mask: value_spread(t, mask),
}
DIFFERENTIABLE = [name for name in PAIRWISE if name not in ("greedy_agreement", "teacher_regret", "value_spread")]


def log(*probs: float) -> Tensor:
    return torch.tensor(probs).log()


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_mask(*shape: int, seed: int = 0) -> Tensor:
    """About two thirds True, at least one in each row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(*shape, generator=generator) < 2 / 3
    mask[..., 0] |= ~mask.any(-1)
    return mask


class TestByHand:
    """Numbers a reader can redo."""

    @pytest.mark.parametrize(
        ("q_values", "temperature", "probs"),
        [
            ([0.0, LN3], 1.0, [0.25, 0.75]),
            ([0.0, LN3], 0.5, [0.1, 0.9]),  # 3 ** 2 = 9 to 1
            ([0.0, LN3], 1e6, [0.5, 0.5]),
            ([0.0, LN3], 1e-6, [0.0, 1.0]),
            ([5.0, 5.0, 5.0, 5.0], 0.01, [0.25, 0.25, 0.25, 0.25]),
            ([1e6, 1e6 + 1.0], 1e-3, [0.0, 1.0]),
        ],
    )
    def test_temperature_sharpens_below_one_and_flattens_above(
        self, q_values: list[float], temperature: float, probs: list[float]
    ) -> None:
        """Ln 3 apart means odds of 3 ** (1 / temperature)."""
        found = policy_log_probs(torch.tensor(q_values), temperature).exp()
        torch.testing.assert_close(found, torch.tensor(probs), atol=1e-6, rtol=0.0)

    def test_mask_takes_the_forbidden_action_out_of_the_softmax(self) -> None:
        """The highest value is forbidden; the other two share the probability as if it were not there."""
        found = policy_log_probs(torch.tensor([0.0, LN3, 50.0]), 1.0, torch.tensor([True, True, False]))
        torch.testing.assert_close(found, torch.tensor([math.log(0.25), math.log(0.75), -math.inf]))

    def test_temperature_may_be_a_scalar_tensor(self) -> None:
        """As the buffers of the losses are."""
        found = policy_log_probs(torch.tensor([0.0, LN3]), torch.tensor(0.5)).exp()
        torch.testing.assert_close(found, torch.tensor([0.1, 0.9]))

    @pytest.mark.parametrize(
        ("divergence", "teacher", "student", "nats"),
        [
            (forward_kl, [0.5, 0.5], [0.25, 0.75], 0.5 * LN2 + 0.5 * math.log(2 / 3)),
            (forward_kl, [0.5, 0.5], [0.25, 0.75], 0.143841),
            (forward_kl, [0.9, 0.1], [0.5, 0.5], 0.368064),  # 0.9 ln 1.8 + 0.1 ln 0.2
            (forward_kl, [1.0, 0.0], [0.25, 0.75], 1.386294),  # ln 4
            (forward_kl, [0.2, 0.3, 0.5], [0.4, 0.4, 0.2], 0.233212),  # 0.2 ln 0.5 + 0.3 ln 0.75 + 0.5 ln 2.5
            (reverse_kl, [0.5, 0.5], [0.25, 0.75], 0.130812),  # 0.25 ln 0.5 + 0.75 ln 1.5
            (reverse_kl, [0.9, 0.1], [0.5, 0.5], 0.510826),  # 0.5 ln (5 / 9) + 0.5 ln 5
            (reverse_kl, [0.25, 0.75], [1.0, 0.0], 1.386294),
            (jensen_shannon, [0.9, 0.1], [0.1, 0.9], 0.368064),  # the middle is even: 0.9 ln 1.8 + 0.1 ln 0.2
            (jensen_shannon, [1.0, 0.0], [0.0, 1.0], LN2),  # disjoint: the upper bound
        ],
    )
    def test_divergences(
        self, divergence: Callable[[Tensor, Tensor], Tensor], teacher: list[float], student: list[float], nats: float
    ) -> None:
        """Summed over actions, in nats."""
        assert divergence(log(*teacher), log(*student)).item() == pytest.approx(nats, abs=2e-6)

    @pytest.mark.parametrize(
        ("distance", "teacher", "student", "mask", "expected"),
        [
            (q_mse, [1.0, 2.0], [0.0, 4.0], None, 5.0),  # 1 + 4
            (q_mse, [1.0, 2.0], [0.0, 4.0], [True, False], 1.0),
            (q_huber, [1.0, 2.0], [0.0, 4.0], None, 2.0),  # 1 / 2 + (2 - 1 / 2)
            (q_huber, [0.0, 0.0], [0.5, -3.0], None, 2.625),  # 0.25 / 2 + (3 - 1 / 2)
            (q_huber, [1.0, 2.0], [0.0, 4.0], [True, False], 0.5),
        ],
    )
    def test_distances(
        self, distance: Pairwise, teacher: list[float], student: list[float], mask: list[bool] | None, expected: float
    ) -> None:
        """Summed over the allowed actions."""
        allowed = None if mask is None else torch.tensor(mask)
        assert distance(torch.tensor(teacher), torch.tensor(student), allowed).item() == pytest.approx(expected)

    def test_greedy_nll_is_the_students_surprise_at_the_teachers_choice(self) -> None:
        """The teacher takes the second action, which the student gives 3 / 4: ln (4 / 3)."""
        assert greedy_nll(torch.tensor([1.0, 2.0]), log(0.25, 0.75)).item() == pytest.approx(0.287682, abs=1e-6)

    def test_greedy_nll_passes_over_an_action_the_student_may_not_take(self) -> None:
        """The teacher's best action is forbidden; its second best is the first, given 1 / 4."""
        found = greedy_nll(torch.tensor([1.0, 0.0, 9.0]), log(0.25, 0.75, 0.0))
        assert found.item() == pytest.approx(1.386294, abs=1e-6)

    def test_greedy_agreement_compares_the_best_allowed_actions(self) -> None:
        """Without a mask the rows agree on actions 1 and disagree; forbidding action 1 turns both round."""
        teacher = torch.tensor([[1.0, 3.0, 2.0], [1.0, 2.0, 0.0]])
        student = torch.tensor([[2.0, 3.0, 1.0], [9.0, 0.0, 1.0]])
        mask = torch.tensor([[True, False, True], [True, False, True]])
        assert greedy_agreement(teacher, student).tolist() == [1.0, 0.0]
        assert greedy_agreement(teacher, student, mask).tolist() == [0.0, 1.0]

    @pytest.mark.parametrize(
        ("probs", "nats"),
        [([0.25, 0.25, 0.25, 0.25], 2 * LN2), ([1.0, 0.0], 0.0), ([0.25, 0.75], 0.562335), ([0.5, 0.5, 0.0], LN2)],
    )
    def test_entropy(self, probs: list[float], nats: float) -> None:
        """Ln of the number of actions when uniform, 0 when certain."""
        assert entropy(log(*probs)).item() == pytest.approx(nats, abs=1e-6)

    def test_imitation_value_is_the_students_value_of_the_teachers_choice(self) -> None:
        """The teacher prefers action 1, worth 3 to the student; forbidden, it falls back on action 2, worth 4."""
        teacher, student = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([9.0, 3.0, 4.0])
        assert imitation_value(teacher, student).item() == 3.0
        assert imitation_value(teacher, student, torch.tensor([True, False, True])).item() == 4.0

    def test_value_spread_is_the_population_deviation_over_allowed_actions(self) -> None:
        """1, 3, 3, 1 lie 1 from their mean, and 1, 3 do without the huge value a mask forbids."""
        assert value_spread(torch.tensor([1.0, 3.0, 3.0, 1.0])).item() == 1.0
        found = value_spread(torch.tensor([1.0, 3.0, -3e38]), torch.tensor([True, True, False]))
        assert found.item() == 1.0


class TestLaws:
    """Zero, direction, bounds."""

    @pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon", "q_mse", "q_huber"])
    @pytest.mark.parametrize("masked", [False, True])
    def test_value_and_gradient_are_zero_at_equality(self, name: str, masked: bool) -> None:
        """A divergence that is not 0 here is a cross-entropy, or took probabilities for their logarithms."""
        values = randn(50, 6)
        mask = random_mask(50, 6) if masked else None
        student = values.clone().requires_grad_()
        if name.startswith("q_"):
            found = PAIRWISE[name](values, student, mask)
        else:
            divergence = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jensen_shannon": jensen_shannon}[name]
            found = divergence(policy_log_probs(values, 0.3, mask), policy_log_probs(student, 0.3, mask))
        found.sum().backward()
        torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-14, rtol=0.0)
        torch.testing.assert_close(student.grad, torch.zeros_like(values), atol=1e-14, rtol=0.0)

    def test_forward_kl_blows_up_where_the_student_has_nothing_and_the_teacher_has(self) -> None:
        """A student certain to 1e-9 of an even teacher: 0.5 ln (1 / 4e-9) against ln 2."""
        teacher, student = log(0.5, 0.5).double(), torch.tensor([1.0 - 1e-9, 1e-9], dtype=torch.float64).log()
        assert forward_kl(teacher, student).item() == pytest.approx(0.5 * math.log(0.25e9), rel=1e-6)
        assert reverse_kl(teacher, student).item() == pytest.approx(LN2, rel=1e-6)

    def test_reverse_kl_blows_up_where_the_teacher_has_nothing_and_the_student_has(self) -> None:
        """The same pair with the roles exchanged."""
        teacher, student = torch.tensor([1.0 - 1e-9, 1e-9], dtype=torch.float64).log(), log(0.5, 0.5).double()
        assert forward_kl(teacher, student).item() == pytest.approx(LN2, rel=1e-6)
        assert reverse_kl(teacher, student).item() == pytest.approx(0.5 * math.log(0.25e9), rel=1e-6)

    def test_jensen_shannon_is_symmetric_and_bounded(self) -> None:
        """Between 0 and ln 2, whichever comes first, also for policies as good as disjoint."""
        teacher, student = policy_log_probs(randn(500, 6), 0.01), policy_log_probs(randn(500, 6, seed=1), 0.01)
        found = jensen_shannon(teacher, student)
        torch.testing.assert_close(found, jensen_shannon(student, teacher))
        assert found.min() >= -1e-12
        assert found.max() <= LN2 + 1e-12

    def test_divergences_are_never_negative_beyond_rounding(self) -> None:
        """Gibbs' inequality, in double precision."""
        teacher, student = policy_log_probs(randn(500, 6), 0.1), policy_log_probs(randn(500, 6, seed=1), 10.0)
        assert forward_kl(teacher, student).min() > 0
        assert reverse_kl(teacher, student).min() > 0


class TestGradients:
    """Against finite differences and against formulas worked out on paper."""

    @pytest.mark.parametrize("name", DIFFERENTIABLE)
    @pytest.mark.parametrize("masked", [False, True])
    def test_gradient_equals_finite_differences(self, name: str, masked: bool) -> None:
        """With respect to the student's action values, in double precision."""
        teacher, student = randn(4, 5), randn(4, 5, seed=1).requires_grad_()
        mask = random_mask(4, 5) if masked else None
        assert torch.autograd.gradcheck(lambda values: PAIRWISE[name](teacher, values, mask), student)

    @pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon", "q_mse", "q_huber"])
    def test_nothing_is_detached(self, name: str) -> None:
        """The gradient reaches the teacher's side too; keeping it out is the caller's part."""
        teacher, student = randn(4, 5).requires_grad_(), randn(4, 5, seed=1)
        assert torch.autograd.gradcheck(lambda values: PAIRWISE[name](values, student, None), teacher)

    @pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
    def test_forward_kl_pulls_by_the_difference_of_probabilities(self, temperature: float) -> None:
        """Its gradient is (p_S - p_T) / temperature: -1 / 4 and 1 / 4 for an even teacher and odds of 1 to 3."""
        student = torch.tensor([0.0, temperature * LN3]).requires_grad_()
        forward_kl(log(0.5, 0.5), policy_log_probs(student, temperature)).backward()
        torch.testing.assert_close(student.grad, torch.tensor([-0.25, 0.25]) / temperature)

    def test_reverse_kl_under_a_uniform_teacher_by_hand(self) -> None:
        """p_j (ln p_j + H) with p = (1 / 4, 3 / 4) and H = 0.562335; Eq. 7 of the paper gives another number."""
        student = torch.tensor([0.0, LN3]).requires_grad_()
        reverse_kl(log(0.5, 0.5), policy_log_probs(student, 1.0)).backward()
        torch.testing.assert_close(student.grad, torch.tensor([-0.205990, 0.205990]), atol=1e-6, rtol=0.0)

    @pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
    def test_reverse_kl_under_a_uniform_teacher_follows_the_true_gradient(self, temperature: float) -> None:
        """(1 / temperature) p_j (ln p_j + H(p_S)) for students at random."""
        student = randn(20, 6).requires_grad_()
        uniform = torch.full((20, 6), -math.log(6.0), dtype=torch.float64)
        reverse_kl(uniform, policy_log_probs(student, temperature)).sum().backward()
        values = student.detach().numpy() / temperature
        probs = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
        student_entropy = -(probs * np.log(probs)).sum(-1, keepdims=True)
        expected = probs * (np.log(probs) + student_entropy) / temperature
        np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-9, atol=1e-12)

    def test_reverse_kl_is_flat_at_a_uniform_student_under_a_uniform_teacher(self) -> None:
        """Where Eq. 7 of the paper is not."""
        student = torch.zeros(6, dtype=torch.float64).requires_grad_()
        uniform = torch.full((6,), -math.log(6.0), dtype=torch.float64)
        reverse_kl(uniform, policy_log_probs(student, 0.5)).backward()
        torch.testing.assert_close(student.grad, torch.zeros(6, dtype=torch.float64), atol=1e-14, rtol=0.0)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("masked", [False, True])
def test_batch_shape_does_not_matter(name: str, masked: bool) -> None:
    """A batch of 2 by 3, one of 6 and six single rows give the same six numbers."""
    teacher, student = randn(2, 3, 5), randn(2, 3, 5, seed=1)
    mask = random_mask(2, 3, 5) if masked else None
    found = PAIRWISE[name](teacher, student, mask)
    assert found.shape == (2, 3)
    flat_mask = None if mask is None else mask.reshape(6, 5)
    flat = PAIRWISE[name](teacher.reshape(6, 5), student.reshape(6, 5), flat_mask)
    torch.testing.assert_close(flat, found.reshape(6))
    for row in range(6):
        row_mask = None if flat_mask is None else flat_mask[row]
        single = PAIRWISE[name](teacher.reshape(6, 5)[row], student.reshape(6, 5)[row], row_mask)
        torch.testing.assert_close(single, found.reshape(6)[row])


class TestMasks:
    """Forbidden actions might as well not exist."""

    @pytest.mark.parametrize("name", PAIRWISE)
    def test_masked_result_is_that_of_the_allowed_actions_alone(self, name: str) -> None:
        """Taking the column out by hand gives the same number."""
        teacher, student = randn(20, 5), randn(20, 5, seed=1)
        mask = torch.tensor([True, True, False, True, True]).expand(20, 5)
        allowed = [0, 1, 3, 4]
        expected = PAIRWISE[name](teacher[:, allowed], student[:, allowed], None)
        torch.testing.assert_close(PAIRWISE[name](teacher, student, mask), expected)

    @pytest.mark.parametrize("name", PAIRWISE)
    @pytest.mark.parametrize("garbage", [math.inf, -math.inf, math.nan, torch.finfo(torch.float32).min, 1e30])
    def test_what_a_forbidden_action_is_worth_changes_nothing(self, name: str, garbage: float) -> None:
        """Neither value nor gradient, even where a network marks it with infinity."""
        mask = random_mask(20, 5)
        results = []
        for filling in (0.0, garbage):
            teacher = torch.where(mask, randn(20, 5), filling).float()
            student = torch.where(mask, randn(20, 5, seed=1), filling).float().requires_grad_()
            found = PAIRWISE[name](teacher, student, mask)
            if name in DIFFERENTIABLE:
                found.sum().backward()
            results.append((found.detach(), student.grad))
        torch.testing.assert_close(results[1][0], results[0][0])
        if name in DIFFERENTIABLE:
            torch.testing.assert_close(results[1][1], results[0][1])
            assert not results[1][1][~mask].any()

    @pytest.mark.parametrize("name", PAIRWISE)
    def test_row_without_an_allowed_action_gives_zero_and_no_gradient(self, name: str) -> None:
        """And leaves the row beside it alone."""
        teacher, student = randn(2, 5), randn(2, 5, seed=1).requires_grad_()
        mask = torch.tensor([[False] * 5, [True] * 5])
        found = PAIRWISE[name](teacher, student, mask)
        assert found[0].item() == 0.0
        torch.testing.assert_close(found[1], PAIRWISE[name](teacher[1], student[1], None))
        if name in DIFFERENTIABLE:
            found.sum().backward()
            assert not student.grad[0].any()
            assert student.grad[1].any()

    def test_single_allowed_action_is_certain(self) -> None:
        """Its probability is 1, and neither divergence nor spread is left."""
        mask = torch.tensor([False, True, False])
        log_probs = policy_log_probs(torch.tensor([3.0, -9.0, 3.0]), 0.01, mask)
        assert log_probs.tolist() == [-math.inf, 0.0, -math.inf]
        assert forward_kl(log_probs, log_probs).item() == 0.0
        assert value_spread(torch.tensor([3.0, -9.0, 3.0]), mask).item() == 0.0

    @pytest.mark.parametrize("name", DIFFERENTIABLE)
    def test_no_nan_hides_inside_the_backward_pass(self, name: str) -> None:
        """PyTorch's anomaly detection, which users turn on to find their own, stays silent for closed rows."""
        mask = torch.tensor([[False] * 5, [True] * 5, [True, False, True, False, True]])
        student = randn(3, 5, seed=1).requires_grad_()
        with torch.autograd.set_detect_anomaly(True):
            PAIRWISE[name](randn(3, 5), student, mask).sum().backward()
        assert student.grad.isfinite().all()


def softened(values: list[float], temperature: float, mask: list[bool]) -> list[float]:
    """Log-probabilities one by one, the highest value taken out first; None of them where forbidden."""
    scaled = [value / temperature for value in values]
    highest = max(value for value, allowed in zip(scaled, mask, strict=True) if allowed)
    total = math.fsum(math.exp(value - highest) for value, allowed in zip(scaled, mask, strict=True) if allowed)
    return [value - highest - math.log(total) for value in scaled]


def looped(name: str, teacher: list[float], student: list[float], mask: list[bool]) -> float:
    """The divergence of two lists of log-probabilities, term by term."""
    if name == "reverse_kl":
        return looped("forward_kl", student, teacher, mask)
    if name == "jensen_shannon":
        middle = [float(np.logaddexp(t, s)) - LN2 for t, s in zip(teacher, student, strict=True)]
        return (looped("forward_kl", teacher, middle, mask) + looped("forward_kl", student, middle, mask)) / 2
    terms = [math.exp(t) * (t - s) for t, s, allowed in zip(teacher, student, mask, strict=True) if allowed]
    return math.fsum(terms)


class TestOracles:
    """Against implementations that are not ours, over temperatures of 1e-3 to 1e3 and values up to 1e6."""

    def cases(self, count: int) -> list[tuple[Tensor, Tensor, Tensor, float, float]]:
        """Teacher, student ``[1, A]``, mask and both temperatures; scales and temperatures log-uniform."""
        generator = np.random.default_rng(0)
        cases = []
        for seed in range(count):
            num_actions = int(generator.integers(2, 19))
            scales, temperatures = 10 ** generator.uniform(-3, 6, 2), 10 ** generator.uniform(-3, 3, 2)
            teacher = torch.as_tensor(generator.normal(size=(1, num_actions)) * scales[0])
            student = torch.as_tensor(generator.normal(size=(1, num_actions)) * scales[1])
            cases.append((teacher, student, random_mask(1, num_actions, seed=seed), *map(float, temperatures)))
        return cases

    @pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
    def test_divergences_equal_a_loop_over_allowed_actions(
        self, name: str, dtype: torch.dtype, tolerance: float
    ) -> None:
        """Relative to the largest logit, the precision to which logits of that size are known."""
        divergence = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jensen_shannon": jensen_shannon}[name]
        for teacher, student, mask, teacher_temperature, student_temperature in self.cases(300):
            teacher, student = teacher.to(dtype), student.to(dtype)
            found = divergence(
                policy_log_probs(teacher, teacher_temperature, mask),
                policy_log_probs(student, student_temperature, mask),
            )
            allowed = mask[0].tolist()
            expected = looped(
                name,
                softened(teacher[0].tolist(), teacher_temperature, allowed),
                softened(student[0].tolist(), student_temperature, allowed),
                allowed,
            )
            logit = max(teacher.abs().max() / teacher_temperature, student.abs().max() / student_temperature).item()
            assert found.item() == pytest.approx(expected, rel=tolerance, abs=tolerance * max(1.0, logit))

    def test_divergences_equal_those_of_torch_distributions(self) -> None:
        """Given the same logits; where a probability underflows it says infinity, and only the loop above can judge."""
        judged = 0
        for teacher_q, student_q, _, teacher_temperature, student_temperature in self.cases(300):
            teacher = Categorical(logits=teacher_q / teacher_temperature)
            student = Categorical(logits=student_q / student_temperature)
            log_probs = (
                policy_log_probs(teacher_q, teacher_temperature),
                policy_log_probs(student_q, student_temperature),
            )
            for divergence, expected in (
                (forward_kl, kl_divergence(teacher, student)),
                (reverse_kl, kl_divergence(student, teacher)),
            ):
                if torch.isfinite(expected):
                    judged += 1
                    torch.testing.assert_close(divergence(*log_probs), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(entropy(log_probs[0]), teacher.entropy(), rtol=1e-9, atol=1e-9)
        assert judged > 300

    def test_forward_kl_equals_kl_div_summed_over_actions(self) -> None:
        """With log-probabilities on both sides; its own mean would divide by the actions, too."""
        teacher, student = policy_log_probs(randn(100, 6), 0.1), policy_log_probs(randn(100, 6, seed=1), 1.0)
        terms = F.kl_div(student, teacher, log_target=True, reduction="none")
        torch.testing.assert_close(forward_kl(teacher, student), terms.sum(-1))
        torch.testing.assert_close(
            forward_kl(teacher, student).mean(), F.kl_div(student, teacher, log_target=True, reduction="batchmean")
        )

    def test_greedy_nll_equals_cross_entropy_with_the_greedy_action(self) -> None:
        """PyTorch's loss takes the student's logits and the teacher's choice."""
        teacher, student = randn(100, 6), randn(100, 6, seed=1)
        expected = F.cross_entropy(student / 0.5, teacher.argmax(-1), reduction="none")
        torch.testing.assert_close(greedy_nll(teacher, policy_log_probs(student, 0.5)), expected)

    def test_distances_equal_a_loop_over_allowed_actions(self) -> None:
        """The Huber distance is quadratic within 1 and linear beyond."""
        teacher, student, mask = 2 * randn(50, 6), 2 * randn(50, 6, seed=1), random_mask(50, 6)
        for row in range(50):
            gaps = [abs(a - b) for a, b in zip(teacher[row].tolist(), student[row].tolist(), strict=True)]
            gaps = [gap for gap, allowed in zip(gaps, mask[row].tolist(), strict=True) if allowed]
            squares = math.fsum(gap**2 for gap in gaps)
            hubers = math.fsum(gap**2 / 2 if gap <= 1 else gap - 0.5 for gap in gaps)
            assert q_mse(teacher[row], student[row], mask[row]).item() == pytest.approx(squares)
            assert q_huber(teacher[row], student[row], mask[row]).item() == pytest.approx(hubers)

    def test_value_spread_equals_numpys_deviation_of_the_allowed_values(self) -> None:
        """Row by row."""
        values, mask = randn(50, 6), random_mask(50, 6)
        expected = [np.std(values[row][mask[row]].numpy()) for row in range(50)]
        np.testing.assert_allclose(value_spread(values, mask).numpy(), expected, rtol=1e-9, atol=1e-12)


class TestHalfPrecision:
    """Mixed-precision training hands over half-precision action values."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_values_over_a_small_temperature_do_not_overflow(self, dtype: torch.dtype) -> None:
        """1000 / 0.01 is more than float16 holds; the gap of 8 leaves the first action nothing."""
        student = torch.tensor([1000.0, 1008.0], dtype=dtype).requires_grad_()
        found = forward_kl(log(0.5, 0.5), policy_log_probs(student, 0.01))
        found.backward()
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(400.0 - LN2)  # 0.5 * 800 - ln 2
        assert student.grad.tolist() == [-50.0, 50.0]  # (p_S - p_T) / 0.01

    @pytest.mark.parametrize("distance", [q_mse, q_huber])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_stored_teacher_values_may_have_another_precision(self, distance: Pairwise, dtype: torch.dtype) -> None:
        """Distances of 2 and 512, whose square leaves float16."""
        teacher, student = torch.tensor([0.0, 512.0], dtype=dtype), torch.tensor([2.0, 0.0])
        expected = 4.0 + 512.0**2 if distance is q_mse else 1.5 + 511.5
        assert distance(teacher, student).item() == expected

    def test_agreement_can_be_summed(self) -> None:
        """Bfloat16 cannot count beyond 256."""
        values = torch.zeros(3, 2, dtype=torch.bfloat16)
        assert greedy_agreement(values, values).dtype == torch.float32
