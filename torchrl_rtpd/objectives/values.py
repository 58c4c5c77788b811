"""Action values as networks and batches hold them: their keys, their meaning, and checks that two fit each other.

``B`` is the batch, ``A`` the number of actions, ``N`` that of choices in dimensions of their own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules import DistributionalQValueActor

from torchrl_rtpd import functional as RF
from torchrl_rtpd.functional.checks import check_integers, lies_within
from torchrl_rtpd.networks.choices import declared_actions, declared_var_nums
from torchrl_rtpd.networks.keys import VALUE_NAMES, last_part
from torchrl_rtpd.networks.mixture import TeacherMixture

__all__ = [
    "Distributional",
    "NotGiven",
    "ValuePair",
    "WholeActions",
    "agreed_var_nums",
    "as_logits",
    "check_mask",
    "check_mixture",
    "check_same_actions",
    "mixtures_in",
    "output_key",
    "shape_error",
    "support_tensor",
    "warn_of_policies",
    "warn_of_stored",
]


class NotGiven(float):
    """A number that is the default of an argument, and not the user's."""


class ValuePair(NamedTuple):
    """Values of teacher and student for a batch.

    Attributes:
        teacher: action values ``[*B, A]``.
        student: likewise.
        mask: allowed actions, boolean ``[*B, A]``.
        var_nums: actions of each choice, if there are several.
    """

    teacher: Tensor
    student: Tensor
    mask: Tensor | None
    var_nums: tuple[int, ...] | None


class WholeActions:
    """Numbers of whole actions ``[*B]`` from those of their choices ``[*B, N]``, such as of several agents.

    A batch without dimensions of its own, as plain tensors come, has no choices but those of ``var_nums``.
    """

    def __init__(self, batch_dims: int, ndim: int) -> None:
        self._dims = tuple(range(batch_dims, ndim)) if batch_dims else ()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the choices."""
        return values.sum(self._dims) if self._dims else values

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the choices."""
        return values.mean(self._dims) if self._dims else values

    def all(self, values: Tensor) -> Tensor:
        """Return 1 where all choices are 1, and otherwise 0."""
        return values.amin(self._dims) if self._dims else values


def check_same_actions(teacher_network: nn.Module | None, student_network: nn.Module) -> None:
    """Refuse networks whose specs declare different numbers of actions."""
    counts = [declared_actions(network) for network in (teacher_network, student_network)]
    if None not in counts and counts[0] != counts[1]:
        raise ValueError(
            f"teacher and student disagree on the number of actions: {counts[0]} and {counts[1]}; "
            "build both from the same action spec."
        )


def agreed_var_nums(
    teacher_network: nn.Module | None, student_network: nn.Module, given: Sequence[int] | int | None
) -> tuple[int, ...] | int | None:
    """Return the actions of each choice, as the user or the networks say, or refuse networks that disagree."""
    found = {
        role: declared_var_nums(network)
        for role, network in (("teacher", teacher_network), ("student", student_network))
        if network is not None
    }
    if isinstance(given, int):
        check_integers(1, "the actions of each choice", var_nums=given)
        return given
    if given is not None:
        if not given:
            raise ValueError("var_nums must be numbers of actions, one a choice: got none; None is a single choice.")
        check_integers(1, "one a choice", **{f"var_nums[{place}]": number for place, number in enumerate(given)})
        return tuple(given)
    known = {role: var_nums for role, var_nums in found.items() if var_nums is not None}
    if len(set(known.values())) > 1 and not _same_choices(*known.values()):
        raise ValueError(
            f"teacher and student disagree on the choices of an action: {known['teacher']} and {known['student']}; "
            "build both from the same action spec."
        )
    return next(iter(known.values()), None)


def _same_choices(one: Sequence[int] | int, other: Sequence[int] | int) -> bool:
    """True if a number that all choices have stands beside as many of them as there are, each with that number."""
    numbers = [{each} if isinstance(each, int) else set(each) for each in (one, other)]
    return isinstance(one, int) != isinstance(other, int) and numbers[0] == numbers[1]


class Distributional:
    """A teacher's distribution of returns and the action values that it has.

    Args:
        network: the teacher's, whose support is read wherever it lies by now.
        kind: ``"quantiles"``, ``"auto"``, which finds the support of a network, or None.
    """

    def __init__(self, network: nn.Module | None, kind: str | None) -> None:
        if kind not in ("auto", "quantiles", None):
            raise ValueError(f"teacher_support must be a tensor, quantiles or auto: got {kind!r}.")
        self._quantiles = kind == "quantiles"
        modules = () if network is None or kind != "auto" else network.modules()
        self._actor = next((module for module in modules if isinstance(module, DistributionalQValueActor)), None)

    def expected(self, values: Tensor, support: Tensor | None) -> Tensor:
        """Return action values ``[*B, A]`` of outputs ``[*B, N, A]``; without a support these stay as they are.

        Args:
            values: log-probabilities of the returns in ``support``, or quantiles.
            support: returns ``[N]``; None is the network's own.
        """
        if self._quantiles:
            return RF.quantile_q_values(values)
        if support is None and self._actor is not None:
            support = self._actor.support
        return values if support is None else RF.categorical_q_values(values, support)

    def __deepcopy__(self, memo: dict) -> Distributional:
        return self  # as the teacher


def support_tensor(support: Tensor | Sequence[float] | str | None, device: torch.device | None) -> Tensor | None:
    """Return the returns of the atoms ``[N]`` in float32, None for None."""
    if support is None:
        return None
    support = torch.as_tensor(support, dtype=torch.float32, device=device)
    if support.ndim != 1:
        raise ValueError(
            f"teacher_support must be the returns of the atoms, [N]: got {list(support.shape)}; pass for example "
            "torch.linspace(-10.0, 10.0, 51)."
        )
    return support


def output_key(network: TensorDictModule, *keys: NestedKey) -> NestedKey:
    """Return where a network writes its values: under one of ``keys``, or a usual name of values or logits."""
    out_keys = network.out_keys
    for name in (*keys, *VALUE_NAMES):
        if name in out_keys:
            return name
    # Those of several agents lie in a tensordict of their group.
    grouped = (key for name in VALUE_NAMES for key in out_keys if last_part(key) == name)
    return next(grouped, "action_value")


def warn_of_stored(key: NestedKey, student_key: NestedKey) -> bool:
    """Warn if the teacher's values in a batch are what the acting policy left in a group of agents; return if so."""
    if key != student_key:
        return False
    warnings.warn(
        f"the teacher's values are read from {key!r}, where the student's network writes its own: those in the batch "
        "are what the acting policy stored when the data was collected. Pass teacher_network to the loss, or store the "
        "teacher's values under another key.",
        stacklevel=2,
    )
    return True


def warn_of_policies(key: NestedKey, student_key: NestedKey, temperature: Tensor) -> None:
    """Warn of two policies, as the names of their outputs say, at a temperature for action values."""
    if all(last_part(own) in ("logits", "probs") for own in (key, student_key)):
        warnings.warn(
            f"teacher and student are policies, which write {key!r} and {student_key!r}, and teacher_temperature is "
            f"the default for action values, {temperature.item():.4g}: the student is pulled to the teacher's most "
            "likely action and not to its policy. Pass teacher_temperature=1.0, or this one if that is the purpose.",
            stacklevel=2,
        )


def as_logits(values: Tensor, key: NestedKey, role: str) -> Tensor:
    """Return values or logits as they are, and probabilities as logits; ``role`` is for messages."""
    if not values.is_floating_point():
        raise TypeError(
            f"the {role}'s values must be floating point: {key!r} is {values.dtype}; store action values or logits, "
            "not actions."
        )
    if last_part(key) == "probs":
        return values.clamp_min(torch.finfo(values.dtype).tiny).log()  # finite, also in the gradient
    return values


def check_mask(mask: Tensor | None, q_values: Tensor, key: NestedKey) -> None:
    """Refuse an action mask that does not fit values ``[*B, A]``; ``key`` is its name in messages."""
    if mask is not None and (mask.dtype is not torch.bool or mask.shape != q_values.shape):
        error = TypeError if mask.dtype is not torch.bool else ValueError
        raise error(
            f"the action mask must be bool {list(q_values.shape)}, True where allowed: {key!r} is {mask.dtype} "
            f"{list(mask.shape)}; build it from the same action spec, or name another entry with "
            "set_keys(action_mask=...)."
        )


def check_mixture(teacher_network: nn.Module | None, temperature: float | str) -> None:
    """Refuse another temperature than that of a mixture of teachers, which would be softened a second time."""
    for mixture in mixtures_in(teacher_network):
        if not lies_within(temperature, "(0, inf)") or not math.isclose(
            float(temperature), mixture.temperature, rel_tol=1e-6
        ):
            raise ValueError(
                f"teacher_temperature must be that of the TeacherMixture, {mixture.temperature}: got {temperature!r}; "
                "pass both the same, and give the student a temperature of its own by student_temperature."
            )


def mixtures_in(network: nn.Module | None) -> list[TeacherMixture]:
    """Return the mixtures of teachers that a network consists of or holds."""
    return [] if network is None else [module for module in network.modules() if isinstance(module, TeacherMixture)]


def shape_error(teacher: torch.Size, student: torch.Size) -> ValueError:
    """Return the error for values of different shapes, which names the dimension they disagree on."""
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
