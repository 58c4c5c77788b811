"""Scores on a common scale: 0 for a random player, 1 for the teacher. Numbers in, number out."""

from __future__ import annotations

import math

__all__ = ["normalised_score"]


def normalised_score(score: float, random_score: float, teacher_score: float) -> float | None:
    """Place of a score between a random player (0) and the teacher (1).

    Sane for negative scores, unlike a percentage; None when the teacher is no better than random, where the ratio means
    nothing.

    Args:
        score: raw score.
        random_score: raw score of the random player.
        teacher_score: raw score of the teacher.

    Examples:
        >>> normalised_score(-5.0, -20.0, 10.0)
        0.5
    """
    gap = teacher_score - random_score
    return (score - random_score) / gap if gap > 0 else None


def normalised_gap(
    teacher_return: float | None, student_return: float | None, random_return: float | None
) -> float | None:
    """Share of the teacher's lead over a random player that the student lacks.

    ``(teacher - student) / (teacher - random)`` clamped to [0, 1]: 1 at or below the random player, 0 at or above the
    teacher. QDagger's ``1 - student / teacher`` (Agarwal et al. 2022, https://arxiv.org/abs/2206.01626) leaves [0, 1]
    for negative returns and has no bound near 0, where a teacher starts.

    Args:
        teacher_return: raw return, any sign.
        student_return: raw return, any sign.
        random_return: raw return of a random player.

    Returns:
        A number in [0, 1]; None where a return is not known or not finite, or where the teacher is no better than the
        random player, so that there is nothing to lack.

    Examples:
        >>> normalised_gap(-5.0, -17.0, -21.0)
        0.75
        >>> normalised_gap(-21.0, -21.0, -21.0) is None
        True
    """
    known = [value for value in (student_return, random_return, teacher_return) if value is not None]
    if len(known) < 3 or not all(map(math.isfinite, known)):
        return None
    score = normalised_score(*known)
    if score is None or math.isnan(score):  # NaN: a difference beyond the largest float
        return None
    return min(1.0, max(0.0, 1.0 - score))
