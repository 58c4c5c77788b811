"""Recurrent networks for tests, and what they come to when they are run by hand, one step after the other."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import GRUModule, LSTMModule, QValueModule


def recurrent_actor(kind: str, hidden: int, *, seed: int = 0, num_actions: int = 2) -> TensorDictSequential:
    """A Q-network of TorchRL's LSTM or GRU under its own default keys, and a linear head."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        recurrent = {"lstm": LSTMModule, "gru": GRUModule}[kind](
            input_size=1, hidden_size=hidden, in_key="observation", out_key="features"
        )
        head = nn.Linear(hidden, num_actions)
    return TensorDictSequential(
        recurrent,
        TensorDictModule(head, in_keys=["features"], out_keys=["action_value"]),
        QValueModule(spec=Categorical(num_actions)),
    )


@torch.no_grad()
def values_by_hand(actor: TensorDictSequential, batch: TensorDictBase) -> Tensor:
    """Values ``[N, T, A]`` of steps that begin with games, by a loop that hands on the state and zeroes it at starts.

    Tensors are laid out as while collecting, since strides decide about the last bit.
    """
    recurrent = actor[0]
    states = recurrent.in_keys[1:-1]
    layer = recurrent.lstm if isinstance(recurrent, LSTMModule) else recurrent.gru
    state = {key: torch.zeros(len(batch), 1, layer.hidden_size) for key in states}
    values = []
    for step in range(batch.shape[1]):
        begins = batch["next", "done"][:, step - 1] if step else torch.ones(len(batch), 1, dtype=torch.bool)
        state = {key: torch.where(begins[..., None], 0.0, value) for key, value in state.items()}
        seen = TensorDict(
            {"observation": batch["observation"][:, step].contiguous(), "is_init": begins, **state}, [len(batch)]
        )
        out = actor(seen)
        state = {key: out["next", key] for key in states}
        values.append(out["action_value"])
    return torch.stack(values, 1)
