"""Minibatches of sequences for a trainer that samples them as one long row."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.data import SliceSampler
from torchrl.trainers import Trainer

from torchrl_rtpd.networks.rhythm import Rhythm
from torchrl_rtpd.trainers.stateless import StatelessHook

__all__ = ["SLOT_ENDS", "SliceBatches"]

SLOT_ENDS = "slot_ends"
"""Entry that is True at the last step of each slot of a batch, bool ``[*B, T, 1]``."""


class SliceBatches(StatelessHook):
    """Give minibatches of a :class:`~torchrl.data.SliceSampler` their rows: ``[N * T]`` becomes ``[N, T]``.

    The sampler draws ``N`` slices of ``T`` consecutive steps and hands them out one behind the other. Recurrent
    students learn from rows, see ``burn_in`` of :class:`~torchrl_rtpd.objectives.DistillationLoss`. The numbers are
    the same, so that a teacher without a memory learns what it would have learned.

    A trainer stores the steps of each slot of a batch one after the other. The hook marks the last of them in an entry
    ``"slot_ends"`` of the batch, by which ``SliceSampler(slice_len=T, end_key="slot_ends")`` draws rows of one slot
    within which games may end and begin, so that all steps are drawn about equally often. Without an ``end_key`` the
    sampler keeps within games, and games shorter than ``T`` are never drawn.

    Warning: with a :class:`~torchrl.data.PrioritizedSliceSampler` TorchRL stores one priority for a row, its greatest,
    at the first step, where flat minibatches give every step its own: the teacher then learns from other samples.

    Args:
        slice_len: ``T``, the sampler's.

    Raises:
        ValueError: a length below 1; at ``register``, a replay buffer whose sampler draws no slices. At a minibatch,
            one that is not flat, or is not made of whole rows.

    Examples:
        >>> from tensordict import TensorDict
        >>> SliceBatches(4).split(TensorDict({"observation": torch.zeros(12, 3)}, [12])).shape
        torch.Size([3, 4])
    """

    def __init__(self, slice_len: int) -> None:
        if slice_len < 1:
            raise ValueError(f"slice_len must be at least 1: got {slice_len}; it is that of the SliceSampler.")
        self.slice_len = slice_len
        self._rhythm = Rhythm()

    def register(self, trainer: Trainer, name: str = "slice_batches") -> None:
        """Attach to a trainer, after its own sampling and before its own writing."""
        sampler = getattr(getattr(trainer, "replay_buffer", None), "sampler", None)
        if sampler is not None and not isinstance(sampler, SliceSampler):
            raise ValueError(
                f"rows come from a sampler of slices: got a replay buffer with a {type(sampler).__name__}; give it "
                f"SliceSampler(slice_len={self.slice_len}, end_key={SLOT_ENDS!r})."
            )
        trainer.register_op("batch_process", self.mark)
        trainer.register_op("process_optim_batch", self.split)

    def mark(self, batch: TensorDictBase) -> TensorDictBase:
        """Return a batch ``[*B, T]`` with marks at the last step of each slot; called with each before it is stored."""
        ends = torch.zeros(*batch.shape, 1, dtype=torch.bool, device=batch.device)
        ends[..., -1, :] = True
        return batch.copy().set(SLOT_ENDS, ends)

    def split(self, sub_batch: TensorDictBase) -> TensorDictBase:
        """Return a minibatch ``[N * T]`` as ``[N, T]``; called with each."""
        steps = sub_batch.numel()
        if sub_batch.batch_dims != 1 or steps % self.slice_len:
            raise ValueError(
                f"a minibatch must be whole rows of {self.slice_len} steps in one dimension: got "
                f"{list(sub_batch.batch_size)}; give the sampler slice_len={self.slice_len} and a batch size that is a "
                "multiple of it."
            )
        rows = sub_batch.reshape(-1, self.slice_len)
        if self._rhythm.due():
            self._check_ends(rows)
        return rows

    def _check_ends(self, rows: TensorDictBase) -> None:
        """Refuse rows of unequal lengths, whose ends the sampler marks within."""
        ends = rows.get(("next", "truncated"), None)
        if ends is None or rows.get(("collector", "mask"), None) is not None:  # padded, which the mask tells
            return
        missing = int((~ends[:, -1].reshape(len(rows), -1).any(-1)).sum())
        if missing:
            raise ValueError(
                f"every row must end where its slice does: {missing} of {len(rows)} rows of {self.slice_len} steps do "
                "not; sample with a SliceSampler of that slice_len and strict_length=True, or pad_output=True."
            )
