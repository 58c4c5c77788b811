"""The teacher's values of a minibatch, without computing them twice."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import unravel_key
from torch import Tensor, nn

from torchrl_rtpd.networks.running import same_in_training
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.trainers.teacher_copies import TeacherCopy

__all__ = ["TeacherValues"]


class TeacherValues:
    """The teacher's values of a minibatch, overheard from its own loss. What is not heard the students' losses compute.

    A :class:`~torchrl_rtpd.objectives.TeacherDQNLoss` writes them into the minibatch, and there is nothing to overhear.
    Any other DQN loss runs its network on the state and, with target parameters, on the next state (last). Both calls
    are recognised by the very tensors of the minibatch, so that values of another batch are never taken. A teacher
    with dropout, batch normalisation or noisy layers is not listened to: targets come from its eval mode. A copy of
    the teacher, if there is one, is asked instead.
    """

    def __init__(self, teacher_copy: TeacherCopy | None = None) -> None:
        self.copy = teacher_copy
        self._network: TensorDictModule | None = None
        # Input and values of the last calls since the last minibatch, by thread: a collector may run in one of its own.
        self._heard: dict[int, deque[tuple[Tensor, Tensor]]] = {}

    def attach(self, loss_module: nn.Module) -> None:
        """Find the teacher in its own loss, and listen to it where it does not write its values."""
        names = ("value_network", "local_value_network", "actor_network")
        name = next((name for name in names if hasattr(loss_module, name)), None)
        network: Any = None if name is None else getattr(loss_module, name)
        found = network is not None and "action_value" in network.out_keys
        if self.copy is not None:
            if not found:
                raise RuntimeError(
                    f"teacher={type(self.copy).__name__} needs a trainer whose loss has a network that writes "
                    f"'action_value': {type(loss_module).__name__} has none; use teacher='latest', or give the "
                    "students' losses a teacher_network of your own."
                )
            self.copy.attach(network, getattr(loss_module, f"{name}_params"))
            return
        if not found or getattr(loss_module, "shares_values", False):  # a TeacherDQNLoss writes them
            return
        if same_in_training(network):
            self._network = network
            network.register_forward_hook(self._hear)

    def __deepcopy__(self, memo: dict) -> TeacherValues:
        # A copied network takes this hook along, but is not listened to.
        return TeacherValues(copy.deepcopy(self.copy, memo))

    def _hear(self, network: Any, inputs: tuple[Any, ...], output: TensorDictBase) -> None:
        observation_key = network.in_keys[0]
        if network is self._network and isinstance(output, TensorDictBase):
            # Collection with the same network overhears itself: keep the last few only.
            heard = self._heard.setdefault(threading.get_ident(), deque(maxlen=4))
            heard.append((output.get(observation_key), output.get("action_value").detach()))

    def added_to(self, sub_batch: TensorDictBase, losses: Iterable[PolicyDistillationLoss]) -> TensorDictBase:
        """A shallow copy of the minibatch with the teacher's values, under the keys the losses read."""
        losses = list(losses)
        heard = self._heard.pop(threading.get_ident(), ())
        network: Any = self._network
        if self.copy is None and not heard:
            return sub_batch
        batch = sub_batch.copy()
        if "next" in batch.keys():
            batch.set("next", batch.get("next").copy())
        current = DistillationLoss.default_keys.teacher_action_value
        keys = (getattr(loss.tensor_keys, "teacher_action_value", None) for loss in losses)
        for key in dict.fromkeys(unravel_key(key) for key in keys if key is not None):  # others read no action values
            for prefix in ((), ("next",)):
                target = unravel_key((*prefix, key))
                if key != current and batch.get(target, None) is not None:
                    continue  # stored values under a key of their own were asked for
                if self.copy is None:
                    observation = batch.get(unravel_key((*prefix, network.in_keys[0])), None)
                    values = next((values for tensor, values in reversed(heard) if tensor is observation), None)
                elif not prefix or any(getattr(loss, "imitation", False) for loss in losses):
                    values = self.copy.values(batch.get(prefix) if prefix else batch)
                else:
                    values = None
                if values is not None:
                    batch.set(target, values)
        return batch
