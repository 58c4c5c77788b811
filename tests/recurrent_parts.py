"""Recurrent networks for tests, and what they come to when they are run by hand, one step after the other."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import GRUModule, LSTMModule, QValueModule


def recurrent_actor(
    kind: str,
    hidden: int,
    *,
    seed: int = 0,
    num_actions: int = 2,
    inputs: int = 1,
    layers: int = 1,
    memory: str = "recurrent_state",
    **options: Any,
) -> TensorDictSequential:
    """A Q-network of TorchRL's LSTM or GRU, under its own default keys unless ``memory`` differs, and a linear head.

    Options are those of PyTorch's layers, and TorchRL's ``python_based``.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        keys = {"lstm": [f"{memory}_h", f"{memory}_c"], "gru": [memory]}[kind]
        recurrent = {"lstm": LSTMModule, "gru": GRUModule}[kind](
            input_size=inputs,
            hidden_size=hidden,
            num_layers=layers,
            in_keys=["observation", *keys],
            out_keys=["features", *(("next", key) for key in keys)],
            **options,
        )
        head = nn.Linear(options.get("proj_size") or hidden, num_actions)
    return TensorDictSequential(
        recurrent,
        TensorDictModule(head, in_keys=["features"], out_keys=["action_value"]),
        QValueModule(spec=Categorical(num_actions)),
    )


def layer_of(actor: TensorDictSequential) -> nn.RNNBase:
    """PyTorch's layer inside of a recurrent actor."""
    return actor[0].lstm if isinstance(actor[0], LSTMModule) else actor[0].gru


def memory_of(actor: TensorDictSequential) -> list[str]:
    """Keys of what a recurrent actor remembers."""
    return actor[0].in_keys[1:-1]


def shapes_of(actor: TensorDictSequential) -> list[tuple[int, int]]:
    """Shapes ``[layers, width]`` of what a recurrent actor remembers of one game; a projection narrows the first."""
    layer = layer_of(actor)
    widths = [getattr(layer, "proj_size", 0) or layer.hidden_size, layer.hidden_size]
    return [(layer.num_layers, width) for _, width in zip(memory_of(actor), widths, strict=False)]


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


def stepped_values(actor: TensorDictSequential, batch: TensorDictBase, *, burn_in: int = 0) -> Tensor:
    """Values ``[N, T - burn_in, A]`` by PyTorch's layer, called for one step at a time, with their gradient.

    A row begins with the memory that the batch holds for its first step, a game with that for its own first step; both
    are zeros where the batch holds none. No gradient reaches the steps before ``burn_in``.
    """
    layer, head = layer_of(actor), actor[1].module
    state = zeros = [batch["observation"].new_zeros(len(batch), *shape) for shape in shapes_of(actor)]
    values = []
    for step in range(batch.shape[1]):
        keys = memory_of(actor)
        stored = [batch[key][:, step] if key in batch.keys() else zero for key, zero in zip(keys, zeros, strict=True)]
        begins = batch["is_init"][:, step] | (step == 0)
        state = [torch.where(begins[..., None], held, value) for held, value in zip(stored, state, strict=True)]
        if step == burn_in:
            state = [value.detach() for value in state]
        given = [value.transpose(0, 1).contiguous() for value in state]
        features, reached = layer(batch["observation"][:, step : step + 1], given[0] if len(given) == 1 else given)
        state = [value.transpose(0, 1) for value in ([reached] if len(given) == 1 else reached)]
        values.append(head(features[:, 0]))
    return torch.stack(values, 1)[:, burn_in:]


def rows(steps: int = 7, *, remembers: tuple[TensorDictSequential, ...] = (), inputs: int = 1) -> TensorDict:
    """Four rows ``[4, T]`` in double precision with the teacher's values, and the memory of networks for every step.

    Games begin: with the first row; in the second at step 3; in the third at steps 2 and 5; in the fourth at step 1.
    """
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(4, steps, *shape, generator=generator, dtype=torch.float64)

    begins = torch.zeros(4, steps, 1, dtype=torch.bool)
    for row, step in ((0, 0), (1, 3), (2, 2), (2, 5), (3, 1)):
        begins[row, step] = step < steps
    batch = TensorDict({"observation": drawn(inputs), "is_init": begins, "teacher": {"action_value": drawn(2)}}, [4])
    for network in remembers:
        batch.update({key: drawn(*shape) for key, shape in zip(memory_of(network), shapes_of(network), strict=True)})
    batch.batch_size = [4, steps]
    return batch


class Recall(EnvBase):
    """Games of three steps. A cue, -1 or 1, decides which action the last step pays for: 0 or 1.

    ``observation`` shows the cue and the step throughout, ``glimpse`` the cue at the first step alone and then zero.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(batch_size=[slots])
        self.observation_spec = Composite(
            observation=Unbounded((slots, 4)), glimpse=Unbounded((slots, 1)), shape=[slots]
        )
        self.action_spec = Categorical(2, shape=(slots,))
        self.reward_spec = Unbounded((slots, 1))
        names = ("done", "terminated", "truncated")
        self.done_spec = Composite(
            {name: Categorical(2, (slots, 1), dtype=torch.bool) for name in names}, shape=[slots]
        )
        self.step_count, self.cue = torch.zeros(slots, dtype=torch.long), torch.ones(slots)
        self._set_seed(0)

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator().manual_seed(0 if seed is None else seed)

    def _seen(self) -> dict[str, Tensor]:
        time = nn.functional.one_hot(self.step_count.clamp(max=2), 3).float()
        glimpse = torch.where(self.step_count == 0, self.cue, 0.0)[:, None]
        return {"observation": torch.cat([self.cue[:, None], time], -1), "glimpse": glimpse}

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones_like(self.cue).bool() if mask is None else mask.view(-1)
        drawn = torch.randint(2, self.cue.shape, generator=self.generator) * 2.0 - 1.0
        self.cue, self.step_count = torch.where(mask, drawn, self.cue), torch.where(mask, 0, self.step_count)
        return TensorDict(self._seen(), self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        done = (self.step_count == 2)[:, None]
        reward = (done[:, 0] & (tensordict["action"] == (self.cue > 0))).float()[:, None]
        self.step_count = self.step_count + 1
        ends = {"done": done, "terminated": done, "truncated": torch.zeros_like(done)}
        return TensorDict({**self._seen(), "reward": reward, **ends}, self.batch_size)
