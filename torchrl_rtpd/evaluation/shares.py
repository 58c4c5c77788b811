"""Share of a teacher's level that a student holds, with its error; and which of many students may be the smallest.

A share is normalised: 0 for a random player, 1 for the teacher. Errors are standard errors of means over games.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple, Protocol

__all__ = ["Candidate", "Share", "may_be_smallest", "share_of_teacher"]


class Measured(Protocol):
    """Mean of some games with its error, such as :class:`~torchrl_rtpd.evaluation.Scores`."""

    @property
    def mean(self) -> float:
        """Mean score."""

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""


class Share(NamedTuple):
    """Share of the teacher's level.

    Attributes:
        value: estimate.
        standard_error: of the estimate, to first order.
    """

    value: float
    standard_error: float

    def bound(self, confidence: float) -> float:
        """Return the value that the share exceeds with so much confidence; below one half, an upper bound.

        Examples:
            >>> share = Share(0.97, 0.01)
            >>> round(share.bound(0.95), 3), round(share.bound(0.05), 3)
            (0.954, 0.986)
        """
        return self.value - NormalDist().inv_cdf(confidence) * self.standard_error


def share_of_teacher(student: Measured, teacher: Measured, random: Measured | float) -> Share | None:
    """Return ``(student - random) / (teacher - random)`` with its error by the delta method.

    Args:
        student: scores of the student.
        teacher: scores of the teacher.
        random: scores of a random player, or their mean if its error is not to count.

    Returns:
        The share; None where the teacher is no better than a random player.

    Examples:
        >>> from torchrl_rtpd.evaluation import Scores
        >>> share = share_of_teacher(Scores((8.0, 10.0), 0, 0), Scores((10.0, 12.0), 0, 0), 1.0)
        >>> share.value, round(share.standard_error, 3)
        (0.8, 0.128)
    """
    chance, chance_error = (random, 0.0) if isinstance(random, (int, float)) else (random.mean, random.standard_error)
    whole = teacher.mean - chance
    if whole <= 0:
        return None
    value = (student.mean - chance) / whole
    errors = (student.standard_error, value * teacher.standard_error, (value - 1) * chance_error)
    return Share(value, sum(error**2 for error in errors) ** 0.5 / whole)


class Candidate(NamedTuple):
    """A student that may be the smallest that will do.

    Attributes:
        size: what is to be small, such as its number of parameters.
        share: of the teacher's level, so far; None where the teacher has none.
        regret: mean price of its actions in the teacher's values; None where it is not measured.
    """

    size: float
    share: Share | None
    regret: float | None


def may_be_smallest(
    candidates: Mapping[str, Candidate], keep: int, *, min_share: float = 0.95, confidence: float = 0.95
) -> list[str]:
    """Choose which candidates go on to the next rung of a search for the smallest that holds a share.

    Left out are those that

    - are refuted: their share is below ``min_share`` of the best one's, with confidence, or their regret is more than
      twice the least and a tenth of a standard deviation;
    - are not needed: a smaller one holds the share already, with confidence;
    - are the largest of what remains, if that is more than ``keep``.

    The one with the highest lower bound of its share stays in any case, as an answer if no smaller one will do.

    Args:
        candidates: by name.
        keep: how many may go on, at least 1.
        min_share: of the teacher's level, to be held.
        confidence: of each bound, one-sided.

    Returns:
        Names, the smallest candidate first.

    Raises:
        ValueError: ``keep`` less than one, or no candidates.

    Examples:
        >>> candidates = {
        ...     "tiny": Candidate(10, Share(0.2, 0.1), 0.9),
        ...     "small": Candidate(20, Share(0.9, 0.1), 0.2),
        ...     "middle": Candidate(40, Share(1.0, 0.02), 0.15),
        ...     "large": Candidate(80, Share(1.0, 0.1), 0.15),
        ... }
        >>> may_be_smallest(candidates, 2)
        ['small', 'middle']
    """
    if keep < 1 or not candidates:
        raise ValueError(f"some of at least one candidate go on: got keep={keep} of {len(candidates)} candidates.")
    order = sorted(candidates, key=lambda name: candidates[name].size)
    lower = {name: _bound(candidates[name], confidence) for name in order}
    safest = max(order, key=lambda name: (lower[name], -(candidates[name].regret or 0.0)))
    enough = min_share * min(1.0, max(lower.values()))
    regrets = [candidate.regret for candidate in candidates.values() if candidate.regret is not None]
    most = max(2 * min(regrets), min(regrets) + 0.1) if regrets else 0.0
    possible = [
        name
        for name in order
        if _bound(candidates[name], 1 - confidence) >= enough and (candidates[name].regret or 0.0) <= most
    ]
    sure = next((place for place, name in enumerate(possible) if lower[name] >= min_share), len(possible))
    chosen = [name for name in possible[: sure + 1] if name != safest][: keep - 1]
    return [name for name in order if name == safest or name in chosen]


def _bound(candidate: Candidate, confidence: float) -> float:
    return 0.0 if candidate.share is None else candidate.share.bound(confidence)
