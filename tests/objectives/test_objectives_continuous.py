"""What distillation between continuous policies is worth by hand, and that it behaves as TorchRL's own losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.distributions import Beta, Independent, Normal, kl_divergence
from torchrl.data import Bounded
from torchrl.modules import Delta, IndependentNormal, ProbabilisticActor, TanhDelta, TanhNormal

from torchrl_rtpd.objectives.continuous import CONTINUOUS_DIVERGENCES, ContinuousDistillationLoss

# Two states, one action dimension. The KLs of the first are 0.443147 forward, 1.306853 reverse, those of the second
# (4 - 1 - ln 4) / 2 = 0.806853 and (1/4 - 1 + ln 4) / 2 = 0.318147.
TEACHER = {"loc": [[1.0], [0.5]], "scale": [[1.0], [2.0]]}
STUDENT = {"loc": [[0.0], [0.5]], "scale": [[2.0], [1.0]]}
PER_STATE = {
    "forward_kl": [0.443147, 0.806853],
    "reverse_kl": [1.306853, 0.318147],
    "mse": [1.0, 0.0],
    "nll": [1.737086, 0.918939],  # ln 2 + ln(2 pi) / 2 + 1/8; ln(2 pi) / 2
}
ACTOR_KEYS = ["loc", "scale"]


class Table(nn.Module):
    """Means and standard deviations of states that are observed as one-hot rows."""

    def __init__(self, loc: list[list[float]], scale: list[list[float]]) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc))
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return observation @ self.loc, (observation @ self.log_scale).exp()


def table(values: dict[str, list[list[float]]]) -> TensorDictModule:
    return TensorDictModule(Table(**values), in_keys=["observation"], out_keys=["loc", "scale"])


def two_states(**kwargs: Any) -> TensorDict:
    values = {name: torch.tensor(value) for name, value in TEACHER.items()}
    values["action"] = values["loc"].clone()
    return TensorDict({"observation": torch.eye(2), "teacher": values, **kwargs}, [2])


def actor(
    kind: type = TanhNormal, *, dims: int = 2, noisy: bool = False, keys: Any = None, **distribution_kwargs: Any
) -> ProbabilisticActor:
    """A random actor of 4 features, with Dropout and BatchNorm if ``noisy``."""
    layers = [nn.Linear(4, 16), *([nn.BatchNorm1d(16), nn.Dropout(0.5)] if noisy else []), nn.Tanh()]
    layers += [nn.Linear(16, 2 * dims), NormalParamExtractor()]
    keys = ACTOR_KEYS if keys is None else keys
    return ProbabilisticActor(
        TensorDictModule(nn.Sequential(*layers), in_keys=["observation"], out_keys=keys),
        in_keys=dict(zip(ACTOR_KEYS, keys, strict=True)),
        distribution_class=kind,
        distribution_kwargs=distribution_kwargs,
    )


def deterministic(kind: type | None = None, *, dims: int = 2, **kwargs: Any) -> TensorDictModule:
    """A TD3 policy: a plain module, or an actor of ``Delta`` or ``TanhDelta``."""
    if kind is None:
        network = nn.Sequential(nn.Linear(4, dims), nn.Tanh())
        return TensorDictModule(network, in_keys=["observation"], out_keys=["action"])
    module = TensorDictModule(nn.Linear(4, dims), in_keys=["observation"], out_keys=["param"])
    return ProbabilisticActor(module, in_keys=["param"], distribution_class=kind, distribution_kwargs=kwargs)


def observations(size: int = 8, seed: int = 0) -> TensorDict:
    return TensorDict({"observation": torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))}, [size])


def reference_kl(teacher: ProbabilisticActor, student: ProbabilisticActor, batch: TensorDict) -> Tensor:
    """KL(teacher || student) of the Gaussians inside two actors, by TorchRL's distributions and torch's KL."""

    def gaussian(policy: ProbabilisticActor) -> Independent:
        inside = policy.get_dist(batch.copy())
        while not isinstance(inside, Normal):
            inside = inside.base_dist
        return Independent(inside, 1)

    return kl_divergence(gaussian(teacher), gaussian(student))


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Weights are drawn from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


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


# Batches


def test_the_batch_is_not_written_to() -> None:
    """Samples hold the collector's own loc, scale and action: neither read nor overwritten."""
    batch = observations()
    batch.update({"loc": torch.full((8, 2), 7.0), "scale": torch.full((8, 2), 7.0), "action": torch.zeros(8, 2)})
    before = batch.clone()
    loss = ContinuousDistillationLoss(actor(), actor())
    value = loss(batch)["loss_distill"]
    assert value.item() == loss(batch.select("observation"))["loss_distill"].item()
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], before[key]) for key in before.keys())


@pytest.mark.parametrize(("reduction", "expected"), [(None, 0.625), ("mean", 0.625), ("sum", 1.25)])
def test_reductions_by_hand(reduction: str | None, expected: float) -> None:
    out = ContinuousDistillationLoss(table(STUDENT), reduction=reduction)(two_states())
    assert out["loss_distill"].item() == pytest.approx(expected)
    assert out["kl_to_teacher"].item() == pytest.approx(0.625)


def test_importance_weights_enter_the_mean() -> None:
    """(3 x 0.443147 + 1 x 0.806853) / 4, whatever the weights' shape and key."""
    for key in ("priority_weight", ("nested", "weight")):
        batch = two_states()
        batch[key] = torch.tensor([3.0, 1.0])
        loss = ContinuousDistillationLoss(table(STUDENT))
        loss.set_keys(priority_weight=key)
        assert loss(batch)["loss_distill"].item() == pytest.approx(0.534074, abs=1e-6)
        loss = ContinuousDistillationLoss(table(STUDENT), use_prioritized_weights=False)
        assert loss(batch)["loss_distill"].item() == pytest.approx(0.625)


def test_masked_steps_leave_the_mean() -> None:
    batch = two_states()
    batch["collector"] = TensorDict({"mask": torch.tensor([True, False])}, [2])
    out = ContinuousDistillationLoss(table(STUDENT))(batch)
    assert out["loss_distill"].item() == out["kl_to_teacher"].item() == pytest.approx(0.443147, abs=1e-6)


def test_a_priority_is_written_when_asked_for() -> None:
    batch, loss = two_states(), ContinuousDistillationLoss(table(STUDENT))
    loss.set_keys(priority="td_error")
    loss(batch)
    torch.testing.assert_close(batch["td_error"], torch.tensor([[0.443147], [0.806853]]))


def test_any_batch_shape_serves() -> None:
    loss = ContinuousDistillationLoss(actor(), actor(), reduction="none")
    batch = observations(12)
    assert loss(batch.reshape(3, 4))["loss_distill"].shape == (3, 4)
    torch.testing.assert_close(loss(batch.reshape(3, 4))["loss_distill"].flatten(), loss(batch)["loss_distill"])


# TorchRL's habits


def test_keys_can_be_set_also_nested_ones() -> None:
    loss = ContinuousDistillationLoss(
        TensorDictModule(Table(**STUDENT), in_keys=["observation"], out_keys=[("my", "mean"), ("my", "spread")])
    )
    loss.set_keys(student_loc=("my", "mean"), student_scale=("my", "spread"))
    loss.set_keys(teacher_loc=("old", "mu"), teacher_scale=("old", "sigma"))
    assert loss.in_keys == ["observation", ("old", "mu"), ("old", "sigma")]
    batch = TensorDict({"observation": torch.eye(2)}, [2])
    batch["old"] = TensorDict({"mu": torch.tensor(TEACHER["loc"]), "sigma": torch.tensor(TEACHER["scale"])}, [2])
    assert loss(batch)["loss_distill"].item() == pytest.approx(0.625)
    with pytest.raises(ValueError):
        loss.set_keys(unheard_of="key")


def test_an_actors_own_keys_are_found() -> None:
    teacher, student = actor(keys=[("a", "mu"), ("a", "sigma")]), actor(keys=["mu", "sigma"])
    loss = ContinuousDistillationLoss(student, teacher, reduction="none")
    assert (loss.tensor_keys.student_loc, loss.tensor_keys.student_scale) == ("mu", "sigma")
    batch = observations()
    torch.testing.assert_close(loss(batch)["loss_distill"], reference_kl(teacher, student, batch), rtol=1e-5, atol=1e-6)
    loss.set_keys(teacher_loc=("stored", "loc"))  # where a batch may have it; the actor writes what it did
    torch.testing.assert_close(loss(batch)["loss_distill"], reference_kl(teacher, student, batch), rtol=1e-5, atol=1e-6)


def test_in_keys_are_the_inputs_of_both_networks_in_order() -> None:
    teacher = TensorDictModule(Table(**TEACHER), in_keys=["privileged"], out_keys=["loc", "scale"])
    assert ContinuousDistillationLoss(table(STUDENT), teacher).in_keys == ["observation", "privileged"]
    assert ContinuousDistillationLoss(table(STUDENT), divergence="mse").in_keys == [
        "observation",
        ("teacher", "action"),
    ]


def test_tensors_serve_instead_of_a_tensordict() -> None:
    loss, batch = ContinuousDistillationLoss(table(STUDENT)), two_states()
    values = loss(
        observation=batch["observation"],
        teacher_loc=batch["teacher", "loc"],
        teacher_scale=batch["teacher", "scale"],
    )
    assert [value.item() for value in values] == [loss(batch)[key].item() for key in loss.out_keys]
    loss.select_out_keys("loss_distill")
    only = loss(
        observation=batch["observation"],
        teacher_loc=batch["teacher", "loc"],
        teacher_scale=batch["teacher", "scale"],
    )
    assert only.item() == pytest.approx(0.625)


def test_bounds_move_with_the_loss() -> None:
    loss = ContinuousDistillationLoss(actor(low=-2.0, high=2.0), actor(low=-2.0, high=2.0)).double()
    batch = observations().double()
    batch["teacher"] = TensorDict({"loc": torch.zeros(8, 2).double(), "scale": torch.ones(8, 2).double()}, [8])
    out = loss(batch)
    assert {value.dtype for value in out.values()} == {torch.float64}


# tensordict asks for a setting that this torch warns about, as an error in the middle of a trace.
@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "divergence"), [(Normal, "forward_kl"), (TanhNormal, "reverse_kl"), (TanhNormal, "nll")]
)
def test_exact_forms_compile_whole(kind: type, divergence: str) -> None:
    torch._dynamo.reset()
    teacher, student, batch = actor(kind, noisy=True), actor(kind), observations()
    loss = ContinuousDistillationLoss(student, teacher, divergence=divergence)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, expected = compiled(batch)["loss_distill"], loss(batch)["loss_distill"]
    torch.testing.assert_close(value, expected)
    gradients, wanted = (
        torch.autograd.grad(each, list(loss.parameters()), allow_unused=True) for each in (value, expected)
    )
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


# Bad input


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(
        ValueError, match="divergence must be one of forward_kl, reverse_kl, mse, nll: got 'jensen_shannon'"
    ):
        ContinuousDistillationLoss(actor(), divergence="jensen_shannon")
    with pytest.raises(ValueError, match="num_samples must be at least 1: got 0"):
        ContinuousDistillationLoss(actor(), num_samples=0)
    with pytest.raises(ValueError, match="reduction must be none, mean or sum: got 'median'"):
        ContinuousDistillationLoss(actor(), reduction="median")


def test_networks_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="the student_network must be a TensorDictModule: got Linear"):
        ContinuousDistillationLoss(nn.Linear(4, 2))
    parameters = TensorDictModule(nn.Softplus(), in_keys=["observation"], out_keys=["alpha"])
    beta = ProbabilisticActor(
        parameters, in_keys={"concentration1": "alpha", "concentration0": "alpha"}, distribution_class=Beta
    )
    with pytest.raises(
        ValueError, match=r"the student's distribution must be Normal, IndependentNormal or TanhNormal.*Beta"
    ):
        ContinuousDistillationLoss(beta)


def test_disagreeing_action_dimensions_are_named() -> None:
    with pytest.raises(ValueError, match=r"disagree on the action dimensions: \[8, 3\] and \[8, 2\]"):
        ContinuousDistillationLoss(actor(dims=2), actor(dims=3))(observations())
    wide = Bounded(low=-torch.ones(3), high=torch.ones(3)).space
    bounded = actor(dims=3, low=wide.low, high=wide.high)
    with pytest.raises(ValueError, match="disagree on the action dimensions: 3 and 2; build both from the same"):
        ContinuousDistillationLoss(actor(low=-torch.ones(2), high=torch.ones(2)), bounded)


def test_missing_values_and_keys_are_named() -> None:
    with pytest.raises(
        RuntimeError, match=r"there are no teacher values.*\('teacher', 'loc'\), \('teacher', 'scale'\)"
    ):
        ContinuousDistillationLoss(actor())(observations())
    with pytest.raises(RuntimeError, match=r"the batch lacks \[\('teacher', 'action'\)\]"):
        ContinuousDistillationLoss(actor(), divergence="mse")(observations())
    with pytest.raises(KeyError, match="observation"):
        ContinuousDistillationLoss(actor(), actor())(TensorDict({"pixels": torch.zeros(2, 4)}, [2]))
    logits = TensorDictModule(nn.Linear(4, 4), in_keys=["observation"], out_keys=["logits"])
    with pytest.raises(KeyError, match=r"the teacher network wrote no 'loc': it wrote .*'logits'"):
        ContinuousDistillationLoss(actor(), logits)(observations())
    loss = ContinuousDistillationLoss(table(STUDENT))
    loss.set_keys(student_loc="mean")
    with pytest.raises(KeyError, match=r"the student network wrote no 'mean'.*set_keys\(student_loc=\.\.\.\)"):
        loss(two_states())


def test_scales_that_do_not_fit_are_named() -> None:
    one = TensorDictSequential(
        TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["loc"]),
        TensorDictModule(lambda loc: torch.ones(8, 3), in_keys=["loc"], out_keys=["scale"]),
    )
    with pytest.raises(ValueError, match=r"the student's scale must fit its loc: got \[8, 3\] and \[8, 2\]"):
        ContinuousDistillationLoss(one, actor(Normal))(observations())


@pytest.mark.parametrize("divergence", CONTINUOUS_DIVERGENCES)
def test_a_student_whose_actions_are_not_finite_is_named_with_the_number_of_samples(divergence: str) -> None:
    batch = observations()
    batch["teacher"] = TensorDict(
        {"loc": torch.zeros(8, 2), "scale": torch.ones(8, 2), "action": torch.zeros(8, 2)}, [8]
    )
    batch["observation"][1:3] = math.nan
    loss = ContinuousDistillationLoss(actor(), divergence=divergence)
    with pytest.raises(ValueError, match="student's actions must be finite: 2 of 8 samples are not; check its inputs"):
        loss(batch)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_student_whose_scales_are_not_positive_is_named(scale: float) -> None:
    student = TensorDictModule(
        lambda observation: (observation[..., :2], torch.full_like(observation[..., :2], scale)),
        in_keys=["observation"],
        out_keys=["loc", "scale"],
    )
    batch = observations()
    batch["teacher"] = TensorDict({"loc": torch.zeros(8, 2), "scale": torch.ones(8, 2)}, [8])
    with pytest.raises(ValueError, match="student's scales must be finite and positive: 8 of 8 samples are not"):
        ContinuousDistillationLoss(student)(batch)
