"""A storage's state in a file, read back without running anything that is in it."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

__all__ = ["saved_state"]


def saved_state(file: Path, names: Collection[str]) -> dict[str, Any]:
    """Return the state that a storage saved in a file.

    Args:
        file: as ``dumps`` wrote it.
        names: of all that it holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, or one that is damaged.
    """
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        if state.keys() != names:
            raise ValueError(f"it holds {sorted(state)}")
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{file} must be a storage that dumps wrote, and whole: {reason}; it is damaged, or another file."
        ) from error
    return state
