"""What the continuous loss does with batches and keys: as TorchRL's own losses."""

from __future__ import annotations

import pytest
import torch
from continuous_parts import STUDENT, TEACHER, Table, actor, observations, reference_kl, table, two_states
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.distributions import Normal
from torchrl.modules import TanhNormal

from torchrl_rtpd.objectives.continuous import ContinuousDistillationLoss

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
