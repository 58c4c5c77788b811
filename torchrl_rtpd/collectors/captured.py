"""The step of a teacher that acts alone, its network and its exploration, as one CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_rtpd.networks.captured import Captured

__all__ = ["CapturedTeacher", "check_capturable"]


class CapturedTeacher:
    """Actions of a teacher, captured after some steps; on a CPU the same step, uncaptured.

    Not a module, since a graph is neither weight nor state. Weights may change in place, as those that a trainer learns
    and sends do; the share of random actions is read at each step.

    Args:
        teacher: a module that writes ``"action"``, and remembers nothing.
        exploration: replaces actions; None leaves them.
        keep: further outputs of the teacher.
    """

    def __init__(
        self, teacher: TensorDictModule, exploration: TensorDictModule | None = None, *, keep: Sequence[NestedKey] = ()
    ) -> None:
        self._teacher, self._exploration = teacher, exploration
        self._keys: list[NestedKey] = ["action", *keep]
        more = () if exploration is None else exploration.in_keys
        self._reads = [*teacher.in_keys, *(key for key in more if key not in teacher.out_keys)]
        self._steps: dict[ExplorationType | None, Captured] = {}  # by TorchRL's exploration type, which they follow

    def __call__(self, seen: TensorDictBase) -> TensorDictBase:
        """Return ``"action"`` and what is kept of a step ``[N]``, in tensors of their own."""
        kind = exploration_type()
        if kind not in self._steps:
            device = seen.get(self._teacher.in_keys[0]).device
            self._steps[kind] = Captured(self._act, device)
        return self._steps[kind](seen.select(*self._reads)).clone()

    @torch.no_grad()
    def _act(self, seen: TensorDictBase) -> TensorDictBase:
        data = seen.copy()
        data.update(self._teacher(seen.copy()).select(*self._keys))
        if self._exploration is not None:
            self._exploration(data)
        return data.select(*self._keys)


def check_capturable(found: Mapping[str, bool]) -> None:
    """Refuse a policy whose step depends on values, or on what was before.

    Args:
        found: what cannot be captured, and whether the policy has it.

    Raises:
        ValueError: it has one of them.
    """
    for what, there in found.items():
        if there:
            raise ValueError(
                f"a captured step is that of a feed-forward teacher that acts alone: got {what}; leave out "
                "cudagraph_policy."
            )
