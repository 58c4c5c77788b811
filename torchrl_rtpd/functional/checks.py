"""Guards that several wings share: shapes and dtypes of tensors, integers among arguments."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

__all__ = []


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}: got {list(tensor.shape)} and {list(other.shape)}; "
            "build teacher and student from the same action spec and pass the same batch to both."
        )


def check_integers(lowest: int, **values: object) -> None:
    """Refuse arguments, given by name, that are no integers or smaller than the lowest one allowed.

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
            raise ValueError(f"{name} must be an integer of at least {lowest}: got {value!r}.")
