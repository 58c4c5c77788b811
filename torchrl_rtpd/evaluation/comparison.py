"""Comparison of methods over seeds and games: time to the teacher's level, the paper's percentages, robust statistics.

Scores are raw unless they are called normalised: 0 for a random player, 1 for the final teacher. ``K`` evaluations of a
run come in the order of training. Many scores are one sequence a game, of one number a seed each.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(https://arxiv.org/abs/2108.13264), is where interquartile mean, stratified bootstrap and probability of improvement
come from. Their library would bring a dozen packages for what is a few lines of NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.functional.scores import normalised_score

__all__ = [
    "bootstrap_interval",
    "first_held",
    "interquartile_mean",
    "paper_percentages",
    "probability_of_improvement",
    "time_to_teacher",
]

ScoresByGame = Sequence[Sequence[float]]
COSTS = ("steps", "updates", "training_seconds", "cpu_seconds")
"""Columns of ``metrics.csv`` in which time is counted."""


def first_held(scores: Sequence[float], threshold: float, *, consecutive: int = 2) -> int | None:
    """Return the first evaluation at which a score is reached and held.

    Args:
        scores: of the ``K`` evaluations.
        threshold: to be reached; equal is enough.
        consecutive: evaluations in a row that must reach it, so that a lucky one does not count.

    Returns:
        Index of the first of the evaluations in a row; None where no run of them is that long.

    Raises:
        ValueError: ``consecutive`` less than one.

    Examples:
        >>> first_held([0.2, 0.97, 0.4, 0.95, 0.96], 0.95)
        3
    """
    check_integers(1, consecutive=consecutive)
    held = 0
    for index, score in enumerate(scores):
        held = held + 1 if score >= threshold else 0
        if held == consecutive:
            return index - consecutive + 1
    return None


def time_to_teacher(
    metrics: Mapping[str, Sequence[float]],
    network: str,
    *,
    teacher_score: float,
    random_score: float,
    share: float = 0.95,
    consecutive: int = 2,
) -> dict[str, float] | None:
    """Return what a run had spent when a network first held a share of the final teacher's level.

    The level is random-normalised, ``random + share * (teacher - random)``, so it means the same for negative scores.

    Args:
        metrics: columns of ``metrics.csv``, as :func:`~torchrl_rtpd.runs.read_metrics` gives them. What an earlier
            phase spent is in them already.
        network: whose ``<network>/score`` is looked at.
        teacher_score: raw score of the final teacher.
        random_score: raw score of a random player.
        share: of the way from random to teacher. Default: 0.95.
        consecutive: evaluations in a row; the time is that of the first.

    Returns:
        ``steps``, ``updates`` and seconds (:data:`COSTS`, as far as there are such columns); None if it never held it.

    Raises:
        ValueError: a teacher that is no better than random: every network would hold its level at once.

    Examples:
        >>> metrics = {"steps": [100, 200, 300, 400], "student/score": [-18.0, 9.0, float("nan"), 9.5]}
        >>> time_to_teacher(metrics, "student", teacher_score=10.0, random_score=-20.0)
        {'steps': 200}
    """
    if not teacher_score > random_score:
        raise ValueError(
            f"the teacher must be better than a random player: got {teacher_score} and {random_score}; train it longer."
        )
    rows = [row for row, score in enumerate(metrics[f"{network}/score"]) if not math.isnan(score)]
    threshold = random_score + share * (teacher_score - random_score)
    index = first_held([metrics[f"{network}/score"][row] for row in rows], threshold, consecutive=consecutive)
    return None if index is None else {cost: metrics[cost][rows[index]] for cost in COSTS if cost in metrics}


def paper_percentages(
    student_scores: Sequence[float], teacher_scores: Sequence[float], random_score: float, *, last: int = 10
) -> dict[str, float | None]:
    """Return Max and Mean of Sun & Fazli 2019, Section 4, and random-normalised ratios beside them.

    Args:
        student_scores: raw scores of the ``K`` evaluations.
        teacher_scores: the teacher's, of the same evaluations.
        random_score: raw score of a random player.
        last: evaluations that Mean looks at.

    Returns:
        ``max_percent``, the best student score over the best teacher score, and ``mean_percent``, the mean of the last
        ratios. Both blow up where the teacher's scores are near zero; None where one of them is not positive.
        ``max_normalised`` and ``mean_normalised`` are ratios of what student and teacher have above a random player,
        the latter of means over the last evaluations, not a mean of ratios; None for a teacher no better than random.

    Raises:
        ValueError: not as many scores of one as of the other, or none.

    Examples:
        >>> paper_percentages([0.0, 6.0, 9.0], [4.0, 12.0, 10.0], 2.0, last=2)
        {'max_percent': 75.0, 'mean_percent': 70.0, 'max_normalised': 0.7, 'mean_normalised': 0.6111111111111112}
    """
    if len(student_scores) != len(teacher_scores) or not len(student_scores):
        raise ValueError(
            "student and teacher need scores of the same evaluations: got "
            f"{len(student_scores)} and {len(teacher_scores)}."
        )
    best_student, best_teacher = max(student_scores), max(teacher_scores)
    student, teacher = list(student_scores[-last:]), list(teacher_scores[-last:])
    ratios = [mine / theirs for mine, theirs in zip(student, teacher, strict=True) if theirs > 0]
    return {
        "max_percent": 100 * best_student / best_teacher if best_teacher > 0 else None,
        "mean_percent": 100 * sum(ratios) / len(ratios) if len(ratios) == len(teacher) else None,
        "max_normalised": normalised_score(best_student, random_score, best_teacher),
        "mean_normalised": normalised_score(sum(student) / len(student), random_score, sum(teacher) / len(teacher)),
    }


def interquartile_mean(scores: ScoresByGame) -> float:
    """Mean of the middle half of all scores: the lowest and highest quarter, rounded down, are left out.

    Args:
        scores: one sequence a game, one number a seed.

    Raises:
        ValueError: no scores.

    Examples:
        >>> interquartile_mean([[0.0, 0.8, 0.9, 1.0, 50.0]])
        0.9
    """
    together = np.sort(np.concatenate([np.asarray(game, float) for game in scores])) if len(scores) else np.array([])
    if not together.size:
        raise ValueError("an interquartile mean needs scores: got none.")
    cut = together.size // 4
    return float(together[cut : together.size - cut].mean())


def probability_of_improvement(scores: ScoresByGame, others: ScoresByGame) -> float:
    """Probability that a run of one method scores higher than one of another in the same game; equal scores count half.

    Args:
        scores: of one method, one sequence a game.
        others: of the other, of the same games in the same order.

    Returns:
        Mean over games; 0.5 says that there is no difference.

    Raises:
        ValueError: not as many games of one as of the other, or none.

    Examples:
        >>> probability_of_improvement([[1.0, 3.0]], [[2.0, 3.0]])
        0.375
    """
    if len(scores) != len(others) or not len(scores):
        raise ValueError(f"both methods need the same games: got {len(scores)} and {len(others)}.")
    wins = [np.sign(np.subtract.outer(game, other)).mean() for game, other in zip(scores, others, strict=True)]
    return float((1 + np.mean(wins)) / 2)


def bootstrap_interval(
    statistic: Callable[..., float],
    *methods: ScoresByGame,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic by stratified bootstrap: seeds are drawn again within each game.

    Args:
        statistic: called with scores like each of ``methods``, such as :func:`interquartile_mean` with one of them or
            :func:`probability_of_improvement` with two, whose seeds are drawn independently.
        methods: scores, one sequence a game each.
        confidence: of the interval.
        resamples: how often seeds are drawn.
        seed: of the drawing.

    Returns:
        Lower and upper end.

    Examples:
        >>> low, high = bootstrap_interval(interquartile_mean, [[0.8, 0.9, 1.0, 1.1, 1.2]])
        >>> 0.8 <= low < 1.0 < high <= 1.2
        True
    """
    generator = np.random.default_rng(seed)
    arrays = [[np.asarray(game, float) for game in method] for method in methods]
    values = [
        statistic(*([game[generator.integers(game.size, size=game.size)] for game in method] for method in arrays))
        for _ in range(resamples)
    ]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
