"""Distillation of policies over discrete actions.

``B`` is the batch, ``A`` the number of actions. Divergences are summed over actions and averaged over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Composite
from torchrl.modules import DistributionalQValueActor

from torchrl_rtpd import functional as RF
from torchrl_rtpd.networks.keys import last_part
from torchrl_rtpd.networks.running import NetworkPart
from torchrl_rtpd.objectives.base import PolicyDistillationLoss, positive

__all__ = ["DIVERGENCES", "DistillationLoss"]

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon", "mse", "huber", "nll")
"""Names accepted by the ``divergence`` argument."""

# "auto" follows the spread of the teacher's values: averaged over about 100 batches, never below 0.1, under which tiny
# students of a young teacher died in trials.
_AUTO_DECAY = 0.99
_AUTO_FLOOR = 0.1


class DistillationLoss(PolicyDistillationLoss):
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
        teacher_support (Tensor, sequence of float, "quantiles" or "auto", optional): what the teacher's outputs
            ``[*B, N, A]`` are if it predicts returns by their distribution: log-probabilities of returns with this
            support ``[N]`` (C51) or ``"quantiles"``; they are reduced to action values. ``"auto"`` finds the support of
            a teacher network that is a :class:`~torchrl.modules.DistributionalQValueActor`. Default: ``"auto"``.
        reduction (str, optional): ``"none"`` | ``"mean"`` | ``"sum"``. Default: ``"mean"``.
        use_prioritized_weights (bool or "auto", optional): weight the loss by the batch's importance weights;
            ``"auto"`` if it has any. Default: ``"auto"``.

    Networks may be policies: where ``"action_value"`` is not written, ``"logits"`` or ``"probs"`` are taken, which have
    their own scale, so that temperatures of 1 reproduce the policy. Of an actor only the part before the choice of the
    action is run: nothing is drawn. A student whose outputs are not finite is an error, which is looked for at the
    1st, 2nd, 4th, 8th ... call, never inside ``torch.compile``, since looking waits for the device.

    Keys read: the student's inputs; teacher values ``("teacher", "action_value")`` ``[*B, A]`` or else the teacher's
    inputs; ``"action_mask"`` bool ``[*B, A]`` and ``"priority_weight"`` ``[*B]`` if there.

    Keys written, all scalar unless ``reduction="none"``: ``loss_distill``; detached ``kl_to_teacher`` (the forward KL
    in nats, whatever the divergence), ``agreement`` (share of equal greedy actions), ``teacher_entropy`` and
    ``student_entropy`` (nats), which are plain means also where the loss is weighted or summed.

    Raises:
        TypeError: at a call, values, a mask or actions of the wrong type.
        ValueError: an unknown divergence, a temperature that is not positive, networks that disagree on the number of
            actions; at a call, shapes that do not match, or a student whose outputs are not finite.
        RuntimeError: at a call, no teacher values and no teacher network.
        KeyError: at a call, a key that the batch or a network's output lacks.

    Examples:
        >>> from tensordict import TensorDict
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
    class _AcceptedKeys(PolicyDistillationLoss._AcceptedKeys):
        """Keys that ``set_keys`` can change.

        Attributes:
            teacher_action_value (NestedKey): the teacher's action values or logits, read; probabilities if the last
                part is ``"probs"``. Defaults to ``("teacher", "action_value")``. A teacher network writes its own under
                the last part of this key, or else under ``"action_value"``, ``"logits"`` or ``"probs"``.
            student_action_value (NestedKey): where the student network writes its values. Defaults to
                ``"action_value"``, or else ``"logits"`` or ``"probs"``.
            action_mask (NestedKey): allowed actions, read if there. Defaults to ``"action_mask"``.
            priority_weight (NestedKey): importance weights, read if there. Defaults to ``"priority_weight"``.
            priority (NestedKey): where each sample's detached divergence ``[*B, 1]`` is written into the input.
                Defaults to ``None``: nowhere.
        """

        teacher_action_value: NestedKey = ("teacher", "action_value")
        student_action_value: NestedKey = "action_value"
        action_mask: NestedKey = "action_mask"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_distill", "kl_to_teacher", "agreement", "teacher_entropy", "student_entropy"]
    _temperatures = frozenset({"teacher_temperature", "student_temperature", "temperature_floor"})
    _schedulable_buffers = _temperatures

    teacher_support: Tensor | None

    def __init__(
        self,
        student_network: TensorDictModule | nn.Module,
        teacher_network: TensorDictModule | nn.Module | None = None,
        *,
        divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "mse", "huber", "nll"] = "forward_kl",
        teacher_temperature: float | Literal["auto"] = 0.01,
        student_temperature: float | None = 1.0,
        teacher_support: Tensor | Sequence[float] | Literal["quantiles", "auto"] | None = "auto",
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        super().__init__(
            student_network, teacher_network, reduction=reduction, use_prioritized_weights=use_prioritized_weights
        )
        if divergence not in DIVERGENCES:
            raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}: got {divergence!r}.")
        self.divergence = divergence
        _check_same_actions(teacher_network, student_network)
        self._student_part = NetworkPart(self.student_network)
        self._set_support(teacher_support)
        self._set_temperatures(teacher_temperature, student_temperature)

    def _set_support(self, teacher_support: Tensor | Sequence[float] | str | None) -> None:
        network = None if self._teacher is None else self._teacher.network
        self._quantiles = isinstance(teacher_support, str) and teacher_support == "quantiles"
        self._distributional = _Distributional(network if teacher_support == "auto" else None)
        if isinstance(teacher_support, str):
            if teacher_support not in ("auto", "quantiles"):
                raise ValueError(f"teacher_support must be a tensor, quantiles or auto: got {teacher_support!r}.")
            teacher_support = None
        if teacher_support is not None:
            teacher_support = torch.as_tensor(teacher_support, dtype=torch.float32, device=self._default_device)
            if teacher_support.ndim != 1:
                raise ValueError(
                    f"teacher_support must be the returns of the atoms, [N]: got {list(teacher_support.shape)}; pass "
                    "for example torch.linspace(-10.0, 10.0, 51)."
                )
        self.register_buffer("teacher_support", teacher_support, persistent=False)  # to move along, not to be saved

    def _set_temperatures(
        self, teacher_temperature: float | Literal["auto"], student_temperature: float | None
    ) -> None:
        self.auto_temperature = teacher_temperature == "auto"
        if teacher_temperature == "auto":
            teacher_temperature = _AUTO_FLOOR
            # Saved, so that a state of one kind is not loaded into the other.
            self.register_coeff_buffer("temperature_floor", _AUTO_FLOOR, device=self._default_device)
        teacher_temperature = positive("teacher_temperature", teacher_temperature, "auto")
        if student_temperature is not None:
            student_temperature = positive("student_temperature", student_temperature, "None")
        self.register_coeff_buffer("teacher_temperature", teacher_temperature, device=self._default_device)
        self.register_coeff_buffer("student_temperature", student_temperature, device=self._default_device)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._temperatures and isinstance(value, (int, float)):  # a schedule's new value
            value = positive(name, value, "left as it is")
        super().__setattr__(name, value)

    def _stored_keys(self) -> list[NestedKey]:
        return [self.tensor_keys.teacher_action_value]

    # Loss

    def _terms(self, tensordict: TensorDictBase, metrics: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        per_sample, measured = self._distilled(tensordict, self.student_q_values(tensordict), metrics)
        self._write_priority(tensordict, per_sample)
        return {"loss_distill": per_sample}, measured

    def _distilled(
        self, tensordict: TensorDictBase, student_q_values: Tensor, metrics: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Divergence and metrics ``[*B]``."""
        teacher_q_values = self._teacher_q_values(tensordict, student_q_values)
        teacher_q_values = self._without_padding(tensordict, teacher_q_values)
        mask = tensordict.get(self.tensor_keys.action_mask, None)
        check_mask(mask, student_q_values, self.tensor_keys.action_mask)
        if self._is_check_due():
            self._check_finite(tensordict, teacher_q_values, student_q_values, mask)
        teacher_temperature = self._current_temperature(teacher_q_values, mask, tensordict)
        student_temperature = teacher_temperature if self.student_temperature is None else self.student_temperature
        teacher_log_probs = RF.policy_log_probs(teacher_q_values, teacher_temperature, mask)
        student_log_probs = RF.policy_log_probs(student_q_values, student_temperature, mask)
        per_sample = self._divergence(teacher_q_values, student_q_values, teacher_log_probs, student_log_probs, mask)
        if not metrics:
            return per_sample, {}
        with torch.no_grad():
            known = self.divergence == "forward_kl"
            entropies = RF.entropy(torch.stack((teacher_log_probs, student_log_probs)))
            measured = {
                "kl_to_teacher": per_sample.detach() if known else RF.forward_kl(teacher_log_probs, student_log_probs),
                "agreement": RF.greedy_agreement(teacher_q_values, student_q_values, mask),
                "teacher_entropy": entropies[0],
                "student_entropy": entropies[1],
            }
        return per_sample, measured

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

    def student_q_values(
        self, tensordict: TensorDictBase, params: TensorDictParams | None = None, place: str = "batch"
    ) -> Tensor:
        """Return the student's values or logits of a batch.

        Args:
            tensordict: samples ``[*B]`` with the student's inputs. Not changed.
            params: run the network with these, such as ``target_student_network_params``; None is those being trained.
            place: name of ``tensordict`` in messages.

        Returns:
            ``[*B, A]``; logarithms of what a network writes as ``"probs"``.
        """
        key = self.tensor_keys.student_action_value
        if key == self.default_keys.student_action_value:  # a name that was set is meant
            key = _output_key(self.student_network, key)
        with self._student(params):
            values = self._student_part(tensordict, key, "student", place)
        return _as_logits(values, key, "student")

    def _teacher_q_values(self, tensordict: TensorDictBase, student_q_values: Tensor, place: str = "batch") -> Tensor:
        key = self.tensor_keys.teacher_action_value
        values = tensordict.get(key, None)
        if values is None:
            if self._teacher is None:
                raise RuntimeError(
                    f"there are no teacher values to distil: the {place} has no {key!r} and the loss no "
                    "teacher_network; pass teacher_network to the loss, or store the values under that key "
                    "(set_keys(teacher_action_value=...))."
                )
            key = _output_key(self._teacher.network, key, last_part(key))
            with self._teacher.evaluating():
                values = self._teacher.part(tensordict, key, "teacher", place)
        values = self._expected(_as_logits(values.detach(), key, "teacher"), student_q_values.ndim)
        if values.shape != student_q_values.shape:
            raise _shape_error(values.shape, student_q_values.shape)
        return values

    def _expected(self, values: Tensor, ndim: int) -> Tensor:
        """Action values, of which the teacher may have predicted the distribution ``[*B, N, A]``."""
        if values.ndim != ndim + 1:
            return values
        if self._quantiles:
            return RF.quantile_q_values(values)
        support = self._distributional.support if self.teacher_support is None else self.teacher_support
        return values if support is None else RF.categorical_q_values(values, support)

    def _check_finite(
        self, tensordict: TensorDictBase, teacher_q_values: Tensor, student_q_values: Tensor, mask: Tensor | None
    ) -> None:
        values = student_q_values.detach()
        # Minus infinity is a policy's way to forbid an action; it must then be the teacher's, too.
        forbidden = (values == -math.inf) & (teacher_q_values == -math.inf) & (self.divergence not in ("mse", "huber"))
        wrong = ~(values.isfinite() | forbidden)
        wrong = wrong if mask is None else wrong & mask
        self._refuse(wrong.any(-1), tensordict, "outputs must be finite")

    @torch.no_grad()
    def _current_temperature(self, teacher_q_values: Tensor, mask: Tensor | None, tensordict: TensorDictBase) -> Tensor:
        temperature = self.teacher_temperature
        if not self.auto_temperature:
            return temperature
        if self.training:
            spread = RF.value_spread(teacher_q_values, mask)
            spread = self._reduce_loss(spread, tensordict=tensordict, reduction="mean")
            spread = torch.where(spread.isfinite(), spread, temperature)  # one bad batch must not stay for ever
            temperature.lerp_(spread.to(temperature), 1 - _AUTO_DECAY).clamp_(min=self.temperature_floor)
        return temperature.clone()  # autograd holds it while the next batch moves the buffer


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


class _Distributional:
    """The support of a teacher's network that predicts the distribution of returns, wherever it lies by now."""

    def __init__(self, network: nn.Module | None) -> None:
        modules = () if network is None else network.modules()
        self._actor = next((module for module in modules if isinstance(module, DistributionalQValueActor)), None)

    @property
    def support(self) -> Tensor | None:
        """Returns ``[N]`` that the network gives probabilities to, None for one without a distribution."""
        return None if self._actor is None else self._actor.support

    def __deepcopy__(self, memo: dict) -> _Distributional:
        return self  # as the teacher


def _output_key(network: TensorDictModule, *keys: NestedKey) -> NestedKey:
    """Where a network writes its values: under one of ``keys``, or the usual name of values or logits."""
    names = (*keys, "action_value", "logits", "probs")
    return next((name for name in names if name in network.out_keys), "action_value")


def _as_logits(values: Tensor, key: NestedKey, role: str) -> Tensor:
    if not values.is_floating_point():
        raise TypeError(
            f"the {role}'s values must be floating point: {key!r} is {values.dtype}; store action values or logits, "
            "not actions."
        )
    if last_part(key) == "probs":
        return values.clamp_min(torch.finfo(values.dtype).tiny).log()  # finite, also in the gradient
    return values


def check_mask(mask: Tensor | None, q_values: Tensor, key: NestedKey) -> None:
    if mask is not None and (mask.dtype is not torch.bool or mask.shape != q_values.shape):
        error = TypeError if mask.dtype is not torch.bool else ValueError
        raise error(
            f"the action mask must be bool {list(q_values.shape)}, True where allowed: {key!r} is {mask.dtype} "
            f"{list(mask.shape)}; build it from the same action spec, or name another entry with "
            "set_keys(action_mask=...)."
        )


def _shape_error(teacher: torch.Size, student: torch.Size) -> ValueError:
    shapes = f"{list(teacher)} and {list(student)}"
    if len(teacher) == len(student) + 1:
        return ValueError(
            f"the teacher's values must be [*B, A] as the student's: got {shapes}; pass teacher_support where they are "
            "distributions over atoms, or quantiles."
        )
    if teacher[:-1] != student[:-1]:
        return ValueError(
            f"teacher and student disagree on the batch: {shapes}; store the teacher's values one row a sample."
        )
    return ValueError(
        f"teacher and student disagree on the number of actions: {shapes}; build both from the same action spec."
    )
