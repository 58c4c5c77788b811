"""Memory of recurrent networks from one step of a game to the next.

TorchRL's convention: a network reads an entry such as ``"recurrent_state"`` and writes its next value under ``("next",
"recurrent_state")``. Whoever plays with a network hands that value back at the following step. ``N`` is the batch of
games.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key_list
from torch import Size, Tensor, nn, where, zeros
from torchrl.data import TensorSpec
from torchrl.envs import Compose, TensorDictPrimer
from torchrl.modules.utils import get_primers_from_module

__all__ = ["START_KEY", "Memory", "memory_keys", "next_key"]

START_KEY = "is_init"
"""Entry of :class:`~torchrl.envs.InitTracker`: True where a game begins."""


def next_key(key: NestedKey) -> NestedKey:
    """Key of an entry's value after the step."""
    return ("next", key) if isinstance(key, str) else ("next", *key)


def memory_keys(network: TensorDictModule) -> list[NestedKey]:
    """Entries that a network reads and writes under ``"next"`` itself.

    Args:
        network: any module with ``in_keys`` and ``out_keys``.

    Raises:
        ValueError: a network that drops its own memory, because ``select_out_keys`` left it out.

    Examples:
        >>> network = TensorDictModule(nn.GRUCell(4, 8), in_keys=["observation", "h"], out_keys=[("next", "h")])
        >>> memory_keys(network)
        ['h']
    """
    reads, writes = unravel_key_list(list(network.in_keys)), unravel_key_list(list(network.out_keys))
    inside = {
        key
        for module in network.modules()
        if isinstance(module, TensorDictModuleBase)
        for key in unravel_key_list(list(getattr(module, "out_keys_source", module.out_keys)))
    }
    dropped = [next_key(key) for key in reads if next_key(key) in inside and next_key(key) not in writes]
    if dropped:
        raise ValueError(
            f"a network must write what it remembers: got out_keys={writes}, which leave out {dropped}; add them to "
            "select_out_keys."
        )
    return [key for key in reads if next_key(key) in writes]


class Memory:
    """Hands a network at each step what it wrote under ``"next"`` at the step before, and begins again with each game.

    A game begins with the environment's entry, if its :class:`~torchrl.envs.TensorDictPrimer` has one of the right
    shape. Otherwise it begins with zeros, in the shape that the network's own ``make_tensordict_primer`` names.

    Not a module, since what it holds is neither weight nor state to be sent: each copy of a policy has its own.

    Args:
        network: the network, of which only the keys and shapes are kept.

    Raises:
        ValueError: see :func:`memory_keys`; after a step, an entry whose shape is not the one that was read.
        KeyError: at a step, an entry that neither the environment nor the network says how to begin; after a step, an
            entry that was not written.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> counter = TensorDictModule(lambda count: count + 1, in_keys=["count"], out_keys=[("next", "count")])
        >>> memory = Memory(counter)
        >>> for begins in (True, False, False, True):
        ...     step = TensorDict({"count": torch.zeros(1)}, [1])  # as a primer has it
        ...     seen = memory.recall(step, torch.tensor([begins]))
        ...     memory.remember(counter(seen))
        ...     print(seen["count"].item())
        0.0
        1.0
        2.0
        0.0
    """

    def __init__(self, network: TensorDictModule) -> None:
        self.keys = memory_keys(network)
        self._specs = _own_specs(network) if self.keys else {}
        self._read: dict[NestedKey, Size] = {}  # shapes of what was last recalled
        self._state: dict[NestedKey, Tensor] | None = None  # as last written
        self._before: dict[NestedKey, Tensor] | None = None  # as written before that

    def __bool__(self) -> bool:
        return bool(self.keys)

    def recall(self, inputs: TensorDictBase, starts: Tensor) -> TensorDictBase:
        """Return a shallow copy of a step ``[N]`` with what the network remembers.

        Args:
            inputs: what the network reads otherwise.
            starts: bool ``[N]``, where a game begins.
        """
        inputs = inputs.copy()
        for key in self.keys:
            value = self._at_start(inputs, key)
            kept = None if self._state is None else self._state[key]
            if kept is not None and kept.shape == value.shape:
                begins = starts.to(value.device).reshape(inputs.batch_size + (1,) * (value.ndim - inputs.ndim))
                value = where(begins, value, kept.to(value.device))
            inputs.set(key, value)
        self._read = {key: inputs.get(key).shape for key in self.keys}
        return inputs

    def remember(self, outputs: TensorDictBase) -> None:
        """Keep what the network wrote at this step."""
        written: dict[NestedKey, Tensor] = {}
        for key in self.keys:
            value = outputs.get(next_key(key), None)
            if value is None:
                raise KeyError(f"a network must write what it remembers: got no {next_key(key)!r}; add it to out_keys.")
            if value.shape != self._read[key]:
                raise ValueError(
                    f"{next_key(key)!r} must have the shape of {key!r}: got {list(value.shape)} and "
                    f"{list(self._read[key])}; give the environment's TensorDictPrimer the network's own shape, and "
                    "networks of different shapes different keys."
                )
            written[key] = value.detach()
        self._before, self._state = self._state, written

    def take_back(self) -> None:
        """Forget the last step, which will be seen again."""
        self._state, self._before = self._before, None

    def forget(self) -> None:
        """Forget everything."""
        self._state = self._before = None

    def _at_start(self, inputs: TensorDictBase, key: NestedKey) -> Tensor:
        value, own = inputs.get(key, None), self._specs.get(key)
        if own is None:
            if value is None:
                raise KeyError(
                    f"a network that remembers needs a value to begin a game with: got no {key!r}; append a "
                    "TensorDictPrimer with that entry to the environment."
                )
            return value
        if value is not None and value.shape[inputs.ndim :] == own.shape:
            return value
        device = next((other.device for other in inputs.values(True, True)), inputs.device)
        return zeros((*inputs.batch_size, *own.shape), dtype=own.dtype, device=device)


def _own_specs(network: nn.Module) -> dict[NestedKey, TensorSpec]:
    """Memory of one game, as recurrent modules inside a network declare it."""
    primers = get_primers_from_module(network, warn=False)
    flat = [] if primers is None else list(primers) if isinstance(primers, Compose) else [primers]
    return {
        key: spec
        for primer in flat
        if isinstance(primer, TensorDictPrimer)
        for key, spec in primer.primers.items(True, True)
    }
