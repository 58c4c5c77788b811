"""Distillation between continuous policies: Gaussian, tanh-Gaussian and deterministic.

``B`` is the batch, ``D`` the number of action dimensions. The maths is that of
:mod:`torchrl_rtpd.functional.gaussian`; here the policies are found in TorchRL's actors, run without sampling and
compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.distributions import Normal
from torchrl.modules import Delta, IndependentNormal, TanhDelta, TanhNormal

from torchrl_rtpd.functional import gaussian as RD
from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.networks.keys import last_part, read
from torchrl_rtpd.objectives.base import PolicyDistillationLoss

__all__ = ["CONTINUOUS_DIVERGENCES", "ContinuousDistillationLoss"]

CONTINUOUS_DIVERGENCES = ("forward_kl", "reverse_kl", "mse", "nll")
"""Names accepted by the ``divergence`` argument."""

_OUT_KEYS = ["loss_distill", "kl_to_teacher", "action_distance", "teacher_entropy", "student_entropy"]


class ContinuousDistillationLoss(PolicyDistillationLoss):
    r"""Divergence between a teacher's continuous policy and a student's.

    For the policies of SAC, PPO, TD3 and their like: TorchRL actors with ``Normal``, ``IndependentNormal`` or
    ``TanhNormal`` (with its bounds, ``tanh_loc`` and ``upscale``), deterministic ones (``Delta``, ``TanhDelta``), and
    modules that write ``loc`` and ``scale``, or only ``action``. Temperatures do not apply: a Gaussian carries its own
    sharpness. The input is never written to, except a priority under a key set for it.

    ``"forward_kl"`` is :math:`KL(p_T \| p_S)` (Eq. 1 of Sun & Fazli 2019, https://arxiv.org/abs/1912.12630, with an
    integral for the sum) and ``"reverse_kl"`` :math:`KL(p_S \| p_T)` (Eq. 6), summed over action dimensions. Both are
    exact between Gaussians, and between tanh-Gaussians of equal bounds, whose tanh drops out. Of a tanh-Gaussian
    against a Gaussian, or one of wider bounds, they are Monte-Carlo estimates
    (:func:`~torchrl_rtpd.functional.gaussian.sampled_kl`: unbiased, its gradient too, with a variance that falls as
    1 / ``num_samples``). The other way round the KL is infinite, and refused.

    ``"mse"`` is the squared distance of the deterministic actions, ``"nll"`` the negative log-likelihood of the
    teacher's deterministic action under the student. They are what a deterministic teacher (TD3) leaves: it has no
    density, and a KL to a Gaussian of some tiny width would only measure that width. ``"nll"`` has no lower limit as
    the student's scale shrinks, so give such a student a smallest scale. ``"mse"`` does not train a scale at all.

    Args:
        student_network (TensorDictModule): the policy to train. A deterministic one allows ``"mse"`` only.
        teacher_network (TensorDictModule, optional): run without gradient, without sampling and in eval mode when the
            batch holds no teacher values. It is not part of ``parameters()``, ``state_dict()``, ``to()`` or
            ``deepcopy``: it stays whose it is.

    Keyword Args:
        divergence (str, optional): one of ``"forward_kl"``, ``"reverse_kl"``, ``"mse"``, ``"nll"``.
            Default: ``"forward_kl"``.
        num_samples (int, optional): samples of an estimated KL. Default: 16, since an estimate over a batch of 128
            then averages 2048; no source.
        seed (int, optional): of the estimate's noise, which has a generator of its own, saved in ``state_dict()``; the
            global one is never drawn from. Default: 0.
        reduction (str, optional): ``"none"`` | ``"mean"`` | ``"sum"``. Default: ``"mean"``.
        use_prioritized_weights (bool or "auto", optional): weight the loss by the batch's importance weights;
            ``"auto"`` if it holds any. Default: ``"auto"``.
        burn_in (int, optional): for rows of recurrent policies; see :class:`.DistillationLoss`. Default: 0.

    Keys read: the student's inputs; the teacher's values as its network writes them, ``("teacher", "loc")`` and
    ``("teacher", "scale")`` ``[*B, D]``, or of a deterministic teacher ``("teacher", "action")`` ``[*B, D]``, and if
    absent the teacher's inputs; ``"priority_weight"`` ``[*B]`` if present. A side whose distribution no TorchRL actor
    tells (stored values without a network, modules that just write ``loc`` and ``scale``) has that of the other side.

    Keys written, all scalar unless ``reduction="none"``: ``loss_distill``; detached ``kl_to_teacher`` (the forward KL
    in nats, whatever the divergence), ``action_distance`` (Euclidean, between the deterministic actions, in their
    units), ``teacher_entropy`` and ``student_entropy`` (nats; of tanh-Gaussians the entropy before the tanh), which
    are plain means also where the loss is weighted or summed. Undefined metrics are left out, also of ``out_keys``: a
    deterministic side has no entropy and no KL, and an infinite KL is not reported. Without a teacher network,
    ``"mse"`` and ``"nll"`` know the teacher's action only.

    Raises:
        ValueError: an unknown divergence, one that the policies do not have, a distribution of another kind, policies
            that disagree on the number of action dimensions; a student whose actions are not finite or whose scales not
            positive, which is looked for at the 1st, 2nd, 4th, 8th ... call, since looking waits for the device.
        RuntimeError: at a call, no teacher values and no teacher network.
        KeyError: at a call, a key that the batch or a network's output lacks.

    Examples:
        >>> from tensordict import TensorDict
        >>> student = TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["loc"])
        >>> scale = TensorDictModule(torch.ones_like, in_keys=["loc"], out_keys=["scale"])
        >>> from tensordict.nn import TensorDictSequential
        >>> loss = ContinuousDistillationLoss(TensorDictSequential(student, scale))
        >>> batch = TensorDict({"observation": torch.zeros(5, 4), "teacher": {
        ...     "loc": torch.zeros(5, 2), "scale": torch.ones(5, 2)}}, [5])
        >>> _ = loss.student_network_params.zero_()
        >>> loss(batch)["loss_distill"]
        tensor(0., grad_fn=<MeanBackward0>)
    """

    @dataclass
    class _AcceptedKeys(PolicyDistillationLoss._AcceptedKeys):
        """Keys that ``set_keys`` can change, in addition to those of :class:`PolicyDistillationLoss`.

        Attributes:
            teacher_loc (NestedKey): the teacher's means, read. Defaults to ``("teacher", "loc")``.
            teacher_scale (NestedKey): the teacher's standard deviations, read. Defaults to ``("teacher", "scale")``.
            teacher_action (NestedKey): a deterministic teacher's action, read. Defaults to ``("teacher", "action")``.
                A teacher that is a TorchRL actor writes these under its own keys, another under the last part of these.
            student_loc (NestedKey): where the student network writes its means. Defaults to ``"loc"``; set by a TorchRL
                actor.
            student_scale (NestedKey): where it writes its standard deviations. Defaults to ``"scale"``; likewise.
            student_action (NestedKey): where a deterministic student writes its action. Defaults to ``"action"``;
                likewise.
        """

        teacher_loc: NestedKey = ("teacher", "loc")
        teacher_scale: NestedKey = ("teacher", "scale")
        teacher_action: NestedKey = ("teacher", "action")
        student_loc: NestedKey = "loc"
        student_scale: NestedKey = "scale"
        student_action: NestedKey = "action"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = _OUT_KEYS

    def __init__(
        self,
        student_network: TensorDictModule,
        teacher_network: TensorDictModule | None = None,
        *,
        divergence: Literal["forward_kl", "reverse_kl", "mse", "nll"] = "forward_kl",
        num_samples: int = 16,
        seed: int = 0,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
        burn_in: int = 0,
    ) -> None:
        if divergence not in CONTINUOUS_DIVERGENCES:
            raise ValueError(f"divergence must be one of {', '.join(CONTINUOUS_DIVERGENCES)}: got {divergence!r}.")
        student = _head_of(student_network, "student")
        if teacher_network is not None:
            teacher = _head_of(teacher_network, "teacher")
            teacher_network = _unsampled(teacher_network, teacher)
        else:  # the batch must hold what the divergence needs
            teacher = _Head(deterministic=divergence in ("mse", "nll"))
        super().__init__(
            student_network,
            teacher_network,
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
            burn_in=burn_in,
        )
        self.divergence = divergence
        check_integers(1, "16 suits batches of 128", num_samples=num_samples)
        self.num_samples = num_samples
        self._heads = {"teacher": _matched(teacher, student), "student": _matched(student, teacher)}
        self._kl_forms = _kl_forms(self._heads["teacher"], self._heads["student"])
        _check_divergence(divergence, self._heads, self._kl_forms)
        self.out_keys = [key for key in _OUT_KEYS if self._is_defined(key)]
        if student.keys:
            self.set_keys(**{f"student_{name}": key for name, key in student.keys.items()})
        for role, head in self._heads.items():  # buffers, to move along with the loss; not its to save
            self.register_buffer(f"_{role}_bounds", head.bounds, persistent=False)
        if "sampled" in self._kl_forms.values():
            self.register_buffer("noise_state", torch.Generator().manual_seed(seed).get_state())

    def _is_defined(self, key: str) -> bool:
        if key == "kl_to_teacher":
            return self._kl_forms["forward_kl"] in ("exact", "sampled")
        return not (key.endswith("_entropy") and self._heads[key.removesuffix("_entropy")].deterministic)

    # Keys

    def stored_keys(self) -> list[NestedKey]:
        """Return the keys of a batch from which a teacher's outputs are taken if it holds them."""
        return list(self._keys("teacher").values())

    def _keys(self, role: str) -> dict[str, NestedKey]:
        """Keys of the parts of a side's distribution, by name: an action, or loc and scale."""
        parts = ("action",) if self._heads[role].deterministic else ("loc", "scale")
        return {part: getattr(self.tensor_keys, f"{role}_{part}") for part in parts}

    # Loss

    def _terms(self, tensordict: TensorDictBase, metrics: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        student, student_action = self._student_policy(tensordict)
        teacher, teacher_action = self._teacher_policy(tensordict)
        if teacher_action.shape != student_action.shape:
            raise ValueError(
                "teacher and student disagree on the action dimensions: "
                f"{list(teacher_action.shape)} and {list(student_action.shape)}; build both from the same action spec."
            )
        if self._is_check_due():
            self._refuse(~student_action.isfinite().all(-1), tensordict, "actions must be finite")
            if student is not None:
                sound = student.scale.isfinite() & (student.scale > 0)
                self._refuse(~sound.all(-1), tensordict, "scales must be finite and positive")
        if self.divergence == "mse" or student is None:  # a deterministic student has no other
            per_sample = RD.action_mse(teacher_action, student_action)
        elif self.divergence == "nll" or teacher is None:
            per_sample = RD.action_nll(teacher_action, student)
        else:
            per_sample = self._kl(self.divergence, teacher, student)
        self._write_priority(tensordict, per_sample)
        measured: dict[str, Tensor] = {}
        if not metrics and self._kl_forms["forward_kl"] != "sampled":  # an estimate draws, asked for or not
            return {"loss_distill": per_sample}, measured
        with torch.no_grad():
            if teacher is not None and student is not None and self._is_defined("kl_to_teacher"):
                known = self.divergence == "forward_kl"
                measured["kl_to_teacher"] = per_sample.detach() if known else self._kl("forward_kl", teacher, student)
            measured["action_distance"] = RD.action_distance(teacher_action, student_action)
            if teacher is not None:
                measured["teacher_entropy"] = RD.base_entropy(teacher)
            if student is not None:
                measured["student_entropy"] = RD.base_entropy(student)
        return {"loss_distill": per_sample}, measured

    def _kl(self, direction: str, teacher: RD.GaussianPolicy, student: RD.GaussianPolicy) -> Tensor:
        if self._kl_forms[direction] == "exact":
            kl = RD.gaussian_forward_kl if direction == "forward_kl" else RD.gaussian_reverse_kl
            return kl(teacher, student)
        first, second = (teacher, student) if direction == "forward_kl" else (student, teacher)
        return RD.sampled_kl(first, second, self._noise(first.loc))

    def _noise(self, loc: Tensor) -> Tensor:
        """Standard normal ``[K, *B, D]``, drawn on the CPU so that every device sees the same."""
        generator = torch.Generator()
        generator.set_state(self.noise_state.cpu())
        noise = torch.randn(self.num_samples, *loc.shape, generator=generator)
        self.noise_state.copy_(generator.get_state())
        return noise.to(loc)

    def _student_policy(self, tensordict: TensorDictBase) -> tuple[RD.GaussianPolicy | None, Tensor]:
        # A fresh tensordict: samples may hold a "loc" of their own, neither to be read nor overwritten.
        inputs = self._student_part.inputs(tensordict, "student")
        with self._student() as network:
            outputs = _unsampled(network, self._heads["student"])(inputs)
        return self._policy_in(outputs, self._keys("student"), "student")

    def _teacher_policy(self, tensordict: TensorDictBase) -> tuple[RD.GaussianPolicy | None, Tensor]:
        keys = self._keys("teacher")
        outputs = tensordict
        if any(tensordict.get(key, None) is None for key in keys.values()):
            if self._teacher is None:
                raise RuntimeError(
                    f"there are no teacher values to distil: the batch lacks {list(keys.values())} and the loss has no "
                    "teacher_network; pass teacher_network to the loss, or store the values under those keys "
                    f"(set_keys({', '.join(f'teacher_{part}=...' for part in keys)}))."
                )
            network, written = self._teacher.network, self._heads["teacher"].keys
            inputs = self._teacher.part.inputs(tensordict, "teacher")
            with self._teacher.evaluating():
                outputs = network(inputs)
            for part, key in keys.items():
                last = last_part(key)
                keys[part] = written.get(part, last if last in network.out_keys else part)
        policy, action = self._policy_in(outputs, keys, "teacher")
        return (None if policy is None else policy.detach()), action.detach()

    def _policy_in(
        self, outputs: TensorDictBase, keys: dict[str, NestedKey], role: str
    ) -> tuple[RD.GaussianPolicy | None, Tensor]:
        """A side's policy, None if it has no density, and its deterministic action ``[*B, D]``."""
        values = {part: read(outputs, key, role, f"{role}_{part}") for part, key in keys.items()}
        head, bounds = self._heads[role], getattr(self, f"_{role}_bounds")
        if head.deterministic:
            return None, values["action"]
        loc, scale = values["loc"], values["scale"]
        if scale.shape != loc.shape:
            if scale.shape != (*loc.shape[:-1], 1):  # one scale for all dimensions
                raise ValueError(
                    f"the {role}'s scale must fit its loc: got {list(scale.shape)} and {list(loc.shape)}; "
                    "write both as [*B, D]."
                )
            scale = scale.expand_as(loc)
        policy = head.policy(loc, scale, bounds)
        return policy, RD.deterministic_action(policy)


@dataclass(frozen=True)
class _Head:
    """Distribution of one side, as far as it is known before any batch.

    Attributes:
        deterministic: it writes an action and has no density.
        keys: where a TorchRL actor writes ``"loc"`` and ``"scale"``, or ``"action"``; empty for other modules.
        bounds: lowest and highest action, ``[2]`` or ``[2, D]``; None if unbounded.
        upscale: means are taken to ``upscale * tanh(loc / upscale)`` (``tanh_loc=True``); None if they are not.
    """

    deterministic: bool = False
    keys: dict[str, NestedKey] = field(default_factory=dict)
    bounds: Tensor | None = None
    upscale: float | None = None

    def policy(self, loc: Tensor, scale: Tensor, bounds: Tensor | None) -> RD.GaussianPolicy:
        """The policy of a network's outputs; ``bounds`` are this head's, on the device to which they have moved."""
        pair = None if bounds is None else (bounds[0], bounds[1])
        if self.upscale is not None:
            loc = self.upscale * (loc / self.upscale).tanh()
            if bounds is not None:
                loc = loc + bounds.mean(0)  # as TanhNormal has it
        return RD.GaussianPolicy(loc, scale, pair)


def _head_of(network: nn.Module, role: str) -> _Head:
    if not isinstance(network, (TensorDictModuleBase, TensorDictModule)):
        raise TypeError(
            f"the {role}_network must be a TensorDictModule: got {type(network).__name__}; wrap it, with out_keys loc "
            "and scale, or action."
        )
    samplers = [module for module in network.modules() if isinstance(module, ProbabilisticTensorDictModule)]
    if not samplers:
        written = {last_part(key) for key in network.out_keys}
        # set_keys may yet name its outputs otherwise, so that missing ones show at the first call.
        return _Head(deterministic="action" in written and not written >= {"loc", "scale"})
    sampler = samplers[-1]
    kind, kwargs = sampler.distribution_class, sampler.distribution_kwargs
    if kind in (Delta, TanhDelta):
        return _Head(deterministic=True, keys={"action": sampler.dist_sample_keys[0]})
    parts = [last_part(key) for key in sampler.dist_keys]
    if kind not in (Normal, IndependentNormal, TanhNormal) or set(parts) != {"loc", "scale"}:
        raise ValueError(
            f"the {role}'s distribution must be Normal, IndependentNormal or TanhNormal of loc and scale, or Delta or "
            f"TanhDelta: got {kind.__name__} of {', '.join(parts)}; distil its deterministic action instead, with a "
            "module that writes it and divergence='mse'."
        )
    keys = dict(zip(parts, sampler.in_keys, strict=True))
    if kind is not TanhNormal:  # IndependentNormal(tanh_loc=True) leaves loc as it is, until it is updated
        return _Head(keys=keys)
    low, high = (torch.as_tensor(kwargs.get(name, default)) for name, default in (("low", -1.0), ("high", 1.0)))
    bounds = torch.stack(torch.broadcast_tensors(low, high)).to(torch.promote_types(low.dtype, torch.float32))
    return _Head(keys=keys, bounds=bounds, upscale=kwargs.get("upscale", 5.0) if kwargs.get("tanh_loc") else None)


def _matched(head: _Head, other: _Head) -> _Head:
    """A side that no actor describes has the distribution of the other."""
    if head.deterministic or head.keys or not other.keys or other.deterministic:
        return head
    return replace(head, bounds=other.bounds, upscale=other.upscale)


def _unsampled(network: TensorDictModule, head: _Head) -> TensorDictModule:
    """The part of a policy that needs no sampling: all but the last module of an actor with a density."""
    part = None if head.deterministic else getattr(network, "det_part", None)
    return network if part is None else part


def _kl_forms(teacher: _Head, student: _Head) -> dict[str, str]:
    """Form in which either KL can be computed: see :func:`~torchrl_rtpd.functional.gaussian.kl_form`."""
    if teacher.deterministic or student.deterministic:
        return {"forward_kl": "undefined", "reverse_kl": "undefined"}
    first, second = (None if head.bounds is None else (head.bounds[0], head.bounds[1]) for head in (teacher, student))
    if first is not None and second is not None and {first[0].ndim, second[0].ndim} == {1}:
        if len(first[0]) != len(second[0]):
            raise ValueError(
                f"teacher and student disagree on the action dimensions: {len(first[0])} and {len(second[0])}; build "
                "both from the same action spec."
            )
    return {"forward_kl": RD.kl_form(first, second), "reverse_kl": RD.kl_form(second, first)}


def _check_divergence(divergence: str, heads: dict[str, _Head], forms: dict[str, str]) -> None:
    for role, allowed in (("teacher", ("mse", "nll")), ("student", ("mse",))):
        if heads[role].deterministic and divergence not in allowed:
            raise ValueError(
                f"a deterministic {role} has no density, so {divergence!r} is not defined: it writes only an action; "
                f"use divergence={' or '.join(map(repr, allowed))}, or let it write loc and scale."
            )
    if forms.get(divergence) != "infinite":
        return
    other = "reverse_kl" if divergence == "forward_kl" else "forward_kl"
    remedies = [repr(name) for name in (other, "mse", "nll") if forms.get(name) != "infinite"]
    supports = [
        "unbounded" if head.bounds is None else f"within {head.bounds.tolist()}"
        for head in (heads["teacher"], heads["student"])
    ]
    raise ValueError(
        f"{divergence!r} is infinite for these policies, one of which takes actions that the other never takes: the "
        f"teacher's are {supports[0]}, the student's {supports[1]}; use {' or '.join(remedies)}, or give both the same "
        "distribution."
    )
