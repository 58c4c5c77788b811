"""Heads that other methods train, as the one linear head that computes the same action values.

Shapes: ``A`` actions, ``N`` quantiles, ``U`` units before the head.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from torchrl_rtpd.files.foreign import words
from torchrl_rtpd.files.layers import Layer, layers_of

__all__ = ["atoms_of_streams", "collapsed", "with_rows"]

_ADVANTAGE, _VALUE = {"advantage", "adv", "a"}, {"value", "val", "v"}


def with_rows(tensors: Mapping[str, Tensor], head: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
    """Take some actions of every head that has more than a network's own.

    Args:
        tensors: the file's.
        head: weights ``[A, U]`` of the network's last layer.
        rows: the file's action for each of the network's actions.

    Raises:
        ValueError: another number of rows than the network has actions, or a row that no head has.
        TypeError: rows that are no whole numbers.
    """
    rows = _numbers(rows)
    if len(rows) != len(head):
        raise ValueError(f"rows must name one action of the file for each of {len(head)}: got {len(rows)}.")
    if min(rows) < 0:
        raise ValueError(f"rows must count the file's actions from 0: got {min(rows)}.")
    changed = dict(tensors)
    heads = [
        layer
        for layer in layers_of(tensors)
        for weight in [_weight(layer, tensors)]
        if weight is not None and weight.shape[1:] == head.shape[1:] and len(weight) > len(head)
    ]
    if not any(max(rows) < len(tensors[next(iter(layer.names.values()))]) for layer in heads):
        raise ValueError(f"rows must be actions of the file: got {max(rows)}, and no head has so many.")
    for layer in heads:
        for name in layer.names.values():
            if max(rows) < len(tensors[name]):
                changed[name] = tensors[name][list(rows)]
    return changed


def _numbers(rows: Sequence[int]) -> list[int]:
    """Return rows as whole numbers, from a list, a tensor or an array."""
    try:
        listed = list(getattr(rows, "tolist", lambda: rows)())
        if any(isinstance(row, bool) for row in listed):
            raise TypeError("bool")
        return [operator.index(row) for row in listed]
    except TypeError as error:
        raise TypeError(f"rows must be whole numbers: got {rows!r}; count the file's actions from 0.") from error


def collapsed(tensors: Mapping[str, Tensor], actions: int) -> Iterator[tuple[dict[str, Tensor], str]]:
    """Yield the file's tensors with other heads made into linear ones, and a sentence that says so.

    Known are quantile heads of sb3-contrib, whose rows are quantile-major, and dueling heads of one or two layers
    (Wang et al. 2016, https://arxiv.org/abs/1511.06581, Eq. 9). The mean over quantiles and the sum of value and
    centred advantages are linear, so that nothing is lost.

    Args:
        tensors: the file's.
        actions: number of actions ``A``.
    """
    means = _mean_of_quantiles(tensors, actions)
    if means is not None:
        yield means, "its quantiles were averaged, which is exact"
    sums = _sum_of_streams(tensors, actions)
    if sums is not None:
        yield sums, "its value and advantage streams were added into one head, which is exact"


def atoms_of_streams(tensors: Mapping[str, Tensor], actions: int) -> int | None:
    """Return the number of atoms or quantiles of each action in a dueling head that has some, otherwise None.

    Args:
        tensors: the file's.
        actions: number of actions ``A``.
    """
    advantage, value = _streams(tensors)
    if not advantage or not value:
        return None
    rows, atoms = (len(_pair(part[-1], tensors)[0]) for part in (advantage, value))
    return atoms if atoms > 1 and rows == atoms * actions else None


def _mean_of_quantiles(tensors: Mapping[str, Tensor], actions: int) -> dict[str, Tensor] | None:
    """Rows ``[N * A, U]``, quantile after quantile, as ``[A, U]``; the last layer called so is the head."""
    layers = [
        layer for layer in layers_of(tensors) if "quantile" in words(layer.name) and _weight(layer, tensors) is not None
    ]
    if not layers:
        return None
    rows = {name: tensors[name] for name in layers[-1].names.values()}
    if any(len(tensor) % actions or len(tensor) == actions for tensor in rows.values()):
        return None
    means = {
        name: tensor.double().unflatten(0, (-1, actions)).mean(0).to(tensor.dtype) for name, tensor in rows.items()
    }
    return {**tensors, **means}


def _sum_of_streams(tensors: Mapping[str, Tensor], actions: int) -> dict[str, Tensor] | None:
    """Two streams as one, ``Q = V + A - mean(A)``; hidden units, if each has its own, side by side."""
    advantage, value = _streams(tensors)
    if not advantage or len(advantage) != len(value) or len(advantage) > 2:
        return None
    (value_head, value_bias), (heads, biases) = (_pair(part[-1], tensors) for part in (value, advantage))
    if len(value_head) != 1 or len(heads) != actions:
        return None
    centred, bias = heads - heads.mean(0), value_bias + biases - biases.mean()
    rest = {
        name: tensor
        for name, tensor in tensors.items()
        if not any(name in layer.names.values() for layer in (*advantage, *value))
    }
    if len(advantage) == 1:
        halves = "main_stream.weight" in ".".join(rest) and value_head.shape == heads[:1].shape  # pfrl parts its units
        head = torch.cat([centred, value_head.expand(actions, -1)], 1) if halves else value_head + centred
        return {**rest, "collapsed_head.weight": head, "collapsed_head.bias": bias}
    (value_units, value_shift), (units, shift) = (_pair(part[0], tensors) for part in (value, advantage))
    if value_units.shape[1:] != units.shape[1:]:
        return None
    return {
        **rest,
        "collapsed_units.weight": torch.cat([value_units, units]),
        "collapsed_units.bias": torch.cat([value_shift, shift]),
        "collapsed_head.weight": torch.cat([value_head.expand(actions, -1), centred], 1),
        "collapsed_head.bias": bias,
    }


def _streams(tensors: Mapping[str, Tensor]) -> tuple[list[Layer], list[Layer]]:
    """Dense layers of the advantages and of the value; the part that all names begin with says nothing."""
    layers = layers_of(tensors)
    parents = [layer.name.split(".")[:-1] for layer in layers]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    common = ".".join(parts[0] for parts in shared)
    dense = [layer for layer in layers if len(layer.names) == 2 and _weight(layer, tensors) is not None]
    named = [(layer, set(words(layer.name.removeprefix(common)))) for layer in dense]
    advantage = [layer for layer, parts in named if parts & _ADVANTAGE]
    return advantage, [layer for layer, parts in named if parts & _VALUE and not parts & _ADVANTAGE]


def _weight(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The one tensor of a layer with two dimensions, if it has one."""
    found = [tensors[name] for name in layer.names.values() if tensors[name].ndim == 2]
    return found[0] if len(found) == 1 else None


def _pair(layer: Layer, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    weight, bias = sorted((tensors[name] for name in layer.names.values()), key=lambda tensor: -tensor.ndim)
    return weight, bias
