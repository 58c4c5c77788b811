"""Sums of metrics between two logs, kept where they were computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from torchrl_rtpd.functional.checks import check_integers

__all__ = ["Averages"]


class Averages:
    """Means of metrics over the updates that were measured since the last log.

    Sums stay on the device; :meth:`means` waits for it once.

    Args:
        every_updates: minibatches between two that are measured, the first one after each log among them; at least 1.

    Examples:
        >>> averages = Averages(every_updates=2)
        >>> for value in (1.0, 5.0, 3.0):
        ...     if averages.due():
        ...         averages.add({"net": torch.tensor([value])})
        ...     averages.after_minibatch()
        >>> averages.means({"net": ["loss"]})
        {'net/loss': 2.0}
    """

    def __init__(self, every_updates: int) -> None:
        check_integers(1, "1 measures every update", metrics_every_updates=every_updates)
        self.every_updates = every_updates
        self._sums: dict[str, Tensor] = {}
        self._num_summed = 0
        self._minibatches = 0  # since the last log

    def due(self) -> bool:
        """Return True if the metrics of the next minibatch are to be computed."""
        return self._minibatches % self.every_updates == 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the metrics of one update, stacked, by student."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._num_summed += 1

    def after_minibatch(self) -> None:
        """Count a minibatch, measured or not."""
        self._minibatches += 1

    def forget(self, name: str) -> None:
        """Leave a student out from now on; what was measured of it is lost."""
        self._sums.pop(name, None)

    def means(self, metric_names: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Return the means by ``<student>/<metric>``, and begin from scratch; empty where nothing was measured.

        Args:
            metric_names: names of each student's metrics, in the order in which they are stacked.
        """
        if not self._num_summed:
            return {}
        names = [f"{name}/{metric}" for name in self._sums for metric in metric_names[name]]
        values = torch.cat(list(self._sums.values())) / self._num_summed
        self._sums = {}
        self._num_summed = self._minibatches = 0
        return dict(zip(names, values.tolist(), strict=True))
