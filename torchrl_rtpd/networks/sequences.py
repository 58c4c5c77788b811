"""Recurrent networks on rows of consecutive steps, such as a loss learns from.

A batch is ``[*B, T]``: its last dimension is time, the others number the rows. TorchRL's ``LSTMModule`` and
``GRUModule`` run over a whole row and begin again wherever ``"is_init"`` says that a game begins. Such a beginning, and
the first step of a row, takes the memory that the batch holds for that very step, and zeros if it holds none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key, unravel_key_list
from torch import Size, Tensor, nn
from torchrl.modules import set_recurrent_mode

from torchrl_rtpd.networks.keys import names_in, selected
from torchrl_rtpd.networks.memory import START_KEY, next_key
from torchrl_rtpd.networks.rows import is_recurrent, layer_inside, memory_as_weights, memory_read, through_rows
from torchrl_rtpd.networks.running import NetworkPart, flattened

__all__ = ["SequencePart", "later_steps", "network_part", "remembered_by", "single_steps"]

_WARMED = "_warmed"  # group of a batch's entries: what networks remember after steps that are not in it any more


def remembered_by(network: nn.Module | None) -> dict[NestedKey, Size]:
    """Return the memory of TorchRL's recurrent modules inside a network: its shape at one step, by key.

    Raises:
        ValueError: a module in both directions, which sees the steps to come in a row, and none while it plays.

    Examples:
        >>> from torchrl.modules import GRUModule
        >>> remembered_by(GRUModule(input_size=4, hidden_size=8, in_key="observation", out_key="features"))
        {'recurrent_state': torch.Size([1, 8])}
    """
    found: dict[NestedKey, Size] = {}
    for module in () if network is None else network.modules():
        if is_recurrent(module):
            if layer_inside(module).bidirectional:
                raise ValueError(
                    "a network that learns from rows must not see the steps to come, since there are none while it "
                    f"plays: got a {type(module).__name__} that is bidirectional; build it without."
                )
            primers = module.make_tensordict_primer().primers
            found.update((key, primers[key].shape) for key in memory_read(module))
    return found


def _remembering(network: nn.Module) -> dict[NestedKey, Any]:
    """The modules that remember, by the keys that they read."""
    return {key: module for module in network.modules() if is_recurrent(module) for key in memory_read(module)}


def network_part(network: TensorDictModuleBase) -> NetworkPart:
    """Return what computes one output of a network, over rows of steps if TorchRL's recurrent modules are inside."""
    return SequencePart(network) if remembered_by(network) else NetworkPart(network)


class SequencePart(NetworkPart):
    """Computation of one output ``[*B, T, ...]`` of a recurrent network from rows of steps.

    Args:
        network: holds TorchRL's ``LSTMModule`` or ``GRUModule``.

    Examples:
        >>> from tensordict.nn import TensorDictModule, TensorDictSequential
        >>> from torchrl.modules import GRUModule
        >>> memory = GRUModule(input_size=4, hidden_size=8, in_key="observation", out_key="features")
        >>> head = TensorDictModule(nn.Linear(8, 2), in_keys=["features"], out_keys=["action_value"])
        >>> part = SequencePart(TensorDictSequential(memory, head))
        >>> rows = TensorDict({"observation": torch.zeros(3, 5, 4), "is_init": torch.zeros(3, 5, 1).bool()}, [3, 5])
        >>> part(rows, "action_value", "student").shape
        torch.Size([3, 5, 2])
    """

    def __init__(self, network: TensorDictModuleBase) -> None:
        super().__init__(network)
        reads = unravel_key_list(list(network.in_keys))
        self._memory = {key: shape for key, shape in remembered_by(network).items() if key in reads}
        self._modules: dict[NestedKey, Any] | None = None  # those that remember, by key; found at first use
        self._first_parts: list[TensorDictModuleBase] | None = None  # found at first use

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_memory": self._memory, "_modules": None, "_first_parts": None}

    @property
    def needed_keys(self) -> list[NestedKey]:
        """Entries without which the network cannot run; what it remembers is not among them."""
        return [key for key in super().needed_keys if unravel_key(key) not in self._memory]

    @property
    def remembered(self) -> list[NestedKey]:
        """Entries of the network's memory."""
        return list(self._memory)

    def __call__(self, tensordict: TensorDictBase, key: NestedKey, role: str, place: str = "batch") -> Tensor:
        """The network's output under ``key`` for every step; see :class:`NetworkPart`."""
        with set_recurrent_mode(True):
            return super().__call__(tensordict, key, role, place)

    def _through(self, parts: Sequence[TensorDictModuleBase], inputs: TensorDictBase) -> TensorDictBase:
        return through_rows(parts, inputs)[0]

    def inputs(self, tensordict: TensorDictBase, role: str, place: str = "batch") -> TensorDictBase:
        """Return the entries that the network reads, its memory among them as far as the batch holds any.

        Raises:
            ValueError: a batch without a dimension for time, or memory of another shape.
            TypeError: memory that is no floating point. Memory of another precision is converted to the network's.
            KeyError: an entry that the batch lacks; of ``"is_init"`` the message names who writes it.
        """
        self._check_rows(tensordict, role, place)
        inputs = selected(tensordict, self.needed_keys, role, place)
        source = tensordict.get((_WARMED, role), tensordict)
        stored = {key: value for key in self._memory if (value := source.get(key, None)) is not None}
        if 0 < len(stored) < len(self._memory):
            raise KeyError(
                f"the memory of the {role} must be in the {place} as a whole or not at all, {self.remembered}: got "
                f"{list(stored)} alone; store all of it, or none."
            )
        for key, value in stored.items():
            if value.shape != tensordict.shape + self._memory[key]:
                raise ValueError(
                    f"the memory of the {role} must be {list(tensordict.shape + self._memory[key])}: {key!r} in the "
                    f"{place} is {list(value.shape)}, as of another network; give each network keys of its own "
                    "(in_keys and out_keys of LSTMModule and GRUModule)."
                )
            inputs.set(key, memory_as_weights(self._module_of(key), key, value))
        return inputs

    def _module_of(self, key: NestedKey) -> Any:
        """The module that reads a key of the memory."""
        if self._modules is None:
            self._modules = _remembering(self._network)
        return self._modules[key]

    def _check_rows(self, tensordict: TensorDictBase, role: str, place: str) -> None:
        if tensordict.batch_dims < 2:
            raise ValueError(
                f"a {role} that remembers learns from rows of steps [N, T]: got a {place} "
                f"{list(tensordict.batch_size)}; sample with a SliceSampler and register "
                "torchrl_rtpd.trainers.SliceBatches with the trainer."
            )
        if tensordict.get(START_KEY, None) is None:
            raise KeyError(
                f"a {role} that remembers must know where games begin: the {place} has no {START_KEY!r}, only "
                f"{names_in(tensordict)}; append an InitTracker to the environment, as a DualNetworkCollector does "
                "for networks that it is given."
            )

    @torch.no_grad()
    def warmed(self, tensordict: TensorDictBase, steps: int, role: str) -> TensorDictBase:
        """Return what the network remembers at the later steps of rows once it has seen their first ``steps``.

        Only that of the first of the later steps, and of those at which games begin, is meant to be read. No gradient
        goes through it. Call it with the parameters in place and hand the result to :func:`later_steps`.

        Args:
            tensordict: rows ``[*B, T]``. Not changed.
            steps: how many steps to run, between 1 and ``T - 1``.
            role: ``"student"`` or ``"teacher"``, for messages.

        Returns:
            Memory ``[*B, T - steps]`` by key.
        """
        inputs = self.inputs(tensordict, role)
        with set_recurrent_mode(True):
            outputs, last = through_rows(self._up_to_memory(), inputs[..., :steps])
        time, later = tensordict.ndim - 1, Size((*tensordict.shape[:-1], tensordict.shape[-1] - steps))
        starts = tensordict.get(START_KEY).reshape(tensordict.shape).bool()[..., steps:]
        unbroken = bool(last) and not starts[..., 1:].any()
        memory = TensorDict({}, later)
        for key, shape in self._memory.items():
            reached = last[key] if key in last else outputs.get(next_key(key)).select(time, -1)
            stored = inputs.get(key, reached.new_zeros(()).expand(tensordict.shape + shape))
            # A game that begins right there knows nothing of the steps before.
            begins = starts[..., 0].reshape(later[:-1] + (1,) * len(shape))
            first = torch.where(begins, stored.select(time, steps), reached).unsqueeze(time)
            states = first.expand(later + shape)
            if not unbroken:  # games begin, with what is stored for them
                states = torch.cat([first, stored.narrow(time, steps + 1, later[-1] - 1)], time)
            memory.set(key, states)
        return memory

    def _up_to_memory(self) -> list[TensorDictModuleBase]:
        """Parts of the network up to the last that remembers: nothing after them is needed, or drawn."""
        if self._first_parts is None:
            parts, _ = flattened(self._network)
            last = max(place for place, part in enumerate(parts) if any(map(is_recurrent, part.modules())))
            self._first_parts = parts[: last + 1]
        return self._first_parts


def later_steps(tensordict: TensorDictBase, steps: int, memory: dict[str, TensorDictBase]) -> TensorDictBase:
    """Return the steps of rows after the first ``steps``, at which networks go on from ``memory``.

    Args:
        tensordict: rows ``[*B, T]``. Not changed; the result shares its tensors.
        steps: steps to leave out.
        memory: what :meth:`SequencePart.warmed` returned, by role.
    """
    later = tensordict[..., steps:]
    for role, states in memory.items():
        later.set((_WARMED, role), states)
    return later


def single_steps(network: TensorDictModuleBase, tensordict: TensorDictBase) -> TensorDictBase:
    """Return what a network reads of a batch ``[*B, T]`` as ``[*B * T]`` steps, for tools that look at single steps.

    Rows are marked, so that recurrent modules in TorchRL's recurrent mode begin again with each. A batch ``[B]`` stays
    as it is.
    """
    memory = remembered_by(network)
    inputs = tensordict.select(*(key for key in network.in_keys if unravel_key(key) not in memory))
    modules = _remembering(network)
    for key in memory:
        if (value := tensordict.get(key, None)) is not None:
            inputs.set(key, memory_as_weights(modules[key], key, value))
    if inputs.batch_dims < 2:
        return inputs
    flat, begins = inputs.reshape(-1), inputs.get(START_KEY, None)
    if begins is not None:
        begins = begins.clone().reshape(inputs.shape)
        begins[..., 0] = True
        flat.set(START_KEY, begins.reshape(-1, 1))
    return flat
