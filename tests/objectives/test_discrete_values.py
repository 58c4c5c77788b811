"""What the discrete losses are worth by hand, and how the temperature follows the teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from objective_parts import (
    FORWARD_KL,
    PER_STATE,
    STUDENT_VALUES,
    TEACHER_VALUES,
    actor,
    gradients,
    independent_forward_kl,
    make,
    table_actor,
    total,
    transitions,
    two_states,
)
from tensordict import TensorDict
from torch.distributions import Categorical as Distribution
from torch.distributions import kl_divergence

from torchrl_rtpd.objectives.discrete import DIVERGENCES, DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss


class TestValues:
    """Numbers a reader can redo, and PyTorch's own distributions."""

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_loss_is_summed_over_actions_and_averaged_over_the_batch(self, divergence: str) -> None:
        """The mean of two numbers worked out by hand."""
        loss = DistillationLoss(
            table_actor(STUDENT_VALUES), divergence=divergence, teacher_temperature=1.0, student_temperature=1.0
        )
        expected = sum(PER_STATE[divergence]) / 2
        assert loss(two_states())["loss_distill"].item() == pytest.approx(expected, abs=2e-6)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_metrics_do_not_depend_on_the_divergence(self, divergence: str) -> None:
        """Forward KL in nats, one agreement out of two, and the entropies of the rows averaged, all detached."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), divergence=divergence, teacher_temperature=1.0)
        losses = loss(two_states())
        assert losses["kl_to_teacher"].item() == pytest.approx(FORWARD_KL, abs=2e-6)
        assert losses["agreement"].item() == 0.5
        assert losses["teacher_entropy"].item() == pytest.approx(0.531369, abs=2e-6)  # of 0.562335 and 0.500402
        assert losses["student_entropy"].item() == pytest.approx(0.617673, abs=2e-6)  # of 0.562335 and 0.673012
        assert [key for key, value in losses.items() if value.requires_grad] == ["loss_distill"]

    def test_each_temperature_reaches_its_own_network(self) -> None:
        """Halved, the teacher's odds of 3 to 1 become 9 to 1, or the student's."""
        values = {}
        for temperatures in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5)):
            loss = DistillationLoss(
                table_actor(STUDENT_VALUES), teacher_temperature=temperatures[0], student_temperature=temperatures[1]
            )
            values[temperatures] = loss(two_states()[:1])["loss_distill"].item()
        assert values[1.0, 1.0] == pytest.approx(0.549306, abs=2e-6)
        assert values[0.5, 1.0] == pytest.approx(0.9 * math.log(3.6) + 0.1 * math.log(0.1 / 0.75), abs=2e-6)
        assert values[1.0, 0.5] == pytest.approx(0.75 * math.log(7.5) + 0.25 * math.log(0.25 / 0.9), abs=2e-6)

    @pytest.mark.parametrize("divergence", ["mse", "huber"])
    def test_distances_of_values_know_no_temperature(self, divergence: str) -> None:
        """They compare the values themselves."""
        loss = DistillationLoss(
            table_actor(STUDENT_VALUES), divergence=divergence, teacher_temperature=0.01, student_temperature=7.0
        )
        assert loss(two_states())["loss_distill"].item() == pytest.approx(sum(PER_STATE[divergence]) / 2, abs=2e-6)

    def test_student_temperature_none_is_the_teachers(self) -> None:
        """Also after the teacher's has been changed."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=0.5, student_temperature=None)
        student, teacher = torch.tensor(STUDENT_VALUES), torch.tensor(TEACHER_VALUES)
        for temperature in (0.5, 2.0):
            loss.teacher_temperature = temperature
            expected = independent_forward_kl(teacher, student, (temperature, temperature)).mean()
            torch.testing.assert_close(loss(two_states())["loss_distill"], expected)

    def test_forbidden_actions_take_no_part(self) -> None:
        """Of three actions the best is forbidden; the other two are those of the table. A closed state counts 0."""
        student = table_actor([[*values, 9.0] for values in [*STUDENT_VALUES, [1.0, 2.0]]])
        teacher = torch.tensor([[*values, 7.0] for values in [*TEACHER_VALUES, [2.0, 1.0]]])
        mask = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
        batch = TensorDict(
            {"observation": torch.eye(3), "teacher": {"action_value": teacher}, "action_mask": mask}, [3]
        )
        loss = DistillationLoss(student, teacher_temperature=1.0, reduction="none")
        losses = loss(batch)
        expected = torch.tensor([*PER_STATE["forward_kl"], 0.0])
        torch.testing.assert_close(losses["loss_distill"], expected, atol=2e-6, rtol=0.0)
        assert losses["agreement"].tolist() == [0.0, 1.0, 0.0]
        losses["loss_distill"].sum().backward()
        assert all(gradient.isfinite().all() for gradient in gradients(loss))

    @pytest.mark.parametrize("batch_size", [[7], [2, 3], [1]])
    @pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "nll", "mse", "huber"])
    def test_loss_equals_pytorchs_own(self, divergence: str, batch_size: list[int]) -> None:
        """On random networks and batches of any shape, with Rusu's temperatures."""
        student = actor()
        observation, teacher_values = torch.randn(*batch_size, 4), torch.randn(*batch_size, 3)
        batch = TensorDict({"observation": observation, "teacher": {"action_value": teacher_values}}, batch_size)
        values = F.linear(observation, *[p.detach() for p in student.parameters()])
        teacher, student_policy = Distribution(logits=teacher_values / 0.01), Distribution(logits=values)
        expected = {
            "forward_kl": kl_divergence(teacher, student_policy),
            "reverse_kl": F.kl_div(
                teacher_values.div(0.01).log_softmax(-1), values.log_softmax(-1), log_target=True, reduction="none"
            ).sum(-1),
            "nll": -student_policy.log_prob(teacher_values.argmax(-1)),
            "mse": (teacher_values - values).square().sum(-1),
            "huber": F.smooth_l1_loss(values, teacher_values, reduction="none").sum(-1),
        }[divergence]
        loss = DistillationLoss(student, divergence=divergence)
        torch.testing.assert_close(loss(batch)["loss_distill"], expected.mean())

    def test_mixed_precision_gives_single_precision_losses(self) -> None:
        """Under autocast, with every part of the loss finite and trainable."""
        loss = make(StudentDQNLoss, actor(), actor(), teacher_temperature="auto")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = loss(transitions())
        assert {value.dtype for value in losses.values()} == {torch.float32}
        total(losses).backward()
        assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(loss))


class TestAutoTemperature:
    """The teacher's temperature follows the spread of its values."""

    def loss(self, **kwargs: Any) -> DistillationLoss:
        return DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature="auto", **kwargs)

    def batch(self, spread: float, **kwargs: Any) -> TensorDict:
        """Values ``spread`` on either side of a mean of 5."""
        values = torch.tensor([[5.0 - spread, 5.0 + spread], [5.0 + spread, 5.0 - spread]])
        return two_states(**kwargs).set(("teacher", "action_value"), values)

    def test_temperature_moves_a_hundredth_of_the_way_each_batch(self) -> None:
        """From its floor of 0.1 towards a spread of 1."""
        loss = self.loss()
        assert loss.teacher_temperature.item() == pytest.approx(0.1)
        loss(self.batch(1.0))
        assert loss.teacher_temperature.item() == pytest.approx(0.109)  # 0.99 * 0.1 + 0.01 * 1
        loss(self.batch(1.0))
        assert loss.teacher_temperature.item() == pytest.approx(0.11791)  # 0.99 * 0.109 + 0.01 * 1

    def test_targets_stay_as_sharp_when_values_grow_tenfold(self) -> None:
        """The temperature settles at each spread, and the teacher's policy is the same at both."""
        loss = self.loss()
        entropies = []
        for spread in (1.0, 10.0):
            for _ in range(500):
                losses = loss(self.batch(spread))
            assert loss.teacher_temperature.item() == pytest.approx(spread, rel=0.01)
            entropies.append(losses["teacher_entropy"].item())
        expected = 0.365334  # softmax of (-1, 1) is (0.119203, 0.880797)
        assert entropies == [pytest.approx(expected, rel=0.02)] * 2

    def test_student_follows_where_its_temperature_is_none(self) -> None:
        """Both divide by the temperature that the batch has just moved."""
        loss = self.loss(student_temperature=None)
        found = loss(self.batch(1.0))["loss_distill"]
        teacher = self.batch(1.0)["teacher", "action_value"]
        expected = independent_forward_kl(teacher, torch.tensor(STUDENT_VALUES), (0.109, 0.109)).mean()
        torch.testing.assert_close(found, expected)

    def test_temperature_never_falls_below_a_tenth(self) -> None:
        """A teacher that does not know yet has no spread."""
        loss = self.loss()
        for _ in range(5):
            loss(self.batch(0.0))
        assert loss.teacher_temperature.item() == pytest.approx(0.1)
        loss.teacher_temperature = 0.1005
        for _ in range(5):
            loss(self.batch(0.0))
        assert loss.teacher_temperature.item() == pytest.approx(0.1)

    def test_floor_can_be_set(self) -> None:
        """A buffer like the temperature itself, where the values of a game are smaller."""
        loss = self.loss()
        loss.temperature_floor = 0.001
        for _ in range(1000):
            loss(self.batch(0.01))
        assert loss.teacher_temperature.item() == pytest.approx(0.01, rel=0.01)

    def test_temperature_outlives_a_bad_batch(self) -> None:
        """A teacher's NaN would stay in the average for ever."""
        loss = self.loss()
        loss(self.batch(1.0))
        loss(self.batch(math.nan))
        assert loss.teacher_temperature.item() == pytest.approx(0.109)

    def test_evaluation_leaves_the_temperature_alone(self) -> None:
        """Only training moves it."""
        loss = self.loss().eval()
        loss(self.batch(1.0))
        assert loss.teacher_temperature.item() == pytest.approx(0.1)

    def test_forbidden_actions_do_not_count(self) -> None:
        """TorchRL's value modules give them the least float, whose spread is infinite."""
        batch = self.batch(1.0)
        forbidden = torch.full((2, 1), torch.finfo(torch.float32).min)
        batch["teacher", "action_value"] = torch.cat([batch["teacher", "action_value"], forbidden], -1)
        batch["action_mask"] = torch.tensor([[True, True, False]] * 2)
        loss = DistillationLoss(table_actor([[*values, 0.0] for values in STUDENT_VALUES]), teacher_temperature="auto")
        loss(batch)
        assert loss.teacher_temperature.item() == pytest.approx(0.109)

    def test_padding_does_not_count(self) -> None:
        """Positions that the loss mask excludes may hold anything."""
        batch = self.batch(1.0, valid=torch.tensor([True, False]))
        batch["teacher", "action_value"][1] = math.nan
        loss = self.loss()
        loss.loss_mask_key = "valid"
        losses = loss(batch)
        assert loss.teacher_temperature.item() == pytest.approx(0.109)
        assert all(value.isfinite() for value in losses.values())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_stored_values_may_have_another_precision(self, dtype: torch.dtype) -> None:
        """The buffer keeps its own."""
        batch = self.batch(1.0)
        batch["teacher", "action_value"] = batch["teacher", "action_value"].to(dtype)
        loss = self.loss()
        loss(batch)
        assert loss.teacher_temperature.dtype == torch.float32
        assert loss.teacher_temperature.item() == pytest.approx(0.109)

    def test_state_dict_carries_the_running_temperature(self) -> None:
        """A resumed run goes on where it stopped, not at the floor."""
        loss = self.loss()
        for _ in range(10):
            loss(self.batch(3.0))
        resumed = self.loss()
        resumed.load_state_dict(loss.state_dict())
        first, second = loss(self.batch(3.0)), resumed(self.batch(3.0))
        assert first["loss_distill"].item() == second["loss_distill"].item()
        assert loss.teacher_temperature.item() == resumed.teacher_temperature.item() > 0.1

    def test_several_batches_can_go_before_one_backward(self) -> None:
        """Each keeps the temperature it was computed with: the gradient is the sum of their own."""
        together, apart = self.loss(student_temperature=None), self.loss(student_temperature=None)
        apart.load_state_dict(together.state_dict())
        batches = [self.batch(spread) for spread in (1.0, 2.0, 3.0)]
        sum(together(batch)["loss_distill"] for batch in batches).backward()
        for batch in batches:
            apart(batch)["loss_distill"].backward()
        torch.testing.assert_close(gradients(together), gradients(apart))
