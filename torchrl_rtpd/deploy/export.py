"""Students as files: weights without code, and a program that runs without this package."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_rtpd.networks.running import bare_network

__all__ = ["export_student"]


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
