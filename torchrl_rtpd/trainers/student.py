"""One student: its loss and optimiser, its target network and schedules, and one update of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_rtpd.functional.checks import check_name
from torchrl_rtpd.networks.memory import next_key
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.schedules import RunState, Schedule, apply_schedules, check_schedules
from torchrl_rtpd.trainers.optimizers import keep_device_options
from torchrl_rtpd.trainers.own_teachers import evaluated, has_own_teacher, trained_keys
from torchrl_rtpd.trainers.targets import step_target, updater_like

__all__ = [
    "OptimizerFactory",
    "Student",
    "UpdaterFactory",
    "build_students",
    "check_dropped",
    "load_states",
    "refuse_foreign_memory",
    "refuse_shared_names",
    "refuse_shared_parameters",
    "states_of",
]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
UpdaterFactory = Callable[[PolicyDistillationLoss], TargetNetUpdater]

# Parts of a saved hook, by what they are called in a student's own state.
_SAVED = {"students": "loss", "optimizers": "optimizer", "target_updaters": "target_updater", "schedules": "schedules"}
_RESERVED = ("teacher",)  # names that metrics, scores and files of the teacher bear


class Student:
    """A network that is taught: it learns, moves its target network, applies its schedules, and has state.

    Args:
        name: under which it is logged and saved.
        loss: holds the network.
        optimizer: builds the optimiser from the loss's parameters.

    Keyword Args:
        target_updater: builds the target updater from the loss. None copies kind and interval of the trainer's own; a
            loss without target parameters gets none.
        schedules: by name of a schedulable buffer; copied.
        clip_norm: the gradient is clipped to this norm; None does not clip.

    Attributes:
        metric_names: names of the metrics that :meth:`learn` last returned.
        own_teacher: True if its loss was given another teacher than the network that the trainer trains; known once
            the student is attached. It then runs that one, whatever the minibatch holds of the trained network.
        has_learned: True once it was updated, or restored.

    Raises:
        TypeError: a loss that is not one of ours.
        ValueError: a name that others bear, a loss that is not reduced, or a schedule for something that cannot be
            scheduled.
    """

    def __init__(
        self,
        name: str,
        loss: PolicyDistillationLoss,
        optimizer: OptimizerFactory,
        *,
        target_updater: UpdaterFactory | None = None,
        schedules: Mapping[str, Schedule] | None = None,
        clip_norm: float | None = None,
    ) -> None:
        _check(name, loss)
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive or None: got {clip_norm}; None does not clip.")
        check_schedules(loss, schedules or {})
        self.name = name
        self.loss = loss
        self.optimizer = keep_device_options(optimizer(list(loss.parameters())))
        self.schedules = copy.deepcopy(dict(schedules or {}))
        self.clip_norm = clip_norm
        self.target_updater: TargetNetUpdater | None = None
        self.metric_names: list[str] = []
        self.own_teacher = False
        self.has_learned = False
        self._trained_keys: list[NestedKey] = []  # of a minibatch, to be hidden from a loss with its own teacher
        self._make_updater = target_updater
        self._warned_of: dict[str, Any] = {}  # settings that differ from those of the teacher's loss
        self._saved_updater: Any = None  # state of a target updater that attach() is still to build

    def follow(self, teacher_loss: nn.Module) -> None:
        """Follow the trainer's own loss where this one was not told otherwise, and warn once of what differs."""
        differing = self.loss.follow(teacher_loss)
        self.own_teacher = has_own_teacher(self.loss, teacher_loss)
        self._trained_keys = trained_keys(self.loss, teacher_loss)
        if differing and differing != self._warned_of:
            self._warned_of = differing
            list_of = ", ".join(f"{name} is {own!r}, not {other!r}" for name, (own, other) in differing.items())
            warnings.warn(
                f"student {self.name!r} was told other things than its teacher's loss: {list_of}. Leave them out to "
                "follow the teacher, or ignore this warning if that is the purpose.",
                stacklevel=2,
            )

    def attach(self, trainer: Any) -> None:
        """Follow the trainer's own loss, and build the target updater."""
        self.follow(trainer.loss_module)
        if "target_student_network_params" not in dict(self.loss.named_children()):
            return
        restored = copy.deepcopy(self.loss.state_dict()) if self._saved_updater is not None else None
        if self._make_updater is not None:
            self.target_updater = self._make_updater(self.loss)
        else:
            self.target_updater = updater_like(getattr(trainer, "target_net_updater", None), self.loss)
        if restored is not None:  # a new updater sets the target to the student
            self.loss.load_state_dict(restored)
            self.target_updater.load_state_dict(self._saved_updater)
            self._saved_updater = None

    def learn(self, batch: TensorDictBase, *, metrics: bool = True) -> Tensor | None:
        """Make one update of the network; its target network is left alone.

        Args:
            batch: a minibatch ``[B]`` with the teacher's values.
            metrics: compute them.

        Returns:
            The metrics, stacked in the order of ``metric_names``; None without them.
        """
        self.has_learned = True
        losses = evaluated(self.loss, batch, self._trained_keys, metrics=metrics)
        total = sum(value for key, value in losses.items() if key.startswith("loss"))
        total.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.loss.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not metrics:
            return None
        with torch.no_grad():
            found = {**losses, "loss": total}
            self.metric_names = list(found)
            return torch.stack([value.float() for value in found.values()])

    def after_learning(self) -> None:
        """Move the target network, as often as its updater says; called after each :meth:`learn`."""
        if self.target_updater is not None:
            step_target(self.target_updater)

    def apply_schedules(self, state: RunState) -> dict[str, float]:
        """Set what is scheduled, and return the values by name of the buffer; called once a batch."""
        return apply_schedules(self.loss, self.schedules, state) if self.schedules else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of loss and optimiser, of the schedules, and of the target updater once it is built."""
        state = {
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedules": {buffer: schedule.state_dict() for buffer, schedule in self.schedules.items()},
        }
        if self.target_updater is not None:
            state["target_updater"] = self.target_updater.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, before or after :meth:`attach`."""
        self.loss.load_state_dict(state_dict["loss"])
        self.has_learned = True
        # A copy, since PyTorch's optimisers keep the loaded tensors themselves.
        self.optimizer.load_state_dict(copy.deepcopy(state_dict["optimizer"]))
        scheduled = state_dict["schedules"] or {}
        for buffer, schedule in self.schedules.items():
            if buffer not in scheduled:
                raise ValueError(
                    f"student {self.name!r} must have the schedules it was saved with, {sorted(scheduled)}: got one of "
                    f"{buffer!r}; build the hook with the same schedules."
                )
            schedule.load_state_dict(scheduled[buffer])
        saved = state_dict.get("target_updater")
        if self.target_updater is None:
            self._saved_updater = saved
        else:
            self.target_updater.load_state_dict(saved)


def _check(name: str, loss: PolicyDistillationLoss) -> None:
    check_name("a student's name", name)
    if name in _RESERVED:
        raise ValueError(
            f"a student must not be called {name!r}, as metrics, scores and files of the teacher are: got a student of "
            "that name; give it one of its own, such as 'same_size'."
        )
    if not isinstance(loss, PolicyDistillationLoss):
        raise TypeError(
            f"student {name!r} must be a DistillationLoss or StudentDQNLoss: got {type(loss).__name__}; "
            "wrap the network in one of them."
        )
    if loss.reduction == "none":
        raise ValueError(f"the loss of student {name!r} must be reduced: got reduction='none'; use 'mean'.")


def build_students(
    losses: Mapping[str, PolicyDistillationLoss],
    optimizer: OptimizerFactory | Mapping[str, OptimizerFactory],
    target_updater: UpdaterFactory | None,
    schedules: Mapping[str, Schedule] | Mapping[str, Mapping[str, Schedule]],
    clip_norm: float | None,
) -> dict[str, Student]:
    """Return students by name from options for all of them or by name; see the hook for the arguments and errors."""
    if not losses:
        raise ValueError("students must hold at least one loss: got none; without students use the plain trainer.")
    factories = optimizer if isinstance(optimizer, Mapping) else dict.fromkeys(losses, optimizer)
    if factories.keys() != losses.keys():
        raise ValueError(
            f"optimizer must name every student, {sorted(losses)}: got {sorted(factories)}; "
            "pass one factory to serve them all."
        )
    own = _schedules_by_student(schedules, losses)
    options: dict[str, Any] = {"target_updater": target_updater, "clip_norm": clip_norm}
    students = {
        name: Student(name, loss, factories[name], schedules=own.get(name), **options) for name, loss in losses.items()
    }
    refuse_shared_parameters(students)
    return students


def _schedules_by_student(
    schedules: Mapping[str, Any], losses: Mapping[str, PolicyDistillationLoss]
) -> Mapping[str, Mapping[str, Schedule]]:
    if not any(isinstance(value, Mapping) for value in schedules.values()):
        return dict.fromkeys(losses, schedules)
    unknown = schedules.keys() - losses.keys()
    if unknown:
        raise ValueError(
            f"schedules must be for all students or by student name, {sorted(losses)}: got {sorted(unknown)}; "
            "write {'distill_coeff': schedule} or {student: {'distill_coeff': schedule}}."
        )
    return schedules


def states_of(students: Mapping[str, Student]) -> dict[str, dict[str, Any]]:
    """Return the states of students by part and name, as a hook saves them; parts that a student lacks are left out."""
    states = {name: student.state_dict() for name, student in students.items()}
    return {part: {name: state[own] for name, state in states.items() if own in state} for part, own in _SAVED.items()}


def load_states(
    students: Mapping[str, Student], saved: Mapping[str, Mapping[str, Any]], *, left_out: Collection[str] = ()
) -> None:
    """Restore what :func:`states_of` returned.

    Args:
        students: by name.
        saved: states by part and name.
        left_out: students that may be among those of either, and are not restored.

    Raises:
        ValueError: students of other names.
    """
    names, living = (found.keys() - set(left_out) for found in (saved["students"], students))
    if names != living or not living:
        raise ValueError(
            f"the saved students must be those of this hook, {sorted(living)}: got {sorted(names)}; "
            "build the hook with the same students."
        )
    for name, student in ((name, students[name]) for name in living):
        student.load_state_dict({own: saved[part].get(name) for part, own in _SAVED.items()})


def check_dropped(students: Mapping[str, Student], names: Iterable[str]) -> None:
    """Refuse to let students go that there are not, or all of them.

    Raises:
        ValueError: a name that no student bears, or nobody left.
    """
    unknown = sorted(set(names) - students.keys())
    if unknown:
        raise ValueError(f"students to drop must be some of {list(students)}: got {unknown}.")
    if len(set(names)) == len(students):
        raise ValueError(f"a student must be left to learn: got all of {list(students)}; keep one.")


def refuse_shared_parameters(*fleets: Mapping[str, Student], trainer: Any = None) -> None:
    """Refuse learners of which two train the same parameter: each would undo what the other learned.

    Args:
        fleets: students by name, of one hook or several. Frozen parameters may be shared.
        trainer: trains the teacher; None compares students only.

    Raises:
        ValueError: the first parameter that two learners train; the message names both.
    """
    owners: dict[int, str] = {}
    for owner, parameters in _learners(fleets, trainer):
        for parameter in parameters:
            other = owners.setdefault(id(parameter), owner) if parameter.requires_grad else owner
            if other != owner:
                raise ValueError(
                    f"{other} and {owner} train the same parameter, of shape {list(parameter.shape)}: networks must "
                    "not be shared; build one for each, or give one a copy.deepcopy of the other's."
                )


def refuse_shared_names(students: Mapping[str, Student], others: Mapping[str, Student]) -> None:
    """Refuse students of two hooks of one trainer that bear the same name.

    Raises:
        ValueError: names that are in both.
    """
    names = sorted(students.keys() & others.keys())
    if names:
        raise ValueError(
            f"students of one trainer must differ in name: got {names} in two hooks, whose metrics would mix; name "
            "them by a mapping."
        )


def _learners(fleets: Sequence[Mapping[str, Student]], trainer: Any) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
    """Name and parameters of all that learn."""
    if isinstance(getattr(trainer, "loss_module", None), nn.Module):
        yield "the teacher", trainer.loss_module.parameters()
    if getattr(trainer, "optimizer", None) is not None:
        yield "the teacher", (parameter for group in trainer.optimizer.param_groups for parameter in group["params"])
    for number, fleet in enumerate(fleets):
        where = f" of hook {number} before it" if number else ""
        for name, student in fleet.items():
            yield f"student {name!r}{where}", student.loss.parameters()


def refuse_foreign_memory(
    students: Mapping[str, Student], teacher_outputs: Collection[NestedKey], batch: TensorDictBase
) -> None:
    """Refuse data whose memory, which a recurrent student would begin with, is the teacher's.

    Args:
        students: by name.
        teacher_outputs: keys that the teacher's network writes.
        batch: the first minibatch.

    Raises:
        ValueError: a key of a student's memory that is the teacher's as well and is in the batch.
    """
    for name, student in students.items():
        shared = [key for key in student.loss.remembered if next_key(key) in teacher_outputs]
        held = [key for key in shared if batch.get(key, None) is not None]
        if held:
            raise ValueError(
                f"student {name!r} must not begin with its teacher's memory: got {held} in the minibatch, which the "
                "teacher's network writes; give the student keys of its own (in_keys and out_keys of its LSTMModule or "
                "GRUModule)."
            )
