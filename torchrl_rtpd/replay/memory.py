"""Memory of a replay: check that it fits, or keep it in a file."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["available_bytes", "bytes_in_file", "check_fits"]


def available_bytes(device: torch.device | str = "cpu") -> int | None:
    """Return the memory that can still be taken on a device; None where the system does not tell.

    Args:
        device: a CPU or CUDA device.

    Returns:
        Bytes. On the CPU the number that Linux calls available, caches that it would give up included.

    Examples:
        >>> available_bytes() is None or available_bytes() > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    entries = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return 1024 * int(entries["MemAvailable"].split()[0]) if "MemAvailable" in entries else None


def check_fits(
    needed: float,
    what: str,
    remedy: str,
    device: torch.device | str = "cpu",
    folder: Path | str | None = None,
) -> None:
    """Refuse something that needs more memory than is available.

    Args:
        needed: bytes.
        what: the thing that needs them, the subject of the message.
        remedy: the end of the message.
        device: the device whose memory is taken.
        folder: the folder whose disk is taken instead, for a thing that lies in a file.

    Raises:
        MemoryError: more bytes needed than available, with both numbers.

    Examples:
        >>> check_fits(1e15, "a replay of 10 transitions", "store fewer")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        MemoryError: a replay of 10 transitions needs 1,000,000.0 GB on cpu, where ... GB are available; store fewer.
    """
    available = available_bytes(device) if folder is None else shutil.disk_usage(folder).free
    if available is not None and needed > available:
        place = device if folder is None else folder
        raise MemoryError(
            f"{what} needs {needed / 1e9:,.1f} GB on {place}, where {available / 1e9:,.1f} GB are available; {remedy}."
        )


def bytes_in_file(shape: Sequence[int], folder: Path | str) -> torch.Tensor:
    """Return a tensor that lies in a file: the system keeps the used parts in memory, and others while it can.

    Its space is reserved at once. The file has no name any more when this returns, so that nothing stays behind: its
    space is free again with the last tensor on it, however the process ends.

    Args:
        shape: of the tensor.
        folder: a folder on the disk to use. Not one that lies in memory itself, such as many a ``/tmp``.

    Returns:
        A uint8 tensor of this shape on the CPU, zero where it was not written.

    Raises:
        OSError: no such folder, or no such space in it.

    Examples:
        >>> bytes_in_file([2, 3], ".").sum()
        tensor(0)
    """
    size = math.prod(shape)
    descriptor, name = tempfile.mkstemp(prefix="replay-", dir=folder)
    try:
        os.posix_fallocate(descriptor, 0, max(size, 1))  # otherwise a disk full later would end the process
        tensor = torch.from_file(name, shared=True, size=size, dtype=torch.uint8)
    finally:
        os.close(descriptor)
        os.unlink(name)
    return tensor.view(*shape)
