"""Run the needed part of a network: with other parameters, frozen, in eval mode, or on plain tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.modules import (
    AdditiveGaussianModule,
    EGreedyModule,
    NoisyLinear,
    OrnsteinUhlenbeckProcessModule,
    QValueModule,
)

from torchrl_rtpd.functional.checks import real_number
from torchrl_rtpd.networks.compiled import uncompiled
from torchrl_rtpd.networks.keys import VALUE_NAMES, last_part, read, selected
from torchrl_rtpd.networks.swap import ParameterSwap

__all__ = [
    "BareNetwork",
    "NetworkPart",
    "ParameterSwap",
    "Teacher",
    "as_tensordict_module",
    "bare_network",
    "chooses",
    "eval_mode",
    "flattened",
    "same_in_training",
]

_CHOOSING = (
    QValueModule,
    ProbabilisticTensorDictModule,
    EGreedyModule,
    AdditiveGaussianModule,
    OrnsteinUhlenbeckProcessModule,
)

# Layers whose training-mode outputs are no targets: random, or moved by the batch.
_TRAINING_LAYERS = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.RReLU, NoisyLinear)


def same_in_training(network: nn.Module) -> bool:
    """Return True if a network's outputs in training mode are those of its eval mode, and so good for targets.

    Known are layers that are dropout, or have some as recurrent and attention layers may; a function that drops is not.
    """
    return not any(isinstance(layer, _TRAINING_LAYERS) or _drops(layer) for layer in network.modules())


def _drops(layer: nn.Module) -> bool:
    return (real_number(getattr(layer, "dropout", None)) or 0.0) > 0


def chooses(part: nn.Module) -> bool:
    """Return True for TorchRL's parts that follow the values: a choice, a draw or a disturbance of the action."""
    return isinstance(part, _CHOOSING)


class Teacher:
    """Teacher that a loss must not own, run in eval mode and without gradient, its own mode restored.

    Not a :class:`torch.nn.Module`, so that the loss's parameters, state, ``to`` and ``reset_parameters_recursive`` pass
    it by.
    """

    def __init__(self, network: TensorDictModule, part: NetworkPart | None = None) -> None:
        self.network = network
        self.part = NetworkPart(network) if part is None else part

    @contextmanager
    def evaluating(self) -> Iterator[TensorDictModule]:
        """The network, to be run inside the context."""
        with eval_mode(self.network), torch.no_grad():
            yield self.network

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self  # a copied loss learns from the same live teacher


class NetworkPart:
    """Computation of one output of a network, without the parts that come after it.

    A Q-value actor also chooses an action and a policy draws one, at a cost and, for a policy, from the global random
    stream. Neither happens here. A network with forward hooks is run whole, so that they see their usual inputs.
    """

    def __init__(self, network: TensorDictModuleBase) -> None:
        self._network = network
        self._plans: dict[NestedKey, _Plan] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_network": self._network, "_plans": {}}

    def __call__(self, tensordict: TensorDictBase, key: NestedKey, role: str, place: str = "batch") -> Tensor:
        """The network's output under ``key``, whose name for ``set_keys`` starts with ``role``.

        The ``tensordict`` is not written to.
        """
        if key not in self._plans:
            self._plans[key] = _Plan(self._network, key)
        plan = self._plans[key]
        whole = torch.compiler.is_compiling() or any(map(_has_hooks, plan.passed_over))
        if plan.plain is not None and not whole:
            inputs = [tensordict.get(in_key, None) for in_key in plan.plain.in_keys]
            if not any(value is None for value in inputs):
                return _in_order(plan.plain.module(*inputs), plan.plain)[plan.plain.out_keys.index(key)]
        outputs = self.inputs(tensordict, role, place)
        outputs = self._through([self._network] if whole else plan.steps, outputs)
        return read(outputs, key, role, f"{role}_action_value")

    def _through(self, parts: Sequence[TensorDictModuleBase], inputs: TensorDictBase) -> TensorDictBase:
        """Run parts of the network in turn."""
        for part in parts:
            inputs = part(inputs)
        return inputs

    @property
    def needed_keys(self) -> list[NestedKey]:
        """Entries without which the network cannot run."""
        return list(self._network.in_keys)

    @property
    def remembered(self) -> list[NestedKey]:
        """Entries of the memory that TorchRL's recurrent modules keep; see :class:`.SequencePart`."""
        return []

    def inputs(self, tensordict: TensorDictBase, role: str, place: str = "batch") -> TensorDictBase:
        """Return the entries that the network reads, afresh: samples may hold an output's name, not to be changed."""
        return selected(tensordict, self.needed_keys, role, place)


class _Plan:
    """Parts of a network to run for one of its outputs.

    ``steps`` are its parts up to the last that matters, ``plain`` is the only one if that is no more than a module on
    tensors, and ``passed_over`` are the wrappers that are then not called.
    """

    def __init__(self, network: TensorDictModuleBase, key: NestedKey) -> None:
        parts, self.passed_over = flattened(network)
        writers = [place for place, part in enumerate(parts) if key in part.out_keys and not _hands_on(part, key)]
        self.steps = parts[: writers[-1] + 1] if writers else [network]
        self.plain = None
        if writers and len(self.steps) == 1 and _is_plain(self.steps[0]):
            self.plain = self.steps[0]
            self.passed_over.append(self.plain)


def flattened(network: TensorDictModuleBase) -> tuple[list[TensorDictModuleBase], list[nn.Module]]:
    """Return the parts of a sequence of sequences in the order in which they run, and the sequences."""
    library = type(network).forward.__module__.split(".")[0] in ("tensordict", "torchrl")  # runs its parts in turn
    if not (isinstance(network, TensorDictSequential) and library) or network.partial_tolerant:
        return [network], []
    parts, sequences = [], [network]
    for module in network:
        inner_parts, inner_sequences = flattened(module)
        parts += inner_parts
        sequences += inner_sequences
    return parts, sequences


def _hands_on(part: nn.Module, key: NestedKey) -> bool:
    """Return True if a part chooses an action by the values it reads and writes them again as they are."""
    return isinstance(part, QValueModule) and part.action_mask_key is None and part.action_value_key == key


def _in_order(outputs: Any, part: TensorDictModule) -> Sequence[Any]:
    """What the module of a plain part returned, in the order of the part's ``out_keys``."""
    if isinstance(outputs, (dict, TensorDictBase)):
        return [outputs.get(key) for key in part.out_keys]
    return outputs if isinstance(outputs, tuple) else (outputs,)


def as_tensordict_module(network: TensorDictModule | nn.Module, out_keys: Sequence[NestedKey]) -> TensorDictModule:
    """Return a network as a tensordict module: a plain one reads ``"observation"`` and writes ``out_keys``."""
    if isinstance(uncompiled(network), TensorDictModuleBase):  # a compiled one hides its keys
        return uncompiled(network)
    if not isinstance(network, nn.Module):
        raise TypeError(f"a network must be a TensorDictModule or nn.Module: got {type(network).__name__}.")
    return TensorDictModule(network, in_keys=["observation"], out_keys=list(out_keys))


@contextmanager
def eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Put networks into eval mode inside the context, and each of their modules back afterwards."""
    training = [module for network in networks for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def bare_network(actor: nn.Module) -> nn.Module:
    """Return all of an actor that maps observations to values, logits or parameters of a policy, on plain tensors.

    Left out is whatever chooses, draws or disturbs an action. The result shares the actor's weights, and its state has
    the actor's names; of an actor with one part, all of whose outputs are values, it is the very module inside.

    Args:
        actor: a tensordict module of any number of parts, or a plain module, which is returned. Both may be compiled.

    Returns:
        A module ``(*observations) -> values``; for several inputs see :attr:`BareNetwork.in_keys`. The very module
        inside of an actor returns a dictionary if it is written so.

    Examples:
        >>> bare_network(TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["action_value"]))
        Linear(in_features=4, out_features=2, bias=True)
        >>> encoder = TensorDictModule(nn.Linear(4, 8), in_keys=["observation"], out_keys=["features"])
        >>> head = TensorDictModule(nn.Linear(8, 2), in_keys=["features"], out_keys=["action_value"])
        >>> network = bare_network(TensorDictSequential(encoder, head))
        >>> network.in_keys, network(torch.zeros(5, 4)).shape
        (['observation'], torch.Size([5, 2]))
    """
    actor = uncompiled(actor)
    if not isinstance(actor, TensorDictModuleBase):
        return actor
    parts, out_keys = _parts_to_values(actor)
    only = parts[0] if len(parts) == 1 and _is_plain(parts[0]) and not _has_hooks(parts[0]) else None
    if only is not None and len(only.in_keys) == 1 and [unravel_key(key) for key in only.out_keys] == out_keys:
        inner = uncompiled(only.module)
        if not isinstance(inner, TensorDictModuleBase):
            return inner
    return BareNetwork(actor, parts, out_keys)


class BareNetwork(nn.Module):
    """Several parts of an actor in turn, on plain tensors; made by :func:`bare_network`.

    Attributes:
        in_keys: the entry that each argument stands for, in order.
        out_keys: the entry that each result stands for.
    """

    def __init__(self, actor: nn.Module, parts: Sequence[TensorDictModuleBase], out_keys: Sequence[NestedKey]) -> None:
        super().__init__()
        self._parts = tuple(parts)  # not as submodules: those are below, by the actor's names
        self.out_keys = [unravel_key(key) for key in out_keys]
        written: set[NestedKey] = set()
        self.in_keys: list[NestedKey] = []
        for part in parts:
            keys = [unravel_key(key) for key in part.in_keys]
            self.in_keys += [key for key in keys if key not in written and key not in self.in_keys]
            written |= {unravel_key(key) for key in part.out_keys}
        self._remembered = [key for key in self.in_keys if unravel_key(("next", key)) in written]
        names = {module: name for name, module in actor.named_modules()}
        for part in parts:
            _add_module(self, names[part], part)

    @classmethod
    def of(cls, actor: TensorDictModuleBase) -> BareNetwork:
        """Return what :func:`bare_network` does, even of an actor with one part."""
        return cls(actor, *_parts_to_values(actor))

    def forward(self, *observations: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the values of observations ``[*B, ...]``.

        Args:
            observations: tensors as in :attr:`in_keys`.

        Returns:
            A tensor, or several as in :attr:`out_keys`.

        Raises:
            TypeError: another number of observations.
            RuntimeError: a recurrent network, whose values depend on what it remembers.
        """
        if self._remembered:
            raise RuntimeError(
                f"a recurrent network is no function of its observation alone: it reads {self._remembered} and writes "
                "them for the next step; run the actor itself, step by step."
            )
        entries = self.entries(*observations)
        results = tuple(entries[key] for key in self.out_keys)
        return results if len(results) > 1 else results[0]

    @property
    def remembered(self) -> list[NestedKey]:
        """Entries that a recurrent network reads and writes under ``"next"`` for the step that follows."""
        return list(self._remembered)

    def entries(self, *observations: Tensor) -> dict[NestedKey, Any]:
        """Return everything that the parts read and write, by key.

        Args:
            observations: tensors as in :attr:`in_keys`.

        Raises:
            TypeError: another number of observations.
        """
        if len(observations) != len(self.in_keys):
            raise TypeError(f"the network reads {self.in_keys}: got {len(observations)} tensors; pass one for each.")
        entries: dict[NestedKey, Any] = dict(zip(self.in_keys, observations, strict=True))
        for part in self._parts:
            inputs = [entries[unravel_key(key)] for key in part.in_keys]
            if _is_plain(part) and not _has_hooks(part):  # hooks may change, or select, the outputs
                outputs = part.module(*inputs)
            else:
                outputs = part(TensorDict(dict(zip(part.in_keys, inputs, strict=True)), []))
            entries.update(zip(map(unravel_key, part.out_keys), _in_order(outputs, part), strict=True))
        return entries

    def __deepcopy__(self, memo: dict[int, Any]) -> BareNetwork:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


def _parts_to_values(actor: TensorDictModuleBase) -> tuple[list[TensorDictModuleBase], list[NestedKey]]:
    """The parts of an actor before the first that chooses an action, and the keys that this one reads."""
    parts, _ = flattened(actor)
    choosing = next((place for place, part in enumerate(parts) if chooses(part)), len(parts))
    if choosing == 0:  # exploration alone, or a choice that reads values
        raise ValueError(f"an actor must have a network before it chooses: got {type(parts[0]).__name__} first.")
    written = [unravel_key(key) for part in parts[:choosing] for key in part.out_keys]
    keys: list[NestedKey] = []
    if choosing < len(parts) and isinstance(parts[choosing], (QValueModule, ProbabilisticTensorDictModule)):
        keys = [key for key in map(unravel_key, parts[choosing].in_keys) if key in written]
    if not keys:
        keys = [key for key in written if last_part(key) in VALUE_NAMES][-1:]
    if not keys:
        keys = [key for key in map(unravel_key, parts[choosing - 1].out_keys) if key != "_"]  # which is written nowhere
    again = [key for part in parts[choosing:] if not chooses(part) for key in map(unravel_key, part.out_keys)]
    if not set(again).isdisjoint(keys):
        raise ValueError(
            f"an actor's values must be those by which it chooses: got {type(parts[choosing]).__name__} before a part "
            f"that writes {sorted(set(again) & set(keys), key=str)} again; move that part before it."
        )
    needed = set(keys)
    kept: list[TensorDictModuleBase] = []
    for part in reversed(parts[:choosing]):
        if needed & {unravel_key(key) for key in part.out_keys}:
            kept.insert(0, part)
            needed |= {unravel_key(key) for key in part.in_keys}
    return kept, keys


def _is_plain(part: nn.Module) -> bool:
    """Return True if a part is no more than a module that is called on tensors."""
    return type(part).forward is TensorDictModule.forward and not (
        part._kwargs is not None or part.method is not None or part.method_kwargs or part._get_kwargs
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _add_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Give ``root`` a submodule of a dotted name, so that its state has the names of where the module came from."""
    *containers, leaf = name.split(".")
    for container in containers:
        if container not in root._modules:
            root.add_module(container, nn.Module())
        root = root._modules[container]  # type: ignore[assignment]
    if leaf:
        root.add_module(leaf, module)
    else:  # the actor itself, whose state has the names of what it holds
        for own, parts in ((root._modules, module._modules), (root._parameters, module._parameters)):
            own.update(parts)  # type: ignore[arg-type]
        root._buffers.update(module._buffers)
