"""Students as files: weights without code, and a program that runs without this package."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

__all__ = ["bare_network", "export_student", "load_weights", "save_weights"]


def save_weights(network: nn.Module, path: str | os.PathLike) -> Path:
    """Write a network's state as safetensors, whole or not at all: a crash leaves an earlier file as it was.

    Args:
        network: any module.
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
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, partial)
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_weights(network: nn.Module, path: str | os.PathLike) -> None:
    """Load what :func:`save_weights` wrote. No code in the file is run.

    Args:
        network: a module of the same architecture; changed in place.
        path: file to read.

    Raises:
        ValueError: another architecture, with the first difference; a file that is not safetensors.
    """
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a safetensors file written by save_weights: {error}; load files of torch.save with "
            "torch.load(..., weights_only=True) and save them anew."
        ) from error
    wanted = network.state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in saved.items()}
    differ = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != _shape(wanted.get(name)))
    if differ:
        name = differ[0]
        raise ValueError(
            f"{path} holds another architecture: {len(differ)} tensors differ, first {name}: the file has "
            f"{shapes.get(name)}, the network {_shape(wanted.get(name))}; build the network with the sizes and actions "
            "it was saved with."
        )
    network.load_state_dict(saved)


def _shape(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)


def bare_network(actor: nn.Module) -> nn.Module:
    """The module inside an actor that maps an observation to action values, plain tensors in and out.

    Args:
        actor: a tensordict module, of which the first inner one counts, or a plain module, which is returned.

    Examples:
        >>> bare_network(TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["action_value"]))
        Linear(in_features=4, out_features=2, bias=True)
    """
    while isinstance(actor, TensorDictModuleBase):
        actor = actor.module[0] if isinstance(actor, TensorDictSequential) else actor.module
    return actor


def export_student(student: TensorDictModule, example: Tensor, path: str | os.PathLike) -> Path:
    """Write a student as a :func:`torch.export.save` program: plain tensors in and out, torch its only need.

    Run it with ``torch.export.load(path).module()(pixels)``, which gives action values ``[B, A]``. The file is checked
    against the student on ``example``; if they differ, or writing fails, an earlier file stays as it was.

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
        >>> path = export_student(student, pixels, folder + "/net17.pt2")
        >>> torch.export.load(path).module()(pixels[:1]).shape
        torch.Size([1, 6])
    """
    if len(example) < 2:
        raise ValueError(f"the example must hold at least 2 observations: got {len(example)}; repeat it.")
    network = copy.deepcopy(bare_network(student)).cpu().eval()
    network.to(memory_format=torch.contiguous_format)  # torch.export.save warns of weights in another order
    example = example.cpu()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial.pt2")
    try:
        with torch.no_grad():
            wanted = network(example)
            program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            torch.export.save(program, partial)
            found = torch.export.load(partial).module()(example)
        if not torch.allclose(wanted, found, atol=1e-5):
            raise RuntimeError(
                "the exported program must compute the student's values: they differ by up to "
                f"{(wanted - found).abs().max():.3g}; a student that draws random numbers cannot be exported."
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
