"""A reset of all slots, after whatever was played, is the one of a fresh environment."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torchrl.envs import (
    Compose,
    EnvBase,
    GymEnv,
    GymWrapper,
    InitTracker,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    step_mdp,
)
from torchrl.modules import MLP, QValueActor

from torchrl_rtpd.envs import AtariVecEnv, reset_all
from torchrl_rtpd.evaluation import Evaluator


def vector(mode: AutoresetMode = AutoresetMode.SAME_STEP) -> EnvBase:
    games = gymnasium.make_vec("CartPole-v1", 3, "sync", vector_kwargs={"autoreset_mode": mode})
    return GymWrapper(games, categorical_action_encoding=True)


ENVS: dict[str, Callable[[], EnvBase]] = {
    "one": lambda: GymEnv("CartPole-v1"),
    "serial": lambda: SerialEnv(2, lambda: GymEnv("CartPole-v1")),
    "vector": vector,
    "vector, asynchronous": lambda: GymEnv("CartPole-v1", num_envs=2),
    "vector, disabled": lambda: vector(AutoresetMode.DISABLED),
    "vector, transformed": lambda: vector().append_transform(Compose(RewardSum(), InitTracker(), StepCounter())),
    "vector, transformed twice": lambda: vector().append_transform(RewardSum()).append_transform(StepCounter()),
    "vector, in a batch": lambda: SerialEnv(2, vector),
    "vector, in a batch of one": lambda: SerialEnv(1, vector),
    "vector, in processes": lambda: ParallelEnv(1, vector),
    "vector, transformed in a batch": lambda: SerialEnv(2, lambda: vector().append_transform(RewardSum())),
    "vector, in a transformed batch": lambda: SerialEnv(2, vector).append_transform(
        Compose(RewardSum(), InitTracker(), StepCounter())
    ),
    "Atari, in a batch": lambda: SerialEnv(1, lambda: AtariVecEnv("pong", 2, max_frames=400)),
    "Atari": lambda: AtariVecEnv("pong", 2, max_frames=400),
}


@pytest.mark.parametrize("name", ENVS)
def test_a_reset_does_not_depend_on_what_was_played(name: str) -> None:
    """Games end one by one under random actions; a step in which one ended is the last before the reset.

    Before the first step it is a plain reset.
    """
    env = ENVS[name]()
    env.set_seed(0)
    fresh = env.reset().clone()
    env.set_seed(0)
    state = reset_all(env).clone()
    seen = "pixels" if "Atari" in name else "observation"
    assert torch.equal(state[seen], fresh[seen])
    for _ in range(300):
        step = env.rand_step(state)
        if step["next", "done"].any():
            break
        state = step_mdp(step)
    assert step["next", "done"].any()
    env.set_seed(0)
    again = reset_all(env)
    env.close()
    assert set(again.keys(True, True)) == set(fresh.keys(True, True))
    for key in fresh.keys(True, True):
        assert torch.equal(again[key], fresh[key]), key


def test_vector_environments_in_a_batch_without_buffers_are_warned_of() -> None:
    env = SerialEnv(2, vector, use_buffers=False)
    env.reset()
    with pytest.warns(UserWarning, match="through its buffers: got use_buffers=False; the first steps of games may be"):
        reset_all(env)
    env.close()


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_the_same_seed_gives_the_same_scores_whoever_played_before(epsilon: float) -> None:
    """Scores of a network on gymnasium's vector environment, at first, again, and after another network."""
    evaluator = Evaluator(lambda: vector().append_transform(RewardSum()), episodes=6, epsilon=epsilon)
    actors = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        actors.append(QValueActor(MLP(4, 2, num_cells=[16]), spec=evaluator.env.action_spec_unbatched))
    first = evaluator(actors[0], seed=5).scores
    assert evaluator(actors[0], seed=5).scores == first
    evaluator(actors[1], seed=6)
    assert evaluator(actors[0], seed=5).scores == first
    evaluator.close()
