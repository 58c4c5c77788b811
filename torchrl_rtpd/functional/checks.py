"""Guards of shapes, types and numbers, with one error for each argument."""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "at_least_single",
    "check_integers",
    "check_name",
    "check_same_shape",
    "check_within",
    "lies_within",
    "real_number",
]


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
    for name, number in numbers.items():
        if number is not None and not lies_within(number, interval):
            raise ValueError(f"{name} must lie in {interval}: got {number!r}{'; ' if remedy else ''}{remedy}.")


def lies_within(value: Any, interval: str) -> bool:
    """Return True for a number in an interval; what is no number lies in none.

    Examples:
        >>> lies_within(0.5, "(0, 1]"), lies_within(0.0, "(0, 1]"), lies_within(True, "[0, inf)")
        (True, False, False)
    """
    value = real_number(value)
    if value is None or math.isnan(value):
        return False
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low or (value == low and interval[0] == "[")
    return above and (value < high or (value == high and interval[-1] == "]"))


def check_name(role: str, name: object) -> None:
    """Refuse what cannot be part of the name of a metric, of a column of a table and of a file.

    Args:
        role: what bears the name, for the message.
        name: a text; a slash parts the names of metrics, a comma columns and a line break rows.

    Raises:
        ValueError: something else, or a text with such a character.

    Examples:
        >>> check_name("a student's name", "net17")
        >>> check_name("a name", "small, fast")
        Traceback (most recent call last):
        ValueError: a name must be a text of printed characters without '/' and ',': got 'small, fast'; call it \
'small_fast' or the like.
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or {"/", ","} & set(name):
        remedy = "_".join(re.findall(r"\w+", str(name))) or "small"
        raise ValueError(
            f"{role} must be a text of printed characters without '/' and ',': got {name!r}; call it {remedy!r} or the "
            "like."
        )


def real_number(value: Any) -> Any:
    """Return a real number as one of Python's own, and None for what is none, such as a truth value.

    A number of NumPy's is one as well, and so is a tensor or an array without dimensions.

    Examples:
        >>> real_number(np.float32(0.5)), real_number(torch.tensor(2)), real_number(True), real_number(torch.ones(1))
        (0.5, 2, None, None)
    """
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.item() if value.ndim == 0 else None
    return value if isinstance(value, Real) and not isinstance(value, bool) else None


def check_integers(lowest: int, remedy: str = "", /, **values: object) -> None:
    """Refuse arguments, given by name, that are no integers or smaller than the lowest one allowed.

    Args:
        lowest: the smallest integer allowed.
        remedy: what to do, appended to the message.
        values: values by the name of their argument.

    Raises:
        ValueError: such an argument, with its name and value.

    Examples:
        >>> check_integers(1, num_envs=8, frame_skip=4)
        >>> check_integers(1, num_envs=0)
        Traceback (most recent call last):
        ValueError: num_envs must be an integer of at least 1: got 0.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < lowest:
            raise ValueError(
                f"{name} must be an integer of at least {lowest}: got {value!r}{'; ' if remedy else ''}{remedy}."
            )
