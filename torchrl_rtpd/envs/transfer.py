"""Arrays of the host on their way to a device, and actions on their way back.

To a CUDA device everything travels through pinned memory, and the host goes on meanwhile. PyTorch gives a pinned block
to the next array only when its copy has arrived, so that there are always as many buffers as copies under way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

__all__ = ["all_to_device", "packed", "to_device", "to_host"]


def to_device(array: np.ndarray, device: torch.device | None) -> Tensor:
    """Return an array as a tensor on a device; on a CPU it shares the array's memory.

    Args:
        array: of any shape.
        device: None is the CPU.
    """
    tensor = torch.from_numpy(array)
    if device is None or device.type == "cpu":
        return tensor
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def all_to_device(arrays: Mapping[str, np.ndarray], device: torch.device | None) -> dict[str, Tensor]:
    """Return arrays of one shape as tensors on a device, by as few copies as there are types.

    Args:
        arrays: by name.
        device: None is the CPU.

    Examples:
        >>> entries = all_to_device({"reward": np.ones(2), "done": np.zeros(2, dtype=bool)}, None)
        >>> entries["reward"].tolist(), entries["done"].tolist()
        ([1.0, 1.0], [False, False])
    """
    if device is None or device.type == "cpu":
        return {name: to_device(array, device) for name, array in arrays.items()}
    return packed(arrays, lambda array: to_device(array, device))


def packed(arrays: Mapping[str, np.ndarray], move: Callable[[np.ndarray], Tensor]) -> dict[str, Tensor]:
    """Move arrays of one shape in one piece for each type.

    Args:
        arrays: by name.
        move: takes a stack of them.

    Returns:
        Parts of the moved stacks, in the order of the arrays.
    """
    found: dict[str, Tensor] = {}
    for dtype in dict.fromkeys(array.dtype for array in arrays.values()):
        alike = {name: array for name, array in arrays.items() if array.dtype == dtype}
        found.update(zip(alike, move(np.stack(list(alike.values()))).unbind(), strict=True))
    return {name: found[name] for name in arrays}


def to_host(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array, once all that was begun before it on its stream is done; nothing else is waited for.

    Args:
        tensor: on any device.
    """
    if not tensor.is_cuda:
        return tensor.cpu().numpy()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).record_event().synchronize()
    return host.numpy()
