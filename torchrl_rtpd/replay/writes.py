"""Checks of a write into a frame storage: stacks, flags and the entries beside them.

Letters: ``N`` slots, ``T`` steps a write, ``S`` frames a stack, ``c`` colours, ``H`` and ``W`` height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

__all__ = ["check_layout", "check_order", "checked_flag", "checked_stacks", "without_newer_entries"]

Layout = dict[NestedKey, tuple[torch.Size, torch.dtype]]

# Entries of AtariVecEnv that a replay saved by an earlier version lacks.
_NEWER_ENTRIES = ("raw_episode_reward", ("next", "raw_episode_reward"))


def check_order(cursor: Any, data: Any, place: int | None, *, slots: int, steps: int) -> None:
    """Refuse a write of another size or at another place than the next one.

    Args:
        cursor: index of the first transition, or of all.
        data: the write.
        place: index at which the next write begins; None for an overwrite, which is refused wherever it is.
        slots: ``N``.
        steps: ``T``.

    Raises:
        ValueError: such a write.
    """
    size = data.batch_size if isinstance(data, TensorDictBase) else None
    first = int(cursor[0]) if isinstance(cursor, (Tensor, range, Sequence)) else cursor
    if size != torch.Size([slots * steps]) or first != place:
        raise ValueError(
            f"a frame storage is written in order, {slots} slots x {steps} steps = {slots * steps} transitions at "
            f"a time: got batch size {None if size is None else list(size)} at index {first}; call "
            "buffer.extend(batch.reshape(-1)) with each batch of the collector, and set steps_per_write to its "
            "steps."
        )


def checked_stacks(
    data: TensorDictBase, keys: Sequence[NestedKey], channels: int, size: Sequence[int] | None
) -> list[Tensor]:
    """Return the pixels ``[N * T, S * c, H, W]`` at these keys.

    Args:
        data: one write ``[N * T]``.
        keys: of the stacks before and after each step.
        channels: the second dimension wanted, ``S * c``.
        size: height and width wanted; None for those of the first key.

    Raises:
        ValueError: no such entry, or one of another dtype or shape.
    """
    stacks = []
    for key in keys:
        stack = data.get(key, None)
        found = None if stack is None else f"{stack.dtype} {list(stack.shape)}"
        if stack is not None and size is None:
            size = list(stack.shape[2:])
        expected = [len(data), channels, *(["height", "width"] if size is None else size)]
        if stack is None or stack.dtype != torch.uint8 or stack.ndim != 4 or list(stack.shape) != expected:
            raise ValueError(
                f"{key!r} must be torch.uint8 {expected}: got {found}; "
                "store the frames as the environment gives them, stacked and unscaled."
            )
        stacks.append(stack)
    return stacks


def checked_flag(data: TensorDictBase, name: str) -> Tensor:
    """Return the flag of this name after each step, bool ``[N * T]``.

    Raises:
        ValueError: no such entry, or one of another dtype or shape.
    """
    flag = data.get(("next", name), None)
    if flag is None or flag.dtype != torch.bool or flag.numel() != len(data):
        found = None if flag is None else f"{flag.dtype} {list(flag.shape)}"
        raise ValueError(
            f"('next', '{name}') must be torch.bool [{len(data)}, 1]: got {found}; "
            "store it as the environment gives it."
        )
    return flag.reshape(-1)


def layout(entries: TensorDictBase) -> Layout:
    """Shapes (but for the first dimension) and dtypes by key."""
    return {key: (leaf.shape[1:], leaf.dtype) for key, leaf in entries.items(True, True)}


def without_newer_entries(entries: TensorDictBase, stored: TensorDictBase) -> TensorDictBase:
    """Leave out the entries that a replay saved by an earlier version of this package cannot have."""
    newer = [key for key in _NEWER_ENTRIES if key in entries.keys(True) and key not in stored.keys(True)]
    return entries.exclude(*newer) if newer else entries


def check_layout(entries: TensorDictBase, stored: TensorDictBase) -> None:
    """Refuse entries of other keys, shapes or dtypes than those stored.

    Raises:
        ValueError: such entries, by name.
    """
    given, wanted = layout(entries), layout(stored)
    if given != wanted:
        others = sorted({str(key) for key, _ in given.items() ^ wanted.items()})
        raise ValueError(
            f"every write must hold the entries of the first one: got more, fewer or others at {', '.join(others)};"
            " give all batches of a buffer the same keys, shapes and types."
        )
