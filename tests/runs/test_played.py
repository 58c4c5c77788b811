"""Scores of the games that end while training, against games that are followed one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parts import small_run
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.data.postprocs import MultiStep
from torchrl.envs import GymEnv, RewardSum, TransformedEnv

from torchrl_rtpd.runs.metrics import read_metrics
from torchrl_rtpd.runs.played import PlayedGames


def batches(**options: object) -> Iterator[TensorDictBase]:
    """Three hundred steps of CartPole by a random player, fifty at a time."""
    env = TransformedEnv(GymEnv("CartPole-v1"), RewardSum())
    env.set_seed(0)
    torch.manual_seed(0)
    collector = Collector(env, frames_per_batch=50, total_frames=300, **options)
    yield from collector
    collector.shutdown()


def followed(found: list[TensorDictBase]) -> list[float]:
    """Rewards summed up step by step, a number a game that ended."""
    scores, running = [], 0.0
    for batch in found:
        for reward, done in zip(batch["next", "reward"].flatten(), batch["next", "done"].flatten(), strict=True):
            running += reward.item()
            if done:
                scores.append(running)
                running = 0.0
    return scores


def test_games_that_end_are_counted_over_batches() -> None:
    """A game counts with its whole score in the batch that it ends in."""
    games, found = PlayedGames("episode_reward"), list(batches())
    for batch in found:
        games.add(batch)
    scores = followed(found)
    taken = games.take()
    assert len(scores) > 8
    assert taken == {"training_score": pytest.approx(sum(scores) / len(scores)), "training_games": len(scores)}
    assert games.take() == {} and games.last == taken["training_score"]


def test_a_game_counts_once_where_returns_go_over_several_steps() -> None:
    """TorchRL's MultiStep moves scores ahead and leaves ends where they are."""
    one, several = PlayedGames("episode_reward"), PlayedGames("episode_reward")
    for games, options in ((one, {}), (several, {"postproc": MultiStep(gamma=0.9, n_steps=3)})):
        for batch in batches(**options):
            games.add(batch)
    assert several.take() == one.take() != {}


@pytest.mark.parametrize("key", [None, "missing", ("agents", "episode_reward")])
def test_batches_that_tell_no_scores_tell_of_no_games(key: str | tuple[str, ...] | None) -> None:
    """Scores of several agents do not fit the ends of their common game."""
    scores = {"done": torch.ones(2, 1, dtype=torch.bool), "agents": {"episode_reward": torch.ones(2, 3, 1)}}
    games = PlayedGames(key)
    games.add(TensorDict({"next": scores}, [2]))
    games.add(TensorDict({}, [2]))
    assert games.take() == {} and games.last is None


def test_games_go_on_where_they_were_left() -> None:
    """Through the plain numbers that a checkpoint keeps."""
    whole, first, second = (PlayedGames("episode_reward") for _ in range(3))
    found = list(batches())
    for place, batch in enumerate(found):
        whole.add(batch)
        (first if place < 3 else second).add(batch)
        if place == 2:
            second.load_state_dict(first.state_dict())
    assert second.take() == whole.take()


def test_a_run_writes_the_games_of_each_row(tmp_path: Path) -> None:
    """Between two rows, from the batches that the trainer got."""
    run = small_run(tmp_path, 320)
    ended: list[tuple[int, float]] = []

    def follow(batch: TensorDictBase) -> None:
        done = batch["next", "done"]
        ended.extend((run.trainer.collected_frames, score) for score in batch["next", "episode_reward"][done].tolist())

    run.trainer.register_op("pre_steps_log", follow)
    run.trainer.train()
    metrics = read_metrics(tmp_path / "metrics.csv")
    before, told = -1.0, 0.0
    for steps, score, count in zip(metrics["steps"], metrics["training_score"], metrics["training_games"], strict=True):
        own = [score for at, score in ended if before < at <= steps]
        assert math.isnan(count) if not own else (count, score) == (len(own), pytest.approx(sum(own) / len(own)))
        told += len(own)
        before = steps
    assert told == len(ended) > 2
