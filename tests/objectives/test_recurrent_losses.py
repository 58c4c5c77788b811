"""Recurrent students of every distillation loss: what they learn from rows is what a loop over single steps gives."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from objective_parts import gradients, independent_forward_kl
from recurrent_parts import memory_of, recurrent_actor, rows, stepped_values
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torchrl.modules import GRUModule, QValueActor

from torchrl_rtpd.networks.sequences import single_steps
from torchrl_rtpd.objectives.continuous import ContinuousDistillationLoss
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.pqn import StudentPQNLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss

KINDS = [("lstm", 1), ("gru", 1), ("lstm", 2)]  # and layers


def student_of(kind: str, layers: int = 1, **kwargs: object) -> TensorDictSequential:
    return recurrent_actor(kind, 3, seed=1, layers=layers, **kwargs).double()


def loss_of(student: nn.Module, teacher: nn.Module | None = None, **kwargs: object) -> DistillationLoss:
    """Both temperatures 1."""
    return DistillationLoss(student, teacher, teacher_temperature=1.0, **kwargs)


def by_hand(student: TensorDictSequential, batch: TensorDict, burn_in: int = 0) -> Tensor:
    """KL to the batch's teacher values ``[N, T - burn_in]``."""
    found = stepped_values(student, batch, burn_in=burn_in)
    return independent_forward_kl(batch["teacher", "action_value"][:, burn_in:], found)


@pytest.mark.parametrize("burn_in", [0, 2, 3])
@pytest.mark.parametrize("stored", [False, True], ids=["zeros", "stored"])
@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_loss_and_gradient_are_those_of_a_loop_over_steps(kind: str, layers: int, stored: bool, burn_in: int) -> None:
    """Games begin within rows, at steps 2 and 3 right behind the burn-in, and know nothing of the game before."""
    student = student_of(kind, layers)
    batch = rows(remembers=(student,) if stored else ())
    loss = loss_of(student, burn_in=burn_in)
    expected = by_hand(student, batch, burn_in).mean()
    wanted = torch.autograd.grad(expected, list(student.parameters()))
    found = loss(batch)["loss_distill"]
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    by_name = dict(zip(student.parameters(), wanted, strict=True))
    for parameter, gradient in by_name.items():
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-12)
    assert all(gradient.any() for gradient in wanted)


def test_memory_makes_the_difference() -> None:
    """A burn-in from zeros, one from the stored memory and none give three losses for the same steps."""
    student = student_of("lstm")
    batch = rows(remembers=(student,))
    warmed = loss_of(student, burn_in=3)(batch)["loss_distill"]
    cold = loss_of(student, burn_in=3)(batch.exclude(*memory_of(student)))["loss_distill"]
    last = loss_of(student)(batch[:, 3:].exclude(*memory_of(student)))["loss_distill"]
    assert len({warmed.item(), cold.item(), last.item()}) == 3


@pytest.mark.parametrize("burn_in", [0, 3])
def test_without_reduction_every_step_has_its_number(burn_in: int) -> None:
    student, batch = student_of("gru"), rows()
    result = loss_of(student, burn_in=burn_in, reduction="none")(batch)
    assert result.batch_size == result["loss_distill"].shape == result["agreement"].shape == (4, 7 - burn_in)
    torch.testing.assert_close(result["loss_distill"], by_hand(student, batch, burn_in))


def test_metrics_are_means_over_the_steps_that_are_learned_from() -> None:
    student, batch = student_of("lstm"), rows()
    result = loss_of(student, burn_in=2)(batch)
    values, wanted = stepped_values(student, batch, burn_in=2), batch["teacher", "action_value"][:, 2:]
    assert result["agreement"].item() == pytest.approx((values.argmax(-1) == wanted.argmax(-1)).double().mean().item())
    torch.testing.assert_close(result["kl_to_teacher"], result["loss_distill"].detach())
    entropy = torch.distributions.Categorical(logits=values).entropy().mean()
    torch.testing.assert_close(result["student_entropy"], entropy.detach())


def test_masks_and_weights_are_those_of_the_later_steps() -> None:
    """Steps that are padding, and importance weights: (sum of weight * KL) over the steps that are real."""
    student, batch = student_of("gru"), rows()
    real = torch.ones(4, 7, dtype=torch.bool)
    real[1, 5:] = False
    batch["collector", "mask"] = real
    batch["priority_weight"] = torch.linspace(0.5, 1.5, 28, dtype=torch.float64).reshape(4, 7)
    allowed = torch.ones(4, 7, 2, dtype=torch.bool)
    allowed[2, 4, 0] = False  # one action is left: no divergence
    batch["action_mask"] = allowed
    kl = by_hand(student, batch, 2).clone()
    kl[2, 4 - 2] = 0.0
    found = loss_of(student, burn_in=2, reduction="none", use_prioritized_weights=False)(batch)["loss_distill"]
    torch.testing.assert_close(found[real[:, 2:]], kl[real[:, 2:]])
    total = loss_of(student, burn_in=2, reduction="sum")(batch)["loss_distill"]
    torch.testing.assert_close(total, (kl * batch["priority_weight"][:, 2:])[real[:, 2:]].sum())


@pytest.mark.parametrize("stored", [False, True], ids=["zeros", "stored"])
@pytest.mark.parametrize("burn_in", [0, 3])
def test_recurrent_teachers_are_run_over_the_same_rows(burn_in: int, stored: bool) -> None:
    """The burn-in warms them as well; they learn nothing."""
    teacher = recurrent_actor("lstm", 5, seed=2, memory="teacher_state").double()
    student = student_of("gru")
    batch = rows(remembers=(teacher,) if stored else ()).exclude("teacher")
    loss = loss_of(student, teacher, burn_in=burn_in)
    found = loss(batch)["loss_distill"]
    values = stepped_values(teacher, batch, burn_in=burn_in).detach()
    expected = independent_forward_kl(values, stepped_values(student, batch, burn_in=burn_in)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    found.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_without_a_memory_takes_rows_with_a_recurrent_teacher() -> None:
    teacher = recurrent_actor("lstm", 5, seed=2).double()
    student = QValueActor(nn.Linear(1, 2).double(), in_keys=["observation"], action_space="categorical")
    batch = rows().exclude("teacher")
    found = loss_of(student, teacher)(batch)["loss_distill"]
    expected = independent_forward_kl(stepped_values(teacher, batch), student.module[0].module(batch["observation"]))
    torch.testing.assert_close(found, expected.mean())


def test_rows_of_several_groups_are_the_same_rows() -> None:
    """A batch [2, 2, T] is [4, T]: time is the last dimension."""
    student, batch = student_of("lstm"), rows()
    loss = loss_of(student, burn_in=2, reduction="none")
    found = loss(batch.reshape(2, 2, 7))["loss_distill"]
    torch.testing.assert_close(found.reshape(4, 5), loss(batch)["loss_distill"])


def test_pqn_students_learn_the_returns_of_the_later_steps() -> None:
    student, batch = student_of("gru"), rows()
    generator = torch.Generator().manual_seed(1)
    batch["action"] = torch.randint(2, (4, 7), generator=generator)
    batch["value_target"] = torch.randn(4, 7, 1, generator=generator, dtype=torch.float64)
    result = StudentPQNLoss(student, burn_in=2)(batch)
    chosen = stepped_values(student, batch, burn_in=2).gather(-1, batch["action"][:, 2:, None])
    torch.testing.assert_close(result["loss_td"], 0.5 * (chosen - batch["value_target"][:, 2:]).square().mean())


@pytest.mark.parametrize("burn_in", [0, 3])
def test_gaussian_students_learn_from_rows(burn_in: int) -> None:
    """Two action dimensions; the loop hands on the hidden state and begins again at starts."""
    torch.manual_seed(3)
    memory = GRUModule(input_size=1, hidden_size=3, in_key="observation", out_key="features")
    head = TensorDictModule(
        nn.Sequential(nn.Linear(3, 4), NormalParamExtractor()), in_keys=["features"], out_keys=["loc", "scale"]
    )
    student, batch = TensorDictSequential(memory, head).double(), rows()
    batch["teacher", "loc"] = batch["teacher", "action_value"]
    batch["teacher", "scale"] = batch["teacher", "action_value"].exp()
    found = ContinuousDistillationLoss(student, burn_in=burn_in)(batch)["loss_distill"]
    state, terms = torch.zeros(1, 4, 3, dtype=torch.float64), []
    for step in range(7):
        state = torch.where(batch["is_init"][:, step], 0.0, state)
        features, state = memory.gru(batch["observation"][:, step : step + 1], state)
        policy = Normal(*head.module(features[:, 0]))
        teacher = Normal(batch["teacher", "loc"][:, step], batch["teacher", "scale"][:, step])
        terms.append(kl_divergence(teacher, policy).sum(-1))
    torch.testing.assert_close(found, torch.stack(terms[burn_in:]).mean())
    found.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_the_batch_is_not_changed() -> None:
    student = student_of("lstm")
    batch = rows(remembers=(student,)).lock_()
    before = batch.clone()
    loss_of(student, burn_in=2)(batch)["loss_distill"].backward()
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


def test_a_batch_need_not_hold_what_the_student_remembers() -> None:
    assert loss_of(student_of("lstm")).in_keys == ["observation", "is_init", ("teacher", "action_value")]
    teacher = recurrent_actor("gru", 4, seed=2)
    assert loss_of(student_of("gru"), teacher).in_keys == ["observation", "is_init"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))], ids=["copy", "sent"])
def test_copies_compute_the_same_and_share_nothing(copied: object) -> None:
    loss, batch = loss_of(student_of("lstm"), burn_in=2), rows()
    twin = copied(loss)
    for each in (loss, twin):
        each(batch)["loss_distill"].backward()
    for mine, theirs in zip(gradients(loss), gradients(twin), strict=True):
        assert torch.equal(mine, theirs)
    before = loss(batch)["loss_distill"].item()
    twin.student_network_params.data.zero_()
    assert loss(batch)["loss_distill"].item() == before != twin(batch)["loss_distill"].item()


def test_states_are_loaded_into_a_loss_of_another_student() -> None:
    batch = rows()
    loss, other = loss_of(student_of("gru")), loss_of(recurrent_actor("gru", 3, seed=9).double())
    assert loss(batch)["loss_distill"] != other(batch)["loss_distill"]
    other.load_state_dict(loss.state_dict())
    assert loss(batch)["loss_distill"] == other(batch)["loss_distill"]


def test_updates_change_what_the_layers_compute() -> None:
    """PyTorch's recurrent layers keep their weights in a list in addition, which must hold the loss's parameters."""
    student, batch = student_of("lstm"), rows()
    loss = loss_of(student)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    before = loss(batch)["loss_distill"]
    before.backward()
    optimizer.step()
    after = loss(batch)["loss_distill"]
    assert after < before
    torch.testing.assert_close(after, by_hand(student, batch).mean(), rtol=1e-10, atol=0)


# Errors


def test_a_row_without_starts_is_refused() -> None:
    batch = rows().exclude("is_init")
    for burn_in in (0, 2):
        with pytest.raises(
            KeyError, match=r"must know where games begin: the batch has no 'is_init', .* an InitTracker"
        ):
            loss_of(student_of("lstm"), burn_in=burn_in)(batch)


@pytest.mark.parametrize("burn_in", [0, 2])
def test_a_batch_without_time_is_refused(burn_in: int) -> None:
    with pytest.raises(ValueError, match=r"learns from rows of steps \[N, T\]: got a batch \[28\]; .*SliceBatches"):
        loss_of(student_of("gru"), burn_in=burn_in)(rows().reshape(-1))


@pytest.mark.parametrize("burn_in", [7, 9])
def test_a_burn_in_that_leaves_no_step_is_refused(burn_in: int) -> None:
    with pytest.raises(
        ValueError, match=rf"longer than their burn-in: got 7 steps and burn_in={burn_in}; sample longer"
    ):
        loss_of(student_of("gru"), burn_in=burn_in)(rows())


@pytest.mark.parametrize("burn_in", [-1, 1.5, 0.25, True, None])
def test_a_burn_in_that_is_no_number_of_steps_is_refused(burn_in: object) -> None:
    with pytest.raises(
        ValueError, match=rf"burn_in must be an integer of at least 0: got {burn_in}; 0 learns from every step"
    ):
        loss_of(student_of("gru"), burn_in=burn_in)


@pytest.mark.parametrize("loss_class", [DistillationLoss, StudentPQNLoss])
def test_a_burn_in_without_a_memory_is_refused(loss_class: type[DistillationLoss]) -> None:
    with pytest.raises(ValueError, match=r"warms a memory: got burn_in=2 and a student without TorchRL's LSTMModule"):
        loss_class(nn.Linear(1, 2), burn_in=2)


def test_priorities_of_a_burn_in_are_refused() -> None:
    loss = loss_of(student_of("gru"), burn_in=2)
    loss.set_keys(priority="td_error")
    with pytest.raises(ValueError, match=r"got burn_in=2 and priority='td_error'; leave one of them out"):
        loss(rows())


def test_part_of_a_memory_is_refused() -> None:
    student = student_of("lstm")
    batch = rows(remembers=(student,)).exclude("recurrent_state_c")
    with pytest.raises(KeyError, match=r"as a whole or not at all, .*: got \['recurrent_state_h'\] alone"):
        loss_of(student)(batch)


def test_the_memory_of_another_network_is_refused() -> None:
    other = recurrent_actor("lstm", 5)
    with pytest.raises(ValueError, match=r"must be \[4, 7, 1, 3\]: 'recurrent_state_h' in the batch is \[4, 7, 1, 5\]"):
        loss_of(student_of("lstm"))(rows(remembers=(other,)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("burn_in", [0, 3])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_memory_of_another_precision_is_converted(kind: str, burn_in: int, dtype: torch.dtype) -> None:
    """What is lost is what its storage has lost: the same rows, stored in double precision after rounding."""
    student = student_of(kind)
    batch = rows(remembers=(student,))
    stored = {key: batch[key].to(dtype) for key in memory_of(student)}
    loss = loss_of(student, burn_in=burn_in)
    found = loss(batch.copy().update(stored))["loss_distill"]
    rounded = {key: value.double() for key, value in stored.items()}
    assert torch.equal(found, loss(batch.copy().update(rounded))["loss_distill"])
    for key, value in rounded.items():
        assert torch.equal(single_steps(student, batch.copy().update(stored))[key], value.flatten(0, 1))


def test_memory_that_is_no_floating_point_is_refused() -> None:
    student = student_of("gru")
    batch = rows(remembers=(student,))
    batch["recurrent_state"] = batch["recurrent_state"].long()
    with pytest.raises(TypeError, match=r"floating point: 'recurrent_state' in the batch is torch\.int64; store"):
        loss_of(student)(batch)


def test_a_memory_that_both_networks_would_read_is_refused() -> None:
    """Of the same size, so that nothing else would tell; without any in the batch both begin with zeros."""
    teacher, student = recurrent_actor("lstm", 3, seed=2).double(), student_of("lstm")
    loss = loss_of(student, teacher)
    loss(rows().exclude("teacher"))
    with pytest.raises(ValueError, match=r"one network under a key: got \['recurrent_state_c', 'recurrent_state_h'\]"):
        loss(rows(remembers=(student,)).exclude("teacher"))


def test_temporal_differences_of_recurrent_networks_are_refused() -> None:
    plain = QValueActor(nn.Linear(1, 2), in_keys=["observation"], action_space="categorical")
    with pytest.raises(
        ValueError, match=r"got a student that remembers \['recurrent_state'\], .*; distil it alone by DistillationLoss"
    ):
        StudentDQNLoss(student_of("gru"))
    with pytest.raises(ValueError, match=r"got a teacher that remembers \['recurrent_state_h', 'recurrent_state_c'\]"):
        StudentDQNLoss(plain, student_of("lstm"))
    StudentDQNLoss(plain, student_of("lstm"), imitation=False)  # it asks the teacher for the states of rows alone
