"""Scores of whole games, a fixed quota a slot, and comparisons of students with their teacher."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Categorical, Composite, OneHot, Unbounded
from torchrl.envs import Compose, DoubleToFloat, EnvBase, GymEnv, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import QValueActor

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.evaluation.evaluator import Evaluator
from torchrl_rtpd.evaluation.scores import Scores, agreement_with_teacher, latency_ms
from torchrl_rtpd.functional.scores import normalised_score
from torchrl_rtpd.networks.towers import make_actor


class FixedLengths(EnvBase):
    """Slot ``i`` plays games of ``lengths[i]`` steps worth ``i + 1`` points each; it sees [slot, steps so far]."""

    def __init__(self, lengths: Sequence[int], *, num_actions: int = 2, one_hot: bool = False) -> None:
        slots = len(lengths)
        super().__init__(batch_size=[slots])
        self.lengths = torch.tensor(lengths)[:, None]
        self.actions: list[Tensor] = []
        flag = (slots, 1)
        self.observation_spec = Composite(
            observation=Unbounded((slots, 2)), episode_reward=Unbounded(flag), shape=[slots]
        )
        self.action_spec = (OneHot if one_hot else Categorical)(
            num_actions, shape=(slots, num_actions) if one_hot else (slots,)
        )
        self.reward_spec = Unbounded(flag)
        self.count = torch.zeros(flag, dtype=torch.long)
        self.points = torch.arange(1.0, slots + 1)[:, None]

    def _set_seed(self, seed: int | None) -> None:
        pass

    def _seen(self) -> dict[str, Tensor]:
        slot = torch.arange(len(self.count))[:, None]
        return {
            "observation": torch.cat([slot, self.count], -1).float(),
            "episode_reward": self.points * self.count,
        }

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self.count = torch.zeros_like(self.count) if mask is None else torch.where(mask, 0, self.count)
        return TensorDict(self._seen(), [len(self.count)])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.actions.append(tensordict.get("action").clone())
        self.count = self.count + 1
        done = self.count >= self.lengths
        return TensorDict({**self._seen(), "reward": self.points, "done": done, "terminated": done}, [len(done)])


class PixelHash(nn.Module):
    """Action values that depend on every pixel and on nothing else."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions

    def forward(self, pixels: Tensor) -> Tensor:
        total = pixels.flatten(1).sum(1, dtype=torch.int64)
        return nn.functional.one_hot((total // 7) % self.num_actions, self.num_actions).float()


class Refuses(nn.Module):
    """A network that must not be run."""

    def forward(self, observation: Tensor) -> Tensor:
        raise RuntimeError("this network was run")


class Remembers(nn.Module):
    """A network that remembers in which mode it ran, and fails when asked to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.5)
        self.modes: set[bool] = set()
        self.fails = fails

    def forward(self, observation: Tensor) -> Tensor:
        self.modes |= {self.training, self.inner.training}
        if self.fails:
            raise RuntimeError("no values today")
        return observation[..., :2]


def always(action: int, *, num_actions: int = 2, one_hot: bool = False) -> QValueActor:
    """A policy that takes one action whatever it sees."""
    network = nn.Linear(2, num_actions)
    nn.init.zeros_(network.weight)
    with torch.no_grad():
        network.bias.copy_(nn.functional.one_hot(torch.tensor(action), num_actions))
    return QValueActor(network, in_keys=["observation"], spec=(OneHot if one_hot else Categorical)(num_actions))


def played(lengths: Sequence[int], episodes: int, max_steps: int = 1_000_000) -> Scores:
    return Evaluator(lambda: FixedLengths(lengths), episodes=episodes, max_steps=max_steps)(always(0))


def cartpole() -> EnvBase:
    return TransformedEnv(
        SerialEnv(2, lambda: GymEnv("CartPole-v1", categorical_action_encoding=True)),
        Compose(DoubleToFloat(), RewardSum(in_keys=["reward"], out_keys=["episode_reward"])),
    )


# Which games count


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


# What a score is


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


def test_means_and_errors_are_the_textbook_ones() -> None:
    """1, 2, 3, 4: sample variance 5/3, standard error its root over 2."""
    scores = Scores((1.0, 2.0, 3.0, 4.0), cut=0, steps=40)
    assert scores.mean == 2.5
    assert scores.std == pytest.approx((5 / 3) ** 0.5)
    assert scores.standard_error == pytest.approx((5 / 3) ** 0.5 / 2)
    single = Scores((7.0,), cut=0, steps=1)
    assert (single.mean, single.std, single.standard_error) == (7.0, 0.0, 0.0)


# Randomness


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


@pytest.mark.parametrize("one_hot", [False, True])
def test_epsilon_is_the_share_of_steps_with_a_uniform_action(one_hot: bool) -> None:
    """Of 4 actions at epsilon 0.4, 3 in 10 differ from the policy's; 2000 draws, standard deviation 1 %."""
    evaluator = Evaluator(
        lambda: FixedLengths([500] * 4, num_actions=4, one_hot=one_hot), episodes=4, epsilon=0.4, seed=1
    )
    evaluator(always(2, num_actions=4, one_hot=one_hot))
    actions = torch.stack(evaluator.env.actions)
    assert actions.shape[1:] == evaluator.env.action_spec.shape
    index = actions.long().argmax(-1) if one_hot else actions
    shares = torch.bincount(index.flatten(), minlength=4) / index.numel()
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.1, 0.7, 0.1]), atol=0.04, rtol=0)


@pytest.mark.parametrize("one_hot", [False, True])
def test_the_random_player_needs_no_sensible_policy(one_hot: bool) -> None:
    evaluator = Evaluator(lambda: FixedLengths([300, 300], num_actions=4, one_hot=one_hot), episodes=2)
    evaluator(TensorDictModule(Refuses(), in_keys=["observation"], out_keys=["action"]), epsilon=1.0)
    actions = torch.stack(evaluator.env.actions)
    index = actions.long().argmax(-1) if one_hot else actions
    shares = torch.bincount(index.flatten(), minlength=4) / index.numel()
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.06, rtol=0)


def test_epsilon_zero_is_the_policy_itself() -> None:
    evaluator = Evaluator(lambda: FixedLengths([50, 50]), episodes=2, epsilon=0.0)
    evaluator(always(1))
    assert torch.stack(evaluator.env.actions).eq(1).all()


# The network


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


# Observations


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


# Comparisons


@pytest.mark.parametrize(
    ("score", "random_score", "teacher_score", "expected"),
    [
        (-5.0, -20.0, 10.0, 0.5),
        (21.0, -21.0, 21.0, 1.0),
        (-21.0, -20.0, -10.0, -0.1),  # worse than random
        (-8.0, -20.0, -10.0, 1.2),  # better than a teacher with a negative score
        (5.0, 3.0, 3.0, None),
        (5.0, 3.0, 2.0, None),
    ],
)
def test_a_normalised_score_lies_between_random_and_teacher(
    score: float, random_score: float, teacher_score: float, expected: float | None
) -> None:
    """And there is none where the teacher is no better than random."""
    normalised = normalised_score(score, random_score, teacher_score)
    assert normalised == (None if expected is None else pytest.approx(expected))


def test_agreement_is_the_share_of_equal_greedy_actions() -> None:
    """Four states, the teacher takes 0, 1, 0, 1; one student differs in the last."""
    states = TensorDict(
        {
            "observation": torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [-2.0, -1.0]]),
            "other": torch.tensor([[9.0, 8.0], [1.0, 2.0], [0.1, 0.0], [5.0, 4.0]]),
        },
        [4],
    )
    teacher = TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["action_value"])
    student = TensorDictModule(nn.Identity(), in_keys=["other"], out_keys=["action_value"])
    before = states.clone()
    assert agreement_with_teacher(teacher, {"itself": teacher, "net": student}, states) == {"itself": 1.0, "net": 0.75}
    assert (states == before).all()
    assert set(states.keys()) == {"observation", "other"}


def test_agreement_is_measured_in_eval_mode() -> None:
    """A teacher with dropout agrees with itself."""
    teacher = TensorDictModule(
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.9)), in_keys=["observation"], out_keys=["action_value"]
    )
    states = TensorDict({"observation": torch.randn(64, 8, generator=torch.Generator().manual_seed(0))}, [64])
    assert agreement_with_teacher(teacher, {"itself": teacher}, states) == {"itself": 1.0}
    assert all(module.training for module in teacher.modules())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: QValueActor(network, in_keys=["observation"], spec=Categorical(2)),
        lambda network: TensorDictModule(network, in_keys=["observation"], out_keys=["action_value"]),
        lambda network: network,
    ],
    ids=["actor", "tensordict module", "plain module"],
)
def test_latency_is_positive_and_measured_on_a_copy(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network = wrap(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    calls = []
    for module in network.modules():
        module.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    before = [parameter.clone() for parameter in network.parameters()]
    assert latency_ms(network, torch.ones(1, 2), repeats=3) > 0
    assert all(module.training for module in network.modules())
    assert all(map(torch.equal, network.parameters(), before))
    assert calls  # copies of the hooks were called, ...
    assert not any(calls)  # ... without gradient


def test_latency_grows_with_the_network() -> None:
    """The paper's teacher costs several times net17's 29,214 parameters."""
    pixels = torch.zeros(1, 4, 84, 84, dtype=torch.uint8)
    teacher, small = (latency_ms(make_actor(name, Categorical(6), seed=0), pixels) for name in ("teacher", "net17"))
    assert teacher > small


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 2, "epsilon": 1.5}, r"epsilon is a probability in \[0, 1\]: got 1\.5"),
        ({"episodes": 2, "max_steps": 0}, r"max_steps must be at least 1: got 0"),
        ({"episodes": 3}, r"episodes must be a multiple of the 2 slots.*: got 3; use 4\."),
        ({"episodes": 0}, r"episodes must be a multiple of the 2 slots.*: got 0; use 2\."),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluator(lambda: FixedLengths([2, 2]), **arguments)


def test_an_epsilon_out_of_range_is_refused_at_a_call_too() -> None:
    with pytest.raises(ValueError, match=r"epsilon is a probability in \[0, 1\]: got -0\.1"):
        Evaluator(lambda: FixedLengths([2]), episodes=1)(always(0), epsilon=-0.1)


def test_an_environment_without_episode_reward_is_refused() -> None:
    env = GymEnv("CartPole-v1")
    with pytest.raises(ValueError, match=r"scores are read from 'episode_reward', which .*CartPole.* lacks; append"):
        Evaluator(lambda: env, episodes=1)
    env.close()


def test_closing_twice_is_harmless() -> None:
    evaluator = Evaluator(lambda: FixedLengths([2]), episodes=1)
    evaluator.close()
    evaluator.close()
    assert evaluator.env.is_closed
