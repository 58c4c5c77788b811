"""Students as files: weights without code, and a program that runs without this package."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

__all__ = ["export_student", "load_weights", "save_weights"]


def save_weights(network: nn.Module, path: str | os.PathLike) -> Path:
    """Write a network's state as safetensors, whole or not at all: a crash leaves an earlier file as it was.

    Args:
        network: any module.
        path: file to write; its folder is made if need be.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, partial)
    os.replace(partial, path)
    return path


def load_weights(network: nn.Module, path: str | os.PathLike) -> None:
    """Load what :func:`save_weights` wrote. No code in the file is run.

    Args:
        network: a module of the same architecture; changed in place.
        path: file to read.

    Raises:
        ValueError: another architecture; the message names the first differences.
    """
    saved = load_file(path)
    wanted = network.state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in saved.items()}
    differ = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != _shape(wanted.get(name)))
    if differ:
        name = differ[0]
        raise ValueError(
            f"{path} holds another architecture: {len(differ)} tensors differ, first {name}: the file has {shapes.get(name)}, the "
            f"network {_shape(wanted.get(name))}; build the network with the sizes and actions it was saved with."
        )
    network.load_state_dict(saved)


def _shape(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)


def export_student(student: TensorDictModule, example: Tensor, path: str | os.PathLike) -> Path:
    """Write a student as a :func:`torch.export.save` program: plain tensors in and out, torch its only need.

    Run it with ``torch.export.load(path).module()(pixels)``, which gives action values ``[B, A]``. The file is checked against the
    student on ``example`` before this returns.

    Args:
        student: an actor whose first inner module maps observations to action values.
        example: observations ``[B, ...]`` with ``B >= 2``; the batch size stays free in the file.
        path: file to write, usually ending in ``.pt2``.

    Returns:
        The path.

    Raises:
        ValueError: an example with fewer than two observations, from which a free batch size cannot be traced.
        RuntimeError: the file's outputs differ from the student's.

    Examples:
        >>> import tempfile
        >>> from torchrl.data import Categorical
        >>> from torchrl_rtpd.networks import make_actor
        >>> student = make_actor("net17", Categorical(6), seed=0)
        >>> folder = tempfile.mkdtemp()
        >>> pixels = torch.zeros(2, 4, 84, 84, dtype=torch.uint8)
        >>> torch.export.load(export_student(student, pixels, folder + "/net17.pt2")).module()(pixels[:1].expand(3, -1, -1, -1)).shape
        torch.Size([3, 6])
    """
    if len(example) < 2:
        raise ValueError(f"the example must hold at least 2 observations: got {len(example)}; repeat it.")
    network = copy.deepcopy(student.module[0].module if hasattr(student, "module") else student).cpu().eval()
    network.to(memory_format=torch.contiguous_format)  # torch.export.save warns of weights in another order
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        wanted = network(example)
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, path)
        found = torch.export.load(path).module()(example)
    if not torch.allclose(wanted, found, atol=1e-5):
        raise RuntimeError(f"{path} computes other values than the student: they differ by up to {(wanted - found).abs().max():.3g}.")
    return Path(path)
