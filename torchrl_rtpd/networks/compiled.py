"""Compiled networks under the names that they have uncompiled.

:func:`torch.compile` wraps a module, and the state of the wrapper has ``_orig_mod.`` before or within its names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["load_plain_state_dict", "plain_name", "plain_state_dict", "uncompiled"]


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that :func:`torch.compile` was given; any other module as it is."""
    return module._orig_mod if isinstance(module, torch._dynamo.OptimizedModule) else module


def plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state under the names it has uncompiled: without the ``_orig_mod.`` of :func:`torch.compile`.

    Examples:
        >>> list(plain_state_dict(torch.compile(nn.Linear(2, 1))))
        ['weight', 'bias']
    """
    return {plain_name(name): value for name, value in module.state_dict().items()}


def plain_name(name: str) -> str:
    """Return the name of a parameter as if no module around it were compiled.

    Examples:
        >>> plain_name("module.0._orig_mod.weight")
        'module.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def load_plain_state_dict(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state, no matter if the saved network, this one, neither or both were compiled.

    Args:
        module: changed in place.
        state_dict: tensors by name, with or without ``_orig_mod.``.

    Raises:
        RuntimeError: as :meth:`torch.nn.Module.load_state_dict`, for names or shapes that differ.

    Examples:
        >>> compiled, plain = torch.compile(nn.Linear(2, 1)), nn.Linear(2, 1)
        >>> load_plain_state_dict(compiled, plain.state_dict())
        >>> torch.equal(compiled.weight, plain.weight)
        True
    """
    own_names = {plain_name(name): name for name in module.state_dict()}
    module.load_state_dict({own_names.get(plain_name(name), name): value for name, value in state_dict.items()})
