"""What distillation between continuous policies is worth by hand and by torch."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from continuous_parts import (
    ACTOR_KEYS,
    PER_STATE,
    STUDENT,
    TEACHER,
    actor,
    deterministic,
    observations,
    reference_kl,
    table,
    two_states,
)
from tensordict import TensorDict
from tensordict.nn import InteractionType
from torch import Tensor
from torch.distributions import Normal
from torchrl.modules import Delta, IndependentNormal, ProbabilisticActor, TanhDelta, TanhNormal

from torchrl_rtpd.objectives.continuous import CONTINUOUS_DIVERGENCES, ContinuousDistillationLoss

# Values


@pytest.mark.parametrize("divergence", CONTINUOUS_DIVERGENCES)
def test_values_by_hand(divergence: str) -> None:
    loss = ContinuousDistillationLoss(table(STUDENT), table(TEACHER), divergence=divergence, reduction="none")
    out = loss(two_states().exclude("teacher"))
    torch.testing.assert_close(out["loss_distill"], torch.tensor(PER_STATE[divergence]))
    torch.testing.assert_close(out["kl_to_teacher"], torch.tensor(PER_STATE["forward_kl"]))
    torch.testing.assert_close(out["action_distance"], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(out["teacher_entropy"], torch.tensor([1.418939, 2.112086]))
    torch.testing.assert_close(out["student_entropy"], torch.tensor([2.112086, 1.418939]))
    assert all(not out[key].requires_grad for key in out.keys() if key != "loss_distill")


@pytest.mark.parametrize("divergence", CONTINUOUS_DIVERGENCES)
def test_stored_values_stand_in_for_a_network(divergence: str) -> None:
    loss = ContinuousDistillationLoss(table(STUDENT), divergence=divergence, reduction="none")
    torch.testing.assert_close(loss(two_states())["loss_distill"], torch.tensor(PER_STATE[divergence]))


def test_stored_values_go_before_the_network() -> None:
    loss = ContinuousDistillationLoss(table(STUDENT), table(STUDENT))
    assert loss(two_states())["loss_distill"].item() == pytest.approx(0.625)
    assert loss(two_states().exclude("teacher"))["loss_distill"].item() == 0.0


def test_student_equal_to_its_teacher_has_neither_loss_nor_gradient() -> None:
    teacher = actor()
    for divergence in ("forward_kl", "reverse_kl", "mse"):
        loss = ContinuousDistillationLoss(copy.deepcopy(teacher), teacher, divergence=divergence)
        value = loss(observations())["loss_distill"]
        value.backward()
        assert value.item() == 0.0
        assert all(parameter.grad.abs().max() == 0.0 for parameter in loss.parameters())


@pytest.mark.parametrize("kind", [Normal, IndependentNormal, TanhNormal])
def test_kl_equals_that_of_torch_in_two_thousand_cases(kind: type) -> None:
    """The same bijection drops out: between tanh-Gaussians it is the KL of their Gaussians."""
    teacher, student, batch = actor(kind), actor(kind), observations(2_000)
    with torch.no_grad():  # far apart, to either side of 1
        for network in (teacher, student):
            network.module[0].module[-2].weight.mul_(5.0)
    forward = ContinuousDistillationLoss(student, teacher, reduction="none")(batch)["loss_distill"]
    reverse = ContinuousDistillationLoss(student, teacher, divergence="reverse_kl", reduction="none")(batch)
    torch.testing.assert_close(forward, reference_kl(teacher, student, batch), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reverse["loss_distill"], reference_kl(student, teacher, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"low": -2.0, "high": 2.0},
        {"low": torch.tensor([-1.0, 0.0]), "high": torch.tensor([1.0, 5.0]), "tanh_loc": True},
        {"tanh_loc": True, "upscale": 2.0},
    ],
    ids=["bounds", "bounds, tanh_loc", "upscale"],
)
def test_tanh_gaussians_are_read_as_torchrl_builds_them(kwargs: dict[str, Any]) -> None:
    """Bounds, ``tanh_loc`` and ``upscale``: value, action and density as of the actor's own distribution."""
    teacher, student, batch = actor(**kwargs), actor(**kwargs), observations()
    with torch.no_grad():
        student.module[0].module[-2].weight.mul_(20.0)  # so that squashing the mean matters
    out = ContinuousDistillationLoss(student, teacher, reduction="none")(batch)
    torch.testing.assert_close(out["loss_distill"], reference_kl(teacher, student, batch), rtol=1e-5, atol=1e-6)
    theirs = [policy.get_dist(batch.copy()) for policy in (teacher, student)]
    distance = (theirs[0].deterministic_sample - theirs[1].deterministic_sample).norm(dim=-1)
    torch.testing.assert_close(out["action_distance"], distance)
    nll = ContinuousDistillationLoss(student, teacher, divergence="nll", reduction="none")(batch)["loss_distill"]
    torch.testing.assert_close(nll, -theirs[1].log_prob(theirs[0].deterministic_sample), rtol=1e-4, atol=1e-4)


def test_modules_without_a_distribution_have_that_of_the_other_side() -> None:
    """Stored values and plain modules are taken for tanh-Gaussians where the student's actor is one."""
    student, batch = actor(low=-3.0, high=3.0), observations()
    written = actor()(batch.copy())
    batch["teacher"] = written.select("loc", "scale")
    out = ContinuousDistillationLoss(student, reduction="none")(batch)
    expected = 3 * (written["loc"].tanh() - student.get_dist(batch.copy()).root_dist.loc.tanh()).norm(dim=-1)
    torch.testing.assert_close(out["action_distance"], expected)


# Estimates


def test_an_estimated_kl_is_that_of_many_samples() -> None:
    """A tanh-Gaussian student of a Gaussian teacher, in reverse, against plain sampling by TorchRL."""
    teacher, student, batch = actor(Normal), actor(low=-2.0, high=2.0), observations(4)
    loss = ContinuousDistillationLoss(student, teacher, divergence="reverse_kl", num_samples=50_000, reduction="none")
    out = loss(batch)
    theirs, ours = teacher.get_dist(batch.copy()), student.get_dist(batch.copy())
    action, log_prob = ours.rsample_and_log_prob((50_000,))
    expected = log_prob - theirs.log_prob(action).sum(-1)
    error = math.sqrt(2) * expected.std(0) / math.sqrt(50_000)
    assert ((out["loss_distill"] - expected.mean(0)).abs() < 4 * error).all()
    assert "kl_to_teacher" not in out.keys() and "kl_to_teacher" not in loss.out_keys  # infinite: not reported


def test_an_estimated_kl_teaches_the_student() -> None:
    """A Gaussian student finds the mean of its tanh-Gaussian teacher's actions, forward."""
    teacher, batch = actor(low=-1.0, high=1.0), observations(64)
    student = table({"loc": [[1.0] * 2] * 4, "scale": [[1.0] * 2] * 4})
    student = ProbabilisticActor(student, in_keys=ACTOR_KEYS, distribution_class=Normal)
    loss = ContinuousDistillationLoss(student, teacher)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    first = loss(batch)["kl_to_teacher"].item()
    for _ in range(100):
        loss(batch)["loss_distill"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss(batch)["kl_to_teacher"].item() < 0.7 * first


def test_noise_has_a_stream_of_its_own_that_is_saved() -> None:
    teacher, student, batch = actor(low=-1.0, high=1.0), actor(Normal), observations()
    losses = [ContinuousDistillationLoss(copy.deepcopy(student), teacher, seed=seed) for seed in (3, 3, 4)]
    one, same, other = ([loss(batch)["loss_distill"].item() for _ in range(2)] for loss in losses)
    assert one == same
    assert one[0] != one[1] and one[0] != other[0]
    saved, twin = copy.deepcopy(losses[0].state_dict()), copy.deepcopy(losses[0])
    following = losses[0](batch)["loss_distill"].item()
    assert twin(batch)["loss_distill"].item() == following
    losses[2].load_state_dict(saved)
    assert losses[2](batch)["loss_distill"].item() == following


def test_more_samples_are_less_noise() -> None:
    teacher, student, batch = actor(low=-1.0, high=1.0), actor(Normal), observations(1)

    def spread(num_samples: int) -> float:
        loss = ContinuousDistillationLoss(student, teacher, num_samples=num_samples)
        return torch.stack([loss(batch)["loss_distill"].detach() for _ in range(60)]).std().item()

    assert spread(256) < spread(4) / 4


# Deterministic policies


@pytest.mark.parametrize("kind", [None, Delta, TanhDelta])
def test_a_deterministic_teacher_teaches_by_distance_or_likelihood(kind: type | None) -> None:
    teacher, student, batch = deterministic(kind), actor(), observations()
    action = teacher(batch.copy())["action"]
    theirs = student.get_dist(batch.copy())
    expected = {
        "mse": (theirs.deterministic_sample - action).square().sum(-1),
        "nll": -theirs.log_prob(action.clamp(-1, 1)),
    }
    for divergence, values in expected.items():
        loss = ContinuousDistillationLoss(student, teacher, divergence=divergence, reduction="none")
        out = loss(batch)
        torch.testing.assert_close(out["loss_distill"], values, rtol=1e-4, atol=1e-4)
        assert list(out.keys()) == loss.out_keys == ["loss_distill", "action_distance", "student_entropy"]


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_a_deterministic_teacher_has_no_kl(divergence: str) -> None:
    match = f"a deterministic teacher has no density, so '{divergence}' is not defined.*use divergence='mse' or 'nll'"
    with pytest.raises(ValueError, match=match):
        ContinuousDistillationLoss(actor(), deterministic(), divergence=divergence)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "nll"])
def test_a_deterministic_student_learns_by_distance_only(divergence: str) -> None:
    with pytest.raises(
        ValueError, match=f"a deterministic student has no density, so '{divergence}'.*divergence='mse'"
    ):
        ContinuousDistillationLoss(deterministic(), actor(), divergence=divergence)
    loss = ContinuousDistillationLoss(deterministic(), actor(), divergence="mse")
    assert loss.out_keys == ["loss_distill", "action_distance", "teacher_entropy"]
    assert loss(observations())["loss_distill"] > 0


def test_infinite_divergences_are_refused() -> None:
    gaussian, bounded = actor(Normal), actor(low=-2.0, high=2.0)
    match = (
        r"'forward_kl' is infinite.*teacher's are unbounded, the student's within \[-2.0, 2.0\]; use 'reverse_kl' or"
    )
    with pytest.raises(ValueError, match=match):
        ContinuousDistillationLoss(bounded, gaussian)
    with pytest.raises(ValueError, match=r"'reverse_kl' is infinite.*use 'forward_kl' or 'mse' or 'nll'"):
        ContinuousDistillationLoss(gaussian, bounded, divergence="reverse_kl")


def test_actions_at_the_bounds_give_finite_likelihoods_and_gradients() -> None:
    student, batch = actor(low=-2.0, high=2.0), observations()
    batch["teacher"] = TensorDict({"action": torch.tensor([2.0, -2.0]).expand(8, 2)}, [8])
    loss = ContinuousDistillationLoss(student, divergence="nll")
    value = loss(batch)["loss_distill"]
    value.backward()
    assert value.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


# Teacher and student


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "nll"])
def test_every_student_parameter_learns_and_no_teacher_parameter(divergence: str) -> None:
    teacher = actor()
    loss = ContinuousDistillationLoss(actor(), teacher, divergence=divergence)
    loss(observations())["loss_distill"].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in loss.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_runs_in_eval_mode_and_is_left_as_it_was() -> None:
    teacher, batch = actor(noisy=True), observations()
    before = copy.deepcopy(teacher.state_dict())
    loss = ContinuousDistillationLoss(actor(), teacher)
    assert loss(batch)["loss_distill"].item() == loss(batch)["loss_distill"].item()
    assert all(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("kinds", "divergence"),
    [((TanhNormal, TanhNormal), "forward_kl"), ((TanhNormal, Normal), "forward_kl"), ((Normal, TanhNormal), "nll")],
)
def test_the_global_generator_is_not_drawn_from(kinds: tuple[type, type], divergence: str) -> None:
    """Also where the actors sample by default."""
    teacher, student = (actor(kind) for kind in kinds)
    for policy in (teacher, student):
        policy.module[-1].default_interaction_type = InteractionType.RANDOM
    loss = ContinuousDistillationLoss(student, teacher, divergence=divergence)
    before = torch.get_rng_state()
    loss(observations())["loss_distill"].backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_teacher_is_not_part_of_the_loss() -> None:
    teacher, student = actor(), actor()
    loss = ContinuousDistillationLoss(student, teacher)
    assert len(list(loss.parameters())) == len(list(student.parameters()))
    assert set(loss.state_dict()) == {f"student_network_params.{name}" for name in student.state_dict()} | {
        name for name in loss.state_dict() if name.endswith(("__batch_size", "__device"))
    }
    weights = copy.deepcopy(teacher.state_dict())
    initial = copy.deepcopy(loss.state_dict())
    loss.reset_parameters_recursive()
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    assert any(
        isinstance(value, Tensor) and not torch.equal(value, initial[name]) for name, value in loss.state_dict().items()
    )


def test_a_copy_learns_alone_from_the_same_teacher() -> None:
    teacher, batch = actor(), observations()
    loss = ContinuousDistillationLoss(actor(), teacher)
    twin = copy.deepcopy(loss)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    before = loss(batch)["loss_distill"].item()
    assert twin(batch)["loss_distill"].item() != before
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    assert loss(batch)["loss_distill"].item() != before
    loss.load_state_dict(twin.state_dict())
    assert loss(batch)["loss_distill"].item() == twin(batch)["loss_distill"].item()
