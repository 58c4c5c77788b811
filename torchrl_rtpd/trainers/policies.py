"""Networks inside TorchRL's losses: the one that acts, and those of its critics."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.objectives import LossModule

__all__ = ["acts_by_values", "critic_parameters", "policy_of", "trained_network"]

_POLICIES = ("actor_network", "local_value_network", "value_network")  # an actor's value network is its critic
_CRITICS = ("critic_network", "qvalue_network", "value_network")


def policy_of(loss_module: Any) -> TensorDictModule:
    """Return the network that a loss trains to act: the actor if it has one, otherwise that of the action values.

    Args:
        loss_module: a loss of TorchRL's or ours.

    Raises:
        TypeError: something else, or a loss without such a network.
        ValueError: a copied loss, whose network has other parameters than those that are trained.

    Examples:
        >>> from torchrl.objectives import DQNLoss
        >>> policy_of(DQNLoss(nn.Linear(4, 3), action_space="categorical")).out_keys
        ['action', 'action_value', 'chosen_action_value']
    """
    name = _policy_name(loss_module)
    if name is None:
        raise TypeError(
            f"the loss must be a LossModule with one of {', '.join(_POLICIES)}: got {type(loss_module).__name__}; use "
            "a loss such as DQNLoss, ClipPPOLoss or SACLoss."
        )
    network: TensorDictModule = getattr(loss_module, name)
    held = getattr(loss_module, f"{name}_params", None)
    trained = None if held is None else {id(parameter) for parameter in held.parameters()}
    if trained is not None and trained.isdisjoint(map(id, network.parameters())) and trained:
        raise ValueError(
            f"the loss must train the parameters of its own network: got a {type(loss_module).__name__} that trains "
            "others, as copy.deepcopy leaves it; build the loss again."
        )
    return network


def trained_network(loss_module: Any) -> TensorDictModule | None:
    """Return :func:`policy_of`'s network, whatever its parameters; None for anything without one."""
    name = _policy_name(loss_module)
    return None if name is None else getattr(loss_module, name)


def acts_by_values(loss_module: LossModule) -> bool:
    """Return True for a loss whose acting network writes action values, which have a scale that matters."""
    return _policy_name(loss_module) != "actor_network"


def critic_parameters(loss_module: LossModule) -> list[nn.Parameter]:
    """Return the parameters that the critics of an actor's loss alone hold; empty for a loss without an actor."""
    if acts_by_values(loss_module):
        return []
    actors = {id(parameter) for parameter in policy_of(loss_module).parameters()}
    found: list[nn.Parameter] = []
    for name in _CRITICS:
        held = getattr(loss_module, f"{name}_params", None)
        held = getattr(loss_module, name, None) if held is None else held  # a loss that is not functional
        if isinstance(held, nn.Module):
            found += [parameter for parameter in held.parameters() if id(parameter) not in actors]
    return found


def _policy_name(loss_module: Any) -> str | None:
    if not isinstance(loss_module, LossModule):
        return None
    return next((name for name in _POLICIES if getattr(loss_module, name, None) is not None), None)
