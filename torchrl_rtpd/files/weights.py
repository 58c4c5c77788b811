"""Weights of a network as a safetensors file, without code."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchrl_rtpd.networks.compiled import load_plain_state_dict, plain_name, plain_state_dict

__all__ = ["load_weights", "save_weights"]


def save_weights(network: nn.Module, path: str | os.PathLike) -> Path:
    """Write a network's state as safetensors, whole or not at all: a crash leaves an earlier file as it was.

    Args:
        network: any module; a compiled one is written under the names that it has uncompiled.
        path: file to write; its folder is made if need be.

    Returns:
        The path.

    Raises:
        OSError: a disk that is full or read-only.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    try:
        state = plain_state_dict(network)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, partial)
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_weights(network: nn.Module, path: str | os.PathLike) -> None:
    """Load what :func:`save_weights` wrote. No code in the file is run.

    Args:
        network: a module of the same architecture, compiled or not; changed in place.
        path: file to read.

    Raises:
        ValueError: another architecture, with the first difference; a file that is not safetensors.
    """
    try:
        saved = {plain_name(name): tensor for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a safetensors file written by save_weights: {error}; load files of torch.save with "
            "torch.load(..., weights_only=True) and write them by save_weights."
        ) from error
    wanted = plain_state_dict(network)
    shapes = {name: list(tensor.shape) for name, tensor in saved.items()}
    differ = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != _shape(wanted.get(name)))
    if differ:
        name = differ[0]
        raise ValueError(
            f"{path} holds another architecture: {len(differ)} tensors differ, first {name}: the file has "
            f"{shapes.get(name)}, the network {_shape(wanted.get(name))}; build the network with the sizes and actions "
            "it was saved with."
        )
    load_plain_state_dict(network, saved)


def _shape(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)
