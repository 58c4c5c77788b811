"""Schedules of a student's temperatures and coefficients.

A schedule maps the state of a run to a number. It serves any schedulable buffer of a loss
(:func:`apply_schedules`) and the probability that a student acts. Time is counted in ``*_updates``, gradient steps;
returns are raw scores of whole episodes; entropies are in nats. Nothing here reads a tensor, so nothing waits for a
device: call once a batch, with the numbers that the batch's log holds anyway.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchrl.objectives import LossModule

from torchrl_rtpd.functional.checks import check_within, real_number
from torchrl_rtpd.functional.scores import normalised_gap

__all__ = [
    "ExponentialSchedule",
    "GapSchedule",
    "KLGate",
    "LinearSchedule",
    "PiecewiseSchedule",
    "RunState",
    "Schedule",
    "apply_schedules",
    "check_schedules",
]


@dataclass(frozen=True)
class RunState:
    """State of a run that schedules may depend on. None means not known (yet); NaN is taken for the same.

    Attributes:
        updates: student updates so far.
        teacher_return: the teacher's return at the last evaluation.
        student_return: the student's return at the last evaluation.
        random_return: return of the random player.
        teacher_entropy: mean entropy of the teacher's softened policy over the last batch, nats: ``teacher_entropy`` of
            the losses.
    """

    updates: int = 0
    teacher_return: float | None = None
    student_return: float | None = None
    random_return: float | None = None
    teacher_entropy: float | None = None


class Schedule(ABC):
    """A number that depends on the state of a run.

    One instance serves one buffer of one loss: give each student a copy (:func:`copy.deepcopy`).
    """

    @abstractmethod
    def __call__(self, state: RunState) -> float:
        """The value now. Schedules with a memory take each call for a batch."""

    def state_dict(self) -> dict[str, Any]:
        """Memory of the schedule; empty where the value depends on ``state`` alone."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: a state of another kind of schedule.
        """
        _check_saved(self, state_dict)


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """From ``initial`` to ``final`` along a line.

    Args:
        initial: value up to and including ``begin_updates``.
        final: value from ``end_updates`` on.
        end_updates: updates at which ``final`` is reached.
        begin_updates: updates at which ``initial`` is left.

    Raises:
        ValueError: a value that is not finite, or an end that is not after the beginning.

    Examples:
        >>> schedule = LinearSchedule(1.0, 0.5, end_updates=100)
        >>> [schedule(RunState(updates)) for updates in (0, 50, 100, 1_000)]
        [1.0, 0.75, 0.5, 0.5]
    """

    initial: float
    final: float
    end_updates: int
    begin_updates: int = 0

    def __post_init__(self) -> None:
        check_within("(-inf, inf)", initial=self.initial, final=self.final)
        check_within("[0, inf)", begin_updates=self.begin_updates)
        check_within(f"({self.begin_updates}, inf)", "a schedule ends after it begins", end_updates=self.end_updates)
        for name in ("initial", "final", "end_updates", "begin_updates"):
            object.__setattr__(self, name, real_number(getattr(self, name)))

    def __call__(self, state: RunState) -> float:
        """The value after ``state.updates``."""
        fraction = _fraction(state.updates, self.begin_updates, self.end_updates)
        return self._between(fraction) if 0 < fraction < 1 else (self.final if fraction else self.initial)

    def _between(self, fraction: float) -> float:
        return (1 - fraction) * self.initial + fraction * self.final


@dataclass(frozen=True)
class ExponentialSchedule(LinearSchedule):
    """From ``initial`` to ``final`` by an equal factor an update, as suits a temperature.

    Arguments and errors are those of :class:`LinearSchedule`; both values must be positive.

    Examples:
        >>> schedule = ExponentialSchedule(4.0, 1.0, end_updates=100)
        >>> [schedule(RunState(updates)) for updates in (0, 50, 100, 1_000)]
        [4.0, 2.0, 1.0, 1.0]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("(0, inf)", "use LinearSchedule to reach 0", initial=self.initial, final=self.final)

    def _between(self, fraction: float) -> float:
        return self.initial ** (1 - fraction) * self.final**fraction  # the quotient of the two may overflow


@dataclass(frozen=True)
class PiecewiseSchedule(Schedule):
    """Values at given updates, joined by lines or kept until the next.

    Args:
        values: value by number of updates, at least one. The first also holds before, and the last ever after.
        interpolate: join the values by lines; False keeps each until the next one's update.

    Raises:
        ValueError: no values, one that is not finite, or updates that are negative or not in ascending order.

    Examples:
        >>> schedule = PiecewiseSchedule({0: 1.0, 100: 0.0, 200: 0.5})
        >>> [schedule(RunState(updates)) for updates in (0, 50, 100, 150, 1_000)]
        [1.0, 0.5, 0.0, 0.25, 0.5]
        >>> PiecewiseSchedule({0: 1.0, 100: 0.0}, interpolate=False)(RunState(99))
        1.0
    """

    values: Mapping[int, float]
    interpolate: bool = True

    def __post_init__(self) -> None:
        updates = list(self.values)
        if not updates:
            raise ValueError("a piecewise schedule needs at least one value: got none; write {0: 1.0, 10_000: 0.1}.")
        first: dict[str, Any] = {"the first number of updates": updates[0]}
        check_within("[0, inf)", **first)
        if updates != sorted(updates):
            raise ValueError(f"numbers of updates must ascend: got {updates}; write {{0: 1.0, 10_000: 0.1}}.")
        values: dict[str, Any] = {f"the value at {number} updates": value for number, value in self.values.items()}
        check_within("(-inf, inf)", **values)
        own = {real_number(number): real_number(value) for number, value in self.values.items()}
        object.__setattr__(self, "values", own)  # later changes of the argument are not ours

    def __call__(self, state: RunState) -> float:
        """The value after ``state.updates``."""
        points = list(self.values.items())
        passed = [point for point in points if point[0] <= state.updates]
        if not passed or len(passed) == len(points) or not self.interpolate:
            return (passed or points[:1])[-1][1]
        (begin, initial), (end, final) = passed[-1], points[len(passed)]
        fraction = _fraction(state.updates, begin, end)
        return (1 - fraction) * initial + fraction * final


class GapSchedule(Schedule):
    """Weight that shrinks as the student catches up with its teacher.

    ``scale * max(floor, gap)`` with the gap of :func:`normalised_gap`. It changes at evaluations only, and a change is
    kept for ``hold_updates``, however returns swing meanwhile. It may rise again: two returns near the random player's
    can look like a closed gap, and a weight that stayed down would never teach. Where the gap is unknown (before the
    first evaluation, a teacher that is no better than random, NaN) the last value stays.

    Args:
        floor: least weight, in [0, 1].
        hold_updates: updates for which a change is kept, at least.
        scale: value at a full gap, positive; for ``distill_coeff`` and the like.
        initial: weight before the first gap is known, in [0, 1].

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> schedule = GapSchedule(floor=0.1, hold_updates=1_000)
        >>> def after(updates: int, student_return: float) -> float:
        ...     return schedule(RunState(updates, -5.0, student_return, -21.0))
        >>> after(0, -17.0), after(999, -5.0), after(1_000, -5.0)
        (0.75, 0.75, 0.1)
    """

    def __init__(self, *, floor: float = 0.0, hold_updates: int = 0, scale: float = 1.0, initial: float = 1.0) -> None:
        check_within("[0, 1]", floor=floor, initial=initial)
        check_within("(0, inf)", scale=scale)
        check_within("[0, inf)", "0 follows every evaluation", hold_updates=hold_updates)
        self.floor = float(floor)
        self.hold_updates = real_number(hold_updates)
        self.scale = float(scale)
        self._weight = max(self.floor, float(initial))
        self._changed_updates: int | None = None  # never

    def __call__(self, state: RunState) -> float:
        """The value after ``state.updates`` with the returns of the last evaluation."""
        gap = normalised_gap(state.teacher_return, state.student_return, state.random_return)
        held = self._changed_updates is not None and state.updates - self._changed_updates < self.hold_updates
        if gap is not None and not held:
            weight = max(self.floor, gap)
            if weight != self._weight:
                self._weight, self._changed_updates = weight, state.updates
        return self.scale * self._weight

    def state_dict(self) -> dict[str, Any]:
        """The weight and when it last changed."""
        return {"weight": self._weight, "changed_updates": self._changed_updates}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        _check_saved(self, state_dict)
        self._weight, self._changed_updates = state_dict["weight"], state_dict["changed_updates"]


class KLGate(Schedule):
    r"""Weight that opens as the teacher's softened policy departs from the uniform one.

    With :math:`s = \sqrt{1 - H / \ln A}` of the teacher's entropy ``H``, averaged over recent batches, the weight is
    ``floor`` up to ``closed_at``, 1 from ``open_at`` on and a smooth step :math:`x^2 (3 - 2 x)` between. ``s`` is 0
    for a teacher without preferences and 1 for a deterministic one; while it is small it is proportional to the ratio
    of the spread of the teacher's values over actions to the temperature, :math:`s \approx \sigma / (\tau \sqrt{2 \ln
    A})`. The ratio says how much a teacher tells, and not that it is right. It sees a teacher that is still silent and
    not one that errs, and need not rise steadily. With ``teacher_temperature="auto"`` above its floor it is constant by
    construction.

    Args:
        num_actions: actions ``A``, at least 2. With action masks, the usual number of allowed ones.
        open_at: ``s`` from which the gate is open. Default: 0.3, ours; a spread of 0.6 temperatures with six actions.
        closed_at: ``s`` up to which the gate is closed.
        floor: weight of the closed gate, in [0, 1].
        scale: value of the open gate, positive.
        decay: share of the average that each batch leaves, in [0, 1). Default: 0.99, about the last 100 batches.

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> gate = KLGate(6, floor=0.1)
        >>> gate(RunState(0, teacher_entropy=math.log(6)))
        0.1
        >>> KLGate(6)(RunState(0, teacher_entropy=0.0))
        1.0
    """

    def __init__(
        self,
        num_actions: int,
        *,
        open_at: float = 0.3,
        closed_at: float = 0.0,
        floor: float = 0.0,
        scale: float = 1.0,
        decay: float = 0.99,
    ) -> None:
        check_within("[2, inf)", "one action leaves nothing to tell", num_actions=num_actions)
        check_within("[0, 1]", closed_at=closed_at, floor=floor)
        check_within(f"({closed_at}, 1]", "a gate is closed before it is open", open_at=open_at)
        check_within("(0, inf)", scale=scale)
        check_within("[0, 1)", "0 follows each batch", decay=decay)
        self.num_actions = real_number(num_actions)
        self.open_at = float(open_at)
        self.closed_at = float(closed_at)
        self.floor = float(floor)
        self.scale = float(scale)
        self.decay = float(decay)
        self._entropy: float | None = None  # not known yet

    def __call__(self, state: RunState) -> float:
        """The value after a batch with ``state.teacher_entropy``; the closed one before the first."""
        entropy = state.teacher_entropy
        if entropy is not None and math.isfinite(entropy):
            known = entropy if self._entropy is None else self._entropy
            self._entropy = self.decay * known + (1 - self.decay) * entropy
        if self._entropy is None:
            return self.scale * self.floor
        sharpness = math.sqrt(min(1.0, max(0.0, 1 - self._entropy / math.log(self.num_actions))))
        opened = min(1.0, max(0.0, (sharpness - self.closed_at) / (self.open_at - self.closed_at)))
        return self.scale * (self.floor + (1 - self.floor) * opened**2 * (3 - 2 * opened))

    def state_dict(self) -> dict[str, Any]:
        """The averaged entropy, nats."""
        return {"entropy": self._entropy}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        _check_saved(self, state_dict)
        self._entropy = state_dict["entropy"]


def check_schedules(loss: LossModule, schedules: Mapping[str, Schedule]) -> None:
    """Refuse schedules that a loss has no buffer for; hooks call this at construction.

    Args:
        loss: a loss with schedulable buffers, ours or TorchRL's.
        schedules: schedules by name of the buffer.

    Raises:
        ValueError: a name that is no schedulable buffer of this loss, or the temperature of a mixture of teachers.
        TypeError: something that is no :class:`Schedule`.
    """
    schedulable = _schedulable(loss)
    for name, schedule in schedules.items():
        if name == "teacher_temperature" and getattr(loss, "fixed_temperature", False):
            raise ValueError(
                "teacher_temperature must stay that of the TeacherMixture: got a schedule of it; leave it out, or "
                "schedule student_temperature."
            )
        if name not in schedulable:
            raise ValueError(
                f"{type(loss).__name__} cannot schedule {name!r}: it can schedule {', '.join(sorted(schedulable))}; "
                "td_coeff and distill_coeff need a loss that has them, such as StudentDQNLoss, and a temperature needs "
                "a number at construction, not 'auto' or None."
            )
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"the schedule of {name!r} must be a Schedule: got {type(schedule).__name__}; "
                "wrap a constant as PiecewiseSchedule({0: value})."
            )


def apply_schedules(loss: LossModule, schedules: Mapping[str, Schedule], state: RunState) -> dict[str, float]:
    """Set the buffers of a loss, in place, to the values of the schedules.

    Args:
        loss: a loss with schedulable buffers, ours or TorchRL's. Changed.
        schedules: schedules by name of the buffer.
        state: the run now.

    Returns:
        The values by name, for a log.

    Raises:
        ValueError: as :func:`check_schedules`; a value that is not finite, or a temperature that is not positive.
        TypeError: as :func:`check_schedules`.

    Examples:
        >>> from torch import nn
        >>> from torchrl_rtpd import StudentDQNLoss
        >>> loss = StudentDQNLoss(nn.Linear(4, 3))
        >>> apply_schedules(loss, {"td_coeff": LinearSchedule(1.0, 0.0, end_updates=100)}, RunState(25))
        {'td_coeff': 0.75}
        >>> loss.td_coeff
        tensor(0.7500)
    """
    check_schedules(loss, schedules)
    values = {name: float(schedule(state)) for name, schedule in schedules.items()}
    for name, value in values.items():
        if not math.isfinite(value) or (name.endswith("temperature") and value <= 0):
            raise ValueError(
                f"the schedule of {name!r} gave {value} after {state.updates} updates; coefficients must be finite and "
                "temperatures positive: raise its floor or its final value."
            )
        setattr(loss, name, value)  # a copy into the buffer, TorchRL's way
    return values


def _schedulable(loss: LossModule) -> set[str]:
    names: frozenset[str] = getattr(type(loss), "_all_schedulable_buffers", frozenset())
    buffers = {name for name, buffer in loss.named_buffers(recurse=False) if name in names}
    # "auto" moves this buffer itself.
    return buffers - ({"teacher_temperature"} if getattr(loss, "auto_temperature", False) else set())


def _fraction(updates: int, begin_updates: int, end_updates: int) -> float:
    return min(1.0, max(0.0, (updates - begin_updates) / (end_updates - begin_updates)))


def _check_saved(schedule: Schedule, state_dict: Mapping[str, Any]) -> None:
    expected = schedule.state_dict().keys()
    if state_dict.keys() != expected:
        raise ValueError(
            f"{type(schedule).__name__} saves {sorted(expected)}: got {sorted(state_dict)}; "
            "build the run with the schedules it was saved with."
        )
