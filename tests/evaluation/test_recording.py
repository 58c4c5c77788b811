"""Recorded games are those of the evaluator, step for step."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from evaluation_parts import FixedLengths, always
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.evaluation import Evaluator, record_games
from torchrl_rtpd.networks import make_actor


class Shown(FixedLengths):
    """One game, of which each picture has the number of steps so far in all pixels."""

    def __init__(self, length: int, steps_per_second: float | None = None) -> None:
        super().__init__([length])
        self.metadata = {"render_fps": steps_per_second}

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), int(self.count), np.uint8)


def shown(length: int, steps_per_second: float | None = None, **options: float) -> Evaluator:
    return Evaluator(lambda: Shown(length, steps_per_second), episodes=1, **{"epsilon": 0.0, **options})


def until(step: float) -> QValueActor:
    """A policy that takes action 1 before this step of a game and action 0 from then on."""
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        network.bias.copy_(torch.tensor([0.0, step]))
    return QValueActor(network, in_keys=["observation"], spec=Categorical(2))


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_drawn_games_are_those_that_the_evaluator_plays(epsilon: float) -> None:
    """Raw scores of whole games on one seed, cut at the same step, and the pictures tell them apart."""
    evaluator = Evaluator(partial(AtariVecEnv, "ms_pacman", 1, max_frames=480), episodes=1, epsilon=epsilon)
    networks = {
        name: make_actor("net17", evaluator.env.action_spec, seed=i) for i, name in enumerate(["teacher", "net"])
    }
    games = record_games(networks, evaluator, seed=7)
    for game in games:
        alone = evaluator(networks[game.name], seed=7)
        assert game.score == alone.mean and alone.mean > 0
        assert len(game.pictures) == alone.steps and game.over
        assert game.scores[-1] == game.score and list(game.scores) == sorted(game.scores)
    assert (games[0].pictures[0] == games[1].pictures[0]).mean() > 0.9  # both begin alike
    assert any((one != other).any() for one, other in zip(games[0].pictures, games[1].pictures, strict=True))
    evaluator.close()


def test_agreement_is_the_share_of_the_students_states_so_far() -> None:
    """The teacher takes 0 at steps 0 to 3, the student 1 at the first two: 0/1, 0/2, 1/3, 2/4."""
    _, game = record_games({"teacher": always(0), "net": until(1.5)}, shown(4), seed=0)
    assert game.agreements == (0.0, 0.0, 1 / 3, 0.5) and game.agreement == 0.5


def test_random_actions_are_no_choices() -> None:
    """A student that is the teacher agrees in all states, whatever is played."""
    teacher, game = record_games({"teacher": always(1), "net": always(1)}, shown(40, epsilon=0.9), seed=0)
    assert game.agreement == 1.0 and teacher.agreement is None


def test_networks_without_values_have_no_agreement() -> None:
    silent = TensorDictModule(lambda seen: torch.zeros(len(seen), dtype=torch.int64), ["observation"], ["action"])
    _, game = record_games({"teacher": always(0), "net": silent}, shown(3), seed=0)
    assert game.agreements is None and game.agreement is None and len(game.pictures) == 3


def test_a_recording_ends_with_its_seconds_or_with_the_game() -> None:
    """Ten steps a second: 0.5 s are 5 steps of 8, and 2 s are all 8, whose last one is shown as the one before."""
    (short,) = record_games({"net": always(0)}, shown(8, 10), seed=0, seconds=0.5)
    (long,) = record_games({"net": always(0)}, shown(8, 10), seed=0, seconds=2.0)
    assert [int(picture[0, 0, 0]) for picture in short.pictures] == [1, 2, 3, 4, 5]
    assert [int(picture[0, 0, 0]) for picture in long.pictures] == [1, 2, 3, 4, 5, 6, 7, 7]
    assert (short.over, short.score, long.over, long.score) == (False, 5.0, True, 8.0)
    assert short.pictures_per_second == 10


def test_fast_games_have_a_picture_every_other_step_and_one_at_the_end() -> None:
    """90 steps a second are 30 pictures: of steps 1, 4 and 7, and of the last, 8."""
    (game,) = record_games({"net": always(0)}, shown(9, 90), seed=0, seconds=8 / 90)
    assert game.pictures_per_second == 30
    assert [int(picture[0, 0, 0]) for picture in game.pictures] == [1, 4, 7, 8]
    assert game.scores == (1.0, 4.0, 7.0, 8.0)


def test_recording_leaves_generators_and_networks_as_they_were() -> None:
    evaluator = Evaluator(partial(AtariVecEnv, "pong", 1), episodes=1)
    teacher, student = (make_actor("net17", evaluator.env.action_spec, seed=seed) for seed in (0, 1))
    before = [torch.get_rng_state(), *(value.clone() for value in [*teacher.parameters(), *student.parameters()])]
    modes = teacher.training, student.training
    record_games({"teacher": teacher, "net": student}, evaluator, seed=0, seconds=0.4)
    after = [torch.get_rng_state(), *teacher.parameters(), *student.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert modes == (teacher.training, student.training)
    evaluator.close()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"a recording takes some time: got seconds={seconds}"):
        record_games({"net": always(0)}, shown(3), seed=0, seconds=seconds)


def test_several_games_are_refused() -> None:
    with pytest.raises(ValueError, match="a recording is of one game: got an evaluator of 2; use episodes=1"):
        record_games({"net": always(0)}, Evaluator(lambda: Shown(3), episodes=2), seed=0)
