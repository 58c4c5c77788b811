"""Distillation of policies over discrete actions.

``B`` is the batch, ``A`` the number of actions. Divergences are summed over actions and averaged over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_rtpd import functional as RF
from torchrl_rtpd.functional.choices import choice_sizes
from torchrl_rtpd.networks.keys import last_part
from torchrl_rtpd.objectives.base import PolicyDistillationLoss, positive
from torchrl_rtpd.objectives.values import (
    Distributional,
    NotGiven,
    ValuePair,
    WholeActions,
    agreed_var_nums,
    as_logits,
    check_mask,
    check_mixture,
    check_same_actions,
    mixtures_in,
    output_key,
    shape_error,
    support_tensor,
    warn_of_policies,
    warn_of_stored,
)

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
            section 3). That of a :class:`~torchrl_rtpd.networks.TeacherMixture` must be the mixture's own.
        student_temperature (float, optional): temperature of the student; ``None`` is the teacher's. Default: 1.0
            (Rusu et al.).
        teacher_support (Tensor, sequence of float, "quantiles" or "auto", optional): meaning of the teacher's
            outputs ``[*B, N, A]`` if it predicts returns by their distribution: log-probabilities of returns with this
            support ``[N]`` (C51) or ``"quantiles"``; they are reduced to action values. ``"auto"`` finds the support of
            a teacher network that is a :class:`~torchrl.modules.DistributionalQValueActor`. Default: ``"auto"``.
        var_nums (sequence of int or int, optional): actions of each choice, or the number that each has, where an
            action consists of several choices whose values lie side by side. Default: those of a network's
            ``QValueModule``, ``MultiOneHot`` or ``MultiCategorical`` spec, and otherwise a single choice.
        reduction (str, optional): ``"none"`` | ``"mean"`` | ``"sum"``. Default: ``"mean"``.
        use_prioritized_weights (bool or "auto", optional): weight the loss by the batch's importance weights;
            ``"auto"`` if it holds any. Default: ``"auto"``.
        burn_in (int, optional): of each row of a recurrent student's batch, steps that only warm its memory; they have
            neither gradient nor loss (Kapturowski et al. 2019, R2D2). Default: 0.

    Networks may be policies: where ``"action_value"`` is not written, ``"logits"`` or ``"probs"`` are taken, which have
    their own scale, so that temperatures of 1 reproduce the policy; between two policies the default is warned of. Of
    an actor only the part before the choice of the action is run: nothing is drawn. A student whose outputs are not
    finite is an error, which is looked for at the 1st, 2nd, 4th, 8th ... call, never inside ``torch.compile``, since
    looking waits for the device.

    An action may consist of several choices: of different sizes side by side (``var_nums``), or of one size in
    dimensions between the batch and the actions, such as those of several agents, ``[*B, N, A]``. A sample then has one
    divergence, the sum over its choices, and it agrees if all choices do.

    A student with TorchRL's ``LSTMModule`` or ``GRUModule`` learns from rows of consecutive steps ``[*B, T]``, for
    which ``*B`` stands below as well; so does a recurrent teacher that the loss runs. ``"is_init"`` says where games
    begin, at a row's start or within. A row begins with the memory that the batch holds for its first step, such as
    ``"recurrent_state"`` ``[*B, T, L, H]``, and with zeros if it holds none; from there gradients go through time. With
    ``burn_in`` everything that is returned is about the later steps, and the teacher's memory is warmed as well.

    Keys read: the student's inputs; teacher values ``("teacher", "action_value")`` ``[*B, A]``, and if absent the
    teacher's inputs; ``"action_mask"`` bool ``[*B, A]`` and ``"priority_weight"`` ``[*B]`` if present.

    Keys written, all scalar unless ``reduction="none"``: ``loss_distill``; detached ``kl_to_teacher`` (the forward KL
    in nats, whatever the divergence), ``agreement`` (share of equal greedy actions), ``teacher_regret``
    (:func:`~torchrl_rtpd.functional.teacher_regret`), ``teacher_entropy`` and ``student_entropy`` (nats). Metrics are
    plain means also where the loss is weighted or summed.

    Raises:
        TypeError: at a call, values, a mask or actions of the wrong type.
        ValueError: an unknown divergence, a temperature that is not positive or not that of a mixture of teachers,
            networks that disagree on the number of actions; at a call, shapes that do not match, or a student whose
            outputs are not finite.
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

    A student that remembers, on two rows of six steps, of which the first two warm its memory:

        >>> from tensordict.nn import TensorDictSequential
        >>> from torchrl.modules import GRUModule
        >>> memory = GRUModule(input_size=4, hidden_size=8, in_key="observation", out_key="features")
        >>> head = TensorDictModule(nn.Linear(8, 3), in_keys=["features"], out_keys=["action_value"])
        >>> loss = DistillationLoss(TensorDictSequential(memory, head), burn_in=2, reduction="none")
        >>> rows = TensorDict({"observation": torch.zeros(2, 6, 4), "is_init": torch.zeros(2, 6, 1, dtype=torch.bool),
        ...                    ("teacher", "action_value"): torch.zeros(2, 6, 3)}, [2, 6])
        >>> loss(rows)["loss_distill"].shape
        torch.Size([2, 4])
    """

    @dataclass
    class _AcceptedKeys(PolicyDistillationLoss._AcceptedKeys):
        """Keys that ``set_keys`` can change.

        Attributes:
            teacher_action_value (NestedKey): the teacher's action values or logits, read; probabilities if the last
                part is ``"probs"``. Defaults to ``("teacher", "action_value")``. A teacher network writes its own under
                the last part of this key, and otherwise under ``"action_value"``, ``"logits"`` or ``"probs"``.
            student_action_value (NestedKey): where the student network writes its values. Defaults to
                ``"action_value"``, and otherwise to ``"logits"`` or ``"probs"``.
            action_mask (NestedKey): allowed actions, read if present. Defaults to ``"action_mask"``.
            priority_weight (NestedKey): importance weights, read if present. Defaults to ``"priority_weight"``.
            priority (NestedKey): where each sample's detached divergence ``[*B, 1]`` is written into the input.
                Defaults to ``None``: nowhere.
        """

        teacher_action_value: NestedKey = ("teacher", "action_value")
        student_action_value: NestedKey = "action_value"
        action_mask: NestedKey = "action_mask"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_distill", "kl_to_teacher", "agreement", "teacher_regret", "teacher_entropy", "student_entropy"]
    _temperatures = frozenset({"teacher_temperature", "student_temperature", "temperature_floor"})
    _schedulable_buffers = _temperatures

    teacher_support: Tensor | None

    def __init__(
        self,
        student_network: TensorDictModule | nn.Module,
        teacher_network: TensorDictModule | nn.Module | None = None,
        *,
        divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "mse", "huber", "nll"] = "forward_kl",
        teacher_temperature: float | Literal["auto"] = NotGiven(0.01),
        student_temperature: float | None = 1.0,
        teacher_support: Tensor | Sequence[float] | Literal["quantiles", "auto"] | None = "auto",
        var_nums: Sequence[int] | int | None = None,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
        burn_in: int = 0,
    ) -> None:
        super().__init__(
            student_network,
            teacher_network,
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
            burn_in=burn_in,
        )
        if divergence not in DIVERGENCES:
            raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}: got {divergence!r}.")
        self.divergence = divergence
        check_same_actions(teacher_network, student_network)
        self._var_nums = agreed_var_nums(teacher_network, student_network, var_nums)
        if self._var_nums is not None:
            self._told.add("var_nums")
        self._warned_of_stored = False
        self._set_support(teacher_support)
        self._set_temperatures(teacher_temperature, student_temperature)

    def _set_support(self, teacher_support: Tensor | Sequence[float] | str | None) -> None:
        network = None if self._teacher is None else self._teacher.network
        kind = teacher_support if isinstance(teacher_support, str) else None
        support = support_tensor(teacher_support, self._default_device) if kind is None else None
        self._distributional = Distributional(network, kind)
        self.register_buffer("teacher_support", support, persistent=False)  # to move along, not to be saved

    def _set_temperatures(
        self, teacher_temperature: float | Literal["auto"], student_temperature: float | None
    ) -> None:
        self._temperature_given = not isinstance(teacher_temperature, NotGiven)
        check_mixture(self.teacher_network, teacher_temperature)
        self.fixed_temperature = bool(mixtures_in(self.teacher_network))  # no schedule may change it
        self.auto_temperature = isinstance(teacher_temperature, str) and teacher_temperature == "auto"
        if self.auto_temperature:
            teacher_temperature = _AUTO_FLOOR
            # Saved, so that a state of one kind is not loaded into the other.
            self.register_coeff_buffer("temperature_floor", _AUTO_FLOOR, device=self._default_device)
        else:
            teacher_temperature = positive("teacher_temperature", teacher_temperature, "auto")
        if student_temperature is not None:
            student_temperature = positive("student_temperature", student_temperature, "None")
        self.register_coeff_buffer("teacher_temperature", teacher_temperature, device=self._default_device)
        self.register_coeff_buffer("student_temperature", student_temperature, device=self._default_device)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._temperatures and not isinstance(value, Tensor | None):  # a schedule's new value
            value = positive(name, value, "left as it is")
            if name == "teacher_temperature":
                self._temperature_given = True
                check_mixture(self.teacher_network, value)
        super().__setattr__(name, value)

    def stored_keys(self) -> list[NestedKey]:
        """Return the keys of a batch from which a teacher's outputs are taken if it holds them."""
        key = self.tensor_keys.teacher_action_value
        return [] if self._is_written_by_teacher(key) else [key]

    # Loss

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "var_nums": self._var_nums}

    def _take(self, settings: Mapping[str, Any]) -> None:
        super()._take(settings)
        if "var_nums" in settings:
            self._var_nums = settings["var_nums"]

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
        values = ValuePair(teacher_q_values, student_q_values, mask, self.var_nums(student_q_values))
        log_probs = self._log_probs(values, tensordict)
        per_choice = self._divergence(values, *log_probs)
        whole = WholeActions(tensordict.batch_dims, per_choice.ndim)
        per_sample = whole.sum(per_choice)
        if not metrics:
            return per_sample, {}
        with torch.no_grad():
            known = self.divergence == "forward_kl"
            entropies = RF.entropy(torch.stack(log_probs))
            measured = {
                "kl_to_teacher": per_sample.detach() if known else whole.sum(RF.forward_kl(*log_probs)),
                "agreement": whole.all(RF.greedy_agreement(*values)),
                "teacher_regret": whole.mean(RF.teacher_regret(*values)),
                "teacher_entropy": whole.sum(entropies[0]),
                "student_entropy": whole.sum(entropies[1]),
            }
        return per_sample, measured

    def _log_probs(self, values: ValuePair, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[*B, A]`` of the softened policies, the teacher's first."""
        teacher_temperature = self._current_temperature(values, tensordict)
        student_temperature = teacher_temperature if self.student_temperature is None else self.student_temperature
        return (
            RF.policy_log_probs(values.teacher, teacher_temperature, values.mask, values.var_nums),
            RF.policy_log_probs(values.student, student_temperature, values.mask, values.var_nums),
        )

    def _divergence(self, values: ValuePair, teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
        if self.divergence == "nll":
            return RF.greedy_nll(values.teacher, student_log_probs, values.var_nums)
        if self.divergence in ("mse", "huber"):
            distance = RF.q_mse if self.divergence == "mse" else RF.q_huber
            return distance(values.teacher, values.student, values.mask)
        return getattr(RF, self.divergence)(teacher_log_probs, student_log_probs)

    def var_nums(self, q_values: Tensor) -> tuple[int, ...] | None:
        """Return the actions of each choice in values ``[*B, A]``, None for a single choice."""
        return None if self._var_nums is None else choice_sizes(self._var_nums, q_values.shape[-1])

    def student_q_values(
        self, tensordict: TensorDictBase, params: TensorDictParams | None = None, place: str = "batch"
    ) -> Tensor:
        """Return the student's values or logits of a batch.

        Args:
            tensordict: samples ``[*B]`` with the student's inputs. Not changed.
            params: run the network with these, such as ``target_student_network_params``; None is those being trained.
            place: name of ``tensordict`` in messages.

        Returns:
            ``[*B, A]``; logarithms where a network writes ``"probs"``.
        """
        key = self._student_key()
        with self._student(params):
            values = self._student_part(tensordict, key, "student", place)
        return as_logits(values, key, "student")

    def _student_key(self) -> NestedKey:
        """Key under which the student's network writes its values."""
        key = self.tensor_keys.student_action_value
        # A name that was set is meant.
        return output_key(self.student_network, key) if key == self.default_keys.student_action_value else key

    def _teacher_q_values(self, tensordict: TensorDictBase, student_q_values: Tensor, place: str = "batch") -> Tensor:
        key = self.tensor_keys.teacher_action_value
        values = None if self._is_written_by_teacher(key) else tensordict.get(key, None)
        if values is None:
            key, values = self._computed_by_teacher(tensordict, place)
        elif self._is_grouped(key) and not self._warned_of_stored:
            self._warned_of_stored = warn_of_stored(key, self._student_key())
        if not (self._temperature_given or torch.compiler.is_compiling()):
            self._temperature_given = True  # so that it is said once
            if self.divergence not in ("mse", "huber", "nll"):  # which soften no teacher
                warn_of_policies(key, self._student_key(), self.teacher_temperature)
        values = as_logits(values.detach(), key, "teacher")
        if values.ndim == student_q_values.ndim + 1:
            values = self._distributional.expected(values, self.teacher_support)
        if values.shape != student_q_values.shape:
            raise shape_error(values.shape, student_q_values.shape)
        return values

    def _computed_by_teacher(self, tensordict: TensorDictBase, place: str) -> tuple[NestedKey, Tensor]:
        """The values of the teacher's network and the key under which it writes them."""
        key = self.tensor_keys.teacher_action_value
        if self._teacher is None:
            raise RuntimeError(
                f"there are no teacher values to distil: the {place} has no {key!r} and the loss no "
                "teacher_network; pass teacher_network to the loss, or store the values under that key "
                "(set_keys(teacher_action_value=...))."
            )
        key = output_key(self._teacher.network, key, last_part(key))
        with self._teacher.evaluating():
            return key, self._teacher.part(tensordict, key, "teacher", place)

    def _is_written_by_teacher(self, key: NestedKey) -> bool:
        """Return True if a key was set to an output of the teacher's network: in data it may be any policy's."""
        if self._teacher is None or key == self.default_keys.teacher_action_value:
            return False
        return key in self._teacher.network.out_keys

    def _is_grouped(self, key: NestedKey) -> bool:
        """Return True for a key that was set to an entry of a group, such as of several agents."""
        set_by_user = isinstance(key, tuple) and key != self.default_keys.teacher_action_value
        return set_by_user and not torch.compiler.is_compiling()

    def _check_finite(
        self, tensordict: TensorDictBase, teacher_q_values: Tensor, student_q_values: Tensor, mask: Tensor | None
    ) -> None:
        values = student_q_values.detach()
        # Minus infinity is a policy's way to forbid an action; it must then also be the teacher's.
        forbidden = (values == -math.inf) & (teacher_q_values == -math.inf) & (self.divergence not in ("mse", "huber"))
        wrong = ~(values.isfinite() | forbidden)
        wrong = wrong if mask is None else wrong & mask
        self._refuse(wrong.any(-1), tensordict, "outputs must be finite")

    @torch.no_grad()
    def _current_temperature(self, values: ValuePair, tensordict: TensorDictBase) -> Tensor:
        temperature = self.teacher_temperature
        if not self.auto_temperature:
            return temperature
        if self.training:
            spread = RF.value_spread(values.teacher, values.mask, values.var_nums)
            spread = self._reduce_loss(spread, tensordict=tensordict, reduction="mean")
            spread = torch.where(spread.isfinite(), spread, temperature)  # one bad batch must not stay for ever
            temperature.lerp_(spread.to(temperature), 1 - _AUTO_DECAY).clamp_(min=self.temperature_floor)
        return temperature.clone()  # autograd holds it while the next batch moves the buffer
