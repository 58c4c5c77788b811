"""Access to what TorchRL's trainers hold and give no public name.

Attributes that begin with an underscore may change with any release of TorchRL. They are read and written here and
nowhere else in ``trainers`` and ``runs``.
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from tensordict import TensorDictBase
from torchrl.checkpoint import Checkpoint
from torchrl.objectives import KLAdaptiveLR
from torchrl.trainers import ReplayBufferTrainer, Trainer, UpdateWeights

from torchrl_rtpd.functional.checks import check_name

__all__ = [
    "adaptive_rates",
    "check_part",
    "checkpoint_metadata",
    "collect_rollout",
    "count_learned_minibatches",
    "has_module",
    "hooks_of",
    "is_over",
    "learned_weights",
    "logged_values",
    "replay_actor",
    "restore_updates_made",
    "runs_elsewhere",
    "save_after_this_batch",
    "send_weights",
    "skip_counted_frames",
    "started_learners",
    "stopping",
    "synced_checkpoint",
    "take_over_epoch_writes",
    "updates_made",
]

_COUNTER = "_rtpd_learned"  # set on a trainer whose minibatches are counted


def hooks_of(trainer: Trainer) -> Mapping[str, Any]:
    """Hooks and other parts registered with a trainer by name (``register_module``)."""
    return trainer._modules


def has_module(trainer: Trainer, name: str) -> bool:
    """Return True if a part of this name is registered with a trainer."""
    return name in trainer._modules


def check_part(trainer: Trainer, name: str) -> None:
    """Refuse a name for a part of a trainer that another one has, or that no part can have.

    Raises:
        RuntimeError: a name that is taken.
        ValueError: a name that would spoil those of files and metrics.
    """
    check_name("the name of a trainer's part", name)
    if has_module(trainer, name):
        raise RuntimeError(f"the trainer has a part called {name!r} already; register under another name.")


def logged_values(trainer: Trainer) -> dict[str, list[Any]]:
    """Values that a trainer has logged, oldest first, by metric name. The lists are the trainer's own."""
    return trainer._log_dict


def stopping(trainer: Trainer) -> bool:
    """Return True once the trainer was asked to stop after this batch (``request_stop``)."""
    return bool(trainer._stop_training)


def is_over(trainer: Trainer) -> bool:
    """Return True once a trainer's collector was closed, as ``train`` ends, or all its frames were collected."""
    frames, total = getattr(trainer, "collected_frames", 0), getattr(trainer, "total_frames", math.inf)
    return bool(getattr(getattr(trainer, "collector", None), "closed", False)) or frames >= total


def runs_elsewhere(trainer: Trainer) -> bool:
    """Return True if the teacher is updated in other processes (``learner_backend="ray"``)."""
    return getattr(trainer, "learner_backend", "local") == "ray"


# Remote learners


def learned_weights(trainer: Trainer) -> TensorDictBase:
    """Return the teacher's weights as the first remote learner has them now, on the CPU."""
    return trainer._execution_backend.get_weights()


def started_learners(trainer: Trainer) -> list[Any]:
    """Start a trainer's remote learners, as ``train`` would, and return Ray's handles of them in the order of ranks.

    Empty for a trainer that learns in this process.
    """
    if not runs_elsewhere(trainer):
        return []
    trainer._execution_backend.start()  # does nothing where they run already
    return list(trainer._execution_backend._actors)


def replay_actor(trainer: Trainer) -> Any:
    """Ray's handle of the actor that holds a trainer's replay; None for a replay of this process."""
    return getattr(getattr(trainer, "replay_buffer", None), "_rb", None)


# Updates


def updates_made(trainer: Trainer) -> int:
    """Number of minibatches that a trainer has learned from, those before a restart included.

    It is exact where :func:`count_learned_minibatches` was called before training, and after a restart where the number
    was given back by :func:`restore_updates_made`. Otherwise it is TorchRL's counter, which is one too high for each
    epoch that ends because the data do.
    """
    counter = getattr(trainer, _COUNTER, None)
    return trainer._optim_count if counter is None else counter.made


def count_learned_minibatches(trainer: Trainer) -> None:
    """Count for :func:`updates_made` from now on; a second call does nothing.

    TorchRL counts before it fetches a minibatch, so an epoch that ends because the data do is counted one too long:
    each epoch of ``PPOTrainer(optim_steps_per_batch=None)``. Its counter is left as it is, since what the trainer
    logs must not depend on its hooks.
    """
    if runs_elsewhere(trainer) or hasattr(trainer, _COUNTER):  # a remote learner reports what it made
        return
    counter = _LearnedMinibatches(trainer)
    setattr(trainer, _COUNTER, counter)
    trainer.register_op("pre_optim_steps", counter.before_epochs)
    trainer.register_op("post_optim", counter.after_update)
    trainer.register_op("post_epoch", counter.after_epoch)


def restore_updates_made(trainer: Trainer, updates: int) -> None:
    """Give :func:`updates_made` back what it returned when the trainer was saved.

    A hook that saves the number calls this in ``load_state_dict``, before or after the trainer's own counter is loaded.
    """
    counter = getattr(trainer, _COUNTER, None)
    if counter is not None:
        counter.restored = updates


class _LearnedMinibatches:
    """Counts the minibatches that reached the end of their update, as a difference to the trainer's counter."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = weakref.proxy(trainer)
        self._excess = 0  # what the trainer has counted in addition
        self._made = 0  # while it optimises
        self.restored: int | None = None  # until it optimises again

    @property
    def made(self) -> int:
        """Minibatches learned from."""
        return self._trainer._optim_count - self._excess if self.restored is None else self.restored

    def before_epochs(self) -> None:
        """Begin with the number so far; called once a batch."""
        self._made, self.restored = self.made, None
        self._excess = self._trainer._optim_count - self._made

    def after_update(self) -> None:
        """Count a minibatch that was learned from."""
        self._made += 1

    def after_epoch(self) -> None:
        """Take note of what the trainer has counted in addition."""
        self._excess = self._trainer._optim_count - self._made


# Replay


def take_over_epoch_writes(
    trainer: Trainer, write: Callable[[TensorDictBase], TensorDictBase]
) -> Callable[[TensorDictBase], TensorDictBase] | None:
    """Call ``write`` before each epoch, in place of a trainer's own write into its replay.

    Args:
        trainer: on-policy, it writes the whole rollout again before every epoch over it; off-policy, each batch once.
        write: takes and returns the batch.

    Returns:
        The trainer's own write, from the device that a batch lies on, where TorchRL's moves it to the CPU first; None
        for a trainer that makes none.
    """
    for place, (op, options) in enumerate(trainer._pre_epoch_ops):
        own = getattr(op, "__wrapped__", op)  # inside of the trainer's stopwatch
        if getattr(own, "__func__", None) is ReplayBufferTrainer.extend and own.__self__.flatten_tensordicts:
            trainer._pre_epoch_ops[place] = (write, options)
            return partial(_extend, own.__self__.replay_buffer)
    return None


def _extend(replay_buffer: Any, batch: TensorDictBase) -> TensorDictBase:
    """Store a batch as ``ReplayBufferTrainer.extend`` does, but for its way over the CPU."""
    mask = batch.get(("collector", "mask"), None)
    if mask is not None:
        batch = batch[mask]
    else:
        if batch.get(("next", "truncated"), None) is not None:
            batch["next", "truncated"][..., -1] = True
        batch = batch.reshape(-1)
    replay_buffer.extend(batch)
    return batch


# Checkpoints


def synced_checkpoint(trainer: Trainer) -> Checkpoint:
    """The trainer's checkpoint, with every part that is registered by now."""
    return trainer._sync_checkpoint_components()


def checkpoint_metadata(trainer: Trainer) -> dict[str, Any]:
    """Entries of a checkpoint's manifest: TorchRL's own and those of ``checkpoint_metadata``."""
    return trainer._checkpoint_manifest_metadata()


def skip_counted_frames(trainer: Trainer) -> None:
    """Tell a restored ``DQNTrainer`` that epsilon has followed all its frames, lest it be lowered a second time."""
    if hasattr(trainer, "_greedy_last_frames"):
        trainer._greedy_last_frames = trainer.collected_frames


# Collectors


def collect_rollout(collector: Any) -> Any:
    """Return one batch of a collector in this process as it would yield it, without counting it as collected."""
    return collector._postproc(collector.rollout()).clone()


def save_after_this_batch(trainer: Trainer) -> None:
    """Let a trainer save at the end of the batch it is at, as if its interval had passed."""
    trainer._last_save = trainer.collected_frames - trainer.save_trainer_interval - 1


def send_weights(trainer: Trainer) -> None:
    """Send the weights of a trainer's networks to its collector now, as the trainer does after each batch."""
    for op, _ in getattr(trainer, "_post_steps_ops", ()):
        own = getattr(op, "__wrapped__", op)  # inside of the trainer's stopwatch
        if isinstance(own, UpdateWeights):
            own()


# Hooks


def adaptive_rates(trainer: Trainer) -> list[KLAdaptiveLR]:
    """Return the rates that follow a policy's KL, of hooks and functions registered with a trainer.

    A trainer has no place for them, so that users step them in functions of their own. Found are those that a hook has
    as an attribute, and those that a function is bound to or names.
    """
    found = [value for value in _parts(trainer) if isinstance(value, KLAdaptiveLR)]
    return list({id(rate): rate for rate in found}.values())


def has_hook(trainer: Trainer, kind: type) -> bool:
    """Return True if a hook of a class is registered with a trainer, also one without a place in its checkpoints."""
    return any(isinstance(value, kind) for value in _parts(trainer))


def _parts(trainer: Trainer) -> Iterator[Any]:
    """Hooks of a trainer, what its functions hold, and the attributes of both."""
    held = list(trainer._modules.values())
    for name, ops in vars(trainer).items():
        if name.endswith("_ops") and isinstance(ops, list):
            for op, options in ops:
                held += [*_held_by(getattr(op, "__wrapped__", op)), *options.values()]
    for value in held:
        yield value
        yield from vars(value).values() if hasattr(value, "__dict__") else ()


def _held_by(op: Any) -> list[Any]:
    """Objects that a function works on: what it is bound to, given beforehand, or names."""
    if isinstance(op, partial):
        return [*op.args, *op.keywords.values(), *_held_by(op.func)]
    if inspect.ismethod(op):
        return [op.__self__]
    if inspect.isfunction(op):
        named = inspect.getclosurevars(op)
        return [*named.nonlocals.values(), *named.globals.values()]
    return [op]
