"""Ending a run well: on a signal, or when the students have caught up.

Both ask TorchRL's trainer to stop at the end of the batch; with :class:`~torchrl_rtpd.runs.SaveCheckpoints` it then
saves a last checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import NormalDist
from types import FrameType
from typing import Any

from torchrl.trainers import Trainer, TrainerHookBase

from torchrl_rtpd.evaluation.scores import Scores
from torchrl_rtpd.runs.monitor import Watching
from torchrl_rtpd.runs.ranges import check_ranges
from torchrl_rtpd.trainers.stateless import StatelessHook

__all__ = ["StopOnSignal", "StopWhenCaughtUp", "catches_up"]


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(StatelessHook):
    """Hook that lets Ctrl-C, or a scheduler's SIGTERM, end training after the batch it is at.

    A second signal ends the process at once, without another write to the disk; the last checkpoint stays whole.
    Signals are taken while ``train`` runs, in the process's main thread, and given back afterwards. Within
    :meth:`held` they are kept beyond training, and ``received`` tells what follows it to give up.

    Attributes:
        received: the first signal that came, None before.

    Examples:
        >>> stopper = StopOnSignal()  # then stopper.register(trainer)
        >>> stopper.received is None
        True
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._held = False
        self._training = True

    def register(self, trainer: Trainer, name: str = "stop_on_signal") -> None:
        """Attach to a trainer."""
        self._trainer = trainer
        trainer.register_op("setup", self.take)
        trainer.register_op("shutdown", self._after_training)

    @contextmanager
    def held(self) -> Iterator[StopOnSignal]:
        """Keep the signals for a ``with`` block: training and what comes after it, such as the final games."""
        self.take()
        self._held = True
        try:
            yield self
        finally:
            self._held = False
            self.give_back()

    def _after_training(self) -> None:
        self._training = False
        if not self._held:
            self.give_back()

    def take(self) -> None:
        """Take the signals; called when training begins. Doing it again does nothing."""
        if self._before:
            return
        if threading.current_thread() is threading.main_thread():  # Python has others handle none
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def give_back(self) -> None:
        """Put the earlier handlers back; called when training ends. Doing it again does nothing."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        when = "after this batch" if self._training else "without further games"
        sys.stderr.write(f"\n{self.received.name}: stopping {when}; a second one leaves at once.\n")
        self._trainer.request_stop(self.received.name)


def catches_up(
    student: Scores, teacher: Scores, random_return: float, *, share: float = 0.9, confidence: float = 0.95
) -> bool:
    r"""Return True if a student has caught up with its teacher, by a one-sided confidence bound.

    With mean scores :math:`S`, :math:`T` and a random player's :math:`R`, the student lacks
    :math:`d = S - R - s (T - R)` of the share :math:`s`. It has caught up where :math:`d - z \, e > 0`, with the
    standard error :math:`e^2 = e_S^2 + s^2 e_T^2` and the normal quantile :math:`z` of the confidence.

    Args:
        student: its games, at least two.
        teacher: the games of the same evaluation, at least two.
        random_return: mean score of a random player; its own error is left out, being common to all evaluations.
        share: part of the teacher's score above random that is asked for.
        confidence: of the bound, in (0.5, 1).

    Returns:
        False also where the teacher is no better than a random player, or where there is only one game, which shows
        no spread.

    Examples:
        >>> games = Scores((10.0, 11.0, 9.0, 10.0), 0, 0)
        >>> catches_up(games, games, 0.0), catches_up(games, games, 0.0, share=1.0)
        (True, False)
    """
    if min(student.episodes, teacher.episodes) < 2 or teacher.mean <= random_return:
        return False
    lead = student.mean - random_return - share * (teacher.mean - random_return)
    error = (student.standard_error**2 + (share * teacher.standard_error) ** 2) ** 0.5
    return lead - NormalDist().inv_cdf(confidence) * error > 0


class StopWhenCaughtUp(TrainerHookBase):
    """Hook that ends training when every student has caught up with the teacher, several evaluations in a row.

    See :func:`catches_up`. The best networks stay kept, as in any run.

    Args:
        monitor: evaluates; a :class:`~torchrl_rtpd.runs.RunMonitor`, registered before.
        evaluations: number of evaluations in a row.
        share: part of the teacher's score above random.
        confidence: of each evaluation's bound.

    Attributes:
        caught_up: True once the hook has ended training.

    Raises:
        ValueError: numbers out of range, or a monitor without students.
    """

    def __init__(
        self, monitor: Watching, *, evaluations: int = 3, share: float = 0.9, confidence: float = 0.95
    ) -> None:
        bounds = {"evaluations": evaluations, "share": share, "confidence": confidence}
        check_ranges(bounds, {"[1, inf)": "evaluations", "(0, 1]": "share", "(0.5, 1)": "confidence"})
        if len(monitor.networks) < 2:
            raise ValueError(
                f"only students catch up: got a monitor of {list(monitor.networks)}; leave this hook out without them."
            )
        self.monitor = monitor
        self.evaluations = evaluations
        self.share = share
        self.confidence = confidence
        self.caught_up = False
        self._held = 0
        self._looked_at = -1

    def register(self, trainer: Trainer, name: str = "stop_when_caught_up") -> None:
        """Attach to a trainer, after the monitor."""
        self._trainer = trainer
        trainer.register_op("post_steps", self.look)
        trainer.register_module(name, self)

    def look(self) -> None:
        """Count the evaluations that every student has held; called by the trainer after each batch."""
        monitor = self.monitor
        if monitor.evaluated_steps in (-1, self._looked_at):
            return
        self._looked_at = monitor.evaluated_steps
        chance = monitor.measure_random()
        if chance is None:
            return
        teacher, *students = monitor.networks
        scores = monitor.last_scores
        held = all(
            catches_up(scores[name], scores[teacher], chance, share=self.share, confidence=self.confidence)
            for name in students
        )
        self._held = self._held + 1 if held else 0
        if self._held >= self.evaluations:
            self.caught_up = True
            self._trainer.request_stop(
                f"{', '.join(students)} held {self.share:.0%} of the teacher's score for {self._held} evaluations"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the number of evaluations held so far."""
        return {"held": self._held, "looked_at": self._looked_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._held, self._looked_at = state_dict["held"], state_dict["looked_at"]
