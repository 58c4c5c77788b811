"""Base of every distillation loss, whatever the actions: networks, keys, reduction, priorities.

``B`` is the batch. The student is the module's only trainable network; all that comes from the teacher is detached.

A subclass for a new kind of action gives :class:`PolicyDistillationLoss` three things:

- the class attributes ``out_keys``, ``_AcceptedKeys`` (derived from that of the base), ``tensor_keys`` (its annotation)
  and ``default_keys``, and ``_has_target = True`` if the student needs target parameters;
- ``stored_keys()``: the keys of the batch under which a teacher's outputs may lie;
- ``_terms(tensordict, metrics)``: ``(losses, measured)``, two mappings name -> tensor ``[*B]``. Losses are reduced as
  the user asks. What is measured is detached and averaged, and may be left out where ``metrics`` is False. A trainer
  sums the names that begin with "loss".

It runs the networks inside ``with self._student(params) as network:`` (default: the parameters being trained) and
``with self._teacher.evaluating() as network:`` (eval mode, no gradient; ``self._teacher`` is None without a teacher),
on inputs from ``selected``, which names what a batch lacks, and reads their outputs by ``read``. It ends by
``self._write_priority(tensordict, per_sample)`` if it writes one. Coefficients that a schedule may change go through
``register_coeff_buffer`` and into ``_schedulable_buffers``; :func:`positive` checks temperatures, and
:func:`coefficient` the weights of terms.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.objectives.common import LossModule

from torchrl_rtpd.functional.checks import check_integers, check_within, lies_within, real_number
from torchrl_rtpd.networks.keys import names_in
from torchrl_rtpd.networks.rhythm import Rhythm
from torchrl_rtpd.networks.running import ParameterSwap, Teacher, as_tensordict_module
from torchrl_rtpd.networks.sequences import SequencePart, later_steps, network_part
from torchrl_rtpd.objectives.following import FOLLOWED_KEYS, known_of_teacher

__all__ = ["PolicyDistillationLoss", "coefficient", "positive"]

REDUCTIONS = ("none", "mean", "sum")


class PolicyDistillationLoss(LossModule):
    """Base of the distillation losses; use one of its subclasses.

    The input is never written to, except a priority under a key set for it.

    Args:
        student_network (TensorDictModule or nn.Module): the network to train.
        teacher_network (TensorDictModule or nn.Module, optional): run without gradient and in eval mode when the batch
            holds no outputs of the teacher. It is not part of ``parameters()``, ``state_dict()``, ``to()`` or
            ``deepcopy``: it stays whose it is.

    Keyword Args:
        reduction (str, optional): ``"none"`` | ``"mean"`` | ``"sum"``. Default: ``"mean"``.
        use_prioritized_weights (bool or "auto", optional): weight the loss by the batch's importance weights;
            ``"auto"`` if it holds any. Default: ``"auto"``.
        burn_in (int, optional): of each row ``[T]`` of a recurrent student's batch, steps that only warm its memory,
            without gradient and without loss (Kapturowski et al. 2019, R2D2, Section 3). Default: 0.

    Raises:
        TypeError: a network that is no module.
        ValueError: an unknown option, or a burn-in for a student without a memory; at a call, one that leaves no step.
        RuntimeError: at a call, no teacher outputs and no teacher network.
        KeyError: at a call, a key that the batch or a network's output lacks.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` can change.

        Attributes:
            priority_weight (NestedKey): importance weights, read if present. Defaults to ``"priority_weight"``.
            priority (NestedKey): where each sample's detached divergence ``[*B, 1]`` is written into the input.
                Defaults to ``None``: nowhere.
        """

        priority_weight: NestedKey = "priority_weight"
        priority: NestedKey | None = None

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    _has_target = False
    _takes_metrics = True  # False for a subclass whose own forward(tensordict) knows no such argument

    student_network: TensorDictModule
    student_network_params: TensorDictParams
    target_student_network_params: TensorDictParams

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" not in cls.__dict__:
            # TorchRL wraps forward again for every class, around the wrapper of its base: one is enough.
            cls.forward = cls.forward.__wrapped__  # type: ignore[attr-defined, method-assign]
        else:
            parameters = inspect.signature(cls.forward).parameters.values()
            cls._takes_metrics = any(p.name == "metrics" or p.kind is p.VAR_KEYWORD for p in parameters)

    def __init__(
        self,
        student_network: TensorDictModule | nn.Module,
        teacher_network: TensorDictModule | nn.Module | None = None,
        *,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
        burn_in: int = 0,
    ) -> None:
        super().__init__()
        self._told: set[str] = set()  # settings that the user made
        self._in_keys: list[NestedKey] = []  # found at first use
        self._rhythm = Rhythm()
        self.reduction = "mean" if reduction is None else reduction
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be none, mean or sum: got {reduction!r}.")
        if use_prioritized_weights not in (True, False, "auto"):
            raise ValueError(f"use_prioritized_weights must be True, False or auto: got {use_prioritized_weights!r}.")
        self.use_prioritized_weights = use_prioritized_weights
        student_network = self._as_network(student_network)
        self.convert_to_functional(student_network, "student_network", create_target_params=self._has_target)
        self._student_swap = ParameterSwap(student_network)
        self._student_part = network_part(self.student_network)
        if teacher_network is not None:
            teacher_network = self._as_network(teacher_network)
        self._teacher = None if teacher_network is None else Teacher(teacher_network, network_part(teacher_network))
        # Under one key the data hold the memory of one network.
        self._shared_memory = set(self.remembered) & set([] if self._teacher is None else self._teacher.part.remembered)
        self.burn_in = self._checked_burn_in(burn_in)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self)._all_schedulable_buffers and not isinstance(value, (bool, Tensor)):
            number = real_number(value)
            value = value if number is None else number  # one of NumPy's, which TorchRL does not take
        super().__setattr__(name, value)

    def _as_network(self, network: TensorDictModule | nn.Module) -> TensorDictModule:
        """Return a tensordict module: a plain one reads ``"observation"`` and writes ``"action_value"``."""
        return as_tensordict_module(network, ["action_value"])

    @property
    def teacher_network(self) -> TensorDictModule | None:
        """The network that this loss runs where a batch holds no values of the teacher; None without one."""
        return None if self._teacher is None else self._teacher.network

    @property
    def remembered(self) -> list[NestedKey]:
        """Entries of the student's memory if it has TorchRL's recurrent modules; read from a batch if present."""
        return self._student_part.remembered

    # Keys

    def stored_keys(self) -> list[NestedKey]:
        """Return the keys of a batch from which a teacher's outputs are taken if it holds them."""
        raise NotImplementedError

    def _set_in_keys(self) -> None:
        # Stored outputs are optional where a network computes them from the same inputs.
        teacher_keys = self.stored_keys() if self._teacher is None else self._teacher.part.needed_keys
        keys = [*self._student_part.needed_keys, *teacher_keys]
        self._in_keys = list(dict.fromkeys(unravel_key(key) for key in keys))

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that every batch must hold, in a fixed order. Optional ones (mask, weights) are not among them."""
        if not self._in_keys:
            self._set_in_keys()
        return self._in_keys

    @in_keys.setter
    def in_keys(self, keys: Sequence[NestedKey]) -> None:
        self._in_keys = list(keys)

    def set_keys(self, **kwargs: NestedKey | None) -> None:
        """Set the names of entries; ``None`` gives a key its default back, which :meth:`follow` may then replace."""
        super().set_keys(**kwargs)
        for name, key in kwargs.items():
            self._told.discard(name) if key is None else self._told.add(name)

    def follow(self, teacher_loss: nn.Module) -> dict[str, tuple[Any, Any]]:
        """Take over the teacher's loss's settings, except those that the user made for this loss.

        A trainer's hook calls it when it is attached. Followed are keys that both losses read, and by
        :class:`~torchrl_rtpd.objectives.StudentDQNLoss` the discount and the function of the temporal-difference error.
        Keys that a loss writes, such as the priority, are its own.

        Args:
            teacher_loss: the loss that trains the teacher, TorchRL's or ours. Not changed.

        Returns:
            Settings that the user made and in which the two differ: name -> (of this loss, of the teacher's).

        Examples:
            >>> from torchrl.objectives import DQNLoss
            >>> from torchrl_rtpd.objectives import StudentDQNLoss
            >>> teacher_loss = DQNLoss(nn.Linear(4, 3), action_space="categorical")
            >>> teacher_loss.make_value_estimator(gamma=0.9)
            >>> teacher_loss.set_keys(reward="clipped", terminated="end_of_life")
            >>> loss = StudentDQNLoss(nn.Linear(4, 3))
            >>> loss.set_keys(terminated="game_over")
            >>> loss.follow(teacher_loss)
            {'terminated': ('game_over', 'end_of_life')}
            >>> loss.tensor_keys.reward, round(loss.value_estimator.gamma.item(), 3)
            ('clipped', 0.9)
        """
        own, taken, differing = self._settings(), {}, {}
        for name, value in known_of_teacher(teacher_loss).items():
            if name not in own or own[name] == value:
                continue
            if name not in self._told:
                taken[name] = value
            elif name != "teacher_action_value":  # a place to read from, chosen on purpose, and no fact of the data
                differing[name] = (own[name], value)
        self._take(taken)
        return differing

    def _settings(self) -> dict[str, Any]:
        """Settings that may follow the teacher's loss, by name."""
        return {name: key for name, key in vars(self.tensor_keys).items() if name in FOLLOWED_KEYS}

    def _take(self, settings: Mapping[str, Any]) -> None:
        """Set settings by name, as if they had been the defaults."""
        keys = {name: value for name, value in settings.items() if name in FOLLOWED_KEYS}
        if keys:
            super().set_keys(**keys)

    # Networks

    def _is_check_due(self) -> bool:
        """Return True if numbers are due to be looked at, which waits for the device: at call 1, 2, 4, 8 and so on."""
        return self._rhythm.due()

    def _refuse(self, wrong: Tensor, tensordict: TensorDictBase, rule: str) -> None:
        """Raise if the student broke a rule in any sample of ``wrong`` ``[*B]`` that the loss mask leaves."""
        count = self._reduce_loss(wrong.float(), tensordict=tensordict, reduction="sum").item()
        if count:
            raise ValueError(
                f"the student's {rule}: {count:.0f} of {wrong.numel()} samples are not; check its inputs, lower its "
                "learning rate or clip its gradient."
            )

    def _student(self, params: TensorDictParams | None = None) -> AbstractContextManager[TensorDictModule]:
        """The student's network with ``params``, to be run inside the context."""
        return self._student_swap(self.student_network_params if params is None else params)

    # Sequences

    def _checked_burn_in(self, burn_in: int) -> int:
        check_integers(0, "0 learns from every step", burn_in=burn_in)
        if burn_in and not isinstance(self._student_part, SequencePart):
            raise ValueError(
                f"burn_in warms a memory: got burn_in={burn_in} and a student without TorchRL's LSTMModule or "
                "GRUModule; leave it out."
            )
        return burn_in

    def _refuse_shared_memory(self, tensordict: TensorDictBase) -> None:
        held = [key for key in self._shared_memory if tensordict.get(key, None) is not None]
        if held:
            raise ValueError(
                f"a batch holds the memory of one network under a key: got {sorted(held, key=str)}, which teacher and "
                "student both read; give the student keys of its own (in_keys and out_keys of its LSTMModule or "
                "GRUModule)."
            )

    def _after_burn_in(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the steps after the burn-in, at which student and teacher remember the steps before."""
        if tensordict.batch_dims > 1 and tensordict.shape[-1] <= self.burn_in:
            raise ValueError(
                f"rows must be longer than their burn-in: got {tensordict.shape[-1]} steps and burn_in={self.burn_in}; "
                "sample longer rows."
            )
        if self.tensor_keys.priority is not None:
            raise ValueError(
                f"a priority is written for every step, which those of a burn-in do not have: got "
                f"burn_in={self.burn_in} and priority={self.tensor_keys.priority!r}; leave one of them out."
            )
        memory, teacher = {}, self._teacher
        if isinstance(self._student_part, SequencePart):
            with self._student():
                memory["student"] = self._student_part.warmed(tensordict, self.burn_in, "student")
        if teacher is not None and isinstance(teacher.part, SequencePart):
            with teacher.evaluating():
                memory["teacher"] = teacher.part.warmed(tensordict, self.burn_in, "teacher")
        return later_steps(tensordict, self.burn_in, memory)

    # Loss

    def evaluate(self, batch: TensorDictBase, *, metrics: bool = True) -> TensorDictBase:
        """Return loss and metrics of a batch; a trainer's hook leaves the metrics out now and then, to save time.

        A call of the loss with ``metrics=`` is the same, so that forward hooks and ``compile()`` take part.

        Args:
            batch: samples ``[*B]``; see the class for the keys.
            metrics: compute the metrics in addition to the loss. Metrics that draw random numbers are always computed,
                so that leaving them out changes no later number.

        Returns:
            Losses, whose names begin with "loss", and metrics; see the class.
        """
        return self(batch, metrics=metrics) if self._takes_metrics else self(batch)

    @dispatch(auto_batch_size=False)  # observations as wide as there are actions would pass for a batch [*B, A]
    def forward(self, tensordict: TensorDictBase, *, metrics: bool = True) -> TensorDictBase:
        """Return loss and metrics of a batch ``[*B]``; see the class for the keys and :meth:`evaluate`."""
        if self._shared_memory:
            self._refuse_shared_memory(tensordict)
        if self.burn_in:
            tensordict = self._after_burn_in(tensordict)
        losses, measured = self._terms(tensordict, metrics)
        weights = self._weights(tensordict, next(iter(losses.values())).shape)
        masked = any(tensordict.get(key, None) is not None for key in self._loss_mask_keys())
        out = {name: self._reduced(value, tensordict, weights, masked) for name, value in losses.items()}
        if measured and not masked and self.reduction != "none":  # all at once, since each is little work
            means = torch.stack(list(measured.values())).flatten(1).mean(-1)
            out.update(zip(measured, means.unbind(), strict=True))
        else:
            reduction = "none" if self.reduction == "none" else "mean"
            for name, value in measured.items():
                out[name] = self._reduced(value, tensordict, None, masked, reduction)
        result = TensorDict(out, batch_size=tensordict.batch_size if self.reduction == "none" else [])
        self._clear_weakrefs(tensordict, result, "student_network_params", "target_student_network_params")
        return result

    def _terms(self, tensordict: TensorDictBase, metrics: bool) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Losses and detached metrics by name, each ``[*B]``."""
        raise NotImplementedError

    def _reduced(
        self,
        value: Tensor,
        tensordict: TensorDictBase,
        weights: Tensor | None,
        masked: bool,
        reduction: str | None = None,
    ) -> Tensor:
        if masked or weights is not None:
            return self._reduce_loss(value, tensordict=tensordict, weights=weights, reduction=reduction)
        # The same in the usual case, without looking for masks once more for each value.
        reduction = self.reduction if reduction is None else reduction
        return value.mean() if reduction == "mean" else value.sum() if reduction == "sum" else value

    def _without_padding(self, tensordict: TensorDictBase, values: Tensor) -> Tensor:
        """Values ``[*B, A]`` with zeros where the loss mask excludes a sample: 0 times NaN is NaN in the gradient."""
        for key in self._loss_mask_keys():
            mask = tensordict.get(key, None)
            if mask is not None:
                values = torch.where(self._expand_loss_mask(mask, values[..., 0]).unsqueeze(-1), values, 0.0)
        return values

    def _weights(self, tensordict: TensorDictBase, shape: torch.Size) -> Tensor | None:
        key = self.tensor_keys.priority_weight
        weights = tensordict.get(key, None) if self.use_prioritized_weights else None
        if weights is None and self.use_prioritized_weights is True:
            raise KeyError(
                f"use_prioritized_weights=True needs {key!r}, which the batch lacks: it has {names_in(tensordict)}; "
                "sample with a PrioritizedSampler, or pass 'auto'."
            )
        if weights is None or weights.shape == shape:
            return weights
        if weights.shape != (*shape, 1):
            raise ValueError(
                f"importance weights must be one a sample, {list(shape)} or {[*shape, 1]}: {key!r} is "
                f"{list(weights.shape)}; keep them as the sampler wrote them."
            )
        return weights.squeeze(-1)

    def _write_priority(self, tensordict: TensorDictBase, per_sample: Tensor) -> None:
        if self.tensor_keys.priority is not None:
            # Rounding takes a divergence near 0 a little below it, and replay buffers refuse negative priorities.
            tensordict.set(self.tensor_keys.priority, per_sample.detach().clamp_min(0.0).unsqueeze(-1))


def positive(name: str, value: float | str | None, otherwise: str) -> float:
    """Return a temperature as a float, or refuse one that is not positive; ``otherwise`` names the alternative."""
    if not lies_within(value, "(0, inf)"):
        raise ValueError(
            f"{name} must be positive or {otherwise}: got {value!r}; "
            "about 0.1 suits a teacher that is still learning, 0.01 a finished one."
        )
    return float(value)  # type: ignore[arg-type]


def coefficient(name: str, value: float) -> float:
    """Return the weight of a term as a float, since an integer buffer would truncate a schedule, or refuse it."""
    check_within("[0, inf)", "0 leaves the term out", **{name: value})
    return float(value)
