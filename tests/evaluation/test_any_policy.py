"""The evaluator plays any policy on any spec: legal actions, known scores, its own random streams, memories."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from evaluation_parts import FixedLengths, always
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_parts import recurrent_actor, values_by_hand
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
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
from torchrl.envs import ActionMask, EnvBase, InitTracker, TensorDictPrimer, TransformedEnv
from torchrl.envs.utils import ExplorationType
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_rtpd.evaluation.evaluator import Evaluator

LENGTH = 3
SIZES = {"categorical": [4], "one_hot": [4], "multi_categorical": [3, 2], "multi_one_hot": [3, 2]}
KINDS = [*SIZES, "binary", "bounded", "integers"]


def spec_of(kind: str, shape: tuple[int, ...]) -> TensorSpec:
    match kind:
        case "categorical":
            return Categorical(4, shape=shape)
        case "one_hot":
            return OneHot(4, shape=(*shape, 4))
        case "multi_categorical":
            return MultiCategorical([3, 2], shape=(*shape, 2))
        case "multi_one_hot":
            return MultiOneHot([3, 2], shape=(*shape, 5))
        case "binary":
            return Binary(3, shape=(*shape, 3))
        case "bounded":
            return Bounded(-2.0, 1.0, shape=(*shape, 2))
        case _:
            return Bounded(-1, 2, shape=(*shape, 2), dtype=torch.int64)


def pressed(kind: str, action: Tensor) -> Tensor:
    """The chosen actions as ones, of several choices side by side."""
    if kind in ("one_hot", "multi_one_hot"):
        return action.bool()
    action = action[..., None] if kind == "categorical" else action
    parts = [nn.functional.one_hot(action[..., i], size) for i, size in enumerate(SIZES[kind])]
    return torch.cat(parts, -1).bool()


class SpecEnv(EnvBase):
    """Games of three steps at one point each, and a check that every action is legal."""

    def __init__(self, kind: str, slots: tuple[int, ...], agents: int = 0, masked: bool = False) -> None:
        super().__init__(batch_size=slots)
        self.kind, self.agents, self.masked = kind, agents, masked
        self.played: list[Tensor] = []
        group = (*slots, agents) if agents else slots
        entries = {"observation": Unbounded((*group, 2))}
        if masked:
            entries["action_mask"] = Binary(shape=(*group, sum(SIZES[kind])), dtype=torch.bool)
        self.group_shape = torch.Size(group)
        self.observation_spec = self._grouped(Composite(entries, shape=group))
        self.action_spec = self._grouped(Composite(action=spec_of(kind, group), shape=group))
        self.reward_spec = self._grouped(Composite(reward=Unbounded((*group, 1)), shape=group))
        self.done_spec = Composite(done=Binary(shape=(*slots, 1), dtype=torch.bool), shape=slots)
        self.generator = torch.Generator()
        self.count = torch.zeros(*slots, 1, dtype=torch.long)

    def _grouped(self, entries: Composite) -> Composite:
        return Composite(agents=entries, shape=self.batch_size) if self.agents else entries

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(0 if seed is None else seed)

    def _seen(self) -> TensorDict:
        entries = {"observation": torch.randn(*self.group_shape, 2, generator=self.generator)}
        if self.masked:
            parts = [self._mask(size) for size in SIZES[self.kind]]
            self.mask = entries["action_mask"] = torch.cat(parts, -1)
        entries = {"agents": TensorDict(entries, self.group_shape)} if self.agents else entries
        return TensorDict(entries, self.batch_size)

    def _mask(self, size: int) -> Tensor:
        draws = torch.rand(*self.group_shape, size, generator=self.generator)
        return draws >= draws.amin(-1, keepdim=True).maximum(torch.tensor(0.5)).minimum(draws.amax(-1, keepdim=True))

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self.count = torch.zeros_like(self.count) if mask is None else torch.where(mask, 0, self.count)
        return self._seen()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        key = ("agents", "action") if self.agents else "action"
        action = tensordict.get(key)
        spec = spec_of(self.kind, self.group_shape)
        assert spec.is_in(action.to(spec.dtype)), action
        if self.masked:
            assert not (pressed(self.kind, action) & ~self.mask).any(), (action, self.mask)
        self.played.append(action.clone())
        self.count = self.count + 1
        step = self._seen()
        reward = torch.ones(*self.group_shape, 1)
        step.set(("agents", "reward") if self.agents else "reward", reward)
        return step.set("done", self.count >= LENGTH)


@dataclass
class Chooser:
    """Legal actions from observations: the best of masked scores, in each choice."""

    kind: str
    masked: bool
    policy: str
    remembered: list[Tensor] = field(default_factory=list)

    def __call__(self, observation: Tensor, *others: Tensor) -> tuple[Tensor, ...] | Tensor:
        others = list(others)
        mask = others.pop(0) if self.masked else None
        extra = ()
        scores = observation.repeat_interleave(3, -1)[..., : sum(SIZES.get(self.kind, [3]))]
        if self.policy == "recurrent":
            self.remembered.append(others[0].clone())
            extra = (others[0] + 1,)
            scores = scores + others[0].reshape(others[0].shape + (1,) * (scores.ndim - others[0].ndim))
        if self.policy == "draws":
            scores = scores + torch.randn(scores.shape) + float(np.random.rand()) + random.random()
        action = self._action(scores if mask is None else scores.masked_fill(~mask, -torch.inf))
        return (action, *extra) if extra else action

    def _action(self, scores: Tensor) -> Tensor:
        if self.kind == "binary":
            return (scores > 0).to(torch.int8)
        if self.kind == "bounded":
            return scores[..., :2].tanh() * 1.5 - 0.5
        if self.kind == "integers":
            return scores[..., :2].round().clamp(-1, 2).long()
        chosen = [part.argmax(-1) for part in scores.split(SIZES[self.kind], -1)]
        if self.kind in ("one_hot", "multi_one_hot"):
            sizes = SIZES[self.kind]
            return torch.cat([nn.functional.one_hot(i, n) for i, n in zip(chosen, sizes, strict=True)], -1)
        return torch.stack(chosen, -1) if len(chosen) > 1 else chosen[0]


def policy_for(chooser: Chooser, agents: int) -> TensorDictModule:
    def at(key: str) -> str | tuple[str, str]:
        return ("agents", key) if agents else key

    in_keys = [at("observation")] + ([at("action_mask")] if chooser.masked else [])
    out_keys = [at("action")]
    if chooser.policy == "recurrent":
        in_keys, out_keys = [*in_keys, "count"], [*out_keys, ("next", "count")]
    return TensorDictModule(chooser, in_keys=in_keys, out_keys=out_keys)


def global_states() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@settings(max_examples=90, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    masked=st.booleans(),
    mask_in_spec=st.booleans(),
    agents=st.sampled_from([0, 3]),
    slots=st.sampled_from([(), (2,), (2, 2)]),
    policy=st.sampled_from(["plain", "recurrent", "draws"]),
    epsilon=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 1_000),
)
def test_any_policy_on_any_spec(
    kind: str,
    masked: bool,
    mask_in_spec: bool,
    agents: int,
    slots: tuple[int, ...],
    policy: str,
    epsilon: float,
    seed: int,
) -> None:
    """Actions are legal (the environment looks), games score three, one seed plays one game, memories begin at 0."""
    masked = masked and kind in SIZES
    chooser = Chooser(kind, masked, policy)
    primer = TensorDictPrimer(count=Unbounded(shape=()), expand_specs=True)

    def make() -> EnvBase:
        env = SpecEnv(kind, slots, agents, masked)
        if masked and mask_in_spec and kind in ("categorical", "one_hot") and not agents:
            env = env.append_transform(ActionMask())
        return env.append_transform(primer.clone()) if policy == "recurrent" else env

    games = 2 * int(np.prod(slots))
    evaluator = Evaluator(make, episodes=games, epsilon=epsilon, seed=seed)
    before = global_states()
    played = []
    for _ in range(2):
        scores = evaluator(policy_for(chooser, agents))
        assert scores.scores == (float(LENGTH),) * games
        base = evaluator.env
        while isinstance(base, TransformedEnv):
            base = base.base_env
        played.append(torch.stack(base.played))
        base.played.clear()
    assert torch.equal(*played)
    assert global_states() == before
    if policy == "recurrent" and epsilon < 1:
        counts = torch.stack(chooser.remembered).reshape(2, 2, LENGTH, -1)
        assert torch.equal(counts, torch.arange(3.0)[:, None].expand_as(counts))


# Memories


class PaysForMemory(EnvBase):
    """One point for each action that is the number of the step in its game, modulo 2, which nothing shows."""

    def __init__(self, lengths: tuple[int, ...] = (3, 3)) -> None:
        slots = len(lengths)
        super().__init__(batch_size=[slots])
        self.lengths = torch.tensor(lengths)[:, None]
        self.observation_spec = Composite(observation=Unbounded((slots, 1)), shape=[slots])
        self.action_spec = Categorical(2, shape=(slots,))
        self.reward_spec = Unbounded((slots, 1))
        self.count = torch.zeros(slots, 1, dtype=torch.long)

    def _set_seed(self, seed: int | None) -> None:
        pass

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self.count = torch.zeros_like(self.count) if mask is None else torch.where(mask, 0, self.count)
        return TensorDict({"observation": torch.zeros(len(self.count), 1)}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        reward = (tensordict["action"][:, None] == self.count % 2).float()
        self.count = self.count + 1
        done = self.count >= self.lengths
        seen = {"observation": torch.zeros(len(done), 1), "reward": reward, "done": done, "terminated": done}
        return TensorDict(seen, self.batch_size)


def counter() -> TensorDictModule:
    return TensorDictModule(
        lambda count: ((count[..., 0] % 2).long(), count + 1), in_keys=["count"], out_keys=["action", ("next", "count")]
    )


def test_a_policy_with_a_memory_scores_what_a_rollout_does() -> None:
    """Three points a game in TorchRL's rollout and here, game after game, of unequal lengths."""

    def make(lengths: tuple[int, ...] = (3, 5)) -> EnvBase:
        return TransformedEnv(PaysForMemory(lengths), TensorDictPrimer(count=Unbounded((1,)), expand_specs=True))

    rollout = make((3, 3)).rollout(3, counter(), break_when_any_done=False)
    assert rollout["next", "reward"].sum((1, 2)).tolist() == [3.0, 3.0]
    scores = Evaluator(make, episodes=6, epsilon=0.0)(counter())
    assert scores.scores == (3.0, 3.0, 3.0, 5.0, 5.0, 5.0)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("primed", [False, True])
def test_torchrls_recurrent_modules_play_as_a_loop_by_hand(kind: str, primed: bool) -> None:
    """With and without what TorchRL asks of an environment (InitTracker, primer), bit for bit."""
    actor = recurrent_actor(kind, 4, seed=5)

    def make() -> EnvBase:
        env = Tape()
        return TransformedEnv(env, InitTracker()).append_transform(actor[0].make_tensordict_primer()) if primed else env

    noted: list[Tensor] = []
    actor[1].register_forward_hook(lambda module, args, out: noted.append(out["action_value"].clone()))
    evaluator = Evaluator(make, episodes=6, epsilon=0.0)
    evaluator(actor)
    values = torch.stack(noted, 1)
    tape = Tape().rollout(values.shape[1], actor_of(values), break_when_any_done=False)
    noted.clear()
    assert torch.equal(values, values_by_hand(actor, tape))
    assert values.shape[1] == 15


def actor_of(values: Tensor) -> TensorDictModule:
    """The actions of these values, one step after the other."""
    actions = iter(values.argmax(-1).T)
    return TensorDictModule(lambda observation: next(actions), in_keys=["observation"], out_keys=["action"])


class Tape(EnvBase):
    """Slots with games of 3 and 5 steps; what is seen depends on game, step and the last action."""

    def __init__(self) -> None:
        super().__init__(batch_size=[2])
        self.observation_spec = Composite(observation=Unbounded((2, 1)), shape=[2])
        self.action_spec = Categorical(2, shape=(2,))
        self.reward_spec = Unbounded((2, 1))
        self.count = self.game = torch.zeros(2, 1, dtype=torch.long)
        self.action = torch.zeros(2, 1)

    def _set_seed(self, seed: int | None) -> None:
        self.game = torch.zeros(2, 1, dtype=torch.long)

    def _seen(self) -> Tensor:
        return (self.game + 0.1 * self.count + 0.5 * self.action).float()

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones(2, 1, dtype=torch.bool) if mask is None else mask
        self.game, self.count = self.game + mask, torch.where(mask, 0, self.count)
        self.action = torch.where(mask, 0.0, self.action)
        return TensorDict({"observation": self._seen()}, [2])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.count, self.action = self.count + 1, tensordict["action"][:, None].float()
        done = self.count >= torch.tensor([[3], [5]])
        return TensorDict(
            {"observation": self._seen(), "reward": torch.ones(2, 1), "done": done, "terminated": done}, [2]
        )


def test_kept_observations_of_a_recurrent_policy_hold_what_it_remembered() -> None:
    actor = recurrent_actor("gru", 4)
    kept = Evaluator(Tape, episodes=2, epsilon=0.0)(actor, keep_observations=4).observations
    assert set(kept.keys()) == {"observation", "recurrent_state", "is_init"}
    assert kept["is_init"].any()
    assert not kept["recurrent_state"][kept["is_init"][:, 0]].any()


# Stochastic and continuous policies


def gaussian() -> ProbabilisticActor:
    torch.manual_seed(0)
    network = TensorDictSequential(
        TensorDictModule(nn.Linear(2, 4), in_keys=["observation"], out_keys=["param"]),
        TensorDictModule(NormalParamExtractor(), in_keys=["param"], out_keys=["loc", "scale"]),
    )
    return ProbabilisticActor(
        network,
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -2.0, "high": 1.0},
        spec=Bounded(-2.0, 1.0, shape=(2,)),
    )


@pytest.mark.parametrize("exploration_type", [ExplorationType.DETERMINISTIC, ExplorationType.RANDOM])
def test_stochastic_policies_play_their_mode_or_sample_repeatably(exploration_type: ExplorationType) -> None:
    policy, before = gaussian(), global_states()
    evaluator = Evaluator(lambda: SpecEnv("bounded", (2,)), episodes=2, epsilon=0.0, exploration_type=exploration_type)
    seen: list[TensorDictBase] = []
    policy.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    for _ in range(2):
        evaluator(policy)
    first, second = torch.stack(seen[:3]), torch.stack(seen[3:])
    assert torch.equal(first["action"], second["action"])
    mode = 1.5 * first["loc"].tanh() - 0.5
    assert torch.allclose(first["action"], mode, atol=1e-5) == (exploration_type is ExplorationType.DETERMINISTIC)
    assert global_states() == before


# Several agents


class Team(SpecEnv):
    """Agents get 0, 1 and 2 points a step."""

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        step = super()._step(tensordict)
        return step.set(("agents", "reward"), torch.arange(3.0)[:, None].expand(*self.group_shape, 1).clone())


def test_the_score_of_a_slot_is_the_mean_over_its_agents() -> None:
    """(0 + 1 + 2) / 3 points a step."""
    policy = policy_for(Chooser("categorical", False, "plain"), agents=3)
    assert Evaluator(lambda: Team("categorical", (2,), 3), episodes=2)(policy).scores == (3.0, 3.0)


def test_agents_without_a_common_end_are_refused() -> None:
    env = SpecEnv("categorical", (2,), 3)
    env.done_spec = Composite(
        agents=Composite(done=Binary(shape=(2, 3, 1), dtype=torch.bool), shape=(2, 3)), shape=(2,)
    )
    with pytest.raises(ValueError, match=r"must end for all agents of a slot at once: got the done keys .*agents"):
        Evaluator(lambda: env, episodes=2)


# Policies that do not fit


def test_a_policy_that_is_no_tensordict_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a tensordict module: got Linear; wrap .* that writes \['action'\]"):
        Evaluator(lambda: FixedLengths([2]), episodes=1)(nn.Linear(2, 2))


def test_a_policy_that_reads_what_the_environment_lacks_is_refused() -> None:
    policy = TensorDictModule(nn.Linear(2, 2), in_keys=["pixels"], out_keys=["action"])
    with pytest.raises(KeyError, match=r"the policy reads \['pixels'\], which the environment lacks: it has"):
        Evaluator(lambda: FixedLengths([2]), episodes=1)(policy)


def test_a_policy_that_writes_no_action_is_refused() -> None:
    policy = TensorDictModule(nn.Linear(2, 2), in_keys=["observation"], out_keys=["move"])
    with pytest.raises(KeyError, match=r"must write the environment's action 'action': got \['move', 'observation'\]"):
        Evaluator(lambda: FixedLengths([2]), episodes=1)(policy)


def test_a_policy_whose_actions_have_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in the shape of the environment's spec, \[2\]: got \[2, 2\]; build it from"):
        Evaluator(lambda: FixedLengths([2, 2]), episodes=2)(always(0, one_hot=True))
