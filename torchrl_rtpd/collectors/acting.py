"""Choice of the network that acts: names, shares, and functions that give them at each moment of a run.

``N`` is the environment's batch, ``S`` the number of students.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from torchrl_rtpd.functional.checks import real_number
from torchrl_rtpd.schedules import RunState

__all__ = ["TEACHER", "Acting", "drawn", "probabilities"]

Shares = str | float | Mapping[str, float]
Acting = Shares | Callable[[RunState], Shares]
"""A name, the probability of a student, probabilities by student, or a function that returns one of these."""

TEACHER = 1
"""``acted_by`` of the teacher; 0 stands for TorchRL's random steps, 2 for the first student."""


def probabilities(acting: Acting, names: Sequence[str]) -> Tensor:
    """Return the probability of each student ``[S]``.

    Args:
        acting: who acts; a function is asked for the start of a run.
        names: the students'.

    Raises:
        ValueError: ``acting`` is none of the things it may be, or names a student that is not there.
    """
    shares = acting(RunState()) if callable(acting) else acting
    if shares in ("teacher", "student"):
        shares = float(shares == "student")
    if isinstance(shares, str) and shares in names:
        shares = {shares: 1.0}
    if (share := real_number(shares)) is not None:
        if share > 0 and not names:
            raise ValueError(f"acting={acting!r} needs a student: got None; pass one or let the teacher act.")
        shares = {name: float(share) / len(names) for name in names}
    if isinstance(shares, Mapping) and shares.keys() <= set(names):
        values = torch.tensor([float(shares.get(name, 0.0)) for name in names], dtype=torch.float64)
        if (values >= 0).all() and values.sum() <= 1 + 1e-9:
            return values
    raise ValueError(
        "acting must be 'teacher', 'student', the name of one, a student's probability in [0, 1], probabilities by "
        f"name with a sum of at most 1, or a function that returns one of these: got {acting!r}; "
        f"students are {', '.join(names) or 'none'}."
    )


def drawn(shares: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw who acts in each slot, uint8 ``[N]``: 1 for the teacher, 2 for the first student and so on.

    Args:
        shares: probabilities of the students ``[S]``.
        shape: the environment's batch.
        generator: where numbers come from.
    """
    limits = shares.cpu().cumsum(0)
    student = torch.bucketize(
        torch.rand(shape, generator=generator, dtype=torch.float64), limits, right=True
    )  # S: none of them
    return torch.where(student < len(limits), student + TEACHER + 1, TEACHER).to(torch.uint8)
