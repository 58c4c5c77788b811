"""Settings of the teacher's loss that a student's loss takes over: names of entries, discount, loss function."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchrl.modules import QValueModule
from torchrl.objectives.utils import ValueEstimators, default_value_kwargs
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_rtpd.networks.choices import declared_var_nums

__all__ = ["FOLLOWED_KEYS", "TD_LOSS_FUNCTIONS", "estimator_settings", "known_of_teacher"]

FOLLOWED_KEYS = (
    "action",
    "reward",
    "done",
    "terminated",
    "value_target",
    "priority_weight",
    "action_mask",
    "teacher_action_value",
)
"""Keys that a student's loss reads where the teacher's does. Priorities are not among them: each writes its own."""

TD_LOSS_FUNCTIONS = ("l1", "l2", "smooth_l1")
"""Names of a temporal-difference error's function, TorchRL's."""


def known_of_teacher(teacher_loss: nn.Module) -> dict[str, Any]:
    """Return the settings of the teacher's loss that describe the data and the error, by name.

    Args:
        teacher_loss: a loss of TorchRL's or ours. An estimator that it has not made yet is not made here.

    Returns:
        Keys by their names in :data:`FOLLOWED_KEYS`, ``"gamma"`` and ``"average_rewards"`` of its value estimator, and
        ``"loss_function"``, and ``"var_nums"``, the actions of each choice that its network declares; unknown ones are
        left out.

    Examples:
        >>> from torchrl.objectives import DQNLoss
        >>> teacher_loss = DQNLoss(nn.Linear(4, 3), action_space="categorical", loss_function="smooth_l1")
        >>> teacher_loss.set_keys(reward="clipped")
        >>> known = known_of_teacher(teacher_loss)
        >>> known["reward"], known["loss_function"]
        ('clipped', 'smooth_l1')
    """
    keys = getattr(teacher_loss, "tensor_keys", None)
    known = {name: getattr(keys, name) for name in FOLLOWED_KEYS if getattr(keys, name, None) is not None}
    networks = [value for value in vars(teacher_loss).values() if isinstance(value, nn.Module)]  # not its submodules
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, QValueModule) and module.action_mask_key is not None:
            known["action_mask"] = module.action_mask_key
    choices = next(filter(None, map(declared_var_nums, networks)), None)
    if choices is not None:
        known["var_nums"] = choices
    estimator = getattr(teacher_loss, "_value_estimator", None)
    if isinstance(estimator, ValueEstimatorBase):
        known.update(estimator_settings(estimator))
    elif getattr(teacher_loss, "gamma", None) is not None:  # a distributional loss has no estimator
        known["gamma"] = _single(teacher_loss.gamma)
    elif getattr(teacher_loss, "default_value_estimator", None) is ValueEstimators.TD0:  # made at its first batch
        known["gamma"] = _single(default_value_kwargs(ValueEstimators.TD0)["gamma"])
    function = getattr(teacher_loss, "loss_function", None)
    if function in TD_LOSS_FUNCTIONS:
        known["loss_function"] = function
    return known


def estimator_settings(estimator: ValueEstimatorBase) -> dict[str, Any]:
    """Return the settings of a value estimator that a one-step estimator also has, by name."""
    return {"gamma": _single(estimator.gamma), "average_rewards": bool(getattr(estimator, "average_rewards", False))}


def _single(value: Any) -> float:
    """A number in the precision in which estimators keep it."""
    return torch.as_tensor(value).to(torch.float32).item()
