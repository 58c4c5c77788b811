"""Share of the teacher's level with its error, and which students may be the smallest that holds one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from torchrl_rtpd.evaluation.scores import Scores
from torchrl_rtpd.evaluation.shares import Candidate, Share, may_be_smallest, share_of_teacher, student_quantile


def test_a_share_and_its_error_by_hand() -> None:
    """Student 30 +- 2, teacher 50 +- 1, random 10 +- 3: 20 / 40, and the root of 2^2 + 0.5^2 + (0.5 * 3)^2 over 40."""
    student, teacher, chance = (
        Scores((mean - error, mean + error), 0, 0) for mean, error in ((30.0, 2.0), (50.0, 1.0), (10.0, 3.0))
    )
    share = share_of_teacher(student, teacher, chance)
    assert share == (0.5, pytest.approx(math.sqrt(4 + 0.25 + 2.25) / 40), 2)
    assert share_of_teacher(student, teacher, np.float32(10.0)) == (0.5, pytest.approx(math.sqrt(4.25) / 40), 2)
    assert share_of_teacher(student, chance, 10.0) is None


@pytest.mark.parametrize("chance", [1, 1.0, np.float32(1), np.int64(1), np.array(1.0), torch.tensor(1.0)])
def test_a_random_players_mean_may_be_a_number_of_any_library(chance: Any) -> None:
    """(9 - 1) / (11 - 1), by plain numbers."""
    share = share_of_teacher(Scores((8.0, 10.0), 0, 0), Scores((10.0, 12.0), 0, 0), chance)
    assert share is not None and share.value == 0.8 and type(share.value) is float
    assert type(share.standard_error) is float


def test_a_bound_holds_as_often_as_it_says() -> None:
    """Ten thousand shares drawn with error 0.1: their lower bounds lie below the truth in 95 of 100 cases."""
    drawn = torch.normal(0.9, 0.1, (10_000,), generator=torch.Generator().manual_seed(0)).tolist()
    assert sum(Share(value, 0.1).bound(0.95) <= 0.9 for value in drawn) / 10_000 == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("games", [2, 4, 10, 40])
def test_a_bound_from_few_games_holds_as_often_as_it_says(games: int) -> None:
    """A student of share 0.9 beside a teacher and a random player that are known, both of normal scores.

    Shares of so many games, drawn 20,000 times: in 94 % or more the lower bound of 0.95 lies below the truth.
    """
    generator = torch.Generator().manual_seed(games)
    drawn = torch.normal(0.9, 0.2, (20_000, games), generator=generator, dtype=torch.float64)
    errors = (drawn.std(1) / math.sqrt(games)).tolist()
    shares = [Share(mean, error, games) for mean, error in zip(drawn.mean(1).tolist(), errors, strict=True)]
    assert sum(share.bound(0.95) <= 0.9 for share in shares) / 20_000 >= 0.94


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"), [(0.95, 4, 2.132), (0.95, 39, 1.685), (0.99, 9, 2.821), (0.05, 9, -1.833)]
)
def test_quantiles_of_students_distribution_are_those_of_tables(
    probability: float, degrees: float, quantile: float
) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(quantile, rel=0.01)


@pytest.mark.parametrize("share", [Share(0.99, 0.0, 1), Share(math.nan, 0.0), Share(math.nan, math.nan, 40)])
def test_one_game_or_no_number_bounds_nothing(share: Share) -> None:
    assert (share.bound(0.95), share.bound(0.05)) == (-math.inf, math.inf)


def test_what_is_no_number_is_the_worst() -> None:
    candidates = fleet(a=(math.nan, math.nan, math.nan), b=(0.99, 0.01, 0.1))
    assert may_be_smallest(candidates, 1, least_share=0.5) == ["b"]
    unknown = {"a": Candidate(1, None, None), "b": Candidate(2, None, math.nan), "c": Candidate(3, None, 0.9)}
    assert may_be_smallest(unknown, 1, least_share=0.5) == ["c"]


def fleet(**shares: tuple[float, float, float | None]) -> dict[str, Candidate]:
    """Candidates in the order of their sizes, by share, its error and regret."""
    return {
        name: Candidate(10.0 * 2**place, Share(value, error), regret)
        for place, (name, (value, error, regret)) in enumerate(shares.items())
    }


def test_students_that_are_refuted_go() -> None:
    """The safest is sure of 0.967; a has 0.464 at most, less than half of it, and b may have 0.564."""
    candidates = fleet(a=(0.3, 0.1, 0.2), b=(0.4, 0.1, 0.5), c=(0.9, 0.1, 0.3), d=(1.0, 0.02, 0.2))
    assert may_be_smallest(candidates, 4, least_share=0.5) == ["b", "c", "d"]


def test_early_in_a_run_a_low_share_refutes_nothing() -> None:
    """Minus half of the safest's share is far below a random player's, which is zero."""
    candidates = fleet(a=(0.0, 0.0, 0.2), b=(-0.3, 0.0, 0.5), c=(-0.6, 0.0, 0.3), d=(1.0, 0.0, 0.2))
    assert may_be_smallest(candidates, 4, least_share=-0.5) == ["a", "b", "d"]


def test_the_smallest_go_on_and_the_safest_with_them() -> None:
    candidates = fleet(a=(0.9, 0.1, None), b=(0.9, 0.1, None), c=(1.0, 0.001, None), d=(1.0, 0.1, None))
    assert may_be_smallest(candidates, 2, least_share=0.5) == ["a", "c"]
    assert may_be_smallest(candidates, 3, least_share=0.5) == ["a", "b", "c"]


def test_of_equally_safe_ones_the_least_regret_stays() -> None:
    candidates = fleet(a=(0.9, 0.1, 0.3), b=(1.0, 0.0, 0.2), c=(1.0, 0.0, 0.1))
    assert may_be_smallest(candidates, 1, least_share=0.5) == ["c"]


def test_where_nothing_is_known_the_smallest_go_on() -> None:
    """Without a teacher's level all may be; the smallest have the name of the safest as well."""
    candidates = {name: Candidate(size, None, None) for size, name in enumerate("abcdefgh", 1)}
    assert may_be_smallest(candidates, 4, least_share=0.5) == ["a", "b", "c", "d"]


def test_at_least_one_goes_on() -> None:
    """All are bad, one of them the least."""
    assert may_be_smallest(fleet(a=(-0.2, 0.0, 0.9), b=(-0.1, 0.0, 0.9)), 1, least_share=0.5) == ["b"]


@pytest.mark.parametrize(("keep", "number"), [(0, 1), (1, 0)])
def test_nobody_to_go_on_is_refused(keep: int, number: int) -> None:
    candidates = {str(place): Candidate(1.0, None, None) for place in range(number)}
    with pytest.raises(ValueError, match=f"at least one candidate go on: got keep={keep} of {number} candidates"):
        may_be_smallest(candidates, keep, least_share=0.0)
