"""Minibatches of sequences for a trainer that samples them as one long row."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import SliceSampler
from torchrl.trainers import Trainer

from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.networks.keys import names_in
from torchrl_rtpd.networks.rhythm import Rhythm
from torchrl_rtpd.trainers._torchrl import has_hook
from torchrl_rtpd.trainers.stateless import StatelessHook

__all__ = ["SLOT_ENDS", "SliceBatches", "refuse_flat_slices"]

SLOT_ENDS = "slot_ends"
"""Entry that is True at the last step of each slot of a batch, bool ``[*B, T, 1]``."""


_GAME_NUMBERS = (("collector", "traj_ids"), "episode")  # by which TorchRL's sampler finds games unless it is told


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
        ValueError: a length that is no integer of at least 1; at ``register``, a replay buffer whose sampler draws no
            slices, or others. At a minibatch, one that is not flat, or is not made of whole rows of one slice each.
        KeyError: before the first minibatch, a replay without the entries by which its sampler finds rows.

    Examples:
        >>> from tensordict import TensorDict
        >>> SliceBatches(4).split(TensorDict({"observation": torch.zeros(12, 3)}, [12])).shape
        torch.Size([3, 4])
    """

    def __init__(self, slice_len: int) -> None:
        check_integers(1, "it is that of the SliceSampler", slice_len=slice_len)
        self.slice_len = slice_len
        self._rhythm = Rhythm()
        self._found_rows = False

    def register(self, trainer: Trainer, name: str = "slice_batches") -> None:
        """Attach to a trainer, after its own sampling and before its own writing."""
        sampler = getattr(getattr(trainer, "replay_buffer", None), "sampler", None)
        if sampler is not None and not isinstance(sampler, SliceSampler):
            raise ValueError(
                f"rows come from a sampler of slices: got a replay buffer with a {type(sampler).__name__}; give it "
                f"SliceSampler(slice_len={self.slice_len}, end_key={SLOT_ENDS!r})."
            )
        if sampler is not None:
            self._check_length(sampler, trainer.replay_buffer.batch_size)
            trainer.register_op("pre_optim_steps", partial(self._check_replay, trainer.replay_buffer))
        trainer.register_op("batch_process", self.mark)
        trainer.register_op("process_optim_batch", self.split)

    def _check_length(self, sampler: SliceSampler, batch_size: int | None) -> None:
        """Refuse a sampler of slices of another length, as far as it is known before one is drawn."""
        given = sampler.slice_len
        if given is None and batch_size is not None:
            given = batch_size // sampler.num_slices
        if given is not None and given != self.slice_len:
            raise ValueError(
                f"slice_len must be that of the sampler: got {self.slice_len} and a {type(sampler).__name__} of "
                f"{given}; pass both the same."
            )

    def _check_replay(self, replay_buffer: Any) -> None:
        """Refuse a replay in which its sampler finds no rows; called before minibatches are drawn."""
        if self._found_rows or not len(replay_buffer):
            return
        sampler, stored = replay_buffer.sampler, replay_buffer[:1]
        wanted = [key for key in (sampler.end_key, sampler.traj_key) if key is not None]
        if not any(stored.get(key, None) is not None for key in (*wanted, *_GAME_NUMBERS)):
            raise KeyError(
                f"a {type(sampler).__name__} finds rows by {wanted}, which the replay lacks: it has "
                f"{names_in(stored)}; let the trainer write steps, once SliceBatches is registered, not the collector."
            )
        self._found_rows = True

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
        ends, places = rows.get(("next", "truncated"), None), rows.get("index", None)
        known = next((entry for entry in (ends, places) if entry is not None), None)
        if known is not None and self._rhythm.due(waits=not known.is_cpu):
            if rows.get(("collector", "mask"), None) is None:  # otherwise padded, which the mask tells
                self._check_ends(rows, ends)
                self._check_places(rows, places)
        return rows

    def _check_places(self, rows: TensorDictBase, places: Tensor | None) -> None:
        """Refuse rows of several slices, whose steps do not lie one behind the other in the replay."""
        if places is None or places.numel() != rows.numel():  # as of a replay of several dimensions
            return
        places = places.reshape(rows.shape)
        follows = (places.diff(dim=-1) == 1) | (places[:, 1:] == 0)  # a replay that is full goes on at its beginning
        apart = int((~follows).any(-1).sum())
        if apart:
            raise ValueError(
                f"every row must be one slice: {apart} of {len(rows)} rows of {self.slice_len} steps are not steps "
                "that follow one another in the replay; give the sampler that slice_len."
            )

    def _check_ends(self, rows: TensorDictBase, ends: Tensor | None) -> None:
        """Refuse rows of unequal lengths, whose ends the sampler marks within."""
        if ends is None:
            return
        missing = int((~ends[:, -1].reshape(len(rows), -1).any(-1)).sum())
        if missing:
            raise ValueError(
                f"every row must end where its slice does: {missing} of {len(rows)} rows of {self.slice_len} steps do "
                "not; sample with a SliceSampler of that slice_len and strict_length=True, or pad_output=True."
            )


def refuse_flat_slices(trainer: Trainer) -> None:
    """Refuse a trainer that samples rows of slots for a recurrent student and has nothing to mark their ends.

    Raises:
        RuntimeError: a sampler that looks for ``"slot_ends"``, and no :class:`SliceBatches`.
    """
    sampler = getattr(getattr(trainer, "replay_buffer", None), "sampler", None)
    if isinstance(sampler, SliceSampler) and sampler.end_key == SLOT_ENDS and not has_hook(trainer, SliceBatches):
        raise RuntimeError(
            f"a sampler that draws rows by {SLOT_ENDS!r} needs the hook that writes them: got none; register "
            f"torchrl_rtpd.trainers.SliceBatches({sampler.slice_len or 'slice_len'}) with the trainer."
        )
