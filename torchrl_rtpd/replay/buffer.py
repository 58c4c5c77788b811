"""A replay buffer over a frame storage, uniform or prioritised, that may draw several minibatches at once."""

from __future__ import annotations

import warnings
from collections import deque
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import PrioritizedSampler, RandomSampler, Storage, TensorDictReplayBuffer

from torchrl_rtpd.functional.checks import check_integers
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
        minibatches_at_once: number of minibatches that are drawn and rebuilt together, and handed out one by one until
            the next write. They are the same either way, for less time: give it the trainer's
            ``optim_steps_per_batch`` on a GPU, and as many as fit its caches, some four, on a CPU.
        prioritized: sample by priority (Schaul et al. 2016, https://arxiv.org/abs/1511.05952) instead of uniformly.
        alpha: exponent of the priorities.
        beta: exponent of the importance weights.
        seed: seed of the sampler's own generator. None uses torch's global one (``torch.manual_seed``), also for
            priorities, where TorchRL's own sampler would draw from numpy's.

    Returns:
        A :class:`~torchrl.data.TensorDictReplayBuffer`.

    Raises:
        ValueError: a number of transitions or minibatches below one; several minibatches at once from a prioritised
            buffer; a negative exponent.
        RuntimeError: prioritised replay without TorchRL's compiled extension, with both versions and the remedy.

    Examples:
        >>> storage = FrameStackStorage(1_000, num_envs=2, steps_per_write=5)
        >>> make_replay_buffer(storage, batch_size=32, seed=0).batch_size
        32
    """
    check_integers(1, batch_size=batch_size, minibatches_at_once=minibatches_at_once)
    if prioritized and minibatches_at_once > 1:
        raise ValueError(
            "minibatches_at_once must be 1 for a prioritised buffer, whose priorities change with each update: got "
            f"{minibatches_at_once}; leave it out, or sample uniformly."
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
    """A uniform buffer that samples several minibatches in one go; those left are dropped at a write."""

    def __init__(self, minibatches: int, **options: Any) -> None:
        super().__init__(**options)
        self._minibatches = minibatches
        self._ready: deque[TensorDictBase] = deque()

    def sample(self, batch_size: int | None = None, **options: Any) -> Any:
        """Return a minibatch; one of another size than the buffer's own, or with ``return_info``, is drawn alone."""
        if options or batch_size not in (None, self._batch_size):
            return super().sample(batch_size, **options)
        if not self._ready:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Got conflicting batch_sizes", category=UserWarning)
                drawn = super().sample(self._minibatches * self._batch_size)
            self._ready.extend(drawn.split(self._batch_size))
        return self._ready.popleft()

    def extend(self, tensordicts: Any, **options: Any) -> Any:
        """Store, and forget the minibatches drawn before."""
        self._ready.clear()
        return super().extend(tensordicts, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore, and forget the minibatches drawn before."""
        self._ready.clear()
        super().load_state_dict(state_dict)

    def loads(self, path: Path | str) -> None:
        """Restore, and forget the minibatches drawn before."""
        self._ready.clear()
        super().loads(path)

    def empty(self, *args: Any, **options: Any) -> None:
        """Forget the transitions and the minibatches drawn before."""
        self._ready.clear()
        super().empty(*args, **options)


class _PrioritizedSampler(PrioritizedSampler):
    """TorchRL's sampler, which draws from torch's global generator where it has none of its own."""

    _rng: torch.Generator | None

    def sample(self, storage: Storage, batch_size: int) -> Any:
        """Draw indices by priority."""
        if self._rng is not None or storage.device.type != "cpu":  # on a CUDA device TorchRL draws from torch's
            return super().sample(storage, batch_size)
        self._rng = torch.default_generator
        try:
            return super().sample(storage, batch_size)
        finally:
            self._rng = None


def _prioritized_sampler(max_size: int, alpha: float, beta: float) -> PrioritizedSampler:
    import torchrl

    try:
        return _PrioritizedSampler(max_size, alpha=alpha, beta=beta)
    except (RuntimeError, ImportError, NameError) as error:
        raise RuntimeError(
            "prioritised replay needs TorchRL's compiled extension, which must match torch: got torchrl "
            f"{torchrl.__version__} with torch {torch.__version__}; install the pair in constraints.txt, or sample "
            "uniformly."
        ) from error
