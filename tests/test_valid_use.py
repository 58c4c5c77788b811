"""Three hundred valid situations, put together at random: none gives a wrong number or an error from inside a library.

``N`` slots, ``T`` steps, ``A`` actions. Expected numbers come from plain loops over the networks' layers, and from
:mod:`torch.distributions`. The examples are always the same.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hook_parts import HARD, cartpole, fleet
from hook_parts import actor as cartpole_actor
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torch.distributions import Categorical as Distribution
from torch.distributions import kl_divergence
from torchrl.data import (
    Binary,
    Categorical,
    Composite,
    CompressedListStorage,
    LazyMemmapStorage,
    LazyStackStorage,
    LazyTensorStorage,
    ListStorage,
    OneHot,
    PrioritizedSampler,
    RandomSampler,
    SamplerWithoutReplacement,
    SliceSampler,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import EnvBase, TensorDictPrimer
from torchrl.modules import EGreedyModule, QValueModule
from torchrl.objectives import DQNLoss, SoftUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import (
    DistillationLoss,
    DualNetworkCollector,
    Evaluator,
    RealTimeDistillTrainer,
    SaveCheckpoints,
    StudentDQNLoss,
)
from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.checkpoints import newest_checkpoint
from torchrl_rtpd.runs.components import ReplayState


def examples(count: int) -> settings:
    """So many examples, the same each time."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


# Networks in one to three parts


class Adds(nn.Module):
    """A memory: the sum of all observations of a game."""

    def forward(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        total = memory + observation
        return total, total


def network(
    layers: nn.Sequential, nested: bool, choice: TensorDictModuleBase | None, memory: str | None
) -> TensorDictSequential:
    """Layers as parts of an actor, behind a memory if it has a name, in front of a choice."""
    first = "observation" if memory is None else "remembered"
    keys = [first, *(f"hidden{place}" for place in range(len(layers) - 1)), "action_value"]
    parts: list[TensorDictModuleBase] = [
        TensorDictModule(layer, [one], [two]) for layer, (one, two) in zip(layers, pairwise(keys), strict=True)
    ]
    if nested:
        parts = [TensorDictSequential(*parts)]
    if memory is not None:
        parts.insert(0, TensorDictModule(Adds(), ["observation", memory], [first, ("next", memory)]))
    return TensorDictSequential(*parts, *([] if choice is None else [choice]))


def layers_of(parts: int, features: int, outputs: int, seed: int) -> nn.Sequential:
    """Dense layers, one for each part, whose weights come from a seed."""
    sizes = [features, *[5] * (parts - 1), outputs]
    generator = torch.Generator().manual_seed(seed)
    linear = [nn.Linear(one, two) for one, two in pairwise(sizes)]
    for layer in linear:
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
        layer.bias.data = torch.randn(layer.bias.shape, generator=generator)
    return nn.Sequential(*linear)


# Losses on what a replay gives back


STORAGES = {
    "compressed": lambda: CompressedListStorage(32, compression_level=1),
    "list": lambda: ListStorage(32),
    "memmap": lambda: LazyMemmapStorage(32),
    "stack": lambda: LazyStackStorage(32),
    "tensor": lambda: LazyTensorStorage(32),
}
SAMPLERS = {
    "prioritised": lambda: PrioritizedSampler(32, alpha=0.7, beta=0.5),
    "random": RandomSampler,
    "slices": lambda: SliceSampler(num_slices=2, traj_key="game"),
    "without replacement": SamplerWithoutReplacement,
}
REPLAYS = [  # TorchRL's samplers of slices want a storage that is one tensordict
    (storage, sampler)
    for storage in sorted(STORAGES)
    for sampler in sorted(SAMPLERS)
    if sampler != "slices" or storage not in ("compressed", "list")
]
KINDS = {"categorical": [4], "one-hot": [4], "several one-hot": [3, 2], "several categorical": [2, 4]}


def allowed_at_random(sizes: list[int], count: int, generator: torch.Generator) -> Tensor:
    """Masks ``[count, A]`` that allow something in every choice."""
    parts = []
    for size in sizes:
        draws = torch.rand(count, size, generator=generator)
        parts.append((draws < 0.6) | (draws == draws.amin(-1, keepdim=True)))
    return torch.cat(parts, -1)


def transitions(kind: str, masked: bool, seed: int) -> TensorDict:
    """Sixteen transitions of games of four steps."""
    generator = torch.Generator().manual_seed(seed)
    sizes, ends = KINDS[kind], (torch.arange(16) % 4 == 3)[:, None]
    choices = [torch.randint(size, (16,), generator=generator) for size in sizes]
    action = torch.stack(choices, -1)
    if "one-hot" in kind:
        hot = [nn.functional.one_hot(choice, size) for choice, size in zip(choices, sizes, strict=True)]
        action = torch.cat(hot, -1)
    elif len(sizes) == 1:
        action = choices[0]
    flags = {"done": ends, "terminated": ends & (torch.rand(16, 1, generator=generator) < 0.5)}
    following = {"observation": torch.randn(16, 3, generator=generator), **flags}
    following["reward"] = torch.randn(16, 1, generator=generator)
    entries = {"observation": torch.randn(16, 3, generator=generator), "action": action}
    if masked:
        entries["action_mask"] = allowed_at_random(sizes, 16, generator)
        following["action_mask"] = allowed_at_random(sizes, 16, generator)
    return TensorDict({**entries, "game": torch.arange(16) // 4, "next": TensorDict(following, [16])}, [16])


def choice_of(kind: str) -> TensorDictModuleBase | None:
    match kind:
        case "categorical":
            return QValueModule(spec=Categorical(4))
        case "one-hot":
            return QValueModule(spec=OneHot(4))
        case "several one-hot":
            return QValueModule(action_space="mult_one_hot", var_nums=KINDS[kind])
        case _:
            return None  # the loss is told


def masked_parts(values: Tensor, mask: Tensor | None, sizes: list[int]) -> tuple[Tensor, ...]:
    """Values of each choice, minus infinity where it is not allowed."""
    return (values if mask is None else values.masked_fill(~mask, -torch.inf)).split(sizes, -1)


def chosen(values: Tensor, action: Tensor, sizes: list[int]) -> Tensor:
    """Sum of the values of an action's choices ``[B]``."""
    if action.shape == values.shape:
        return (values * action).sum(-1)
    index = action.reshape(len(values), -1) + torch.tensor([0, *np.cumsum(sizes)[:-1]])
    return values.gather(-1, index).sum(-1)


@torch.no_grad()
def expected_losses(teacher: nn.Module, student: nn.Module, batch: TensorDictBase, sizes: list[int]) -> dict[str, Any]:
    """Mean KL and mean squared TD error with a discount of 0.9 and the teacher's choice of the next action."""
    now, following = batch["observation"], batch["next", "observation"]
    pairs = [masked_parts(net(now), batch.get("action_mask", None), sizes) for net in (teacher, student)]
    kl = sum(kl_divergence(*(Distribution(logits=part) for part in pair)) for pair in zip(*pairs, strict=True))
    agree = [one.argmax(-1) == other.argmax(-1) for one, other in zip(*pairs, strict=True)]
    choosing = masked_parts(teacher(following), batch.get(("next", "action_mask"), None), sizes)
    best = torch.stack([part.argmax(-1) for part in choosing], -1)
    target = chosen(student(following), best, sizes) * 0.9 * ~batch["next", "terminated"][:, 0]
    error = chosen(student(now), batch["action"], sizes) - batch["next", "reward"][:, 0] - target
    return {
        "kl_to_teacher": kl.mean(),
        "agreement": torch.stack(agree).all(0).float().mean(),
        "loss_td": error.square().mean(),
    }


def drawn_before_and_after(storage: str, sampler: str, data: TensorDict, folder: Path, seed: int) -> list[TensorDict]:
    """A minibatch of a full replay, and the same of one that was given its state through a file."""
    full, fresh = (
        TensorDictReplayBuffer(storage=STORAGES[storage](), sampler=SAMPLERS[sampler](), batch_size=8) for _ in range(2)
    )
    full.extend(data)
    VerifiedCheckpoint(replay=ReplayState(full)).save(folder / "checkpoint")
    VerifiedCheckpoint(replay=ReplayState(fresh)).load(folder / "checkpoint")
    batches = []
    for buffer in (full, fresh):
        torch.manual_seed(seed)
        np.random.seed(seed)  # prioritised samplers draw from numpy's generator
        batches.append(buffer.sample())
    return batches


@examples(172)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    masked=st.booleans(),
    parts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    nested=st.booleans(),
    replay=st.sampled_from(REPLAYS),
    with_td=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_students_learn_the_right_numbers_from_a_replay_that_was_saved(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    masked: bool,
    parts: tuple[int, int],
    nested: bool,
    replay: tuple[str, str],
    with_td: bool,
    seed: int,
) -> None:
    """Specs, masks, parts and replays: a restored replay draws the same, and losses are those of a plain loop."""
    batches = drawn_before_and_after(*replay, transitions(kind, masked, seed), tmp_path_factory.mktemp("replay"), seed)
    assert set(batches[0].keys(True, True)) == set(batches[1].keys(True, True))
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0].keys(True, True))
    sizes = KINDS[kind]
    layers = [layers_of(count, 3, sum(sizes), seed + place) for place, count in enumerate(parts)]
    teacher, student = (network(part, nested, choice_of(kind), None) for part in layers)
    options = {"teacher_temperature": 1.0, "student_temperature": 1.0, "use_prioritized_weights": False}
    var_nums = sizes if kind == "several categorical" else None
    if with_td:
        loss: DistillationLoss = StudentDQNLoss(student, teacher, var_nums=var_nums, **options)
        loss.make_value_estimator(gamma=0.9)
        SoftUpdate(loss, tau=0.1)
    else:
        loss = DistillationLoss(student, teacher, var_nums=var_nums, **options)
    found = loss(batches[1])
    for name, value in expected_losses(*layers, batches[0], sizes).items():
        if name in found.keys():
            torch.testing.assert_close(found[name].detach(), value, rtol=1e-4, atol=1e-4, check_dtype=False)
    assert ("loss_td" in found.keys()) == with_td
    sum(value for key, value in found.items() if key.startswith("loss")).backward()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


# Playing with memories, masks and parts


class Lengths(EnvBase):
    """Games of given lengths; the reward is the number of the action, and each step forbids another one if masked."""

    def __init__(self, lengths: list[int], hot: bool, masked: bool) -> None:
        slots = len(lengths)
        super().__init__(batch_size=[slots])
        self.lengths, self.masked = torch.tensor(lengths)[:, None], masked
        entries: dict[str, Any] = {"observation": Unbounded((slots, 2))}
        if masked:
            entries["action_mask"] = Binary(shape=(slots, 3), dtype=torch.bool)
        self.observation_spec = Composite(entries, shape=[slots])
        self.action_spec = OneHot(3, shape=(slots, 3)) if hot else Categorical(3, shape=(slots,))
        self.reward_spec = Unbounded((slots, 1))
        self.count = torch.zeros(slots, 1, dtype=torch.long)

    def _set_seed(self, seed: int | None) -> None:
        pass

    def _seen(self) -> dict[str, Tensor]:
        slot = torch.arange(len(self.count))[:, None]
        seen = {"observation": torch.cat([(slot + self.count).float().sin(), (self.count * 1.7).cos()], -1)}
        if self.masked:
            seen["action_mask"] = torch.arange(3) != (slot + self.count) % 3
        return seen

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self.count = torch.zeros_like(self.count) if mask is None else torch.where(mask, 0, self.count)
        return TensorDict(self._seen(), self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"]
        action = action.float().argmax(-1) if action.ndim > 1 else action
        if self.masked:
            assert tensordict["action_mask"].gather(-1, action[:, None]).all()
        self.count = self.count + 1
        done = self.count >= self.lengths
        return TensorDict({**self._seen(), "reward": action[:, None].float(), "done": done}, self.batch_size)


@torch.no_grad()
def played_by_hand(layers: nn.Sequential, remembers: bool, observations: Tensor, masks: Tensor | None, starts: Tensor):
    """Values ``[T, A]`` and actions ``[T]`` of one slot, one step after the other."""
    values, total = [], torch.zeros(observations.shape[-1])
    for observation, begins in zip(observations, starts, strict=True):
        total = observation if begins or not remembers else total + observation
        values.append(layers(total))
    rows = torch.stack(values)
    return rows, (rows if masks is None else rows.masked_fill(~masks, -torch.inf)).argmax(-1)


def played(layers: nn.Sequential, nested: bool, hot: bool, masked: bool, memory: str | None) -> TensorDictSequential:
    spec = OneHot(3) if hot else Categorical(3)
    choice = QValueModule(spec=spec, action_mask_key="action_mask" if masked else None)
    return network(layers, nested, choice, memory)


@examples(112)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    hot=st.booleans(),
    masked=st.booleans(),
    parts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    nested=st.booleans(),
    memories=st.sampled_from([(None, None), ("h", None), (None, "h"), ("h", "h"), ("h", "g")]),
    acting=st.sampled_from(["teacher", "student", 0.5]),
    record=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_whoever_acts_acts_as_a_plain_loop_does_and_scores_as_much(
    lengths: list[int],
    hot: bool,
    masked: bool,
    parts: tuple[int, int],
    nested: bool,
    memories: tuple[str | None, str | None],
    acting: Any,
    record: bool,
    seed: int,
) -> None:
    """Specs, masks, parts, memories of one key or two, and mixtures of actors, over the borders of batches."""
    layers = [layers_of(count, 2, 3, seed + place) for place, count in enumerate(parts)]
    actors = [played(part, nested, hot, masked, memory) for part, memory in zip(layers, memories, strict=True)]
    keys = sorted({memory for memory in memories if memory is not None})

    def make() -> EnvBase:
        env = Lengths(lengths, hot, masked)
        primer = TensorDictPrimer({key: Unbounded((2,)) for key in keys}, expand_specs=True)
        return env.append_transform(primer) if keys else env

    slots, steps = len(lengths), 7
    collector = DualNetworkCollector(
        make(), *actors, acting=acting, record=record, frames_per_batch=slots * steps, total_frames=2 * slots * steps
    )
    data = torch.cat([batch.copy() for batch in collector], 1)
    collector.shutdown()
    actions = data["action"].float().argmax(-1) if hot else data["action"]
    acted_by = data.get("acted_by", torch.full((slots, 2 * steps), 2 if acting == "student" else 1))
    for slot in range(slots):
        starts = torch.cat([torch.tensor([True]), data["next", "done"][slot, :-1, 0]])
        masks = data["action_mask"][slot] if masked else None
        for number, (name, part) in enumerate(zip(("teacher", "student"), layers, strict=True)):
            remembers = memories[number] is not None
            values, wanted = played_by_hand(part, remembers, data["observation"][slot], masks, starts)
            rows = acted_by[slot] == number + 1
            assert torch.equal(actions[slot][rows], wanted[rows])
            if record:
                recorded = data[name, "action_value"][slot]
                shown = torch.ones_like(recorded, dtype=torch.bool) if masks is None else masks
                torch.testing.assert_close(recorded[shown], values[shown])
    evaluator = Evaluator(make, episodes=slots, epsilon=0.0)
    for part, actor, memory in zip(layers, actors, memories, strict=True):
        env = Lengths(lengths, hot, masked)
        wanted_scores = [_score_by_hand(env, slot, part, memory is not None) for slot in range(slots)]
        assert list(evaluator(actor).scores) == wanted_scores


def _score_by_hand(env: Lengths, slot: int, layers: nn.Sequential, remembers: bool) -> float:
    """Score of a slot's first game."""
    length = int(env.lengths[slot])
    seen = []
    for step in range(length):
        env.count = torch.full_like(env.count, step)
        seen.append(env._seen())
    masks = torch.stack([entries["action_mask"][slot] for entries in seen]) if env.masked else None
    observations = torch.stack([entries["observation"][slot] for entries in seen])
    _, actions = played_by_hand(layers, remembers, observations, masks, torch.arange(length) == 0)
    return float(actions.sum())


# Runs that go on with changes


def run(folder: Path, steps: int, *, slots: int, students: int, prioritised: bool, replay: bool) -> Any:
    """A stock trainer with students and checkpoints; a batch has 24 steps and two updates."""
    torch.manual_seed(0)
    teacher = cartpole_actor(seed=100)
    exploration = EGreedyModule(Categorical(2), annealing_num_steps=200)
    collector = DualNetworkCollector(
        cartpole(slots), teacher, exploration=exploration, frames_per_batch=24, total_frames=steps
    )
    loss = DQNLoss(teacher, action_space="categorical", delay_value=True)
    loss.make_value_estimator(gamma=0.9)
    sampler = {"sampler": PrioritizedSampler(100, alpha=0.6, beta=0.4)} if prioritised else {}
    trainer = DQNTrainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-3),
        logger=None,
        progress_bar=False,
        replay_buffer=TensorDictReplayBuffer(
            storage=LazyTensorStorage(100), batch_size=8, **sampler, priority_key="td_error"
        ),
        target_net_updater=HARD(loss),
        greedy_module=exploration,
    )
    hook = RealTimeDistillTrainer(fleet(students), optimizer=torch.optim.Adam, checks=[])
    hook.register(trainer)
    saver = SaveCheckpoints(folder, every_steps=1_000, replay=replay)
    saver.register(trainer)
    return trainer, hook, saver


@examples(16)
@given(
    slots=st.tuples(*[st.sampled_from([1, 2, 3])] * 2),
    more=st.integers(0, 3),
    students=st.integers(1, 3),
    prioritised=st.booleans(),
    replay=st.booleans(),
    threads=st.integers(0, 1),
)
def test_runs_go_on_with_other_lengths_environments_and_threads(
    tmp_path_factory: pytest.TempPathFactory,
    slots: tuple[int, int],
    more: int,
    students: int,
    prioritised: bool,
    replay: bool,
    threads: int,
) -> None:
    """What was learned is restored to the last bit; steps and updates are counted on; changes are said."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    options = {"students": students, "prioritised": prioritised, "replay": replay}
    trainer, hook, _ = run(folder, 48, slots=slots[0], **options)
    trainer.train()
    own = torch.get_num_threads()
    try:
        torch.set_num_threads(own + threads)
        resumed, other, saver = run(folder, 48 + 24 * more, slots=slots[1], **options)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            saver.restore(newest_checkpoint(folder))
        text = " ".join(str(warning.message) for warning in said)
        assert ("environments" in text) == (slots[0] != slots[1]) and ("threads" in text) == bool(threads)
        learners = [(one.loss_module, *two.students.values()) for one, two in ((trainer, hook), (resumed, other))]
        for one, two in zip(*learners, strict=True):
            states = one.state_dict(), two.state_dict()
            assert all(torch.equal(states[0][key], value) for key, value in states[1].items() if torch.is_tensor(value))
        assert (resumed.collected_frames, other.updates) == (48, hook.updates) and hook.updates == 4
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            resumed.train()
    finally:
        torch.set_num_threads(own)
    assert resumed.collected_frames == 48 + 24 * more
    assert other.updates == 4 + 2 * more
