"""Read a tensordict's entries by key, or say which one it lacks and which network asked for it."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor

__all__ = ["VALUE_NAMES", "last_part", "names_in", "policy_inputs", "read", "selected"]

VALUE_NAMES = ("action_value", "logits", "probs")
"""Usual names of the outputs of a network over discrete actions, values first."""


def selected(tensordict: TensorDictBase, keys: Sequence[NestedKey], role: str, place: str = "batch") -> TensorDictBase:
    """Return the entries of a batch that ``role`` reads, or raise an error that names those missing."""
    part = tensordict.select(*keys, strict=False)
    missing = [key for key in keys if part.get(key, None) is None]
    if missing:
        raise KeyError(
            f"the {role} reads {missing}, which the {place} lacks: it has {names_in(tensordict)}; "
            "make its keys, by set_keys or the network's in_keys, those of the data."
        )
    return part


def read(outputs: TensorDictBase, key: NestedKey, role: str, key_name: str) -> Tensor:
    """Return a network's output under ``key``, or raise an error that names its outputs and the key to set."""
    values = outputs.get(key, None)
    if values is None:
        raise KeyError(
            f"the {role} network wrote no {key!r}: it wrote {names_in(outputs)}; "
            f"name its output with set_keys({key_name}=...)."
        )
    return values


def last_part(key: NestedKey) -> str:
    """Return the name of an entry without those of the tensordicts it lies in."""
    return key if isinstance(key, str) else key[-1]


def names_in(tensordict: TensorDictBase) -> list[NestedKey]:
    """Return all keys, sorted, for messages."""
    return sorted(tensordict.keys(True, True), key=str)


def policy_inputs(policy: TensorDictModule, tensordict: TensorDictBase) -> TensorDictBase:
    """Return the entries that a policy reads, on its device."""
    parameter = next(policy.parameters(), None)
    inputs = tensordict.select(*policy.in_keys)
    return inputs if parameter is None else inputs.to(parameter.device)
