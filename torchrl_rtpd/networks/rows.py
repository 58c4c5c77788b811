"""Recurrent layers over rows of steps within which no game begins, without what TorchRL's modules add for others.

``LSTMModule`` and ``GRUModule`` fill an entry with zeros for what they remember at every step but the last. The layer
inside gives the same outputs, to the last bit, and the memory after the last step alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key, unravel_key_list
from torch import Tensor, nn
from torchrl.modules import GRUModule, LSTMModule

from torchrl_rtpd.networks.memory import START_KEY

__all__ = [
    "begins_within",
    "is_recurrent",
    "layer_inside",
    "memory_as_weights",
    "memory_read",
    "run_rows",
    "through_rows",
]


def is_recurrent(module: nn.Module) -> TypeGuard[LSTMModule | GRUModule]:
    """Return True for TorchRL's recurrent modules."""
    return isinstance(module, (LSTMModule, GRUModule))


def memory_read(module: LSTMModule | GRUModule) -> list[NestedKey]:
    """Return the entries of a module's memory, in the order in which its layer takes them."""
    return [key for key in unravel_key_list(list(module.in_keys))[1:] if key != START_KEY]


def memory_as_weights(module: Any, key: NestedKey, stored: Tensor) -> Tensor:
    """Return stored memory in the precision of a module's weights, which PyTorch's layers ask for.

    Raises:
        TypeError: memory that is no floating point; ``key`` is its name.
    """
    if not stored.is_floating_point():
        raise TypeError(
            f"the memory of a network must be floating point: {key!r} in the batch is {stored.dtype}; store what the "
            "network wrote."
        )
    return stored.to(layer_inside(module).weight_ih_l0.dtype)


def through_rows(
    parts: Sequence[TensorDictModuleBase], inputs: TensorDictBase
) -> tuple[TensorDictBase, dict[NestedKey, Tensor]]:
    """Run parts of a network in turn over rows of steps, in TorchRL's recurrent mode.

    Args:
        parts: those of a network, in their order.
        inputs: what they read, ``[*B, T]``. Changed.

    Returns:
        All that the parts read and wrote; and what layers that were run by themselves remember after the last step,
        ``[*B, layers, hidden]`` by key. The others have written it under ``"next"``.
    """
    reached: dict[NestedKey, Tensor] = {}
    alone = [is_recurrent(part) and _may_run_alone(part, parts) for part in parts]
    if torch.compiler.is_compiling() or not any(alone) or begins_within(inputs):
        alone = [False] * len(parts)
    for part, by_itself in zip(parts, alone, strict=True):
        if by_itself:
            reached.update(run_rows(part, inputs))
        else:
            inputs = part(inputs)
    return inputs, reached


def begins_within(rows: TensorDictBase) -> bool:
    """Return True if a game begins in any row ``[*B, T]`` behind its first step."""
    return bool(rows.get(START_KEY).reshape(rows.shape)[..., 1:].any())


def _may_run_alone(module: LSTMModule | GRUModule, parts: Sequence[TensorDictModuleBase]) -> bool:
    """Return True if a layer of PyTorch does all that a module is there for."""
    if type(module) not in (LSTMModule, GRUModule) or type(layer_inside(module)) not in (nn.LSTM, nn.GRU):
        return False
    if module._forward_hooks or module._forward_pre_hooks or module.recurrent_backend not in ("auto", "pad"):
        return False
    written = set(unravel_key_list(list(module.out_keys))[1:])
    return not any(unravel_key(key) in written for part in parts if part is not module for key in part.in_keys)


def run_rows(module: Any, tensordict: TensorDictBase) -> Mapping[NestedKey, Tensor]:
    """Write a module's features of rows ``[*B, T]`` within which no game begins, and return what it remembers then.

    The rows begin with the memory that the batch holds for their first steps, and with zeros if it holds none.

    Args:
        module: an ``LSTMModule`` or ``GRUModule``.
        tensordict: holds what the module reads. Changed.

    Examples:
        >>> from tensordict import TensorDict
        >>> module = GRUModule(input_size=4, hidden_size=8, in_key="observation", out_key="features")
        >>> rows = TensorDict({"observation": torch.zeros(3, 5, 4)}, [3, 5])
        >>> run_rows(module, rows)["recurrent_state"].shape, rows["features"].shape
        (torch.Size([3, 1, 8]), torch.Size([3, 5, 8]))
    """
    seen, keys, shape = tensordict.get(module.in_keys[0]), memory_read(module), tensordict.shape
    stored = [tensordict.get(key, None) for key in keys]
    state = None
    if not any(value is None for value in stored):
        firsts = [value.select(len(shape) - 1, 0).flatten(0, len(shape) - 2) for value in stored]  # [N, layers, hidden]
        given = tuple(first.transpose(0, 1).contiguous() for first in firsts)
        state = given if len(given) > 1 else given[0]
    features, after = layer_inside(module)(seen.flatten(0, len(shape) - 2), state)
    tensordict.set(module.out_keys[0], features.unflatten(0, shape[:-1]))
    states = (after,) if isinstance(after, Tensor) else after
    return {key: value.transpose(0, 1).unflatten(0, shape[:-1]) for key, value in zip(keys, states, strict=True)}


def layer_inside(module: LSTMModule | GRUModule) -> Any:
    """Return the layer that computes, PyTorch's own or TorchRL's in Python."""
    return module.lstm if isinstance(module, LSTMModule) else module.gru
