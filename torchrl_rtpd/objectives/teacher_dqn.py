"""Loss of the teacher, whose values its students read.

``B`` is the batch, ``A`` the number of actions.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.modules import QValueModule
from torchrl.objectives import DQNLoss
from torchrl.objectives.utils import ValueEstimators, distance_loss
from torchrl.objectives.value import TD0Estimator

from torchrl_rtpd import functional as RF
from torchrl_rtpd.networks.beside import Beside
from torchrl_rtpd.networks.keys import last_part, selected
from torchrl_rtpd.networks.running import NetworkPart, ParameterSwap, same_in_training
from torchrl_rtpd.networks.sequences import remembered_by
from torchrl_rtpd.objectives.td import chosen_values, td_target

__all__ = ["TeacherDQNLoss", "refuse_without_choice"]


class TeacherDQNLoss(DQNLoss):
    r"""TorchRL's :class:`~torchrl.objectives.DQNLoss` that leaves the teacher's values in the minibatch for students.

    Loss, gradient and priorities are those of ``DQNLoss``, bit for bit, with less overhead: a network runs up to its
    values, without choosing actions that nobody takes. The values of the state, and those of the target
    network at the next one, are both computed anyway; students find them where
    :class:`~torchrl_rtpd.objectives.StudentDQNLoss` looks (Eq. 3 and 5 of Sun & Fazli 2019) and compute nothing twice.

    With options that need more it runs as ``DQNLoss`` does, and the trainer hook captures its network's values as those
    of any TorchRL loss. Such options are actions that are not categorical, an action mask, a value estimator other than
    TD(0), networks with a memory, and layers that act differently in training, such as dropout.

    Args:
        value_network (QValueActor): the teacher, as in ``DQNLoss``.

    Keyword Args:
        loss_function, delay_value, double_dqn, action_space, priority_key, reduction, use_prioritized_weights: as in
            ``DQNLoss``.

    Keys read: those of ``DQNLoss``, all settable.

    Keys written: ``"td_error"`` as by ``DQNLoss``, ``("teacher", "action_value")`` and
    ``("next", "teacher", "action_value")``, both ``[*B, A]``, detached.

    Raises:
        ValueError: a network that chooses no action.
        KeyError: at a batch that lacks an entry that is read; the message names it and those present.

    Examples:
        >>> from torch import nn
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_rtpd.objectives import DistillationLoss
        >>> actor = lambda: QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3))
        >>> teacher_loss = TeacherDQNLoss(actor(), action_space="categorical")
        >>> updater = SoftUpdate(teacher_loss, tau=0.01)
        >>> batch = TensorDict({"observation": torch.zeros(5, 4), "action": torch.zeros(5, dtype=torch.long), "next": {
        ...     "observation": torch.zeros(5, 4), "reward": torch.ones(5, 1),
        ...     "done": torch.ones(5, 1, dtype=torch.bool), "terminated": torch.ones(5, 1, dtype=torch.bool)}}, [5])
        >>> teacher_loss(batch)["loss"].shape, batch["teacher", "action_value"].shape
        (torch.Size([]), torch.Size([5, 3]))
        >>> DistillationLoss(actor())(batch)["loss_distill"].shape
        torch.Size([])
    """

    @dataclass
    class _AcceptedKeys(DQNLoss._AcceptedKeys):
        """Keys that ``set_keys`` can change, in addition to those of :class:`~torchrl.objectives.DQNLoss`.

        Attributes:
            teacher_action_value (NestedKey): where the values are written, and those of the next state under
                ``"next"``. Defaults to ``("teacher", "action_value")``.
        """

        teacher_action_value: NestedKey = ("teacher", "action_value")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(self, value_network: Any, **kwargs: Any) -> None:
        refuse_without_choice(value_network)
        super().__init__(value_network, **kwargs)
        network = self.value_network
        masked = any(
            isinstance(module, QValueModule) and module.action_mask_key is not None for module in network.modules()
        )
        plain = not masked and not remembered_by(network) and same_in_training(network)
        self._simple = self.action_space == "categorical" and plain
        self._run = _Values(network)
        self._run_next = self._run
        self._beside: Beside | None = None

    @property
    def shares_values(self) -> bool:
        """True if the values are written; otherwise the loss is ``DQNLoss`` in all."""
        return self._simple and type(self.value_estimator) is TD0Estimator

    def make_value_estimator(self, value_type: ValueEstimators | None = None, **hyperparams: Any) -> None:
        """As that of ``DQNLoss``; the discount is on the device from the beginning."""
        super().make_value_estimator(value_type, **hyperparams)
        self.value_estimator.to(self._default_device)

    def value_next_states_in(self, beside: Beside | None) -> None:
        """Run the target network in a thread while this one runs the network; the values are the same to the last bit.

        A network with forward hooks, which another one would not have, runs here in any case.

        Args:
            beside: the thread; None runs both here, one after the other.
        """
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self.value_network.modules())
        self._beside = None if hooked else beside
        # Two threads must not give one network different parameters at a time.
        self._run_next = self._run if self._beside is None else _Values(copy.deepcopy(self.value_network))

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Loss of a batch ``[*B]``; see the class for the keys."""
        if not self.shares_values:
            return super().forward(tensordict)
        names = self.tensor_keys
        taken = [names.action, *(unravel_key(("next", key)) for key in (names.reward, names.terminated))]
        action, reward, terminated = (tensordict.get(key, None) for key in taken)
        if action is None or reward is None or terminated is None:
            selected(tensordict, taken, "teacher's loss")  # says what is missing
        following = tensordict.get("next")
        beside = None if torch.compiler.is_compiling() else self._beside
        valued = None if beside is None else beside.call(self._next_values, following)
        values = self._run(tensordict, self.value_network_params, names.action_value)
        chosen = chosen_values(values, action, names.action)
        with torch.no_grad():
            next_values, next_value = self._next_values(following) if valued is None else valued.result()
            target = td_target(self.value_estimator, tensordict, reward, next_value, terminated)
            tensordict.set(names.priority, (chosen - target).pow(2).unsqueeze(-1), inplace=True)
        tensordict.set(names.teacher_action_value, values.detach())
        following.set(names.teacher_action_value, next_values)
        loss = distance_loss(chosen, target, self.loss_function)
        weights = tensordict.get(names.priority_weight, None) if self.use_prioritized_weights else None
        return TensorDict(loss=self._reduce_loss(loss, tensordict=tensordict, weights=weights))

    @torch.no_grad()
    def _next_values(self, following: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Target network's values ``[*B, A]`` of the next states, and that of the action chosen there ``[*B]``."""
        key, place = self.tensor_keys.action_value, "batch's next"
        next_values = self._run_next(following, self.target_value_network_params, key, place)
        chooser = next_values
        if self.double_dqn:
            chooser = self._run_next(following, self.value_network_params, key, place)
        return next_values, RF.imitation_value(chooser, next_values)


def refuse_without_choice(value_network: nn.Module) -> None:
    """Refuse a network that writes values for a DQN loss and chooses no action by them, such as several teachers.

    Args:
        value_network: a tensordict module; a plain one is given a choice by the loss.
    """
    if not isinstance(value_network, TensorDictModuleBase):
        return
    written = [last_part(key) for key in value_network.out_keys]
    if not any(name == "action" or "chosen" in name for name in written):
        raise ValueError(
            f"a DQN loss needs a network that chooses an action: got {type(value_network).__name__}, which writes "
            f"{list(value_network.out_keys)}; wrap it, QValueActor({type(value_network).__name__}(...), spec=...)."
        )


class _Values:
    """Action values ``[*B, A]`` of a network with some parameters."""

    def __init__(self, network: Any) -> None:
        self._swap = ParameterSwap(network)
        self._part = NetworkPart(network)

    def __call__(
        self, tensordict: TensorDictBase, params: TensorDictParams, key: NestedKey, place: str = "batch"
    ) -> Tensor:
        with self._swap(params):
            return self._part(tensordict, key, "teacher", place)
