"""Losses that distil a teacher's policy into a student, as TorchRL loss modules.

The student is a loss's only trainable network; what comes from the teacher enters detached. Everything that does not
depend on the actions is in :class:`PolicyDistillationLoss`. :class:`TeacherDQNLoss` is the teacher's own.

:class:`torchrl.objectives.llm.DistillationLoss` is another thing: token log-probabilities of a frozen language model.
"""

from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.objectives.continuous import CONTINUOUS_DIVERGENCES, ContinuousDistillationLoss
from torchrl_rtpd.objectives.discrete import DIVERGENCES, DistillationLoss
from torchrl_rtpd.objectives.pqn import PQNLoss, StudentPQNLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss

__all__ = [
    "CONTINUOUS_DIVERGENCES",
    "DIVERGENCES",
    "ContinuousDistillationLoss",
    "DistillationLoss",
    "PQNLoss",
    "PolicyDistillationLoss",
    "StudentDQNLoss",
    "StudentPQNLoss",
    "TeacherDQNLoss",
]
