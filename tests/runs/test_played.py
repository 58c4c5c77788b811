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
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.postprocs import MultiStep
from torchrl.envs import ExplorationType, GymEnv, RewardSum, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import Evaluator
from torchrl_rtpd.runs import RunMonitor
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


def test_without_a_key_the_usual_entries_are_read() -> None:
    """Raw scores first: those of an environment that clips rewards are others."""
    ends = {"done": torch.ones(2, 1, dtype=torch.int8), "episode_reward": torch.ones(2, 1)}
    for entries, score in ((ends, 1.0), ({**ends, "raw_episode_reward": torch.full((2, 1), 5.0)}, 5.0)):
        games = PlayedGames(None)
        games.add(TensorDict({"next": entries}, [2]))
        assert games.take() == {"training_score": score, "training_games": 2}


@pytest.mark.parametrize("key", [None, "missing", ("agents", "episode_reward")])
def test_batches_that_tell_no_scores_tell_of_no_games(key: str | tuple[str, ...] | None) -> None:
    """Scores of several agents do not fit the ends of their common game; asynchronous trainers show no batch at all."""
    scores = {"done": torch.ones(2, 1, dtype=torch.bool), "agents": {"episode_reward": torch.ones(2, 3, 1)}}
    games = PlayedGames(key)
    games.add(TensorDict({"next": scores}, [2]))
    games.add(TensorDict({}, [2]))
    games.add(None)
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


def test_a_run_that_collects_asynchronously_is_watched_without_its_games(tmp_path: Path) -> None:
    """TorchRL's trainer has no batch to show there; rows come as ever."""

    def make_env() -> TransformedEnv:
        return TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), RewardSum())

    env = make_env()
    actor = QValueActor(MLP(4, 2, num_cells=[8]), in_keys=["observation"], spec=env.action_spec)
    loss = DQNLoss(actor, action_space="categorical", delay_value=True)
    replay_buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(1_000), batch_size=16)
    trainer = DQNTrainer(
        collector=Collector(
            env,
            actor,
            frames_per_batch=32,
            total_frames=256,
            replay_buffer=replay_buffer,
            auto_register_policy_transforms=False,
        ),
        total_frames=256,
        frame_skip=1,
        optim_steps_per_batch=1,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters()),
        target_net_updater=SoftUpdate(loss, tau=0.1),
        replay_buffer=replay_buffer,
        async_collection=True,
        enable_logging=False,
        progress_bar=False,
    )
    evaluator = Evaluator(make_env, episodes=1)
    monitor = RunMonitor({"teacher": actor}, evaluator, tmp_path, evaluate_every_steps=128, progress_bar=False)
    monitor.register(trainer)
    # The thread and the losses may leave the process's exploration type as either had set it: it is put back here.
    with set_exploration_type(ExplorationType.RANDOM):
        trainer.train()
        trainer.collector.async_shutdown()
    evaluator.close()
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics["steps"] and all(map(math.isnan, metrics["training_games"]))
