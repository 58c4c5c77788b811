"""Real-time policy distillation for TorchRL: students that are ready the moment their teacher is.

A teacher is trained by reinforcement learning and, in the same run and from the same minibatches, distilled into one
or more far smaller students (Sun & Fazli 2019, https://arxiv.org/abs/1912.12630).

Names are imported from their modules when they are asked for: ``import torchrl_rtpd`` alone needs no torch, so that an
exported student can be checked on a machine that has none.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrl_rtpd.collectors import DualNetworkCollector, TeacherStudentPolicy
    from torchrl_rtpd.deploy import export_student
    from torchrl_rtpd.envs import AtariVecEnv
    from torchrl_rtpd.evaluation import Evaluator, Scores
    from torchrl_rtpd.files import load_pretrained, load_weights, save_weights
    from torchrl_rtpd.networks import (
        TOWERS,
        NatureTower,
        TeacherByKey,
        TeacherMixture,
        Tower,
        UnitRecycler,
        make_actor,
        recycle_dormant,
    )
    from torchrl_rtpd.objectives import (
        ContinuousDistillationLoss,
        DistillationLoss,
        PQNLoss,
        StudentDQNLoss,
        StudentPQNLoss,
        TeacherDQNLoss,
    )
    from torchrl_rtpd.replay import FrameStackStorage, make_replay_buffer
    from torchrl_rtpd.runs import (
        DivergenceGuard,
        Experiment,
        Protection,
        SaveCheckpoints,
        SizeSearch,
        StopOnSignal,
        StopWhenCaughtUp,
    )
    from torchrl_rtpd.schedules import (
        ExponentialSchedule,
        GapSchedule,
        KLGate,
        LinearSchedule,
        PiecewiseSchedule,
    )
    from torchrl_rtpd.trainers import (
        AnnealExploration,
        AverageTeacher,
        BestTeacher,
        BoundedHistory,
        ConcurrentStepper,
        CriticWarmup,
        CudaGraphStepper,
        DormancyCheck,
        DriftCheck,
        KeepOnDevice,
        KeepWarmupData,
        Kickstarting,
        LaggingTeacher,
        LambdaTargets,
        RealTimeDistillStepper,
        RealTimeDistillTrainer,
        RecyclingCheck,
        SampleToDevice,
        SliceBatches,
        hard_update_every,
        learn_on,
    )

__version__ = "0.1.0"

__all__ = [
    "TOWERS",
    "AnnealExploration",
    "AtariVecEnv",
    "AverageTeacher",
    "BestTeacher",
    "BoundedHistory",
    "ConcurrentStepper",
    "ContinuousDistillationLoss",
    "CriticWarmup",
    "CudaGraphStepper",
    "DistillationLoss",
    "DivergenceGuard",
    "DormancyCheck",
    "DriftCheck",
    "DualNetworkCollector",
    "Evaluator",
    "Experiment",
    "ExponentialSchedule",
    "FrameStackStorage",
    "GapSchedule",
    "KLGate",
    "KeepOnDevice",
    "KeepWarmupData",
    "Kickstarting",
    "LaggingTeacher",
    "LambdaTargets",
    "LinearSchedule",
    "NatureTower",
    "PQNLoss",
    "PiecewiseSchedule",
    "Protection",
    "RealTimeDistillStepper",
    "RealTimeDistillTrainer",
    "RecyclingCheck",
    "SampleToDevice",
    "SaveCheckpoints",
    "Scores",
    "SizeSearch",
    "SliceBatches",
    "StopOnSignal",
    "StopWhenCaughtUp",
    "StudentDQNLoss",
    "StudentPQNLoss",
    "TeacherByKey",
    "TeacherDQNLoss",
    "TeacherMixture",
    "TeacherStudentPolicy",
    "Tower",
    "UnitRecycler",
    "export_student",
    "hard_update_every",
    "learn_on",
    "load_pretrained",
    "load_weights",
    "make_actor",
    "make_replay_buffer",
    "recycle_dormant",
    "save_weights",
]

# The module that holds each name.
_HOMES = {
    "collectors": (
        "DualNetworkCollector",
        "TeacherStudentPolicy",
    ),
    "deploy": ("export_student",),
    "envs": ("AtariVecEnv",),
    "evaluation": (
        "Evaluator",
        "Scores",
    ),
    "files": (
        "load_pretrained",
        "load_weights",
        "save_weights",
    ),
    "networks": (
        "TOWERS",
        "NatureTower",
        "TeacherByKey",
        "TeacherMixture",
        "Tower",
        "UnitRecycler",
        "make_actor",
        "recycle_dormant",
    ),
    "objectives": (
        "ContinuousDistillationLoss",
        "DistillationLoss",
        "PQNLoss",
        "StudentDQNLoss",
        "StudentPQNLoss",
        "TeacherDQNLoss",
    ),
    "replay": (
        "FrameStackStorage",
        "make_replay_buffer",
    ),
    "runs": (
        "DivergenceGuard",
        "Experiment",
        "Protection",
        "SaveCheckpoints",
        "SizeSearch",
        "StopOnSignal",
        "StopWhenCaughtUp",
    ),
    "schedules": (
        "ExponentialSchedule",
        "GapSchedule",
        "KLGate",
        "LinearSchedule",
        "PiecewiseSchedule",
    ),
    "trainers": (
        "AnnealExploration",
        "AverageTeacher",
        "BestTeacher",
        "BoundedHistory",
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
        "hard_update_every",
        "learn_on",
    ),
}


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, when it is first asked for."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is not None:
        value = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
    if any(module.name == name for module in iter_modules(__path__)):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names and the modules."""
    return sorted({*__all__, *globals(), *(module.name for module in iter_modules(__path__))})
