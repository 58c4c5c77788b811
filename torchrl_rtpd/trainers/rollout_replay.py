"""Replay of an on-policy trainer, which holds one rollout and is written once.

``N`` is the number of games side by side, ``T`` of steps in a rollout.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.trainers import Trainer

from torchrl_rtpd.replay.storage import FrameStackStorage
from torchrl_rtpd.trainers._torchrl import take_over_epoch_writes

__all__ = ["RolloutReplay"]


class RolloutReplay:
    """Writes each rollout of a trainer once, where TorchRL's trainers write it again before every epoch.

    A storage of frames takes a rollout only once, since the second write does not continue the first. Rollouts of
    single frames are stored as soon as they are collected, and the stacks after their steps are rebuilt from there.

    Args:
        trainer: an on-policy trainer with a replay.

    Attributes:
        buffer: the replay.
        stacks_frames: True if the rollout is of single frames, which are stored already.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.buffer: Any = trainer.replay_buffer
        self._own_write = take_over_epoch_writes(trainer, self._before_epoch)
        self._is_new = False  # not written before an epoch yet
        self.stacks_frames = False

    @property
    def max_size(self) -> int | None:
        """Transitions that the replay has room for; None where it does not say."""
        return getattr(self.buffer.storage, "max_size", None)

    def begin(self, rollout: TensorDictBase, target: NestedKey) -> None:
        """Take note of a new rollout ``[N, T]``; one of single frames is stored, with zeros for its targets.

        Args:
            rollout: as the collector yields it.
            target: where its targets ``[N, T, 1]`` will be.
        """
        self._is_new, self.stacks_frames = True, self._holds_stacks_of(rollout)
        if self.stacks_frames:
            rollout.set(target, torch.zeros(*rollout.shape, 1, device=rollout.device))
            self.buffer.extend(rollout.reshape(-1))

    def _holds_stacks_of(self, rollout: TensorDictBase) -> bool:
        """True for single frames, of which the storage makes stacks."""
        storage = self.buffer.storage
        if not isinstance(storage, FrameStackStorage) or storage.frame_stack == 1:
            return False
        pixels = rollout.get(storage.pixels_key, None)
        return pixels is not None and pixels.shape[rollout.ndim] == storage.channels

    def next_states(self, rollout: TensorDictBase, chosen: Tensor) -> TensorDictBase:
        """Return the states after the chosen steps of the rollout, with their stacks.

        Args:
            rollout: ``[N, T]``.
            chosen: bool ``[N, T]``, True at ``B`` steps.

        Returns:
            The states ``[B]``, in the order of the slots and then of the steps.
        """
        if not self.stacks_frames:
            return rollout.get("next")[chosen]
        places = chosen.reshape(-1).nonzero().squeeze(-1)
        return self.buffer.storage.next_states(places.to(self.buffer.storage.device)).to(chosen.device)

    def _before_epoch(self, rollout: TensorDictBase) -> TensorDictBase:
        if self._is_new and self.stacks_frames:
            self.buffer.storage.renew(rollout.reshape(-1))
        elif self._is_new and self._own_write is not None:
            self._own_write(rollout)
        self._is_new = False
        return rollout
