"""Sources of the teacher's values of a minibatch, which are never computed twice.

There are three, of which :func:`find_values` chooses one when a hook is attached:

==========================  ==================================================================================
:class:`WrittenValues`      the teacher's own loss writes them (:class:`~torchrl_rtpd.objectives.TeacherDQNLoss`)
:class:`CapturedValues`     any other TorchRL loss computes them, and its network is watched while it does
:class:`CopiedValues`       a copy of the teacher computes them (:mod:`torchrl_rtpd.trainers.teacher_copies`)
==========================  ==================================================================================

They are for students of the network that is trained. Those with a teacher of their own
(:mod:`torchrl_rtpd.trainers.own_teachers`) are given none.

``B`` is the batch, ``A`` the number of actions.
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.objectives import DQNLoss

from torchrl_rtpd.networks.keys import last_part
from torchrl_rtpd.networks.running import same_in_training
from torchrl_rtpd.networks.sequences import remembered_by
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.teacher_dqn import refuse_without_choice
from torchrl_rtpd.trainers.teacher_copies import TeacherCopy

__all__ = ["CapturedValues", "CopiedValues", "TeacherValues", "WrittenValues", "find_values"]

_CURRENT = DistillationLoss.default_keys.teacher_action_value  # the key of the teacher of the moment
_NETWORKS = ("value_network", "local_value_network", "actor_network")  # names of a teacher in TorchRL's losses


class TeacherValues(ABC):
    """Source of the teacher's values of a minibatch.

    Attributes:
        written: keys under which the teacher's own loss writes its values into the minibatch.
        outputs: keys that the teacher's network writes, and a collector may store.
    """

    written: Collection[NestedKey] = ()
    outputs: Collection[NestedKey] = ()

    @property
    def current_keys(self) -> set[NestedKey]:
        """Keys of the teacher of the moment: stored values under them go stale and are replaced."""
        return {_CURRENT, *self.written}

    def check(self, losses: Mapping[str, PolicyDistillationLoss]) -> None:  # noqa: B027, most serve any
        """Refuse students, by name, that ask for what this source does not know; called once, as a hook is attached."""

    @abstractmethod
    def add_to(self, sub_batch: TensorDictBase, losses: Iterable[PolicyDistillationLoss]) -> TensorDictBase:
        """Return the minibatch ``[B]`` with the teacher's values under the keys that the students' losses read.

        Called after the teacher's loss has run and before students learn. The ``sub_batch`` is not changed; the result
        shares its tensors.
        """

    def warn_of_stored(
        self, sub_batch: TensorDictBase, batch: TensorDictBase, losses: Iterable[PolicyDistillationLoss]
    ) -> None:
        """Warn where students are about to read values of the time of collection, probably unawares.

        A key of its own for stored values is a choice. The key of the teacher of the moment, or one that the teacher's
        network writes, is a mistake where nothing has renewed what lies there. Called at the first minibatch.

        Args:
            sub_batch: the minibatch as sampled, after the teacher's loss has run.
            batch: what :meth:`add_to` made of it.
            losses: those of the students.
        """
        suspect = {*self.current_keys, *self.outputs} - set(self.written)
        for key in _keys_read(losses):
            values = sub_batch.get(key, None) if key in suspect else None
            if values is not None and batch.get(key) is values:
                warnings.warn(
                    f"students read {key!r}, which the minibatch held before the teacher's update and nothing has "
                    "renewed. Warning: stored values are those of the teacher at the time of collection. Give the "
                    "students' losses a teacher_network and name a key that is not stored by "
                    "set_keys(teacher_action_value=...); or, if stored values are wanted, store them under a key of "
                    "their own.",
                    stacklevel=2,
                )

    def _with_values(
        self,
        sub_batch: TensorDictBase,
        losses: Iterable[PolicyDistillationLoss],
        values_of: Callable[[TensorDictBase], Tensor | None],
        next_values_of: Callable[[TensorDictBase], Tensor | None],
    ) -> TensorDictBase:
        """A shallow copy of a minibatch with values ``[B, A]`` of its states and next states, where they are known."""
        batch = sub_batch.copy()
        following = batch.get("next", None)
        if following is not None:
            following = following.copy()
            batch.set("next", following)
        keys, current = _keys_read(losses), self.current_keys
        for states, compute in ((batch, values_of), (following, next_values_of)):
            # Stored values under a key of their own were asked for.
            wanted = [] if states is None else [key for key in keys if key in current or states.get(key, None) is None]
            values = compute(states) if wanted else None
            if values is not None:
                for key in wanted:
                    states.set(key, values)
        return batch


class WrittenValues(TeacherValues):
    """Values that need no adding: the teacher's loss writes them, or each student's loss runs a teacher of its own."""

    def add_to(self, sub_batch: TensorDictBase, losses: Iterable[PolicyDistillationLoss]) -> TensorDictBase:
        """Return the minibatch itself."""
        return sub_batch


class CapturedValues(TeacherValues):
    """Values captured while the teacher's own loss computes them.

    A DQN loss runs its network on the state and, with target parameters, on the next state (last). Both calls are
    recognised by the very tensors of the minibatch, so that values of another batch are never taken. Minibatches whose
    values were not captured are left as they are.

    Args:
        network: the teacher inside its loss, watched from now on; None captures nothing.
        key: where it writes its action values.
    """

    def __init__(self, network: TensorDictModule | None, key: NestedKey = "action_value") -> None:
        self._network: Any = network
        self._key = key
        # Input and values of the last calls since the last minibatch, by thread: a collector may run in one of its own.
        self._captured: dict[int, deque[tuple[Tensor, Tensor]]] = {}
        self._given: dict[int, Tensor] = {}  # input of the call that has begun, by thread
        if network is not None:
            network.register_forward_hook(self._after_forward)
            if remembered_by(network):  # where a game begins in a row it puts another tensor in the place of its input
                network.register_forward_pre_hook(self._before_forward)

    def __reduce__(self) -> tuple[type[CapturedValues], tuple[None]]:
        # A network that is copied or pickled takes this forward hook along, but is not watched.
        return CapturedValues, (None,)

    def _before_forward(self, network: Any, inputs: tuple[Any, ...]) -> None:
        if network is self._network and inputs and isinstance(inputs[0], TensorDictBase):
            self._given[threading.get_ident()] = inputs[0].get(network.in_keys[0])

    def _after_forward(self, network: Any, inputs: tuple[Any, ...], output: TensorDictBase) -> None:
        if network is self._network and isinstance(output, TensorDictBase):
            observation = self._given.pop(threading.get_ident(), None)
            if observation is None:
                observation = output.get(network.in_keys[0])
            # Collection with the same network is captured as well: keep the last few only.
            captured = self._captured.setdefault(threading.get_ident(), deque(maxlen=4))
            captured.append((observation, output.get(self._key).detach()))

    def add_to(self, sub_batch: TensorDictBase, losses: Iterable[PolicyDistillationLoss]) -> TensorDictBase:
        """Return a shallow copy with the values captured since the last minibatch."""
        captured = self._captured.pop(threading.get_ident(), ())
        if not captured:
            return sub_batch
        observation_key = self._network.in_keys[0]

        def values_of(states: TensorDictBase) -> Tensor | None:
            """Those of a tensor that the network was given."""
            observation = states.get(observation_key, None)
            return next((values for tensor, values in reversed(captured) if tensor is observation), None)

        return self._with_values(sub_batch, losses, values_of, values_of)


class CopiedValues(TeacherValues):
    """Values that a copy of the teacher computes for each minibatch.

    Those of the next state are computed where a student's target asks the teacher (``imitation=True``).

    Args:
        teacher_copy: attached to the teacher's network already.
    """

    def __init__(self, teacher_copy: TeacherCopy) -> None:
        self._copy = teacher_copy

    def check(self, losses: Mapping[str, PolicyDistillationLoss]) -> None:
        """Refuse a copy that no student follows, and students that ask one with a memory of the next state."""
        if not losses:
            raise ValueError(
                f"teacher={type(self._copy).__name__} is a copy of the network that is trained: got students that all "
                "have another teacher_network of their own; leave one of the two out."
            )
        imitating = [name for name, loss in losses.items() if getattr(loss, "imitation", False)]
        if imitating and self._copy.remembered:
            raise ValueError(
                f"a copy of a teacher that remembers {self._copy.remembered} does not know the next state, which needs "
                f"the steps before: got {imitating}, which imitate it there; use DistillationLoss, imitation=False or "
                "teacher='latest'."
            )

    def add_to(self, sub_batch: TensorDictBase, losses: Iterable[PolicyDistillationLoss]) -> TensorDictBase:
        """Return a shallow copy with the copy's values."""
        losses = list(losses)
        imitated = any(getattr(loss, "imitation", False) for loss in losses)
        values_of = self._copy.values
        return self._with_values(sub_batch, losses, values_of, values_of if imitated else lambda _: None)


def find_values(loss_module: nn.Module, teacher_copy: TeacherCopy | None = None) -> TeacherValues:
    """Choose where the teacher's values come from; called once, when a hook is attached.

    Args:
        loss_module: the loss that trains the teacher.
        teacher_copy: the version of the teacher that students learn from; None is the latest. It is attached here.

    Returns:
        A source of values. Without a network that writes action values, and for teachers with dropout, batch
        normalisation or noisy layers, whose training mode gives no targets, it adds nothing: each student's loss then
        asks the ``teacher_network`` it was given.

    Raises:
        RuntimeError: a copy of a teacher that writes no action values.
        ValueError: a DQN loss of a network that chooses no action.
    """
    name = next((name for name in _NETWORKS if hasattr(loss_module, name)), None)
    network: Any = None if name is None else getattr(loss_module, name)
    if isinstance(loss_module, DQNLoss):
        refuse_without_choice(network)
    key = None if network is None else _values_key(network, loss_module)
    values: TeacherValues
    if teacher_copy is not None:
        if key is None:
            raise RuntimeError(
                f"teacher={type(teacher_copy).__name__} needs a trainer whose loss has a network that writes "
                f"'action_value': {type(loss_module).__name__} has none; use teacher='latest', or give the "
                "students' losses a teacher_network of your own."
            )
        teacher_copy.attach(network, getattr(loss_module, f"{name}_params"), key)
        values = CopiedValues(teacher_copy)
    elif getattr(loss_module, "shares_values", False):
        values = WrittenValues()
    elif key is not None and same_in_training(network):
        values = CapturedValues(network, key)
    else:
        values = WrittenValues()
    if getattr(loss_module, "shares_values", False):
        written: Any = loss_module
        values.written = {unravel_key(written.tensor_keys.teacher_action_value)}
    values.outputs = frozenset(() if network is None else map(unravel_key, network.out_keys))
    return values


def _values_key(network: TensorDictModule, loss_module: nn.Module) -> NestedKey | None:
    """Key of a network's action values: that of the loss, the usual one, or a nested one, as of agents."""
    named = getattr(getattr(loss_module, "tensor_keys", None), "action_value", "action_value")
    nested = [key for key in network.out_keys if last_part(key) == "action_value"]
    return next((key for key in (named, "action_value", *nested) if key in network.out_keys), None)


def _keys_read(losses: Iterable[PolicyDistillationLoss]) -> list[NestedKey]:
    """Keys of action values that losses read, each once. Losses of continuous actions read none."""
    reading = (loss for loss in losses if hasattr(loss.tensor_keys, "teacher_action_value"))
    return list(dict.fromkeys(unravel_key(key) for loss in reading for key in loss.stored_keys()))
