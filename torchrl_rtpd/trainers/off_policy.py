"""Small hooks that cure pitfalls of TorchRL's off-policy and on-policy trainers."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.trainers import ReplayBufferTrainer, Trainer

from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.trainers._torchrl import logged_values, take_over_epoch_writes
from torchrl_rtpd.trainers.stateless import StatelessHook

__all__ = ["BoundedHistory", "KeepOnDevice", "KeepWarmupData", "SampleToDevice"]


class BoundedHistory(StatelessHook):
    """Let a trainer forget what it logged long ago.

    TorchRL's trainers keep every value they ever logged, which fills the memory of a run of days. Those that read them,
    such as its early stopping, look at the last ones.

    Args:
        keep: values kept of each metric, at least 1.

    Raises:
        ValueError: less than one.
    """

    def __init__(self, keep: int = 1_000) -> None:
        check_integers(1, "1 keeps the newest value", keep=keep)
        self.keep = keep

    def register(self, trainer: Trainer, name: str = "bounded_history") -> None:
        """Attach to a trainer."""
        self._trainer = trainer
        trainer.register_op("post_steps", self.forget)

    def forget(self) -> None:
        """Drop all but the newest values; called once a batch."""
        for values in logged_values(self._trainer).values():
            del values[: -self.keep]


class KeepWarmupData(StatelessHook):
    """Store the batches of the warm-up, which TorchRL's off-policy trainers collect and throw away.

    They extend the replay buffer only in batches that also optimise, so what comes before ``init_random_frames`` is
    lost.

    Args:
        replay_buffer: where to store; None is the trainer's own buffer.

    Raises:
        RuntimeError: at ``register``, no buffer given and a trainer without one.
    """

    def __init__(self, replay_buffer: Any = None) -> None:
        self.replay_buffer = replay_buffer
        self._trainer: Trainer | None = None

    def register(self, trainer: Trainer, name: str = "keep_warmup_data") -> None:
        """Attach to a trainer."""
        if self.replay_buffer is None:
            self.replay_buffer = getattr(trainer, "replay_buffer", None)
        if self.replay_buffer is None:
            raise RuntimeError(
                f"warm-up data needs a replay buffer, and this {type(trainer).__name__} has replay_buffer=None; "
                "pass the buffer to KeepWarmupData."
            )
        self._storer = ReplayBufferTrainer(self.replay_buffer, flatten_tensordicts=True)
        self._trainer = trainer
        trainer.register_op("batch_process", self.extend)

    def extend(self, batch: TensorDictBase) -> None:
        """Store ``batch`` ``[N, T]``, as TorchRL does, if the trainer will not; called with each batch."""
        trainer = self._trainer
        if trainer is None:
            raise RuntimeError("extend was called before register: call hook.register(trainer) first.")
        mask = batch.get(("collector", "mask"), None)
        steps = batch.numel() if mask is None else int(mask.sum())
        if trainer.collected_frames + steps * trainer.frame_skip < trainer.collector.init_random_frames:
            self._storer.extend(batch)


class KeepOnDevice(StatelessHook):
    """Hand batches to the replay buffer on the device that they lie on.

    TorchRL's trainers move each batch to the CPU before they write it, even where collector and storage both lie on a
    GPU, on-policy ones once an epoch: the whole rollout there and back, which the GPU waits for. What is stored is the
    same. :class:`~torchrl_rtpd.trainers.LambdaTargets` keeps rollouts on their device by itself.

    Raises:
        RuntimeError: at ``register``, a trainer that writes no batches into a replay buffer by itself.
    """

    def register(self, trainer: Trainer, name: str = "keep_on_device") -> None:
        """Attach to a trainer with a replay buffer."""
        self._own_write = take_over_epoch_writes(trainer, self.write)
        if self._own_write is None:
            raise RuntimeError(
                f"batches are kept on their device on the way to a replay buffer: this {type(trainer).__name__} writes "
                "none by itself; leave KeepOnDevice out."
            )

    def write(self, batch: TensorDictBase) -> TensorDictBase:
        """Store a batch, and return what was stored; called before each epoch."""
        assert self._own_write is not None
        return self._own_write(batch)


class SampleToDevice(StatelessHook):
    """Move each minibatch to the learner's device, after TorchRL has moved it to the storage's.

    Args:
        device: where the loss lives.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def register(self, trainer: Trainer, name: str = "sample_to_device") -> None:
        """Attach to a trainer, after its own sampling."""
        trainer.register_op("process_optim_batch", self.to_device)

    def to_device(self, sub_batch: TensorDictBase) -> TensorDictBase:
        """Return the minibatch on the device."""
        # To the CPU the copy must have arrived when it is read.
        return sub_batch.to(self.device, non_blocking=self.device.type == "cuda")
