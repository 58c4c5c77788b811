"""Distillation inside a running TorchRL trainer.

:class:`RealTimeDistillTrainer` is a hook: after each update of the teacher every student learns from the very same
minibatch. One update, in order::

    sample [B] -> teacher: loss, backward, step (TorchRL's) -> each student: loss, backward, clip, step, target

The teacher's values of the minibatch are those its own loss has just computed, before its step; nothing is sampled
twice, nothing is drawn from a random generator (unless by a student's own dropout), and no gradient leaves a student.
"""

from torchrl_rtpd.trainers.checkpoints import SaveCheckpoints, newest_checkpoint
from torchrl_rtpd.trainers.cudagraph import CudaGraphStepper
from torchrl_rtpd.trainers.cures import BoundedHistory, KeepWarmupData, SampleToDevice
from torchrl_rtpd.trainers.guards import DivergenceError, DivergenceGuard
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.stepper import RealTimeDistillStepper
from torchrl_rtpd.trainers.stopping import StopOnSignal, StopWhenCaughtUp, catches_up
from torchrl_rtpd.trainers.teachers import AverageTeacher, BestTeacher, LaggingTeacher, TeacherCopy

__all__ = [
    "AverageTeacher",
    "BestTeacher",
    "BoundedHistory",
    "CudaGraphStepper",
    "DivergenceError",
    "DivergenceGuard",
    "KeepWarmupData",
    "LaggingTeacher",
    "RealTimeDistillStepper",
    "RealTimeDistillTrainer",
    "SampleToDevice",
    "SaveCheckpoints",
    "StopOnSignal",
    "StopWhenCaughtUp",
    "TeacherCopy",
    "catches_up",
    "newest_checkpoint",
]
