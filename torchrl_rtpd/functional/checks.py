"""Guards of shapes, types and numbers, with one error for each argument."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["at_least_single", "check_same_shape", "check_within"]


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute in: single precision for half, and otherwise the type itself."""
    return torch.promote_types(dtype, torch.float32)


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two tensors of different shapes, by the names that the caller knows them by."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}: got {list(tensor.shape)} and {list(other.shape)}; "
            "build teacher and student from the same action spec and pass the same batch to both."
        )


def check_within(interval: str, remedy: str = "", **numbers: float | None) -> None:
    """Refuse the first number that lies outside an interval.

    Args:
        interval: such as ``"(0, 1]"`` or ``"[1, inf)"``. An open end at infinity leaves infinity out.
        remedy: what to do, appended to the message.
        numbers: numbers by the name of their argument. None is allowed.

    Raises:
        ValueError: a number outside, or one that is no number.

    Examples:
        >>> check_within("[1, inf)", units=512, num_actions=0)
        Traceback (most recent call last):
        ValueError: num_actions must lie in [1, inf): got 0.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for name, number in numbers.items():
        if number is None:
            continue
        valid = isinstance(number, (int, float)) and not isinstance(number, bool) and not math.isnan(number)
        above = valid and (number > low or (number == low and interval[0] == "["))
        below = valid and (number < high or (number == high and interval[-1] == "]"))
        if not (above and below):
            raise ValueError(f"{name} must lie in {interval}: got {number!r}{'; ' if remedy else ''}{remedy}.")
