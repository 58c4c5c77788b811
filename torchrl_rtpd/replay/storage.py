"""Replay of stacked frames that keeps every frame once.

Consecutive observations share all frames but one, so a transition needs one new frame, 7,056 bytes at 84 x 84, instead
of two stacks of four. Stacks are rebuilt when sampled and equal, byte for byte, what the environment showed: at the
start of a game, across the seam of the ring, and for the last observation of a game.

Letters: ``N`` slots (games side by side), ``T`` steps a write, ``S`` frames a stack, ``C`` capacity in transitions,
``B`` samples, ``H`` and ``W`` height and width of a frame.

A transition has two names. Its *index*, below ``C`` and reused, is what samplers use: writes lie one after the other,
each slot by slot. Its *number*, ``step * N + slot`` with steps counted from the first write on, is never reused: the
slot's next step is ``N`` further, its entries lie at ``number % C`` and the newest frame of its stack at
``number % (C + S * N)``.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import TensorStorage

from torchrl_rtpd.replay.memory import bytes_in_file, check_fits

__all__ = ["FrameStackStorage"]

_FILE = "frames.pt"
_BOOKKEEPING = 6  # bytes a transition: place of its final frame, stop, depth
_ENTRIES = 60  # about: action, rewards, scores, flags


class FrameStackStorage(TensorStorage):
    """A TorchRL storage for stacked frames: one uint8 frame a transition, stacks rebuilt when sampled.

    Written by ``extend`` with what a collector of ``N`` slots yields, flattened slot by slot (``batch.reshape(-1)`` of
    ``[N, T]``, as TorchRL's trainers do); everything but the frames is stored as it comes. A write whose stacks could
    not be rebuilt is refused before anything is stored, so a wrong layout is an error and never silent mixing. Single
    items cannot be added or overwritten. Writes may also hold single frames ``[N * T, 1, H, W]``, all of them or none,
    which spares whoever collects the copies of stacks; games then begin with the first write.

    Args:
        max_size: capacity ``C`` in transitions, a multiple of ``num_envs * steps_per_write``.
        num_envs: slots ``N`` of the collector.
        steps_per_write: steps ``T`` a write (the collector's ``frames_per_batch / N``).
        frame_stack: frames ``S`` in an observation.
        n_step: rewards added up at sampling time. ``("next", "reward")`` becomes the discounted sum, the other
            ``"next"`` entries come from the last of those steps, and ``"steps_to_next_obs"`` int64 ``[B, 1]`` tells
            TorchRL's value estimators how far to discount. Sums stop at the end of a game, at a lost life
            (``("next", "end_of_life")``, where there is one) and at the newest step.
        gamma: discount factor of these sums; give the loss the same.
        device: where the frames live, for example ``"cuda"``.
        pixels_key: where the stacks are read and written.
        scratch_dir: a folder in which a file holds the frames, for more of them than there is memory; see
            :func:`~torchrl_rtpd.replay.memory.bytes_in_file`. None is memory.

    Raises:
        ValueError: sizes that do not fit each other; at a write, data of another layout or size.
        MemoryError: more transitions than the device has memory for.
        RuntimeError: an index that was not written yet (on a CUDA device only when nothing was).

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
        scratch_dir: Path | str | None = None,
    ) -> None:
        block = num_envs * steps_per_write
        if min(num_envs, steps_per_write, frame_stack, n_step) < 1 or max_size < block:
            raise ValueError(
                f"a frame storage needs positive sizes and room for one write: got max_size={max_size}, "
                f"num_envs={num_envs}, steps_per_write={steps_per_write}, frame_stack={frame_stack}, n_step={n_step}; "
                f"max_size must be at least num_envs * steps_per_write = {block}."
            )
        if max_size % block:
            raise ValueError(
                f"max_size must be a multiple of num_envs * steps_per_write = {block}: got {max_size}; "
                f"use {max_size - max_size % block}."
            )
        super().__init__(None, max_size, device=device)
        if scratch_dir is not None and self.device.type != "cpu":
            raise ValueError(f"a file holds frames for the CPU only: got scratch_dir and device={device}; give one.")
        self.scratch_dir = scratch_dir
        self.num_envs = num_envs
        self.steps_per_write = steps_per_write
        self.frame_stack = frame_stack
        self.n_step = n_step
        self.gamma = gamma
        self.pixels_key = unravel_key(pixels_key)
        # Also the older frames of the oldest stack and the one that follows the newest.
        self._num_frames = max_size + frame_stack * num_envs
        self._total_shape_value = torch.Size([max_size])  # where TensorStorage looks for it
        check_fits(
            self.estimated_bytes,
            f"a replay of {max_size:,} transitions",
            "lower max_size, or keep it on a device with more memory or in a scratch_dir",
            self.device,
            scratch_dir,
        )
        self._empty()

    def _empty(self) -> None:
        self._bump_mutation_revision()
        self.initialized = True  # there is nothing lazy for a sampler to wait for
        self._num_written = 0  # transitions since the first write: the next one's number
        self._single = False  # whether writes hold single frames
        self._frames = torch.empty(0, 0, 0, dtype=torch.uint8)  # [C + S * N + 1, H, W], the last one always zero
        self._extra = TensorDict({}, [self.max_size])  # every entry but the frames
        # Final frames of ended games, and where each transition's lies: -1 while its game goes on.
        self._finals = torch.empty(0, 0, 0, dtype=torch.uint8)  # [F, H, W], grown when needed
        self._free_finals: list[int] = []
        self._final_index = torch.full((self.max_size,), -1, dtype=torch.int32, device=self.device)
        # Whether n-step sums stop here.
        self._stop = torch.zeros(self.max_size, dtype=torch.bool, device=self.device)
        # Older frames of the same game in the stack, at most S - 1.
        self._depth = torch.zeros(self.max_size, dtype=torch.uint8, device=self.device)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={value}" for name, value in self._sizes().items())
        return f"{type(self).__name__}({sizes}, n_step={self.n_step}, device={self.device}, len={len(self)})"

    def __len__(self) -> int:
        return min(self._num_written, self.max_size)

    @property
    def bytes_per_transition(self) -> float:
        """Memory held for each transition of the capacity, in bytes; 0 before the first write."""
        if self._num_written == 0:
            return 0.0
        held = [self._frames, self._finals, self._final_index, self._stop, self._depth]
        total = sum(tensor.numel() * tensor.element_size() for tensor in held) + self._extra.bytes()
        return total / self.max_size

    @property
    def estimated_bytes(self) -> int:
        """Memory it will hold when full, with frames of 84 x 84 pixels and entries like those of Atari environments."""
        return self._num_frames * 84 * 84 + self.max_size * (_BOOKKEEPING + _ENTRIES)

    # Writing

    def set(self, cursor: Any, data: TensorDictBase, *, set_cursor: bool = True) -> None:
        """Store one write of ``N * T`` transitions, slot by slot. Called by the buffer's writer.

        Everything is checked before anything is stored: a write that raises leaves the stored transitions as they were.
        """
        self._check_order(cursor, data, set_cursor)
        pixels, next_pixels = self._checked_stacks(data)
        ended = self._checked_flag(data, "done")
        stop = ended
        if ("next", "end_of_life") in data.keys(True):
            stop = ended | self._checked_flag(data, "end_of_life")
        entries = self._checked_entries(data)
        begins = self._begins(ended)
        self._check_continuity(pixels, next_pixels, begins)

        if self._num_written == 0:
            self._allocate(pixels, entries)
        number, place = self._num_written, self._num_written % self.max_size
        written = slice(place, place + len(data))  # in one piece, since C is a multiple of N * T
        self._depth[written] = self._depths(begins).flatten()
        self._stop[written] = stop.flatten()
        self._extra[written] = entries
        self._set_frames(number, pixels[:, :, -1])
        # Until the next step brings the same frame, or the first one of another game.
        self._set_frames(number + len(data), next_pixels[-1:, :, -1])
        self._release_finals(written)
        self._keep_finals(place + ended.flatten().nonzero().squeeze(-1), next_pixels[:, :, -1][ended])
        self._num_written += len(data)
        self._set_last_cursor(cursor)
        self._bump_mutation_revision()

    def _check_order(self, cursor: Any, data: TensorDictBase, set_cursor: bool) -> None:
        slots, steps = self.num_envs, self.steps_per_write
        size = data.batch_size if isinstance(data, TensorDictBase) else None
        first = int(cursor[0]) if isinstance(cursor, (Tensor, range, Sequence)) else cursor
        if size != torch.Size([slots * steps]) or not set_cursor or first != self._num_written % self.max_size:
            raise ValueError(
                f"a frame storage is written in order, {slots} slots x {steps} steps = {slots * steps} transitions at "
                f"a time: got batch size {None if size is None else list(size)} at index {first}; call "
                "buffer.extend(batch.reshape(-1)) with each batch of the collector, and set steps_per_write to its "
                "steps."
            )

    def _checked_stacks(self, data: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The stacks before and after each step, ``[T, N, S, H, W]``, or frames ``[T, N, 1, H, W]``."""
        size = list(self._frames.shape[1:]) if self._num_written else None
        shown = data.get(self.pixels_key, None)
        if self._num_written == 0:
            self._single = shown is not None and shown.ndim == 4 and shown.shape[1] == 1
        frames = 1 if self._single else self.frame_stack
        stacks = []
        for key in (self.pixels_key, unravel_key(("next", self.pixels_key))):
            stack = data.get(key, None)
            found = None if stack is None else f"{stack.dtype} {list(stack.shape)}"
            if stack is not None and size is None:
                size = list(stack.shape[2:])
            expected = [len(data), frames, *(["height", "width"] if size is None else size)]
            if stack is None or stack.dtype != torch.uint8 or stack.ndim != 4 or list(stack.shape) != expected:
                raise ValueError(
                    f"{key!r} must be torch.uint8 {expected}: got {found}; "
                    "store the frames as the environment gives them, stacked and unscaled."
                )
            stacks.append(self._by_step(stack))
        return stacks[0], stacks[1]

    def _checked_flag(self, data: TensorDictBase, name: str) -> Tensor:
        """A flag after each step, ``[T, N]``."""
        flag = data.get(("next", name), None)
        if flag is None or flag.dtype != torch.bool or flag.numel() != len(data):
            found = None if flag is None else f"{flag.dtype} {list(flag.shape)}"
            raise ValueError(
                f"('next', '{name}') must be torch.bool [{len(data)}, 1]: got {found}; "
                "store it as the environment gives it."
            )
        return self._by_step(flag.reshape(-1))

    def _checked_entries(self, data: TensorDictBase) -> TensorDictBase:
        """Every entry but the frames, step by step ``[T * N]``."""
        entries = data.exclude(self.pixels_key, ("next", self.pixels_key), "index").to(self.device)
        entries = entries.reshape(self.num_envs, self.steps_per_write).transpose(0, 1).reshape(-1)
        given, stored = _layout(entries), _layout(self._extra)
        if self._num_written and given != stored:
            others = sorted({str(key) for key, _ in given.items() ^ stored.items()})
            raise ValueError(
                f"every write must hold the entries of the first one: got more, fewer or others at {', '.join(others)};"
                " give all batches of a buffer the same keys, shapes and types."
            )
        if self.n_step > 1 and ("next", "reward") not in given:
            raise ValueError(
                f"n-step sums need ('next', 'reward'): got {', '.join(map(str, given))}; store it or set n_step=1."
            )
        return entries

    def _by_step(self, tensor: Tensor) -> Tensor:
        """``[N * T, ...]``, slot by slot, to ``[T, N, ...]``."""
        return tensor.to(self.device).unflatten(0, (self.num_envs, self.steps_per_write)).transpose(0, 1)

    def _begins(self, ended: Tensor) -> Tensor:
        """Whether a game begins with each step of this write, ``[T, N]``."""
        if self._num_written == 0:
            first = torch.full_like(ended[0], self._single)
        else:
            first = self._final_index[self._newest()] >= 0
        return torch.cat([first[None], ended[:-1]])

    def _newest(self) -> slice:
        """Where the newest transition of each slot lies."""
        place = (self._num_written - self.num_envs) % self.max_size
        return slice(place, place + self.num_envs)

    def _check_continuity(self, pixels: Tensor, next_pixels: Tensor, begins: Tensor) -> None:
        before = next_pixels.roll(1, 0)  # stacks that each step shows again unless it begins a game
        if self._num_written == 0:
            before[0] = pixels[0]
        else:
            newest = torch.arange(self._num_written - self.num_envs, self._num_written, device=self.device)
            before[0] = self._stacks(newest, following=True)[:, -pixels.shape[2] :]
        shifted = _differ(pixels[:, :, 1:], next_pixels[:, :, :-1])
        broken = shifted | torch.where(begins, pixels[:, :, :-1].flatten(2).any(-1), _differ(pixels, before))
        if broken.any():
            step, slot = broken.nonzero()[0].tolist()
            raise ValueError(
                "stacks must continue those of the step before, slot by slot, and begin a game with zeros: got another "
                f"stack in slot {slot}, step {step} of this write; flatten [N, T] batches with reshape(-1), keep "
                f"num_envs={self.num_envs} and steps_per_write={self.steps_per_write} those of the collector, and call "
                "cut() when its games are reset."
            )

    def _allocate(self, pixels: Tensor, entries: TensorDictBase) -> None:
        size = pixels.shape[-2:]
        self._frames = self._new_frames(size)
        self._frames[-1] = 0
        # The first stacks come whole, whether or not a game begins with them.
        older = pixels.new_zeros(self.num_envs, self.frame_stack - 1, *size) if self._single else pixels[0, :, :-1]
        self._set_frames((1 - self.frame_stack) * self.num_envs, older.transpose(0, 1))
        self._finals = torch.empty(0, *size, dtype=torch.uint8, device=self.device)
        self._extra = entries[0].apply(
            lambda leaf: torch.zeros(self.max_size, *leaf.shape, dtype=leaf.dtype, device=self.device),
            batch_size=[self.max_size],
        )

    def _new_frames(self, size: Sequence[int]) -> Tensor:
        shape = (self._num_frames + 1, *size)
        if self.scratch_dir is not None:
            return bytes_in_file(shape, self.scratch_dir)
        # Not zeroed, so that memory is taken from the system only as the ring fills; what was not written is not read.
        return torch.empty(shape, dtype=torch.uint8, device=self.device)

    def _set_frames(self, number: int, frames: Tensor) -> None:
        """Store frames ``[T, N, H, W]`` from this number on, in two pieces across the seam of the ring."""
        frames = frames.flatten(0, 1)
        start = number % self._num_frames
        head = min(len(frames), self._num_frames - start)
        self._frames[start : start + head] = frames[:head]
        self._frames[: len(frames) - head] = frames[head:]

    def _depths(self, begins: Tensor) -> Tensor:
        """Older frames of the same game behind each step of this write, ``[T, N]``."""
        most = self.frame_stack - 1
        depth = torch.full_like(begins[0], most, dtype=torch.uint8)
        if self._num_written:
            depth = self._depth[self._newest()]
        depths = []
        for row in begins:
            depth = torch.where(row, 0, (depth + 1).clamp_max(most))
            depths.append(depth)
        return torch.stack(depths)

    def _release_finals(self, places: slice) -> None:
        old = self._final_index[places]
        self._free_finals.extend(old[old >= 0].tolist())
        self._final_index[places] = -1

    def _keep_finals(self, places: Tensor, frames: Tensor) -> None:
        """Store the final frames ``[F, H, W]`` of the games that ended at these places ``[F]``."""
        missing = len(places) - len(self._free_finals)
        if missing > 0:
            old, grow = len(self._finals), max(missing, len(self._finals) // 8, 8)
            self._finals = torch.cat([self._finals, self._finals.new_empty(grow, *frames.shape[1:])])
            self._free_finals.extend(range(old + grow - 1, old - 1, -1))
        kept = torch.tensor(
            [self._free_finals.pop() for _ in range(len(places))], dtype=torch.int64, device=self.device
        )
        self._finals[kept] = frames
        self._final_index[places] = kept.to(torch.int32)

    def cut(self) -> None:
        """Declare that the stream ends here: the next write begins new games in every slot.

        Call it when the environments are reset or replaced (after a resume, say). The newest transitions keep their own
        last frames and are not continued by what follows.
        """
        if self._num_written == 0:
            return
        newest = self._newest()
        going_on = (self._final_index[newest] < 0).nonzero().squeeze(-1)
        following = self._frames.index_select(0, (self._num_written + going_on) % self._num_frames)
        self._keep_finals(newest.start + going_on, following)
        self._stop[newest] = True
        self._bump_mutation_revision()

    # Reading

    def get(self, index: int | Sequence[int] | slice | Tensor) -> TensorDictBase:
        """Transitions with their stacks rebuilt, ``[B]`` for ``B`` indices and ``[]`` for one."""
        if isinstance(index, slice):
            index = range(len(self))[index]
        index = torch.as_tensor(index, device=self.device)
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(-1)
        index = index.long()  # an empty list has no type of its own
        self._check_written(index)
        numbers = self._numbers(index.flatten())
        places = numbers % self.max_size
        if self.n_step == 1:
            last = numbers
            entries = self._extra[places]
        else:
            last, rewards, steps = self._window(numbers)
            entries = self._extra.exclude("next")[places]
            entries.set("next", self._extra.get("next")[last % self.max_size])
            entries.set(("next", "reward"), rewards)
            entries.set("steps_to_next_obs", steps)
        if self.n_step == 1:  # the stacks before and after a step have all frames but one in common
            frames = self._frames_up_to(numbers, self.frame_stack + 1)
            pixels, next_pixels = _channels_last(frames[:, :-1]), _channels_last(frames[:, 1:])
        else:
            pixels, next_pixels = self._stacks(numbers), self._stacks(last, following=True)
        entries.set(self.pixels_key, pixels)
        entries.set(("next", self.pixels_key), next_pixels)
        return entries.reshape(index.shape)

    def _check_written(self, index: Tensor) -> None:
        # On a CUDA device the look at the indices would make the host wait.
        if not index.numel() or (self._num_written and self.device.type != "cpu"):
            return
        for end in (int(index.min()), int(index.max())):
            if not 0 <= end < len(self):
                raise RuntimeError(f"index {end} was not written yet: {len(self)} transitions are stored.")

    def _numbers(self, index: Tensor) -> Tensor:
        """Numbers of the transitions at these indices."""
        block = self.num_envs * self.steps_per_write
        within = index % block
        step = index // block * self.steps_per_write + within % self.steps_per_write
        place = step * self.num_envs + within // self.steps_per_write
        return place + (self._num_written - 1 - place) // self.max_size * self.max_size

    def _window(self, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The last number of each n-step window, its discounted reward ``[B, 1]``, its length in steps ``[B, 1]``."""
        offsets = torch.arange(self.n_step, device=self.device)
        numbers = first[:, None] + offsets * self.num_envs
        places = numbers % self.max_size
        go_on = ~self._stop[places] & (numbers + self.num_envs < self._num_written)
        within = torch.cat([torch.ones_like(go_on[:, :1]), go_on[:, :-1]], -1).cumprod(-1)
        rewards = self._extra.get(("next", "reward"))[places].squeeze(-1)
        total = (rewards * within * self.gamma**offsets).sum(-1, keepdim=True)
        steps = within.sum(-1, keepdim=True)
        return first + (steps.squeeze(-1) - 1) * self.num_envs, total, steps

    def _stacks(self, numbers: Tensor, *, following: bool = False) -> Tensor:
        """Stacks ``[B, S, H, W]`` of these transitions, or those that follow them in the same game; channels last."""
        if following:
            return _channels_last(self._frames_up_to(numbers, self.frame_stack))
        return _channels_last(self._frames_up_to(numbers, self.frame_stack + 1)[:, :-1])

    def _frames_up_to(self, numbers: Tensor, count: int) -> Tensor:
        """The last frames ``[B, count, H, W]`` up to the one that follows each transition, zeros before its game."""
        behind = torch.arange(count - 2, -2, -1, device=self.device)  # steps behind the transition's own newest frame
        inside = behind <= self._depth[numbers % self.max_size][:, None]
        places = (numbers[:, None] - behind * self.num_envs) % self._num_frames
        places = torch.where(inside, places, self._num_frames)
        frames = self._frames.index_select(0, places.flatten()).unflatten(0, places.shape)
        if len(self._finals):
            # Final frames replace the newest ones where a game ended. The same work whatever the batch holds, so that
            # no host waits for its device; bit operations, since torch.where and index_copy_ are slow on bytes.
            final = self._final_index[numbers % self.max_size]
            finals = self._finals.index_select(0, final.clamp_min(0))
            ended = torch.where(final >= 0, 255, 0).to(torch.uint8)[:, None, None]
            newest = frames[:, -1]
            newest ^= (newest ^ finals) & ended
        return frames

    # Saving

    _STATE = ("_num_written", "_single", "_frames", "_finals", "_free_finals", "_final_index", "_stop", "_depth")

    def _sizes(self) -> dict[str, int]:
        names = ("max_size", "num_envs", "steps_per_write", "frame_stack")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Everything stored, by reference."""
        held = {name: getattr(self, name) for name in self._STATE}
        return {"sizes": self._sizes(), "extra": self._extra.to_dict(), **held}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, by copy, into a storage of the same sizes."""
        if state_dict["sizes"] != self._sizes():
            raise ValueError(
                f"a saved storage fits only one of its sizes, {state_dict['sizes']}: got {self._sizes()}; "
                "build it with the same max_size, num_envs, steps_per_write and frame_stack."
            )
        self._check_saved(state_dict)
        for name in self._STATE:
            value = state_dict[name]
            if name == "_frames" and self.scratch_dir is not None and value.numel():
                self._frames = self._new_frames(value.shape[1:]).copy_(value)
                continue
            setattr(self, name, value.to(self.device, copy=True) if isinstance(value, Tensor) else copy(value))
        self._extra = TensorDict(state_dict["extra"], [self.max_size]).to(self.device).clone()
        self._bump_mutation_revision()

    def _check_saved(self, state_dict: dict[str, Any]) -> None:
        """That saved tensors are of this storage's sizes; those of frames are known with the first write only."""
        size = list(state_dict["_frames"].shape[1:])
        own = {name: getattr(self, name) for name in ("_final_index", "_stop", "_depth")}
        wanted = {name: (list(tensor.shape), tensor.dtype) for name, tensor in own.items()}
        begun = state_dict["_num_written"] > 0
        wanted["_frames"] = ([self._num_frames + 1, *size] if begun else [0, 0, 0], torch.uint8)
        wanted["_finals"] = ([len(state_dict["_finals"]), *size], torch.uint8)
        for name, (shape, dtype) in wanted.items():
            saved = state_dict[name]
            if list(saved.shape) != shape or saved.dtype != dtype:
                raise ValueError(
                    f"a saved storage of {len(self._depth)} transitions has {name} {dtype} {shape}: got {saved.dtype} "
                    f"{list(saved.shape)}; the file is damaged or of another version."
                )
        last = int(state_dict["_final_index"].max())
        if last >= len(state_dict["_finals"]):
            raise ValueError(
                f"a saved storage knows {len(state_dict['_finals'])} final frames: got one numbered {last}; the file "
                "is damaged."
            )

    def dumps(self, path: Path | str) -> None:
        """Save to a folder, as the buffer's own ``dumps`` does with each of its parts."""
        Path(path).mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), Path(path) / _FILE)

    def loads(self, path: Path | str) -> None:
        """Restore what :meth:`dumps` saved."""
        file = Path(path) / _FILE
        try:
            state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            if state.keys() != self.state_dict().keys():
                raise ValueError(f"it holds {sorted(state)}")
        except FileNotFoundError:
            raise
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, AttributeError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{file} must be a storage that dumps wrote, and whole: {reason}; it is damaged, or another file."
            ) from error
        self.load_state_dict(state)

    def contains(self, item: int | Tensor) -> bool | Tensor:
        """Whether an index was written."""
        return (item >= 0) & (item < len(self))


def _channels_last(stacks: Tensor) -> Tensor:
    """Stacks ``[B, S, H, W]`` of bytes in channels-last memory, in which every network wants them."""
    if stacks.shape[1] != 4 or sys.byteorder != "little":
        return torch.stack(stacks.unbind(1), -1).permute(0, 3, 1, 2)
    # Four bytes to a word, the oldest frame in the lowest: half the time of writing single bytes.
    words = stacks[:, 3].to(torch.int32)
    for frame in (2, 1, 0):
        words = words.bitwise_left_shift_(8).bitwise_or_(stacks[:, frame])
    return words.view(torch.uint8).unflatten(-1, (-1, 4)).permute(0, 3, 1, 2)


def _differ(first: Tensor, second: Tensor) -> Tensor:
    """Whether stacks ``[T, N, ...]`` of uint8 differ anywhere, ``[T, N]``."""
    return (first ^ second).flatten(2).any(-1)


def _layout(entries: TensorDictBase) -> dict[NestedKey, tuple[torch.Size, torch.dtype]]:
    return {key: (leaf.shape[1:], leaf.dtype) for key, leaf in entries.items(True, True)}
