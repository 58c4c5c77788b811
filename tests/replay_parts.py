"""Streams of made-up frames, and the buffers that tests of the replay write them into.

The oracle for everything but n-step sums is TorchRL's own storage of whole stacks under the same writer, so that an
index means the same transition in both. Synthetic streams have frames of 2 x 3 bytes, each with a number of its own,
and a "step" and a "slot" entry that identify a transition wherever it is sampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from torchrl.data import (
    LazyTensorStorage,
    TensorDictReplayBuffer,
)

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.replay.storage import FrameStackStorage


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


class NumpyGames:
    """Games side by side in numpy, which keeps every stack it showed.

    Games end at random, after a step each with probability ``end``. ``shape`` is that of a frame, ``middle`` begins in
    the middle of games, whose older frames are known.
    """

    def __init__(
        self,
        num_envs: int,
        frame_stack: int,
        shape: tuple[int, ...],
        *,
        end: float = 0.2,
        middle: bool = False,
        seed: int = 0,
    ) -> None:
        self.num_envs, self.frame_stack, self.shape, self.end = num_envs, frame_stack, shape, end
        self.random = np.random.default_rng(seed)
        self.frame_numbers = itertools.count()
        self.games = [[self.frame() for _ in range(frame_stack if middle else 1)] for _ in range(num_envs)]
        self.before: list[np.ndarray] = []
        self.after: list[np.ndarray] = []
        self.ended: list[bool] = []

    def frame(self) -> np.ndarray:
        """Random bytes, the first of which differs from that of the frames around."""
        frame = self.random.integers(1, 256, self.shape, dtype=np.uint8)
        frame.flat[0] = next(self.frame_numbers) % 255 + 1
        return frame

    def restart(self) -> None:
        self.games = [[self.frame()] for _ in range(self.num_envs)]

    def stack(self, slot: int) -> np.ndarray:
        known = self.games[slot][-self.frame_stack :]
        return np.stack([np.zeros(self.shape, dtype=np.uint8)] * (self.frame_stack - len(known)) + known)

    def play(self, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Stacks before and after these steps ``[T, N, S, *F]``, and whether a game is over ``[T, N]``."""
        for _ in range(steps):
            for slot in range(self.num_envs):
                self.before.append(self.stack(slot))
                self.games[slot].append(self.frame())
                self.after.append(self.stack(slot))
                self.ended.append(bool(self.random.random() < self.end))
                if self.ended[-1]:
                    self.games[slot] = [self.frame()]
        newest = slice(-steps * self.num_envs, None)
        rows = (self.before[newest], self.after[newest], self.ended[newest])
        found = [torch.from_numpy(np.stack(row)).unflatten(0, (steps, self.num_envs)) for row in rows]
        return found[0], found[1], found[2]

    def shown(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Stacks before and after these transitions, colours beside the frames."""
        size = (len(numbers), -1, *self.shape[-2:])
        return tuple(
            np.stack([stacks[number] for number in numbers]).reshape(size) for stacks in (self.before, self.after)
        )


@st.composite
def situations(draw: st.DrawFn) -> dict:
    """Sizes of a ring and of the games it holds, where the stream is cut, and how frames are given."""
    single = draw(st.booleans())
    writes = draw(st.integers(1, 8))
    return {
        "games": {
            "num_envs": draw(st.integers(1, 3)),
            "frame_stack": draw(st.integers(2 if single else 1, 5)),
            "shape": draw(st.sampled_from([(2, 3), (1, 1), (3, 2, 2)])),
            "end": draw(st.sampled_from([0.0, 0.2, 1.0])),
            "middle": not single and draw(st.booleans()),
            "seed": draw(st.integers(0, 99)),
        },
        "single": single,
        "steps": draw(st.integers(1, 3)),
        "blocks": draw(st.integers(1, 4)),
        "writes": writes,
        "cuts": draw(st.sets(st.integers(0, writes - 1), max_size=2)),
    }
