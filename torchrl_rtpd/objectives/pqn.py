"""Losses without a target network and without replay: a teacher's, and that of a student beside it.

Method: PQN, Gallici et al. 2024, https://arxiv.org/abs/2407.04811. Targets come from whole rollouts, and are written
once by :class:`~torchrl_rtpd.trainers.LambdaTargets`; losses read them from shuffled minibatches.

``B`` is the batch, ``A`` the number of actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import distance_loss

from torchrl_rtpd import functional as RF
from torchrl_rtpd.networks.keys import selected
from torchrl_rtpd.networks.running import NetworkPart, ParameterSwap, as_tensordict_module, same_in_training
from torchrl_rtpd.objectives.base import REDUCTIONS, coefficient
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.following import TD_LOSS_FUNCTIONS
from torchrl_rtpd.objectives.td import chosen_values
from torchrl_rtpd.objectives.values import check_mask

__all__ = ["PQNLoss", "StudentPQNLoss"]


class PQNLoss(LossModule):
    r"""Regression of the chosen action's value to a return that a rollout has estimated (Eq. 4 of Gallici et al. 2024).

    :math:`L = \frac12 (Q(s, a) - G)^2`, where :math:`G` is the entry ``"value_target"``: a :math:`\lambda`-return that
    bootstraps with the greedy value, written by :class:`~torchrl_rtpd.trainers.LambdaTargets` before the rollout is
    shuffled. Its gradient is the temporal-difference error, clipped to 1 with ``"smooth_l1"``. There is neither a
    target network nor a value of the next state.

    The values computed for the loss are left in the minibatch for students, as by
    :class:`~torchrl_rtpd.objectives.TeacherDQNLoss`; not with layers that act differently in training.

    Args:
        value_network (QValueActor or TensorDictModule): writes ``"action_value"`` ``[*B, A]``.

    Keyword Args:
        loss_function (str, optional): ``"l2"`` | ``"smooth_l1"`` | ``"l1"``. Default: ``"l2"``, the paper's.
        reduction (str, optional): ``"none"`` | ``"mean"`` | ``"sum"``. Default: ``"mean"``.

    Keys read: the network's, ``"action"`` and ``"value_target"`` ``[*B, 1]``; settable.

    Keys written: ``("teacher", "action_value")`` ``[*B, A]``, detached.

    Output: ``loss``, and ``td_error``, the mean absolute error, detached.

    Raises:
        ValueError: an unknown option, or a network that makes several choices at once; at a call, a target or actions
            of another shape.
        KeyError: at a call, an entry that the batch lacks; of ``"value_target"`` the message names the hook.

    Examples:
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> actor = QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3))
        >>> loss = PQNLoss(actor)
        >>> batch = TensorDict({"observation": torch.zeros(5, 4), "action": torch.zeros(5, dtype=torch.long),
        ...                     "value_target": torch.ones(5, 1)}, [5])
        >>> loss(batch)["loss"].shape, batch["teacher", "action_value"].shape
        (torch.Size([]), torch.Size([5, 3]))
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` can change.

        Attributes:
            action (NestedKey): the action taken, read. Defaults to ``"action"``.
            action_value (NestedKey): where the network writes its values. Defaults to ``"action_value"``.
            value_target (NestedKey): the return to regress to, read. Defaults to ``"value_target"``.
            action_mask (NestedKey): allowed actions, read by :meth:`greedy_value` if present. Defaults to
                ``"action_mask"``.
            reward (NestedKey): read by the hook of the targets, under ``"next"``. Defaults to ``"reward"``.
            done (NestedKey): likewise. Defaults to ``"done"``.
            terminated (NestedKey): likewise; where bootstrapping ends. Defaults to ``"terminated"``.
            teacher_action_value (NestedKey): where the values are left for students. Defaults to
                ``("teacher", "action_value")``.
        """

        action: NestedKey = "action"
        action_value: NestedKey = "action_value"
        value_target: NestedKey = "value_target"
        action_mask: NestedKey = "action_mask"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        teacher_action_value: NestedKey = ("teacher", "action_value")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss", "td_error"]

    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    def __init__(
        self,
        value_network: TensorDictModule | nn.Module,
        *,
        loss_function: Literal["l1", "l2", "smooth_l1"] = "l2",
        reduction: str | None = None,
    ) -> None:
        super().__init__()
        self.loss_function = _checked_function(loss_function)
        self.reduction = "mean" if reduction is None else reduction
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be none, mean or sum: got {reduction!r}.")
        value_network = as_tensordict_module(value_network, ["action_value"])
        self.convert_to_functional(value_network, "value_network", create_target_params=False)
        _refuse_several_choices(value_network)
        self._swap = ParameterSwap(value_network)
        self._part = NetworkPart(self.value_network)
        self._named: dict[str, NestedKey] = {}
        self._shares = same_in_training(self.value_network)

    @property
    def actor_network(self) -> TensorDictModule:
        """The network, by the name that :class:`~torchrl.trainers.algorithms.OnPolicyTrainer` asks for."""
        return self.value_network

    @property
    def critic_network(self) -> TensorDictModule:
        """Refused: ``OnPolicyTrainer`` asks for it where it is to estimate advantages, for which there is no critic."""
        raise RuntimeError(  # an AttributeError would get lost in nn.Module's own
            "PQNLoss has no critic: its targets are written by torchrl_rtpd.trainers.LambdaTargets; give the trainer "
            "add_gae=False, and register that hook."
        )

    def set_keys(self, **kwargs: Any) -> None:
        """Name entries; see :class:`_AcceptedKeys`."""
        super().set_keys(**kwargs)
        self._named |= {name: key for name, key in kwargs.items() if key != getattr(self.default_keys, name)}

    @property
    def names_lost(self) -> dict[str, NestedKey]:
        """Entries that :meth:`set_keys` named once and that have other names now, by name of the key."""
        return {name: key for name, key in self._named.items() if getattr(self.tensor_keys, name) != key}

    @property
    def shares_values(self) -> bool:
        """True if the values are written for students."""
        return self._shares

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that every batch must hold, in a fixed order."""
        keys = [*self.value_network.in_keys, self.tensor_keys.action, self.tensor_keys.value_target]
        return list(dict.fromkeys(unravel_key(key) for key in keys))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the loss of a batch ``[*B]``; see the class for the keys."""
        names = self.tensor_keys
        target = target_of(tensordict, names.value_target)
        action = tensordict.get(names.action, None)
        if action is None:
            selected(tensordict, [names.action], "teacher's loss")  # says what is missing
        values = self.values(tensordict)
        if self.shares_values:
            tensordict.set(names.teacher_action_value, values.detach())
        chosen = chosen_values(values, action, names.action)
        loss = self._reduce_loss(error(chosen, target, self.loss_function), tensordict=tensordict)
        td_error = self._reduce_loss((chosen.detach() - target).abs(), tensordict=tensordict)
        return TensorDict(
            {"loss": loss, "td_error": td_error}, tensordict.batch_size if self.reduction == "none" else []
        )

    def values(self, tensordict: TensorDictBase) -> Tensor:
        """Return action values ``[*B, A]`` of a batch with the network's inputs, with their gradient."""
        with self._swap(self.value_network_params):
            return self._part(tensordict, self.tensor_keys.action_value, "teacher", "batch")

    @torch.no_grad()
    def greedy_value(self, tensordict: TensorDictBase, values: Tensor | None = None) -> Tensor:
        """Return the largest value of the allowed actions, ``[*B]``.

        Args:
            tensordict: states ``[*B]`` with the network's inputs, and a mask if there is one.
            values: action values ``[*B, A]`` if known; None computes them.
        """
        values = self.values(tensordict) if values is None else values
        mask = tensordict.get(self.tensor_keys.action_mask, None)
        check_mask(mask, values, self.tensor_keys.action_mask)
        return RF.imitation_value(values, values, mask)


class StudentPQNLoss(DistillationLoss):
    r"""A student that learns from its teacher and from the returns of the teacher's rollouts: Eq. 3 for PQN.

    ``loss_distill`` is the divergence to the teacher (:class:`DistillationLoss`). ``loss_td`` is
    :math:`\frac12 (Q_S(s, a) - G)^2` with the very return :math:`G` (``"value_target"``) that
    :class:`PQNLoss` gives the teacher. It takes the place of the *self-learning* of Sun & Fazli 2019, with neither a
    target network nor a next state.

    Args:
        student_network (TensorDictModule or nn.Module): as in :class:`DistillationLoss`; its outputs must be Q-values.
        teacher_network (TensorDictModule or nn.Module, optional): as in :class:`DistillationLoss`.

    Keyword Args:
        td_coeff (float, optional): weight of ``loss_td``. Default: 1.0.
        distill_coeff (float, optional): weight of ``loss_distill``. Default: 1.0.
        loss_function (str, optional): of the error, as in :class:`PQNLoss`. Default: that of the teacher's loss where a
            trainer's hook shows it one, and otherwise ``"l2"``.
        divergence, teacher_support, var_nums, reduction, use_prioritized_weights, burn_in: as in
            :class:`DistillationLoss`.
        teacher_temperature (float or "auto", optional): Default: 0.1, as in
            :class:`~torchrl_rtpd.objectives.StudentDQNLoss`.
        student_temperature (float, optional): Default: ``None``, the teacher's, since the outputs must stay Q-values.

    Keys read, in addition to those of :class:`DistillationLoss`: ``"action"`` and ``"value_target"`` ``[*B, 1]``; both
    settable.

    Examples:
        >>> loss = StudentPQNLoss(nn.Linear(4, 3))
        >>> batch = TensorDict({"observation": torch.zeros(5, 4), "action": torch.zeros(5, dtype=torch.long),
        ...                     "value_target": torch.ones(5, 1), ("teacher", "action_value"): torch.zeros(5, 3)}, [5])
        >>> sorted(key for key in loss(batch).keys() if key.startswith("loss"))
        ['loss_distill', 'loss_td']
    """

    @dataclass
    class _AcceptedKeys(DistillationLoss._AcceptedKeys):
        """Keys that ``set_keys`` can change, in addition to those of :class:`DistillationLoss`.

        Attributes:
            action (NestedKey): the action taken, read. Defaults to ``"action"``.
            value_target (NestedKey): the return to regress to, read. Defaults to ``"value_target"``.
        """

        action: NestedKey = "action"
        value_target: NestedKey = "value_target"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_td", *DistillationLoss.out_keys]
    _schedulable_buffers = DistillationLoss._schedulable_buffers | {"td_coeff", "distill_coeff"}

    def __init__(
        self,
        student_network: TensorDictModule | nn.Module,
        teacher_network: TensorDictModule | nn.Module | None = None,
        *,
        td_coeff: float = 1.0,
        distill_coeff: float = 1.0,
        loss_function: str | None = None,
        divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "mse", "huber", "nll"] = "forward_kl",
        teacher_temperature: float | Literal["auto"] = 0.1,
        student_temperature: float | None = None,
        teacher_support: Tensor | Sequence[float] | Literal["quantiles", "auto"] | None = "auto",
        var_nums: Sequence[int] | int | None = None,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
        burn_in: int = 0,
    ) -> None:
        super().__init__(
            student_network,
            teacher_network,
            divergence=divergence,
            teacher_temperature=teacher_temperature,
            student_temperature=student_temperature,
            teacher_support=teacher_support,
            var_nums=var_nums,
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
            burn_in=burn_in,
        )
        self.loss_function = "l2"  # until a teacher's loss is followed
        if loss_function is not None:
            self.loss_function = _checked_function(loss_function)
            self._told.add("loss_function")
        for name, value in {"td_coeff": td_coeff, "distill_coeff": distill_coeff}.items():
            self.register_coeff_buffer(name, coefficient(name, value), device=self._default_device)

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        keys = [*self._in_keys, self.tensor_keys.action, self.tensor_keys.value_target]
        self._in_keys = list(dict.fromkeys(unravel_key(key) for key in keys))

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "loss_function": self.loss_function}

    def _take(self, settings: Any) -> None:
        super()._take(settings)
        self.loss_function = settings.get("loss_function", self.loss_function)

    def _terms(self, tensordict: TensorDictBase, metrics: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        names = self.tensor_keys
        target = target_of(tensordict, names.value_target)
        action = tensordict.get(names.action, None)
        if action is None:
            selected(tensordict, [names.action], "temporal-difference error")  # says what is missing
        values = self.student_q_values(tensordict)
        per_sample, measured = self._distilled(tensordict, values, metrics)
        self._write_priority(tensordict, per_sample)
        target = self._without_padding(tensordict, target.unsqueeze(-1)).squeeze(-1)
        chosen = chosen_values(values, action, names.action, self.var_nums(values))
        td_error = error(chosen, target, self.loss_function)
        return {"loss_distill": per_sample * self.distill_coeff, "loss_td": td_error * self.td_coeff}, measured


def _checked_function(loss_function: str) -> str:
    if loss_function not in TD_LOSS_FUNCTIONS:
        raise ValueError(f"loss_function must be one of {', '.join(TD_LOSS_FUNCTIONS)}: got {loss_function!r}.")
    return loss_function


def _refuse_several_choices(network: nn.Module) -> None:
    """Refuse a teacher whose action is several choices: the greatest of all its values is none of theirs."""
    for part in network.modules():
        several = getattr(part, "action_space", None) in ("mult_one_hot", "multi_one_hot", "multi-one-hot")
        if several or getattr(part, "var_nums", None) is not None:
            raise ValueError(
                "PQNLoss values one choice an action: got a network of several choices (var_nums); give it an action "
                "space of one choice, such as Categorical or OneHot."
            )


def target_of(tensordict: TensorDictBase, key: NestedKey) -> Tensor:
    """Return the target ``[*B]`` of a batch ``[*B]``, or refuse a batch that has none."""
    target = tensordict.get(key, None)
    if target is None:
        raise KeyError(
            f"a loss of PQN regresses to returns of the rollout: the batch has no {key!r}; register "
            "torchrl_rtpd.trainers.LambdaTargets with the trainer, which writes it."
        )
    if target.shape[-1:] != (1,):
        raise ValueError(f"{key!r} must be [*B, 1]: got {list(target.shape)}; add a last dimension of one.")
    return target.squeeze(-1)


def error(chosen: Tensor, target: Tensor, loss_function: str) -> Tensor:
    """Return half the squared error, so that its gradient is the error, or another distance, ``[*B]``."""
    if chosen.shape != target.shape:
        raise ValueError(
            f"a batch must have one target a sample: got {list(target.shape)} targets and {list(chosen.shape)} values "
            "of actions; give targets as [*B, 1]."
        )
    distance = distance_loss(chosen, target, loss_function)
    return 0.5 * distance if loss_function == "l2" else distance
