"""Find a network's layers among tensors with other names: each layer by the shapes of its tensors together."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Candidate", "Layer", "candidates", "layers_of", "named_candidates", "same_tensors", "stands_alone"]

_LEAVES = "weight|bias|kernel|gamma|beta|running_mean|running_var|num_batches_tracked|w|b"
_Signature = tuple[tuple[int, ...], ...]


class Layer(NamedTuple):
    """Tensors that belong together.

    Attributes:
        name: the part of their names that they share.
        names: the full name of each by the rest, such as ``"weight"``.
    """

    name: str
    names: dict[str, str]


class Candidate(NamedTuple):
    """Tensors of a file that may be the network's.

    Attributes:
        prefix: the part of the file's names before them.
        names: their names in the file by the network's own names.
        how: "name", "layers" or "order".
    """

    prefix: str
    names: dict[str, str]
    how: str


def layers_of(tensors: Mapping[str, Tensor]) -> list[Layer]:
    """Return the layers of a state in its order. Counters without a dimension belong to none.

    Examples:
        >>> state = {"conv.weight": torch.zeros(2, 1), "conv.bias": torch.zeros(2), "head_w": torch.zeros(3, 2)}
        >>> [(layer.name, list(layer.names)) for layer in layers_of(state)]
        [('conv', ['weight', 'bias']), ('head', ['w'])]
    """
    layers: dict[str, dict[str, str]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if tensor.ndim:
            known = re.fullmatch(rf"(?:(.*)[._/])?({_LEAVES})", name)
            parent, leaf = (known[1] or "", known[2]) if known else (name, "")
            layers[parent][leaf] = name
    return [Layer(name, names) for name, names in layers.items()]


def named_candidates(wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> list[Candidate]:
    """Return each prefix under which all of a network's tensors lie by their own names, and no others."""
    first = next(iter(wanted))
    prefixes = [key.removesuffix(first) for key in saved if key == first or key.endswith(f".{first}")]
    whole = [
        prefix
        for prefix in prefixes
        if all(prefix + own in saved and saved[prefix + own].shape == wanted[own].shape for own in wanted)
    ]
    found = []
    for prefix in whole:
        others = tuple(other for other in whole if other != prefix and other.startswith(prefix))
        rest = [
            name
            for name, tensor in saved.items()
            if tensor.ndim and name.startswith(prefix) and name.removeprefix(prefix) not in wanted
        ]
        if not any(not others or not name.startswith(others) for name in rest):
            found.append(Candidate(prefix, {own: prefix + own for own in wanted}, "name"))
    return found


def candidates(wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor], registered: bool) -> list[Candidate]:
    """Return the groups of a file's layers that have the shapes of all the network's layers, and no others.

    Args:
        wanted: the network's state.
        saved: the file's tensors.
        registered: True if layers of equal shapes may be told apart by their order in the file; otherwise the numbers
            in their names must tell.
    """
    own_layers, file_layers = layers_of(wanted), layers_of(saved)
    own_shapes = Counter(_signature(layer, wanted) for layer in own_layers)
    found: dict[frozenset[str], Candidate] = {}
    for prefix in _prefixes(file_layers):
        group = [layer for layer in file_layers if f"{layer.name}.".startswith(prefix)]
        if Counter(_signature(layer, saved) for layer in group) == own_shapes:
            names = _assigned(own_layers, wanted, group, saved, registered)
            if names is not None:
                found[frozenset(names.values())] = Candidate(prefix, names, "layers")
    if not found and registered and not any(name.endswith("kernel") for name in saved):  # theirs are [in, out]
        flat = [name for name, tensor in saved.items() if tensor.ndim]
        own = [name for name, tensor in wanted.items() if tensor.ndim]
        if [saved[name].shape for name in flat] == [wanted[name].shape for name in own]:
            return [Candidate("", dict(zip(own, flat, strict=True)), "order")]
    return list(found.values())


def _prefixes(layers: list[Layer]) -> Iterator[str]:
    """Every beginning of the layers' names that ends at a dot, the shortest first, so that a longer one replaces it."""
    seen = {""}
    for layer in layers:
        parts = layer.name.split(".")
        seen.update(".".join(parts[:count]) + "." for count in range(1, len(parts) + 1))
    yield from sorted(seen, key=lambda prefix: (prefix.count("."), prefix))


def _signature(layer: Layer, tensors: Mapping[str, Tensor]) -> _Signature:
    return tuple(sorted(tuple(tensors[name].shape) for name in layer.names.values()))


def _assigned(
    own_layers: list[Layer],
    wanted: Mapping[str, Tensor],
    group: list[Layer],
    saved: Mapping[str, Tensor],
    registered: bool,
) -> dict[str, str] | None:
    """Names in the file by own names; None where layers of equal shapes cannot be told apart."""
    names: dict[str, str] = {}
    for shapes in {_signature(layer, wanted): None for layer in own_layers}:
        own = [layer for layer in own_layers if _signature(layer, wanted) == shapes]
        theirs = [layer for layer in group if _signature(layer, saved) == shapes]
        if len(own) > 1 and not registered:
            if len({re.sub(r"\d+", "#", layer.name) for layer in theirs}) > 1:
                return None
            theirs.sort(key=lambda layer: [int(number) for number in re.findall(r"\d+", layer.name)])
        for mine, other in zip(own, theirs, strict=True):
            pairs = _paired(mine, wanted, other, saved)
            if pairs is None:
                return None
            names |= pairs
    return names


def _paired(
    mine: Layer, wanted: Mapping[str, Tensor], other: Layer, saved: Mapping[str, Tensor]
) -> dict[str, str] | None:
    """Tensors within one layer: by their names, otherwise by their shapes if those are distinct."""
    if "kernel" in other.names and "kernel" not in mine.names:  # [in, out]: only a square one has the same shape
        return None
    if mine.names.keys() == other.names.keys() and all(
        wanted[mine.names[leaf]].shape == saved[other.names[leaf]].shape for leaf in mine.names
    ):
        return {mine.names[leaf]: other.names[leaf] for leaf in mine.names}
    shapes = {saved[name].shape: name for name in other.names.values()}
    if len(shapes) < len(other.names):
        return None
    return {name: shapes[wanted[name].shape] for name in mine.names.values()}


def stands_alone(candidate: Candidate, wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> bool:
    """Return False if layers of the file beside a candidate fit before or behind it: it may be a part of a network.

    Names that are a network's own, below a module of it, need no such look.
    """
    if candidate.how == "name" and any("." in own for own in candidate.names):
        return True
    taken = set(candidate.names.values())
    first, last = (_largest(layer, wanted) for layer in (layers_of(wanted)[0], layers_of(wanted)[-1]))
    for layer in layers_of({name: tensor for name, tensor in saved.items() if name not in taken}):
        other = _largest(layer, saved)
        if other.ndim < 2:
            continue
        if other.ndim == last.ndim and other.shape[1] == len(last):
            return False
        if other.ndim == first.ndim and first.ndim > 1 and len(other) == first.shape[1]:
            return False
    return True


def _largest(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    return max((tensors[name] for name in layer.names.values()), key=lambda tensor: tensor.ndim)


def same_tensors(first: Candidate, second: Candidate, saved: Mapping[str, Tensor]) -> bool:
    """Return True if two candidates are one network twice."""
    return all(torch.equal(saved[first.names[own]], saved[second.names[own]]) for own in first.names)
