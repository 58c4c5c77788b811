"""Games that end while a network learns, with its exploration in them: a sign of progress between evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key

from torchrl_rtpd.evaluation.games import SCORE_KEYS

__all__ = ["PlayedGames"]


class PlayedGames:
    """Mean score of the games that end in a trainer's batches.

    Whoever acts plays them, and explores, so that their scores lie below those of an evaluation. They are what the
    trainer's environment sums up: of rewards that it scales or clips first, if it does.

    Args:
        score_key: entry of a step with the score of the running game, such as that of an
            :class:`~torchrl_rtpd.evaluation.Evaluator`. None takes ``"raw_episode_reward"`` or ``"episode_reward"``.
            Batches that lack it, or have one of each of several agents, tell of no games.

    Examples:
        >>> from tensordict import TensorDict
        >>> ended = {"episode_reward": torch.tensor([[3.0], [9.0]]), "done": torch.tensor([[True], [False]])}
        >>> games = PlayedGames("episode_reward")
        >>> games.add(TensorDict({"next": ended}, [2]))
        >>> games.take()
        {'training_score': 3.0, 'training_games': 1}
    """

    COLUMNS = ("training_score", "training_games")

    def __init__(self, score_key: NestedKey | None) -> None:
        names = SCORE_KEYS if score_key is None else (score_key,)
        self._keys = [unravel_key(("next", name)) for name in names]
        self._sum: torch.Tensor | float = 0.0
        self._count: torch.Tensor | int = 0
        self.last: float | None = None

    def add(self, batch: TensorDictBase | None) -> None:
        """Count the games that end in a batch ``[*B]``. Nothing waits for a GPU: sums stay where the batch is.

        A trainer that collects asynchronously has no batch to show, and tells of no games.
        """
        if batch is None:
            return
        scores = next((found for key in self._keys if (found := batch.get(key, None)) is not None), None)
        ends = batch.get(("next", "done"), None)
        if scores is None or ends is None or scores.shape != ends.shape:
            return
        self._sum = self._sum + torch.where(ends.bool(), scores, 0).sum(dtype=torch.float64)
        self._count = self._count + ends.bool().sum()

    def take(self) -> dict[str, float]:
        """Return mean score and number of the games since the last call, nothing without games; begin the next ones."""
        total, games = float(self._sum), int(self._count)
        self._sum, self._count = 0.0, 0
        if not games:
            return {}
        self.last = total / games
        return dict(zip(self.COLUMNS, (self.last, games), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return sums and the mean that was taken last."""
        return {"sum": float(self._sum), "count": int(self._count), "last": self.last}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._sum, self._count, self.last = (state_dict[name] for name in ("sum", "count", "last"))
