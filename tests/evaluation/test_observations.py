"""Observations that an evaluation keeps."""

from __future__ import annotations

from evaluation_parts import FixedLengths, always, played

from torchrl_rtpd.evaluation.evaluator import Evaluator


def test_kept_observations_are_those_of_counted_games_spread_evenly() -> None:
    """One game each of 4 and 41 steps: nothing of slot 0 after its game, 12 states over the whole of slot 1's."""
    scores = Evaluator(lambda: FixedLengths([4, 41]), episodes=2, epsilon=0.0)(always(0), keep_observations=12)
    assert list(scores.observations.keys()) == ["observation"]
    slots, steps = scores.observations["observation"].unbind(-1)
    assert steps[slots == 0].tolist() == [0]
    assert steps[slots == 1].tolist() == list(range(0, 41, 4))


def test_few_observations_of_a_long_play_cover_all_of_it() -> None:
    """Five of 1000 steps; the states in between are dropped on the way."""
    scores = Evaluator(lambda: FixedLengths([1_000]), episodes=1, epsilon=0.0)(always(0), keep_observations=5)
    steps = scores.observations["observation"][:, 1]
    assert steps[0] == 0
    assert len(steps) == 5
    gaps = steps.diff()
    assert 120 < gaps.min() <= gaps.max() < 300
    assert steps[-1] > 720


def test_observations_are_kept_only_when_asked_for() -> None:
    assert played([3], episodes=1).observations is None
