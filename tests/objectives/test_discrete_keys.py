"""Keys of the discrete losses, and calls without a tensordict."""

from __future__ import annotations

import pytest
import torch
from objective_parts import (
    FORWARD_KL,
    PER_STATE,
    STUDENT_VALUES,
    TEACHER_VALUES,
    actor,
    gradients,
    make,
    table_actor,
    total,
    transitions,
    two_states,
    with_teacher_values,
)
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_rtpd.objectives.discrete import DIVERGENCES, DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss


class TestKeys:
    """in_keys, out_keys and set_keys, as TorchRL's users expect them."""

    def test_in_keys_come_in_a_fixed_order(self) -> None:
        """They are the positions of dispatched arguments."""
        teacher = TensorDictModule(nn.Linear(4, 3), in_keys=["pixels"], out_keys=["action_value"])
        following = [("next", "reward"), ("next", "done"), ("next", "terminated"), ("next", "observation")]
        assert DistillationLoss(actor()).in_keys == ["observation", ("teacher", "action_value")]
        assert DistillationLoss(actor(), teacher).in_keys == ["observation", "pixels"]
        assert StudentDQNLoss(actor()).in_keys == [
            "observation",
            ("teacher", "action_value"),
            "action",
            *following,
            ("next", "teacher", "action_value"),
        ]
        assert StudentDQNLoss(actor(), actor()).in_keys == ["observation", "action", *following]
        assert StudentDQNLoss(actor(), teacher).in_keys == [
            "observation",
            "pixels",
            "action",
            *following,
            ("next", "pixels"),
        ]
        assert StudentDQNLoss(actor(), imitation=False).in_keys == [
            "observation",
            ("teacher", "action_value"),
            "action",
            *following,
        ]

    def test_in_keys_follow_set_keys_and_can_be_set(self) -> None:
        """Before and after they have first been read."""
        loss = StudentDQNLoss(actor())
        loss.set_keys(teacher_action_value=("t", "q"), terminated="end_of_life")
        assert ("t", "q") in loss.in_keys
        assert ("next", "end_of_life") in loss.in_keys
        loss.set_keys(teacher_action_value="q", action=("agent", "action"))
        assert "q" in loss.in_keys
        assert ("t", "q") not in loss.in_keys
        assert ("agent", "action") in loss.in_keys
        loss.in_keys = ("observation",)
        assert loss.in_keys == ["observation"]

    def test_renamed_and_nested_keys_keep_their_places(self) -> None:
        """Positions of dispatched arguments depend on neither names nor the order of set_keys nor the hash seed."""
        names = {
            "teacher_action_value": ("t", "values"),
            "action": ("agent", "a"),
            "reward": ("agent", "r"),
            "done": ("game", "over"),
            "terminated": "life_over",
        }
        for order in (list(names), list(names)[::-1]):
            loss = StudentDQNLoss(actor())
            for name in order:
                loss.set_keys(**{name: names[name]})
            assert loss.in_keys == [
                "observation",
                ("t", "values"),
                ("agent", "a"),
                ("next", "agent", "r"),
                ("next", "game", "over"),
                ("next", "life_over"),
                ("next", "observation"),
                ("next", "t", "values"),
            ]

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_out_keys_are_what_is_written(self, loss_class: type[DistillationLoss]) -> None:
        """In the order of dispatched results; a trainer sums what begins with "loss"."""
        metrics = ["loss_distill", "kl_to_teacher", "agreement", "teacher_regret", "teacher_entropy", "student_entropy"]
        loss = make(loss_class, actor(), actor())
        assert loss.out_keys == (metrics if loss_class is DistillationLoss else ["loss_td", *metrics])
        assert set(loss(transitions()).keys()) == set(loss.out_keys)

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_out_keys_can_be_selected(self, loss_class: type[DistillationLoss]) -> None:
        """For one loss, not for its class."""
        loss = make(loss_class, actor(), actor())
        loss.select_out_keys("loss_distill")
        assert list(loss(transitions()).keys()) == ["loss_distill"]
        assert len(make(loss_class, actor()).out_keys) > 1

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_unknown_keys_are_refused(self, loss_class: type[DistillationLoss]) -> None:
        """A typo does not pass."""
        with pytest.raises(ValueError, match="teacher_action_values is not an accepted tensordict key"):
            loss_class(actor()).set_keys(teacher_action_values="q")

    @pytest.mark.parametrize(
        ("name", "old", "new"),
        [
            ("teacher_action_value", ("teacher", "action_value"), "teacher_q"),
            ("teacher_action_value", ("teacher", "action_value"), ("stored", "teacher", "q")),
            ("action_mask", "action_mask", "allowed"),
            ("action_mask", "action_mask", ("masks", "allowed")),
            ("priority_weight", "priority_weight", "weights"),
            ("priority_weight", "priority_weight", ("replay", "weights")),
            ("action", "action", "act"),
            ("action", "action", ("agent", "action")),
            ("reward", "reward", ("agent", "reward")),
            ("done", "done", ("game", "over")),
            ("terminated", "terminated", "end_of_life"),
            ("terminated", "terminated", ("agent", "end")),
        ],
    )
    def test_each_key_read_can_be_renamed(
        self, name: str, old: str | tuple[str, ...], new: str | tuple[str, ...]
    ) -> None:
        """The renamed batch gives the loss of the original one."""
        loss = make(StudentDQNLoss, actor(), teacher_temperature=1.0)
        batch = with_teacher_values(transitions())
        mask = torch.tensor([[True, True, False]]).expand(5, 3).clone()
        batch.update({"action_mask": mask, "next": {"action_mask": mask.flip(-1)}})
        batch["priority_weight"] = torch.linspace(0.1, 1.0, 5)
        batch["next", "done"] = torch.zeros(5, 1, dtype=torch.bool)  # is not what ends bootstrapping
        expected = loss(batch)
        old_parts, new_parts = ((key,) if isinstance(key, str) else key for key in (old, new))
        for prefix in ((), ("next",)):
            if batch.get((*prefix, *old_parts), None) is not None:
                batch.set((*prefix, *new_parts), batch.get((*prefix, *old_parts)))
                del batch[(*prefix, *old_parts)]
        loss.set_keys(**{name: new})
        assert getattr(loss.tensor_keys, name) == new
        for key, value in loss(batch).items():
            assert value.item() == expected[key].item()
        loss.set_keys(**{name: None})
        assert getattr(loss.tensor_keys, name) == old

    @pytest.mark.parametrize("key", ["logits", ("student", "logits")])
    def test_student_may_write_its_values_anywhere(self, key: str | tuple[str, str]) -> None:
        """A network that is no QValueActor names its own output."""
        network = nn.Linear(2, 2, bias=False)
        network.weight.data.copy_(torch.tensor(STUDENT_VALUES).T)
        student = TensorDictModule(network, in_keys=["observation"], out_keys=[key])
        loss = DistillationLoss(student, teacher_temperature=1.0)
        loss.set_keys(student_action_value=key)
        assert loss(two_states())["loss_distill"].item() == pytest.approx(FORWARD_KL, abs=2e-6)

    def test_inputs_may_be_nested(self) -> None:
        """Student and teacher read what they like, each its own."""
        student = TensorDictModule(nn.Linear(4, 3), in_keys=[("small", "view")], out_keys=["action_value"])
        teacher = TensorDictModule(nn.Linear(6, 3), in_keys=[("large", "view")], out_keys=["action_value"])
        batch = transitions()
        for part in (batch, batch["next"]):
            part.update({"small": {"view": torch.randn(5, 4)}, "large": {"view": torch.randn(5, 6)}})
        loss = make(StudentDQNLoss, student, teacher)
        assert loss.in_keys[:2] == [("small", "view"), ("large", "view")]
        assert loss(batch)["loss_td"].isfinite()

    def test_student_may_read_the_action_mask_itself(self) -> None:
        """As TorchRL's QValueActor can; the least float it writes for forbidden actions costs nothing."""
        student = actor(action_mask_key="action_mask")
        batch = with_teacher_values(transitions())
        mask = torch.tensor([[True, True, False]]).expand(5, 3)
        batch.update({"action_mask": mask, "next": {"action_mask": mask}})
        for divergence in DIVERGENCES:
            loss = make(StudentDQNLoss, student, divergence=divergence, teacher_temperature="auto")
            batch["action"] = torch.zeros(5, dtype=torch.long)
            losses = loss(batch)
            total(losses).backward()
            assert all(value.isfinite() for value in losses.values())
            assert all(gradient.isfinite().all() for gradient in gradients(loss))


class TestDispatch:
    """Calls without a tensordict."""

    def test_distillation_loss_takes_keywords(self) -> None:
        """Keys joined by underscores in, a tuple in the order of out_keys out.

        The regret is 2, the whole gap of two values in deviations, where the student errs, and 0 in the other state.
        """
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0)
        found = loss(observation=torch.eye(2), teacher_action_value=torch.tensor(TEACHER_VALUES))
        assert [value.item() for value in found] == pytest.approx(
            [FORWARD_KL, FORWARD_KL, 0.5, 1.0, 0.531369, 0.617673], abs=2e-6
        )
        loss.select_out_keys("agreement")
        assert loss(observation=torch.eye(2), teacher_action_value=torch.tensor(TEACHER_VALUES)).item() == 0.5

    def test_samples_stay_apart_when_inputs_and_values_have_one_width(self) -> None:
        """Nothing but the last dimension of the values tells the batch from the actions."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0, reduction="none")
        found = loss(observation=torch.eye(2), teacher_action_value=torch.tensor(TEACHER_VALUES))
        torch.testing.assert_close(found[0], torch.tensor(PER_STATE["forward_kl"]), atol=2e-6, rtol=0.0)

    @pytest.mark.parametrize("with_teacher", [False, True])
    def test_student_dqn_loss_takes_keywords(self, with_teacher: bool) -> None:
        """The same numbers as with the tensordict."""
        loss = make(StudentDQNLoss, actor(), actor() if with_teacher else None)
        batch = transitions() if with_teacher else with_teacher_values(transitions())
        keywords = {"_".join([key] if isinstance(key, str) else key): batch[key] for key in loss.in_keys}
        assert ("next_teacher_action_value" in keywords) is not with_teacher
        expected = loss(batch)
        assert [value.item() for value in loss(**keywords)] == [expected[key].item() for key in loss.out_keys]
