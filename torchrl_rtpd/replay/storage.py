"""TorchRL's storage over a ring of frames: one uint8 frame a transition, stacks rebuilt when sampled.

Letters: ``N`` slots (games side by side), ``T`` steps a write, ``S`` frames a stack, ``C`` capacity in transitions,
``B`` samples, ``H`` and ``W`` height and width of a frame.

A transition has two names. Its *index*, below ``C`` and used again, is the name that samplers know: writes lie one
after the other, each slot by slot. Its *number* is that of :mod:`torchrl_rtpd.replay.ring`, which counts step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import TensorStorage

from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.replay.memory import check_fits
from torchrl_rtpd.replay.n_step import n_step_windows
from torchrl_rtpd.replay.ring import FrameRing, check_saved
from torchrl_rtpd.replay.saved import saved_state
from torchrl_rtpd.replay.writes import check_layout, check_order, checked_flag, checked_stacks, without_newer_entries

__all__ = ["FrameStackStorage"]

_FILE = "frames.pt"
_BOOKKEEPING = 6  # bytes a transition: place of its last frame, stop, depth
_ENTRIES = 68  # about: action, rewards, scores, flags


class FrameStackStorage(TensorStorage):
    """A TorchRL storage for stacked frames: one uint8 frame a transition, stacks rebuilt when sampled.

    Written by ``extend`` with the batches of a collector of ``N`` slots, flattened slot by slot (``batch.reshape(-1)``
    of ``[N, T]``, as TorchRL's trainers do). Everything but the frames is stored as it comes. A write whose stacks
    could not be rebuilt is refused before anything is stored, so a wrong layout is an error and never silent mixing.
    Single items cannot be added or overwritten. Writes may also hold single frames ``[N * T, 1, H, W]``, all of them or
    none, which spares a collector the copies of stacks. Games then begin with the first write.

    Args:
        max_size: capacity ``C`` in transitions, a multiple of ``num_envs * steps_per_write``.
        num_envs: slots ``N`` of the collector.
        steps_per_write: steps ``T`` a write (the collector's ``frames_per_batch / N``).
        frame_stack: frames ``S`` in an observation.
        n_step: rewards added up at sampling time. ``("next", "reward")`` becomes the discounted sum, the other
            ``"next"`` entries come from the last of those steps, and ``"steps_to_next_obs"`` int64 ``[B, 1]`` tells
            TorchRL's value estimators how far to discount. Sums stop at the end of a game, at a lost life
            (``("next", "end_of_life")``, if present) and at the newest step.
        gamma: discount factor of these sums; give the loss the same.
        channels: colours of a frame, which lie side by side in ``pixels``: ``[N * T, S * channels, H, W]``, as
            ``AtariVecEnv(grayscale=False)`` shows them with 3.
        device: where the frames live, for example ``"cuda"``.
        pixels_key: where the stacks are read and written.
        scratch_dir: a folder in which a file holds the frames, for more of them than there is memory; see
            :func:`~torchrl_rtpd.replay.memory.bytes_in_file`. None is memory.

    Attributes:
        next_stacks: True to rebuild ``("next", pixels_key)`` in samples, which it is at first. False leaves it out, for
            losses that read no next states, such as those of PQN: half the work of a sample.

    Raises:
        ValueError: sizes that do not fit each other; at a write, data of another layout or size, or stacks padded with
            anything but zeros.
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
        channels: int = 1,
        device: torch.device | str = "cpu",
        pixels_key: NestedKey = "pixels",
        scratch_dir: Path | str | None = None,
    ) -> None:
        check_integers(1, max_size=max_size, num_envs=num_envs, steps_per_write=steps_per_write)
        check_integers(1, frame_stack=frame_stack, n_step=n_step, channels=channels)
        _check_sizes(max_size, num_envs * steps_per_write, gamma)
        super().__init__(None, int(max_size), device=device)
        if scratch_dir is not None and self.device.type != "cpu":
            raise ValueError(f"a file holds frames for the CPU only: got scratch_dir and device={device}; give one.")
        self.scratch_dir = scratch_dir
        self.num_envs = int(num_envs)
        self.steps_per_write = int(steps_per_write)
        self.frame_stack = int(frame_stack)
        self.n_step = int(n_step)
        self.gamma = gamma
        self.channels = int(channels)
        self.pixels_key = unravel_key(pixels_key)
        self.next_stacks = True
        self._total_shape_value = torch.Size([self.max_size])  # where TensorStorage looks for it
        check_fits(
            self.estimated_bytes,
            f"a replay of {max_size:,} transitions",
            "lower max_size, or keep it on a device with more memory or in a scratch_dir",
            self.device,
            scratch_dir,
        )
        sizes = {"num_envs": self.num_envs, "frame_stack": self.frame_stack}
        self._ring = FrameRing(self.max_size, **sizes, device=self.device, scratch_dir=scratch_dir)
        self._empty()

    def _empty(self) -> None:
        self._bump_mutation_revision()
        self.initialized = True  # there is nothing lazy for a sampler to wait for
        self._ring.empty()
        self._extra = TensorDict({}, [self.max_size])  # every entry but the frames
        # True where n-step sums stop.
        self._stop = torch.zeros(self.max_size, dtype=torch.bool, device=self.device)

    @property
    def _num_written(self) -> int:
        return self._ring.num_written

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
        return (self._ring.num_bytes + self._stop.numel() + self._extra.bytes()) / self.max_size

    @property
    def estimated_bytes(self) -> int:
        """Memory it will hold when full, with frames of 84 x 84 pixels and entries like those of Atari environments."""
        num_frames = self.max_size + self.frame_stack * self.num_envs
        return num_frames * 84 * 84 * self.channels + self.max_size * (_BOOKKEEPING + _ENTRIES)

    # Writing

    def set(self, cursor: Any, data: TensorDictBase, *, set_cursor: bool = True) -> None:
        """Store one write of ``N * T`` transitions, slot by slot. Called by the buffer's writer.

        Everything is checked before anything is stored: a write that raises leaves the stored transitions as they were.

        Raises:
            ValueError: a write out of order, of another layout than the first one, or of stacks that do not continue
                those stored.
        """
        place = self._num_written % self.max_size
        check_order(cursor, data, place if set_cursor else None, slots=self.num_envs, steps=self.steps_per_write)
        pixels, next_pixels = self._stacks(data)
        ended = self._by_step(checked_flag(data, "done"))
        stop = ended
        if ("next", "end_of_life") in data.keys(True):
            stop = ended | self._by_step(checked_flag(data, "end_of_life"))
        entries = self._entries(data)
        self._ring.check(pixels, next_pixels, ended)

        if self._num_written == 0:
            self._extra = entries[0].apply(
                lambda leaf: torch.zeros(self.max_size, *leaf.shape, dtype=leaf.dtype, device=self.device),
                batch_size=[self.max_size],
            )
        written = slice(place, place + len(data))  # in one piece, since C is a multiple of N * T
        self._stop[written] = stop.flatten()
        self._extra[written] = entries
        self._ring.write(pixels, next_pixels, ended)
        self._set_last_cursor(cursor)
        self._bump_mutation_revision()

    def _stacks(self, data: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Stacks before and after each step, ``[T, N, S, *F]``, or single frames ``[T, N, 1, *F]``."""
        single = self._ring.single
        size = self._ring.frame_shape and self._ring.frame_shape[-2:]
        if size is None:
            shown = data.get(self.pixels_key, None)
            single = shown is not None and shown.ndim == 4 and shown.shape[1] == self.channels
        frames = 1 if single else self.frame_stack
        keys = (self.pixels_key, unravel_key(("next", self.pixels_key)))
        pixels, next_pixels = checked_stacks(data, keys, frames * self.channels, size)
        if self.channels > 1:
            pixels, next_pixels = (stack.unflatten(1, (frames, self.channels)) for stack in (pixels, next_pixels))
        return self._by_step(pixels), self._by_step(next_pixels)

    def _entries(self, data: TensorDictBase) -> TensorDictBase:
        """Every entry but the frames, step by step ``[T * N]``."""
        entries = data.exclude(self.pixels_key, ("next", self.pixels_key), "index")
        if self._num_written:
            entries = without_newer_entries(entries, self._extra)
        entries = entries.to(self.device)
        entries = entries.reshape(self.num_envs, self.steps_per_write).transpose(0, 1).reshape(-1)
        if self._num_written:
            check_layout(entries, self._extra)
        if self.n_step > 1 and ("next", "reward") not in entries.keys(True):
            given = ", ".join(map(str, entries.keys(True, True)))
            raise ValueError(f"n-step sums need ('next', 'reward'): got {given}; store it or set n_step=1.")
        return entries

    def _by_step(self, tensor: Tensor) -> Tensor:
        """``[N * T, ...]``, slot by slot, to ``[T, N, ...]``."""
        return tensor.to(self.device).unflatten(0, (self.num_envs, self.steps_per_write)).transpose(0, 1)

    def renew(self, data: TensorDictBase) -> None:
        """Replace everything but the frames of the newest write, such as returns computed from what it stored.

        Args:
            data: that write ``[N * T]``, slot by slot, with other values. Its frames and ends are not looked at.

        Raises:
            ValueError: entries of another layout, or another number of them.
            RuntimeError: nothing was written yet.
        """
        block = self.num_envs * self.steps_per_write
        if self._num_written == 0:
            raise RuntimeError("renew replaces entries of the newest write: got a storage without one; extend first.")
        if len(data) != block:
            raise ValueError(f"renew takes the whole newest write, {block} transitions: got {len(data)}.")
        place = (self._num_written - block) % self.max_size
        self._extra[place : place + block] = self._entries(data)
        self._bump_mutation_revision()

    def cut(self) -> None:
        """Declare that the stream ends here: the next write begins new games in every slot.

        Call it when the environments are reset or replaced (after a resume, say). The newest transitions keep their own
        last frames and are not continued by the next ones.
        """
        if self._num_written == 0:
            return
        self._stop[self._ring.cut()] = True
        self._bump_mutation_revision()

    # Reading

    def get(self, index: int | Sequence[int] | slice | Tensor) -> TensorDictBase:
        """Return transitions with their stacks rebuilt, ``[B]`` for ``B`` indices and ``[]`` for one.

        Raises:
            RuntimeError: an index that was not written yet.
        """
        if isinstance(index, slice):
            index = range(len(self))[index]
        index = torch.as_tensor(index, device=self.device)
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(-1)
        index = index.long()  # an empty list has no type of its own
        self._check_written(index)
        numbers = self._numbers(index.flatten())
        if self.n_step == 1:
            last, entries = numbers, self._extra[numbers % self.max_size]
        else:
            last, entries = self._summed(numbers)
        pixels, next_pixels = self._rebuilt(numbers, last)
        entries.set(self.pixels_key, pixels)
        if next_pixels is not None:
            entries.set(("next", self.pixels_key), next_pixels)
        return entries.reshape(index.shape)

    def _rebuilt(self, numbers: Tensor, last: Tensor) -> tuple[Tensor, Tensor | None]:
        """Stacks before these transitions, and after the last of their windows if they are wanted."""
        if not self.next_stacks:
            return self._ring.stacks(numbers), None
        if last is numbers:
            return self._ring.both_stacks(numbers)
        return self._ring.stacks(numbers), self._ring.next_stacks(last)

    def next_states(self, index: Tensor) -> TensorDictBase:
        """Return the states after transitions, whatever ``next_stacks`` says.

        Args:
            index: of the transitions, int64 ``[B]``.

        Returns:
            The entries under ``"next"``, ``[B]``; those of the step itself, without n-step sums.
        """
        self._check_written(index)
        numbers = self._numbers(index)
        states = self._extra.get("next")[numbers % self.max_size]
        return states.set(self.pixels_key, self._ring.next_stacks(numbers))

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

    def _summed(self, numbers: Tensor) -> tuple[Tensor, TensorDictBase]:
        """Numbers of the last transitions of the n-step windows from these on, and the entries of the windows."""
        last, rewards, steps = n_step_windows(
            numbers,
            self._extra.get(("next", "reward")),
            self._stop,
            n_step=self.n_step,
            gamma=self.gamma,
            num_envs=self.num_envs,
            num_written=self._num_written,
        )
        entries = self._extra.exclude("next")[numbers % self.max_size]
        entries.set("next", self._extra.get("next")[last % self.max_size])
        entries.set(("next", "reward"), rewards)
        entries.set("steps_to_next_obs", steps)
        return last, entries

    # Saving

    _STATE = (*FrameRing.STATE, "_stop")

    def _sizes(self) -> dict[str, int]:
        names = ("max_size", "num_envs", "steps_per_write", "frame_stack")
        colours = {} if self.channels == 1 else {"channels": self.channels}
        return {**{name: getattr(self, name) for name in names}, **colours}

    def state_dict(self) -> dict[str, Any]:
        """Return everything stored, by reference."""
        return {"sizes": self._sizes(), "extra": self._extra.to_dict(), **self._ring.state(), "_stop": self._stop}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that :meth:`state_dict` returned, by copy, into a storage of the same sizes.

        Raises:
            ValueError: a state of other sizes, or one that is damaged.
        """
        if state_dict["sizes"] != self._sizes():
            raise ValueError(
                f"a saved storage fits only one of its sizes, {state_dict['sizes']}: got {self._sizes()}; "
                "build it with the same max_size, num_envs, steps_per_write and frame_stack."
            )
        check_saved(state_dict, "_stop", [self.max_size], torch.bool, self.max_size)
        self._ring.load_state(state_dict)
        self._stop = state_dict["_stop"].to(self.device, copy=True)
        self._extra = TensorDict(state_dict["extra"], [self.max_size]).to(self.device).clone()
        self._bump_mutation_revision()

    def dumps(self, path: Path | str) -> None:
        """Save to a folder, as the buffer's own ``dumps`` does with each of its parts."""
        Path(path).mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), Path(path) / _FILE)

    def loads(self, path: Path | str) -> None:
        """Restore a state that :meth:`dumps` saved.

        Raises:
            FileNotFoundError: a folder without such a file.
            ValueError: a file that is damaged or another one, or a state of other sizes.
        """
        self.load_state_dict(saved_state(Path(path) / _FILE, self.state_dict().keys()))

    def contains(self, item: int | Tensor) -> bool | Tensor:
        """Return True for an index that was written, for each of several."""
        return (item >= 0) & (item < len(self))


def _check_sizes(max_size: int, block: int, gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is a discount factor in [0, 1]: got {gamma}; give the loss the same.")
    if max_size < block:
        raise ValueError(
            f"max_size must have room for one write, num_envs * steps_per_write = {block}: got {max_size}; "
            f"use {block} or more."
        )
    if max_size % block:
        raise ValueError(
            f"max_size must be a multiple of num_envs * steps_per_write = {block}: got {max_size}; "
            f"use {max_size - max_size % block}."
        )
