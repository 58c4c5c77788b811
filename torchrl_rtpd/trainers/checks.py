"""Work of the hook that is due now and then: look for dormant units, recycle them, measure drift.

All stand behind one protocol, :class:`Check`: ``due`` says when, ``run`` does it, ``log`` tells. ``B`` is the batch,
``A`` the number of actions.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_rtpd import functional as RF
from torchrl_rtpd.collectors.policy import TEACHER
from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.networks.dormancy import dormant_share
from torchrl_rtpd.networks.recycling import UnitRecycler, check_recyclable
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.trainers.student import Student

__all__ = [
    "Check",
    "DormancyCheck",
    "DriftCheck",
    "RecyclingCheck",
    "agreement_by_visitor",
    "check_distinct",
    "refuse_shared_parts",
    "teacher_drift",
]

Students = Mapping[str, Student]


class Check(ABC):
    """Work that :class:`~torchrl_rtpd.trainers.RealTimeDistillTrainer` does now and then, after an update.

    One instance serves one hook. It may change students, but neither the teacher nor the global random stream.
    """

    def before_first_update(self, students: Students, batch: TensorDictBase) -> None:  # noqa: B027, most need nothing
        """Look at the first minibatch ``[B]``, before anything has learned from it, and refuse what cannot work."""

    @abstractmethod
    def due(self, updates: int) -> bool:
        """Return True if :meth:`run` is to be called after this many minibatches."""

    @abstractmethod
    def run(self, students: Students, sub_batch: TensorDictBase, batch: TensorDictBase, updates: int) -> None:
        """Do the work, after students have learned from their ``updates``-th minibatch.

        Args:
            students: by name.
            sub_batch: the minibatch ``[B]`` as sampled. Not changed.
            batch: the same with the teacher's values of now. Not changed.
            updates: minibatches so far.
        """

    def log(self, students: Students) -> dict[str, float]:
        """Return metrics since the last log, by name such as ``"<student>/dormant"``; called once a batch."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the memory of the check. No other check of a hook may use its keys."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # noqa: B027, most remember nothing
        """Restore what :meth:`state_dict` returned; ``state_dict`` may hold keys of other checks."""


def _check_interval(every_updates: int) -> int:
    check_integers(1, "leave the check out to never run it", every_updates=every_updates)
    return every_updates


def check_distinct(checks: Sequence[Check]) -> None:
    """Refuse checks of which two would save their state under one key; a hook calls this at construction.

    Raises:
        TypeError: something that is no check.
        ValueError: two checks of a kind.
    """
    owners: dict[str, Check] = {}
    for check in checks:
        if not isinstance(check, Check):
            raise TypeError(
                f"checks must be of class Check: got {type(check).__name__}; a UnitRecycler goes into a RecyclingCheck."
            )
        for key in check.state_dict():
            if owners.setdefault(key, check) is not check:
                names = f"{type(owners[key]).__name__} and {type(check).__name__}"
                raise ValueError(f"two checks save their state under {key!r}: got {names}; keep one of them.")


def refuse_shared_parts(parts: Sequence[object | None], others: Sequence[object | None]) -> None:
    """Refuse checks, or a copy of the teacher, of one hook that are another hook's as well.

    Raises:
        ValueError: such a part, which has a state of its own.
    """
    shared = [part for part in parts if part is not None and part in others]
    if shared:
        raise ValueError(
            f"a {type(shared[0]).__name__} serves one hook: got it in two hooks of one trainer; build one for each."
        )


class DormancyCheck(Check):
    """Measure dormant units, at the first minibatch and then at intervals, and warn once of a student that is dying.

    Logged is the last measured ``<student>/dormant``; see :func:`~torchrl_rtpd.networks.dormant_share`. Students
    without ReLU layers are passed over.

    Args:
        every_updates: minibatches between two measurements, one forward pass of each student.

    Keyword Args:
        warning: share of dormant units, in a student's worst layer, above which it is reported, once.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, every_updates: int = 500, *, warning: float = 0.9) -> None:
        if not 0 <= warning <= 1:
            raise ValueError(f"warning must be a share within 0 and 1: got {warning}; 1 never warns.")
        self.every_updates = _check_interval(every_updates)
        self.warning = warning
        self._shares: dict[str, float] | None = None  # not measured yet
        self._warned: set[str] = set()

    def due(self, updates: int) -> bool:
        """Return True at intervals, and at once: a stepper must return the same metrics at every update."""
        return self._shares is None or updates % self.every_updates == 0

    def run(self, students: Students, sub_batch: TensorDictBase, batch: TensorDictBase, updates: int) -> None:
        """Measure every student."""
        self._shares = {}
        for name, student in students.items():
            try:
                share = dormant_share(student.loss.student_network, batch)
            except ValueError:  # no ReLU layer: nothing to measure
                continue
            self._shares[name] = share
            if share > self.warning and name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"{share:.0%} of the units in a layer of student {name!r} are dormant after {updates} updates "
                    f"(warned above {self.warning:.0%}): it may be dying; lower its learning rate, raise "
                    "Adam's eps to 1e-5, use equal temperatures of about 0.1, clip its gradient or keep the TD term.",
                    stacklevel=2,
                )

    def log(self, students: Students) -> dict[str, float]:
        """Return the last measured shares."""
        return {f"{name}/dormant": share for name, share in (self._shares or {}).items() if name in students}

    def state_dict(self) -> dict[str, Any]:
        """Return the last shares, and which students were reported."""
        return {"dormant": self._shares, "warned": sorted(self._warned)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._shares = state_dict.get("dormant")
        self._warned = set(state_dict.get("warned", ()))


class RecyclingCheck(Check):
    """Give dormant units of every student a new start.

    Logged is the number of units since the last log, ``<student>/recycled``.

    Args:
        recycler: says when, and does it.
    """

    def __init__(self, recycler: UnitRecycler) -> None:
        self.recycler = recycler
        self._units: dict[str, int] = {}  # since the last log

    def before_first_update(self, students: Students, batch: TensorDictBase) -> None:
        """Refuse students without layers that can be recycled, by a ValueError."""
        for name, student in students.items():
            try:
                check_recyclable(student.loss.student_network, batch)
            except ValueError as error:
                raise ValueError(f"the units of student {name!r} cannot be recycled: {error}") from error

    def due(self, updates: int) -> bool:
        """Return True when the recycler says so."""
        return self.recycler.due(updates)

    def run(self, students: Students, sub_batch: TensorDictBase, batch: TensorDictBase, updates: int) -> None:
        """Recycle, and count."""
        for name, student in students.items():
            units = self.recycler(student.loss.student_network, batch, student.optimizer, updates=updates)
            self._units[name] = self._units.get(name, 0) + sum(units.values())

    def log(self, students: Students) -> dict[str, float]:
        """Return the units recycled since the last call."""
        return {f"{name}/recycled": self._units.pop(name, 0) for name in students}


class DriftCheck(Check):
    """Measure how far the teacher has moved since the data was collected, and where students agree with it.

    Logged are the last measured results of :func:`teacher_drift` and :func:`agreement_by_visitor`, as far as the data
    allow: the first needs a collector with ``record=True``, the second one in which students act.

    Args:
        every_updates: minibatches between two measurements, one forward pass of each student.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, every_updates: int) -> None:
        self.every_updates = _check_interval(every_updates)
        self._found: dict[str, float] = {}

    def due(self, updates: int) -> bool:
        """Return True at intervals."""
        return updates % self.every_updates == 0

    @torch.no_grad()
    def run(self, students: Students, sub_batch: TensorDictBase, batch: TensorDictBase, updates: int) -> None:
        """Measure; students that do not compare action values, or have another teacher, are passed over."""
        found: dict[str, float] = {}
        for name, student in students.items():
            loss = student.loss
            if not isinstance(loss, DistillationLoss) or student.own_teacher:
                continue
            key = loss.tensor_keys.teacher_action_value
            recorded, now, acted_by = sub_batch.get(key, None), batch.get(key, None), sub_batch.get("acted_by", None)
            if now is None:
                continue
            if recorded is not None and recorded is not now and "teacher/drift" not in found:
                drift = teacher_drift(recorded, now, loss.teacher_temperature)
                found.update((f"teacher/{measure}", value) for measure, value in drift.items())
            if acted_by is not None:
                agreement = agreement_by_visitor(now, loss.student_q_values(batch), acted_by)
                found.update((f"{name}/{measure}", value) for measure, value in agreement.items())
        self._found = found

    def log(self, students: Students) -> dict[str, float]:
        """Return the last measurements."""
        return dict(self._found)

    def state_dict(self) -> dict[str, Any]:
        """Return the last measurements."""
        return {"drift": dict(self._found)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._found = dict(state_dict.get("drift", {}))


def teacher_drift(recorded: Tensor, now: Tensor, temperature: Tensor | float) -> dict[str, float]:
    """Return how far a teacher has moved since it collected these states.

    Args:
        recorded: its action values at collection ``[B, A]``, as a collector with ``record=True`` stores them.
        now: its action values for the same states ``[B, A]``.
        temperature: of both policies.

    Returns:
        ``drift``, the mean KL(then || now) in nats, and ``kept``, the share of states with the same greedy action.

    Examples:
        >>> values = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> teacher_drift(values, values, 0.1)
        {'drift': 0.0, 'kept': 1.0}
    """
    then_log_probs, now_log_probs = (RF.policy_log_probs(values, temperature) for values in (recorded, now))
    return {
        "drift": RF.forward_kl(then_log_probs, now_log_probs).mean().item(),
        "kept": RF.greedy_agreement(recorded, now).mean().item(),
    }


def agreement_by_visitor(teacher: Tensor, student: Tensor, acted_by: Tensor) -> dict[str, float]:
    """Return greedy agreement on states in which the teacher acted, and on those in which a student did.

    Imitation learned on the teacher's states can be worthless on the student's own, to which its mistakes lead
    (Ross et al. 2011, https://arxiv.org/abs/1011.0686).

    Args:
        teacher: action values ``[B, A]``.
        student: action values ``[B, A]``.
        acted_by: the network that acted ``[B]``, as :class:`~torchrl_rtpd.collectors.TeacherStudentPolicy` writes it.
            Random steps count for neither.

    Returns:
        ``agreement_on_teacher_states`` and ``agreement_on_student_states``; one without states is left out.

    Examples:
        >>> values = torch.eye(3)
        >>> agreement_by_visitor(values, values.roll(1, 0), torch.tensor([1, 1, 0]))
        {'agreement_on_teacher_states': 0.0}
    """
    agrees = RF.greedy_agreement(teacher, student).float()
    groups = {"teacher": acted_by == TEACHER, "student": acted_by > TEACHER}
    return {
        f"agreement_on_{visitor}_states": agrees[rows].mean().item() for visitor, rows in groups.items() if rows.any()
    }
