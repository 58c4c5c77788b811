"""Guards of shape and dtype that the discrete and the continuous functions share."""

from __future__ import annotations

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
