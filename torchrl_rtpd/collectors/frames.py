"""Stacks of frames for the network that acts, so that nothing else needs to copy them.

Letters: ``N`` slots (games side by side), ``S`` frames a stack, ``H`` and ``W`` height and width.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_rtpd.functional.checks import check_integers

__all__ = ["FrameStacker"]


class FrameStacker:
    """Stack of the last frames of each game, oldest first, with zeros before a game's first.

    Not a module, since its memory is neither weight nor state to be sent: each copy of a policy has its own.

    Args:
        frame_stack: frames ``S`` in a stack.
        pixels_key: where the newest frame uint8 ``[N, 1, H, W]`` is read, and the stack ``[N, S, H, W]`` written.
        start_key: bool ``[N, 1]``, True where a game begins with this frame.

    Raises:
        ValueError: fewer than two frames; at a call, stacks instead of frames, or nothing under ``start_key``.

    Examples:
        >>> from tensordict import TensorDict
        >>> stacker = FrameStacker(2)
        >>> for value, begins in ((1, True), (2, False), (3, True)):
        ...     frame = torch.full((1, 1, 1, 1), value, dtype=torch.uint8)
        ...     seen = stacker(TensorDict({"pixels": frame, "is_init": torch.tensor([[begins]])}, [1]))
        ...     print(seen["pixels"].flatten().tolist())
        [0, 1]
        [1, 2]
        [0, 3]
    """

    def __init__(self, frame_stack: int = 4, *, pixels_key: NestedKey = "pixels", start_key: NestedKey = "is_init"):
        check_integers(2, "without a stack leave it out", frame_stack=frame_stack)
        self.frame_stack = frame_stack
        self.pixels_key = pixels_key
        self.start_key = start_key
        self._stacks: Tensor | None = None  # as last returned
        self._before: Tensor | None = None  # as returned before that

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return a shallow copy of the step ``[N]`` with stacks in place of frames."""
        frame, starts = tensordict.get(self.pixels_key), tensordict.get(self.start_key, None)
        if starts is None or frame.ndim != 4 or frame.shape[1] != 1:
            raise ValueError(
                f"frames are stacked from single ones [N, 1, H, W] with {self.start_key!r} beside them: got "
                f"{list(frame.shape)} and {'no' if starts is None else 'an'} entry {self.start_key!r}; build the "
                "environment with frame_stack=1."
            )
        if self._stacks is None or self._stacks.shape[0] != frame.shape[0] or self._stacks.device != frame.device:
            older = frame.new_zeros(frame.shape[0], self.frame_stack - 1, *frame.shape[2:])
        else:
            older = self._stacks[:, 1:]
            if starts.device.type != "cpu" or starts.numpy().any():  # a GPU would have to be waited for
                older = older.masked_fill(starts.view(-1, 1, 1, 1), 0)
        self._before, self._stacks = self._stacks, torch.cat([older, frame], 1)
        return tensordict.copy().set(self.pixels_key, self._stacks)

    def take_back(self) -> None:
        """Forget the last call, whose step will be seen again."""
        self._stacks, self._before = self._before, None

    def forget(self) -> None:
        """Forget everything."""
        self._stacks = self._before = None
