"""The networks that a run keeps: copies of each with the weights of its best evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from tensordict.nn import TensorDictModule

from torchrl_rtpd.evaluation.scores import Scores

__all__ = ["KeptNetworks"]


class KeptNetworks:
    """Copies of networks, each with the weights of the best evaluation that counts.

    Args:
        networks: those that are trained, by name.
        from_steps: agent step before which no evaluation counts, unless it is the last one of the run.

    Attributes:
        networks: the copies, by name.
        scores: of the evaluation that each is kept from, by name; none where no evaluation counted.
        steps: agent steps at that evaluation, by name.
    """

    def __init__(self, networks: Mapping[str, TensorDictModule], from_steps: int) -> None:
        self.networks = {name: copy.deepcopy(network) for name, network in networks.items()}
        self.scores: dict[str, Scores] = {}
        self.steps: dict[str, float] = {}
        self._from = from_steps

    def offer(self, name: str, network: TensorDictModule, scores: Scores, steps: int, last: int) -> bool:
        """Keep a network that is better than the one before; True if it is.

        A network that was kept before evaluations counted, as the last one of a shorter run, gives way to any.

        Args:
            name: of the network.
            network: with the weights that were evaluated.
            scores: of the evaluation.
            steps: agent steps at the evaluation.
            last: agent steps at the last evaluation of the run.
        """
        first = min(self._from, last)
        known = self.scores.get(name) if self.steps.get(name, -1) >= first else None
        if steps < first or (known is not None and scores.mean <= known.mean):
            return False
        self._keep(name, network, scores, steps)
        return True

    def fill(self, networks: Mapping[str, TensorDictModule], scores: Mapping[str, Scores], steps: int) -> list[str]:
        """Keep the last weights where no evaluation counted; return the names.

        Args:
            networks: with their last weights, by name.
            scores: of an evaluation of these weights, by name; empty if there was none.
            steps: agent steps that they have learned from.
        """
        missing = [name for name in networks if name not in self.scores]
        for name in missing:
            self._keep(name, networks[name], scores.get(name), steps)
        return missing

    def _keep(self, name: str, network: TensorDictModule, scores: Scores | None, steps: int) -> None:
        self.networks[name].load_state_dict(network.state_dict())
        if scores is not None:
            self.scores[name], self.steps[name] = scores, steps

    def drop(self, name: str) -> None:
        """Forget a network."""
        del self.networks[name]
        self.scores.pop(name, None)
        self.steps.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, scores as plain values, and steps."""
        return {
            "best": {name: network.state_dict() for name, network in self.networks.items()},
            "best_scores": plain(self.scores),
            "best_steps": dict(self.steps),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; earlier versions did not know the steps, and all of them count."""
        for name, network in self.networks.items():
            network.load_state_dict(state_dict["best"][name])
        self.scores = restored(state_dict["best_scores"])
        self.steps = {name: state_dict.get("best_steps", {}).get(name, math.inf) for name in self.scores}


def plain(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """Scores as plain values."""
    return {
        name: {"scores": list(found.scores), "cut": found.cut, "steps": found.steps} for name, found in scores.items()
    }


def restored(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Scores]:
    """Scores from plain values."""
    return {name: Scores(tuple(saved["scores"]), saved["cut"], saved["steps"]) for name, saved in values.items()}
