"""What the discrete losses do with teachers and batches."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from objective_parts import (
    FORWARD_KL,
    PER_STATE,
    STUDENT_VALUES,
    actor,
    gradients,
    independent_forward_kl,
    make,
    noisy_actor,
    table_actor,
    total,
    transitions,
    two_states,
    with_teacher_values,
)
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import (
    Categorical,
)
from torchrl.modules import QValueActor

from torchrl_rtpd.objectives.discrete import DIVERGENCES, DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss


class TestTeacher:
    """Where the teacher's values come from, and that the teacher is left alone."""

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_stored_values_and_the_network_that_wrote_them_give_the_same_loss(
        self, loss_class: type[DistillationLoss]
    ) -> None:
        """The trainer's hook hands over values that the teacher has computed anyway."""
        student, teacher = actor(), actor()
        batch, stored = transitions(), transitions()
        with torch.no_grad():
            stored["teacher"] = teacher(stored.select("observation")).select("action_value")
            stored["next", "teacher"] = teacher(stored["next"].select("observation")).select("action_value")
        computed = make(loss_class, student, teacher)(batch)
        given = make(loss_class, student)(stored)
        for key in computed.keys():
            torch.testing.assert_close(given[key], computed[key])

    def test_stored_values_come_first(self) -> None:
        """A loss with a teacher network does not run it for nothing."""
        teacher = table_actor([[0.0, 0.0], [0.0, 0.0]])
        calls = []
        teacher.register_forward_hook(lambda *_: calls.append(1))
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher, teacher_temperature=1.0)
        assert loss(two_states())["loss_distill"].item() == pytest.approx(FORWARD_KL, abs=2e-6)
        assert not calls

    @pytest.mark.parametrize("training", [True, False])
    def test_teacher_runs_in_eval_mode_and_gets_its_own_mode_back(self, training: bool) -> None:
        """Dropout and BatchNorm would make random targets, and BatchNorm would move its statistics."""
        teacher = noisy_actor().train(training)
        teacher[0].module.norm.eval()  # a mode of its own, which a plain train() would overwrite
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        modes = [module.training for module in teacher.modules()]
        loss = DistillationLoss(actor(), teacher)
        batch = transitions(64)
        first, second = loss(batch), loss(batch)
        assert first["loss_distill"].item() == second["loss_distill"].item()
        assert [module.training for module in teacher.modules()] == modes
        torch.testing.assert_close(dict(teacher.state_dict()), before, rtol=0.0, atol=0.0)
        with torch.no_grad():
            values = teacher.eval()(batch.select("observation"))["action_value"]
        given = loss(batch.copy().set(("teacher", "action_value"), values))
        assert first["loss_distill"].item() == given["loss_distill"].item()

    def test_mode_is_restored_when_the_teacher_fails(self) -> None:
        """The error is the user's to see, the mode stays theirs."""
        teacher = TensorDictModule(nn.Linear(9, 3), in_keys=["observation"], out_keys=["action_value"]).train()
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            DistillationLoss(actor(), teacher)(transitions())
        assert all(module.training for module in teacher.modules())

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_every_student_parameter_learns_and_no_teacher_parameter_does(
        self, loss_class: type[DistillationLoss], divergence: str
    ) -> None:
        """No gradient is lost on the way to the student, and none reaches the teacher."""
        student = QValueActor(
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), in_keys=["observation"], spec=Categorical(3)
        )
        teacher = noisy_actor()
        loss = make(loss_class, student, teacher, divergence=divergence, teacher_temperature=1.0)
        total(loss(transitions(32))).backward()
        assert len(list(loss.parameters())) == 4
        for parameter in loss.parameters():
            assert parameter.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in teacher.parameters())
        if loss_class is StudentDQNLoss:
            assert all(value.grad is None for value in loss.target_student_network_params.values(True, True))

    def test_gradient_does_not_reach_stored_teacher_values(self) -> None:
        """They may still hang on the teacher's graph when the hook hands them over."""
        batch = two_states()
        values = batch["teacher", "action_value"].requires_grad_()
        DistillationLoss(table_actor(STUDENT_VALUES))(batch)["loss_distill"].backward()
        assert values.grad is None

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_teacher_is_no_part_of_the_loss(self, loss_class: type[DistillationLoss]) -> None:
        """Neither its parameters nor its state, and it is not moved, cast, reset or put in another mode with it."""
        student, teacher = actor(), noisy_actor()
        loss = make(loss_class, student, teacher)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        assert len(list(loss.parameters())) == len(list(student.parameters()))
        owned = {value.data_ptr() for value in (*loss.parameters(), *loss.buffers(), *loss.state_dict().values())}
        assert not owned & {value.data_ptr() for value in teacher.state_dict().values()}
        assert teacher not in set(loss.modules())
        loss.reset_parameters_recursive()
        loss.to(torch.float64).eval()
        assert all(module.training for module in teacher.modules())
        torch.testing.assert_close(dict(teacher.state_dict()), before, rtol=0.0, atol=0.0)

    def test_reset_changes_the_student(self) -> None:
        """As it does for every loss of TorchRL."""
        loss = make(StudentDQNLoss, actor(), actor())
        for params in (loss.student_network_params, loss.target_student_network_params):
            params.data.apply_(lambda value: value + 1000)
        loss.reset_parameters_recursive()
        for params in (loss.student_network_params, loss.target_student_network_params):
            assert all(value.abs().max() < 10 for value in params.values(True, True))

    def test_copies_of_a_loss_share_the_teacher_and_nothing_else(self) -> None:
        """The copy follows the same live teacher; stepping it leaves the original's student and temperature alone."""
        teacher, batch = actor(), transitions()
        loss = make(StudentDQNLoss, actor(), teacher, teacher_temperature="auto").eval()
        duplicate = copy.deepcopy(loss)
        before = loss(batch)["loss_distill"].item()
        assert duplicate(batch)["loss_distill"].item() == before
        with torch.no_grad():
            for parameter in duplicate.parameters():
                parameter.add_(torch.randn_like(parameter))
        duplicate.teacher_temperature = 5.0
        assert duplicate(batch)["loss_distill"].item() != before
        assert loss(batch)["loss_distill"].item() == before
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.mul_(3.0)
        after = copy.deepcopy(loss)(batch)["teacher_entropy"].item()
        assert loss(batch)["teacher_entropy"].item() == after
        duplicate.teacher_temperature = 0.1
        assert duplicate(batch)["teacher_entropy"].item() == after

    def test_plain_modules_read_observation_and_write_action_value(self) -> None:
        """Networks need not be TensorDictModules."""
        student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
        batch = transitions()
        with torch.no_grad():
            expected = independent_forward_kl(
                teacher(batch["observation"]), student(batch["observation"]), (1.0, 1.0)
            ).mean()
        loss = DistillationLoss(student, teacher, teacher_temperature=1.0)
        torch.testing.assert_close(loss(batch)["loss_distill"], expected)

    @pytest.mark.parametrize("key", ["teacher_logits", ("teacher", "logits"), ("old", "values")])
    @pytest.mark.parametrize("out_key", ["action_value", "last part of the key"])
    def test_teacher_network_may_name_its_values_as_the_key_does_or_keep_the_usual_name(
        self, key: str | tuple[str, ...], out_key: str
    ) -> None:
        """Renaming where stored values lie does not break a network that computes them."""
        last = key if isinstance(key, str) else key[-1]
        out_keys = ["action_value" if out_key == "action_value" else last]
        teacher = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=out_keys)
        loss = DistillationLoss(actor(), teacher)
        expected = loss(transitions()) if out_key == "action_value" else None
        loss.set_keys(teacher_action_value=key)
        found = loss(transitions())["loss_distill"]
        assert found.isfinite()
        if expected is not None:
            assert found.item() == expected["loss_distill"].item()


class TestBatch:
    """What the loss does to the batch, and what it does not."""

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    @pytest.mark.parametrize("locked", [False, True])
    def test_batch_is_not_changed(self, loss_class: type[DistillationLoss], locked: bool) -> None:
        """Same keys, same tensors, same numbers; a locked one is as good."""
        batch = with_teacher_values(transitions())
        batch["action_value"] = torch.full((5, 3), 7.0)  # left over from collection
        tensors = {key: (value, value.clone()) for key, value in batch.items(True, True)}
        if locked:
            batch.lock_()
        make(loss_class, actor(), actor())(batch)
        found = dict(batch.items(True, True))
        assert found.keys() == tensors.keys()
        for key, (tensor, values) in tensors.items():
            assert found[key] is tensor
            assert torch.equal(tensor, values)

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_stale_values_in_the_batch_are_not_read(self, loss_class: type[DistillationLoss]) -> None:
        """Samples of a replay buffer hold what the actor wrote when they were collected."""
        loss = make(loss_class, actor(), actor())
        fresh, stale = transitions(), transitions()
        for prefix in ((), ("next",)):
            stale.set((*prefix, "action_value"), torch.full((5, 3), math.nan))
            stale.set((*prefix, "chosen_action_value"), torch.full((5, 1), math.nan))
        for key, value in loss(fresh).items():
            assert loss(stale)[key].item() == value.item()

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_gradient_does_not_grow_with_the_batch(self, loss_class: type[DistillationLoss]) -> None:
        """A batch and the batch repeated three times give the same step."""
        loss = make(loss_class, actor(), actor())
        batch = transitions()
        total(loss(batch)).backward()
        once = gradients(loss)
        total(loss(torch.cat([batch] * 3))).backward()
        torch.testing.assert_close(gradients(loss), once)

    @pytest.mark.parametrize("reduction", [None, "none", "mean", "sum"])
    def test_reduction(self, reduction: str | None) -> None:
        """Per sample, their mean or their sum; the metrics are shares and means, not sums."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0, reduction=reduction)
        losses = loss(two_states())
        per_state = torch.tensor(PER_STATE["forward_kl"])
        expected = {"none": per_state, "sum": per_state.sum()}.get(reduction, per_state.mean())
        torch.testing.assert_close(losses["loss_distill"], expected, atol=2e-6, rtol=0.0)
        assert losses["agreement"].tolist() == ([0.0, 1.0] if reduction == "none" else 0.5)
        assert losses.batch_size == torch.Size([2] if reduction == "none" else [])

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_reduction_none_keeps_the_shape_of_the_batch(self, loss_class: type[DistillationLoss]) -> None:
        """Every entry of the result is ``[*B]``."""
        batch = torch.stack([with_teacher_values(transitions(5, seed=seed)) for seed in (0, 1)])
        losses = make(loss_class, actor(), reduction="none")(batch)
        assert losses.batch_size == (2, 5)
        assert {value.shape for value in losses.values()} == {torch.Size([2, 5])}

    @pytest.mark.parametrize("key", ["valid", ("masks", "valid"), ("collector", "mask")])
    def test_masked_positions_are_left_out(self, key: str | tuple[str, str]) -> None:
        """TorchRL's own mask is found by itself, another by loss_mask_key; the second state may hold anything."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0)
        if key != ("collector", "mask"):
            loss.loss_mask_key = key
        batch = two_states().set(key, torch.tensor([[True], [False]]))
        batch["teacher", "action_value"][1] = math.nan
        losses = loss(batch)
        assert losses["loss_distill"].item() == pytest.approx(0.549306, abs=2e-6)
        assert losses["agreement"].item() == 0.0
        losses["loss_distill"].backward()
        assert all(gradient.isfinite().all() for gradient in gradients(loss))
