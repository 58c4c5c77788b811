"""How far the teacher has moved since the data was collected, and where students agree with it.

``B`` is the batch, ``A`` the number of actions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_rtpd import functional as RF
from torchrl_rtpd.collectors.policy import TEACHER
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.objectives.discrete import DistillationLoss

__all__ = ["agreement_by_visitor", "teacher_drift"]


def teacher_drift(recorded: Tensor, now: Tensor, temperature: Tensor | float) -> dict[str, float]:
    """How far a teacher has moved since it collected these states.

    Args:
        recorded: its action values at collection ``[B, A]``, as a collector with ``record=True`` stores them.
        now: its action values for the same states ``[B, A]``.
        temperature: of both policies.

    Returns:
        ``drift``, the mean KL(then || now) in nats, and ``kept``, the share of states with the same greedy action.

    Examples:
        >>> values = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> teacher_drift(values, values, 0.1)
        {'drift': 0.0, 'kept': 1.0}
    """
    then_log_probs, now_log_probs = (RF.policy_log_probs(values, temperature) for values in (recorded, now))
    return {
        "drift": RF.forward_kl(then_log_probs, now_log_probs).mean().item(),
        "kept": RF.greedy_agreement(recorded, now).mean().item(),
    }


def agreement_by_visitor(teacher: Tensor, student: Tensor, acted_by: Tensor) -> dict[str, float]:
    """Greedy agreement on states in which the teacher acted, and on those in which a student did.

    Imitation learned on the teacher's states can be worthless on the student's own, to which its mistakes lead
    (Ross et al. 2011, https://arxiv.org/abs/1011.0686).

    Args:
        teacher: action values ``[B, A]``.
        student: action values ``[B, A]``.
        acted_by: who acted ``[B]``, as :class:`~torchrl_rtpd.collectors.TeacherStudentPolicy` writes it. Random steps
            count for neither.

    Returns:
        ``agreement_on_teacher_states`` and ``agreement_on_student_states``; one without states is left out.

    Examples:
        >>> values = torch.eye(3)
        >>> agreement_by_visitor(values, values.roll(1, 0), torch.tensor([1, 1, 0]))
        {'agreement_on_teacher_states': 0.0}
    """
    agrees = RF.greedy_agreement(teacher, student).float()
    groups = {"teacher": acted_by == TEACHER, "student": acted_by > TEACHER}
    return {
        f"agreement_on_{visitor}_states": agrees[rows].mean().item() for visitor, rows in groups.items() if rows.any()
    }


@torch.no_grad()
def measured_drift(
    students: Mapping[str, PolicyDistillationLoss], sub_batch: TensorDictBase, batch: TensorDictBase
) -> dict[str, float]:
    """Both measures where the data allow them, by metric name.

    Args:
        students: losses by name; those that do not compare action values are passed over.
        sub_batch: the minibatch ``[B]`` as sampled, with recorded values and who acted.
        batch: the same with the teacher's values of now.
    """
    found: dict[str, float] = {}
    for name, loss in students.items():
        if not isinstance(loss, DistillationLoss):
            continue
        key = loss.tensor_keys.teacher_action_value
        recorded, now, acted_by = sub_batch.get(key, None), batch.get(key, None), sub_batch.get("acted_by", None)
        if now is None:
            continue
        if recorded is not None and recorded is not now and "teacher/drift" not in found:
            drift = teacher_drift(recorded, now, loss.teacher_temperature)
            found.update((f"teacher/{measure}", value) for measure, value in drift.items())
        if acted_by is not None:
            agreement = agreement_by_visitor(now, loss.student_q_values(batch), acted_by)
            found.update((f"{name}/{measure}", value) for measure, value in agreement.items())
    return found
