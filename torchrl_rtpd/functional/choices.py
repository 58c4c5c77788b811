"""Actions that consist of several choices, whose values lie side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["VarNums", "choice_sizes", "split_choices"]

VarNums = Sequence[int] | int
"""Number of actions of each choice, in order; one number where all choices have that many."""


def choice_sizes(var_nums: VarNums, width: int) -> tuple[int, ...]:
    """Return the actions of each choice.

    Args:
        var_nums: actions of each choice; or the number that each has, as TorchRL's QValueModule takes it.
        width: values of all choices together.

    Examples:
        >>> choice_sizes(2, 6), choice_sizes([5, 1], 6)
        ((2, 2, 2), (5, 1))
    """
    if isinstance(var_nums, int):
        return (var_nums,) * (max(width // var_nums, 1) if var_nums > 0 else 1)
    return tuple(var_nums)


def split_choices(var_nums: VarNums, *tensors: Tensor | None) -> list[tuple[Any, ...]]:
    """Split tensors over actions into those of each choice.

    Args:
        var_nums: actions of each choice, which add up to ``A``; or the number that each has.
        tensors: ``[*B, A]``, or None, which stays None in every choice.

    Returns:
        For each choice its part of each tensor, ``[*B, var_num]``.

    Raises:
        ValueError: numbers that do not add up.

    Examples:
        >>> import torch
        >>> split_choices((2, 1), torch.tensor([1, 2, 3]), None)
        [(tensor([1, 2]), None), (tensor([3]), None)]
        >>> split_choices(2, torch.tensor([1, 2, 3, 4]))
        [(tensor([1, 2]),), (tensor([3, 4]),)]
    """
    width = next(tensor.shape[-1] for tensor in tensors if tensor is not None)
    sizes = list(choice_sizes(var_nums, width))
    for tensor in tensors:
        if tensor is not None and tensor.shape[-1] != sum(sizes):
            raise ValueError(
                f"the choices of an action must add up to its values: got var_nums={sizes}, in all {sum(sizes)}, for "
                f"{tensor.shape[-1]} values; take var_nums from the action spec."
            )
    columns = [[None] * len(sizes) if tensor is None else tensor.split(sizes, -1) for tensor in tensors]
    return list(zip(*columns, strict=True))
