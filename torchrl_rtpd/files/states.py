"""States of components as JSON with the tensors put aside, and back: data alone, no code."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase, is_non_tensor, is_tensor_collection
from torch import Tensor

from torchrl_rtpd.files.tensorfile import read_tensor

__all__ = ["decoded", "encoded", "refuse_non_tensors", "with_batch_sizes"]

_MAX_DEPTH = 64  # of nested states; ours have eight


def encoded(value: Any, tensors: dict[str, Tensor], where: str, depth: int = 0) -> Any:
    """Return a state as JSON, its tensors put aside.

    Args:
        value: mappings, lists, tuples and tensordicts of tensors, numbers, strings, booleans and None.
        tensors: receives the tensors, by the name under which the JSON has them.
        where: name of the state, for messages.
        depth: levels above this one.

    Raises:
        TypeError: a value of another type, with its place.

    Examples:
        >>> tensors = {}
        >>> encoded({"step": 3, "weight": torch.zeros(2)}, tensors, "part")
        {'dict': [['step', 3], ['weight', {'tensor': '000000'}]]}
        >>> tensors
        {'000000': tensor([0., 0.])}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if depth < _MAX_DEPTH:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            name = f"{len(tensors):06d}"
            tensors[name] = value.detach()
            dense = value.is_contiguous() or not value.numel()
            return {"tensor": name} if dense else {"tensor": name, "stride": list(value.stride())}
        if isinstance(value, TensorDictBase):
            entries = {key: value.get(key) for key in sorted(value.keys())}
            return {"tensordict": _pairs(entries, tensors, where, depth), "batch_size": list(value.batch_size)}
        if isinstance(value, Mapping):
            pairs, sizes = _pairs(value, tensors, where, depth), _batch_sizes(value)
            return {"dict": pairs, "batch_sizes": sizes} if sizes else {"dict": pairs}
        if isinstance(value, (list, tuple)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [encoded(item, tensors, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]}
    raise TypeError(
        "a checkpoint holds tensors, numbers, strings, booleans, None, and mappings, lists, tuples and tensordicts of "
        f"them, at most {_MAX_DEPTH} deep: got {type(value).__name__} at {where}; let its state_dict return "
        "one of these."
    )


def _pairs(entries: Mapping[Any, Any], tensors: dict[str, Tensor], where: str, depth: int) -> list[list[Any]]:
    keys = [(encoded(key, tensors, where, depth + 1), key) for key in entries]
    return [[key, encoded(entries[own], tensors, f"{where}.{own}", depth + 1)] for key, own in keys]


def _batch_sizes(state: Mapping[Any, Any]) -> dict[str, list[int]]:
    """Return the batch size of each tensordict in a state by its prefix: tensordict keeps them beside the entries."""
    found = getattr(state, "_metadata", None) or {}
    return {
        prefix: list(level["batch_size"])
        for prefix, level in found.items()
        if isinstance(level, Mapping) and "batch_size" in level
    }


def decoded(value: Any, file: Any, copy: bool, depth: int = 0) -> Any:
    """Return the state that :func:`encoded` was given, tensors on the CPU.

    Args:
        value: JSON of a state.
        file: an open safetensors file with its tensors.
        copy: copy the tensors out of the file if True.
        depth: levels above this one.

    Raises:
        ValueError: JSON that :func:`encoded` does not return.
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a list without its kind")
        return value
    if depth > 2 * _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    kind = next(iter(value), None)
    if kind == "tensor":
        return _with_stride(read_tensor(file, value["tensor"], copy=copy), value.get("stride"))
    if kind in ("dict", "tensordict"):
        pairs = [
            (decoded(key, file, copy, depth + 1), decoded(item, file, copy, depth + 1)) for key, item in value[kind]
        ]
        if kind == "tensordict":
            return TensorDict(dict(pairs), value["batch_size"])
        sizes = value.get("batch_sizes")
        return dict(pairs) if sizes is None else with_batch_sizes(dict(pairs), sizes)
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(decoded(item, file, copy, depth + 1) for item in value[kind])
    raise ValueError(f"unknown kind {kind!r}")


def with_batch_sizes(state: Mapping[str, Any], sizes: Mapping[str, Sequence[int]]) -> OrderedDict[str, Any]:
    """Return a tensordict's state with the batch sizes that its ``load_state_dict`` looks for.

    Args:
        state: entries by name, nested ones as ``"next.obs"``.
        sizes: batch size of each level by its prefix, ``""`` for the outermost.

    Examples:
        >>> state = with_batch_sizes({"next.obs": torch.zeros(3, 2)}, {"": [3], "next": [3]})
        >>> TensorDict().load_state_dict(state, strict=False)["next"].batch_size
        torch.Size([3])
    """
    found: OrderedDict[str, Any] = OrderedDict(state)
    found._metadata = OrderedDict(  # type: ignore[attr-defined]
        (prefix, {"batch_size": torch.Size(size), "device": None}) for prefix, size in sizes.items()
    )
    return found


def refuse_non_tensors(storage: Any) -> None:
    """Refuse entries of a replay that a state cannot hold and TorchRL leaves out of it without a word.

    Args:
        storage: of a replay buffer, or of several.

    Raises:
        ValueError: an entry that is no tensor.
    """
    for part in getattr(storage, "_storages", ()):  # of an ensemble
        refuse_non_tensors(part)
    held = getattr(storage, "_storage", None)
    items: list[Any] = held if isinstance(held, list) else [held]
    for item in filter(is_tensor_collection, items):
        lost = [key for key in item.keys(True) if is_non_tensor(item.get(key))]
        if lost:
            raise ValueError(
                f"a saved replay holds tensors only: got {lost[0]!r}, which is none; leave it out of the replay by "
                "exclude(), or save checkpoints without the replay."
            )


def _with_stride(tensor: Tensor, stride: list[int] | None) -> Tensor:
    """Return values in the memory order they had: fused optimisers want that of the parameter."""
    if stride is None:
        return tensor
    order = sorted(range(len(stride)), key=lambda dim: -stride[dim])
    if sorted(order) != list(range(tensor.ndim)):
        raise ValueError(f"stride {stride} for a tensor of {tensor.ndim} dimensions")
    back = [order.index(dim) for dim in range(tensor.ndim)]
    return tensor.permute(order).contiguous().permute(back)
