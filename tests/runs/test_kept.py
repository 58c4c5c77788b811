"""Which networks a run keeps: the best evaluation that counts, and the last weights where none does."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_rtpd.evaluation.scores import Scores
from torchrl_rtpd.runs.kept import KeptNetworks


def network(weight: float) -> TensorDictModule:
    """A network that its only weight tells."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return TensorDictModule(layer, ["observation"], ["action_value"])


def weight(kept: KeptNetworks) -> float:
    return kept.networks["net"].module.weight.item()


def offered(kept: KeptNetworks, *evaluations: tuple[int, float], last: int) -> list[bool]:
    """Offer a network at each step, whose weight is the step, with a score."""
    return [kept.offer("net", network(steps), Scores((score,), 0, 1), steps, last) for steps, score in evaluations]


def test_the_best_evaluation_from_a_step_on_is_kept() -> None:
    kept = KeptNetworks({"net": network(0)}, 30)
    assert offered(kept, (10, 9.0), (30, 1.0), (40, 3.0), (50, 3.0), last=50) == [False, True, True, False]
    assert (weight(kept), kept.scores["net"].mean, kept.steps["net"]) == (40, 3.0, 40)


def test_the_last_evaluation_of_a_run_counts_whatever_its_step() -> None:
    kept = KeptNetworks({"net": network(0)}, 1_000)
    assert offered(kept, (10, 9.0), (20, 1.0), last=20) == [False, True]


def test_what_a_shorter_run_ended_with_gives_way_in_the_longer_one() -> None:
    """Also where the step from which evaluations count is moved on behind what was kept."""
    shorter = KeptNetworks({"net": network(0)}, 40)
    offered(shorter, (20, 9.0), last=20)
    for first in (40, 30):
        longer = KeptNetworks({"net": network(0)}, first)
        longer.load_state_dict(shorter.state_dict())
        assert (weight(longer), longer.scores["net"].mean) == (20, 9.0)
        assert offered(longer, (25, 8.0), (40, 1.0), last=60) == [False, True] and weight(longer) == 40


def test_kept_networks_of_earlier_versions_count() -> None:
    """They do not say at which step they were kept."""
    earlier = KeptNetworks({"net": network(0)}, 0)
    offered(earlier, (20, 9.0), last=20)
    state = earlier.state_dict()
    del state["best_steps"]
    kept = KeptNetworks({"net": network(0)}, 40)
    kept.load_state_dict(state)
    assert kept.steps == {"net": math.inf} and offered(kept, (50, 1.0), last=60) == [False]


@pytest.mark.parametrize("scores", [{}, {"net": Scores((5.0,), 0, 1)}])
def test_last_weights_are_kept_where_no_evaluation_counted(scores: dict[str, Scores]) -> None:
    """With the scores of an evaluation of these very weights, if there was one."""
    kept = KeptNetworks({"net": network(0)}, 1_000)
    offered(kept, (10, 9.0), last=2_000)
    assert kept.fill({"net": network(15)}, scores, 15) == ["net"] and weight(kept) == 15
    assert kept.scores == scores and kept.steps == dict.fromkeys(scores, 15)
    assert kept.fill({"net": network(16)}, {}, 16) == ([] if scores else ["net"])
    kept.drop("net")
    assert not (kept.networks or kept.scores or kept.steps)


def test_copies_do_not_follow_the_networks() -> None:
    trained = network(1)
    kept = KeptNetworks({"net": trained}, 0)
    kept.offer("net", trained, Scores((1.0,), 0, 1), 5, 10)
    with torch.no_grad():
        trained.module.weight.fill_(2.0)
    assert weight(kept) == 1
