"""Optimisers whose state moves between devices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["keep_device_options"]

_DEVICE_BOUND = ("capturable", "fused", "foreach")
_KEPT = "_rtpd_keeps_device_options"  # set on an optimiser that does


def keep_device_options(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let an optimiser keep its own device-bound options whenever a state is loaded, in whichever way.

    PyTorch takes ``capturable``, ``fused`` and ``foreach`` from the saved state, and a learning rate as the tensor it
    was. So a state of a captured run does not go on on a CPU. Here these options stay what the optimiser was built
    with. Numbers that were tensors become tensors on the optimiser's own device if its own are, plain numbers
    otherwise.

    Args:
        optimizer: changed. A second call does nothing.

    Returns:
        The optimiser itself.

    Examples:
        >>> def adam():
        ...     return torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=0.5)
        >>> state = adam().state_dict()
        >>> state["param_groups"][0].update(capturable=True, lr=torch.tensor(0.25))
        >>> optimizer = keep_device_options(adam())
        >>> optimizer.load_state_dict(state)
        >>> optimizer.param_groups[0]["capturable"], optimizer.param_groups[0]["lr"]
        (False, 0.25)
    """
    if not getattr(optimizer, _KEPT, False):
        setattr(optimizer, _KEPT, True)
        optimizer.register_load_state_dict_pre_hook(_with_own_options)
    return optimizer


def _with_own_options(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state to load, fit for the devices of an optimiser. PyTorch refuses one with other groups."""
    own_groups, groups = optimizer.param_groups, state_dict["param_groups"]
    if len(groups) != len(own_groups):
        return state_dict
    state = dict(state_dict["state"])
    for saved, own in zip(groups, own_groups, strict=True):
        if not (own.get("capturable") or own.get("fused")):  # such an optimiser counts its steps on the CPU
            for number in saved["params"]:
                if isinstance(state.get(number, {}).get("step"), Tensor):
                    state[number] = {**state[number], "step": state[number]["step"].cpu()}
    fitted = [_fitted(saved, own) for saved, own in zip(groups, own_groups, strict=True)]
    return {**state_dict, "state": state, "param_groups": fitted}


def _fitted(saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A saved group of parameters with the device-bound options of the optimiser's own group."""
    group = {name: value for name, value in saved.items() if name not in _DEVICE_BOUND}
    for name, value in group.items():
        model = own.get("lr" if name == "initial_lr" else name)  # schedulers add the former, of the rate's kind
        if isinstance(model, Tensor) and isinstance(value, (Tensor, float)):
            group[name] = torch.as_tensor(value, dtype=model.dtype, device=model.device)
        elif isinstance(value, Tensor):
            group[name] = value.item()
    return {**group, **{name: own[name] for name in _DEVICE_BOUND if name in own}}
