"""The paper's student: distilled and learning by temporal differences at once.

``B`` is the batch, ``A`` the number of actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.objectives.utils import ValueEstimators, dispatch_value_estimator, distance_loss

from torchrl_rtpd import functional as RF
from torchrl_rtpd.functional.checks import check_within
from torchrl_rtpd.networks.keys import selected
from torchrl_rtpd.networks.sequences import remembered_by
from torchrl_rtpd.objectives.base import coefficient
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.following import TD_LOSS_FUNCTIONS, estimator_settings
from torchrl_rtpd.objectives.td import chosen_values, td_target
from torchrl_rtpd.objectives.values import check_mask

__all__ = ["StudentDQNLoss"]


class StudentDQNLoss(DistillationLoss):
    r"""The paper's student loss in one student forward: :math:`L_{KL} + L_{DQN}` (Eq. 3 of Sun & Fazli 2019).

    ``loss_distill`` is the divergence to the teacher (:class:`DistillationLoss`), ``loss_td`` the student's own
    temporal-difference error, called *self-learning* in the paper. With imitation its target lets the teacher choose
    the next action, :math:`r + \gamma Q_S(s', \arg\max_a Q_T(s', a))` (Eq. 5); without, the student's own target
    network chooses (Eq. 2). The student has target parameters of its own for
    :class:`~torchrl.objectives.SoftUpdate` or ``HardUpdate``.

    Networks with a memory are refused: their value of the next state depends on the steps before, which a transition
    does not hold. A recurrent student takes :class:`DistillationLoss`, or beside PQN
    :class:`~torchrl_rtpd.objectives.StudentPQNLoss`, whose targets come from whole rollouts. Beside a recurrent teacher
    a student that remembers nothing takes ``imitation=False``.

    Args:
        student_network (TensorDictModule or nn.Module): as in :class:`DistillationLoss`; its outputs must be Q-values.
        teacher_network (TensorDictModule or nn.Module, optional): as in :class:`DistillationLoss`. It also values the
            next state, unless the batch holds ``("next", "teacher", "action_value")``; the trainer hook puts the values
            of the teacher's target network there, as the paper has it.

    Keyword Args:
        imitation (bool, optional): Eq. 5 if True, Eq. 2 if False. Default: True.
        td_coeff (float, optional): weight of ``loss_td``. Default: 1.0 (the paper).
        distill_coeff (float, optional): weight of ``loss_distill``. Default: 1.0 (the paper).
        priority_td_share (float, optional): the priority written under ``set_keys(priority=...)`` is
            ``(1 - share) * divergence + share * |TD error|``, both unweighted. Default: 0.0, the divergence alone.
        loss_function (str, optional): ``"l1"``, ``"l2"`` or ``"smooth_l1"`` of the TD error. Default: that of the
            teacher's loss where a trainer's hook shows it one, and otherwise ``"l2"`` (Eq. 2).
        divergence, teacher_support, var_nums, reduction, use_prioritized_weights: as in :class:`DistillationLoss`.
        teacher_temperature (float or "auto", optional): Default: 0.1, from our trials with teachers that are still
            learning.
        student_temperature (float, optional): Default: ``None``, the teacher's, since the outputs must stay Q-values.

    Keys read, in addition to those of :class:`DistillationLoss`: ``"action"``, ``("next", "reward")``,
    ``("next", "terminated")`` (both ``[*B, 1]``; all settable), the student's inputs under ``"next"``,
    ``("next", "action_mask")`` if present, and ``"steps_to_next_obs"`` of n-step replay.

    Keys written in addition: ``loss_td``.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import QValueActor
        >>> from torchrl.data import Categorical
        >>> from torchrl.objectives import SoftUpdate
        >>> actor = lambda: QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3))
        >>> loss = StudentDQNLoss(actor(), actor())
        >>> updater = SoftUpdate(loss, tau=0.01)
        >>> batch = TensorDict({"observation": torch.zeros(5, 4), "action": torch.zeros(5, dtype=torch.long), "next": {
        ...     "observation": torch.zeros(5, 4), "reward": torch.ones(5, 1),
        ...     "done": torch.ones(5, 1, dtype=torch.bool), "terminated": torch.ones(5, 1, dtype=torch.bool)}}, [5])
        >>> loss(batch).keys() >= {"loss_td", "loss_distill"}
        True
    """

    @dataclass
    class _AcceptedKeys(DistillationLoss._AcceptedKeys):
        """Keys that ``set_keys`` can change, in addition to those of :class:`DistillationLoss`.

        Attributes:
            action (NestedKey): the action taken, read. Defaults to ``"action"``.
            reward (NestedKey): read under ``"next"``. Defaults to ``"reward"``.
            done (NestedKey): among the input keys, as in TorchRL's losses; it does not end bootstrapping. Defaults to
                ``"done"``.
            terminated (NestedKey): where no bootstrapping happens, read under ``"next"``. Defaults to ``"terminated"``.
            value (NestedKey): used by TorchRL's value estimators. Defaults to ``"chosen_action_value"``.
            advantage (NestedKey): used by TorchRL's value estimators. Defaults to ``"advantage"``.
            value_target (NestedKey): used by TorchRL's value estimators. Defaults to ``"value_target"``.
        """

        action: NestedKey = "action"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        value: NestedKey = "chosen_action_value"
        advantage: NestedKey = "advantage"
        value_target: NestedKey = "value_target"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    out_keys = ["loss_td", *DistillationLoss.out_keys]
    _schedulable_buffers = DistillationLoss._schedulable_buffers | {"td_coeff", "distill_coeff"}
    _has_target = True
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0,)  # only TD(0) lets the teacher choose the action

    def __init__(
        self,
        student_network: TensorDictModule | nn.Module,
        teacher_network: TensorDictModule | nn.Module | None = None,
        *,
        imitation: bool = True,
        td_coeff: float = 1.0,
        distill_coeff: float = 1.0,
        priority_td_share: float = 0.0,
        loss_function: str | None = None,
        divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "mse", "huber", "nll"] = "forward_kl",
        teacher_temperature: float | Literal["auto"] = 0.1,
        student_temperature: float | None = None,
        teacher_support: Tensor | Sequence[float] | Literal["quantiles", "auto"] | None = "auto",
        var_nums: Sequence[int] | int | None = None,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
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
        )
        self.imitation = imitation
        self._refuse_memories()
        self.loss_function = self._checked_loss_function(loss_function)
        check_within("[0, 1]", "0 is the divergence alone", priority_td_share=priority_td_share)
        self.priority_td_share = float(priority_td_share)
        for name, value in {"td_coeff": td_coeff, "distill_coeff": distill_coeff}.items():
            self.register_coeff_buffer(name, coefficient(name, value), device=self._default_device)
        self._default_value_estimator()  # now, so that states saved before and after the first call have the same keys

    def _refuse_memories(self) -> None:
        """Refuse networks whose value of the next state depends on what they remember: a transition does not tell."""
        for role, network in (("student", self.student_network), ("teacher", self.teacher_network)):
            remembered = [] if role == "teacher" and not self.imitation else list(remembered_by(network))
            if remembered:
                remedy = (
                    "distil it alone by DistillationLoss(burn_in=...), or beside PQN by StudentPQNLoss"
                    if role == "student"
                    else "choose next actions by the student, imitation=False, or use DistillationLoss"
                )
                raise ValueError(
                    f"a temporal-difference error needs networks without a memory: got a {role} that remembers "
                    f"{remembered}, whose value of the next state needs the steps before; {remedy}."
                )

    def _checked_loss_function(self, loss_function: str | None) -> str:
        if loss_function is None:
            return "l2"  # until a teacher's loss is followed
        if loss_function not in TD_LOSS_FUNCTIONS:
            raise ValueError(f"loss_function must be l1, l2 or smooth_l1: got {loss_function!r}.")
        self._told.add("loss_function")
        return loss_function

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        names = self.tensor_keys
        following = [names.reward, names.done, names.terminated, *self.student_network.in_keys]
        if self.imitation:
            following += [names.teacher_action_value] if self._teacher is None else self._teacher.network.in_keys
        keys = [*self._in_keys, names.action, *(("next", key) for key in following)]
        self._in_keys = list(dict.fromkeys(unravel_key(key) for key in keys))

    def make_value_estimator(self, value_type: ValueEstimators | None = None, **hyperparams: Any) -> None:
        """Set the TD target's discount factor ``gamma``.

        Without it the discount is that of the teacher's loss where a trainer's hook shows it one, and otherwise 0.99,
        TorchRL's default and the paper's.
        """
        self._told |= hyperparams.keys()
        self._make_estimator(value_type, **hyperparams)

    def _make_estimator(self, value_type: ValueEstimators | None = None, **hyperparams: Any) -> None:
        keys = ("advantage", "value_target", "value", "reward", "done", "terminated")
        dispatch_value_estimator(
            self,
            self.default_value_estimator if value_type is None else value_type,
            supported=self.SUPPORTED_VALUE_ESTIMATORS,
            tensor_keys={key: getattr(self.tensor_keys, key) for key in keys},
            **hyperparams,
        )
        self.value_estimator.to(self._default_device)  # once, or every update would wait for the discount to be copied

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), **estimator_settings(self.value_estimator), "loss_function": self.loss_function}

    def _take(self, settings: Mapping[str, Any]) -> None:
        super()._take(settings)
        self.loss_function = settings.get("loss_function", self.loss_function)
        known = estimator_settings(self.value_estimator)
        taken = {name: value for name, value in settings.items() if name in known}
        if taken:
            self._make_estimator(**{**known, **taken})

    def _terms(self, tensordict: TensorDictBase, metrics: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        action, following = tensordict.get(self.tensor_keys.action, None), tensordict.get("next", None)
        if action is None or following is None:
            self._refuse_keys(tensordict)
        student_q_values = self.student_q_values(tensordict)
        if 0 < tensordict.batch_dims < student_q_values.ndim - 1:
            raise ValueError(
                "a temporal-difference error needs one row of action values a sample: got values "
                f"{list(student_q_values.shape)} for a batch {list(tensordict.batch_size)}, as of several agents; use "
                "DistillationLoss, or flatten the agents into the batch."
            )
        per_sample, measured = self._distilled(tensordict, student_q_values, metrics)
        var_nums = self.var_nums(student_q_values)
        chosen = chosen_values(student_q_values, action, self.tensor_keys.action, var_nums)
        target = self._without_padding(tensordict, self._td_target(tensordict).unsqueeze(-1)).squeeze(-1)
        self._write_mixed_priority(tensordict, per_sample, chosen, target)
        td_error = distance_loss(chosen, target, self.loss_function)
        return {"loss_distill": per_sample * self.distill_coeff, "loss_td": td_error * self.td_coeff}, measured

    def _refuse_keys(self, tensordict: TensorDictBase) -> None:
        """Raise an error that names all that is missing, once something was."""
        names = self.tensor_keys
        needed = [names.action, *(("next", key) for key in (names.reward, names.terminated))]
        needed += [("next", key) for key in self.student_network.in_keys]
        selected(tensordict, [unravel_key(key) for key in needed], "temporal-difference error")

    def _write_mixed_priority(
        self, tensordict: TensorDictBase, per_sample: Tensor, chosen: Tensor, target: Tensor
    ) -> None:
        share = self.priority_td_share
        if self.tensor_keys.priority is not None and share > 0:
            per_sample = torch.lerp(per_sample.detach(), (chosen.detach() - target).abs().to(per_sample.dtype), share)
        self._write_priority(tensordict, per_sample)

    @torch.no_grad()
    def _td_target(self, tensordict: TensorDictBase) -> Tensor:
        following = tensordict.get("next")
        reward = following.get(self.tensor_keys.reward, None)
        terminated = following.get(self.tensor_keys.terminated, None)
        if reward is None or terminated is None:
            self._refuse_keys(tensordict)
        place = "batch's next"
        next_student_q_values = self.student_q_values(following, self.target_student_network_params, place)
        chooser = next_student_q_values
        if self.imitation:
            chooser = self._teacher_q_values(following, next_student_q_values, place)
        mask = following.get(self.tensor_keys.action_mask, None)
        check_mask(mask, next_student_q_values, unravel_key(("next", self.tensor_keys.action_mask)))
        next_value = RF.imitation_value(chooser, next_student_q_values, mask, self.var_nums(next_student_q_values))
        return td_target(self.value_estimator, tensordict, reward, next_value, terminated)
