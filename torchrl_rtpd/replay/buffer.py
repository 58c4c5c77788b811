"""A replay buffer over a frame storage, uniform or prioritised, that may draw several minibatches at once."""

from __future__ import annotations

import warnings
from collections import deque
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import PrioritizedSampler, RandomSampler, TensorDictReplayBuffer

from torchrl_rtpd.replay.storage import FrameStackStorage

__all__ = ["make_replay_buffer"]


def make_replay_buffer(
    storage: FrameStackStorage,
    *,
    batch_size: int,
    minibatches_at_once: int = 1,
    prioritized: bool = False,
    alpha: float = 0.6,
    beta: float = 0.4,
    seed: int | None = None,
) -> TensorDictReplayBuffer:
    """A standard TorchRL replay buffer over a frame storage, uniform or prioritised.

    Args:
        storage: where the transitions live.
        batch_size: transitions a sample ``B``.
        minibatches_at_once: draw and rebuild so many minibatches together, and hand them out one by one until the next
            write. They are the same either way, for less: give it the trainer's ``optim_steps_per_batch`` on a GPU, and
            as many as fit its caches, some four, on a CPU.
        prioritized: sample by priority (Schaul et al. 2016, https://arxiv.org/abs/1511.05952) instead of uniformly.
        alpha: exponent of the priorities.
        beta: exponent of the importance weights.
        seed: seed of the sampler's own generator. None uses the global one.

    Returns:
        A :class:`~torchrl.data.TensorDictReplayBuffer`.

    Raises:
        ValueError: several minibatches at once from a prioritised buffer, or fewer than one.
        RuntimeError: prioritised replay without TorchRL's compiled extension, with both versions and the remedy.
    """
    if minibatches_at_once < 1 or (prioritized and minibatches_at_once > 1):
        raise ValueError(
            "minibatches_at_once must be at least 1, and 1 for a prioritised buffer, whose priorities change with each "
            f"update: got {minibatches_at_once}, prioritized={prioritized}."
        )
    sampler = RandomSampler()
    if prioritized:
        sampler = _prioritized_sampler(storage.max_size, alpha, beta)
    generator = None if seed is None else torch.Generator(storage.device).manual_seed(seed)
    options = {"storage": storage, "sampler": sampler, "batch_size": batch_size, "generator": generator}
    if minibatches_at_once > 1:
        return _SeveralAtOnce(minibatches_at_once, **options)
    return TensorDictReplayBuffer(**options, priority_key="td_error")


class _SeveralAtOnce(TensorDictReplayBuffer):
    """A uniform buffer that samples several minibatches in one go; what is left of them is dropped at a write."""

    def __init__(self, minibatches: int, **options: Any) -> None:
        super().__init__(**options)
        self._minibatches = minibatches
        self._ready: deque[TensorDictBase] = deque()

    def sample(self, batch_size: int | None = None, **options: Any) -> Any:
        """A minibatch; one of another size than the buffer's own, or with ``return_info``, is drawn by itself."""
        if options or batch_size not in (None, self._batch_size):
            return super().sample(batch_size, **options)
        if not self._ready:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Got conflicting batch_sizes", category=UserWarning)
                drawn = super().sample(self._minibatches * self._batch_size)
            self._ready.extend(drawn.split(self._batch_size))
        return self._ready.popleft()

    def extend(self, tensordicts: Any, **options: Any) -> Any:
        """Store, and forget what was drawn before."""
        self._ready.clear()
        return super().extend(tensordicts, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore, and forget what was drawn before."""
        self._ready.clear()
        super().load_state_dict(state_dict)

    def loads(self, path: Path | str) -> None:
        """Restore, and forget what was drawn before."""
        self._ready.clear()
        super().loads(path)

    def empty(self, *args: Any, **options: Any) -> None:
        """Empty it of everything."""
        self._ready.clear()
        super().empty(*args, **options)


def _prioritized_sampler(max_size: int, alpha: float, beta: float) -> PrioritizedSampler:
    import torchrl

    try:
        return PrioritizedSampler(max_size, alpha=alpha, beta=beta)
    except (RuntimeError, ImportError, NameError) as error:
        raise RuntimeError(
            "prioritised replay needs TorchRL's compiled extension, which must match torch: got torchrl "
            f"{torchrl.__version__} with torch {torch.__version__}; install the pair in constraints.txt, or sample "
            "uniformly."
        ) from error
