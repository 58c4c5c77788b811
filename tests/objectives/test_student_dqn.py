"""The student's temporal-difference error by hand and by TorchRL's own loss."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from objective_parts import (
    actor,
    gradients,
    independent_forward_kl,
    make,
    table_actor,
    total,
    transitions,
    with_teacher_values,
)
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import (
    Categorical,
    OneHot,
)
from torchrl.objectives import DQNLoss, HardUpdate, SoftUpdate

from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss


class TestStudentDQNLoss:
    """Eq. 3: the divergence and the student's own temporal-difference error."""

    # Two states, two actions; every transition goes from the first to the second.
    STUDENT = [[1.0, 2.0], [3.0, 5.0]]
    TARGET = [[0.0, 0.0], [7.0, 4.0]]  # the student's target network prefers action 0 in the second state
    TEACHER = [[0.0, 0.0], [2.0, 6.0]]  # the teacher prefers action 1 there

    def loss(self, **kwargs: Any) -> StudentDQNLoss:
        kwargs.setdefault("teacher_network", table_actor(self.TEACHER))
        loss = StudentDQNLoss(table_actor(self.STUDENT), **kwargs)
        SoftUpdate(loss, tau=0.5)
        self.target(loss).data.copy_(torch.tensor(self.TARGET).T)
        loss.make_value_estimator(gamma=0.5)
        return loss

    def target(self, loss: StudentDQNLoss) -> Tensor:
        """The target network's weight ``[A, S]``."""
        (weight,) = loss.target_student_network_params.values(True, True)
        return weight

    def batch(self, action: int = 1, reward: float = 10.0, terminated: bool = False, **kwargs: Any) -> TensorDict:
        following = {
            "observation": torch.eye(2)[1:],
            "reward": torch.tensor([[reward]]),
            "done": torch.tensor([[terminated]]),
            "terminated": torch.tensor([[terminated]]),
        }
        batch = {"observation": torch.eye(2)[:1], "action": torch.tensor([action]), "next": following}
        return TensorDict({**batch, **kwargs}, [1])

    @pytest.mark.parametrize(
        ("imitation", "action", "terminated", "expected"),
        [
            (True, 1, False, 100.0),  # 10 + 0.5 * 4 - 2 = 10: the teacher chooses, the student's target values (Eq. 5)
            (True, 0, False, 121.0),  # 10 + 0.5 * 4 - 1 = 11
            (False, 1, False, 132.25),  # 10 + 0.5 * 7 - 2 = 11.5: the student's target does both (Eq. 2)
            (False, 0, False, 156.25),  # 10 + 0.5 * 7 - 1 = 12.5
            (True, 1, True, 64.0),  # 10 - 2 = 8: nothing follows the end
            (False, 1, True, 64.0),
        ],
    )
    def test_temporal_difference_error_by_hand(
        self, imitation: bool, action: int, terminated: bool, expected: float
    ) -> None:
        """With gamma 0.5 and a reward of 10."""
        losses = self.loss(imitation=imitation)(self.batch(action, terminated=terminated))
        assert losses["loss_td"].item() == pytest.approx(expected)

    @pytest.mark.parametrize(("loss_function", "expected"), [("l2", 100.0), ("l1", 10.0), ("smooth_l1", 9.5)])
    def test_error_of_ten_under_each_loss_function(self, loss_function: str, expected: float) -> None:
        """Squared, absolute, and linear beyond 1."""
        assert self.loss(loss_function=loss_function)(self.batch())["loss_td"].item() == pytest.approx(expected)

    @pytest.mark.parametrize(("gamma", "expected"), [(0.0, 64.0), (0.9, 134.56), (1.0, 144.0)])
    def test_gamma_discounts_the_next_value(self, gamma: float, expected: float) -> None:
        """(10 + gamma * 4 - 2) ** 2."""
        loss = self.loss()
        loss.make_value_estimator(gamma=gamma)
        assert loss(self.batch())["loss_td"].item() == pytest.approx(expected, rel=1e-6)

    def test_gamma_is_the_papers_unless_told(self) -> None:
        """0.99: (10 + 3.96 - 2) ** 2."""
        loss = self.loss()
        loss.make_value_estimator()
        assert loss(self.batch())["loss_td"].item() == pytest.approx(143.0416, rel=1e-5)

    def test_n_step_replay_discounts_by_the_steps_between(self) -> None:
        """Three steps: (10 + 0.5 ** 3 * 4 - 2) ** 2 = 8.5 ** 2."""
        batch = self.batch(steps_to_next_obs=torch.tensor([[3]]))
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(72.25)

    def test_truncation_still_bootstraps(self) -> None:
        """Done without terminated is a cut, not an end."""
        batch = self.batch()
        batch["next", "done"] = torch.tensor([[True]])
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(100.0)

    def test_lost_life_can_end_bootstrapping(self) -> None:
        """As in Nature's DQN, while the game goes on."""
        batch = self.batch()
        batch["next", "end_of_life"] = torch.tensor([[True]])
        loss = self.loss()
        loss.set_keys(terminated="end_of_life")
        assert loss(batch)["loss_td"].item() == pytest.approx(64.0)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
    def test_actions_may_be_one_hot(self, dtype: torch.dtype) -> None:
        """The same error as for the categorical action 1."""
        batch = self.batch()
        batch["action"] = torch.tensor([[0, 1]]).to(dtype)
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(100.0)

    def test_categorical_actions_may_have_a_trailing_dimension(self) -> None:
        """``[B, 1]`` as well as ``[B]``."""
        batch = self.batch()
        batch["action"] = torch.tensor([[1]])
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(100.0)

    def test_stored_next_teacher_values_choose(self) -> None:
        """The hook stores those of the teacher's target network; here they prefer action 0: (10 + 0.5 * 7 - 2) ** 2."""
        batch = self.batch().set(("next", "teacher", "action_value"), torch.tensor([[9.0, 1.0]]))
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(132.25)
        stored = batch.set(("teacher", "action_value"), torch.tensor([[0.0, 0.0]]))
        assert self.loss(teacher_network=None)(stored)["loss_td"].item() == pytest.approx(132.25)

    def test_forbidden_next_actions_are_not_chosen(self) -> None:
        """The teacher's choice is forbidden; the other is worth 7."""
        batch = self.batch().set(("next", "action_mask"), torch.tensor([[True, False]]))
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(132.25)

    def test_both_parts_and_their_weights(self) -> None:
        """Student odds of 1 to 2 for an even teacher, tenth of both: 3 parts of the one, a half of the other."""
        loss = self.loss(teacher_temperature=1.0, td_coeff=0.5, distill_coeff=3.0)
        probs = [1 / (1 + math.e), math.e / (1 + math.e)]  # softmax of (1, 2)
        divergence = 0.5 * math.log(0.5 / probs[0]) + 0.5 * math.log(0.5 / probs[1])
        losses = loss(self.batch())
        assert losses["loss_distill"].item() == pytest.approx(3.0 * divergence, rel=1e-5)
        assert losses["loss_td"].item() == pytest.approx(50.0)
        assert losses["kl_to_teacher"].item() == pytest.approx(divergence, rel=1e-5)

    def test_gradient_is_that_of_the_students_own_value(self) -> None:
        """Minus twice the error of 10 at the action taken, none at the other and none in the next state."""
        loss = self.loss(distill_coeff=0.0)
        total(loss(self.batch())).backward()
        (gradient,) = gradients(loss)
        assert gradient.T.tolist() == [[0.0, pytest.approx(-20.0)], [0.0, 0.0]]

    def test_temperatures_are_equal_by_default(self) -> None:
        """0.1 on both, so that the outputs stay action values."""
        student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.3]])
        batch = self.batch().set(("teacher", "action_value"), teacher)
        expected = independent_forward_kl(teacher, student, (0.1, 0.1)).mean()
        torch.testing.assert_close(self.loss()(batch)["loss_distill"], expected)

    @pytest.mark.parametrize("action_space", ["categorical", "one-hot"])
    @pytest.mark.parametrize("loss_function", ["l2", "smooth_l1"])
    def test_without_imitation_it_is_torchrls_dqn_loss(self, action_space: str, loss_function: str) -> None:
        """Value and gradient, with terminations, n-step returns and importance weights."""
        spec = Categorical(3) if action_space == "categorical" else OneHot(3)
        student = actor(spec=spec)
        native = DQNLoss(copy.deepcopy(student), loss_function=loss_function, action_space=spec)
        loss = StudentDQNLoss(student, imitation=False, loss_function=loss_function, distill_coeff=0.0)
        for module in (native, loss):
            SoftUpdate(module, tau=0.5)
            module.make_value_estimator(gamma=0.9)
        shift = torch.randn(3, 4), torch.randn(3)
        for params in (native.target_value_network_params, loss.target_student_network_params):
            for value, change in zip(sorted(params.values(True, True), key=Tensor.dim), shift[::-1], strict=True):
                value.data.add_(change)
        batch = with_teacher_values(transitions(20))
        batch["steps_to_next_obs"] = torch.randint(1, 4, (20, 1))
        batch["priority_weight"] = torch.rand(20)
        if action_space == "one-hot":
            batch["action"] = F.one_hot(batch["action"], 3)
        expected, found = native(batch.clone())["loss"], loss(batch)
        torch.testing.assert_close(found["loss_td"], expected)
        expected.backward()
        total(found).backward()
        torch.testing.assert_close(gradients(loss), [parameter.grad for parameter in native.parameters()])

    @pytest.mark.parametrize("tau", [0.5, 0.1])
    def test_soft_update_finds_the_targets(self, tau: float) -> None:
        """They move the given share of the way."""
        loss = self.loss()
        updater = SoftUpdate(loss, tau=tau)  # which begins by making them the student's
        self.target(loss).data.copy_(torch.tensor(self.TARGET).T)
        updater.step()
        expected = torch.lerp(torch.tensor(self.TARGET), torch.tensor(self.STUDENT), tau)
        torch.testing.assert_close(self.target(loss).T, expected)

    def test_hard_update_finds_the_targets(self) -> None:
        """They become the student's at the interval, not before."""
        loss = self.loss()
        updater = HardUpdate(loss, value_network_update_interval=3)
        self.target(loss).data.copy_(torch.tensor(self.TARGET).T)
        unmoved = []
        for _ in range(4):
            updater.step()
            unmoved.append(torch.equal(self.target(loss).T, torch.tensor(self.TARGET)))
        assert unmoved == [True, True, True, False]
        assert torch.equal(self.target(loss).T, torch.tensor(self.STUDENT))

    def test_optimising_leaves_the_targets_alone(self) -> None:
        """They are buffers, copies of what the student was."""
        loss = make(StudentDQNLoss, actor(), actor())
        before = loss.target_student_network_params.clone()
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        total(loss(transitions())).backward()
        optimizer.step()
        assert (before == loss.target_student_network_params).all()
        assert (loss.student_network_params.data != before).any()

    def test_a_linear_student_learns_both_the_policy_and_the_values(self) -> None:
        """A probe with a known answer: one state that ends, rewards 1 and 2 for its two actions."""
        loss = make(
            StudentDQNLoss, table_actor([[0.0, 0.0]]), table_actor([[1.0, 2.0]]), teacher_temperature=1.0, td_coeff=1.0
        )
        end = torch.ones(2, 1, dtype=torch.bool)
        batch = TensorDict(
            {
                "observation": torch.ones(2, 1),
                "action": torch.tensor([0, 1]),
                "next": {
                    "observation": torch.ones(2, 1),
                    "reward": torch.tensor([[1.0], [2.0]]),
                    "done": end,
                    "terminated": end,
                },
            },
            [2],
        )
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.3)
        for _ in range(200):
            losses = loss(batch)
            total(losses).backward()
            optimizer.step()
            optimizer.zero_grad()
        (weight,) = loss.parameters()
        torch.testing.assert_close(weight.detach(), torch.tensor([[1.0], [2.0]]), atol=1e-3, rtol=0.0)
        assert losses["agreement"].item() == 1.0
        assert total(losses).item() == pytest.approx(0.0, abs=1e-5)
