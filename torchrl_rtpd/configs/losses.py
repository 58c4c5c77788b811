"""Hydra configurations of the losses: every constructor argument, and every key as ``<name>_key``."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import MISSING
from torch import nn
from torchrl.trainers.algorithms.configs.common import _normalize_hydra_key
from torchrl.trainers.algorithms.configs.objectives import DQNLossConfig, LossConfig

from torchrl_rtpd.objectives.continuous import ContinuousDistillationLoss
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.pqn import PQNLoss, StudentPQNLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss

__all__ = [
    "ContinuousDistillationLossConfig",
    "DistillationLossConfig",
    "PQNLossConfig",
    "StudentDQNLossConfig",
    "StudentPQNLossConfig",
    "TeacherDQNLossConfig",
    "built",
]


@dataclass
class _DiscreteConfig(LossConfig):
    """Fields that all losses of discrete actions have."""

    student_network: Any = MISSING
    teacher_network: Any = None
    divergence: str = "forward_kl"
    teacher_temperature: Any = 0.01
    student_temperature: float | None = 1.0
    teacher_support: Any = "auto"
    var_nums: Any = None
    reduction: str | None = None
    use_prioritized_weights: Any = "auto"
    teacher_action_value_key: Any = None
    student_action_value_key: Any = None
    action_mask_key: Any = None
    priority_weight_key: Any = None
    priority_key: Any = None


@dataclass
class DistillationLossConfig(_DiscreteConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.objectives.DistillationLoss`."""

    burn_in: int = 0
    _target_: str = "torchrl_rtpd.configs.losses._make_distillation_loss"


@dataclass
class StudentDQNLossConfig(_DiscreteConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.objectives.StudentDQNLoss`.

    ``gamma`` is the discount factor of its TD target; None leaves the loss's own.
    """

    imitation: bool = True
    td_coeff: float = 1.0
    distill_coeff: float = 1.0
    loss_function: str | None = None
    priority_td_share: float = 0.0
    teacher_temperature: Any = 0.1
    student_temperature: float | None = None
    gamma: float | None = None
    action_key: Any = None
    reward_key: Any = None
    done_key: Any = None
    terminated_key: Any = None
    value_key: Any = None
    advantage_key: Any = None
    value_target_key: Any = None
    _target_: str = "torchrl_rtpd.configs.losses._make_student_dqn_loss"


@dataclass
class TeacherDQNLossConfig(DQNLossConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.objectives.TeacherDQNLoss`: TorchRL's of ``DQNLoss``, and a key."""

    teacher_action_value_key: Any = None
    _target_: str = "torchrl_rtpd.configs.losses._make_teacher_dqn_loss"


@dataclass
class PQNLossConfig(LossConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.objectives.PQNLoss`."""

    value_network: Any = MISSING
    loss_function: str = "l2"
    reduction: str | None = None
    action_key: Any = None
    action_value_key: Any = None
    value_target_key: Any = None
    action_mask_key: Any = None
    reward_key: Any = None
    done_key: Any = None
    terminated_key: Any = None
    teacher_action_value_key: Any = None
    _target_: str = "torchrl_rtpd.configs.losses._make_pqn_loss"


@dataclass
class StudentPQNLossConfig(DistillationLossConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.objectives.StudentPQNLoss`."""

    td_coeff: float = 1.0
    distill_coeff: float = 1.0
    loss_function: str | None = None
    teacher_temperature: Any = 0.1
    student_temperature: float | None = None
    action_key: Any = None
    value_target_key: Any = None
    _target_: str = "torchrl_rtpd.configs.losses._make_student_pqn_loss"


@dataclass
class ContinuousDistillationLossConfig(LossConfig):
    """Hydra configuration of :class:`~torchrl_rtpd.objectives.ContinuousDistillationLoss`."""

    student_network: Any = MISSING
    teacher_network: Any = None
    divergence: str = "forward_kl"
    num_samples: int = 16
    seed: int = 0
    reduction: str | None = None
    use_prioritized_weights: Any = "auto"
    burn_in: int = 0
    teacher_loc_key: Any = None
    teacher_scale_key: Any = None
    teacher_action_key: Any = None
    student_loc_key: Any = None
    student_scale_key: Any = None
    student_action_key: Any = None
    priority_weight_key: Any = None
    priority_key: Any = None
    _target_: str = "torchrl_rtpd.configs.losses._make_continuous_distillation_loss"


def _make_loss(loss_class: Any, /, **kwargs: Any) -> Any:
    """A loss with its keys and its discount."""
    names = {key.name for key in fields(loss_class._AcceptedKeys)}
    keys = {name: kwargs.pop(f"{name}_key", None) for name in names}
    gamma = kwargs.pop("gamma", None)
    for role in {"student_network", "teacher_network", "value_network"} & kwargs.keys():
        kwargs[role] = built(kwargs[role])
    loss = loss_class(**kwargs)
    loss.set_keys(**{name: _normalize_hydra_key(key) for name, key in keys.items() if key is not None})
    if gamma is not None:
        loss.make_value_estimator(gamma=gamma)
    return loss


_make_distillation_loss = functools.partial(_make_loss, DistillationLoss)
_make_continuous_distillation_loss = functools.partial(_make_loss, ContinuousDistillationLoss)
_make_student_dqn_loss = functools.partial(_make_loss, StudentDQNLoss)
_make_pqn_loss = functools.partial(_make_loss, PQNLoss)
_make_student_pqn_loss = functools.partial(_make_loss, StudentPQNLoss)
_make_teacher_dqn_loss = functools.partial(_make_loss, TeacherDQNLoss)


def built(network: Any) -> nn.Module | None:
    """The network itself, where TorchRL's configurations give a function that makes it."""
    return network() if isinstance(network, functools.partial) else network
