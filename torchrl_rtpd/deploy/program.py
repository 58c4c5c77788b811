"""A student as one module on plain tensors: observations in, values and the greedy action out.

The module holds everything that the actor does before it draws: encoder, normaliser, scaling. It is a copy in float32
on the CPU, in eval mode and uncompiled.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torchrl.modules import DistributionalQValueModule, QValueModule

from torchrl_rtpd.deploy.recurrent import memory_of, one_step
from torchrl_rtpd.functional.returns import categorical_q_values
from torchrl_rtpd.networks.choices import declared_var_nums
from torchrl_rtpd.networks.compiled import uncompiled
from torchrl_rtpd.networks.keys import last_part
from torchrl_rtpd.networks.running import BareNetwork
from torchrl_rtpd.networks.towers import NatureTower

__all__ = ["TRACING", "Port", "Program", "multiply_adds", "outputs_of", "plain_copy", "traced"]

TRACING = threading.RLock()  # torch.export serves one thread at a time
Example: TypeAlias = "Tensor | Mapping[Any, Tensor] | TensorDictBase | None"


class Port(NamedTuple):
    """One input or output of a file.

    Attributes:
        name: "pixels", "action_value" and the like; "next_h" for what goes back in as "h"; with a number behind it
            where another port has the name.
        shape: without the batch dimension.
        dtype: "uint8", "float32", "int64", "bool".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


class Program(nn.Module):
    """All of a student that a device needs.

    Args:
        student: an actor or a plain module; not changed.
        example: observations ``[B, ...]``, several by key; None takes zeros for a
            :class:`~torchrl_rtpd.networks.towers.NatureTower`.

    Raises:
        ValueError: no example for a network whose inputs are unknown; a network that needs an action mask; weights that
            are not finite.
        TypeError: something that is no network, or an example that holds something else than tensors.

    Attributes:
        inputs, outputs: ports in order.
        example: two observations for each input.
    """

    def __init__(self, student: nn.Module, example: Example = None) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(f"student must be a network: got {type(student).__name__}.")
        actor = plain_copy(student)
        _refuse_broken(actor)
        _refuse_masks(actor)
        actor = one_step(actor)
        bare = BareNetwork.of(actor) if isinstance(actor, TensorDictModuleBase) else actor
        self._in_keys: list[NestedKey] = bare.in_keys if isinstance(bare, BareNetwork) else _only_key(actor)
        self._out_keys: list[NestedKey] = _told(bare.out_keys) if isinstance(bare, BareNetwork) else ["action_value"]
        self._remembered: list[NestedKey] = bare.remembered if isinstance(bare, BareNetwork) else []
        self.network = _plain_towers(bare).to(memory_format=torch.contiguous_format)
        self._choose = _chooser(actor, self._out_keys)
        self.example = _examples(student, example, self._in_keys, memory_of(actor))
        values = [] if self._choose is None else list(map(_name, self._out_keys))
        names = _distinct([*values, "action", *(f"next_{_name(key)}" for key in self._remembered)])
        self.outputs = [Port(name, *_described(tensor)) for name, tensor in zip(names, self.run(), strict=True)]
        names = _distinct(list(map(_name, self._in_keys)), taken=names)
        self.inputs = [Port(name, *_described(tensor)) for name, tensor in zip(names, self.example, strict=True)]

    @property
    def chooses_one(self) -> bool:
        """True if the action is the place of one of the values."""
        action = next(port for port in self.outputs if port.name == "action")
        return not action.shape and action.dtype == "int64"

    def forward(self, *observations: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of a batch of observations, as in :attr:`outputs`."""
        if isinstance(self.network, BareNetwork):
            entries = self.network.entries(*observations)
            values = tuple(entries[key] for key in self._out_keys)
            memory = tuple(entries[unravel_key(("next", key))] for key in self._remembered)
        else:
            values, memory = (self.network(*observations),), ()
        chosen = () if self._choose is None else (self._choose(dict(zip(self._out_keys, values, strict=True))),)
        return (*values, *chosen, *memory)

    def run(self, *observations: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs without gradients; those of :attr:`example` if no observations are given."""
        with torch.no_grad():
            return self(*(observations or self.example))


def traced(program: Program) -> torch.export.ExportedProgram:
    """Return the program as a graph of any batch size.

    Raises:
        ValueError: a network that :func:`torch.export.export` cannot follow.
        RuntimeError: a graph that computes other values, as of a network that draws random numbers.
    """
    wanted = program.run()
    sizes = ({0: torch.export.Dim.DYNAMIC},) * len(program.inputs)
    try:
        with TRACING, torch.no_grad():
            graph = torch.export.export(program, tuple(program.example), dynamic_shapes=(sizes,))
    except Exception as error:  # torch raises of many kinds here
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"the student must be a network that torch.export can follow: {type(error).__name__}: {reason[:200]}; "
            "remove what depends on the values of tensors."
        ) from error
    with torch.no_grad():
        found = graph.module()(*program.example)
    check_same(wanted, found)
    return graph


def check_same(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Refuse outputs that are not the student's.

    Raises:
        RuntimeError: they differ.
    """
    for own, other in zip(wanted, found, strict=True):
        if not torch.allclose(own.double(), other.double(), atol=1e-4 * max(1.0, own.double().abs().max().item())):
            raise RuntimeError(
                "the exported program must compute the student's values: they differ by up to "
                f"{(own.double() - other.double()).abs().max():.3g}; a student that draws random numbers cannot be "
                "exported."
            )


class _Scaled(nn.Module):
    """A :class:`NatureTower` without what concerns training alone: contexts of autocast and checks of its input."""

    def __init__(self, tower: NatureTower) -> None:
        super().__init__()
        self.trunk, self.head = tower.trunk, tower.head

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.trunk(pixels.to(torch.float32) * (1 / 255)))


def plain_copy(student: nn.Module) -> nn.Module:
    """Return a copy in float32 on the CPU, in eval mode, with every compiled module as it was before."""
    actor = copy.deepcopy(uncompiled(student)).cpu().eval()
    for module in list(actor.modules()):
        for name, child in list(module.named_children()):
            if uncompiled(child) is not child:
                module._modules[name] = uncompiled(child)
    return actor.float().requires_grad_(False)


def _plain_towers(network: nn.Module) -> nn.Module:
    if isinstance(network, NatureTower):
        return _Scaled(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NatureTower):
                module._modules[name] = _Scaled(child)
    return network


def _refuse_broken(actor: nn.Module) -> None:
    """Refuse weights that are not finite."""
    for name, weight in actor.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"the student's weights must be finite: {name!r} is not; take an earlier checkpoint.")


def _refuse_masks(actor: nn.Module) -> None:
    """Refuse choices that read what no part of the actor writes."""
    parts = [part for part in actor.modules() if isinstance(part, TensorDictModuleBase)]
    written = {unravel_key(key) for part in parts for key in part.out_keys}
    for module in parts:
        masks = [module.action_mask_key] if isinstance(module, QValueModule) else []
        if isinstance(module, ProbabilisticTensorDictModule):
            masks = [key for key in map(unravel_key, module.in_keys) if key not in written]
        for mask in masks:
            if mask is not None:
                raise ValueError(
                    f"an action mask cannot be exported: got a {type(module).__name__} that reads {mask!r}; export an "
                    "actor without it and apply the mask to its values on the device."
                )


def _chooser(actor: nn.Module, keys: Sequence[NestedKey]) -> Callable[[dict[NestedKey, Tensor]], Tensor] | None:
    """The function from values, logits or parameters of a distribution to the action of a greedy player.

    It is None where the network writes the action itself.
    """
    for part in actor.modules():
        if isinstance(part, ProbabilisticTensorDictModule):
            return _of_distribution(part)
        if isinstance(part, DistributionalQValueModule):
            support = part.support.detach().clone()
            return lambda values: categorical_q_values(_only(values), support).argmax(-1)
    if len(keys) == 1 and last_part(keys[0]) == "action":
        return None
    sizes = declared_var_nums(actor) if isinstance(actor, TensorDictModuleBase) else None
    if sizes is not None:
        return lambda values: torch.stack([group.argmax(-1) for group in _only(values).split(_sizes(sizes), -1)], -1)
    return lambda values: _only(values).argmax(-1)


def _told(keys: Sequence[NestedKey]) -> list[NestedKey]:
    """Keys of the action if the network writes one, otherwise of all values; a memory for the next step is neither."""
    values = [key for key in keys if not (isinstance(key, tuple) and key[0] == "next")]
    return [key for key in values if last_part(key) == "action"][:1] or values


def _sizes(var_nums: Sequence[int] | int) -> list[int] | int:
    """Sizes of the choices as :meth:`torch.Tensor.split` wants them."""
    return var_nums if isinstance(var_nums, int) else list(var_nums)


def _only(values: dict[NestedKey, Tensor]) -> Tensor:
    return next(iter(values.values()))


def _of_distribution(part: ProbabilisticTensorDictModule) -> Callable[[dict[NestedKey, Tensor]], Tensor]:
    keys = {name: unravel_key(key) for name, key in zip(part.dist_keys, part.in_keys, strict=True)}
    kind = part.distribution_class
    name = next(iter(keys))
    if isinstance(kind, type) and issubclass(kind, Bernoulli):  # a yes or no for each value
        return lambda values: (_only(values) > (0.0 if name == "logits" else 0.5)).long()

    options = {**part.distribution_kwargs, **_unclamped(kind)}

    def choose(values: dict[NestedKey, Tensor]) -> Tensor:
        if len(keys) == 1 and name in ("logits", "probs"):
            return _only(values).argmax(-1)
        given = {name: values[key] for name, key in keys.items()}
        distribution = kind(**given, **options)
        if hasattr(distribution, "deterministic_sample"):
            return distribution.deterministic_sample
        return distribution.mode if hasattr(distribution, "mode") else distribution.mean

    return choose


def _unclamped(kind: Any) -> dict[str, bool]:
    """Options without a clamp of tanh just below 1, which torch.export cannot follow and no action shows."""
    return {name: False for name in ("safe", "safe_tanh") if name in inspect.signature(kind).parameters}


def _only_key(actor: nn.Module) -> list[NestedKey]:
    keys = list(map(unravel_key, actor.in_keys)) if isinstance(actor, TensorDictModuleBase) else []
    if isinstance(actor, NatureTower):
        return ["pixels"]
    return keys[:1] or ["observation"]


def _examples(
    student: nn.Module, example: Example, keys: Sequence[NestedKey], memory: Mapping[NestedKey, Tensor]
) -> list[Tensor]:
    """Two observations for each input, in memory of their own."""
    if example is None:
        towers = [module for module in student.modules() if isinstance(module, NatureTower)]
        if len(towers) != 1 or len(keys) != 1:
            raise ValueError(
                f"example must hold the observations that the student reads, {list(keys)}: got None; "
                "give a batch of each."
            )
        return [torch.zeros(2, *towers[0].input_size, dtype=torch.uint8)]
    if isinstance(example, Tensor):
        example = {keys[0]: example}
    if not isinstance(example, (Mapping, TensorDictBase)):
        raise TypeError(f"example must be observations or several by key: got {type(example).__name__}.")
    example = {**memory, **{key: example.get(key) for key in keys if example.get(key) is not None}}
    missing = [key for key in keys if key not in example]
    if missing:
        raise ValueError(f"example must hold the observations that the student reads: got none of {missing}.")
    found: list[Any] = [example.get(key) for key in keys]
    others = [
        f"{type(entry).__name__} for {key!r}"
        for key, entry in zip(keys, found, strict=True)
        if not isinstance(entry, Tensor)
    ]
    if others:
        raise TypeError(f"example must hold tensors: got {', '.join(others)}; convert it by torch.as_tensor.")
    tensors = [tensor.detach().cpu() for tensor in found]
    if any(not len(tensor) for tensor in tensors):
        raise ValueError("example must hold at least one observation: got none.")
    return [torch.cat([tensor[:1], tensor[-1:]]).clone() for tensor in tensors]


def _described(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch.")


def _name(key: NestedKey) -> str:
    return key if isinstance(key, str) else "_".join(key)


def _distinct(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """Names as they are where none is used twice; otherwise with a number."""
    found: list[str] = []
    for name in names:
        others = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        found.append(next(other for other in others if other not in (*taken, *found)))
    return found


def multiply_adds(program: Program) -> int:
    """Number of multiply-adds for one observation, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        program.run()
    return counter.get_total_flops() // (2 * len(program.example[0]))


def outputs_of(program: Program, states: Sequence[Any]) -> tuple[Tensor, ...]:
    """Outputs of many observations, batch by batch."""
    parts = [program.run(*part) for part in zip(*(tensor.split(256) for tensor in states), strict=True)]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
