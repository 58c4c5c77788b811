"""Divergences and losses against independent implementations, over thousands of random cases.

A case is a pair of rows of values: 2 to 18 actions, scales from 1e-3 to 1e6 (some rows around an offset of 1e6), a
tenth of the rows wholly forbidden, temperatures from 1e-3 to 1e3. Expected numbers come from numpy in extended
precision, from :mod:`torch.distributions` and :mod:`torch.nn.functional` in double precision, or from finite
differences.

An error counts relative to ``max(1, scale)`` and must be below 1e-6 in float32 and 1e-10 in float64; that of a gradient
per ``max(1, 1 / student_temperature)`` besides. The scale of a divergence is the row's largest log-probability
of an allowed action, in size and of either network, since rounding it costs that much; that of a distance its value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torchrl.objectives import SoftUpdate

from torchrl_rtpd import functional as RF
from torchrl_rtpd.objectives.discrete import DIVERGENCES, DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss

TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-10}
NUM_GROUPS, ROWS = 48, 250  # 12,000 cases for each divergence and precision


class Group(NamedTuple):
    """Rows that share their number of actions and temperatures."""

    teacher: Tensor  # [ROWS, A]
    student: Tensor
    mask: Tensor
    temperatures: tuple[float, float]


def groups(dtype: torch.dtype, count: int = NUM_GROUPS, seed: int = 0) -> Iterator[Group]:
    for index in range(count):
        generator = np.random.default_rng([seed, index])
        num_actions = int(generator.integers(2, 19))
        values = generator.normal(size=(2, ROWS, num_actions)) * 10 ** generator.uniform(-3, 6, (2, ROWS, 1))
        values += generator.choice([0.0, 0.0, 0.0, 1e6], (2, ROWS, 1))
        teacher, student = torch.as_tensor(values, dtype=dtype).clamp(-1e6, 1e6)
        mask = generator.random((ROWS, num_actions)) < 0.7
        mask[np.arange(ROWS), generator.integers(num_actions, size=ROWS)] = True
        mask[generator.random(ROWS) < 0.1] = False
        mask[generator.random(ROWS) < 0.3] = True
        temperatures = 10 ** generator.uniform(-3, 3, 2)
        yield Group(teacher, student, torch.as_tensor(mask), (float(temperatures[0]), float(temperatures[1])))


def log_softmax(values: np.ndarray, temperature: float, mask: np.ndarray) -> np.ndarray:
    """In extended precision; 0 where forbidden, to be masked again by the caller."""
    values = values.astype(np.longdouble)
    best = np.where(mask, values, -np.inf).max(-1, keepdims=True, initial=-1e300)
    logits = np.where(mask, (values - best) / np.longdouble(temperature), -np.inf)
    total = np.exp(logits).sum(-1, keepdims=True)
    return np.where(mask, logits - np.log(np.where(total > 0, total, 1)), 0)


def policies(group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mask = group.mask.numpy()
    teacher = log_softmax(group.teacher.numpy(), group.temperatures[0], mask)
    return teacher, log_softmax(group.student.numpy(), group.temperatures[1], mask), mask


def expected_values(name: str, group: Group) -> np.ndarray:
    """The divergence of each row, in extended precision."""
    teacher, student, mask = policies(group)
    p, q = np.where(mask, np.exp(teacher), 0), np.where(mask, np.exp(student), 0)
    if name == "forward_kl":
        return (p * (teacher - student)).sum(-1)
    if name == "reverse_kl":
        return (q * (student - teacher)).sum(-1)
    if name == "jensen_shannon":
        middle = np.logaddexp(teacher, student) - np.log(np.longdouble(2))
        return (p * (teacher - middle) + q * (student - middle)).sum(-1) / 2
    if name == "nll":
        greedy = np.where(mask, group.teacher.numpy(), -np.inf).argmax(-1)
        return np.where(mask.any(-1), -student[np.arange(ROWS), greedy], 0)
    gap = np.abs(np.where(mask, group.teacher.numpy().astype(np.longdouble) - group.student.numpy(), 0))
    return (gap**2 if name == "mse" else np.where(gap <= 1, gap**2 / 2, gap - 0.5)).sum(-1)


def expected_gradients(name: str, group: Group) -> np.ndarray:
    """By the student's values: the formulas one finds with pen and paper."""
    teacher, student, mask = policies(group)
    p, q = np.where(mask, np.exp(teacher), 0), np.where(mask, np.exp(student), 0)
    if name in ("mse", "huber"):
        gap = np.where(mask, group.student.numpy().astype(np.longdouble) - group.teacher.numpy(), 0)
        return 2 * gap if name == "mse" else np.clip(gap, -1, 1)
    if name == "forward_kl":
        by_logit = q - p
    elif name == "nll":
        greedy = np.where(mask, group.teacher.numpy(), -np.inf).argmax(-1)
        by_logit = np.where(mask.any(-1, keepdims=True), q - np.eye(mask.shape[-1])[greedy], 0)
    else:
        other = teacher if name == "reverse_kl" else np.logaddexp(teacher, student) - np.log(np.longdouble(2))
        terms = q * (student - other)
        by_logit = terms - q * terms.sum(-1, keepdims=True)
        by_logit = by_logit if name == "reverse_kl" else by_logit / 2
    return by_logit / np.longdouble(group.temperatures[1])


def scales(name: str, group: Group) -> np.ndarray:
    """What an error is counted relative to, ``[ROWS]``."""
    if name in ("mse", "huber"):
        return np.maximum(1, expected_values(name, group))
    return np.maximum(1, np.maximum(*(np.abs(log_probs).max(-1) for log_probs in policies(group)[:2])))


def divergence(name: str, teacher: Tensor, student: Tensor, mask: Tensor | None, temperatures: Any) -> Tensor:
    if name in ("mse", "huber"):
        return {"mse": RF.q_mse, "huber": RF.q_huber}[name](teacher, student, mask)
    student_log_probs = RF.policy_log_probs(student, temperatures[1], mask)
    if name == "nll":
        return RF.greedy_nll(teacher, student_log_probs)
    return getattr(RF, name)(RF.policy_log_probs(teacher, temperatures[0], mask), student_log_probs)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", DIVERGENCES)
class TestDivergences:
    """12,000 cases each."""

    def test_values_and_gradients_equal_the_oracles(self, name: str, dtype: torch.dtype) -> None:
        """All of them finite, and zero with zero gradient where nothing is allowed."""
        worst = worst_gradient = 0.0
        for group in groups(dtype):
            student = group.student.clone().requires_grad_()
            found = divergence(name, group.teacher, student, group.mask, group.temperatures)
            found.sum().backward()
            assert found.isfinite().all()
            assert student.grad.isfinite().all()
            closed = ~group.mask.any(-1)
            assert not found[closed].any()
            assert not student.grad[~group.mask].any()
            scale = scales(name, group)
            error = np.abs(found.detach().numpy() - expected_values(name, group)) / scale
            gradient_error = np.abs(student.grad.numpy() - expected_gradients(name, group)) / scale[:, None]
            worst = max(worst, error.max())
            worst_gradient = max(worst_gradient, gradient_error.max() * min(1.0, group.temperatures[1]))
        assert worst < TOLERANCES[dtype]
        assert worst_gradient < TOLERANCES[dtype]

    def test_divergence_of_equals_is_zero(self, name: str, dtype: torch.dtype) -> None:
        """And so is its gradient, to rounding; the NLL alone is then that of the greedy action."""
        if name == "nll":
            return  # a likelihood, not a divergence
        for group in groups(dtype):
            student = group.teacher.clone().requires_grad_()
            found = divergence(name, group.teacher, student, group.mask, group.temperatures[:1] * 2)
            found.sum().backward()
            scale = torch.as_tensor(scales(name, group._replace(student=group.teacher)).astype(np.float64))
            assert (found.abs() <= TOLERANCES[dtype] * scale).all()
            bound = TOLERANCES[dtype] * scale.unsqueeze(-1) * max(1.0, 1 / group.temperatures[0])
            assert (student.grad.abs() <= bound).all()
            if name in ("forward_kl", "mse", "huber"):
                assert not found.any()


class TestPytorch:
    """Against PyTorch's own distributions and losses, which know no masks and no underflow."""

    def test_torch_distributions_agree_where_they_are_finite(self) -> None:
        """Both KL directions and the entropy."""
        judged = 0
        for group in groups(torch.float64):
            policies = [
                Categorical(logits=(values - values.amax(-1, keepdim=True)) / temperature)
                for values, temperature in zip(group[:2], group.temperatures, strict=True)
            ]
            scale = torch.as_tensor(
                scales("forward_kl", group._replace(mask=torch.ones_like(group.mask))).astype(float)
            )
            teacher, student = (
                RF.policy_log_probs(values, temperature)
                for values, temperature in zip(group[:2], group.temperatures, strict=True)
            )
            for found, expected in (
                (RF.forward_kl(teacher, student), kl_divergence(*policies)),
                (RF.reverse_kl(teacher, student), kl_divergence(*policies[::-1])),
                (RF.entropy(teacher), policies[0].entropy()),
            ):
                finite = expected.isfinite()
                judged += int(finite.sum())
                # Their logits become probabilities and back, clamped at the smallest normal number.
                assert ((found - expected).abs()[finite] <= 1e-10 * scale[finite]).all()
        assert judged > 15_000

    def test_functional_losses_agree(self) -> None:
        """kl_div, cross_entropy, mse_loss and huber_loss, unmasked."""
        for group in groups(torch.float64):
            teacher = RF.policy_log_probs(group.teacher, group.temperatures[0])
            student = RF.policy_log_probs(group.student, group.temperatures[1])
            logits = (group.student - group.student.amax(-1, keepdim=True)) / group.temperatures[1]
            pairs = {
                "forward_kl": F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1),
                "nll": F.cross_entropy(logits, group.teacher.argmax(-1), reduction="none"),
                "mse": F.mse_loss(group.student, group.teacher, reduction="none").sum(-1),
                "huber": F.huber_loss(group.student, group.teacher, reduction="none").sum(-1),
            }
            for name, expected in pairs.items():
                found = divergence(name, group.teacher, group.student, None, group.temperatures)
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("name", DIVERGENCES)
    def test_gradients_equal_finite_differences(self, name: str) -> None:
        """Central ones in float64, at temperatures and scales where they are sharp."""
        generator = np.random.default_rng(0)
        teacher, start = torch.as_tensor(generator.normal(size=(2, 300, 7)))
        mask = torch.as_tensor(generator.random((300, 7)) < 0.7)
        student = start.clone().requires_grad_()
        divergence(name, teacher, student, mask, (0.7, 0.5)).sum().backward()
        for action in range(7):
            step = torch.zeros(7, dtype=torch.float64)
            step[action] = 1e-5
            above, below = (divergence(name, teacher, start + sign * step, mask, (0.7, 0.5)) for sign in (1, -1))
            torch.testing.assert_close(student.grad[:, action], (above - below) / 2e-5, rtol=1e-7, atol=1e-7)


class Shift(nn.Module):
    """A student whose outputs are its inputs, exactly, and yet trainable."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(num_actions))

    def forward(self, observation: Tensor) -> Tensor:
        return observation + self.shift


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
class TestLosses:
    """The loss modules, with masks, importance weights and padding; 12,000 cases each."""

    @pytest.mark.parametrize("name", DIVERGENCES)
    def test_distillation_loss_equals_the_oracle(self, name: str, reduction: str, dtype: torch.dtype) -> None:
        """Weights enter the mean as sum(w l) / sum(w), rows that the loss mask excludes not at all."""
        for index, group in enumerate(groups(dtype)):
            generator = np.random.default_rng(index)
            weights = torch.as_tensor(generator.uniform(0.01, 1.0, ROWS), dtype=dtype)
            valid = torch.as_tensor(generator.random(ROWS) < 0.8)
            student = TensorDictModule(Shift(group.mask.shape[-1]), ["observation"], ["action_value"])
            loss = DistillationLoss(
                student,
                divergence=name,
                teacher_temperature=group.temperatures[0],
                student_temperature=group.temperatures[1],
                reduction=reduction,
            ).to(dtype)
            batch = {
                "observation": group.student,
                "teacher": {"action_value": group.teacher},
                "action_mask": group.mask,
            }
            batch |= {"priority_weight": weights, "collector": {"mask": valid.unsqueeze(-1)}}
            losses = loss(TensorDict(batch, [ROWS]))
            used = group._replace(temperatures=(loss.teacher_temperature.item(), loss.student_temperature.item()))
            per_row, scale = expected_values(name, used), scales(name, used)
            weight = np.where(valid.numpy(), weights.numpy().astype(np.longdouble), 0)
            terms, sizes = per_row * weight, scale * weight
            if reduction == "mean":
                terms, sizes = terms.sum() / weight.sum(), sizes.sum() / weight.sum()
            elif reduction == "sum":
                terms, sizes = terms.sum(), sizes.sum()
            error = np.abs(losses["loss_distill"].detach().numpy() - terms)
            assert (error <= TOLERANCES[dtype] * np.maximum(1, sizes)).all()
            assert all(value.isfinite().all() for value in losses.values())
            losses["loss_distill"].sum().backward()
            assert student.module.shift.grad.isfinite().all()

    def test_student_dqn_loss_equals_the_oracle(self, reduction: str, dtype: torch.dtype) -> None:
        """Eq. 5 with n-step returns and masks, row by row."""
        for index, group in enumerate(groups(dtype, count=4, seed=1)):
            generator = np.random.default_rng(index)
            num_actions, mask = group.mask.shape[-1], group.mask.numpy()
            action, steps = generator.integers(num_actions, size=ROWS), generator.integers(1, 6, ROWS)
            over = generator.random(ROWS) < 0.3
            reward = torch.as_tensor(generator.normal(size=(ROWS, 1)), dtype=dtype)
            student = TensorDictModule(Shift(num_actions), ["observation"], ["action_value"])
            loss = StudentDQNLoss(student, reduction=reduction, loss_function="l1").to(dtype)
            SoftUpdate(loss, tau=0.5)
            following = {"observation": group.student.flip(0), "teacher": {"action_value": group.teacher}}
            following |= {"reward": reward, "action_mask": group.mask}
            following |= {key: torch.as_tensor(over).unsqueeze(-1) for key in ("done", "terminated")}
            batch = {"observation": group.student, "teacher": {"action_value": group.teacher}, "next": following}
            batch |= {"action": torch.as_tensor(action), "steps_to_next_obs": torch.as_tensor(steps).unsqueeze(-1)}
            found = loss(TensorDict(batch, [ROWS]))["loss_td"]
            errors, gamma = [], loss.value_estimator.gamma.item()
            for row in range(ROWS):
                best = max(
                    (a for a in range(num_actions) if mask[row, a]), key=lambda a: group.teacher[row, a], default=None
                )
                value = 0.0 if best is None else group.student[ROWS - 1 - row, best].item()
                target = reward[row].item() + gamma ** int(steps[row]) * value * (not over[row])
                errors.append(abs(group.student[row, action[row]].item() - target))
            expected = {"none": np.array(errors), "mean": math.fsum(errors) / ROWS, "sum": math.fsum(errors)}[reduction]
            size = group.student.abs().max().item() * (ROWS if reduction == "sum" else 1)
            assert (np.abs(found.detach().numpy() - expected) <= TOLERANCES[dtype] * max(1.0, size)).all()
