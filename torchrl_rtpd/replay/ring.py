"""A ring of frames that holds each frame once and rebuilds stacks of them. It knows tensors only.

Consecutive stacks of a game share all frames but one, so a transition needs one new frame: 7,056 bytes at 84 x 84
instead of two stacks of four. The stacks read equal, byte for byte, those written: at the start of a game, across the
seam of the ring, and for the last observation of a game.

Letters: ``N`` slots (games side by side), ``T`` steps a write, ``S`` frames a stack, ``C`` capacity in transitions,
``B`` transitions read, ``*F`` the shape of a frame: height and width, after the colours if it has any.

A transition is known by its *number*, ``step * N + slot`` with steps counted from the first write on. It is never used
again. The next step of the slot is ``N`` further. All that belongs to a transition lies at its *place* ``number % C``,
and the newest frame of its stack at ``number % (C + S * N)``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrl_rtpd.replay.memory import bytes_in_file

__all__ = ["FrameRing"]


class FrameRing:
    """Frames of ``N`` games, one a transition, from which the stacks before and after each transition are rebuilt.

    Three things lie beside the frames: the last frame of each game that ended, where it lies, and how many older
    frames of the same game each stack has.

    Args:
        capacity: transitions ``C``.
        num_envs: slots ``N``.
        frame_stack: frames ``S`` a stack.
        device: where everything lies.
        scratch_dir: a folder in which a file holds the frames; None is memory.

    Examples:
        >>> ring = FrameRing(4, num_envs=1, frame_stack=2)
        >>> frames = torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
        >>> stacks = torch.stack([frames[:-1], frames[1:]], -1).view(3, 1, 2, 1, 1)  # three steps of one game
        >>> ring.write(stacks[:2], stacks[1:], ended=torch.tensor([[False], [True]]))
        >>> ring.stacks(torch.tensor([1])).flatten().tolist()
        [1, 2]
        >>> ring.next_stacks(torch.tensor([1])).flatten().tolist()
        [2, 3]
    """

    STATE = ("_num_written", "_single", "_frames", "_finals", "_free_finals", "_final_index", "_depth")

    def __init__(
        self,
        capacity: int,
        *,
        num_envs: int,
        frame_stack: int,
        device: torch.device | str = "cpu",
        scratch_dir: Path | str | None = None,
    ) -> None:
        self.capacity = capacity
        self.num_envs = num_envs
        self.frame_stack = frame_stack
        self.device = torch.device(device)
        self.scratch_dir = scratch_dir
        # Also the older frames of the oldest stack and the one that follows the newest.
        self.num_frames = capacity + frame_stack * num_envs
        self.empty()

    def empty(self) -> None:
        """Forget everything."""
        self._num_written = 0
        self._single = False
        self._frames = torch.empty(0, 0, 0, dtype=torch.uint8)  # [C + S * N + 1, *F], the last one always zero
        # Last frames of ended games, and where each transition's lies: -1 while its game goes on.
        self._finals = torch.empty(0, 0, 0, dtype=torch.uint8)  # [number, *F], grown when needed
        self._free_finals: list[int] = []
        self._final_index = torch.full((self.capacity,), -1, dtype=torch.int32, device=self.device)
        # Older frames of the same game in the stack, at most S - 1.
        self._depth = torch.zeros(self.capacity, dtype=torch.uint8, device=self.device)

    @property
    def num_written(self) -> int:
        """Transitions since the first write, which is the number of the next one."""
        return self._num_written

    @property
    def single(self) -> bool:
        """True when single frames are written instead of stacks."""
        return self._single

    @property
    def frame_shape(self) -> tuple[int, ...] | None:
        """Shape ``*F`` of a frame; None before the first write."""
        return tuple(self._frames.shape[1:]) if self._num_written else None

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes."""
        held = (self._frames, self._finals, self._final_index, self._depth)
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def newest(self) -> slice:
        """Places of the newest transition of each slot."""
        place = (self._num_written - self.num_envs) % self.capacity
        return slice(place, place + self.num_envs)

    # Writing

    def check(self, pixels: Tensor, next_pixels: Tensor, ended: Tensor) -> None:
        """Refuse stacks that could not be rebuilt.

        Args:
            pixels: stacks before each step, uint8 ``[T, N, S, *F]``, or the newest frames alone, ``[T, N, 1, *F]``.
            next_pixels: those after it.
            ended: True where a game is over after a step, bool ``[T, N]``.

        Raises:
            ValueError: a stack that does not continue the one before, or begins a game with other frames than zeros.
        """
        begins = self._begins(ended, single=pixels.shape[2] == 1)
        if self._num_written == 0:
            _check_padding(pixels[0])
        before = next_pixels.roll(1, 0)  # stacks that each step shows again unless it begins a game
        if self._num_written == 0:
            before[0] = pixels[0]
        else:
            newest = torch.arange(self._num_written - self.num_envs, self._num_written, device=self.device)
            before[0] = self._frames_up_to(newest, self.frame_stack)[:, -pixels.shape[2] :]
        shifted = _differ(pixels[:, :, 1:], next_pixels[:, :, :-1])
        broken = shifted | torch.where(begins, pixels[:, :, :-1].flatten(2).any(-1), _differ(pixels, before))
        if broken.any():
            step, slot = broken.nonzero()[0].tolist()
            raise ValueError(
                "stacks must continue those of the step before, slot by slot, and begin a game with zeros: got another "
                f"stack in slot {slot}, step {step} of this write; flatten [N, T] batches with reshape(-1), keep "
                f"num_envs={self.num_envs} and steps_per_write={len(pixels)} those of the collector, and call "
                "cut() when its games are reset."
            )

    def write(self, pixels: Tensor, next_pixels: Tensor, ended: Tensor) -> None:
        """Store ``T`` steps of every slot, which :meth:`check` takes, in place of the oldest.

        Args:
            pixels: stacks before each step, uint8 ``[T, N, S, *F]``, or the newest frames alone, ``[T, N, 1, *F]``.
            next_pixels: those after it.
            ended: True where a game is over after a step, bool ``[T, N]``.
        """
        if self._num_written == 0:
            self._single = pixels.shape[2] == 1
            self._allocate(pixels[0])
        number, size = self._num_written, ended.numel()
        place = number % self.capacity
        written = slice(place, place + size)  # in one piece, since C is a multiple of N * T
        self._depth[written] = self._depths(self._begins(ended, single=self._single)).flatten()
        self._set_frames(number, pixels[:, :, -1])
        # Until the next step brings the same frame, or the first one of another game.
        self._set_frames(number + size, next_pixels[-1:, :, -1])
        self._release_finals(written)
        self._keep_finals(place + ended.flatten().nonzero().squeeze(-1), next_pixels[:, :, -1][ended])
        self._num_written += size

    def cut(self) -> slice:
        """Let the next write begin new games in every slot.

        Returns:
            The places of the newest transitions, which keep their own last frames.
        """
        newest = self.newest()
        going_on = (self._final_index[newest] < 0).nonzero().squeeze(-1)
        following = self._frames.index_select(0, (self._num_written + going_on) % self.num_frames)
        self._keep_finals(newest.start + going_on, following)
        return newest

    def _begins(self, ended: Tensor, *, single: bool) -> Tensor:
        """True where a game begins with a step of this write, ``[T, N]``."""
        if self._num_written == 0:
            first = torch.full_like(ended[0], single)
        else:
            first = self._final_index[self.newest()] >= 0
        return torch.cat([first[None], ended[:-1]])

    def _allocate(self, pixels: Tensor) -> None:
        shape = pixels.shape[2:]
        self._frames = self._new_frames(shape)
        self._frames[-1] = 0
        # The first stacks come whole, whether or not a game begins with them.
        older = pixels.new_zeros(self.num_envs, self.frame_stack - 1, *shape) if self._single else pixels[:, :-1]
        self._set_frames((1 - self.frame_stack) * self.num_envs, older.transpose(0, 1))
        self._finals = torch.empty(0, *shape, dtype=torch.uint8, device=self.device)

    def _new_frames(self, shape: Sequence[int]) -> Tensor:
        shape = (self.num_frames + 1, *shape)
        if self.scratch_dir is not None:
            return bytes_in_file(shape, self.scratch_dir)
        # Not zeroed, so that memory is taken from the system only as the ring fills; no frame is read unwritten.
        return torch.empty(shape, dtype=torch.uint8, device=self.device)

    def _set_frames(self, number: int, frames: Tensor) -> None:
        """Store frames ``[T, N, *F]`` from this number on, in two pieces across the seam of the ring."""
        frames = frames.flatten(0, 1)
        start = number % self.num_frames
        head = min(len(frames), self.num_frames - start)
        self._frames[start : start + head] = frames[:head]
        self._frames[: len(frames) - head] = frames[head:]

    def _depths(self, begins: Tensor) -> Tensor:
        """Older frames of the same game behind each step of this write, ``[T, N]``."""
        most = self.frame_stack - 1
        depth = torch.full_like(begins[0], most, dtype=torch.uint8)
        if self._num_written:
            depth = self._depth[self.newest()]
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
        """Store the last frames ``[number, *F]`` of the games that ended at these places ``[number]``."""
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

    # Reading

    def stacks(self, numbers: Tensor) -> Tensor:
        """Stacks before these transitions, uint8 ``[B, S, *F]`` in channels-last memory."""
        return channels_last(self._frames_up_to(numbers, self.frame_stack + 1)[:, :-1])

    def next_stacks(self, numbers: Tensor) -> Tensor:
        """Stacks after these transitions in the same game, uint8 ``[B, S, *F]`` in channels-last memory."""
        return channels_last(self._frames_up_to(numbers, self.frame_stack))

    def both_stacks(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Stacks before and after these transitions, which have all frames but one in common."""
        frames = self._frames_up_to(numbers, self.frame_stack + 1)
        return channels_last(frames[:, :-1]), channels_last(frames[:, 1:])

    def _frames_up_to(self, numbers: Tensor, count: int) -> Tensor:
        """The last frames ``[B, count, *F]`` up to the one that follows each transition, zeros before its game."""
        behind = torch.arange(count - 2, -2, -1, device=self.device)  # steps behind the transition's own newest frame
        inside = behind <= self._depth[numbers % self.capacity][:, None]
        places = (numbers[:, None] - behind * self.num_envs) % self.num_frames
        places = torch.where(inside, places, self.num_frames)
        frames = self._frames.index_select(0, places.flatten()).unflatten(0, places.shape)
        if len(self._finals):
            # Last frames replace the newest ones where a game ended. The same work whatever the batch holds, so that
            # no host waits for its device; bit operations, since torch.where and index_copy_ are slow on bytes.
            final = self._final_index[numbers % self.capacity]
            finals = self._finals.index_select(0, final.clamp_min(0))
            ended = torch.where(final >= 0, 255, 0).to(torch.uint8).view(-1, *[1] * (finals.ndim - 1))
            newest = frames[:, -1]
            newest ^= (newest ^ finals) & ended
        return frames

    # Saving

    def state(self) -> dict[str, Any]:
        """Everything held, by reference."""
        return {name: getattr(self, name) for name in self.STATE}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore by copy a state that :meth:`state` returned.

        Raises:
            ValueError: tensors of another shape or dtype than those of a ring of this capacity.
        """
        self._check_saved(state)
        for name in self.STATE:
            value = state[name]
            if name == "_frames" and self.scratch_dir is not None and value.numel():
                self._frames = self._new_frames(value.shape[1:]).copy_(value)
                continue
            setattr(self, name, value.to(self.device, copy=True) if isinstance(value, Tensor) else copy(value))

    def _check_saved(self, state: Mapping[str, Any]) -> None:
        """Check the tensors of a saved ring; the shape of frames is known with the first write only."""
        shape = list(state["_frames"].shape[1:])
        begun = state["_num_written"] > 0
        check_saved(state, "_final_index", [self.capacity], torch.int32, self.capacity)
        check_saved(state, "_depth", [self.capacity], torch.uint8, self.capacity)
        frames = [self.num_frames + 1, *shape] if begun else [0, 0, 0]
        check_saved(state, "_frames", frames, torch.uint8, self.capacity)
        check_saved(state, "_finals", [len(state["_finals"]), *shape], torch.uint8, self.capacity)
        last = int(state["_final_index"].max())
        if last >= len(state["_finals"]):
            raise ValueError(
                f"a saved storage knows {len(state['_finals'])} final frames: got one numbered {last}; the file "
                "is damaged."
            )


def check_saved(state: Mapping[str, Any], name: str, shape: list[int], dtype: torch.dtype, capacity: int) -> None:
    """Check one tensor of a saved state."""
    saved = state[name]
    if list(saved.shape) != shape or saved.dtype != dtype:
        raise ValueError(
            f"a saved storage of {capacity} transitions has {name} {dtype} {shape}: got {saved.dtype} "
            f"{list(saved.shape)}; the file is damaged or of another version."
        )


def channels_last(stacks: Tensor) -> Tensor:
    """Return stacks of bytes ``[B, S, *F]`` in channels-last memory, which every network of pixels wants.

    Colours lie beside the frames in one dimension: ``[B, S, 3, H, W]`` becomes ``[B, 3 * S, H, W]``.
    """
    if stacks.ndim > 4:
        stacks = stacks.flatten(1, -3)
    if stacks.shape[1] != 4 or sys.byteorder != "little":
        return torch.stack(stacks.unbind(1), -1).permute(0, 3, 1, 2)
    # Four bytes to a word, the oldest frame in the lowest: half the time of writing single bytes.
    words = stacks[:, 3].to(torch.int32)
    for frame in (2, 1, 0):
        words = words.bitwise_left_shift_(8).bitwise_or_(stacks[:, frame])
    return words.view(torch.uint8).unflatten(-1, (-1, 4)).permute(0, 3, 1, 2)


def _differ(first: Tensor, second: Tensor) -> Tensor:
    """True where stacks ``[T, N, ...]`` of uint8 differ anywhere, ``[T, N]``."""
    return (first ^ second).flatten(2).any(-1)


def _check_padding(pixels: Tensor) -> None:
    """Refuse first stacks ``[N, S, *F]`` that repeat one frame in every slot, as padded ones do."""
    repeated = (pixels[:, 1:] == pixels[:, :1]).flatten(1).all(-1) & pixels[:, 0].flatten(1).any(-1)
    if pixels.shape[1] > 1 and repeated.all():
        raise ValueError(
            f"a game must begin with zeros before its first frame: got first stacks of one frame {pixels.shape[1]} "
            "times over in every slot; pad stacks with zeros, as AtariVecEnv does, CatFrames(padding='constant') or "
            "gymnasium's FrameStackObservation(padding_type='zero')."
        )
