"""Share of a teacher's level that a student holds, with its error; and which of many students may be the smallest.

A share is normalised: 0 for a random player, 1 for the teacher. Errors are standard errors of means over games.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple, Protocol

from torchrl_rtpd.functional.checks import real_number

__all__ = ["Candidate", "Share", "may_be_smallest", "share_of_teacher", "student_quantile"]


class Measured(Protocol):
    """Mean of some games with its error, such as :class:`~torchrl_rtpd.evaluation.Scores`."""

    @property
    def mean(self) -> float:
        """Mean score."""

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""

    @property
    def episodes(self) -> int:
        """Number of games."""


class Share(NamedTuple):
    """Share of the teacher's level.

    Attributes:
        value: estimate.
        standard_error: of the estimate, to first order.
        games: of the network that played fewer; infinite where the error is known and not estimated.
    """

    value: float
    standard_error: float
    games: float = math.inf

    def bound(self, confidence: float) -> float:
        """Return the value that the share exceeds with so much confidence; below one half, an upper bound.

        By Student's distribution with a degree of freedom less than games. A single game has no error: it bounds
        nothing, and so does a share that is no number.

        Examples:
            >>> share = Share(0.97, 0.01, 40)
            >>> round(share.bound(0.95), 3), round(share.bound(0.05), 3)
            (0.953, 0.987)
            >>> Share(0.97, 0.0, 1).bound(0.95)
            -inf
        """
        if self.games < 2 or not math.isfinite(self.value):
            return -math.inf if confidence >= 0.5 else math.inf
        return self.value - student_quantile(confidence, self.games - 1) * self.standard_error


def student_quantile(probability: float, degrees: float) -> float:
    """Return a quantile of Student's distribution, by the expansion about the normal one.

    Fisher & Cornish 1960, to the third order: for probabilities up to 0.99 within 1 % from four degrees of freedom on.

    Args:
        probability: within (0, 1).
        degrees: of freedom, at least 1; infinite is the normal distribution.

    Examples:
        >>> round(student_quantile(0.95, 9), 3), round(student_quantile(0.95, math.inf), 3)
        (1.833, 1.645)
    """
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


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
        >>> share.value, round(share.standard_error, 3), share.games
        (0.8, 0.128, 2)
    """
    chance, chance_error = real_number(random), 0.0
    if not isinstance(random, float) and chance is None:
        chance, chance_error = random.mean, random.standard_error
    whole = teacher.mean - chance
    if not whole > 0:
        return None
    value = (student.mean - chance) / whole
    errors = (student.standard_error, value * teacher.standard_error, (value - 1) * chance_error)
    games = min(student.episodes, teacher.episodes)
    return Share(value, sum(error**2 for error in errors) ** 0.5 / whole, games)


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
    candidates: Mapping[str, Candidate], keep: int, *, least_share: float, confidence: float = 0.95
) -> list[str]:
    """Choose which candidates go on to the next rung of a search for the smallest that will do.

    The smallest go on, except those that are refuted: with confidence they have less than a share of what the safest
    has. The safest is the one whose lower bound is the highest, of several the one with the least regret. It stays in
    any case, as an answer if no smaller one will do.

    Args:
        candidates: by name.
        keep: how many may go on, at least 1.
        least_share: of the safest's share, at most 1 of it, that refutes who stays below. Negative early in a run, when
            students lag behind a teacher that still moves and a low share says little.
        confidence: of each bound, one-sided.

    Returns:
        Names, the smallest candidate first.

    Raises:
        ValueError: ``keep`` less than one, or no candidates.

    Examples:
        >>> candidates = {
        ...     "tiny": Candidate(10, Share(0.2, 0.1), 0.9),
        ...     "small": Candidate(20, Share(0.7, 0.1), 0.2),
        ...     "middle": Candidate(40, Share(0.9, 0.1), 0.15),
        ...     "large": Candidate(80, Share(1.0, 0.02), 0.15),
        ... }
        >>> may_be_smallest(candidates, 2, least_share=0.5), may_be_smallest(candidates, 2, least_share=0.0)
        (['small', 'large'], ['tiny', 'large'])
    """
    if keep < 1 or not candidates:
        raise ValueError(f"some of at least one candidate go on: got keep={keep} of {len(candidates)} candidates.")
    order = sorted(candidates, key=lambda name: candidates[name].size)
    lower = {name: _bound(candidates[name], confidence) for name in order}
    safest = max(order, key=lambda name: (lower[name], -_regret(candidates[name])))
    enough = least_share * min(1.0, max(0.0, lower[safest]))
    possible = [name for name in order if _bound(candidates[name], 1 - confidence) >= enough and name != safest]
    return [name for name in order if name == safest or name in possible[: keep - 1]]


def _bound(candidate: Candidate, confidence: float) -> float:
    return 0.0 if candidate.share is None else candidate.share.bound(confidence)


def _regret(candidate: Candidate) -> float:
    """Regret, the worst one where it is not known."""
    return math.inf if candidate.regret is None or math.isnan(candidate.regret) else candidate.regret
