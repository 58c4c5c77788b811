"""What only watches a run draws nothing from the global random streams, whatever it watches."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from evaluation_parts import FixedLengths
from gymnasium.vector import AutoresetMode
from hook_parts import cartpole_trainer, content
from parts import FLEET
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.data import Categorical, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase, GymWrapper
from torchrl.modules import QValueActor

from torchrl_rtpd import AtariVecEnv, Evaluator, make_actor
from torchrl_rtpd.deploy import export_student
from torchrl_rtpd.deploy.states import states_of
from torchrl_rtpd.evaluation import latency_ms, record_games
from torchrl_rtpd.runs.deployed import deployed_row, first_step
from torchrl_rtpd.runs.figures import plot_curves, plot_front
from torchrl_rtpd.runs.monitor import RunMonitor
from torchrl_rtpd.runs.size_search import SizeSearch
from torchrl_rtpd.runs.video import write_video

pytest.importorskip("onnxruntime", reason="needs the export extra")


def drawn() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def streams() -> list[Any]:
    """States of torch's, NumPy's and Python's generator."""
    numpy_state: Any = np.random.get_state()
    return [torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate()]


class Draws(FixedLengths):
    """Draws from all of them when it is made, at a reset and at a step."""

    def __init__(self) -> None:
        super().__init__([3, 5])
        drawn()

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        drawn()
        return super()._reset(tensordict, **kwargs)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        drawn()
        return super()._step(tensordict)


class Noisy(nn.Linear):
    """Draws at each forward, to no effect."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return super().forward(observation) + 0 * torch.rand(1)


def vector() -> EnvBase:
    """TorchRL plays a step with drawn actions when it wraps such an environment."""
    options = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return GymWrapper(
        gymnasium.make_vec("CartPole-v1", 2, "sync", vector_kwargs=options), categorical_action_encoding=True
    )


def noisy() -> QValueActor:
    with torch.random.fork_rng():
        return QValueActor(Noisy(2, 2), in_keys=["observation"], spec=Categorical(2))


def replay() -> TensorDictReplayBuffer:
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(600))
    buffer.extend(TensorDict({"observation": torch.zeros(600, 2)}, [600]))
    return buffer


def recorded(folder: Path) -> None:
    evaluator = Evaluator(partial(AtariVecEnv, "pong", 1), episodes=1)
    network = make_actor("net17", evaluator.env.action_spec, seed=0)
    (game,) = record_games({"teacher": network}, evaluator, seed=3, seconds=0.2)
    write_video(game.pictures, folder / "game.gif", frames_per_second=15)
    evaluator.close()


WATCHING: dict[str, Callable[[Path], object]] = {
    "an evaluator of gymnasium's vector environment": lambda folder: Evaluator(vector, episodes=2),
    "an evaluator that plays": lambda folder: Evaluator(Draws, episodes=2)(noisy()),
    "the first step of a game": lambda folder: first_step(noisy(), Draws()),
    "latency of a network": lambda folder: latency_ms(noisy(), torch.zeros(1, 2)),
    "latency as deployed": lambda folder: deployed_row("small", noisy(), Draws()),
    "students within limits": lambda folder: SizeSearch(max_latency_ms=1e9, max_bytes=1e9).admitted(
        {"small": noisy()}, Draws()
    ),
    "an export": lambda folder: export_student(noisy(), folder / "small", formats=["pt2"], example=torch.zeros(2, 2)),
    "states of a replay": lambda folder: states_of(replay(), noisy(), "observation", {}),
    "states of played games": lambda folder: states_of(Draws(), noisy(), "observation", {}),
    "a video": recorded,
    "a front": lambda folder: plot_front(FLEET, folder / "front.png"),
    "curves": lambda folder: plot_curves(
        {"steps": [1.0, 2.0], "teacher/score": [1.0, 3.0]}, ["teacher"], folder / "curves.png", title="t"
    ),
}


@pytest.mark.parametrize("name", WATCHING)
def test_what_only_watches_draws_nothing_from_the_global_streams(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environments that are given, not made, are built before the streams are looked at."""
    made = Draws()
    monkeypatch.setitem(globals(), "Draws", lambda: made)
    before = streams()
    WATCHING[name](tmp_path)
    assert streams() == before


def test_the_parts_of_these_tests_do_draw() -> None:
    """Otherwise nothing would have been shown."""
    for draw in (Draws, Draws().reset, vector, lambda: noisy()(TensorDict({"observation": torch.zeros(1, 2)}, [1]))):
        before = streams()
        draw()
        assert streams() != before


@pytest.mark.parametrize("make_env", [vector, Draws])
def test_the_number_of_evaluated_games_does_not_change_the_teacher(make_env: Any, tmp_path: Path) -> None:
    """Trained without a monitor, and with one that evaluates two games, or four, of environments that draw."""

    def teacher(episodes: int) -> Any:
        trainer = cartpole_trainer()
        if episodes:
            evaluator = Evaluator(make_env, episodes=episodes)
            network = trainer.loss_module.value_network if make_env is vector else noisy()
            monitor = RunMonitor(
                {"teacher": network},
                evaluator,
                tmp_path / str(episodes),
                evaluate_every_steps=40,
                log_every_steps=20,
                progress_bar=False,
            )
            monitor.register(trainer)
        trainer.train()
        return content(dict(trainer.loss_module.state_dict()))

    assert teacher(0) == teacher(2) == teacher(4)
