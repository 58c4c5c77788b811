"""What this package needs of TorchRL's trainers and has no public name there.

Attributes that begin with an underscore may change with any release of TorchRL. They are read and written here and
nowhere else in ``trainers`` and ``runs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchrl.checkpoint import Checkpoint
from torchrl.trainers import Trainer

__all__ = [
    "checkpoint_metadata",
    "collect_rollout",
    "count_learned_minibatches",
    "has_module",
    "hooks_of",
    "logged_values",
    "runs_elsewhere",
    "save_after_this_batch",
    "skip_counted_frames",
    "stopping",
    "synced_checkpoint",
    "updates_made",
]

_COUNTER = "_rtpd_counts_learned"  # set on a trainer whose counter is kept right


def hooks_of(trainer: Trainer) -> Mapping[str, Any]:
    """Hooks and other parts registered with a trainer by name (``register_module``)."""
    return trainer._modules


def has_module(trainer: Trainer, name: str) -> bool:
    """Return True if a part of this name is registered with a trainer."""
    return name in trainer._modules


def logged_values(trainer: Trainer) -> dict[str, list[Any]]:
    """Every value that a trainer has logged, oldest first, by metric name. The lists are the trainer's own."""
    return trainer._log_dict


def stopping(trainer: Trainer) -> bool:
    """Return True once somebody has asked the trainer to stop after this batch (``request_stop``)."""
    return trainer._stop_training


def runs_elsewhere(trainer: Trainer) -> bool:
    """Return True if the teacher is updated in other processes (``learner_backend="ray"``)."""
    return getattr(trainer, "learner_backend", "local") == "ray"


# Updates


def updates_made(trainer: Trainer) -> int:
    """Number of minibatches that a trainer has learned from, those before a restart included.

    The number is exact where :func:`count_learned_minibatches` was called before training, as
    :class:`~torchrl_rtpd.trainers.RealTimeDistillTrainer` does. Without that it is TorchRL's counter, which is one too
    high for each epoch that ends because the data do.
    """
    return trainer._optim_count


def count_learned_minibatches(trainer: Trainer) -> None:
    """Keep a trainer's counter of updates at the minibatches it has learned from; a second call does nothing.

    TorchRL counts before it fetches a minibatch, so an epoch that ends because the data do is counted one too long:
    each epoch of ``PPOTrainer(optim_steps_per_batch=None)``. The counter itself is set right, between epochs, and not a
    difference kept beside it: so a checkpoint of TorchRL's holds the right number, and all that read it agree.
    """
    if runs_elsewhere(trainer) or getattr(trainer, _COUNTER, False):  # a remote learner reports what it made
        return
    setattr(trainer, _COUNTER, True)
    counter = _LearnedMinibatches(trainer)
    trainer.register_op("pre_optim_steps", counter.before_epochs)
    trainer.register_op("post_optim", counter.after_update)
    trainer.register_op("post_epoch", counter.after_epoch)


class _LearnedMinibatches:
    """Sets a trainer's counter to the minibatches that reached the end of their update."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._count = trainer._optim_count

    def before_epochs(self) -> None:
        self._count = self._trainer._optim_count  # a restored state may have changed it

    def after_update(self) -> None:
        self._count += 1

    def after_epoch(self) -> None:
        self._trainer._optim_count = self._count


# Checkpoints


def synced_checkpoint(trainer: Trainer) -> Checkpoint:
    """The trainer's checkpoint, with every part that is registered by now."""
    return trainer._sync_checkpoint_components()


def checkpoint_metadata(trainer: Trainer) -> dict[str, Any]:
    """Entries of a checkpoint's manifest: TorchRL's own and those of ``checkpoint_metadata``."""
    return trainer._checkpoint_manifest_metadata()


def skip_counted_frames(trainer: Trainer) -> None:
    """Tell a restored ``DQNTrainer`` that epsilon has followed all its frames, or it would be lowered a second time."""
    if hasattr(trainer, "_greedy_last_frames"):
        trainer._greedy_last_frames = trainer.collected_frames


# Collectors


def collect_rollout(collector: Any) -> Any:
    """One batch of a collector in this process as it would yield it, which is not counted as collected."""
    return collector._postproc(collector.rollout()).clone()


def save_after_this_batch(trainer: Trainer) -> None:
    """Let a trainer save at the end of the batch it is at, as if its interval had passed."""
    trainer._last_save = trainer.collected_frames - trainer.save_trainer_interval - 1
