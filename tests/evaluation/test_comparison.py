"""Comparison of methods: claims with numbers a reader can redo, and a loop in plain Python as an oracle."""

import math
import statistics

import numpy as np
import pytest

from torchrl_rtpd.evaluation.comparison import (
    bootstrap_interval,
    first_held,
    interquartile_mean,
    paper_percentages,
    probability_of_improvement,
    time_to_teacher,
)

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "consecutive", "expected"),
    [
        ([0.2, 0.97, 0.4, 0.95, 0.96], 2, 3),
        ([0.97, 0.4, 0.95], 1, 0),
        ([0.95, 0.95], 2, 0),
        ([0.4, 0.99], 2, None),
        ([], 1, None),
        ([0.96, 0.96, 0.1, 0.96, 0.96, 0.96], 3, 3),
    ],
)
def test_a_level_is_held_from_the_first_of_enough_evaluations(scores, consecutive, expected):
    """A single lucky evaluation does not count where two in a row are asked for."""
    assert first_held(scores, 0.95, consecutive=consecutive) == expected


def test_nothing_is_held_for_zero_evaluations():
    with pytest.raises(ValueError, match="consecutive must be an integer of at least 1: got 0"):
        first_held([1.0], 0.5, consecutive=0)


def test_time_to_the_teacher_skips_rows_without_an_evaluation():
    """Level: -20 + 0.95 * 30 = 8.5, first reached at 200, held from 400 on; rows in between are log points."""
    metrics = {
        "steps": [100.0, 200.0, 250.0, 300.0, 400.0, 450.0, 500.0],
        "updates": [0.0, 10.0, 15.0, 20.0, 30.0, 35.0, 40.0],
        "training_seconds": [1.0, 2.0, 2.5, 3.0, 4.0, 4.5, 5.0],
        "seconds": [9.0] * 7,
        "net/score": [-20.0, 9.0, NAN, 8.4, 8.5, NAN, 10.0],
    }
    spent = time_to_teacher(metrics, "net", teacher_score=10.0, random_score=-20.0)
    assert spent == {"steps": 400.0, "updates": 30.0, "training_seconds": 4.0}
    once = time_to_teacher(metrics, "net", teacher_score=10.0, random_score=-20.0, consecutive=1)
    assert once["steps"] == 200.0
    assert time_to_teacher(metrics, "net", teacher_score=30.0, random_score=-20.0) is None


def test_a_lower_share_is_never_held_later():
    """Over random curves, the time falls as the share does."""
    generator = np.random.default_rng(0)
    metrics = {"steps": list(range(50)), "net/score": list(np.linspace(0, 1, 50) + generator.normal(0, 0.1, 50))}
    times = [
        (time_to_teacher(metrics, "net", teacher_score=1.0, random_score=0.0, share=share) or {"steps": math.inf})[
            "steps"
        ]
        for share in (0.5, 0.7, 0.9)
    ]
    assert times == sorted(times)


def test_a_teacher_no_better_than_random_has_no_level_to_reach():
    with pytest.raises(ValueError, match=r"better than a random player: got -20.0 and -20.0; train it longer"):
        time_to_teacher({"steps": [1], "net/score": [1.0]}, "net", teacher_score=-20.0, random_score=-20.0)


def test_max_and_mean_are_the_papers():
    """Best over best: 9 / 12. Mean of the last two ratios: (6 / 12 + 9 / 10) / 2."""
    found = paper_percentages([0.0, 6.0, 9.0], [4.0, 12.0, 10.0], random_score=2.0, last=2)
    assert found["max_percent"] == pytest.approx(75.0) and found["mean_percent"] == pytest.approx(70.0)
    assert found["max_normalised"] == pytest.approx((9 - 2) / (12 - 2))
    assert found["mean_normalised"] == pytest.approx((7.5 - 2) / (11 - 2))


def test_a_teacher_of_no_positive_score_has_no_percentage_and_normalised_ratios_stay():
    """Twice a negative score is worse, and no 200 %; likewise a teacher at 0. Below random there is no ratio."""
    worse = paper_percentages([-21.0], [-10.5], random_score=-21.0)
    assert worse["mean_percent"] is None and worse["max_percent"] is None and worse["mean_normalised"] == 0.0
    assert paper_percentages([1.0, 1.0], [1.0, 0.0], random_score=-21.0)["mean_percent"] is None
    assert paper_percentages([1.0], [0.0], random_score=-21.0)["max_percent"] is None
    assert paper_percentages([1.0], [-21.0], random_score=-20.0)["mean_normalised"] is None


def test_percentages_need_the_same_evaluations():
    with pytest.raises(ValueError, match="same evaluations: got 1 and 2"):
        paper_percentages([1.0], [1.0, 2.0], 0.0)


def test_the_interquartile_mean_leaves_a_quarter_out_on_either_side():
    """Of eight scores in two games the lowest and the highest two go: (3 + 4 + 5 + 6) / 4."""
    assert interquartile_mean([[8.0, 1.0, 3.0, 100.0], [5.0, 6.0, -7.0, 4.0]]) == pytest.approx(4.5)
    assert interquartile_mean([[1.0, 2.0, 9.0]]) == pytest.approx(4.0)  # a quarter of three is none
    with pytest.raises(ValueError, match="needs scores: got none"):
        interquartile_mean([])


def test_the_probability_of_improvement_counts_pairs():
    """Every pair of a game, ties half; games weigh alike."""
    scores, others = [[1.0, 3.0], [5.0]], [[2.0, 3.0], [4.0, 5.0, 6.0]]
    by_game = [
        statistics.fmean(1.0 if x > y else 0.5 if x == y else 0.0 for x in mine for y in theirs)
        for mine, theirs in zip(scores, others, strict=True)
    ]
    assert probability_of_improvement(scores, others) == pytest.approx(statistics.fmean(by_game))
    assert probability_of_improvement(others, scores) == pytest.approx(1 - statistics.fmean(by_game))
    assert probability_of_improvement(scores, scores) == 0.5
    with pytest.raises(ValueError, match="same games: got 1 and 2"):
        probability_of_improvement([[1.0]], others)


def test_seeds_are_drawn_within_their_game():
    """Games of one seed each have no spread, however far apart they are; pooled draws would have one."""
    assert bootstrap_interval(interquartile_mean, [[1.0], [9.0]]) == (5.0, 5.0)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    """A thousand normal numbers: mean +- 1.96 standard errors."""
    scores = np.random.default_rng(1).normal(3.0, 2.0, 1_000)
    low, high = bootstrap_interval(lambda games: float(np.mean(games[0])), [scores])
    error = 1.96 * scores.std() / 1_000**0.5
    assert low == pytest.approx(scores.mean() - error, abs=0.02)
    assert high == pytest.approx(scores.mean() + error, abs=0.02)


def test_an_interval_is_the_same_for_one_seed_and_wider_for_more_confidence():
    scores = [[0.8, 0.9, 1.0, 1.1, 1.2], [0.1, 0.5, 0.9, 0.2, 0.3]]
    low, high = bootstrap_interval(interquartile_mean, scores)
    assert (low, high) == bootstrap_interval(interquartile_mean, scores)
    narrow = bootstrap_interval(interquartile_mean, scores, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_methods_are_drawn_independently():
    """Against itself a method may win or lose by the draw, so the interval surrounds one half."""
    scores = [[1.0, 2.0, 3.0, 4.0, 5.0]]
    low, high = bootstrap_interval(probability_of_improvement, scores, scores)
    assert low < 0.5 < high
