"""Hydra configurations of this package, in TorchRL's own groups.

Importing this module registers them beside TorchRL's (:mod:`torchrl.trainers.algorithms.configs`), so that a YAML of
stock groups takes a student by naming one hook::

    defaults:
      - trainer: dqn
      - hook@distill: real_time_distill
      - loss@distill.students: student_dqn
      - optimizer@distill.optimizer: adam
      - _self_
    trainer:
      hooks: ["${distill}"]

Every constructor argument is a field with the same default, and a loss takes its keys as ``<name>_key``, lists standing
for nested ones, as TorchRL's do. Write a student's network once, inside its loss: each ``${...}`` to a network builds
another one. The teacher is nowhere written: the hook finds it in the trainer.

Groups and names: ``loss`` ``policy_distillation`` (plain ``distillation`` is TorchRL's to take),
``continuous_distillation``, ``student_dqn`` and ``teacher_dqn``, ``hook`` ``real_time_distill``, ``bounded_history``,
``keep_warmup_data``, ``sample_to_device``, ``slice_batches``, ``divergence_guard``, ``stop_on_signal`` and
``save_checkpoints``, ``collector`` ``dual_network``, ``env`` ``atari_vec``, ``storage`` ``frame_stack``, ``network``
``nature_tower``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from torchrl.trainers.algorithms.configs.collectors import CollectorConfig
from torchrl.trainers.algorithms.configs.common import _normalize_hydra_key
from torchrl.trainers.algorithms.configs.data import StorageConfig
from torchrl.trainers.algorithms.configs.envs import EnvConfig
from torchrl.trainers.algorithms.configs.hooks import HookConfig
from torchrl.trainers.algorithms.configs.modules import NetworkConfig

from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.configs.losses import (
    ContinuousDistillationLossConfig,
    DistillationLossConfig,
    PQNLossConfig,
    StudentDQNLossConfig,
    StudentPQNLossConfig,
    TeacherDQNLossConfig,
    built,
)
from torchrl_rtpd.replay.storage import FrameStackStorage

__all__ = [
    "AtariVecEnvConfig",
    "BoundedHistoryConfig",
    "ContinuousDistillationLossConfig",
    "DistillationLossConfig",
    "DivergenceGuardConfig",
    "DualNetworkCollectorConfig",
    "FrameStackStorageConfig",
    "KeepWarmupDataConfig",
    "LambdaTargetsConfig",
    "NatureTowerConfig",
    "PQNLossConfig",
    "RealTimeDistillTrainerConfig",
    "SampleToDeviceConfig",
    "SaveCheckpointsConfig",
    "SliceBatchesConfig",
    "StopOnSignalConfig",
    "StudentDQNLossConfig",
    "StudentPQNLossConfig",
    "TeacherDQNLossConfig",
]


@dataclass
class RealTimeDistillTrainerConfig(HookConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.trainers.RealTimeDistillTrainer`.

    ``students`` is the configuration of one loss, or a mapping of such by name; ``optimizer`` one of TorchRL's
    ``optimizer`` group, or a mapping of such by student name. ``checks`` is a list of configurations by ``_target_``,
    such as ``torchrl_rtpd.trainers.DormancyCheck``.
    """

    students: Any = MISSING
    optimizer: Any = MISSING
    clip_norm: float | None = None
    updates_per_step: int = 1
    target_updater: Any = None
    metrics_every_updates: int = 4
    schedules: Any = None
    teacher: Any = "latest"
    checks: Any = None
    _convert_: str = "all"  # plain mappings
    _target_: str = "torchrl_rtpd.trainers.RealTimeDistillTrainer"


@dataclass
class BoundedHistoryConfig(HookConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.trainers.BoundedHistory`."""

    keep: int = 1_000
    _target_: str = "torchrl_rtpd.trainers.BoundedHistory"


@dataclass
class SaveCheckpointsConfig(HookConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.runs.SaveCheckpoints`; the last of a trainer's hooks."""

    directory: str = MISSING
    every_steps: int = MISSING
    keep_last: int = 2
    replay: bool = False
    metadata: Any = None
    monitor: Any = None
    resume_hint: str | None = None
    _target_: str = "torchrl_rtpd.runs.SaveCheckpoints"


@dataclass
class DivergenceGuardConfig(HookConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.runs.DivergenceGuard`, after the students' hook."""

    distiller: Any = None
    policy: str = "stop"
    monitor: Any = None
    saver: Any = None
    explosion: float = 100.0
    collapse: float = 0.2
    collapse_evaluations: int = 3
    max_rollbacks: int = 3
    _target_: str = "torchrl_rtpd.runs.DivergenceGuard"


@dataclass
class StopOnSignalConfig(HookConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.runs.StopOnSignal`."""

    _target_: str = "torchrl_rtpd.runs.StopOnSignal"


@dataclass
class KeepWarmupDataConfig(HookConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.trainers.KeepWarmupData`."""

    replay_buffer: Any = None
    _target_: str = "torchrl_rtpd.trainers.KeepWarmupData"


@dataclass
class LambdaTargetsConfig(HookConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.trainers.LambdaTargets`."""

    gamma: float = 0.99
    lmbda: float = 0.65
    _target_: str = "torchrl_rtpd.trainers.LambdaTargets"


@dataclass
class SampleToDeviceConfig(HookConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.trainers.SampleToDevice`."""

    device: str = MISSING
    _target_: str = "torchrl_rtpd.trainers.SampleToDevice"


@dataclass
class SliceBatchesConfig(HookConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.trainers.SliceBatches`."""

    slice_len: int = MISSING
    _target_: str = "torchrl_rtpd.trainers.SliceBatches"


@dataclass
class DualNetworkCollectorConfig(CollectorConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.collectors.DualNetworkCollector`.

    The fields of TorchRL's :class:`~torchrl.collectors.Collector` come with it, but for its policy: that is made of
    ``teacher`` and ``student``.
    """

    teacher: Any = MISSING
    student: Any = None
    acting: Any = "teacher"
    exploration: Any = None
    record: bool = False
    keep: Any = ()
    frame_stack: int | None = None
    acting_seed: int | None = None
    overlap: bool = False
    _target_: str = "torchrl_rtpd.configs._make_dual_network_collector"


@dataclass
class AtariVecEnvConfig(EnvConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.envs.AtariVecEnv`."""

    game: str = MISSING
    num_envs: int = MISSING
    device: str | None = None
    frame_skip: int = 4
    frame_stack: int = 4
    image_size: Any = 84
    grayscale: bool = True
    clip_rewards: bool = True
    full_action_space: bool = False
    noop_max: int = 30
    sticky_actions: float = 0.0
    max_frames: int = 108_000
    num_threads: int = 0
    seed: int | None = None
    _target_: str = "torchrl_rtpd.envs.AtariVecEnv"


@dataclass
class FrameStackStorageConfig(StorageConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.replay.FrameStackStorage`."""

    max_size: int = MISSING
    num_envs: int = MISSING
    steps_per_write: int = 1
    frame_stack: int = 4
    n_step: int = 1
    gamma: float = 0.99
    channels: int = 1
    device: str = "cpu"
    pixels_key: Any = "pixels"
    scratch_dir: str | None = None
    _target_: str = "torchrl_rtpd.configs._make_frame_stack_storage"


@dataclass
class NatureTowerConfig(NetworkConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.networks.NatureTower`, for TorchRL's ``model: qvalue``."""

    num_actions: int = MISSING
    filters: list[int] = field(default_factory=lambda: [32, 64, 64])
    units: int = 512
    in_channels: int = 4
    frame_size: Any = (84, 84)
    autocast_dtype: Any = None
    norm: Any = None
    _target_: str = "torchrl_rtpd.networks.NatureTower"


def _make_dual_network_collector(**kwargs: Any) -> DualNetworkCollector:
    own: dict[str, Any] = {name: built(kwargs.pop(name)) for name in ("teacher", "student", "exploration")}
    # What is left as it is stays unsaid, since TorchRL's collector refuses some arguments beside others.
    defaults = {entry.name: entry.default for entry in fields(CollectorConfig)}
    given = {name: value for name, value in kwargs.items() if name not in defaults or value != defaults[name]}
    return DualNetworkCollector(**own, **given)


def _make_frame_stack_storage(*, pixels_key: Any, **kwargs: Any) -> FrameStackStorage:
    return FrameStackStorage(pixels_key=_normalize_hydra_key(pixels_key), **kwargs)


_store = functools.partial(ConfigStore.instance().store, provider="torchrl_rtpd")
_store(group="loss", name="policy_distillation", node=DistillationLossConfig)
_store(group="loss", name="continuous_distillation", node=ContinuousDistillationLossConfig)
_store(group="loss", name="student_dqn", node=StudentDQNLossConfig)
_store(group="loss", name="teacher_dqn", node=TeacherDQNLossConfig)
_store(group="loss", name="pqn", node=PQNLossConfig)
_store(group="loss", name="student_pqn", node=StudentPQNLossConfig)
_store(group="hook", name="lambda_targets", node=LambdaTargetsConfig)
_store(group="hook", name="real_time_distill", node=RealTimeDistillTrainerConfig)
_store(group="hook", name="bounded_history", node=BoundedHistoryConfig)
_store(group="hook", name="keep_warmup_data", node=KeepWarmupDataConfig)
_store(group="hook", name="save_checkpoints", node=SaveCheckpointsConfig)
_store(group="hook", name="divergence_guard", node=DivergenceGuardConfig)
_store(group="hook", name="stop_on_signal", node=StopOnSignalConfig)
_store(group="hook", name="sample_to_device", node=SampleToDeviceConfig)
_store(group="hook", name="slice_batches", node=SliceBatchesConfig)
_store(group="collector", name="dual_network", node=DualNetworkCollectorConfig)
_store(group="env", name="atari_vec", node=AtariVecEnvConfig)
_store(group="storage", name="frame_stack", node=FrameStackStorageConfig)
_store(group="network", name="nature_tower", node=NatureTowerConfig)
