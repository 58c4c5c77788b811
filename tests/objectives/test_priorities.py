"""Importance weights and priorities of the discrete losses, with TorchRL's buffers."""

from __future__ import annotations

import pytest
import torch
from objective_parts import (
    FORWARD_KL,
    PER_STATE,
    STUDENT_VALUES,
    actor,
    independent_forward_kl,
    make,
    table_actor,
    total,
    transitions,
    two_states,
    with_teacher_values,
)
from tensordict import TensorDict
from torchrl.data import (
    LazyTensorStorage,
    PrioritizedSampler,
    TensorDictReplayBuffer,
)

from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss


class TestPriorities:
    """Prioritised replay: weights read, priorities written."""

    def buffer(self, priority_key: str = "priority") -> TensorDictReplayBuffer:
        sampler = PrioritizedSampler(max_capacity=32, alpha=0.7, beta=0.5)
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(32), sampler=sampler, batch_size=16, priority_key=priority_key
        )
        data = with_teacher_values(transitions(32))
        data.set(priority_key, torch.linspace(0.1, 5.0, 32))
        buffer.extend(data)
        return buffer

    @pytest.mark.parametrize("key", ["priority_weight", "weights", ("replay", "weights")])
    @pytest.mark.parametrize("trailing", [False, True])
    def test_weights_of_a_real_sample_weight_the_mean(self, key: str | tuple[str, str], trailing: bool) -> None:
        """Sum of w * l over sum of w, both parts of the loss; torch.distributions and a hand-written target give l."""
        sample = self.buffer().sample()
        weights = sample.pop("priority_weight")
        assert weights.unique().numel() > 1
        sample.set(key, weights.unsqueeze(-1) if trailing else weights)
        student = actor()
        loss = make(StudentDQNLoss, student, teacher_temperature=1.0)
        loss.set_keys(priority_weight=key)
        loss.make_value_estimator(gamma=0.9)
        losses = loss(sample)

        with torch.no_grad():
            values, following = (
                student(part.select("observation"))["action_value"] for part in (sample, sample["next"])
            )
        divergence = independent_forward_kl(sample["teacher", "action_value"], values)
        chosen = sample["next", "teacher", "action_value"].argmax(-1)
        target = sample["next", "reward"].squeeze(-1)
        target = target + 0.9 * ~sample["next", "terminated"].squeeze(-1) * following[torch.arange(16), chosen]
        errors = (target - values[torch.arange(16), sample["action"]]) ** 2
        torch.testing.assert_close(losses["loss_distill"], (divergence * weights).sum() / weights.sum())
        torch.testing.assert_close(losses["loss_td"], (errors * weights).sum() / weights.sum())
        torch.testing.assert_close(losses["kl_to_teacher"], divergence.mean())

    @pytest.mark.parametrize(
        ("use_prioritized_weights", "expected"),
        [("auto", (3 * 0.549306 + 0.091516) / 4), (True, (3 * 0.549306 + 0.091516) / 4), (False, FORWARD_KL)],
    )
    def test_weights_can_be_switched_off(self, use_prioritized_weights: str | bool, expected: float) -> None:
        """Three parts of the first state to one of the second, or even parts."""
        batch = two_states(priority_weight=torch.tensor([0.75, 0.25]))
        loss = DistillationLoss(
            table_actor(STUDENT_VALUES), teacher_temperature=1.0, use_prioritized_weights=use_prioritized_weights
        )
        assert loss(batch)["loss_distill"].item() == pytest.approx(expected, abs=2e-6)

    @pytest.mark.parametrize(
        ("reduction", "expected"), [("none", [2 * 0.549306, 0.5 * 0.091516]), ("sum", 2 * 0.549306 + 0.5 * 0.091516)]
    )
    def test_weights_multiply_what_is_not_averaged(self, reduction: str, expected: float | list[float]) -> None:
        """As in TorchRL."""
        batch = two_states(priority_weight=torch.tensor([2.0, 0.5]))
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0, reduction=reduction)
        torch.testing.assert_close(loss(batch)["loss_distill"], torch.tensor(expected), atol=4e-6, rtol=0.0)

    def test_weights_that_are_asked_for_must_be_there(self) -> None:
        """True is a promise, "auto" is not."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), use_prioritized_weights=True)
        with pytest.raises(KeyError, match=r"needs 'priority_weight', which the batch lacks.*PrioritizedSampler"):
            loss(two_states())

    def test_no_priority_is_written_unless_a_key_is_set(self) -> None:
        """The trainer's teacher writes the priority of its own."""
        batch = two_states()
        DistillationLoss(table_actor(STUDENT_VALUES))(batch)
        assert set(batch.keys()) == {"observation", "teacher"}

    @pytest.mark.parametrize("key", ["priority", ("replay", "priority")])
    def test_priority_is_each_samples_own_divergence(self, key: str | tuple[str, str]) -> None:
        """Unweighted, detached, with the trailing dimension of TorchRL's priorities."""
        batch = two_states(priority_weight=torch.tensor([2.0, 0.5]))
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0)
        loss.set_keys(priority=key)
        loss(batch)
        expected = torch.tensor(PER_STATE["forward_kl"]).unsqueeze(-1)
        torch.testing.assert_close(batch[key], expected, atol=2e-6, rtol=0.0)
        assert not batch[key].requires_grad

    @pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
    def test_priorities_of_a_perfect_student_are_accepted(self, divergence: str) -> None:
        """Rounding makes half of its divergences slightly negative, which would break the buffer at the next sample."""
        buffer = self.buffer()
        sample = buffer.sample()
        student = actor()
        values = student(sample.select("observation"))["action_value"].detach()
        sample["teacher", "action_value"] = values + 1e-6 * torch.randn_like(values)
        loss = DistillationLoss(student, divergence=divergence, teacher_temperature=0.1, student_temperature=None)
        loss.set_keys(priority="priority")
        loss(sample)
        assert sample["priority"].min() >= 0
        buffer.update_tensordict_priority(sample)
        assert buffer.sample()["index"].numel() == 16

    @pytest.mark.parametrize(
        ("share", "expected"), [(0.0, [0.549306, 0.091516]), (0.25, [0.911980, 1.568637]), (1.0, [2.0, 6.0])]
    )
    def test_priority_can_be_mixed_with_the_td_error(self, share: float, expected: list[float]) -> None:
        """(1 - share) * divergence + share * |TD error|; the errors are 2 - 0 and -6 - 0 at the first action."""
        over = torch.ones(2, 1, dtype=torch.bool)
        following = {"observation": torch.eye(2), "reward": torch.tensor([[2.0], [-6.0]])}
        batch = two_states(action=torch.zeros(2, dtype=torch.long), priority_weight=torch.tensor([0.3, 0.6]))
        batch["next"] = TensorDict({**following, "done": over, "terminated": over.clone()}, [2])
        batch["next", "teacher", "action_value"] = torch.zeros(2, 2)
        loss = make(
            StudentDQNLoss, table_actor(STUDENT_VALUES), teacher_temperature=1.0, td_coeff=3.0, priority_td_share=share
        )
        loss.set_keys(priority=("replay", "priority"))
        loss(batch)
        torch.testing.assert_close(batch["replay", "priority"], torch.tensor(expected).unsqueeze(-1))
        assert not batch["replay", "priority"].requires_grad

    def test_mixed_priorities_are_taken_back_by_the_buffer(self) -> None:
        """A round trip: sampled, weighted, updated and sampled by the new priorities."""
        buffer = self.buffer()
        loss = make(StudentDQNLoss, actor(), teacher_temperature=1.0, priority_td_share=0.5)
        loss.set_keys(priority="priority")
        for _ in range(3):
            sample = buffer.sample()
            total(loss(sample)).backward()
            buffer.update_tensordict_priority(sample)
        indices = sample["index"].flatten()
        found = torch.as_tensor(buffer.sampler._sum_tree[indices.numpy()])
        torch.testing.assert_close(found, (sample["priority"].flatten() + 1e-8) ** 0.7)

    def test_what_the_student_has_not_learned_is_sampled_more_often(self) -> None:
        """One transition of 32 is far off, the others are perfect."""
        buffer = self.buffer()
        everything = buffer[:]
        everything["index"] = torch.arange(32)
        student = actor()
        values = student(everything.select("observation"))["action_value"].detach()
        values[7] = values[7].flip(-1) * 3
        everything["teacher", "action_value"] = values
        loss = DistillationLoss(student, teacher_temperature=1.0)
        loss.set_keys(priority="priority")
        loss(everything)
        buffer.update_tensordict_priority(everything)
        assert (buffer.sample()["index"] == 7).float().mean() > 0.9
