"""Scores of whole games, a fixed quota a slot, played by any policy."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from evaluation_parts import FixedLengths, PixelHash, Refuses, Remembers, always, cartpole, played
from gymnasium.vector import AutoresetMode
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Categorical, Unbounded
from torchrl.envs import EnvBase, GymEnv, RewardSum, TransformedEnv
from torchrl.modules import QValueActor

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.evaluation.evaluator import Evaluator
from torchrl_rtpd.networks.towers import make_actor


def test_every_slot_plays_its_quota_however_short_its_games() -> None:
    """Games of 2 steps at 1 point and 10 steps at 2: the first six to finish would score 20/6, not 11."""
    scores = played([2, 10], episodes=6)
    assert scores.scores == (2.0, 2.0, 2.0, 20.0, 20.0, 20.0)
    assert (scores.mean, scores.episodes, scores.cut, scores.steps) == (11.0, 6, 0, 3 * 2 + 3 * 10)


def test_games_that_the_step_bound_ends_count_as_they_stand_and_are_reported() -> None:
    """Six steps: slot 0 ends one game of 4 steps and is 2 steps into the next; slot 1 is 6 steps into its first."""
    scores = played([4, 100], episodes=4, max_steps=6)
    assert scores.scores == (4.0, 2.0, 12.0)
    assert (scores.cut, scores.steps, scores.episodes) == (2, 12, 3)


def test_a_game_that_did_not_begin_before_the_step_bound_is_not_a_game() -> None:
    """It must not count as a score of 0."""
    scores = played([4, 4], episodes=4, max_steps=4)
    assert scores.scores == (4.0, 8.0)
    assert scores.cut == 0


def test_games_cut_by_max_frames_are_reported() -> None:
    evaluator = Evaluator(lambda: AtariVecEnv("pong", 2, max_frames=40), episodes=4)
    scores = evaluator(make_actor("net17", evaluator.env.action_spec, seed=0))
    assert (scores.episodes, scores.cut) == (4, 4)
    evaluator.close()


@pytest.mark.parametrize(("game", "max_frames", "cut"), [("assault", 600, True), ("ms_pacman", 8_000, False)])
def test_scores_are_the_raw_scores_of_ale_played_by_hand(game: str, max_frames: int, cut: bool) -> None:
    """ALE's own vector environment, same seed and actions: points are not clipped, games not ended by lost lives."""
    evaluator = Evaluator(lambda: AtariVecEnv(game, 2, max_frames=max_frames), episodes=2, epsilon=0.0, seed=7)
    network = PixelHash(evaluator.env.num_actions)
    scores = evaluator(QValueActor(network, in_keys=["pixels"], spec=Categorical(network.num_actions)))
    evaluator.close()

    ale = AtariVectorEnv(
        game,
        2,
        max_num_frames_per_episode=max_frames,
        repeat_action_probability=0.0,
        autoreset_mode=AutoresetMode.SAME_STEP,
        reward_clipping=False,
    )
    pixels, _ = ale.reset(seed=7)
    total, expected, steps = np.zeros(2), [None, None], 0
    while None in expected:
        pixels, reward, terminated, truncated, _ = ale.step(network(torch.from_numpy(pixels)).argmax(-1).numpy())
        steps += expected.count(None)
        total += reward
        for slot in range(2):
            if (terminated | truncated)[slot] and expected[slot] is None:
                expected[slot] = float(total[slot])
    ale.close()
    assert scores.scores == tuple(expected)
    assert scores.steps == steps
    assert scores.cut == (2 if cut else 0)
    assert max(scores.scores) > 0  # the comparison is not one of zeros


def test_scores_of_gym_environments_are_their_undiscounted_returns() -> None:
    """CartPole gives one point a step; pushed to one side for ever it falls within a dozen of them."""
    evaluator = Evaluator(cartpole, episodes=4, epsilon=0.0)
    right = QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
    with torch.no_grad():
        right.module[0].module.weight.zero_()
        right.module[0].module.bias.copy_(torch.tensor([0.0, 1.0]))
    scores = evaluator(right)
    assert all(8 <= score <= 12 for score in scores.scores)
    assert scores.steps == sum(scores.scores)
    evaluator.close()


def test_one_seed_gives_one_score_whatever_was_played_in_between() -> None:
    evaluator = Evaluator(lambda: AtariVecEnv("breakout", 2, max_frames=600), episodes=2, epsilon=0.3)
    policy = make_actor("net17", evaluator.env.action_spec, seed=0)
    first = evaluator(policy, seed=5)
    other = evaluator(policy, seed=6)
    evaluator(policy, epsilon=1.0)
    assert evaluator(policy, seed=5) == first
    assert other != first
    evaluator.close()


def test_evaluating_draws_nothing_from_the_global_generators_and_leaves_training_alone() -> None:
    """A training environment that steps before and after an evaluation sees the same pixels as an undisturbed one."""
    training, twin = (AtariVecEnv("breakout", 2, seed=3) for _ in range(2))
    evaluator = Evaluator(lambda: AtariVecEnv("breakout", 2, max_frames=400), episodes=2, epsilon=0.5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    actions = torch.arange(40).view(20, 2) % training.num_actions

    def play(env: AtariVecEnv, between: Callable[[], object]) -> Tensor:
        tensordict, seen = env.reset(), []
        for step, action in enumerate(actions):
            if step == 10:
                between()
            _, tensordict = env.step_and_maybe_reset(tensordict.set("action", action))
            seen.append(tensordict["pixels"].clone())
        return torch.stack(seen)

    policy = make_actor("net17", training.action_spec, seed=0)
    disturbed = play(training, lambda: evaluator(policy))
    assert torch.equal(disturbed, play(twin, lambda: None))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    for env in (training, twin, evaluator.env):
        env.close()


@pytest.mark.parametrize("fails", [False, True])
def test_networks_play_in_eval_mode_and_get_their_own_back(fails: bool) -> None:
    """Module by module, also after an error."""
    network = Remembers(fails)
    policy = QValueActor(network, in_keys=["observation"], spec=Categorical(2))
    network.inner.eval()
    modes = [module.training for module in policy.modules()]
    evaluator = Evaluator(lambda: FixedLengths([2]), episodes=1)
    if fails:
        with pytest.raises(RuntimeError, match="no values today"):
            evaluator(policy)
    else:
        evaluator(policy)
    assert network.modes == {False}
    assert [module.training for module in policy.modules()] == modes
    assert set(modes) == {True, False}


def test_no_gradient_is_recorded_while_playing() -> None:
    policy = always(0)
    played_without = Evaluator(lambda: FixedLengths([2]), episodes=1)(policy, keep_observations=2)
    assert not played_without.observations["observation"].requires_grad
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 2, "epsilon": 1.5}, r"epsilon is a probability in \[0, 1\]: got 1\.5"),
        ({"episodes": 2, "max_steps": 0}, r"max_steps must be an integer of at least 1: got 0"),
        ({"episodes": 3}, r"episodes must be a multiple of the 2 slots.*: got 3; use 4\."),
        ({"episodes": 0}, r"episodes must be a multiple of the 2 slots.*: got 0; use 2\."),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluator(lambda: FixedLengths([2, 2]), **arguments)


# Where a score is read


def clipped(env: EnvBase) -> TransformedEnv:
    """TorchRL's usual line, which sums up what the environment calls its reward."""
    return TransformedEnv(env, RewardSum())


class Raw(FixedLengths):
    """Rewards are clipped to 1; the raw score, 10 points a step, has an entry of its own."""

    def __init__(self, key: str = "raw_episode_reward") -> None:
        super().__init__([4, 2])
        self.key = key
        self.observation_spec[key] = Unbounded((2, 1))

    def _seen(self) -> dict[str, Tensor]:
        seen = super()._seen()
        return {**seen, "episode_reward": 10.0 * self.count, self.key: 10.0 * self.count}

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        step = super()._step(tensordict)
        return step.set("reward", torch.ones(2, 1))


def test_the_raw_score_is_read_though_rewards_are_clipped_and_summed() -> None:
    """40 and 20 points, not the 4 and 2 of RewardSum."""
    evaluator = Evaluator(lambda: clipped(Raw()), episodes=2)
    assert evaluator.score_key == "raw_episode_reward"
    assert evaluator(always(0)).scores == (40.0, 20.0)


def test_ales_raw_score_is_read_though_rewards_are_clipped_and_summed() -> None:
    """The same games as without the transform; Ms. Pac-Man's dots are 10 points each."""
    scores = []
    for transform in (lambda env: env, clipped):
        make = partial(AtariVecEnv, "ms_pacman", 2, max_frames=1_200)
        evaluator = Evaluator(lambda make=make, transform=transform: transform(make()), episodes=2, epsilon=0.3)
        scores.append(evaluator(make_actor("net17", evaluator.env.action_spec, seed=0)))
        evaluator.close()
    assert scores[0] == scores[1]
    assert min(scores[0].scores) >= 40


def test_an_own_score_that_a_transform_overwrites_is_refused() -> None:
    """Without a raw entry the usual line would report the sum of clipped rewards as the score."""
    with pytest.raises(ValueError, match=r"own 'episode_reward' must not be overwritten: got RewardSum.* score_key"):
        Evaluator(lambda: clipped(Raw("score")), episodes=2)
    assert Evaluator(lambda: clipped(Raw("score")), episodes=2, score_key="score")(always(0)).scores == (40.0, 20.0)


def test_rewards_are_summed_up_where_no_entry_tells_the_score() -> None:
    """CartPole's return is its number of steps; games begin from nothing each."""
    evaluator = Evaluator(lambda: GymEnv("CartPole-v1", categorical_action_encoding=True), episodes=3, epsilon=0.0)
    assert evaluator.score_key is None
    scores = evaluator(TensorDictModule(lambda seen: torch.ones((), dtype=torch.long), ["observation"], ["action"]))
    assert sum(scores.scores) == scores.steps
    assert all(8 <= score <= 12 for score in scores.scores)
    evaluator.close()


def test_a_game_without_a_score_entry_that_is_cut_counts_its_own_rewards_only() -> None:
    """Two points a step: one game of 4 steps, and 2 steps of the next."""

    class Unsaid(FixedLengths):
        def __init__(self) -> None:
            super().__init__([1, 4])
            del self.observation_spec["episode_reward"]

        def _seen(self) -> dict[str, Tensor]:
            seen = super()._seen()
            return {"observation": seen["observation"]}

    scores = Evaluator(Unsaid, episodes=4, max_steps=6)(always(0))
    assert scores.scores == (1.0, 1.0, 8.0, 4.0)
    assert (scores.cut, scores.steps) == (1, 8)


def test_an_environment_with_neither_score_nor_the_named_entry_is_refused() -> None:
    with pytest.raises(ValueError, match=r"score_key must name an entry .*: got 'points', it has \['episode_rew"):
        Evaluator(lambda: FixedLengths([2]), episodes=1, score_key="points")


# Global random streams


class Draws(FixedLengths):
    """Its rewards come from the global generators."""

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        step = super()._step(tensordict)
        self.drawn = (float(torch.rand(())), float(np.random.rand()), random.random())
        return step.set("episode_reward", torch.full((len(self.count), 1), sum(self.drawn)))


def test_what_environments_draw_globally_is_the_seeds_and_put_back() -> None:
    """Also after an error."""
    evaluator = Evaluator(lambda: Draws([3]), episodes=2)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = evaluator(always(0))
    torch.rand(5), np.random.rand(5), random.random()
    assert evaluator(always(0)) == first != evaluator(always(0), seed=1)
    torch.set_rng_state(states[0])
    np.random.seed(3)
    random.setstate(states[2])
    middle = np.random.get_state()[1].copy()
    with pytest.raises(RuntimeError, match="this network was run"):
        evaluator(TensorDictModule(Refuses(), in_keys=["observation"], out_keys=["action"]))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == middle).all()
    assert random.getstate() == states[2]


def test_closing_twice_is_harmless() -> None:
    evaluator = Evaluator(lambda: FixedLengths([2]), episodes=1)
    evaluator.close()
    evaluator.close()
    assert evaluator.env.is_closed


def test_a_watcher_sees_each_step_and_may_end_the_play() -> None:
    """Slot 0 plays games of two steps, a point each; after four steps of both slots it was enough, in slot 1's game."""
    seen: list[tuple[bool, float]] = []

    def watch(step: TensorDictBase, score: float) -> bool:
        seen.append((bool(step["next", "done"][0]), score))
        return len(seen) == 4

    scores = Evaluator(lambda: FixedLengths([2, 5]), episodes=6, epsilon=0.0)(always(0), watch=watch)
    assert seen == [(False, 1.0), (True, 2.0), (False, 1.0), (True, 2.0)]
    assert scores.scores == (2.0, 2.0, 8.0) and scores.cut == 1 and scores.steps == 8
