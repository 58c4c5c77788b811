"""Distillation inside a running TorchRL trainer.

:class:`RealTimeDistillTrainer` is a hook: after each update of the teacher every student learns from the very same
minibatch. One update, in order::

    sample [B] -> teacher: loss, backward, step (TorchRL's) -> each student: loss, backward, clip, step, target

The teacher's values of the minibatch are those its own loss has just computed, before its step; nothing is sampled
twice, nothing is drawn from a random generator (unless by a student's own dropout), and no gradient leaves a student.
"""

from torchrl_rtpd.trainers.actors import dead_actors_named
from torchrl_rtpd.trainers.checks import Check, DormancyCheck, DriftCheck, RecyclingCheck
from torchrl_rtpd.trainers.concurrent import ConcurrentStepper
from torchrl_rtpd.trainers.critic_warmup import CriticWarmup
from torchrl_rtpd.trainers.cudagraph import CudaGraphStepper
from torchrl_rtpd.trainers.exploration import AnnealExploration
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.kickstarting import Kickstarting
from torchrl_rtpd.trainers.lambda_targets import LambdaTargets
from torchrl_rtpd.trainers.learning_on import learn_on
from torchrl_rtpd.trainers.off_policy import BoundedHistory, KeepOnDevice, KeepWarmupData, SampleToDevice
from torchrl_rtpd.trainers.optimizers import keep_device_options
from torchrl_rtpd.trainers.slices import SliceBatches
from torchrl_rtpd.trainers.stateless import StatelessHook
from torchrl_rtpd.trainers.stepper import RealTimeDistillStepper
from torchrl_rtpd.trainers.student import Student
from torchrl_rtpd.trainers.targets import hard_update_every
from torchrl_rtpd.trainers.teacher_copies import AverageTeacher, BestTeacher, LaggingTeacher, TeacherCopy

__all__ = [
    "AnnealExploration",
    "AverageTeacher",
    "BestTeacher",
    "BoundedHistory",
    "Check",
    "ConcurrentStepper",
    "CriticWarmup",
    "CudaGraphStepper",
    "DormancyCheck",
    "DriftCheck",
    "KeepOnDevice",
    "KeepWarmupData",
    "Kickstarting",
    "LaggingTeacher",
    "LambdaTargets",
    "RealTimeDistillStepper",
    "RealTimeDistillTrainer",
    "RecyclingCheck",
    "SampleToDevice",
    "SliceBatches",
    "StatelessHook",
    "Student",
    "TeacherCopy",
    "dead_actors_named",
    "hard_update_every",
    "keep_device_options",
    "learn_on",
]
