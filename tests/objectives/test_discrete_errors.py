"""What the discrete losses refuse, and by which words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from objective_parts import actor, make, transitions, with_teacher_values
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import (
    Bounded,
    Categorical,
    OneHot,
)
from torchrl.objectives import ValueEstimators

from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.pqn import StudentPQNLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss


class TestErrors:
    """Early where possible, with the rule, the value and the remedy."""

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"divergence": "kl"}, "divergence must be one of forward_kl, reverse_kl, .*: got 'kl'"),
            ({"teacher_temperature": 0.0}, "teacher_temperature must be positive or auto: got 0.0; about 0.1"),
            ({"teacher_temperature": -1.0}, "teacher_temperature must be positive or auto: got -1.0"),
            ({"teacher_temperature": math.nan}, "teacher_temperature must be positive or auto: got nan"),
            ({"teacher_temperature": "automatic"}, "teacher_temperature must be positive or auto: got 'automatic'"),
            ({"teacher_temperature": None}, "teacher_temperature must be positive or auto: got None"),
            ({"teacher_temperature": True}, "teacher_temperature must be positive or auto: got True"),
            ({"teacher_temperature": math.inf}, "teacher_temperature must be positive or auto: got inf"),
            ({"student_temperature": torch.ones(2)}, r"student_temperature must be positive or None: got tensor"),
            ({"student_temperature": 0}, "student_temperature must be positive or None: got 0"),
            ({"student_temperature": "auto"}, "student_temperature must be positive or None: got 'auto'"),
            ({"reduction": "average"}, "reduction must be none, mean or sum: got 'average'"),
            ({"use_prioritized_weights": "yes"}, "use_prioritized_weights must be True, False or auto: got 'yes'"),
        ],
    )
    def test_bad_options_are_refused_at_construction(
        self, loss_class: type[DistillationLoss], arguments: dict[str, Any], message: str
    ) -> None:
        """With what would have been right."""
        with pytest.raises(ValueError, match=message):
            loss_class(actor(), **arguments)

    @pytest.mark.parametrize("loss_class", [StudentDQNLoss, StudentPQNLoss])
    @pytest.mark.parametrize("name", ["td_coeff", "distill_coeff"])
    @pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1", True])
    def test_coefficients_are_numbers_that_are_not_negative(
        self, loss_class: type[DistillationLoss], name: str, value: Any
    ) -> None:
        message = re.escape(f"{name} must lie in [0, inf): got {value!r}; 0 leaves the term out")
        with pytest.raises(ValueError, match=message):
            loss_class(actor(), **{name: value})

    def test_unknown_loss_function_is_refused_at_construction(self) -> None:
        """Not at the first update."""
        with pytest.raises(ValueError, match="loss_function must be l1, l2 or smooth_l1: got 'huber'"):
            StudentDQNLoss(actor(), loss_function="huber")

    @pytest.mark.parametrize("build", [lambda: DistillationLoss(len), lambda: DistillationLoss(actor(), "teacher")])
    def test_networks_must_be_modules(self, build: Callable[[], DistillationLoss]) -> None:
        """A TypeError that names what was passed."""
        with pytest.raises(TypeError, match=r"must be a TensorDictModule or nn.Module: got (builtin_function|str)"):
            build()

    @pytest.mark.parametrize("teacher_spec", [Categorical(6), OneHot(6)])
    @pytest.mark.parametrize("student_spec", [Categorical(18), OneHot(18)])
    def test_different_numbers_of_actions_are_refused_at_construction(
        self, teacher_spec: Categorical | OneHot, student_spec: Categorical | OneHot
    ) -> None:
        """Where both networks declare them."""
        message = "disagree on the number of actions: 6 and 18; build both from the same action spec"
        with pytest.raises(ValueError, match=message):
            DistillationLoss(actor(18, spec=student_spec), actor(6, spec=teacher_spec))

    @pytest.mark.parametrize("spec", [None, Bounded(-1.0, 1.0, shape=()), Bounded(-1.0, 1.0, shape=(2,))])
    def test_specs_that_do_not_count_actions_are_no_reason_to_refuse(self, spec: Any) -> None:
        """The call finds out."""
        teacher = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["action_value"])
        teacher.spec = spec
        assert DistillationLoss(actor(), teacher)(transitions())["loss_distill"].isfinite()

    def test_different_numbers_of_actions_are_refused_at_a_call(self) -> None:
        """Where no spec gave them away."""
        loss = DistillationLoss(actor(), nn.Linear(4, 6))
        with pytest.raises(ValueError, match=r"number of actions: \[5, 6\] and \[5, 3\]; build both"):
            loss(transitions())

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_missing_teacher_values_name_both_remedies(self, loss_class: type[DistillationLoss]) -> None:
        """A network, or values under the key."""
        message = (
            r"the batch has no \('teacher', 'action_value'\).*pass teacher_network.*set_keys\(teacher_action_value"
        )
        with pytest.raises(RuntimeError, match=message):
            make(loss_class, actor())(transitions())

    def test_missing_next_teacher_values_are_said_to_be_those_of_the_next_state(self) -> None:
        """The batch does have values, of the state."""
        batch = with_teacher_values(transitions())
        del batch["next", "teacher"]
        with pytest.raises(RuntimeError, match=r"the batch's next has no \('teacher', 'action_value'\)"):
            make(StudentDQNLoss, actor())(batch)

    def test_student_that_writes_another_key_is_named(self) -> None:
        """With what it wrote and how to say so."""
        student = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["scores"])
        message = r"student network wrote no 'action_value': it wrote \['observation', 'scores'\]; .*set_keys\(student_"
        with pytest.raises(KeyError, match=message):
            DistillationLoss(student, actor())(transitions())

    def test_teacher_that_writes_another_key_is_named(self) -> None:
        """Likewise."""
        teacher = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["scores"])
        message = r"teacher network wrote no 'action_value': it wrote \['observation', 'scores'\]; .*set_keys\(teacher_"
        with pytest.raises(KeyError, match=message):
            DistillationLoss(actor(), teacher)(transitions())

    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_missing_inputs_of_a_network_are_named(self, role: str) -> None:
        """With what the batch has."""
        other = TensorDictModule(nn.Linear(4, 3), in_keys=["pixels"], out_keys=["action_value"])
        loss = DistillationLoss(other, actor()) if role == "student" else DistillationLoss(actor(), other)
        with pytest.raises(
            KeyError, match=rf"the {role} reads \['pixels'\], which the batch lacks: it has .*'observation'"
        ):
            loss(transitions())

    def test_missing_next_inputs_of_the_teacher_are_named(self) -> None:
        """And said to be those of the next state."""
        teacher = TensorDictModule(nn.Linear(4, 3), in_keys=["pixels"], out_keys=["action_value"])
        batch = transitions()
        batch["pixels"] = batch["observation"]
        with pytest.raises(KeyError, match=r"the teacher reads \['pixels'\], which the batch's next lacks"):
            make(StudentDQNLoss, actor(), teacher)(batch)

    @pytest.mark.parametrize("key", ["action", ("next", "reward"), ("next", "terminated"), ("next", "observation")])
    def test_missing_keys_of_the_temporal_difference_error_are_named(self, key: str | tuple[str, str]) -> None:
        """Terminated too, in whose place TorchRL would take done and make every cut an end."""
        batch = transitions()
        del batch[key]
        reader, named, place = "temporal-difference error", repr(key), "batch"
        if key == ("next", "observation"):  # found out by the network that reads it
            reader, named, place = "student", "'observation'", "batch's next"
        with pytest.raises(KeyError, match=re.escape(f"the {reader} reads [{named}], which the {place} lacks")):
            make(StudentDQNLoss, actor(), actor())(batch)

    def test_other_value_estimators_are_refused(self) -> None:
        """Only TD(0) lets the teacher choose the next action."""
        with pytest.raises(NotImplementedError, match=r"not implemented for loss StudentDQNLoss.*TD0"):
            StudentDQNLoss(actor(), actor()).make_value_estimator(ValueEstimators.TDLambda)

    @pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
    def test_priority_share_must_be_a_share(self, share: float) -> None:
        """At construction."""
        with pytest.raises(
            ValueError, match=rf"priority_td_share must lie in \[0, 1\]: got {share}; 0 is the divergence"
        ):
            StudentDQNLoss(actor(), priority_td_share=share)

    def test_values_of_another_batch_are_refused(self) -> None:
        """They would broadcast, or be off by a transition."""
        batch = transitions().set(("teacher", "action_value"), torch.zeros(5, 1, 3))
        loss = DistillationLoss(actor(), teacher_temperature=1.0)
        with pytest.raises(ValueError, match=r"\[\*B, A\] as the student's: got \[5, 1, 3\] and \[5, 3\]"):
            loss(batch)
        with pytest.raises(
            ValueError, match=r"disagree on the batch: \[4, 3\] and \[5, 3\]; store .* one row a sample"
        ):
            loss(observation=torch.zeros(5, 4), teacher_action_value=torch.zeros(4, 3))

    @pytest.mark.parametrize("role", ["teacher", "student"])
    def test_values_must_be_floating_point(self, role: str) -> None:
        """Actions are no values."""
        batch = with_teacher_values(transitions())
        student = actor()
        if role == "teacher":
            batch["teacher", "action_value"] = torch.ones(5, 3, dtype=torch.long)
        else:
            student = TensorDictModule(lambda observation: observation[:, :3].long(), ["observation"], ["action_value"])
        with pytest.raises(
            TypeError, match=rf"the {role}'s values must be floating point: .*action_value.* torch.int64"
        ):
            DistillationLoss(student)(batch)

    @pytest.mark.parametrize(
        ("mask", "error", "message"),
        [
            (torch.ones(5, 3), TypeError, r"'action_mask' is torch.float32 \[5, 3\]"),
            (torch.ones(5, 2, dtype=torch.bool), ValueError, r"'action_mask' is torch.bool \[5, 2\]"),
            (
                torch.ones(5, dtype=torch.bool),
                ValueError,
                r"'action_mask' is torch.bool \[5\]; .*set_keys\(action_mask",
            ),
        ],
    )
    def test_bad_masks_are_named(self, mask: Tensor, error: type[Exception], message: str) -> None:
        """Type and shape."""
        batch = with_teacher_values(transitions()).set("action_mask", mask)
        with pytest.raises(error, match=r"action mask must be bool \[5, 3\], True where allowed: " + message):
            DistillationLoss(actor())(batch)

    def test_bad_mask_of_the_next_state_is_named(self) -> None:
        """As that of the next state."""
        batch = with_teacher_values(transitions())
        batch["next", "action_mask"] = torch.ones(5, 3)
        with pytest.raises(TypeError, match=r"\('next', 'action_mask'\) is torch.float32"):
            make(StudentDQNLoss, actor())(batch)

    @pytest.mark.parametrize("shape", [(5, 3), (5, 1, 1)])
    def test_weights_of_another_shape_are_named(self, shape: tuple[int, ...]) -> None:
        """One a sample."""
        batch = with_teacher_values(transitions()).set("priority_weight", torch.ones(shape))
        message = rf"one a sample, \[5\] or \[5, 1\]: 'priority_weight' is \[{', '.join(map(str, shape))}\]"
        with pytest.raises(ValueError, match=message):
            DistillationLoss(actor())(batch)

    @pytest.mark.parametrize(
        ("action", "message"),
        [
            (torch.zeros(5), r"'action' is torch.float32 \[5\]"),
            (torch.zeros(5, 2, dtype=torch.long), r"'action' is torch.int64 \[5, 2\]"),
        ],
    )
    def test_bad_actions_are_named(self, action: Tensor, message: str) -> None:
        """Type and shape, with what they may be."""
        batch = with_teacher_values(transitions()).set("action", action)
        with pytest.raises(ValueError, match=r"integers \[5\] or one-hot \[5, 3\]: " + message):
            make(StudentDQNLoss, actor())(batch)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_student_whose_outputs_are_not_finite_is_named_at_the_first_call(self, value: float) -> None:
        """With how many samples it spoils."""
        batch = with_teacher_values(transitions())
        batch["observation"][1:3] = value
        message = "student's outputs must be finite: 2 of 5 samples are not; check its inputs, lower its learning rate"
        with pytest.raises(ValueError, match=message):
            DistillationLoss(actor())(batch)

    def test_numbers_are_looked_at_ever_more_rarely(self) -> None:
        """Looking waits for the device: at the 1st, 2nd, 4th, 8th call and so on."""
        loss, batch = DistillationLoss(actor()), with_teacher_values(transitions())
        found = []
        for call in range(1, 20):
            batch["observation"] = torch.full((5, 4), math.nan)
            try:
                loss(batch)
            except ValueError:
                found.append(call)
        assert found == [1, 2, 4, 8, 16]

    def test_what_takes_no_part_may_be_anything(self) -> None:
        """Forbidden actions, padding, and minus infinity where the teacher's policy has it, too."""
        forbidden = torch.tensor([0.0, 0.0, -math.inf])
        student = TensorDictModule(lambda observation: observation[:, :3], ["observation"], ["logits"])
        batch = transitions().set(("teacher", "action_value"), torch.zeros(5, 3) + forbidden)
        batch["observation"] = torch.cat([torch.zeros(5, 3) + forbidden, torch.zeros(5, 1)], -1)
        assert DistillationLoss(student)(batch)["loss_distill"].item() == 0.0
        batch["observation"][:, 2] = math.nan
        batch["action_mask"] = torch.tensor([[True, True, False]] * 5)
        assert DistillationLoss(student)(batch)["loss_distill"].item() == 0.0
        del batch["action_mask"]
        batch["collector", "mask"] = torch.zeros(5, 1, dtype=torch.bool)
        assert DistillationLoss(student)(batch)["loss_distill"].item() == 0.0
