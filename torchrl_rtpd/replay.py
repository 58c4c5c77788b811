"""Replay of stacked frames that keeps every frame once.

Consecutive observations share all frames but one, so a transition needs one new frame, 7,056 bytes at 84 x 84, instead of two stacks
of four. Stacks are rebuilt when sampled and equal, byte for byte, what the environment showed: at the start of a game, across the seam
of the ring, and for the last observation of a game.

Letters: ``N`` slots (games side by side), ``R`` rows (steps of all slots), ``T`` steps a write, ``S`` frames a stack, ``B`` samples.
A *row* is counted from 0 to ``R - 1`` and reused; an *age* is counted from the first write and never reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import PrioritizedSampler, RandomSampler, TensorDictReplayBuffer, TensorStorage

__all__ = ["FrameStackStorage", "make_replay_buffer"]


class FrameStackStorage(TensorStorage):
    """A TorchRL storage for stacked frames: one uint8 frame a transition, stacks rebuilt when sampled.

    Written by ``extend`` with what a collector of ``N`` slots yields, flattened slot by slot (``batch.reshape(-1)`` of ``[N, T]``,
    as TorchRL's trainers do); everything but the frames is stored as it comes. Each write is compared with the stacks that will be
    rebuilt from it, so a wrong layout is an error and never silent mixing. Single items cannot be added or overwritten.

    Args:
        max_size: capacity in transitions, a multiple of ``num_envs * steps_per_write``.
        num_envs: slots ``N`` of the collector.
        steps_per_write: steps ``T`` a write (the collector's ``frames_per_batch / N``).
        frame_stack: frames ``S`` in an observation.
        n_step: rewards added up at sampling time. ``("next", "reward")`` becomes the discounted sum, the other ``"next"`` entries
            come from the last of those steps, and ``"steps_to_next_obs"`` int64 ``[B, 1]`` tells TorchRL's value estimators how far
            to discount. Sums stop at the end of a game, at a lost life, and at the newest row.
        gamma: discount factor of these sums; give the loss the same.
        device: where the frames live, for example ``"cuda"``.
        pixels_key: where the stacks are read and written.

    Raises:
        ValueError: sizes that do not fit each other; at a write, data of another layout or size.
        RuntimeError: an index that was not written yet.

    Examples:
        >>> from torchrl.data import TensorDictReplayBuffer
        >>> from torchrl_rtpd.envs import AtariVecEnv
        >>> env = AtariVecEnv("pong", 2, seed=0)
        >>> storage = FrameStackStorage(1_000, num_envs=2, steps_per_write=5)
        >>> buffer = TensorDictReplayBuffer(storage=storage, batch_size=4)
        >>> rollout = env.rollout(5, policy=None, break_when_any_done=False)
        >>> _ = buffer.extend(rollout.reshape(-1))
        >>> buffer.sample()["next", "pixels"].shape
        torch.Size([4, 4, 84, 84])
        >>> env.close()
    """

    def __init__(
        self,
        max_size: int,
        *,
        num_envs: int,
        steps_per_write: int = 1,
        frame_stack: int = 4,
        n_step: int = 1,
        gamma: float = 0.99,
        device: torch.device | str = "cpu",
        pixels_key: NestedKey = "pixels",
    ) -> None:
        block = num_envs * steps_per_write
        if min(num_envs, steps_per_write, frame_stack, n_step) < 1 or max_size < block:
            raise ValueError(
                "a frame storage needs positive sizes and room for one write: got "
                f"max_size={max_size}, num_envs={num_envs}, steps_per_write={steps_per_write}, frame_stack={frame_stack}, "
                f"n_step={n_step}; max_size must be at least num_envs * steps_per_write = {block}."
            )
        if max_size % block:
            raise ValueError(
                f"max_size must be a multiple of num_envs * steps_per_write = {block}: got {max_size}; "
                f"use {max_size - max_size % block}."
            )
        super().__init__(None, max_size, device=device)
        self.num_envs = num_envs
        self.steps_per_write = steps_per_write
        self.frame_stack = frame_stack
        self.n_step = n_step
        self.gamma = gamma
        self.pixels_key = unravel_key(pixels_key)
        self._rows = max_size // num_envs
        # Older frames than the oldest row needs, so that its stack is whole.
        self._frame_rows = self._rows + frame_stack - 1
        self._empty()

    def _empty(self) -> None:
        self.initialized = True  # there is nothing lazy for a sampler to wait for
        self._num_written = 0  # rows since the first write
        self._frames: Tensor | None = None  # [R + S - 1, N, H, W] uint8, the newest frame of each stack
        self._newest: Tensor | None = None  # [N, H, W] uint8, the frame after the newest row
        self._extra: TensorDict | None = None  # [R, N], every entry but the frames
        # Final frames of ended games, and where each row's lies: -1 for a row whose game goes on.
        self._finals: Tensor | None = None  # [F, H, W] uint8, grown when needed
        self._free_finals: list[int] = []
        self._final_index = torch.full((self._rows, self.num_envs), -1, dtype=torch.int32, device=self.device)
        self._stop = torch.zeros(self._rows, self.num_envs, dtype=torch.bool, device=self.device)
        # Older frames of the same game in the stack, at most S - 1.
        self._depth = torch.zeros(self._rows, self.num_envs, dtype=torch.uint8, device=self.device)

    def __len__(self) -> int:
        return min(self._num_written, self._rows) * self.num_envs

    @property
    def bytes_per_transition(self) -> float:
        """Memory held for each transition of the capacity, in bytes; 0 before the first write."""
        if self._frames is None:
            return 0.0
        held = [self._frames, self._newest, self._finals, self._final_index, self._stop, self._depth]
        total = sum(tensor.numel() * tensor.element_size() for tensor in held) + self._extra.bytes()
        return total / self.max_size

    # Writing

    def set(self, cursor: Any, data: TensorDictBase, *, set_cursor: bool = True) -> None:
        """Store one write of ``N * T`` transitions, slot by slot. Called by the buffer's writer."""
        pixels, next_pixels = self._checked(cursor, data, set_cursor)
        self._set_last_cursor(cursor)
        if self._frames is None:
            self._allocate(pixels, data)
        ages = torch.arange(self._num_written, self._num_written + self.steps_per_write, device=self.device)
        rows = ages % self._rows
        self._release_finals(rows)
        ended = self._by_row(data.get(("next", "done")))
        stop = ended
        if ("next", "end_of_life") in data.keys(True):
            stop = ended | self._by_row(data.get(("next", "end_of_life")))
        self._frames[ages % self._frame_rows] = pixels[:, :, -1]
        self._newest = next_pixels[-1, :, -1].clone()
        self._depth[rows] = self._depths(ended)
        self._stop[rows] = stop
        self._keep_finals(rows, ended, next_pixels[:, :, -1])
        entries = data.exclude(self.pixels_key, ("next", self.pixels_key), "index")
        self._extra[rows] = entries.reshape(self.num_envs, self.steps_per_write).transpose(0, 1).to(self.device)
        self._num_written += self.steps_per_write
        self._verify(ages, pixels, next_pixels)
        self._bump_mutation_revision()

    def _checked(self, cursor: Any, data: TensorDictBase, set_cursor: bool) -> tuple[Tensor, Tensor]:
        expected = self.num_envs * self.steps_per_write
        size = data.batch_size if isinstance(data, TensorDictBase) else None
        first = int(cursor[0]) if isinstance(cursor, (Tensor, range, Sequence)) else cursor
        if size != torch.Size([expected]) or not set_cursor or first != self._num_written * self.num_envs % self.max_size:
            raise ValueError(
                f"a frame storage is written in order, {self.num_envs} slots x {self.steps_per_write} steps = {expected} transitions "
                f"at a time: got batch size {None if size is None else list(size)} at index {first}; call "
                "buffer.extend(batch.reshape(-1)) with each batch of the collector, and set steps_per_write to its steps."
            )
        stacks = []
        for key in (self.pixels_key, unravel_key(("next", self.pixels_key))):
            stack = data.get(key, None)
            if stack is None or stack.dtype != torch.uint8 or stack.ndim != 4 or stack.shape[1] != self.frame_stack:
                found = None if stack is None else f"{stack.dtype} {list(stack.shape)}"
                raise ValueError(
                    f"{key} must be uint8 [{expected}, {self.frame_stack}, height, width]: got {found}; "
                    "store the frames as the environment gives them, stacked and unscaled."
                )
            stacks.append(self._by_row(stack))
        return stacks[0], stacks[1]

    def _by_row(self, tensor: Tensor) -> Tensor:
        """``[N * T, ...]``, slot by slot, to ``[T, N, ...]``; a trailing singleton of a flag is dropped."""
        tensor = tensor.to(self.device).unflatten(0, (self.num_envs, self.steps_per_write)).transpose(0, 1)
        return tensor.squeeze(-1) if tensor.ndim == 3 else tensor

    def _allocate(self, pixels: Tensor, data: TensorDictBase) -> None:
        size = pixels.shape[-2:]
        self._frames = torch.zeros(self._frame_rows, self.num_envs, *size, dtype=torch.uint8, device=self.device)
        # The first stacks come whole, whether or not a game begins with them.
        older = torch.arange(1 - self.frame_stack, 0, device=self.device)
        self._frames[older % self._frame_rows] = pixels[0, :, :-1].transpose(0, 1)
        self._finals = torch.zeros(0, *size, dtype=torch.uint8, device=self.device)
        entry = data.exclude(self.pixels_key, ("next", self.pixels_key), "index")[0].to(self.device)
        self._extra = entry.apply(
            lambda leaf: torch.zeros(self._rows, self.num_envs, *leaf.shape, dtype=leaf.dtype, device=self.device),
            batch_size=[self._rows, self.num_envs],
        )

    def _depths(self, ended: Tensor) -> Tensor:
        """Older frames of the same game behind each row of this write, ``[T, N]``."""
        most = self.frame_stack - 1
        if self._num_written == 0:
            depth = torch.full_like(self._depth[0], most)
        else:
            last = (self._num_written - 1) % self._rows
            depth = torch.where(self._final_index[last] >= 0, 0, (self._depth[last] + 1).clamp_max(most))
        depths = []
        for row in ended:
            depths.append(depth)
            depth = torch.where(row, 0, (depth + 1).clamp_max(most))
        return torch.stack(depths).to(torch.uint8)

    def _release_finals(self, rows: Tensor) -> None:
        old = self._final_index[rows]
        self._free_finals.extend(old[old >= 0].tolist())
        self._final_index[rows] = -1

    def _keep_finals(self, rows: Tensor, ended: Tensor, last_frames: Tensor) -> None:
        frames = last_frames[ended]
        count = len(frames)
        if not count:
            return
        missing = count - len(self._free_finals)
        if missing > 0:
            old, grow = len(self._finals), max(missing, len(self._finals) // 2, 8)
            self._finals = torch.cat([self._finals, self._finals.new_zeros(grow, *frames.shape[1:])])
            self._free_finals.extend(range(old + grow - 1, old - 1, -1))
        places = torch.tensor([self._free_finals.pop() for _ in range(count)], device=self.device)
        self._finals[places] = frames
        index = self._final_index[rows]
        index[ended] = places.to(torch.int32)
        self._final_index[rows] = index

    def _verify(self, ages: Tensor, pixels: Tensor, next_pixels: Tensor) -> None:
        slots = torch.arange(self.num_envs, device=self.device)
        ages, slots = torch.meshgrid(ages, slots, indexing="ij")
        same = (self._stack(ages, slots) == pixels) & (self._next_stack(ages, slots) == next_pixels)
        if not same.all():
            age, slot = (~same).flatten(2).any(-1).nonzero()[0].tolist()
            raise ValueError(
                "stacks must continue those of the step before, slot by slot, and begin a game with zeros: got another stack in "
                f"slot {slot}, step {age} of this write; flatten [N, T] batches with reshape(-1), keep num_envs={self.num_envs} "
                f"and steps_per_write={self.steps_per_write} those of the collector, and call cut() when its games are reset."
            )

    def cut(self) -> None:
        """Declare that the stream ends here: the next write begins new games in every slot.

        Call it when the environments are reset or replaced (after a resume, say). The newest transitions keep their own last
        frames and are not continued by what follows.
        """
        if self._num_written == 0:
            return
        rows = torch.tensor([(self._num_written - 1) % self._rows], device=self.device)
        going_on = self._final_index[rows] < 0
        self._keep_finals(rows, going_on, self._newest[None])
        self._stop[rows] = True

    # Reading

    def get(self, index: int | Sequence[int] | slice | Tensor) -> TensorDictBase:
        """Transitions with their stacks rebuilt, ``[B]`` for ``B`` indices and ``[]`` for one."""
        if isinstance(index, slice):
            index = torch.arange(len(self), device=self.device)[index]
        index = torch.as_tensor(index, device=self.device)
        if index.numel() and (self._num_written == 0 or (self.device.type == "cpu" and int(index.max()) >= len(self))):
            raise RuntimeError(f"index {int(index.max())} was not written yet: {len(self)} transitions are stored.")
        rows, slots = self._row_and_slot(index)
        first = self._age(rows)
        last, rewards, steps = self._window(first, slots)
        entries = self._extra[rows, slots]
        if self.n_step > 1:
            entries.set("next", self._extra.get("next")[last % self._rows, slots])
            entries.set(("next", "reward"), rewards)
            entries.set("steps_to_next_obs", steps)
        entries.set(self.pixels_key, self._stack(first, slots))
        entries.set(("next", self.pixels_key), self._next_stack(last, slots))
        return entries

    def _row_and_slot(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Where an index lies: writes are stored one after the other, each slot by slot."""
        block = self.num_envs * self.steps_per_write
        within = index % block
        row = index // block * self.steps_per_write + within % self.steps_per_write
        return row, within // self.steps_per_write

    def _age(self, rows: Tensor) -> Tensor:
        """Rows since the first write at which these rows were written last."""
        if self._num_written <= self._rows:
            return rows
        newest = self._num_written - 1
        return rows + self._rows * ((newest - rows) // self._rows)

    def _window(self, first: Tensor, slots: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The last age of each n-step window, its discounted reward ``[B, 1]`` and its length ``[B, 1]``."""
        if self.n_step == 1:
            return first, None, None
        offsets = torch.arange(self.n_step, device=self.device)
        ages = first[..., None] + offsets
        rows, slots = ages % self._rows, slots[..., None].expand_as(ages)
        go_on = ~self._stop[rows, slots] & (ages + 1 < self._num_written)
        within = torch.cat([torch.ones_like(go_on[..., :1]), go_on[..., :-1]], -1).cumprod(-1)
        rewards = self._extra.get(("next", "reward"))[rows, slots].squeeze(-1)
        total = (rewards * within * self.gamma**offsets).sum(-1, keepdim=True)
        steps = within.sum(-1, keepdim=True)
        return first + steps.squeeze(-1) - 1, total, steps

    def _stack(self, ages: Tensor, slots: Tensor) -> Tensor:
        """Stacks ``[*B, S, H, W]`` at these ages; frames from before the game are zero."""
        behind = torch.arange(self.frame_stack - 1, -1, -1, device=self.device)
        frames = self._frames[(ages[..., None] - behind) % self._frame_rows, slots[..., None]]
        inside = behind <= self._depth[ages % self._rows, slots][..., None]
        return frames * inside[..., None, None]

    def _next_stack(self, ages: Tensor, slots: Tensor) -> Tensor:
        """Stacks ``[*B, S, H, W]`` one step after these ages, within the same game."""
        final = self._final_index[ages % self._rows, slots]
        following = self._frames[(ages + 1) % self._frame_rows, slots]
        following = torch.where((ages + 1 == self._num_written)[..., None, None], self._newest[slots], following)
        if len(self._finals):
            following = torch.where((final >= 0)[..., None, None], self._finals[final.clamp_min(0).long()], following)
        return torch.cat([self._stack(ages, slots)[..., 1:, :, :], following[..., None, :, :]], -3)

    # Saving

    _STATE = ("_num_written", "_frames", "_newest", "_finals", "_free_finals", "_final_index", "_stop", "_depth")

    def state_dict(self) -> dict[str, Any]:
        """Everything stored, by reference."""
        extra = None if self._extra is None else self._extra.to_dict()
        return {"extra": extra, **{name: getattr(self, name) for name in self._STATE}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, by copy, into a storage of the same sizes."""
        index = state_dict["_final_index"]
        if index.shape != self._final_index.shape:
            raise ValueError(
                f"a saved storage must have the sizes of this one, rows and slots {list(self._final_index.shape)}: got "
                f"{list(index.shape)}; build it with the same max_size and num_envs."
            )
        for name in self._STATE:
            value = state_dict[name]
            setattr(self, name, value.to(self.device, copy=True) if isinstance(value, Tensor) else _copied(value))
        extra = state_dict["extra"]
        shape = [self._rows, self.num_envs]
        self._extra = None if extra is None else TensorDict(extra, batch_size=shape).to(self.device).clone()
        self._bump_mutation_revision()

    def contains(self, item: int | Tensor) -> bool | Tensor:
        """Whether an index was written."""
        return item < len(self)


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def make_replay_buffer(
    storage: FrameStackStorage,
    *,
    batch_size: int,
    prioritized: bool = False,
    alpha: float = 0.6,
    beta: float = 0.4,
    seed: int | None = None,
) -> TensorDictReplayBuffer:
    """A standard TorchRL replay buffer over a frame storage, uniform or prioritised.

    Args:
        storage: where the transitions live.
        batch_size: transitions a sample ``B``.
        prioritized: sample by priority (Schaul et al. 2016, https://arxiv.org/abs/1511.05952) instead of uniformly.
        alpha: exponent of the priorities.
        beta: exponent of the importance weights.
        seed: seed of the sampler's own generator. None uses the global one.

    Returns:
        A :class:`~torchrl.data.TensorDictReplayBuffer`.

    Raises:
        RuntimeError: prioritised replay without TorchRL's compiled extension, with both versions and the remedy.
    """
    sampler = RandomSampler()
    if prioritized:
        sampler = _prioritized_sampler(storage.max_size, alpha, beta)
    generator = None if seed is None else torch.Generator(storage.device).manual_seed(seed)
    return TensorDictReplayBuffer(
        storage=storage, sampler=sampler, batch_size=batch_size, priority_key="td_error", generator=generator
    )


def _prioritized_sampler(max_size: int, alpha: float, beta: float) -> PrioritizedSampler:
    import torchrl

    try:
        return PrioritizedSampler(max_size, alpha=alpha, beta=beta)
    except (RuntimeError, ImportError, NameError) as error:
        raise RuntimeError(
            "prioritised replay needs TorchRL's compiled extension, which must match torch: got torchrl "
            f"{torchrl.__version__} with torch {torch.__version__}; install the pair in constraints.txt, or sample uniformly."
        ) from error
