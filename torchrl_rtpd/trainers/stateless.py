"""The base of hooks that hold nothing worth saving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchrl.trainers import TrainerHookBase

__all__ = ["StatelessHook"]


class StatelessHook(TrainerHookBase):
    """A trainer hook without state: a subclass needs ``register`` alone.

    Examples:
        >>> class CountBatches(StatelessHook):
        ...     def register(self, trainer, name="count_batches"):
        ...         trainer.register_op("post_steps", self.after_batch)
        ...
        ...     def after_batch(self): ...
        >>> CountBatches().state_dict()
        {}
    """

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Accept any state, and restore nothing."""
