"""Action values as networks and batches hold them: where they are, what they mean, and whether two fit each other.

``B`` is the batch, ``A`` the number of actions, ``N`` that of choices in dimensions of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.modules import DistributionalQValueActor

from torchrl_rtpd.networks.choices import declared_actions, declared_var_nums
from torchrl_rtpd.networks.keys import VALUE_NAMES, last_part

__all__ = [
    "Distributional",
    "ValuePair",
    "WholeActions",
    "agreed_var_nums",
    "as_logits",
    "check_mask",
    "check_same_actions",
    "output_key",
    "shape_error",
]


class ValuePair(NamedTuple):
    """What teacher and student say of a batch.

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
    teacher_network: nn.Module | None, student_network: nn.Module, given: Sequence[int] | None
) -> tuple[int, ...] | int | None:
    """Return the actions of each choice, as the user or the networks say, or refuse networks that disagree."""
    found = {
        role: declared_var_nums(network)
        for role, network in (("teacher", teacher_network), ("student", student_network))
        if network is not None
    }
    if given is not None:
        if not given or min(given) < 1:
            raise ValueError(f"var_nums must be positive numbers of actions, one a choice: got {list(given)}.")
        return tuple(given)
    known = {role: var_nums for role, var_nums in found.items() if var_nums is not None}
    if len(set(known.values())) > 1:
        raise ValueError(
            f"teacher and student disagree on the choices of an action: {known['teacher']} and {known['student']}; "
            "build both from the same action spec."
        )
    return next(iter(known.values()), None)


class Distributional:
    """The support of a teacher's network that predicts the distribution of returns, wherever it lies by now."""

    def __init__(self, network: nn.Module | None) -> None:
        modules = () if network is None else network.modules()
        self._actor = next((module for module in modules if isinstance(module, DistributionalQValueActor)), None)

    @property
    def support(self) -> Tensor | None:
        """Returns ``[N]`` that the network gives probabilities to, None for one without a distribution."""
        return None if self._actor is None else self._actor.support

    def __deepcopy__(self, memo: dict) -> Distributional:
        return self  # as the teacher


def output_key(network: TensorDictModule, *keys: NestedKey) -> NestedKey:
    """Return where a network writes its values: under one of ``keys``, or a usual name of values or logits."""
    written = [unravel_key(key) for key in network.out_keys]
    named = next((name for name in (*keys, *VALUE_NAMES) if name in written), None)
    # Those of several agents lie in a tensordict of their group.
    grouped = (key for name in VALUE_NAMES for key in written if last_part(key) == name)
    return named or next(grouped, "action_value")


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


def shape_error(teacher: torch.Size, student: torch.Size) -> ValueError:
    """Return the error for values of different shapes, which says what they disagree on."""
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
