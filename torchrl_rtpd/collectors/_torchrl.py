"""The collectors' own touches of private attributes of TorchRL, Ray and multiprocessing, in one place."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.collectors.distributed import RayCollector

__all__ = ["WholePolicyRayCollector", "actor_ids", "is_closed", "policy_chooses_next", "seen_next"]


def policy_chooses_next(collector: Collector) -> bool:
    """Return True if another step follows whose action is the policy's, not a random one of ``init_random_frames``."""
    return collector._frames < collector.total_frames and not collector._should_use_random_frames()


def seen_next(collector: Collector) -> TensorDictBase:
    """State that the policy reads at the next step, on its device."""
    carrier = collector._carrier
    return carrier.to(collector.policy_device) if collector._cast_to_policy_device else carrier


def is_closed(process: Any) -> bool:
    """Return True for a process object that was closed, after which it answers no question."""
    return process._closed


def actor_ids(collector: RayCollector) -> list[str]:
    """Ray's names of the actors that collect, in hexadecimal, in the order of the workers."""
    return [actor._actor_id.hex() for actor in collector.remote_collectors]


class WholePolicyRayCollector(RayCollector):
    """TorchRL's Ray collector, whose weight transport knows whole policies only.

    What is not given is sent as it was sent last.
    """

    def start_from(self, weights: TensorDictBase) -> None:
        """Send the first weights, a whole policy's."""
        self._sent = weights
        RayCollector.update_policy_weights_(self, weights)

    def _weight_update_impl(self, policy_or_weights: Any = None, **kwargs: Any) -> None:
        if isinstance(policy_or_weights, TensorDictBase):
            self._sent.update_(policy_or_weights.data)
        super()._weight_update_impl(self._sent, **kwargs)
