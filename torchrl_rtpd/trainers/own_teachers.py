"""Losses with a teacher of their own: another network than the one that the trainer's loss trains.

Beside a trainer a minibatch may hold values of the network that is trained: its loss has written them, or a collector
has stored them. They are nothing to a student of a frozen expert, of one of several teachers or of their mixture, nor
to a network that is pulled to its teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import nn

from torchrl_rtpd.networks.compiled import uncompiled
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.trainers.policies import trained_network

__all__ = ["evaluated", "has_own_teacher", "trained_keys"]


def has_own_teacher(loss: PolicyDistillationLoss, rl_loss: nn.Module) -> bool:
    """Return True if a loss was given a teacher that computes something else than the trained network does.

    A teacher is the trained network if it has the very weights of it, all of them, and nothing that computes but parts
    of it: TorchRL's wrappers, which choose actions or name entries, may differ.

    Args:
        loss: the student's, or a pull.
        rl_loss: the trainer's.
    """
    if loss.teacher_network is None:
        return False
    trained = trained_network(rl_loss)
    own, others = (_weights(network) for network in (loss.teacher_network, rl_loss if trained is None else trained))
    if not own or own != others:
        return True
    known = set() if trained is None else set(map(id, _computing(trained)))
    return any(id(module) not in known for module in _computing(loss.teacher_network))


def _weights(network: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in network.parameters()}


def _computing(network: nn.Module) -> Iterator[nn.Module]:
    """Modules of a network, without lists and TorchRL's wrappers of them."""
    for module in network.modules():
        library = type(module).__module__.split(".")[0] in ("tensordict", "torchrl")
        wrapper = (isinstance(module, TensorDictModuleBase) and library) or uncompiled(module) is not module
        if not (wrapper or isinstance(module, (nn.ModuleList, nn.ModuleDict))):
            yield module


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
