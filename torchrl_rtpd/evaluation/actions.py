"""Uniformly random actions that an environment's specs and masks allow.

``N`` slots; ``A`` actions of one choice; ``K`` choices of one action. Numbers come from the caller's generator, never
from torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torch.nn.functional import one_hot
from torchrl.data import Binary, Bounded, Categorical, MultiCategorical, MultiOneHot, OneHot, TensorSpec
from torchrl.envs import EnvBase

__all__ = ["RandomActions"]


class RandomActions:
    """Draws the random player's actions.

    ==================================  ================================================================
    Spec of an action                   Drawn
    ==================================  ================================================================
    ``Categorical``, ``OneHot``         one of the actions that spec and mask allow
    ``MultiCategorical``,               each choice by itself, of those that spec and mask allow
    ``MultiOneHot``
    ``Binary``                          each bit by itself
    ``Bounded``, all bounds finite      uniform between them; integers with both ends
    ``Unbounded``, ``Stacked``, others  refused, since nothing is uniform over them or rows differ
    ==================================  ================================================================

    An environment of several action keys, or of several agents ``[N, agents]`` in one batch, has all of them drawn.

    Args:
        env: an environment of batch ``[N]``.
        mask_key: name of the boolean entry beside an action (``("agents", "action")`` has ``("agents",
            "action_mask")``), True where an action is allowed, or the whole nested key. A mask has ``A`` entries, for
            several choices those of all one after the other. None takes ``"action_mask"`` if the environment has it.
            The mask of the spec itself, which :class:`~torchrl.envs.ActionMask` sets, always counts.

    Attributes:
        refusal: why this environment has no random player; None if it has.

    Raises:
        ValueError: a ``mask_key`` that no entry of the environment has; at a call, a mask of another shape, or one that
            allows nothing.

    Examples:
        >>> from torchrl.envs import GymEnv
        >>> env = GymEnv("CartPole-v1")  # one-hot
        >>> drawn = RandomActions(env)(env.reset(), torch.tensor(True), torch.Generator().manual_seed(0))
        >>> drawn["action"]
        tensor([1, 0])
    """

    def __init__(self, env: EnvBase, mask_key: NestedKey | None = None) -> None:
        self._env = env
        self.keys: list[NestedKey] = list(env.action_keys)
        entries = {*env.full_observation_spec.keys(True, True), *env.full_state_spec.keys(True, True)}
        beside = {key: _beside(key, "action_mask" if mask_key is None else mask_key) for key in self.keys}
        self._mask_keys = {key: mask for key, mask in beside.items() if mask in entries}
        if mask_key is not None and not self._mask_keys:
            raise ValueError(
                f"action_mask_key must name an entry of the environment: got {mask_key!r}, it has "
                f"{sorted(entries, key=str)}; leave it out where every action is allowed."
            )
        refusals = [self._refused(key) for key in self.keys]
        self.refusal: str | None = next((refusal for refusal in refusals if refusal is not None), None)

    def _refused(self, key: NestedKey) -> str | None:
        spec = self._env.full_action_spec[key]
        if isinstance(spec, Bounded):
            bounds = torch.stack([spec.space.low.double(), spec.space.high.double()])
            if not bounds.isfinite().all():
                return f"{key!r} has infinite bounds"
        elif not isinstance(spec, (Categorical, OneHot)):  # MultiCategorical, Binary and MultiOneHot are among them
            return f"{key!r} is {type(spec).__name__}"
        elif isinstance(spec, MultiCategorical) and len({tuple(row) for row in _rows(spec)}) > 1:
            return f"{key!r} has rows of different choices, {_rows(spec)}"
        if key in self._mask_keys and isinstance(spec, (Bounded, Binary)):
            return f"{key!r} is {type(spec).__name__} and has a mask, {self._mask_keys[key]!r}"
        return None

    def __call__(
        self, tensordict: TensorDictBase, explores: Tensor, generator: torch.Generator
    ) -> dict[NestedKey, Tensor]:
        """Draw an action for every slot, by key.

        Args:
            tensordict: the step ``[N]``, of which only masks are read.
            explores: bool ``[N]``, slots that will take it, whose masks must allow something.
            generator: where numbers come from, on the CPU.
        """
        drawn = {key: self._draw(key, tensordict, explores, generator) for key in self.keys}
        specs = {key: self._env.full_action_spec[key] for key in self.keys}
        return {key: action.to(specs[key].device, specs[key].dtype) for key, action in drawn.items()}

    def _draw(self, key: NestedKey, tensordict: TensorDictBase, explores: Tensor, generator: torch.Generator) -> Tensor:
        spec = self._env.full_action_spec[key]
        if isinstance(spec, Bounded):
            return _between(spec, generator)
        if isinstance(spec, Binary):
            return torch.randint(2, spec.shape, generator=generator)
        hot = isinstance(spec, OneHot)
        several = isinstance(spec, (MultiCategorical, MultiOneHot))
        sizes = _sizes(spec) if several else [spec.shape[-1] if hot else spec.n]
        shape = spec.shape[:-1] if hot or several else spec.shape
        mask = self._mask(key, spec, tensordict, explores, torch.Size([*shape, sum(sizes)]))
        masks = [None] * len(sizes) if mask is None else mask.split(sizes, -1)
        chosen = [_choice(size, shape, part, generator) for size, part in zip(sizes, masks, strict=True)]
        if hot:
            return torch.cat([one_hot(index, size) for index, size in zip(chosen, sizes, strict=True)], -1)
        return torch.stack(chosen, -1) if several else chosen[0]

    def _mask(
        self, key: NestedKey, spec: TensorSpec, tensordict: TensorDictBase, explores: Tensor, shape: torch.Size
    ) -> Tensor | None:
        """Mask of what spec and data allow; None allows everything, as do rows of slots that do not explore."""
        masks = [spec.mask] if spec.mask is not None else []
        if key in self._mask_keys:
            masks.append(tensordict.get(self._mask_keys[key]))
        if not masks:
            return None
        for mask in masks:
            if mask.shape != shape:
                raise ValueError(
                    f"a mask of {key!r} must have one entry an action, {list(shape)}: got {list(mask.shape)}; name "
                    "another with action_mask_key."
                )
        allowed = torch.stack([mask.cpu().bool() for mask in masks]).all(0)
        sizes = _sizes(spec) if isinstance(spec, (MultiCategorical, MultiOneHot)) else [shape[-1]]
        rows = explores.reshape(explores.shape + (1,) * (len(shape) - explores.ndim))
        for part in allowed.split(sizes, -1):
            if (rows & ~part.any(-1, keepdim=True)).any():
                raise ValueError(f"the mask of {key!r} must allow an action in every slot that plays: got none.")
        return allowed | ~rows


def _beside(action_key: NestedKey, mask_key: NestedKey) -> NestedKey:
    """Key of the mask in the same tensordict as an action."""
    if isinstance(mask_key, str) and not isinstance(action_key, str):
        return (*action_key[:-1], mask_key)
    return mask_key


def _sizes(spec: TensorSpec) -> list[int]:
    """Number of actions of each of several choices."""
    return list(spec.nvec) if isinstance(spec, MultiOneHot) else _rows(spec)[0]


def _rows(spec: MultiCategorical) -> list[list[int]]:
    """Number of actions of each choice, for each row of the spec's batch."""
    return spec.nvec.reshape(-1, spec.nvec.shape[-1]).tolist()


def _choice(size: int, shape: Sequence[int], mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Indices of one choice, int64 in this shape."""
    if mask is None:
        return torch.randint(size, tuple(shape), generator=generator)
    return torch.multinomial(mask.reshape(-1, size).double(), 1, generator=generator).reshape(tuple(shape))


def _between(spec: Bounded, generator: torch.Generator) -> Tensor:
    """Uniform between finite bounds, in the spec's shape."""
    low, high = (bound.cpu().double().expand(spec.shape) for bound in (spec.space.low, spec.space.high))
    share = torch.rand(spec.shape, generator=generator, dtype=torch.float64)
    if spec.dtype.is_floating_point:
        return low + share * (high - low)
    return low + (share * (high - low + 1)).floor()
