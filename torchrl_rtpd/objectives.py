"""Losses that distil a teacher's policy into a student, as TorchRL loss modules.

``B`` is the batch, ``A`` the number of actions. The student is the module's only trainable network; teacher values
enter detached. Divergences are summed over actions and averaged over the batch.

:class:`torchrl.objectives.llm.DistillationLoss` is another thing: token log-probabilities of a frozen language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.data import Composite
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import ValueEstimators, dispatch_value_estimator, distance_loss

from torchrl_rtpd import functional as RF

__all__ = ["DIVERGENCES", "DistillationLoss", "StudentDQNLoss"]

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon", "mse", "huber", "nll")
"""Names accepted by the ``divergence`` argument."""

# "auto" follows the spread of the teacher's values: averaged over about 100 batches, never below 0.1, under which tiny
# students of a young teacher died in trials.
_AUTO_DECAY = 0.99
_AUTO_FLOOR = 0.1


class DistillationLoss(LossModule):
    r"""Divergence between a teacher's softened policy and a student's.

    With :math:`p = \mathrm{softmax}(q / \tau)` for both networks, ``"forward_kl"`` is
    :math:`KL(p_T \| p_S) = \sum_i p_{T,i} \ln (p_{T,i} / p_{S,i})` (Eq. 1 of Sun & Fazli 2019,
    https://arxiv.org/abs/1912.12630) and ``"reverse_kl"`` is :math:`KL(p_S \| p_T)` (Eq. 6). ``"mse"`` and ``"nll"``
    are those of Rusu et al. 2015 (https://arxiv.org/abs/1511.06295). The input is never written to, except a priority
    under a key set for it.

    Args:
        student_network (TensorDictModule or nn.Module): the network to train; writes action values or logits
            ``[*B, A]``.
        teacher_network (TensorDictModule or nn.Module, optional): run without gradient and in eval mode when the batch
            holds no teacher values. It is not part of ``parameters()``, ``state_dict()``, ``to()`` or ``deepcopy``: it
            stays whose it is.

    Keyword Args:
        divergence (str, optional): one of ``"forward_kl"``, ``"reverse_kl"``, ``"jensen_shannon"``, ``"mse"``,
            ``"huber"``, ``"nll"``. Default: ``"forward_kl"``.
        teacher_temperature (float or "auto", optional): temperature :math:`\tau` of the teacher, in units of its
            values. ``"auto"`` follows the spread of the teacher's values over actions, averaged over recent batches, so
            that targets stay equally sharp while values grow. Default: 0.01, for a finished teacher (Rusu et al.,
            section 3).
        student_temperature (float, optional): temperature of the student; ``None`` is the teacher's. Default: 1.0
            (Rusu et al.).
        reduction (str, optional): ``"none"`` | ``"mean"`` | ``"sum"``. Default: ``"mean"``.
        use_prioritized_weights (bool or "auto", optional): weight the loss by the batch's importance weights;
            ``"auto"`` if it has any. Default: ``"auto"``.

    Keys read: the student's inputs; teacher values ``("teacher", "action_value")`` ``[*B, A]`` or else the teacher's
    inputs; ``"action_mask"`` bool ``[*B, A]`` and ``"priority_weight"`` ``[*B]`` if there.

    Keys written, all scalar unless ``reduction="none"``: ``loss_distill``; detached ``kl_to_teacher`` (the forward KL
    in nats, whatever the divergence), ``agreement`` (share of equal greedy actions), ``teacher_entropy`` and
    ``student_entropy`` (nats), which are plain means also where the loss is weighted or summed.

    Raises:
        ValueError: an unknown divergence, a temperature that is not positive, networks that disagree on the number of
            actions.
        RuntimeError: at a call, no teacher values and no teacher network.
        KeyError: at a call, a key that the batch or a network's output lacks.

    Examples:
        >>> from torchrl.modules import QValueActor
        >>> from torchrl.data import Categorical
        >>> student = QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3))
        >>> loss = DistillationLoss(student, teacher_temperature=1.0)
        >>> batch = TensorDict({"observation": torch.zeros(5, 4), ("teacher", "action_value"): torch.zeros(5, 3)}, [5])
        >>> _ = loss.student_network_params.zero_()
        >>> loss(batch)["loss_distill"]
        tensor(0., grad_fn=<MeanBackward0>)

    The same without tensordicts, the keys joined by underscores:

        >>> value = loss(observation=torch.zeros(5, 4), teacher_action_value=torch.zeros(5, 3))[0]
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` can change.

        Attributes:
            teacher_action_value (NestedKey): the teacher's action values, read. Defaults to
                ``("teacher", "action_value")``. A teacher network writes its own under the last part of this key, or
                else under ``"action_value"``.
            student_action_value (NestedKey): where the student network writes its values. Defaults to
                ``"action_value"``.
            action_mask (NestedKey): allowed actions, read if there. Defaults to ``"action_mask"``.
            priority_weight (NestedKey): importance weights, read if there. Defaults to ``"priority_weight"``.
            priority (NestedKey): where each sample's detached divergence ``[*B, 1]`` is written into the input.
                Defaults to ``None``: nowhere.
        """

        teacher_action_value: NestedKey = ("teacher", "action_value")
        student_action_value: NestedKey = "action_value"
        action_mask: NestedKey = "action_mask"
        priority_weight: NestedKey = "priority_weight"
        priority: NestedKey | None = None

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_distill", "kl_to_teacher", "agreement", "teacher_entropy", "student_entropy"]
    _schedulable_buffers = frozenset({"teacher_temperature", "student_temperature"})
    _has_target = False

    student_network: TensorDictModule
    student_network_params: TensorDictParams
    target_student_network_params: TensorDictParams

    def __init__(
        self,
        student_network: TensorDictModule | nn.Module,
        teacher_network: TensorDictModule | nn.Module | None = None,
        *,
        divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "mse", "huber", "nll"] = "forward_kl",
        teacher_temperature: float | Literal["auto"] = 0.01,
        student_temperature: float | None = 1.0,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        super().__init__()
        self._in_keys: list[NestedKey] = []  # found at first use
        if divergence not in DIVERGENCES:
            raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}: got {divergence!r}.")
        self.divergence = divergence
        self.reduction = "mean" if reduction is None else reduction
        if self.reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction must be none, mean or sum: got {reduction!r}.")
        if use_prioritized_weights not in (True, False, "auto"):
            raise ValueError(f"use_prioritized_weights must be True, False or auto: got {use_prioritized_weights!r}.")
        self.use_prioritized_weights = use_prioritized_weights
        student_network = _as_value_network(student_network)
        self.convert_to_functional(student_network, "student_network", create_target_params=self._has_target)
        _check_same_actions(teacher_network, student_network)
        self._teacher = None if teacher_network is None else _Teacher(_as_value_network(teacher_network))
        self.auto_temperature = teacher_temperature == "auto"
        if teacher_temperature == "auto":
            teacher_temperature = _AUTO_FLOOR
        teacher_temperature = _positive("teacher_temperature", teacher_temperature, "auto")
        if student_temperature is not None:
            student_temperature = _positive("student_temperature", student_temperature, "None")
        self.register_coeff_buffer("teacher_temperature", teacher_temperature, device=self._default_device)
        self.register_coeff_buffer("student_temperature", student_temperature, device=self._default_device)

    # Keys

    def _set_in_keys(self) -> None:
        keys = [*self.student_network.in_keys, self.tensor_keys.teacher_action_value]
        if self._teacher is not None:  # the values are computed from the same inputs when they are not given
            keys = [*self.student_network.in_keys, *self._teacher.network.in_keys]
        self._in_keys = list(dict.fromkeys(unravel_key(key) for key in keys))

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys read from a batch, in a fixed order; what is read only if there is not among them."""
        if not self._in_keys:
            self._set_in_keys()
        return self._in_keys

    @in_keys.setter
    def in_keys(self, keys: Sequence[NestedKey]) -> None:
        self._in_keys = list(keys)

    # Loss

    @dispatch(auto_batch_size=False)  # observations as wide as there are actions would pass for a batch [*B, A]
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Divergence of a batch ``[*B]``; see the class for the keys."""
        student_q_values = self._student_q_values(tensordict, self.student_network_params)
        out = self._distilled(tensordict, student_q_values)
        self._clear_weakrefs(tensordict, out, "student_network_params", "target_student_network_params")
        return out

    def _distilled(self, tensordict: TensorDictBase, student_q_values: Tensor) -> TensorDict:
        teacher_q_values = self._teacher_q_values(tensordict)
        if teacher_q_values.shape != student_q_values.shape:
            raise ValueError(
                "teacher and student disagree on the number of actions: "
                f"{list(teacher_q_values.shape)} and {list(student_q_values.shape)}; "
                "build both from the same action spec."
            )
        mask = tensordict.get(self.tensor_keys.action_mask, None)
        teacher_temperature = self._current_temperature(teacher_q_values, mask, tensordict)
        student_temperature = teacher_temperature if self.student_temperature is None else self.student_temperature
        teacher_log_probs = RF.policy_log_probs(teacher_q_values, teacher_temperature, mask)
        student_log_probs = RF.policy_log_probs(student_q_values, student_temperature, mask)
        per_sample = self._divergence(teacher_q_values, student_q_values, teacher_log_probs, student_log_probs, mask)
        if self.tensor_keys.priority is not None:
            # Rounding takes a divergence near 0 a little below it, and replay buffers refuse negative priorities.
            tensordict.set(self.tensor_keys.priority, per_sample.detach().clamp_min(0.0).unsqueeze(-1))
        with torch.no_grad():
            detached = student_log_probs.detach()
            metrics = {
                "kl_to_teacher": RF.forward_kl(teacher_log_probs, detached),
                "agreement": RF.greedy_agreement(teacher_q_values, student_q_values, mask),
                "teacher_entropy": RF.entropy(teacher_log_probs),
                "student_entropy": RF.entropy(detached),
            }
        out = {"loss_distill": self._reduced(per_sample, tensordict)}
        reduction = "none" if self.reduction == "none" else "mean"
        for name, value in metrics.items():
            out[name] = self._reduce_loss(value, tensordict=tensordict, reduction=reduction)
        return TensorDict(out, batch_size=tensordict.batch_size if self.reduction == "none" else [])

    def _divergence(
        self,
        teacher_q_values: Tensor,
        student_q_values: Tensor,
        teacher_log_probs: Tensor,
        student_log_probs: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        if self.divergence == "nll":
            return RF.greedy_nll(teacher_q_values, student_log_probs)
        if self.divergence in ("mse", "huber"):
            distance = RF.q_mse if self.divergence == "mse" else RF.q_huber
            return distance(teacher_q_values, student_q_values, mask)
        return getattr(RF, self.divergence)(teacher_log_probs, student_log_probs)

    def _reduced(self, per_sample: Tensor, tensordict: TensorDictBase) -> Tensor:
        key = self.tensor_keys.priority_weight
        weights = tensordict.get(key, None) if self.use_prioritized_weights else None
        if weights is None and self.use_prioritized_weights is True:
            raise KeyError(
                f"use_prioritized_weights=True needs {key!r}, which the batch lacks: it has {_names(tensordict)}; "
                "sample with a PrioritizedSampler, or pass 'auto'."
            )
        if weights is not None and weights.shape != per_sample.shape:
            weights = weights.reshape(per_sample.shape)
        return self._reduce_loss(per_sample, tensordict=tensordict, weights=weights)

    def _student_q_values(self, tensordict: TensorDictBase, params: TensorDictParams) -> Tensor:
        # A fresh tensordict: samples may hold an "action_value" of their own, neither to be read nor overwritten.
        inputs = _selected(tensordict, self.student_network.in_keys, "student")
        with params.to_module(self.student_network, preserve_module_state=False):
            outputs = self.student_network(inputs)
        return _read_values(outputs, self.tensor_keys.student_action_value, "student")

    def _teacher_q_values(self, tensordict: TensorDictBase, place: str = "batch") -> Tensor:
        key = self.tensor_keys.teacher_action_value
        values = tensordict.get(key, None)
        if values is not None:
            return values.detach()
        if self._teacher is None:
            raise RuntimeError(
                f"there are no teacher values to distil: the {place} has no {key!r} and the loss no teacher_network; "
                "pass teacher_network to the loss, or store the values under that key "
                "(set_keys(teacher_action_value=...))."
            )
        network = self._teacher.network
        outputs = self._teacher(_selected(tensordict, network.in_keys, "teacher", place))
        last = key if isinstance(key, str) else key[-1]
        return _read_values(outputs, last if last in network.out_keys else "action_value", "teacher")

    @torch.no_grad()
    def _current_temperature(self, teacher_q_values: Tensor, mask: Tensor | None, tensordict: TensorDictBase) -> Tensor:
        temperature = self.teacher_temperature
        if not self.auto_temperature:
            return temperature
        if self.training:
            spread = RF.value_spread(teacher_q_values, mask)
            spread = self._reduce_loss(spread, tensordict=tensordict, reduction="mean")
            temperature.lerp_(spread.to(temperature), 1 - _AUTO_DECAY).clamp_min_(_AUTO_FLOOR)
        return temperature.clone()  # autograd holds it while the next batch moves the buffer


class StudentDQNLoss(DistillationLoss):
    r"""The paper's student loss in one student forward: :math:`L_{KL} + L_{DQN}` (Eq. 3 of Sun & Fazli 2019).

    ``loss_distill`` is the divergence to the teacher (:class:`DistillationLoss`), ``loss_td`` the student's own
    temporal-difference error, called *self-learning* in the paper. With imitation its target lets the teacher choose
    the next action, :math:`r + \gamma Q_S(s', \arg\max_a Q_T(s', a))` (Eq. 5); without, the student's own target
    network chooses (Eq. 2). The student has target parameters of its own for
    :class:`~torchrl.objectives.SoftUpdate` or ``HardUpdate``.

    Args:
        student_network (TensorDictModule or nn.Module): as in :class:`DistillationLoss`; its outputs must be Q-values.
        teacher_network (TensorDictModule or nn.Module, optional): as in :class:`DistillationLoss`. It also values the
            next state, unless the batch holds ``("next", "teacher", "action_value")``; the trainer hook puts the values
            of the teacher's target network there, as the paper has it.

    Keyword Args:
        imitation (bool, optional): Eq. 5 if True, Eq. 2 if False. Default: True.
        td_coeff (float, optional): weight of ``loss_td``. Default: 1.0 (the paper).
        distill_coeff (float, optional): weight of ``loss_distill``. Default: 1.0 (the paper).
        loss_function (str, optional): ``"l1"``, ``"l2"`` or ``"smooth_l1"`` of the TD error. Default: ``"l2"`` (Eq. 2).
        divergence, reduction, use_prioritized_weights: as in :class:`DistillationLoss`.
        teacher_temperature (float or "auto", optional): Default: 0.1, from our trials with teachers that are still
            learning.
        student_temperature (float, optional): Default: ``None``, the teacher's, since the outputs must stay Q-values.

    Keys read, besides those of :class:`DistillationLoss`: ``"action"``, ``("next", "reward")``,
    ``("next", "terminated")`` (both ``[*B, 1]``; all settable), the student's inputs under ``"next"``,
    ``("next", "action_mask")`` if there, and ``"steps_to_next_obs"`` of n-step replay.

    Keys written besides: ``loss_td``.

    Examples:
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
        """Keys that ``set_keys`` can change, besides those of :class:`DistillationLoss`.

        Attributes:
            action (NestedKey): the action taken, read. Defaults to ``"action"``.
            reward (NestedKey): read under ``"next"``. Defaults to ``"reward"``.
            done (NestedKey): among the input keys, as in TorchRL's losses, but not what ends bootstrapping. Defaults to
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
        loss_function: str = "l2",
        divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "mse", "huber", "nll"] = "forward_kl",
        teacher_temperature: float | Literal["auto"] = 0.1,
        student_temperature: float | None = None,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        super().__init__(
            student_network,
            teacher_network,
            divergence=divergence,
            teacher_temperature=teacher_temperature,
            student_temperature=student_temperature,
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
        )
        self.imitation = imitation
        if loss_function not in ("l1", "l2", "smooth_l1"):
            raise ValueError(f"loss_function must be l1, l2 or smooth_l1: got {loss_function!r}.")
        self.loss_function = loss_function
        # As floats: an integer buffer would truncate a schedule.
        self.register_coeff_buffer("td_coeff", float(td_coeff), device=self._default_device)
        self.register_coeff_buffer("distill_coeff", float(distill_coeff), device=self._default_device)
        self._default_value_estimator()  # now, so that states saved before and after the first call have the same keys

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        names = self.tensor_keys
        following = [names.reward, names.done, names.terminated, *self.student_network.in_keys]
        if self.imitation:
            following += [names.teacher_action_value] if self._teacher is None else self._teacher.network.in_keys
        keys = [*self._in_keys, names.action, *(("next", key) for key in following)]
        self._in_keys = list(dict.fromkeys(unravel_key(key) for key in keys))

    def make_value_estimator(self, value_type: ValueEstimators | None = None, **hyperparams: float) -> None:
        """Set the TD target's discount factor ``gamma``; 0.99 unless told, TorchRL's default and the paper's."""
        keys = ("advantage", "value_target", "value", "reward", "done", "terminated")
        dispatch_value_estimator(
            self,
            self.default_value_estimator if value_type is None else value_type,
            supported=self.SUPPORTED_VALUE_ESTIMATORS,
            tensor_keys={key: getattr(self.tensor_keys, key) for key in keys},
            **hyperparams,
        )

    @dispatch(auto_batch_size=False)  # observations as wide as there are actions would pass for a batch [*B, A]
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both parts of the loss for a batch ``[*B]``; see the class for the keys."""
        names = self.tensor_keys
        needed = [names.action, ("next", names.reward), ("next", names.terminated)]
        needed += [("next", key) for key in self.student_network.in_keys]
        _selected(tensordict, [unravel_key(key) for key in needed], "temporal-difference error")
        student_q_values = self._student_q_values(tensordict, self.student_network_params)
        out = self._distilled(tensordict, student_q_values)
        out.set("loss_distill", out.get("loss_distill") * self.distill_coeff)
        chosen = _chosen(student_q_values, tensordict.get(names.action))
        td_error = distance_loss(chosen, self._td_target(tensordict), self.loss_function)
        out.set("loss_td", self._reduced(td_error, tensordict) * self.td_coeff)
        self._clear_weakrefs(tensordict, out, "student_network_params", "target_student_network_params")
        return out

    @torch.no_grad()
    def _td_target(self, tensordict: TensorDictBase) -> Tensor:
        following = tensordict.get("next")
        next_student_q_values = self._student_q_values(following, self.target_student_network_params)
        chooser = self._teacher_q_values(following, "batch's next") if self.imitation else next_student_q_values
        mask = following.get(self.tensor_keys.action_mask, None)
        next_value = RF.imitation_value(chooser, next_student_q_values, mask)
        return self.value_estimator.value_estimate(tensordict.copy(), next_value=next_value.unsqueeze(-1)).squeeze(-1)


class _Teacher:
    """Runs a teacher that a loss must not own: in eval mode, without gradient, its own mode restored.

    Not a :class:`torch.nn.Module`, so that the loss's parameters, state, ``to`` and ``reset_parameters_recursive`` pass
    it by.
    """

    def __init__(self, network: TensorDictModule) -> None:
        self.network = network

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        changed = [module for module in self.network.modules() if module.training]
        for module in changed:
            module.training = False
        try:
            with torch.no_grad():
                return self.network(tensordict)
        finally:
            for module in changed:
                module.training = True

    def __deepcopy__(self, memo: dict) -> _Teacher:
        return self  # a copied loss learns from the same live teacher


def _as_value_network(network: TensorDictModule | nn.Module) -> TensorDictModule:
    if isinstance(network, (TensorDictModuleBase, TensorDictModule)):
        return network
    if not isinstance(network, nn.Module):
        raise TypeError(f"a network must be a TensorDictModule or nn.Module: got {type(network).__name__}.")
    return TensorDictModule(network, in_keys=["observation"], out_keys=["action_value"])


def _positive(name: str, value: float | str | None, otherwise: str) -> float:
    if value is None or isinstance(value, str) or not value > 0:
        raise ValueError(
            f"{name} must be positive or {otherwise}: got {value!r}; "
            "about 0.1 suits a teacher that is still learning, 0.01 a finished one."
        )
    return float(value)


def _check_same_actions(teacher_network: nn.Module | None, student_network: nn.Module) -> None:
    counts = [_num_actions(network) for network in (teacher_network, student_network)]
    if None not in counts and counts[0] != counts[1]:
        raise ValueError(
            f"teacher and student disagree on the number of actions: {counts[0]} and {counts[1]}; "
            "build both from the same action spec."
        )


def _num_actions(network: nn.Module | None) -> int | None:
    """Actions a network's spec declares, None where it declares none."""
    spec = getattr(network, "spec", None)
    if isinstance(spec, Composite):
        spec = spec.get("action", None)
    return getattr(getattr(spec, "space", None), "n", None)  # categorical and one-hot alike


def _selected(tensordict: TensorDictBase, keys: Sequence[NestedKey], role: str, place: str = "batch") -> TensorDictBase:
    selected = tensordict.select(*keys, strict=False)
    missing = [key for key in keys if selected.get(key, None) is None]
    if missing:
        raise KeyError(
            f"the {role} reads {missing}, which the {place} lacks: it has {_names(tensordict)}; "
            "make its keys, by set_keys or the network's in_keys, those of the data."
        )
    return selected


def _read_values(outputs: TensorDictBase, key: NestedKey, role: str) -> Tensor:
    values = outputs.get(key, None)
    if values is None:
        raise KeyError(
            f"the {role} network wrote no {key!r}: it wrote {_names(outputs)}; "
            f"name its output with set_keys({role}_action_value=...)."
        )
    return values


def _names(tensordict: TensorDictBase) -> list[NestedKey]:
    return sorted(tensordict.keys(True, True), key=str)


def _chosen(q_values: Tensor, action: Tensor) -> Tensor:
    """Values ``[*B]`` of the actions taken, categorical ``[*B]`` or one-hot ``[*B, A]``."""
    if action.shape == q_values.shape:
        return (q_values * action).sum(-1)
    index = action if action.ndim == q_values.ndim else action.unsqueeze(-1)
    return q_values.gather(-1, index).squeeze(-1)
