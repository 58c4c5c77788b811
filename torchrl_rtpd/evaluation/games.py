"""Games of an evaluation as they are played: their scores, and observations met on the way.

``N`` slots play side by side; a step is one agent decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv

__all__ = ["Games", "KeptObservations", "score_key_of"]

SCORE_KEYS = ("raw_episode_reward", "episode_reward")
"""Entries that are taken for the score of the running game where none is named, the first that there is: that of
:class:`~torchrl_rtpd.envs.AtariVecEnv`, which TorchRL's transforms do not write, and that of
:class:`~torchrl.envs.RewardSum`."""


def score_key_of(env: EnvBase, given: NestedKey | None) -> NestedKey | None:
    """Return the entry in which an environment tells the score of the running game; None if it has none.

    Args:
        env: the environment.
        given: the entry, if the caller names it.

    Raises:
        ValueError: an entry that the environment lacks, or that a transform overwrites; an environment with neither
            score nor reward.
    """
    entries = {*env.full_observation_spec.keys(True, True), *env.full_reward_spec.keys(True, True)}
    if given is not None and given not in entries:
        raise ValueError(
            f"score_key must name an entry of the environment: got {given!r}, it has {sorted(entries, key=str)}; leave "
            "it out to sum up rewards."
        )
    names = SCORE_KEYS if given is None else (given,)
    key = next((name for name in names if name in entries), None)
    if key is None and not env.reward_keys:
        raise ValueError(f"scores are read from an entry or summed up from rewards: got neither in {env}.")
    if key is not None:
        _check_own(env, key)
    return key


def _check_own(env: EnvBase, key: NestedKey) -> None:
    """Refuse a transform that overwrites the environment's own score, such as a sum of clipped rewards."""
    while isinstance(env, TransformedEnv):
        base = env.base_env
        if key in base.full_observation_spec.keys(True, True):
            writers = [step for step in _flat(env.transform) if key in step.out_keys and key not in step.in_keys]
            if writers:
                raise ValueError(
                    f"the environment's own {key!r} must not be overwritten: got {type(writers[0]).__name__}, which "
                    "writes it; give that transform other out_keys (RewardSum wants its in_keys as well then), or name "
                    "another entry with score_key."
                )
        env = base


def _flat(transform: Any) -> list:
    """The transforms of a composition, or the one there is."""
    return list(transform) if hasattr(transform, "transforms") else [transform]


class Games:
    """Scores of each slot's games, a fixed quota a slot.

    Args:
        env: the environment that plays.
        quota: games a slot.
        score_key: entry with the score of the running game; None sums up rewards. Of several agents the mean counts.

    Attributes:
        playing: slots that have games left, as bools.
        running: score of each slot's game so far, at its end until the next one scores.
        steps: agent decisions counted so far, all slots together.
        cut: games counted so far that a step bound or truncation ended.
    """

    def __init__(self, env: EnvBase, quota: int, score_key: NestedKey | None) -> None:
        self._shape, self._quota, self._key = env.batch_size, quota, score_key
        self._reward_keys = list(env.reward_keys)
        slots = env.batch_size.numel()
        self._scores: list[list[float]] = [[] for _ in range(slots)]
        self.running = [0.0] * slots
        self._done = [True] * slots
        self.playing = [True] * slots
        self.steps = self.cut = 0

    @property
    def starts(self) -> Tensor:
        """Slots whose next step is the first of a game, bool ``[*batch]``."""
        return torch.tensor(self._done).reshape(self._shape)

    def count(self, step: TensorDictBase) -> None:
        """Take in a step ``[*batch]`` with what follows under ``"next"``."""
        self.running = self._score(step)
        self._done, truncated = self._flags(step, "done"), self._flags(step, "truncated")
        self.steps += sum(self.playing)
        for slot, playing in enumerate(self.playing):
            if self._done[slot] and playing:
                self._scores[slot].append(self.running[slot])
                self.cut += truncated[slot]
        self.playing = [len(games) < self._quota for games in self._scores]

    def stop(self) -> None:
        """End the play at a step bound: a game being played counts as it stands."""
        for slot, playing in enumerate(self.playing):
            if playing and not self._done[slot]:
                self._scores[slot].append(self.running[slot])
                self.cut += 1

    @property
    def scores(self) -> tuple[float, ...]:
        """Scores, slot by slot."""
        return tuple(score for games in self._scores for score in games)

    def _score(self, step: TensorDictBase) -> list[float]:
        if self._key is not None:
            return self._mean([step.get(("next", self._key))])
        gained = self._mean([step.get(("next", key)) for key in self._reward_keys])
        return [
            gain if done else score + gain for score, gain, done in zip(self.running, gained, self._done, strict=True)
        ]

    def _mean(self, entries: Sequence[Tensor]) -> list[float]:
        """Mean over agents, a number a slot."""
        rows = [entry.reshape(len(self.playing), -1) for entry in entries]
        return (rows[0] if len(rows) == 1 else torch.cat(rows, -1)).mean(-1).tolist()

    def _flags(self, step: TensorDictBase, key: str) -> list[bool]:
        """A flag of each slot; environments that never truncate need no ``"truncated"``."""
        entry = step.get(("next", key), None)
        return [False] * len(self.playing) if entry is None else entry.reshape(-1).tolist()


class KeptObservations:
    """Observations of the slots that play, spread evenly over a play of unknown length in bounded memory.

    Args:
        count: observations ``K`` to keep; 0 keeps none.
        device: where they are kept; None is the CPU.
    """

    def __init__(self, count: int, device: torch.device | None = None) -> None:
        self._count, self._device = count, "cpu" if device is None else device
        self._stride = 4  # neighbours are nearly alike
        self._kept: list[TensorDictBase] = []

    def add(self, number: int, seen: TensorDictBase, playing: Sequence[bool]) -> None:
        """Take in what was read ``[*batch]`` at a step of this number."""
        if not self._count or number % self._stride:
            return
        self._kept.append(seen.to(self._device).reshape(-1)[torch.tensor(playing)])
        if len(self._kept) > 1 and len(self._kept) * len(playing) > 4 * self._count:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def thinned(self) -> TensorDictBase | None:
        """Return ``[K]`` of them, or fewer; None if none were asked for."""
        if not self._kept:
            return None
        together = torch.cat(self._kept)
        return together[torch.linspace(0, len(together) - 1, min(self._count, len(together))).round().long()].clone()
