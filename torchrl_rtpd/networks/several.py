"""Several teachers as one network, of which each state has its own.

``*B`` are batch dimensions, ``K`` the number of teachers. A student may learn from all of them: Actor-Mimic (Parisotto
et al. 2016, https://arxiv.org/abs/1511.06342) and the multi-task agents of Rusu et al. 2015
(https://arxiv.org/abs/1511.06295), distil one teacher a game into a single network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.modules import Delta, DistributionalQValueActor, TanhDelta

from torchrl_rtpd.networks.choices import declared_actions, declared_var_nums
from torchrl_rtpd.networks.keys import selected
from torchrl_rtpd.networks.rhythm import Rhythm
from torchrl_rtpd.networks.running import BareNetwork, as_tensordict_module

__all__ = ["PLACE", "TeacherByKey", "Teachers"]

PLACE = "batch, or its next,"
"""Name of the data in messages: a network does not know which of the two it is given."""

_REMEDY = (
    "build all alike, or convert their weights (.float()); games with actions of their own share those of "
    "full_action_space=True, of which an action_mask forbids some"
)


class Teachers(TensorDictModuleBase):
    """Base of networks that consist of several teachers; use one of its subclasses.

    Args:
        teachers: networks, or networks by name, all with the same outputs. Of an actor only the part before the choice
            of the action is run, so that nothing is drawn. The networks are not copied: they share their weights.

    Attributes:
        teachers: the networks by name, or by their place where they came without names.
    """

    def __init__(self, teachers: Sequence[nn.Module] | Mapping[str, nn.Module]) -> None:
        super().__init__()
        named = _named(teachers)
        self.teachers = nn.ModuleDict(named)
        # In a dictionary, which registers nothing: their parts are those of the networks above.
        self._parts = {name: _before_choice(name, network) for name, network in named.items()}
        _check_alike({name: _facts(network, self._parts[name]) for name, network in named.items()})
        self._inputs = list(dict.fromkeys(key for part in self._parts.values() for key in part.in_keys))
        self._outputs = self._parts[next(iter(named))].out_keys
        self.in_keys = list(self._inputs)
        self.out_keys = list(self._outputs)
        self._rhythm = Rhythm()

    @property
    def names(self) -> list[str]:
        """Names of the teachers, in the order of their ids."""
        return list(self.teachers)

    @property
    def spec(self) -> Any:
        """Spec that the teachers declare, by which a loss compares its student's actions; None without one."""
        specs = (getattr(teacher, "spec", None) for teacher in self.teachers.values())
        return next((spec for spec in specs if spec is not None), None)

    def _run(self, name: str, inputs: Mapping[NestedKey, Tensor]) -> list[Tensor]:
        """A teacher's outputs, in the order of the keys that all of them write."""
        part = self._parts[name]
        entries = part.entries(*(inputs[key] for key in part.in_keys))
        return [entries[key] for key in self._outputs]

    def _check_shapes(self, results: Mapping[str, Sequence[Tensor]], batch_dims: int) -> None:
        """Refuse outputs of teachers that differ in shape beyond the batch."""
        (first, expected), *others = results.items()
        for name, found in others:
            for key, one, other in zip(self._outputs, expected, found, strict=True):
                shapes = [list(value.shape[batch_dims:]) for value in (one, other)]
                if shapes[0] != shapes[1]:
                    raise ValueError(
                        f"teachers must write {key!r} in one shape: got {shapes[0]} of {first!r} and {shapes[1]} of "
                        f"{name!r}; {_REMEDY}."
                    )


class TeacherByKey(Teachers):
    r"""Several teachers, of which an entry of the data names one for each state.

    It reads what the teachers read and their ids, and writes what they all write: ``action_value`` or ``logits``
    ``[*B, A]``, ``loc`` and ``scale`` ``[*B, D]``, or ``action``. So it is a network like any other:

    - ``teacher_network=`` of every distillation loss, with frozen teachers;
    - the network of an actor, ``QValueActor(TeacherByKey(...), spec=..., action_mask_key=...)`` or
      ``ProbabilisticActor(TeacherByKey(...), ...)``, which plays in a collector and learns by TorchRL's losses, such as
      :class:`~torchrl.objectives.DQNLoss`, or :class:`~torchrl_rtpd.objectives.TeacherDQNLoss`: live teachers. Warning:
      by itself it chooses no action, and ``DQNLoss(TeacherByKey(...))`` fails at its first batch.

    A gradient reaches a teacher from the states that have its id, and from no others. Warning: a loss is a mean over
    the whole batch, so that a teacher with a quarter of the states has a quarter of the gradient. Adam's steps do not
    depend on that; gradients that are clipped, or optimisers without such a scale, do.

    On a CPU each teacher runs on its own states alone, and the work is that of one teacher. A teacher without any is
    not run and gets no gradient, so that an optimiser leaves it as it is. On a GPU, and within ``torch.compile``,
    every teacher runs on all states and those of others are dropped: shapes must not depend on the data there, since
    the host would wait to count the states and no CUDA graph could be captured. The gradient of a teacher without
    states is then zero, so that Adam's momentum still moves it. The same holds of batch normalisation in training
    mode, which then sees all states.

    Args:
        teachers: networks, whose ids are their places, 0 to ``K - 1``; or networks by name, whose ids are their places
            in the mapping. Tensordict modules, actors of them, or plain modules, which read ``"observation"`` and write
            ``"action_value"``. Each may read entries of its own.
        key: entry with the ids, integers ``[*B]`` or ``[*B, 1]``. A temporal-difference loss reads it under ``"next"``
            in addition, so that it should be one of the environment's observations.

    Raises:
        TypeError: a teacher that is no module; at a call, ids that are not integers.
        ValueError: no teacher, a name that no parameter can bear, a teacher that remembers, teachers with different
            outputs, actions, distributions or types of weights; at a call, ids or outputs of another shape, or an id
            without a teacher. The latter is looked for at every call on a CPU and, since looking waits for the device,
            at the 1st, 2nd, 4th, 8th ... call on a GPU, never inside ``torch.compile``.
        KeyError: at a call, an entry that the data lack.

    Examples:
        >>> from tensordict import TensorDict
        >>> twice, minus = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = twice.weight.fill_(2.0), minus.weight.fill_(-1.0)
        >>> teachers = TeacherByKey({"twice": twice, "minus": minus})
        >>> states, ids = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 0])
        >>> batch = TensorDict({"observation": states, "teacher_id": ids}, [3])
        >>> teachers(batch)["action_value"].squeeze(-1).tolist()
        [2.0, -2.0, 6.0]
        >>> teachers.in_keys, teachers.out_keys, teachers.names
        (['observation', 'teacher_id'], ['action_value'], ['twice', 'minus'])
    """

    def __init__(self, teachers: Sequence[nn.Module] | Mapping[str, nn.Module], key: NestedKey = "teacher_id") -> None:
        super().__init__(teachers)
        self.key = unravel_key(key)
        self.in_keys = [*self._inputs, self.key]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the values of each state's own teacher into the batch ``[*B]``; see the class for the keys."""
        seen = selected(tensordict, self.in_keys, "teacher", PLACE)
        ids = self._ids(seen)
        inputs = {key: seen.get(key) for key in self._inputs}
        static = ids.is_cuda or torch.compiler.is_compiling()
        results = self._on_all_rows(ids, inputs) if static else self._on_own_rows(ids, inputs)
        for key, value in zip(self._outputs, results, strict=True):
            tensordict.set(key, value)
        return tensordict

    def _ids(self, seen: TensorDictBase) -> Tensor:
        """The ids ``[*B]``; plain tensors, without a batch of their own, have that of their ids."""
        ids, batch = seen.get(self.key), seen.batch_size
        if ids.dtype is torch.bool or ids.is_floating_point() or ids.is_complex():
            raise TypeError(f"ids of teachers must be integers: {self.key!r} is {ids.dtype}; store them as torch.long.")
        ids = ids.long()  # PyTorch neither sorts nor compares some types without a sign
        if ids.shape == batch:
            return ids
        if ids.ndim and ids.shape[-1] == 1 and (not batch or ids.shape[:-1] == batch):
            ids = ids.squeeze(-1)
        elif batch:
            raise ValueError(
                f"there must be one id for each state, {list(batch)} or {[*batch, 1]}: {self.key!r} is "
                f"{list(ids.shape)}; write it by a transform of each environment."
            )
        for key in self._inputs:
            shape = seen.get(key).shape
            if shape[: ids.ndim] != ids.shape:
                raise ValueError(
                    f"there must be one id for each state: {self.key!r} is {list(ids.shape)} and {key!r} is "
                    f"{list(shape)}; give both the same batch."
                )
        return ids

    def _on_own_rows(self, ids: Tensor, inputs: Mapping[NestedKey, Tensor]) -> list[Tensor]:
        """Outputs ``[*B, ...]`` of teachers that run on the rows of their own."""
        if not ids.numel():
            return self._run(self.names[0], inputs)
        flat = ids.reshape(-1)
        low, high = (int(bound) for bound in flat.aminmax())
        self._check_range(low, high)
        if low == high:
            return self._run(self.names[low], inputs)
        order = flat.argsort(stable=True)
        counts = flat.bincount(minlength=len(self.teachers)).tolist()
        rows = {
            key: value.reshape(-1, *value.shape[ids.ndim :]).index_select(0, order) for key, value in inputs.items()
        }
        parts = {key: value.split(counts) for key, value in rows.items()}
        results = {
            name: self._run(name, {key: part[number] for key, part in parts.items()})
            for number, name in enumerate(self.teachers)
            if counts[number]
        }
        self._check_shapes(results, 1)
        back = order.argsort()
        return [
            torch.cat(own).index_select(0, back).reshape(*ids.shape, *own[0].shape[1:])
            for own in zip(*results.values(), strict=True)
        ]

    def _on_all_rows(self, ids: Tensor, inputs: Mapping[NestedKey, Tensor]) -> list[Tensor]:
        """Outputs ``[*B, ...]`` of teachers that all run on every row, the shapes of which no id changes."""
        if self._rhythm.due() and ids.numel():
            low, high = (int(bound) for bound in ids.aminmax())
            self._check_range(low, high)
        results = {name: self._run(name, inputs) for name in self.teachers}
        self._check_shapes(results, ids.ndim)
        first, *others = results.values()
        for number, own in enumerate(others, 1):
            first = [
                torch.where((ids == number).reshape(*ids.shape, *[1] * (value.ndim - ids.ndim)), value, before)
                for value, before in zip(own, first, strict=True)
            ]
        return first

    def _check_range(self, low: int, high: int) -> None:
        if low < 0 or high >= len(self.teachers):
            raise ValueError(
                f"{self.key!r} must be the id of a teacher, 0 to {len(self.teachers) - 1}: got "
                f"{low if low < 0 else high}; write the place of the teacher among {', '.join(self.names)}."
            )


def _named(teachers: Sequence[nn.Module] | Mapping[str, nn.Module]) -> dict[str, TensorDictModule]:
    """Teachers by name, as tensordict modules."""
    given: dict[Any, nn.Module]
    given = dict(teachers) if isinstance(teachers, Mapping) else {str(i): one for i, one in enumerate(teachers)}
    if not given:
        raise ValueError("there must be a teacher: got none; pass networks in a list, or by name.")
    for name in given:
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
            raise ValueError(
                "a teacher's name must be a text without '.', which parts the names of parameters, and none that "
                f"torch.nn.ModuleDict uses itself: got {name!r}; the id of a teacher is its place in the mapping."
            )
    return {name: as_tensordict_module(network, ["action_value"]) for name, network in given.items()}


def _before_choice(name: str, network: TensorDictModule) -> BareNetwork:
    """The part of an actor that writes values, or its whole where the choice draws nothing."""
    samplers = _samplers(network)
    if samplers and samplers[-1].distribution_class in (Delta, TanhDelta):
        part = BareNetwork(network, [network], [samplers[-1].dist_sample_keys[0]])
    else:
        part = BareNetwork.of(network)
    if part.remembered:
        raise ValueError(
            f"teachers must be functions of what they see: got {name!r}, which reads {part.remembered} of the step "
            "before; distil from it alone."
        )
    return part


def _samplers(network: nn.Module) -> list[ProbabilisticTensorDictModule]:
    return [module for module in network.modules() if isinstance(module, ProbabilisticTensorDictModule)]


def _facts(network: TensorDictModule, part: BareNetwork) -> dict[str, Any]:
    """Facts in which teachers must agree, by their names in a message; None is unknown."""
    distributions = [
        (sampler.distribution_class.__name__, {name: _plain(value) for name, value in kwargs.items()})
        for sampler in _samplers(network)
        for kwargs in [sampler.distribution_kwargs or {}]
    ]
    supports = [_plain(module.support) for module in network.modules() if isinstance(module, DistributionalQValueActor)]
    return {
        "what they write": sorted(part.out_keys, key=str),
        "the number of actions": declared_actions(network),
        "the choices of an action": declared_var_nums(network),
        "the distribution of actions": distributions[-1] if distributions else None,
        "the support of returns": supports[0] if supports else None,
        "the types of their weights": sorted({str(p.dtype) for p in network.parameters()}) or None,
    }


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _check_alike(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse teachers of which two disagree in a fact that both declare."""
    known: dict[str, tuple[str, Any]] = {}
    for name, own in facts.items():
        for fact, value in own.items():
            first, expected = known.setdefault(fact, (name, value)) if value is not None else (name, None)
            if expected != value:
                raise ValueError(
                    f"teachers must agree on {fact}: got {expected} of {first!r} and {value} of {name!r}; {_REMEDY}."
                )
