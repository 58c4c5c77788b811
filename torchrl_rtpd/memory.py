"""Whether what a run is about to hold fits into memory, before hours are spent on filling it."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["available_bytes", "check_fits"]


def available_bytes(device: torch.device | str = "cpu") -> int | None:
    """Memory that can still be taken on a device; None where the system does not tell.

    Args:
        device: a CPU or CUDA device.

    Returns:
        Bytes. On the CPU what Linux says is available, caches that it would give up included.

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


def check_fits(needed: float, what: str, remedy: str, device: torch.device | str = "cpu") -> None:
    """Refuse what does not fit.

    Args:
        needed: bytes.
        what: what needs them, the subject of the message.
        remedy: the end of the message.
        device: where.

    Raises:
        MemoryError: it needs more than is available, with both numbers.

    Examples:
        >>> check_fits(1e15, "a replay of 10 transitions", "store fewer")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        MemoryError: a replay of 10 transitions needs 1,000,000.0 GB on cpu, where ... GB are available; store fewer.
    """
    available = available_bytes(device)
    if available is not None and needed > available:
        raise MemoryError(
            f"{what} needs {needed / 1e9:,.1f} GB on {device}, where {available / 1e9:,.1f} GB are available; {remedy}."
        )
