"""Losses with a teacher of their own: another network than the one that the trainer's loss trains.

Beside a trainer a minibatch may hold values of the network that is trained: its loss has written them, or a collector
has stored them. They are nothing to a student of a frozen expert, of one of several teachers or of their mixture, nor
to a network that is pulled to its teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import nn
from torchrl.modules import Delta, TanhDelta

from torchrl_rtpd.networks.compiled import uncompiled
from torchrl_rtpd.networks.running import chooses, flattened
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.trainers.policies import trained_network

__all__ = ["evaluated", "has_own_teacher", "trained_keys"]


def has_own_teacher(loss: PolicyDistillationLoss, rl_loss: nn.Module) -> bool:
    """Return True if a loss was given a teacher that computes something else than the trained network does.

    A teacher is the trained network if it calls the same modules and functions, in the same way on the same entries.
    TorchRL's wrappers around them may differ, and so may what chooses an action by values. Where that cannot be seen,
    as with other names of outputs, the teacher is another network, and run.

    Args:
        loss: the student's, or a pull.
        rl_loss: the trainer's.
    """
    if loss.teacher_network is None:
        return False
    trained = trained_network(rl_loss)
    return trained is None or _computation(loss.teacher_network) != _computation(trained)


def _computation(network: nn.Module) -> list[Any]:
    """All that a network's values, or its actions, depend on, but for the data."""
    network = uncompiled(network)
    parts, sequences = flattened(network)
    calls = [(_call(part), list(part.in_keys), list(part.out_keys_source)) for part in parts if not chooses(part)]
    return [calls, [id(sequence) for sequence in sequences if _is_changed(sequence)], _squashing(network)]


def _call(part: Any) -> Any:
    """What a part calls, and with which fixed arguments; itself if it is more than TorchRL's plain wrapper."""
    if type(part).forward is not TensorDictModule.forward or _is_changed(part):
        return id(part)
    fixed = [{name: id(value) for name, value in given.items()} for given in (part.method_kwargs, part._get_kwargs)]
    return id(uncompiled(part.module)), part.method, part._kwargs, fixed


def _is_changed(module: nn.Module) -> bool:
    """Return True if hooks of others may change what a module reads or writes: ours watch, tensordict's select."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return any(hook.__module__.split(".")[0] not in ("tensordict", "torchrl_rtpd") for hook in hooks)


def _squashing(network: nn.Module) -> Any:
    """The distribution of a deterministic policy, which makes its action; those of others follow what is compared."""
    samplers = [module for module in network.modules() if isinstance(module, ProbabilisticTensorDictModule)]
    if not samplers or samplers[-1].distribution_class not in (Delta, TanhDelta):
        return None
    options = samplers[-1].distribution_kwargs or {}
    return samplers[-1].distribution_class, {name: id(value) for name, value in options.items()}


def trained_keys(loss: PolicyDistillationLoss, rl_loss: nn.Module) -> list[NestedKey]:
    """Return keys of a minibatch under which a loss would take the trained network's outputs for its own teacher's.

    They are those that have not been renamed, those that the trainer's loss writes, and those that its network does. A
    key of another name, set by the user, is read: the data hold what was put there. Empty for a loss without a teacher
    of its own.
    """
    if not has_own_teacher(loss, rl_loss):
        return []
    written = getattr(getattr(rl_loss, "tensor_keys", None), "teacher_action_value", None)
    network = trained_network(rl_loss)
    keys = [*vars(loss.default_keys()).values(), written, *([] if network is None else network.out_keys)]
    trained = {unravel_key(key) for key in keys if key is not None}
    return [key for key in map(unravel_key, loss.stored_keys()) if key in trained]


def evaluated(
    loss: PolicyDistillationLoss, batch: TensorDictBase, hidden: Sequence[NestedKey], *, metrics: bool = True
) -> TensorDictBase:
    """Return loss and metrics of a minibatch ``[B]`` of which some entries, and those of the next state, are hidden.

    Args:
        loss: the student's, or a pull.
        batch: not changed, but for a priority that the loss writes.
        hidden: what :func:`trained_keys` returned.
        metrics: compute the metrics.
    """
    if not hidden:
        return loss.evaluate(batch, metrics=metrics)
    shown = batch.exclude(*hidden, *(unravel_key(("next", key)) for key in hidden))
    losses = loss.evaluate(shown, metrics=metrics)
    if loss.tensor_keys.priority is not None:
        batch.set(loss.tensor_keys.priority, shown.get(loss.tensor_keys.priority))
    return losses
