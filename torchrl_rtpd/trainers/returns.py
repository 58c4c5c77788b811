"""Scores of the last evaluation, and the state of the run that schedules see."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torchrl_rtpd.schedules import RunState

__all__ = ["Returns"]


class Returns:
    """Raw returns of teacher, students and a random player, as last reported; None before.

    Examples:
        >>> returns = Returns()
        >>> returns.report({"a": 1.0, "b": 3.0}, teacher_return=4.0, random_return=0.0)
        >>> returns.run_state(7, ["a", "b"], {"distill/a/teacher_entropy": 0.5}).student_return
        2.0
    """

    def __init__(self) -> None:
        self._students: dict[str, float] = {}
        self._teacher: float | None = None
        self._random: float | None = None

    def report(self, students: Mapping[str, float], teacher_return: float, random_return: float) -> None:
        """Take the scores of an evaluation; students that are not named keep their last."""
        self._students.update(students)
        self._teacher, self._random = teacher_return, random_return

    def run_state(self, updates: int, names: Iterable[str], metrics: Mapping[str, float]) -> RunState:
        """Return the run after so many updates, seen from the students called ``names``: means over them.

        Args:
            updates: minibatches so far.
            names: of students.
            metrics: last means, with ``distill/<student>/teacher_entropy`` where it is known.
        """
        names = list(names)
        return RunState(
            updates=updates,
            teacher_return=self._teacher,
            student_return=_mean(self._students.get(name) for name in names),
            random_return=self._random,
            teacher_entropy=_mean(metrics.get(f"distill/{name}/teacher_entropy") for name in names),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the scores."""
        return {"teacher": self._teacher, "random": self._random, "students": dict(self._students)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._teacher, self._random = state_dict["teacher"], state_dict["random"]
        self._students = copy.deepcopy(dict(state_dict["students"]))


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
