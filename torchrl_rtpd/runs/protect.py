"""Everything that keeps a run alive, attached to its trainer in the one order that works."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torchrl.trainers import Trainer

from torchrl_rtpd.runs.checkpoints import SaveCheckpoints
from torchrl_rtpd.runs.guards import DivergenceGuard
from torchrl_rtpd.runs.monitor import RunMonitor
from torchrl_rtpd.runs.stopping import StopOnSignal, StopWhenCaughtUp

__all__ = ["Protected", "Protection", "protect"]


@dataclass(frozen=True)
class Protection:
    """Options of a run's protection: checkpoints, guard and stoppers.

    Attributes:
        checkpoint_every_steps: agent steps between two checkpoints.
        checkpoint_keep: newest checkpoints kept, in addition to the one of the best students.
        checkpoint_replay: save the replay buffer, so that a resumed run does not fill it again.
        on_divergence: policy of the :class:`~torchrl_rtpd.runs.DivergenceGuard`: ``"stop"``, ``"skip"`` or
            ``"rollback"``.
        stop_after_evaluations: end the run when every student has caught up in so many evaluations in a row; None
            never does. See :class:`~torchrl_rtpd.runs.StopWhenCaughtUp`.
        metadata: more for the manifest of each checkpoint, such as the run's configuration; JSON.
        resume_hint: text that tells how this run is resumed, such as a command; it is printed when the run ends early.
            None names what the caller has: :meth:`Experiment.resume <torchrl_rtpd.runs.Experiment.resume>` or
            :meth:`SaveCheckpoints.restore <torchrl_rtpd.runs.SaveCheckpoints.restore>`.

    Examples:
        >>> Protection(on_divergence="rollback").checkpoint_every_steps
        10000
    """

    checkpoint_every_steps: int = 10_000
    checkpoint_keep: int = 2
    checkpoint_replay: bool = False
    on_divergence: Literal["stop", "skip", "rollback"] = "stop"
    stop_after_evaluations: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    resume_hint: str | None = None


@dataclass(frozen=True)
class Protected:
    """Hooks of a protected run.

    Attributes:
        stopper: takes the signals.
        guard: looks for divergence.
        saver: writes and restores checkpoints.
    """

    stopper: StopOnSignal
    guard: DivergenceGuard
    saver: SaveCheckpoints


def protect(
    trainer: Trainer,
    monitor: RunMonitor,
    directory: str | os.PathLike,
    protection: Protection | None = None,
) -> Protected:
    """Attach monitor, stoppers, guard and checkpoints to a trainer.

    The order is that of a batch: the monitor evaluates, what stops the run reads its scores, the guard judges networks
    before they are saved, and the checkpoint comes last, so that it holds what all the others remember of this batch.

    Args:
        trainer: with all its other hooks, those of the students among them.
        monitor: watches the run; not registered yet.
        directory: where the checkpoints lie.
        protection: options; None takes the defaults.

    Returns:
        The hooks; ``saver.restore(path)`` puts the trainer where a checkpoint was, right before ``trainer.train()``.

    Raises:
        RuntimeError: a trainer that saves checkpoints already.
        ValueError: an option out of its range, or ``stop_after_evaluations`` without students.
    """
    options = protection or Protection()
    monitor.register(trainer)
    stopper = StopOnSignal()
    stopper.register(trainer)
    if options.stop_after_evaluations is not None:
        StopWhenCaughtUp(monitor, evaluations=options.stop_after_evaluations).register(trainer)
    saver = SaveCheckpoints(
        Path(directory),
        every_steps=options.checkpoint_every_steps,
        keep_last=options.checkpoint_keep,
        replay=options.checkpoint_replay,
        metadata=options.metadata,
        resume_hint=options.resume_hint,
        monitor=monitor,
    )
    guard = DivergenceGuard(monitor.distiller, policy=options.on_divergence, monitor=monitor, saver=saver)
    guard.register(trainer)
    saver.register(trainer)
    return Protected(stopper, guard, saver)
