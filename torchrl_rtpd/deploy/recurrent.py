"""One step of TorchRL's recurrent modules on plain tensors, without branches that depend on their values.

``B`` is the batch, ``L`` the number of layers, ``H`` that of hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.modules import GRUModule, LSTMModule

__all__ = ["memory_of", "one_step"]


def one_step(actor: nn.Module) -> nn.Module:
    """Replace every ``LSTMModule`` and ``GRUModule`` in an actor by one step of it, with the same keys and weights.

    Args:
        actor: changed in place.

    Returns:
        The actor, or what takes its place.

    Raises:
        ValueError: layers in both directions, or with a projection.
    """
    if isinstance(actor, (GRUModule, LSTMModule)):
        return TensorDictModule(_Step(actor), in_keys=list(actor.in_keys), out_keys=list(actor.out_keys))
    for module in list(actor.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (GRUModule, LSTMModule)):
                module._modules[name] = one_step(child)
    return actor


def memory_of(actor: nn.Module) -> dict[NestedKey, Tensor]:
    """Return what each recurrent module remembers before its first step, for two observations, by key."""
    return {key: value for module in actor.modules() if isinstance(module, _Step) for key, value in module.empty()}


class _Step(nn.Module):
    """A step: features ``[B, F]``, memory ``[B, L, H]`` each, and ``[B, 1]`` True where a game begins."""

    def __init__(self, module: GRUModule | LSTMModule) -> None:
        super().__init__()
        self.is_lstm = isinstance(module, LSTMModule)
        self.layers = module.lstm if self.is_lstm else module.gru
        if self.layers.bidirectional or getattr(self.layers, "proj_size", 0):
            raise ValueError(
                f"a recurrent student is exported step by step: got a {type(module).__name__} that is bidirectional or "
                "has a projection; build it without."
            )
        *self.memory, self.begins = [unravel_key(key) for key in module.in_keys[1:]]

    def empty(self) -> Iterator[tuple[NestedKey, Tensor]]:
        """Yield the memory before the first step of two games, and that no game begins."""
        shape = (2, self.layers.num_layers, self.layers.hidden_size)
        yield from ((key, torch.zeros(shape)) for key in self.memory)
        yield self.begins, torch.zeros(2, 1, dtype=torch.bool)

    def forward(self, features: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        """Return the last layer's output ``[B, H]`` and the memory for the next step."""
        *states, begins = memory
        kept = [torch.where(begins[..., None], 0.0, state) for state in states]
        found: list[tuple[Tensor, ...]] = []
        for layer in range(self.layers.num_layers):
            found.append(self._layer(layer, features, [state[:, layer] for state in kept]))
            features = found[-1][0]
        return features, *(torch.stack(state, 1) for state in zip(*found, strict=True))

    def _layer(self, layer: int, features: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        """Return the state of a layer after a step, as :class:`torch.nn.LSTM` and :class:`torch.nn.GRU` define it."""
        biases = [getattr(self.layers, f"bias_{kind}_l{layer}") if self.layers.bias else None for kind in ("ih", "hh")]
        given = F.linear(features, getattr(self.layers, f"weight_ih_l{layer}"), biases[0])
        known = F.linear(state[0], getattr(self.layers, f"weight_hh_l{layer}"), biases[1])
        if self.is_lstm:
            enter, keep, fresh, show = (given + known).chunk(4, -1)
            cell = keep.sigmoid() * state[1] + enter.sigmoid() * fresh.tanh()
            return show.sigmoid() * cell.tanh(), cell
        (reset, keep, fresh), (reset_known, keep_known, fresh_known) = given.chunk(3, -1), known.chunk(3, -1)
        keep = (keep + keep_known).sigmoid()
        fresh = (fresh + (reset + reset_known).sigmoid() * fresh_known).tanh()
        return ((1 - keep) * fresh + keep * state[0],)
