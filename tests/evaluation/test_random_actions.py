"""Random actions keep to specs and masks."""

from __future__ import annotations

import pytest
import torch
from evaluation_parts import FixedLengths, Refuses, always
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    TensorSpec,
    Unbounded,
)
from torchrl.envs import ActionMask, EnvBase, GymEnv, TransformedEnv

from torchrl_rtpd.evaluation.actions import RandomActions
from torchrl_rtpd.evaluation.evaluator import Evaluator


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


def test_an_epsilon_out_of_range_is_refused_at_a_call_too() -> None:
    with pytest.raises(ValueError, match=r"epsilon is a probability in \[0, 1\]: got -0\.1"):
        Evaluator(lambda: FixedLengths([2]), episodes=1)(always(0), epsilon=-0.1)


# What is drawn


def drawn_of(env: EnvBase, count: int = 2_000, mask_key: str | None = None) -> Tensor:
    """Many draws of an environment's random actions."""
    actions, generator = RandomActions(env, mask_key), torch.Generator().manual_seed(0)
    state = env.reset()
    explores = torch.ones(env.batch_size, dtype=torch.bool)
    return torch.stack([actions(state, explores, generator)["action"] for _ in range(count)])


class Fixed(EnvBase):
    """One slot of one action spec, whose mask never changes."""

    def __init__(self, spec: TensorSpec, mask: Tensor | None = None, mask_name: str = "action_mask") -> None:
        super().__init__(batch_size=[1])
        self.action_spec = spec
        self.seen = {"observation": torch.zeros(1, 1)} | ({} if mask is None else {mask_name: mask})
        self.observation_spec = Composite(
            {name: Unbounded(value.shape, dtype=value.dtype) for name, value in self.seen.items()}, shape=[1]
        )
        self.reward_spec = Unbounded((1, 1))

    def _set_seed(self, seed: int | None) -> None:
        pass

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        return TensorDict(self.seen, [1])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        done = torch.ones(1, 1, dtype=torch.bool)
        return TensorDict({**self.seen, "reward": torch.ones(1, 1), "done": done, "terminated": done}, [1])


MASK = torch.tensor([[True, False, False, True]])


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("place", ["data", "spec", "both", "a name of its own"])
def test_forbidden_actions_are_never_drawn_and_allowed_ones_alike(hot: bool, place: str) -> None:
    """Of four actions 0 and 3 are allowed: half of 2,000 draws each, standard deviation 1.1 %."""
    spec = (OneHot if hot else Categorical)(4, shape=(1, 4) if hot else (1,))
    name = "legal" if place == "a name of its own" else "action_mask"
    if place == "both":  # both must allow it; here the spec forbids 2 and the data 1
        env = Fixed(spec, torch.tensor([[True, False, True, True]]))
        env.action_spec.update_mask(torch.tensor([[True, True, False, True]]))
    else:
        env = Fixed(spec, MASK, name)
    if place == "spec":
        env = TransformedEnv(env, ActionMask())
    actions = drawn_of(env, mask_key="legal" if name == "legal" else None)
    index = actions.long().argmax(-1) if hot else actions
    shares = torch.bincount(index.flatten(), minlength=4) / index.numel()
    assert shares[1:3].tolist() == [0, 0]
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.0, 0.0, 0.5]), atol=0.05, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("hot", [False, True])
def test_each_of_several_choices_is_drawn_by_itself(hot: bool, masked: bool) -> None:
    """Three and two actions; the mask forbids action 1 of the first choice."""
    mask = torch.tensor([[True, False, True, True, True]]) if masked else None
    spec = MultiOneHot([3, 2], shape=(1, 5)) if hot else MultiCategorical([3, 2], shape=(1, 2))
    actions = drawn_of(Fixed(spec, mask))[:, 0].long()
    first, second = (actions[:, :3].argmax(-1), actions[:, 3:].argmax(-1)) if hot else actions.unbind(-1)
    joint = torch.bincount(2 * first + second, minlength=6) / len(actions)
    expected = torch.tensor([1 / 4, 1 / 4, 0, 0, 1 / 4, 1 / 4] if masked else [1 / 6] * 6)
    torch.testing.assert_close(joint, expected, atol=0.05, rtol=0)


def test_each_bit_is_drawn_by_itself() -> None:
    actions = drawn_of(Fixed(Binary(2, shape=(1, 2))))[:, 0].long()
    joint = torch.bincount(2 * actions[:, 0] + actions[:, 1], minlength=4) / len(actions)
    torch.testing.assert_close(joint, torch.full((4,), 0.25), atol=0.05, rtol=0)


def test_continuous_actions_are_uniform_between_their_bounds() -> None:
    """Quarters of [-2, 6] and [0, 1] are hit alike."""
    low, high = torch.tensor([[-2.0, 0.0]]), torch.tensor([[6.0, 1.0]])
    actions = drawn_of(Fixed(Bounded(low, high, shape=(1, 2))))[:, 0]
    share = (actions - low) / (high - low)
    assert (share >= 0).all()
    assert (share <= 1).all()
    for column in share.T:
        quarters = torch.bincount((column * 4).long().clamp(max=3), minlength=4) / len(column)
        torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.05, rtol=0)


def test_integers_are_uniform_with_both_ends() -> None:
    actions = drawn_of(Fixed(Bounded(-1, 2, shape=(1, 1), dtype=torch.int64))).flatten()
    shares = torch.bincount(actions + 1, minlength=4) / len(actions)
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.05, rtol=0)


def test_pendulums_random_player_plays_all_of_its_actions() -> None:
    """Through the evaluator, and repeatably: 200 steps between -2 and 2."""
    actions: list[Tensor] = []

    class Watched(TransformedEnv):
        def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
            actions.append(tensordict["action"].clone())
            return super()._step(tensordict)

    evaluator = Evaluator(lambda: Watched(GymEnv("Pendulum-v1")), episodes=1, max_steps=200)
    refuses = TensorDictModule(Refuses(), in_keys=["observation"], out_keys=["action"])
    first, second = (evaluator(refuses, epsilon=1.0) for _ in range(2))
    evaluator.close()
    assert first == second
    assert first.mean < -500  # it hangs and swings
    played = torch.stack(actions[:200])
    assert played.dtype == torch.float32
    assert played.min() < -1.8
    assert played.max() > 1.8
    assert abs(played.mean()) < 0.3
    assert torch.equal(played, torch.stack(actions[200:]))


def test_half_of_continuous_steps_are_random_at_one_half() -> None:
    """The policy plays 1 throughout; whole actions are replaced, not parts of them."""
    env = Fixed(Bounded(-2.0, 2.0, shape=(1, 2)))
    ones = TensorDictModule(lambda seen: torch.ones(1, 2), in_keys=["observation"], out_keys=["action"])
    actions: list[Tensor] = []
    step = env._step
    env._step = lambda tensordict: (actions.append(tensordict["action"].clone()), step(tensordict))[1]
    Evaluator(lambda: env, episodes=1_000, epsilon=0.5)(ones)
    own = torch.stack(actions)[:, 0].eq(1.0)
    assert torch.equal(own[:, 0], own[:, 1])
    assert 0.44 < own[:, 0].float().mean() < 0.56


def test_agents_and_groups_are_all_drawn() -> None:
    """Two action keys, one of three agents."""
    env = Fixed(Categorical(4, shape=(1,)))
    group = Composite(action=Categorical(2, shape=(1, 3)), shape=(1, 3))
    env.action_spec = Composite(action=Categorical(4, shape=(1,)), agents=group, shape=(1,))
    draw = RandomActions(env)
    generator, explores = torch.Generator().manual_seed(0), torch.ones(1, dtype=torch.bool)
    drawn = [draw(env.reset(), explores, generator) for _ in range(50)]
    assert set(drawn[0]) == {"action", ("agents", "action")}
    assert len({tuple(actions["agents", "action"].flatten().tolist()) for actions in drawn}) == 8
    assert {actions["action"].item() for actions in drawn} == {0, 1, 2, 3}


# What cannot be drawn


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (Unbounded((1, 2)), r"'action' is UnboundedContinuous"),
        (Bounded(-torch.inf, 1.0, shape=(1, 2)), r"'action' has infinite bounds"),
        (MultiCategorical(torch.tensor([[3, 2], [2, 2]]), shape=(2, 2)), r"'action' has rows of different choices"),
    ],
)
def test_random_actions_that_nothing_can_draw_are_refused_at_construction(spec: TensorSpec, what: str) -> None:
    """With epsilon 0 the same environment is evaluated, and its random player refused when it is asked for."""
    env = Fixed(spec) if spec.shape[0] == 1 else TwoRows(spec)
    with pytest.raises(ValueError, match=rf"need a spec to be drawn from uniformly: got epsilon=0\.05, and {what}"):
        Evaluator(lambda: env, episodes=spec.shape[0])
    evaluator = Evaluator(lambda: env, episodes=spec.shape[0], epsilon=0.0)
    with pytest.raises(ValueError, match=rf"got epsilon=1\.0, and {what}.*; evaluate with epsilon=0"):
        evaluator(always(0), epsilon=1.0)


class TwoRows(FixedLengths):
    def __init__(self, spec: TensorSpec) -> None:
        super().__init__([2, 2])
        self.action_spec = spec


def test_masks_of_bits_and_numbers_are_refused() -> None:
    env = Fixed(Bounded(-1.0, 1.0, shape=(1, 2)), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"'action' is BoundedContinuous and has a mask, 'action_mask'"):
        Evaluator(lambda: env, episodes=1)


def test_a_mask_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_key must name an entry .*: got 'legal', it has \['observation'\]"):
        Evaluator(lambda: Fixed(Categorical(2, shape=(1,))), episodes=1, action_mask_key="legal")


def test_a_mask_of_another_size_is_refused() -> None:
    env = Fixed(Categorical(3, shape=(1,)), MASK)
    with pytest.raises(ValueError, match=r"a mask of 'action' must have one entry an action, \[1, 3\]: got \[1, 4\]"):
        drawn_of(env, 1)


def test_a_mask_that_allows_nothing_is_refused_only_where_it_is_asked() -> None:
    env = Fixed(Categorical(4, shape=(1,)), torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"the mask of 'action' must allow an action .*: got none"):
        drawn_of(env, 1)
    actions = RandomActions(env)
    assert actions(env.reset(), torch.zeros(1, dtype=torch.bool), torch.Generator())["action"].shape == (1,)
