"""Replay that keeps each frame once: what is sampled equals what the environment showed, and wrong writes are refused.

The oracle for everything but n-step sums is TorchRL's own storage of whole stacks under the same writer, so that an
index means the same transition in both. Synthetic streams have frames of 2 x 3 bytes, each with a number of its own,
and a "step" and a "slot" entry that identify a transition wherever it is sampled.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.collectors import Collector
from torchrl.data import (
    LazyTensorStorage,
    PrioritizedSampler,
    RandomSampler,
    ReplayBuffer,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
)
from torchrl.trainers import ReplayBufferTrainer

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.replay.buffer import make_replay_buffer
from torchrl_rtpd.replay.storage import FrameStackStorage

quick = settings(max_examples=25, deadline=None)


class Stream:
    """Games side by side, made up step by step.

    Every frame shown is a new one of 2 x 3 bytes, never zero; a game begins with ``frame_stack - 1`` zero frames.
    ``ends`` holds the (step, slot) pairs after which a game is over, ``deaths`` those at which only a life is lost.
    With ``middle`` the first stacks are full, as of games that began before.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        frame_stack: int = 4,
        ends: Sequence[tuple[int, int]] = (),
        deaths: Sequence[tuple[int, int]] = (),
        middle: bool = False,
    ) -> None:
        self.num_envs, self.frame_stack = num_envs, frame_stack
        self.ends, self.deaths = set(ends), set(deaths)
        self.frame_numbers = itertools.count(1)
        self.step = 0
        self.stacks = [self.first_stack(full=middle) for _ in range(num_envs)]

    def new_frame(self) -> torch.Tensor:
        number = next(self.frame_numbers)
        return torch.tensor([[number % 251 + 1, number // 251 + 1, 7], [1, 2, 3]], dtype=torch.uint8)

    def first_stack(self, *, full: bool = False) -> list[torch.Tensor]:
        zero = torch.zeros(2, 3, dtype=torch.uint8)
        return [self.new_frame() if full else zero for _ in range(self.frame_stack - 1)] + [self.new_frame()]

    def restart(self) -> None:
        """Reset all games without an end."""
        self.stacks = [self.first_stack() for _ in range(self.num_envs)]

    def transition(self, slot: int) -> TensorDict:
        here = (self.step, slot)
        before = self.stacks[slot]
        after = [*before[1:], self.new_frame()]
        ended = here in self.ends
        self.stacks[slot] = self.first_stack() if ended else after
        return TensorDict(
            {
                "pixels": torch.stack(before),
                "action": torch.tensor(self.step % 3),
                "step": torch.tensor(self.step),
                "slot": torch.tensor(slot),
                "next": {
                    "pixels": torch.stack(after),
                    "reward": torch.tensor([float(2**slot + self.step % 5)]),
                    "done": torch.tensor([ended]),
                    "truncated": torch.tensor([ended and self.step % 2 == 0]),
                    "terminated": torch.tensor([ended and self.step % 2 == 1]),
                    "end_of_life": torch.tensor([(ended and self.step % 2 == 1) or here in self.deaths]),
                },
            }
        )

    def play(self, steps: int) -> TensorDict:
        """The next transitions ``[N, steps]``."""
        rows = []
        for _ in range(steps):
            rows.append(torch.stack([self.transition(slot) for slot in range(self.num_envs)]))
            self.step += 1
        return torch.stack(rows, 1)


def buffer_of(storage: FrameStackStorage | LazyTensorStorage, batch_size: int = 8) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(storage=storage, batch_size=batch_size)


def naive(max_size: int) -> TensorDictReplayBuffer:
    """TorchRL's own buffer, which keeps both stacks of each transition."""
    return buffer_of(LazyTensorStorage(max_size))


def filled(
    stream: Stream, max_size: int, writes: int, *, steps: int = 1, **options: object
) -> tuple[TensorDictReplayBuffer, TensorDictBase]:
    """A buffer after these writes, and all that was written, ``[N, writes * steps]``."""
    storage = FrameStackStorage(
        max_size, num_envs=stream.num_envs, steps_per_write=steps, frame_stack=stream.frame_stack, **options
    )
    buffer = buffer_of(storage)
    batches = [stream.play(steps) for _ in range(writes)]
    for batch in batches:
        buffer.extend(batch.reshape(-1))
    return buffer, torch.cat(batches, 1)


def assert_same(first: TensorDictBase, second: TensorDictBase, label: object = "") -> None:
    """Equal keys, types and values; an "index" that a buffer added is passed over."""
    first, second = first.exclude("index"), second.exclude("index")
    assert set(first.keys(True, True)) == set(second.keys(True, True))
    assert first.batch_size == second.batch_size
    for key, value in first.items(True, True):
        assert value.dtype == second[key].dtype, key
        assert torch.equal(value, second[key]), f"{label} {key}"


def atari_rollout(game: str, num_envs: int, steps: int, *, seed: int = 0, **options: object) -> TensorDictBase:
    """Random play ``[N, steps]``."""
    env = AtariVecEnv(game, num_envs, seed=seed, **options)
    actions = iter(
        torch.randint(env.num_actions, (steps, num_envs), generator=torch.Generator().manual_seed(seed)).unbind(0)
    )
    rollout = env.rollout(steps, lambda tensordict: tensordict.set("action", next(actions)), break_when_any_done=False)
    env.close()
    return rollout


# Stacks


@pytest.mark.parametrize(
    ("game", "num_envs", "steps", "options", "per_write", "max_size", "ends"),
    [
        ("breakout", 3, 280, {}, 1, 30, 4),
        ("breakout", 2, 200, {"max_frames": 642}, 4, 48, 2),
        ("pong", 2, 90, {"max_frames": 52}, 3, 24, 12),
        ("seaquest", 4, 60, {"max_frames": 10, "frame_stack": 3}, 5, 40, 80),
        ("pong", 1, 40, {"max_frames": 4}, 2, 6, 40),
    ],
)
def test_every_stored_transition_equals_what_the_environment_showed(
    game: str, num_envs: int, steps: int, options: dict, per_write: int, max_size: int, ends: int
) -> None:
    """After every write, over many turns of the ring and over lost and cut games in each slot's own time."""
    rollout = atari_rollout(game, num_envs, steps, noop_max=0, **options)
    assert rollout["next", "done"].sum().item() == ends
    frame_stack = options.get("frame_stack", 4)
    storage = FrameStackStorage(max_size, num_envs=num_envs, steps_per_write=per_write, frame_stack=frame_stack)
    buffer, whole = buffer_of(storage), naive(max_size)
    for batch in rollout.split(per_write, 1):
        buffer.extend(batch.reshape(-1))
        whole.extend(batch.reshape(-1))
        assert len(buffer) == len(whole)
        assert_same(buffer[:], whole[:], f"after step {len(buffer)}")


@st.composite
def streams(draw: st.DrawFn) -> dict:
    """Sizes of a storage, and where games end, lives are lost and the stream is cut."""
    num_envs, steps, writes = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 12))
    pairs = st.tuples(st.integers(0, writes * steps - 1), st.integers(0, num_envs - 1))
    return {
        "num_envs": num_envs,
        "steps": steps,
        "writes": writes,
        "blocks": draw(st.integers(1, 4)),
        "frame_stack": draw(st.integers(1, 5)),
        "n_step": draw(st.integers(1, 4)),
        "middle": draw(st.booleans()),
        "ends": draw(st.lists(pairs, max_size=12)),
        "deaths": draw(st.lists(pairs, max_size=6)),
        "cuts": draw(st.sets(st.integers(0, writes - 1), max_size=2)),
    }


def run(sizes: dict, n_step: int) -> Iterator[tuple[TensorDictReplayBuffer, TensorDictReplayBuffer, Stream, set[int]]]:
    """After each write: our buffer, the naive one, the stream, and the steps after which it was cut."""
    names = ("num_envs", "frame_stack", "ends", "deaths", "middle")
    stream = Stream(**{name: sizes[name] for name in names})
    max_size = sizes["num_envs"] * sizes["steps"] * sizes["blocks"]
    storage = FrameStackStorage(
        max_size,
        num_envs=sizes["num_envs"],
        steps_per_write=sizes["steps"],
        frame_stack=sizes["frame_stack"],
        n_step=n_step,
        gamma=0.5,
    )
    buffer, whole = buffer_of(storage), naive(max_size)
    cut_after: set[int] = set()
    for write in range(sizes["writes"]):
        if write in sizes["cuts"]:
            storage.cut()
            stream.restart()
            cut_after.add(stream.step - 1)
        batch = stream.play(sizes["steps"]).reshape(-1)
        buffer.extend(batch)
        whole.extend(batch)
        yield buffer, whole, stream, cut_after


@quick
@given(streams())
def test_whatever_the_sizes_and_ends_stacks_are_rebuilt(sizes: dict) -> None:
    for buffer, whole, _, _ in run(sizes, n_step=1):
        assert_same(buffer[:], whole[:])


@quick
@given(streams())
def test_an_index_is_the_place_of_a_transition_in_its_write(sizes: dict) -> None:
    """Index ``i`` lies in block ``i // (N * T)``, written last by the newest write that fits, slot by slot."""
    steps, block = sizes["steps"], sizes["num_envs"] * sizes["steps"]
    for write, (buffer, _, _, _) in enumerate(run(sizes, n_step=1)):
        found = buffer[:]
        for index, (step, slot) in enumerate(zip(found["step"].tolist(), found["slot"].tolist(), strict=True)):
            last = max(w for w in range(write + 1) if w % sizes["blocks"] == index // block)
            assert (step, slot) == (last * steps + index % steps, index % block // steps)


def test_sampled_stacks_belong_to_nobody_else() -> None:
    """Writing into a sample changes neither the storage nor the sample's other stack."""
    buffer, _ = filled(Stream(2, ends=[(2, 0)]), 12, 4)
    before = buffer[:]
    sample = buffer[:]
    sample["pixels"].zero_()
    assert torch.equal(sample["next", "pixels"], before["next", "pixels"])
    for value in sample.values(True, True):
        value.zero_()
    assert_same(buffer[:], before)


def test_stored_frames_belong_to_nobody_else() -> None:
    """Writing into a batch after it was stored changes nothing."""
    stream = Stream(2)
    buffer, _ = filled(stream, 12, 1)
    batch = stream.play(1).reshape(-1)
    kept = batch.clone()
    buffer.extend(batch)
    for value in batch.values(True, True):
        value.zero_()
    assert_same(buffer[[2, 3]], kept)


def test_pixels_may_have_another_and_nested_name() -> None:
    stream = Stream(2, ends=[(1, 1)])
    buffer = buffer_of(FrameStackStorage(8, num_envs=2, steps_per_write=2, pixels_key=("camera", "left")))
    whole = naive(8)
    for _ in range(3):
        batch = stream.play(2).rename_key_("pixels", ("camera", "left"))
        batch = batch.rename_key_(("next", "pixels"), ("next", "camera", "left")).reshape(-1)
        buffer.extend(batch)
        whole.extend(batch)
    assert_same(buffer[:], whole[:])


def test_games_without_end_of_life_are_stored_as_well() -> None:
    stream = Stream(2, ends=[(1, 1)])
    buffer, whole = buffer_of(FrameStackStorage(8, num_envs=2, n_step=2)), naive(8)
    for _ in range(3):
        batch = stream.play(1).exclude(("next", "end_of_life")).reshape(-1)
        buffer.extend(batch)
        whole.extend(batch)
    assert_same(buffer[:].select("pixels", "action"), whole[:].select("pixels", "action"))


# N-step sums


def n_step_oracle(
    truth: TensorDictBase, step: int, slot: int, newest: int, n_step: int, gamma: float, cut_after: set[int]
) -> tuple[float, int]:
    """The discounted sum from this step on and its length, one step after the other."""
    total, length = 0.0, 0
    while True:
        after = truth[slot, step + length]["next"]
        total += gamma**length * after["reward"].item()
        length += 1
        stops = after["done"].item() or after["end_of_life"].item() or step + length - 1 in cut_after
        if stops or length == n_step or step + length > newest:
            return total, length


@quick
@given(streams())
def test_n_step_sums_equal_a_slow_loop(sizes: dict) -> None:
    """They stop at a game's end, a lost life, a cut and the newest step; the other next entries are the last step's."""
    seen: list[TensorDictBase] = []
    n_step = sizes["n_step"]
    for buffer, whole, stream, cut_after in run(sizes, n_step=n_step):
        newest_write = whole[:]
        newest_write = newest_write[newest_write["step"] >= stream.step - sizes["steps"]]
        seen.append(newest_write[newest_write["slot"].sort(stable=True).indices].reshape(sizes["num_envs"], -1))
        truth = torch.cat(seen, 1)
        found = buffer[:]
        assert torch.equal(found["pixels"], whole[:]["pixels"])
        assert torch.equal(found["step"], whole[:]["step"])
        if n_step == 1:
            assert "steps_to_next_obs" not in found.keys()
            continue
        for item in found:
            step, slot = item["step"].item(), item["slot"].item()
            total, length = n_step_oracle(truth, step, slot, stream.step - 1, n_step, 0.5, cut_after)
            assert item["steps_to_next_obs"].tolist() == [length]
            assert item["steps_to_next_obs"].dtype == torch.int64
            last = truth[slot, step + length - 1]["next"].clone()
            last["reward"] = torch.tensor([total])
            assert_same(item["next"], last)


def test_n_step_literals() -> None:
    """Rewards 1, 2, 3, 4, 5, 1 with gamma 0.5, three steps, a life lost at step 1, the game over at step 3."""
    buffer, _ = filled(Stream(1, ends=[(3, 0)], deaths=[(1, 0)]), 8, 6, n_step=3, gamma=0.5)
    found = buffer[:]
    assert found["next", "reward"].flatten().tolist() == [1 + 1, 2, 3 + 2, 4, 5 + 0.5, 1]
    assert found["steps_to_next_obs"].flatten().tolist() == [2, 1, 2, 1, 2, 1]
    assert found["next", "done"].flatten().tolist() == [False, False, True, True, False, False]
    assert found["next", "end_of_life"].flatten().tolist() == [True, True, True, True, False, False]


def test_sums_at_the_newest_step_grow_with_the_next_write() -> None:
    """Reward 2 alone, then 2 + 0.9 * 3."""
    stream = Stream(1)
    buffer, _ = filled(stream, 8, 2, n_step=2, gamma=0.9)
    assert buffer[1]["next", "reward"].item() == 2
    buffer.extend(stream.play(1).reshape(-1))
    assert buffer[1]["next", "reward"].item() == pytest.approx(2 + 0.9 * 3)


def test_n_step_sums_need_rewards() -> None:
    storage = FrameStackStorage(4, num_envs=2, n_step=2)
    with pytest.raises(
        ValueError, match=r"n-step sums need \('next', 'reward'\): got .*action.*; store it or set n_step=1"
    ):
        storage.set(range(2), Stream(2).play(1).reshape(-1).exclude(("next", "reward")))


# Indices


def test_length_grows_to_the_capacity_and_stays() -> None:
    stream = Stream(2)
    buffer = buffer_of(FrameStackStorage(12, num_envs=2, steps_per_write=2))
    lengths = [len(buffer)]
    for _ in range(5):
        buffer.extend(stream.play(2).reshape(-1))
        lengths.append(len(buffer))
    assert lengths == [0, 4, 8, 12, 12, 12]


def test_all_kinds_of_indices_select_the_same_transitions() -> None:
    buffer, _ = filled(Stream(2, ends=[(1, 0)]), 12, 4)
    whole = buffer[:]
    assert whole.batch_size == (8,)
    mask = torch.tensor([False, True, False, False, True, True, False, False])
    for index, numbers in [
        (slice(2, 5), [2, 3, 4]),
        (slice(None, None, -3), [7, 4, 1]),
        (slice(-2, None), [6, 7]),
        ([4, 1, 1], [4, 1, 1]),
        (range(3), [0, 1, 2]),
        (torch.tensor([7, 0]), [7, 0]),
        (mask, [1, 4, 5]),
    ]:
        assert_same(buffer.storage[index], whole[torch.tensor(numbers)], index)
    one = buffer.storage[3]
    assert one.batch_size == ()
    assert_same(one, whole[3])
    assert_same(buffer.storage[torch.tensor(3)], whole[3])
    assert_same(buffer.storage[torch.tensor([[0, 5], [6, 2]])], whole[torch.tensor([0, 5, 6, 2])].reshape(2, 2))
    assert buffer.storage[[]].batch_size == (0,)


def test_a_storage_contains_what_was_written() -> None:
    buffer, _ = filled(Stream(2), 12, 2)
    storage = buffer.storage
    assert [index in storage for index in (-1, 0, 3, 4, 11)] == [False, True, True, False, False]
    assert storage.contains(torch.tensor([0, 3, 4])).tolist() == [True, True, False]


@pytest.mark.parametrize("index", [4, -1, [0, 4], [-5, 3], torch.tensor([11])])
def test_an_index_that_was_not_written_is_an_error(index: int | list | torch.Tensor) -> None:
    buffer, _ = filled(Stream(2), 12, 2)
    wrong = [value for value in torch.as_tensor(index).flatten().tolist() if not 0 <= value < 4]
    with pytest.raises(RuntimeError, match=rf"index {wrong[0]} was not written yet: 4 transitions are stored"):
        buffer.storage.get(index)


def test_a_storage_says_what_it_is() -> None:
    """Alone and within a buffer, whose text holds its storage's."""
    buffer, _ = filled(Stream(2), 12, 2, n_step=3)
    text = "FrameStackStorage(max_size=12, num_envs=2, steps_per_write=1, frame_stack=4, n_step=3, device=cpu, len=4)"
    assert repr(buffer.storage) == text
    assert text in repr(buffer)
    assert buffer.storage.shape == (4,)


def test_an_empty_storage_has_nothing_to_give() -> None:
    storage = FrameStackStorage(12, num_envs=2)
    assert len(storage) == 0
    with pytest.raises(RuntimeError, match="index 0 was not written yet: 0 transitions are stored"):
        storage.get(0)
    with pytest.raises(RuntimeError, match="Cannot sample from an empty storage"):
        buffer_of(storage).sample()


def test_emptying_a_buffer_starts_it_anew() -> None:
    """Also with frames of another size."""
    buffer, _ = filled(Stream(2, ends=[(0, 0), (3, 1)]), 8, 5)
    buffer.empty()
    assert len(buffer) == 0
    assert buffer.storage.bytes_per_transition == 0
    stream, whole = Stream(2, middle=True), naive(8)
    for _ in range(5):
        batch = stream.play(1).reshape(-1)
        for key in ("pixels", ("next", "pixels")):
            batch[key] = batch[key].repeat(1, 1, 2, 2)
        buffer.extend(batch)
        whole.extend(batch)
    assert_same(buffer[:], whole[:])


class SeenOperations(TorchDispatchMode):
    """Names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n_step", [1, 3])
def test_reading_asks_the_host_for_nothing_but_the_bounds(n_step: int) -> None:
    """No shape depends on data, so on a CUDA device, where that check is left out, nothing waits."""
    buffer, _ = filled(Stream(2, ends=[(1, 0), (2, 1)]), 12, 8, n_step=n_step)
    index = torch.tensor([0, 5, 7, 2])
    with SeenOperations() as seen:
        buffer.storage.get(index)
    assert seen.names.count("_local_scalar_dense") == 2
    assert not {"nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero"} & set(seen.names)


# Writing in order


def wrong_writes() -> dict[str, tuple]:
    """Name -> what is written instead of the third batch of two slots and three steps, and the error's text."""
    continuity = r"stacks must continue those of the step before.*slot {}, step {} of this write; flatten \[N, T\]"
    order = r"in order, 2 slots x 3 steps = 6 transitions at a time: got batch size {} at index {}; call buffer\.extend"
    shuffle = torch.tensor([0, 1, 2, 4, 3, 5])

    def without(*keys: object) -> object:
        return lambda batch: batch.exclude(*keys).reshape(-1)

    def changed(key: object, change: object) -> object:
        return lambda batch: batch.reshape(-1).clone().set(key, change(batch.reshape(-1)[key]))

    pixels, next_pixels = "pixels", ("next", "pixels")
    return {
        "steps before slots": (lambda batch: batch.transpose(0, 1).reshape(-1), continuity.format(1, 0)),
        "shuffled": (lambda batch: batch.reshape(-1)[shuffle], continuity.format(1, 0)),
        "slots swapped": (lambda batch: batch.flip(0).reshape(-1), continuity.format(0, 0)),
        "one frame changed": (
            changed(pixels, lambda p: p.clone().index_fill_(0, torch.tensor(4), 9)),
            continuity.format(1, 1),
        ),
        "stacks shifted": (changed(next_pixels, lambda p: p.roll(1, 1)), continuity.format(0, 0)),
        "end not told": (changed(("next", "done"), torch.zeros_like), continuity.format(0, 2)),
        "end made up": (changed(("next", "done"), torch.ones_like), continuity.format(0, 1)),
        "not flattened": (lambda batch: batch, order.format(r"\[2, 3\]", 0)),
        "too small": (lambda batch: batch[:, :2].reshape(-1), order.format(r"\[4\]", 0)),
        "too large": (lambda batch: torch.cat([batch, batch], 1).reshape(-1), order.format(r"\[12\]", 0)),
        "without pixels": (
            without(pixels),
            r"'pixels' must be torch\.uint8 \[6, 4, 2, 3\]: got None; store the frames",
        ),
        "without next pixels": (without(next_pixels), r"\('next', 'pixels'\) must be torch\.uint8 .*: got None"),
        "without done": (without(("next", "done")), r"\('next', 'done'\) must be torch\.bool \[6, 1\]: got None"),
        "done as a number": (
            changed(("next", "done"), torch.Tensor.float),
            r"got torch\.float32 \[6, 1\]; store it as",
        ),
        "float frames": (
            changed(pixels, torch.Tensor.float),
            r"'pixels' must .* got torch\.float32 \[6, 4, 2, 3\]; store",
        ),
        "three frames": (changed(pixels, lambda p: p[:, 1:]), r"'pixels' must .* got torch\.uint8 \[6, 3, 2, 3\]"),
        "larger frames": (changed(next_pixels, lambda p: p.repeat(1, 1, 2, 1)), r"got torch\.uint8 \[6, 4, 4, 3\]"),
        "single frames": (
            changed(pixels, lambda p: p[:, -1]),
            r"got torch\.uint8 \[6, 2, 3\]; store the frames .* stacked",
        ),
        "without an entry": (
            without("action"),
            "entries of the first one: got more, fewer or others at action; give all",
        ),
        "with a new entry": (
            lambda batch: batch.reshape(-1).set("new", torch.zeros(6)),
            "fewer or others at new; give",
        ),
        "another type": (changed("action", torch.Tensor.float), "got more, fewer or others at action; give all"),
        "another shape": (
            changed(("next", "reward"), lambda r: r.expand(6, 2)),
            r"others at \('next', 'reward'\); give",
        ),
    }


@pytest.mark.parametrize("prioritized", [False, True], ids=["uniform", "prioritized"])
@pytest.mark.parametrize("name", wrong_writes())
def test_a_wrong_write_is_an_error_and_leaves_what_is_stored(name: str, prioritized: bool) -> None:
    """The storage is full, so the write would replace its oldest part; it can still be read, sampled and written."""
    write, text = wrong_writes()[name]
    stream = Stream(2, ends=[(3, 0), (7, 0), (7, 1)])
    storage = FrameStackStorage(12, num_envs=2, steps_per_write=3)
    buffer = make_replay_buffer(storage, batch_size=4, prioritized=prioritized)
    for _ in range(2):
        buffer.extend(stream.play(3).reshape(-1))
    before, length, size = buffer[:], len(buffer), storage.bytes_per_transition
    batch = stream.play(3)
    with pytest.raises(ValueError, match=text):
        buffer.extend(write(batch))
    assert_same(buffer[:], before)
    assert (len(buffer), storage.bytes_per_transition) == (length, size)
    assert buffer.sample()["step"].max() < 6
    # The storage itself still takes the right batch, at the place where it stopped.
    storage.set(range(6), batch.reshape(-1))
    assert_same(storage[:6], batch.reshape(-1))


def test_a_batch_left_out_or_written_twice_is_an_error() -> None:
    stream = Stream(2)
    buffer, batch = filled(stream, 8, 1)
    with pytest.raises(ValueError, match=r"slot 0, step 0 of this write"):
        buffer.extend(batch.reshape(-1))
    buffer, _ = filled(stream, 8, 1)
    stream.play(1)
    with pytest.raises(ValueError, match=r"slot 0, step 0 of this write"):
        buffer.extend(stream.play(1).reshape(-1))


def test_the_first_write_is_checked_as_well() -> None:
    """And leaves an empty storage empty."""
    storage = FrameStackStorage(12, num_envs=2, steps_per_write=3)
    with pytest.raises(ValueError, match="slot 0, step 1 of this write"):
        storage.set(range(6), Stream(2).play(3).transpose(0, 1).reshape(-1))
    with pytest.raises(ValueError, match=r"'pixels' must be torch\.uint8 \[6, 4, 'height', 'width'\]: got None"):
        storage.set(range(6), Stream(2).play(3).exclude("pixels").reshape(-1))
    assert len(storage) == 0
    storage.set(range(6), Stream(2).play(3).reshape(-1))
    assert_same(storage[:], Stream(2).play(3).reshape(-1))


def test_single_transitions_are_neither_added_nor_overwritten() -> None:
    buffer, written = filled(Stream(2), 8, 2)
    one = written[0, 0]
    with pytest.raises(ValueError, match=r"written in order, 2 slots x 1 steps = 2 .*: got batch size \[\] at index 4"):
        buffer.add(one)
    with pytest.raises(ValueError, match=r"written in order, .*: got batch size \[2\] at index 0"):
        buffer.storage[torch.tensor([0, 1])] = written[:, 0]
    with pytest.raises(ValueError, match=r"written in order, .*: got batch size None at index 0"):
        buffer.storage.set(0, torch.zeros(2))


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"max_size": 7}, r"multiple of num_envs \* steps_per_write = 4: got 7; use 4"),
        ({"max_size": 3}, r"room for one write: got max_size=3, .* max_size must be at least .* = 4"),
        ({"num_envs": 0}, "positive sizes .*: got .*num_envs=0"),
        ({"steps_per_write": 0}, "positive sizes .*: got .*steps_per_write=0"),
        ({"frame_stack": 0}, "positive sizes .*: got .*frame_stack=0"),
        ({"n_step": 0}, "positive sizes .*: got .*n_step=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FrameStackStorage(**{"max_size": 8, "num_envs": 2, "steps_per_write": 2, **sizes})


# Cutting the stream


def test_after_a_cut_all_games_begin_anew() -> None:
    """The cut transitions keep their own next frames also when the ring has turned past them, and sums stop there."""
    stream = Stream(2, ends=[(3, 1)])
    buffer, before = filled(stream, 16, 4, n_step=2, gamma=1.0)
    buffer.storage.cut()
    buffer.storage.cut()
    stream.restart()
    batches = [stream.play(1) for _ in range(3)]
    for batch in batches:
        buffer.extend(batch.reshape(-1))
    found = buffer[:]
    assert torch.equal(found["pixels"][8:], torch.cat(batches, 1).transpose(0, 1).reshape(-1)["pixels"])
    assert torch.equal(found["next", "pixels"][6:8], before[:, 3]["next", "pixels"])
    assert found["steps_to_next_obs"].flatten().tolist() == [2, 2, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 1, 1]
    assert torch.equal(found["next", "reward"][6:8], before[:, 3]["next", "reward"])
    assert not found["next", "done"][6].item()


def test_after_a_cut_going_on_with_the_old_games_is_an_error() -> None:
    stream = Stream(2)
    buffer, _ = filled(stream, 8, 4)
    buffer.storage.cut()
    with pytest.raises(
        ValueError, match=r"begin a game with zeros: got another stack in slot 0, step 0 .* call cut\(\)"
    ):
        buffer.extend(stream.play(1).reshape(-1))


def test_without_a_cut_games_begun_anew_are_an_error() -> None:
    stream = Stream(2)
    buffer, _ = filled(stream, 8, 4)
    stream.restart()
    with pytest.raises(ValueError, match=r"slot 0, step 0 of this write; .* call cut\(\) when its games are reset"):
        buffer.extend(stream.play(1).reshape(-1))


def test_cutting_an_empty_storage_does_nothing() -> None:
    storage = FrameStackStorage(8, num_envs=2)
    storage.cut()
    storage.set(range(2), Stream(2, middle=True).play(1).reshape(-1))
    assert_same(storage[:], Stream(2, middle=True).play(1).reshape(-1))


# In TorchRL's buffers and trainers


@pytest.mark.parametrize("kind", [ReplayBuffer, TensorDictReplayBuffer])
@pytest.mark.parametrize(
    "sampler", [RandomSampler, SamplerWithoutReplacement, lambda: PrioritizedSampler(12, 0.7, 0.5)]
)
def test_samples_are_stored_transitions(kind: type, sampler: type) -> None:
    stream, whole = Stream(2, ends=[(2, 0), (5, 0), (5, 1)]), naive(12)
    buffer = kind(storage=FrameStackStorage(12, num_envs=2), sampler=sampler(), batch_size=8)
    for _ in range(8):
        batch = stream.play(1).reshape(-1)
        buffer.extend(batch)
        whole.extend(batch)
    sample, info = buffer.sample(return_info=True)
    assert sample.batch_size == (8,)
    extra = ["index", "priority_weight", "_weight"]
    assert_same(sample.exclude(*extra), whole[:][info["index"]])


def test_priorities_land_on_the_transitions_they_were_given_to() -> None:
    """Also after the ring has turned: whatever has all the priority is all that is sampled."""
    stream = Stream(2, ends=[(2, 0)])
    buffer = make_replay_buffer(
        FrameStackStorage(24, num_envs=2, steps_per_write=3), batch_size=64, prioritized=True, alpha=1.0
    )
    for write in range(7):
        buffer.extend(stream.play(3).reshape(-1))
        chosen = (3 * write + 1, write % 2)
        everything = buffer[:].set("index", torch.arange(len(buffer)))
        wanted = (everything["step"] == chosen[0]) & (everything["slot"] == chosen[1])
        assert wanted.sum().item() == 1
        buffer.update_tensordict_priority(everything.set("td_error", torch.where(wanted, 1e6, 0.0)))
        sample = buffer.sample()
        assert set(zip(sample["step"].tolist(), sample["slot"].tolist(), strict=True)) == {chosen}


def test_sampled_batches_carry_priorities_back() -> None:
    """A priority set on a sampled batch reaches the index that the batch says."""
    buffer = make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=6, prioritized=True, alpha=1.0, seed=0)
    stream = Stream(2)
    for _ in range(6):
        buffer.extend(stream.play(1).reshape(-1))
    everything = buffer[:].set("index", torch.arange(12)).set("td_error", torch.full((12,), 1e-6))
    sample = buffer.sample()
    assert sample["priority_weight"].shape == (6,)
    buffer.update_tensordict_priority(everything)
    buffer.update_tensordict_priority(sample.set("td_error", torch.full((6,), 1e6)))
    again = torch.cat([buffer.sample() for _ in range(8)])
    assert set(again["index"].tolist()) == set(sample["index"].tolist())
    assert torch.equal(again["step"], again["index"] // 2)
    assert torch.equal(again["slot"], again["index"] % 2)


def test_a_stock_trainers_hook_fills_and_samples_it() -> None:
    """It flattens [N, T] batches and marks the last step of each as truncated, which changes no stack and no sum."""
    collector = Collector(
        lambda: AtariVecEnv("breakout", 2, seed=0, max_frames=52), frames_per_batch=20, total_frames=200
    )
    storage = FrameStackStorage(60, num_envs=2, steps_per_write=10, n_step=3)
    buffer, whole = make_replay_buffer(storage, batch_size=16), naive(60)
    hook = ReplayBufferTrainer(buffer, flatten_tensordicts=True)
    for batch in collector:
        whole.extend(batch.reshape(-1).clone())
        hook.extend(batch)
        sample = hook.sample(batch)
        hook.update_priority(sample)
        truth = whole[:][sample["index"]]
        assert torch.equal(sample["pixels"], truth["pixels"])
        assert torch.equal(sample["collector", "traj_ids"], truth["collector", "traj_ids"])
        assert_same(buffer[:].select("pixels", "action"), whole[:].select("pixels", "action"))
    collector.shutdown()
    found = buffer[:]
    assert found["next", "truncated"].sum() > whole[:]["next", "truncated"].sum() > 0
    lengths = found["steps_to_next_obs"].reshape(3, 2, 10)
    assert (lengths[:, :, 7:9] == 3).any()  # across the steps that the hook marked


def test_a_seed_makes_samples_reproducible_and_leaves_the_global_generator() -> None:
    stream = Stream(2)
    batches = [stream.play(1).reshape(-1) for _ in range(6)]
    drawn = []
    before = torch.get_rng_state()
    for seed in (1, 1, 2):
        buffer = make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=32, seed=seed)
        for batch in batches:
            buffer.extend(batch)
        drawn.append(buffer.sample()["index"].tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:Got conflicting batch_sizes")  # TorchRL's, once, about any other size
def test_minibatches_drawn_together_are_those_drawn_one_by_one() -> None:
    """Also across a write, and while one of another size is asked for; each belongs to itself."""
    single, several = (
        make_replay_buffer(FrameStackStorage(12, num_envs=2, n_step=2), batch_size=8, seed=3, minibatches_at_once=count)
        for count in (1, 3)
    )
    stream = Stream(2, ends=[(2, 0), (5, 1)])
    for _ in range(4):
        batch = stream.play(1).reshape(-1)
        for buffer in (single, several):
            buffer.extend(batch)
        for number in range(3):
            one, other = single.sample(), several.sample()
            assert_same(other, one, number)
            other["pixels"].zero_()
    assert several.sample(5).batch_size == torch.Size([5])


@pytest.mark.parametrize("change", ["extend", "load_state_dict", "empty"])
def test_minibatches_drawn_before_a_change_are_not_handed_out_after_it(change: str) -> None:
    buffer = make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=4, minibatches_at_once=100)
    stream = Stream(2)
    buffer.extend(stream.play(1).reshape(-1))
    assert buffer.sample()["index"].max() < 2
    if change == "load_state_dict":
        other = make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=4)
        for _ in range(3):
            other.extend(stream.play(1).reshape(-1))
        buffer.load_state_dict(other.state_dict())
    elif change == "empty":
        buffer.empty()
        stream = Stream(2)
    if change != "load_state_dict":
        for _ in range(3):
            buffer.extend(stream.play(1).reshape(-1))
    assert torch.cat([buffer.sample()["index"] for _ in range(20)]).max() >= 4


def test_minibatches_together_need_a_uniform_buffer() -> None:
    storage = FrameStackStorage(12, num_envs=2)
    with pytest.raises(ValueError, match=r"at least 1, and 1 for a prioritised buffer, .*: got 0, prioritized=False"):
        make_replay_buffer(storage, batch_size=4, minibatches_at_once=0)
    with pytest.raises(ValueError, match=r"got 2, prioritized=True"):
        make_replay_buffer(storage, batch_size=4, minibatches_at_once=2, prioritized=True)


def test_prioritised_replay_without_torchrls_extension_names_versions_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TorchRL leaves None where its compiled classes would be; uniform replay goes on working."""
    monkeypatch.setattr("torchrl.data.replay_buffers.samplers.prioritized.SumSegmentTreeFp32", None)
    storage = FrameStackStorage(4, num_envs=2)
    versions = rf"got torchrl 0\.\d+\.\d+ with torch {torch.__version__.replace('+', '.')}"
    with pytest.raises(
        RuntimeError, match=rf"must match torch: {versions}; install the pair in constraints\.txt, or sample"
    ):
        make_replay_buffer(storage, batch_size=2, prioritized=True)
    assert isinstance(make_replay_buffer(storage, batch_size=2).sampler, RandomSampler)


# Saving


def test_a_restored_storage_gives_identical_samples_and_goes_on_identically() -> None:
    """In the middle of a game, after the ring has turned; the two share nothing."""
    ends = [(1, 0), (7, 1), (9, 0), (13, 1)]
    stream = Stream(2, ends=ends)
    first = make_replay_buffer(FrameStackStorage(12, num_envs=2, n_step=2), batch_size=32, seed=3)
    second = make_replay_buffer(FrameStackStorage(12, num_envs=2, n_step=2), batch_size=32, seed=4)
    for _ in range(9):
        first.extend(stream.play(1).reshape(-1))
    second.load_state_dict(first.state_dict())
    kept = first[:]
    assert_same(second[:], kept)
    assert_same(second.sample(), first.sample())
    batches = [stream.play(1).reshape(-1) for _ in range(7)]
    for batch in batches:
        first.extend(batch)
    assert_same(second[:], kept)
    for batch in batches:
        second.extend(batch)
    assert_same(second[:], first[:])
    assert_same(second.sample(), first.sample())


def test_priorities_are_restored_with_their_transitions() -> None:
    buffers = [
        make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=16, prioritized=True, alpha=1.0)
        for _ in range(2)
    ]
    stream = Stream(2)
    for _ in range(8):
        buffers[0].extend(stream.play(1).reshape(-1))
    buffers[0].update_priority(torch.arange(12), torch.tensor([0.0] * 5 + [1e6] + [0.0] * 6))
    buffers[1].load_state_dict(buffers[0].state_dict())
    assert set(buffers[1].sample()["index"].tolist()) == {5}
    assert_same(buffers[1][:], buffers[0][:])


def test_a_storage_that_was_never_written_can_be_restored() -> None:
    storage, restored = FrameStackStorage(8, num_envs=2), FrameStackStorage(8, num_envs=2)
    restored.set(range(2), Stream(2).play(1).reshape(-1))
    restored.load_state_dict(storage.state_dict())
    assert len(restored) == 0
    restored.set(range(2), Stream(2).play(1).reshape(-1))
    assert_same(restored[:], Stream(2).play(1).reshape(-1))


def test_a_state_survives_a_file_without_code(tmp_path: Path) -> None:
    """``torch.load`` with ``weights_only`` accepts it."""
    buffer, _ = filled(Stream(2, ends=[(1, 0)]), 8, 5)
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    restored = buffer_of(FrameStackStorage(8, num_envs=2))
    restored.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    assert_same(restored[:], buffer[:])


def test_a_buffers_own_dumps_and_loads_keep_everything(tmp_path: Path) -> None:
    stream = Stream(2, ends=[(1, 0)])
    buffer, _ = filled(stream, 8, 5)
    restored = buffer_of(FrameStackStorage(8, num_envs=2))
    for _ in range(2):  # the second time over the first one's files
        buffer.extend(stream.play(1).reshape(-1))
        buffer.dumps(tmp_path / "saved")
        restored.loads(tmp_path / "saved")
        assert_same(restored[:], buffer[:])
    batch = stream.play(1).reshape(-1)
    buffer.extend(batch)
    restored.extend(batch)
    assert_same(restored[:], buffer[:])


@pytest.mark.parametrize(
    "sizes",
    [{"max_size": 16}, {"num_envs": 1}, {"steps_per_write": 2}, {"frame_stack": 3}],
    ids=lambda sizes: next(iter(sizes)),
)
def test_a_state_of_other_sizes_is_refused(sizes: dict) -> None:
    buffer, _ = filled(Stream(2), 8, 2)
    other = FrameStackStorage(**{"max_size": 8, "num_envs": 2, **sizes})
    (name, value), *_ = sizes.items()
    with pytest.raises(
        ValueError, match=rf"fits only one of its sizes, .*'num_envs': 2.*: got .*'{name}': {value}.*; build"
    ):
        other.load_state_dict(buffer.storage.state_dict())
    assert len(other) == 0


# Memory


def test_a_transition_of_atari_takes_at_most_7200_bytes() -> None:
    """At a capacity of 100,000, of which only what is written takes memory, with the entries that a collector adds.

    Breakout under random play has about the shortest games there are, so the final frames that they add are counted in:
    one for each game, and the storage makes room for an eighth more.
    """
    rollout = atari_rollout("breakout", 4, 280)
    rollout["collector", "traj_ids"] = torch.zeros(4, 280, dtype=torch.int64)
    storage = FrameStackStorage(100_000, num_envs=4, steps_per_write=280 // 14)
    assert storage.bytes_per_transition == 0
    buffer = buffer_of(storage)
    before = None
    for batch in rollout.split(20, 1):
        buffer.extend(batch.reshape(-1))
        before = before or storage.bytes_per_transition
    games = rollout["next", "done"].sum().item()
    assert games >= 4
    assert before + 84 * 84 * 9 / 8 * games / (4 * 280) < 7_200


def test_memory_is_one_frame_a_transition_and_a_few_more() -> None:
    """A frame has 6 bytes, bookkeeping 6, the other entries 32; 9 final frames are given room for 16."""
    stream = Stream(2, ends=[(step, slot) for step in range(5, 8) for slot in range(2)] + [(8, 0), (8, 1), (9, 0)])
    buffer, _ = filled(stream, 20, 3)
    entries = 3 * 8 + 4 + 4 * 1
    assert buffer.storage.bytes_per_transition == ((20 + 8 + 1) * 6 + 20 * (6 + entries)) / 20
    for _ in range(7):
        buffer.extend(stream.play(1).reshape(-1))
    assert buffer.storage.bytes_per_transition == ((20 + 8 + 1) * 6 + 16 * 6 + 20 * (6 + entries)) / 20


def test_places_of_old_final_frames_are_used_again() -> None:
    """A game of one step in every slot, for five turns of the ring: memory stops growing after the first."""
    stream = Stream(2, ends=[(step, slot) for step in range(60) for slot in range(2)])
    buffer, _ = filled(stream, 20, 10)
    size = buffer.storage.bytes_per_transition
    whole = naive(20)
    for _ in range(50):
        batch = stream.play(1).reshape(-1)
        buffer.extend(batch)
        whole.extend(batch)
    assert buffer.storage.bytes_per_transition <= size + 8 * 6 / 20
    assert_same(buffer[:], whole[:])


# On a CUDA device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n_step", [1, 3])
def test_frames_can_live_on_a_cuda_device_and_reading_never_waits_for_it(n_step: int) -> None:
    options = {"num_envs": 2, "n_step": n_step}
    ours, theirs = (buffer_of(FrameStackStorage(12, **options, device=device)) for device in ("cuda", "cpu"))
    stream = Stream(2, ends=[(2, 0), (5, 0), (5, 1), (8, 1)])
    for _ in range(10):
        batch = stream.play(1).reshape(-1)
        ours.extend(batch)
        theirs.extend(batch)
    index = torch.arange(12, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = ours.storage.get(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.device.type == "cuda"
    assert_same(found.cpu(), theirs[:].cpu())


# Frames in a file


def mapped_files() -> list[str]:
    """Files of frames that this process has mapped, by Linux's own account."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "replay-" in line]


def test_frames_in_a_file_are_those_in_memory_and_leave_nothing_behind(tmp_path: Path) -> None:
    """Over a turn of the ring, and restored; the file has no name while it is used and no space afterwards."""
    buffers = [filled(Stream(2, ends=[(3, 0), (8, 1)]), 20, 25, scratch_dir=folder)[0] for folder in (None, tmp_path)]
    in_memory, in_file = (buffer.storage for buffer in buffers)
    assert len(mapped_files()) == 1 and not list(tmp_path.iterdir())
    assert_same(in_file.get(range(20)), in_memory.get(range(20)))
    restored = FrameStackStorage(20, num_envs=2, scratch_dir=tmp_path)
    restored.load_state_dict(in_memory.state_dict())
    assert len(mapped_files()) == 2
    assert_same(restored.get(range(20)), in_memory.get(range(20)))
    del buffers, in_file, restored
    gc.collect()
    assert not mapped_files()


def test_a_file_that_cannot_be_had_is_an_early_error(tmp_path: Path) -> None:
    with pytest.raises(
        MemoryError, match=rf"a replay of 1,000,000,000,000 .* GB on {tmp_path}, where .* lower max_size"
    ):
        FrameStackStorage(1_000_000_000_000, num_envs=2, scratch_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        FrameStackStorage(20, num_envs=2, scratch_dir=tmp_path / "missing")
    with pytest.raises(ValueError, match="a file holds frames for the CPU only: got scratch_dir and device=meta; give"):
        FrameStackStorage(20, num_envs=2, scratch_dir=tmp_path, device="meta")
