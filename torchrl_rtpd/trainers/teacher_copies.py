"""Versions of a learning teacher from which students learn: an average, a lagging one, or the best so far.

The latest teacher costs nothing, since its values are those of its own update. These are copies, run on each
minibatch without gradient: one forward pass, and another one on the next states where a student's TD target asks the
teacher (Eq. 5 of Sun & Fazli 2019). There the latest teacher answers by its target network, a copy by itself.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.networks.running import eval_mode
from torchrl_rtpd.networks.sequences import network_part

__all__ = ["AverageTeacher", "BestTeacher", "LaggingTeacher", "TeacherCopy"]


class TeacherCopy(ABC):
    """A copy of the teacher, and when it changes; an option of :class:`~torchrl_rtpd.trainers.RealTimeDistillTrainer`.

    One instance serves one hook. The copy is in eval mode and belongs to no optimiser.

    Attributes:
        weights: the copy's parameters and buffers themselves.
    """

    weights: TensorDict

    def __init__(self) -> None:
        self._network: TensorDictModule | None = None
        self._live: Any = None
        self._saved: Mapping[str, Any] | None = None  # restored before there was a network

    def attach(
        self, network: TensorDictModule, params: TensorDictParams, action_value_key: NestedKey = "action_value"
    ) -> None:
        """Copy the teacher as it is now; called once by the hook.

        Args:
            network: writes action values.
            params: its parameters and buffers, which the trainer goes on changing.
            action_value_key: where it writes them.
        """
        self._key = action_value_key
        self._network = copy.deepcopy(network)
        self._network._forward_hooks.clear()  # what watches the teacher does not watch its copy
        self._live = params.data
        self._live.clone().to_module(self._network)
        self._network.requires_grad_(False)
        self.weights = TensorDict.from_module(self._network)
        self._part = network_part(self._network)
        if self._saved is not None:
            self.load_state_dict(self._saved)

    @property
    def remembered(self) -> list[NestedKey]:
        """Entries of the copy's memory if the teacher has TorchRL's recurrent modules; read from rows if present."""
        return self._part.remembered

    @torch.no_grad()
    def values(self, tensordict: TensorDictBase) -> Tensor:
        """Return the copy's action values ``[*B, A]`` for states ``[*B]``, rows of steps if the teacher remembers."""
        assert self._network is not None
        with eval_mode(self._network):
            return self._part(tensordict, self._key, "teacher")

    @abstractmethod
    def after_update(self, updates: int) -> None:
        """Change the copy, or not; called when the teacher has learned from its ``updates``-th minibatch."""

    def after_evaluation(self, teacher_return: float) -> None:  # noqa: B027, most have nothing to do then
        """Take note of the teacher's return; called when it was evaluated as it is now."""

    def state_dict(self) -> dict[str, Any]:
        """Return the copy."""
        return {} if self._network is None else {"network": copy.deepcopy(self._network.state_dict())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, before or after :meth:`attach`."""
        if self._network is None:
            self._saved = state_dict
        elif "network" in state_dict:
            self._network.load_state_dict(state_dict["network"])


class AverageTeacher(TeacherCopy):
    """An exponential average of the teacher's weights: ``average = decay * average + (1 - decay) * teacher``.

    Args:
        decay: share that each minibatch leaves, in (0, 1). Default: 0.999, about the last thousand minibatches; ours.

    Raises:
        ValueError: a decay out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must be in (0, 1): got {decay}; 0.999 averages about a thousand minibatches.")
        super().__init__()
        self.decay = decay

    def after_update(self, updates: int) -> None:
        """Move the average."""
        weights, live = self.weights, self._live
        floating = [key for key in weights.keys(True, True) if weights.get(key).is_floating_point()]
        torch._foreach_lerp_(
            [weights.get(key) for key in floating], [live.get(key) for key in floating], 1 - self.decay
        )
        for key in set(weights.keys(True, True)) - set(floating):  # counters
            weights.get(key).copy_(live.get(key))


class LaggingTeacher(TeacherCopy):
    """The teacher of some minibatches ago: a copy renewed every so many, as target networks are.

    Args:
        every_updates: minibatches between two copies, at least 1; the lag is between 0 and this.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, every_updates: int = 1_000) -> None:
        check_integers(1, "1 is the latest teacher", every_updates=every_updates)
        super().__init__()
        self.every_updates = every_updates

    def after_update(self, updates: int) -> None:
        """Renew the copy, if it is time."""
        if updates % self.every_updates == 0:
            self.weights.update_(self._live)


class BestTeacher(TeacherCopy):
    """The teacher that scored best so far; until the first evaluation, the latest.

    The online variant of Rusu et al. 2015 (https://arxiv.org/abs/1511.06295), Section 3.3. Evaluations are told to the
    hook by :meth:`~torchrl_rtpd.trainers.RealTimeDistillTrainer.report_returns`, right after they were made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.best_return: float | None = None

    def after_update(self, updates: int) -> None:
        """Follow the teacher until its first evaluation."""
        if self.best_return is None:
            self.weights.update_(self._live)

    def after_evaluation(self, teacher_return: float) -> None:
        """Copy the teacher if it was never better."""
        if self.best_return is None or teacher_return > self.best_return:
            self.best_return = teacher_return
            self.weights.update_(self._live)

    def state_dict(self) -> dict[str, Any]:
        """Return the copy and its score."""
        return {**super().state_dict(), "best_return": self.best_return}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.best_return = state_dict.get("best_return")
