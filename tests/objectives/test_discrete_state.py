"""State, schedules and compilation of the discrete losses."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from objective_parts import actor, gradients, make, noisy_actor, total, transitions, with_teacher_values
from torch import nn

from torchrl_rtpd.objectives.discrete import DIVERGENCES, DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss


class TestState:
    """Saving, copying, casting, scheduling."""

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    @pytest.mark.parametrize("called", [False, True])
    def test_state_dict_round_trip(self, loss_class: type[DistillationLoss], called: bool) -> None:
        """Into a fresh loss that has not run yet, from one that has or has not."""
        teacher = actor()
        loss = make(loss_class, actor(), teacher, teacher_temperature="auto")
        if called:
            loss(transitions())
        fresh = make(loss_class, actor(), teacher, teacher_temperature="auto")
        assert fresh.state_dict().keys() == loss.state_dict().keys()
        fresh.load_state_dict(loss.state_dict())
        expected = loss(transitions())
        for key, value in fresh(transitions()).items():
            assert value.item() == expected[key].item()

    def test_state_of_an_automatic_temperature_is_not_taken_for_a_fixed_one(self) -> None:
        """A run resumed with the other setting is told so."""
        automatic, fixed = (DistillationLoss(actor(), teacher_temperature=value) for value in ("auto", 0.1))
        with pytest.raises(RuntimeError, match=r'Unexpected key.*"temperature_floor"'):
            fixed.load_state_dict(automatic.state_dict())
        with pytest.raises(RuntimeError, match=r'Missing key.*"temperature_floor"'):
            automatic.load_state_dict(fixed.state_dict())

    def test_the_network_handed_over_is_the_one_that_learns(self) -> None:
        """Its caller goes on to evaluate and export it."""
        student = actor()
        loss = DistillationLoss(student, actor())
        optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
        before = [parameter.clone() for parameter in student.parameters()]
        loss(transitions())["loss_distill"].backward()
        optimizer.step()
        assert not any(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))

    def test_casting_reaches_the_student_and_the_temperatures(self) -> None:
        """As for every module; the teacher keeps its own precision."""
        teacher = actor()
        loss = make(StudentDQNLoss, actor(), teacher, teacher_temperature="auto").to(torch.float64)
        assert {value.dtype for value in loss.state_dict().values()} == {torch.float64}
        assert {value.dtype for value in teacher.state_dict().values()} == {torch.float32}
        stored = with_teacher_values(transitions())
        stored = stored.apply(lambda value: value.double() if value.is_floating_point() else value)
        assert loss(stored)["loss_td"].dtype == torch.float64

    def test_temperatures_and_coefficients_lie_where_the_student_does(self) -> None:
        """A loss of networks on another device need not be moved there."""
        student = actor().to("meta")
        loss = StudentDQNLoss(student, student_temperature=1.0)
        loss.make_value_estimator(gamma=0.9)
        assert {value.device.type for value in loss.state_dict().values()} == {"meta"}

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_losses_on_a_gpu_equal_those_on_the_cpu(self, loss_class: type[DistillationLoss]) -> None:
        """Networks and batch are moved, the loss is not."""
        student, teacher = actor(), actor()
        on_cpu = make(loss_class, student, teacher, teacher_temperature="auto")
        on_gpu = make(
            loss_class, copy.deepcopy(student).cuda(), copy.deepcopy(teacher).cuda(), teacher_temperature="auto"
        )
        expected, found = on_cpu(transitions()), on_gpu(transitions().cuda())
        total(found).backward()
        for key, value in expected.items():
            torch.testing.assert_close(found[key].cpu(), value, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["teacher_temperature", "student_temperature", "td_coeff", "distill_coeff"])
    @pytest.mark.parametrize("initial", [1, 1.0])
    def test_coefficients_can_be_scheduled_in_place(self, name: str, initial: float) -> None:
        """One buffer all along, in the state, also where a configuration file said 1 rather than 1.0."""
        loss = make(StudentDQNLoss, actor(), actor(), **{name: initial})
        before = loss(transitions())
        buffer = getattr(loss, name)
        setattr(loss, name, 0.25)
        assert getattr(loss, name) is buffer
        assert loss.state_dict()[name].item() == 0.25
        after = loss(transitions())
        assert any(before[key].item() != after[key].item() for key in ("loss_distill", "loss_td"))

    @pytest.mark.parametrize("name", ["teacher_temperature", "student_temperature", "td_coeff", "distill_coeff"])
    @pytest.mark.parametrize("number", [np.float32(0.5), np.array(0.5), np.int64(2), torch.tensor(0.5)])
    def test_every_real_number_will_do(self, name: str, number: Any) -> None:
        """At construction and later, for a state of one type."""
        loss = make(StudentDQNLoss, actor(), actor(), **{name: number})
        assert getattr(loss, name).item() == float(number)
        setattr(loss, name, 3.0 * number)
        assert getattr(loss, name).item() == 3.0 * float(number)
        assert loss.state_dict()[name].dtype == torch.float32

    @pytest.mark.parametrize("name", ["teacher_temperature", "student_temperature", "temperature_floor"])
    @pytest.mark.parametrize("value", [0.0, -1, math.nan, np.float32(-1)])
    def test_temperatures_cannot_be_scheduled_away(self, name: str, value: float) -> None:
        """Not to zero, and the old one stays."""
        loss = DistillationLoss(actor(), teacher_temperature="auto")
        before = getattr(loss, name).item()
        with pytest.raises(ValueError, match=f"{name} must be positive or left as it is: got"):
            setattr(loss, name, value)
        assert getattr(loss, name).item() == before

    def test_two_losses_share_nothing(self) -> None:
        """Keys, temperatures and output keys of one leave the other alone."""
        first, second = DistillationLoss(actor(), actor()), DistillationLoss(actor(), actor())
        first.set_keys(priority="priority")
        first.teacher_temperature = 3.0
        first.select_out_keys("loss_distill")
        assert second.tensor_keys.priority is None
        assert second.teacher_temperature.item() == pytest.approx(0.01)
        assert len(second.out_keys) == 6


class TestCompile:
    """The losses can be compiled whole."""

    # tensordict asks for a setting that this torch warns about, as an error in the middle of a trace.
    @pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules is deprecated:FutureWarning")
    @pytest.mark.parametrize(
        ("loss_class", "source", "temperature", "backend"),
        [
            (DistillationLoss, "batch", "auto", "eager"),
            (DistillationLoss, "network", 0.1, "aot_eager"),
            (StudentDQNLoss, "network", "auto", "eager"),
            (StudentDQNLoss, "batch", 0.1, "aot_eager"),
        ],
    )
    def test_compiled_loss_and_gradient_equal_the_eager_ones(
        self, loss_class: type[DistillationLoss], source: str, temperature: float | str, backend: str
    ) -> None:
        """Without a graph break, and with the teacher still in eval mode inside and in its own outside."""
        torch._dynamo.reset()
        teacher = noisy_actor().train() if source == "network" else None
        loss = make(loss_class, actor(), teacher, teacher_temperature=temperature)
        batch = transitions() if source == "network" else with_teacher_values(transitions())
        eager = copy.deepcopy(loss)
        compiled = torch.compile(loss, fullgraph=True, backend=backend)
        for _ in range(2):  # the second call runs what the first one compiled
            expected, found = eager(batch), compiled(batch)
            for key in expected.keys():
                torch.testing.assert_close(found[key], expected[key])
            total(expected).backward()
            total(found).backward()
            torch.testing.assert_close(gradients(loss), gradients(eager))
        assert loss.teacher_temperature.item() == pytest.approx(eager.teacher_temperature.item())
        if teacher is not None:
            assert all(module.training for module in teacher.modules())
            assert all(parameter.grad is None for parameter in teacher.parameters())

    @pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules is deprecated:FutureWarning")
    def test_every_divergence_compiles_whole(self) -> None:
        """With masks and weights; one graph of them all, forward and backward, without a break."""
        torch._dynamo.reset()
        batch = with_teacher_values(transitions())
        mask = torch.tensor([[True, True, False]] * 4 + [[False] * 3])
        batch.update({"action_mask": mask, "priority_weight": torch.linspace(0.1, 1.0, 5)})
        losses = nn.ModuleList(DistillationLoss(actor(), divergence=name) for name in DIVERGENCES)
        compiled = torch.compile(
            lambda batch: [loss(batch)["loss_distill"] for loss in losses], fullgraph=True, backend="aot_eager"
        )
        eager = [loss(batch)["loss_distill"] for loss in losses]
        sum(eager).backward()
        expected = [gradients(loss) for loss in losses]
        found = compiled(batch)
        sum(found).backward()
        torch.testing.assert_close(found, eager)
        torch.testing.assert_close([gradients(loss) for loss in losses], expected)
