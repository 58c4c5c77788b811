"""Steps, updates and seconds of a run, those of earlier processes and phases included.

A step is one agent decision, an update one minibatch learned from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torchrl.trainers import Trainer

from torchrl_rtpd.trainers._torchrl import count_learned_minibatches, restore_updates_made, updates_made

__all__ = ["SPENT", "RunClock"]

SPENT = ("steps", "updates", "training_seconds", "cpu_seconds")
"""Costs that an earlier phase may have had, by the names under which they are counted."""


class RunClock:
    """Counts what a run has cost, with what was spent before it.

    Three spans of time are told apart: ``seconds`` by the clock, all of them; ``training_seconds`` without evaluations;
    and ``cpu_seconds``, those of the processor in all threads, without evaluations. All are measured by clocks that
    nobody sets, and go on where a resumed run was left.

    Args:
        spent_before: costs of an earlier run without which this one could not be, by the names in ``SPENT``.

    Attributes:
        spent_before: all four costs, 0 where none was given.
        evaluation_seconds: time between :meth:`evaluating` and its end, summed.
        seconds_before: time of the run in the processes that it was resumed from.

    Raises:
        ValueError: another name in ``spent_before``.
    """

    def __init__(self, spent_before: Mapping[str, float] | None = None) -> None:
        unknown = set(spent_before or {}) - set(SPENT)
        if unknown:
            raise ValueError(f"spent_before holds {', '.join(SPENT)}: got {', '.join(sorted(unknown))}.")
        self.spent_before = {**dict.fromkeys(SPENT, 0), **(spent_before or {})}
        self.evaluation_seconds = self._evaluation_cpu_seconds = 0.0
        self.seconds_before = self._cpu_before = 0.0
        self._start, self._cpu_start = time.monotonic(), time.process_time()
        self._ended: tuple[float, float] | None = None  # seconds, and those of the processor, at the end of training
        # Seconds, steps and seconds of evaluation at the first update.
        self._learning_since: tuple[float, int, float] | None = None
        self._trainer: Any = None

    def attach(self, trainer: Trainer) -> None:
        """Begin to count; called when the run's monitor is registered."""
        self._trainer = trainer
        self._start, self._cpu_start = time.monotonic(), time.process_time()
        count_learned_minibatches(trainer)

    def after_batch(self) -> None:
        """Note when learning began; called after each batch."""
        if self.learning and self._learning_since is None:
            self._learning_since = (self.seconds, self._trainer.collected_frames, self.evaluation_seconds)

    def end(self) -> None:
        """Stop the clocks of training; called when it ends."""
        self._ended = (self.seconds, self._all_cpu_seconds)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Leave the time of a ``with`` block out of training, that of one that raises as well."""
        start, cpu_start = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            self.evaluation_seconds += time.monotonic() - start
            self._evaluation_cpu_seconds += time.process_time() - cpu_start

    @property
    def learning(self) -> bool:
        """True once this run has made an update."""
        return updates_made(self._trainer) > 0

    @property
    def steps(self) -> int:
        """Number of agent steps so far, those spent before included."""
        return int(self.spent_before["steps"]) + self._trainer.collected_frames

    @property
    def updates(self) -> int:
        """Number of minibatches learned from so far, those spent before included."""
        return int(self.spent_before["updates"]) + updates_made(self._trainer)

    @property
    def seconds(self) -> float:
        """Time of the run so far, in the processes that it was resumed from as well."""
        return self.seconds_before + time.monotonic() - self._start

    @property
    def training_seconds(self) -> float:
        """Time from :meth:`attach` to the end of training, without evaluations, with that spent before."""
        now = self.seconds if self._ended is None else self._ended[0]
        return self.spent_before["training_seconds"] + now - self.evaluation_seconds

    @property
    def cpu_seconds(self) -> float:
        """Time of the processor in all threads over the same span."""
        now = self._all_cpu_seconds if self._ended is None else self._ended[1]
        return self.spent_before["cpu_seconds"] + now - self._evaluation_cpu_seconds

    @property
    def _all_cpu_seconds(self) -> float:
        return self._cpu_before + time.process_time() - self._cpu_start

    @property
    def steps_per_second(self) -> float | None:
        """Agent steps a second from the first update to the end of training, without evaluations; None before."""
        if self._learning_since is None:
            return None
        since, steps, evaluating = self._learning_since
        now = self.seconds if self._ended is None else self._ended[0]
        seconds = now - since - (self.evaluation_seconds - evaluating)
        done = self._trainer.collected_frames - steps
        return done / seconds if done and seconds > 0 else None

    def counters(self) -> dict[str, float]:
        """Return all costs by name, rounded to two digits, as a row of ``metrics.csv`` has them."""
        row = {name: round(getattr(self, name), 2) for name in (*SPENT, "seconds")}
        speed = self.steps_per_second
        return row if speed is None else {**row, "steps_per_second": round(speed, 2)}

    def state_dict(self) -> dict[str, Any]:
        """Return the time of all spans, and the updates. Steps are the trainer's to save."""
        return {
            "updates": updates_made(self._trainer),
            "seconds": self.seconds,
            "cpu_seconds": self._all_cpu_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "evaluation_cpu_seconds": self._evaluation_cpu_seconds,
            "learning_since": self._learning_since,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.seconds_before, self._start = state_dict["seconds"], time.monotonic()
        self._cpu_before, self._cpu_start = state_dict["cpu_seconds"], time.process_time()
        self.evaluation_seconds = state_dict["evaluation_seconds"]
        self._evaluation_cpu_seconds = state_dict["evaluation_cpu_seconds"]
        self._learning_since = state_dict["learning_since"]
        if self._trainer is not None and state_dict.get("updates") is not None:  # the first two versions had none
            restore_updates_made(self._trainer, state_dict["updates"])
