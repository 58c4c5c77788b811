"""Exploration of TorchRL's on-policy trainers, whose teacher learns action values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torchrl.modules import EGreedyModule
from torchrl.trainers import Trainer, TrainerHookBase

__all__ = ["AnnealExploration"]


def lower(exploration: EGreedyModule, steps: int) -> None:
    """Lower the share of random actions by some steps at once.

    TorchRL's own method makes them one by one, with four kernels each on a GPU, which for a rollout of thousands takes
    longer than to play it. The result is the same, to the last bit on a CPU.

    Args:
        exploration: changed; of another class than TorchRL's, its own method is called.
        steps: number of them.

    Examples:
        >>> from torchrl.data import Categorical
        >>> exploration = EGreedyModule(Categorical(2), 1.0, 0.0, annealing_num_steps=8)
        >>> lower(exploration, 2)
        >>> exploration.eps.item()
        0.75
    """
    if type(exploration).step is not EGreedyModule.step:
        exploration.step(steps)
        return
    share, first, last = (np.float32(getattr(exploration, name).item()) for name in ("eps", "eps_init", "eps_end"))
    by = (first - last) / np.float32(exploration.annealing_num_steps)
    for _ in range(steps):
        share = max(last, share - by)
        if share == last:
            break
    exploration.eps.fill_(float(share))


class AnnealExploration(TrainerHookBase):
    """Lower the share of random actions by the steps collected, as TorchRL's ``DQNTrainer`` does and others do not.

    The collector is sent the new share after each batch.

    Args:
        exploration: the very module that the collector was given.

    Raises:
        TypeError: a module without ``step``.

    Examples:
        >>> from torchrl.data import Categorical
        >>> exploration = EGreedyModule(Categorical(2), annealing_num_steps=1_000)
        >>> hook = AnnealExploration(exploration)  # then hook.register(trainer)
    """

    def __init__(self, exploration: EGreedyModule) -> None:
        if not callable(getattr(exploration, "step", None)):
            raise TypeError(
                f"exploration is annealed by its method step: got {type(exploration).__name__}; give an EGreedyModule."
            )
        self.exploration = exploration
        self._steps = 0  # that it has followed
        self._trainer: Any = None

    def register(self, trainer: Trainer, name: str = "anneal_exploration") -> None:
        """Attach to a trainer."""
        self._trainer = trainer
        trainer.register_op("post_steps", self.anneal)
        trainer.register_module(name, self)

    def anneal(self) -> None:
        """Follow the steps of the batch; called once a batch."""
        steps = self._trainer.collected_frames
        if steps > self._steps:
            lower(self.exploration, steps - self._steps)
            self._steps = steps
            self._trainer.collector.update_policy_weights_()

    def state_dict(self) -> dict[str, Any]:
        """Return the steps followed; the share itself is saved with the collector's policy."""
        return {"steps": self._steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._steps = int(state_dict["steps"])
