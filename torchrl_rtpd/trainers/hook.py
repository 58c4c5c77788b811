"""The hook that teaches students while a TorchRL trainer teaches their teacher.

One update, in order::

    sample [B] -> teacher: loss, backward, step (TorchRL's) -> each student: loss, backward, clip, step, target
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import HardUpdate, SoftUpdate
from torchrl.objectives.utils import TargetNetUpdater
from torchrl.trainers import Trainer, TrainerHookBase

from torchrl_rtpd.networks.dormancy import dormant_share
from torchrl_rtpd.networks.pixels import pixels_scaled_once
from torchrl_rtpd.networks.recycling import UnitRecycler, check_recyclable
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.schedules import RunState, Schedule, apply_schedules, check_schedules
from torchrl_rtpd.trainers.checks import measured_drift
from torchrl_rtpd.trainers.teacher_copies import TeacherCopy
from torchrl_rtpd.trainers.teacher_values import TeacherValues

__all__ = ["RealTimeDistillTrainer"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
UpdaterFactory = Callable[[PolicyDistillationLoss], TargetNetUpdater]


class RealTimeDistillTrainer(TrainerHookBase):
    """Hook that distils students from the policy a TorchRL trainer is learning.

    Sun & Fazli 2019 (https://arxiv.org/abs/1912.12630). ``hook.register(trainer)`` is the whole integration. The
    teacher learns bit for bit as it would without students. Its values are those of the moment; a student that is to
    learn from stored ones reads them under a key of its own, which is left as it is
    (``loss.set_keys(teacher_action_value=("stored", "action_value"))``).

    Args:
        students: one loss, or losses by name. Each holds its own student; sizes, temperatures and divergences may
            differ.

    Keyword Args:
        optimizer: builds each student's optimiser from its parameters, for example ``partial(Adam, lr=5e-4)``; or a
            mapping of such by student name. Required, since a good rate depends on the student.
        clip_norm: clip each student's gradient to this norm; None does not clip.
        updates_per_step: student updates on each minibatch. The counter ``updates`` counts minibatches.
        target_updater: builds each student's target updater from its loss. None copies kind and interval of the
            trainer's own; losses without target parameters get none.
        metrics_every_updates: minibatches between two whose metrics are computed, the first one after each log among
            them; a student's metrics cost about a tenth of its update. The loss is that of the same minibatches.
        dormant_every_updates: minibatches between two measurements of dormant units, after one at the first; see
            :func:`~torchrl_rtpd.networks.dormant_share`. None never measures.
        dormant_warning: share of dormant units, in a student's worst layer, above which it is reported, once.
        schedules: by name of a schedulable buffer, such as ``{"distill_coeff": LinearSchedule(1.0, 0.1,
            end_updates=10_000)}``, for all students, each with a copy of its own; or such mappings by student name.
            Applied once a batch. Those that follow returns are told them by :meth:`report_returns`.
        recycler: gives dormant units of the students a new start now and then; None never does.
        teacher: ``"latest"`` (the paper), or a :class:`~torchrl_rtpd.trainers.teacher_copies.TeacherCopy` to learn from
            instead: :class:`~torchrl_rtpd.trainers.teacher_copies.AverageTeacher`,
            :class:`~torchrl_rtpd.trainers.teacher_copies.LaggingTeacher` or
            :class:`~torchrl_rtpd.trainers.teacher_copies.BestTeacher`. Teachers that write ``action_value`` only.
        drift_every_updates: minibatches between two measurements of drift, one forward pass of each student; None
            never measures. See :func:`~torchrl_rtpd.trainers.checks.teacher_drift` and
            :func:`~torchrl_rtpd.trainers.checks.agreement_by_visitor`, which need a collector that records and one in
            which students act.

    Logged once a batch, as averages over the updates that were measured: ``distill/<student>/loss`` and whatever its
    loss returns, such as ``kl_to_teacher``, ``agreement`` (for continuous actions ``action_distance``),
    ``teacher_entropy``, ``student_entropy``, ``loss_distill`` and ``loss_td``; besides, where used, the last measured
    ``dormant``, the units ``recycled`` in this batch, the scheduled values under their own names, and the probability
    of ``acting`` in a :class:`~torchrl_rtpd.collectors.DualNetworkCollector`, to which students that may act are sent
    once a batch.

    Raises:
        TypeError: a student that is not one of our losses.
        ValueError: no student, one whose loss is not reduced, or a missing or unknown name among the optimisers;
            numbers out of range; a schedule for something that cannot be scheduled; at the first minibatch, a
            recycler for a student without layers that can be recycled.
        RuntimeError: at ``register``, a Ray learner backend, or a target updater that cannot be derived.

    Examples:
        >>> from functools import partial
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> from torchrl_rtpd.objectives import DistillationLoss
        >>> student = QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
        >>> students = {"tiny": DistillationLoss(student)}
        >>> hook = RealTimeDistillTrainer(students, optimizer=partial(torch.optim.Adam, lr=5e-4))
        >>> hook  # then hook.register(trainer)
        RealTimeDistillTrainer(students=['tiny'])
    """

    def __init__(
        self,
        students: PolicyDistillationLoss | Mapping[str, PolicyDistillationLoss],
        *,
        optimizer: OptimizerFactory | Mapping[str, OptimizerFactory],
        clip_norm: float | None = None,
        updates_per_step: int = 1,
        target_updater: UpdaterFactory | None = None,
        metrics_every_updates: int = 4,
        dormant_every_updates: int | None = 500,
        dormant_warning: float = 0.9,
        schedules: Mapping[str, Schedule] | Mapping[str, Mapping[str, Schedule]] | None = None,
        recycler: UnitRecycler | None = None,
        teacher: Literal["latest"] | TeacherCopy = "latest",
        drift_every_updates: int | None = None,
    ) -> None:
        if isinstance(students, PolicyDistillationLoss):
            students = {"student": students}
        _check_students(students)
        if min(updates_per_step, metrics_every_updates) < 1 or (clip_norm is not None and clip_norm <= 0):
            raise ValueError(
                "updates_per_step and metrics_every_updates must be at least 1 and clip_norm positive or None: got "
                f"updates_per_step={updates_per_step}, metrics_every_updates={metrics_every_updates}, "
                f"clip_norm={clip_norm}."
            )
        self.students = dict(students)
        self.clip_norm = clip_norm
        self.updates_per_step = updates_per_step
        self.metrics_every_updates = metrics_every_updates
        self.dormant_every_updates = dormant_every_updates
        self.dormant_warning = dormant_warning
        self.updates = 0
        self.metrics: dict[str, float] = {}  # the last averages, for whoever shows progress
        self.recycler = recycler
        self.schedules = _schedules_by_student(schedules or {}, self.students)
        factories = optimizer if isinstance(optimizer, Mapping) else dict.fromkeys(self.students, optimizer)
        if factories.keys() != self.students.keys():
            raise ValueError(
                f"optimizer must name every student, {sorted(self.students)}: got {sorted(factories)}; "
                "pass one factory to serve them all."
            )
        self.optimizers = {name: factories[name](list(loss.parameters())) for name, loss in self.students.items()}
        self._target_updater = target_updater
        self.target_updaters: dict[str, TargetNetUpdater] = {}
        if teacher != "latest" and not isinstance(teacher, TeacherCopy):
            raise ValueError(f"teacher must be 'latest' or a TeacherCopy, such as AverageTeacher(): got {teacher!r}.")
        self.drift_every_updates = drift_every_updates
        self._teacher = TeacherValues(None if teacher == "latest" else teacher)
        self._metric_names: dict[str, list[str]] = {}  # by student, of what its sums are
        self._sums: dict[str, Tensor] = {}
        self._num_summed = 0
        self._since_log = 0  # minibatches
        self._dormant: dict[str, float] | None = None  # not measured yet
        self._drift: dict[str, float] = {}  # as last measured
        self._recycled: dict[str, int] = {}  # units since the last averages
        self._returns: dict[str, Any] = {"teacher": None, "random": None, "students": {}}  # of the last evaluation
        self._collector: Any = None  # the trainer's
        self._saved_updaters: dict[str, Any] = {}  # of target updaters that register() is still to build
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(students={list(self.students)})"

    def register(self, trainer: Trainer, name: str = "real_time_distill") -> None:
        """Attach to a trainer: learn after each of its updates, log once a batch, be saved with its checkpoints."""
        if getattr(trainer, "learner_backend", "local") == "ray":
            raise RuntimeError(
                "the hook runs in the trainer's process, but learner_backend='ray' updates the teacher in remote ones; "
                "pass RealTimeDistillStepper as the trainer's optimization_stepper instead."
            )
        trainer.register_op("post_optim_log", self.step)
        self.accompany(trainer, name)

    def accompany(self, trainer: Trainer, name: str = "real_time_distill") -> None:
        """:meth:`register` without the updates, for a stepper that makes them."""
        self.prepare(trainer)
        self._collector = trainer.collector
        trainer.register_op("post_optim_complete_log", self.averages)
        trainer.register_module(name, self)

    def prepare(self, trainer: Trainer) -> None:
        """Find the trainer's teacher and give each student its target updater; called by :meth:`register`."""
        self._teacher.attach(trainer.loss_module)
        self._apply_schedules({})
        for name, loss in self.students.items():
            if "target_student_network_params" not in dict(loss.named_children()):
                continue
            restored = copy.deepcopy(loss.state_dict()) if name in self._saved_updaters else None
            if self._target_updater is not None:
                self.target_updaters[name] = self._target_updater(loss)
            else:
                self.target_updaters[name] = _updater_like(getattr(trainer, "target_net_updater", None), loss)
            if restored is not None:  # a new updater sets the target to the student
                loss.load_state_dict(restored)
                self.target_updaters[name].load_state_dict(self._saved_updaters.pop(name))

    def step(self, sub_batch: TensorDictBase) -> None:
        """Update every student on the minibatch ``[B]`` the teacher has just learned from. The batch is not changed."""
        batch = self.with_teacher_values(sub_batch)
        measured = self._since_log % self.metrics_every_updates == 0
        with pixels_scaled_once():
            for _ in range(self.updates_per_step):
                self.add_up({name: self.learn(name, batch, measured=measured) for name in self.students})
        self.after_step(sub_batch, batch)

    def with_teacher_values(self, sub_batch: TensorDictBase) -> TensorDictBase:
        """A shallow copy of the minibatch with what the teacher's loss has just computed of it."""
        batch = self._teacher.added_to(sub_batch, self.students.values())
        if self.recycler is not None and not self.updates:
            self._check_recyclable(batch)
        return batch

    def learn(self, name: str, batch: TensorDictBase, *, measured: bool = True) -> Tensor | None:
        """One update of a student, and what is to be logged of it, stacked; its target network is left alone."""
        loss, optimizer = self.students[name], self.optimizers[name]
        losses = loss.evaluate(batch, metrics=measured)
        total = sum(value for key, value in losses.items() if key.startswith("loss"))
        total.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(loss.parameters(), self.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if not measured:
            return None
        with torch.no_grad():
            metrics = {**losses, "loss": total}
            self._metric_names[name] = list(metrics)
            return torch.stack([value.float() for value in metrics.values()])

    def add_up(self, values: Mapping[str, Tensor | None]) -> None:
        """After each student's :meth:`learn`: move its target network, and keep what it returned for the averages."""
        for name, value in values.items():
            if name in self.target_updaters:
                _step_target(self.target_updaters[name])
            if value is not None:
                self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._num_summed += None not in values.values()

    def after_step(self, sub_batch: TensorDictBase, batch: TensorDictBase) -> None:
        """Count the minibatch, and do what is due now and then; ``batch`` is the one with the teacher's values."""
        self.updates += 1
        self._since_log += 1
        if self._teacher.copy is not None:
            self._teacher.copy.after_update(self.updates)
        every = self.dormant_every_updates
        # Measured at once too: a stepper must return the same metrics at every update.
        if every and (self._dormant is None or self.updates % every == 0):
            self._measure_dormant(batch)
        if self.drift_every_updates and self.updates % self.drift_every_updates == 0:
            self._drift = measured_drift(self.students, sub_batch, batch)
        if self.recycler is not None and self.recycler.due(self.updates):
            self._recycle(batch, self.recycler)

    def averages(self, *_: Any) -> dict[str, float] | None:
        """Means since the last call, by metric name; one device synchronisation for all of them."""
        if not self._num_summed:
            return None
        names = [f"distill/{name}/{key}" for name in self._sums for key in self._metric_names[name]]
        values = torch.cat(list(self._sums.values())) / self._num_summed
        self._sums = {}
        self._num_summed = self._since_log = 0
        metrics = dict(zip(names, values.tolist(), strict=True))
        metrics.update((f"distill/{name}/dormant", share) for name, share in (self._dormant or {}).items())
        metrics.update((f"distill/{name}", value) for name, value in self._drift.items())
        if self.recycler is not None:
            metrics.update((f"distill/{name}/recycled", self._recycled.pop(name, 0)) for name in self.students)
        metrics.update(self._apply_schedules(metrics))
        metrics.update(self._update_collector(metrics))
        self.metrics = metrics
        return metrics

    @property
    def follows_returns(self) -> bool:
        """Whether :meth:`report_returns` makes a difference: there are schedules, or a teacher chosen by its return."""
        return any(self.schedules.values()) or self._teacher.copy is not None

    def report_returns(self, returns: Mapping[str, float], teacher_return: float, random_return: float) -> None:
        """Tell schedules, and a teacher that is to be the best so far, how well everybody plays, after an evaluation.

        Args:
            returns: raw returns of students by name; those not named keep their last.
            teacher_return: raw return of the teacher.
            random_return: raw return of a random player.
        """
        self._returns["students"].update(returns)
        self._returns.update(teacher=teacher_return, random=random_return)
        if self._teacher.copy is not None:
            self._teacher.copy.after_evaluation(teacher_return)

    def _apply_schedules(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Set what is scheduled, and return the values by metric name."""
        values: dict[str, float] = {}
        for name, schedules in self.schedules.items():
            applied = apply_schedules(self.students[name], schedules, self._run_state(metrics, [name]))
            values.update((f"distill/{name}/{buffer}", value) for buffer, value in applied.items())
        return values

    def _run_state(self, metrics: Mapping[str, float], names: Iterable[str]) -> RunState:
        """The run now, seen from these students: means over them."""
        returns, entropies = (
            self._returns["students"],
            [metrics.get(f"distill/{name}/teacher_entropy") for name in names],
        )
        return RunState(
            updates=self.updates,
            teacher_return=self._returns["teacher"],
            student_return=_mean(returns.get(name) for name in names),
            random_return=self._returns["random"],
            teacher_entropy=_mean(entropies),
        )

    def _update_collector(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Send the students to a collector in which they act, and say who does."""
        update = getattr(self._collector, "update_students", None)
        if update is None:
            return {}
        probabilities = update(self._run_state(metrics, self.students))
        return {f"distill/{name}/acting": probability for name, probability in probabilities.items()}

    def _check_recyclable(self, batch: TensorDictBase) -> None:
        for name, loss in self.students.items():
            try:
                check_recyclable(loss.student_network, batch)
            except ValueError as error:
                raise ValueError(f"the units of student {name!r} cannot be recycled: {error}") from error

    def _recycle(self, batch: TensorDictBase, recycler: UnitRecycler) -> None:
        for name, loss in self.students.items():
            units = recycler(loss.student_network, batch, self.optimizers[name], updates=self.updates)
            self._recycled[name] = self._recycled.get(name, 0) + sum(units.values())

    def _measure_dormant(self, batch: TensorDictBase) -> None:
        self._dormant = {}
        for name, loss in self.students.items():
            try:
                share = dormant_share(loss.student_network, batch)
            except ValueError:  # no ReLU layer: nothing to measure
                continue
            self._dormant[name] = share
            if share > self.dormant_warning and name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"{share:.0%} of the units in a layer of student {name!r} are dormant after {self.updates} updates "
                    f"(warned above {self.dormant_warning:.0%}): it may be dying; lower its learning rate, raise "
                    "Adam's eps to 1e-5, use equal temperatures of about 0.1, clip its gradient or keep the TD term.",
                    stacklevel=2,
                )

    def state_dict(self) -> dict[str, Any]:
        """Students, their targets and temperatures, optimisers, target counters, schedules and number of updates."""
        return {
            "students": {name: loss.state_dict() for name, loss in self.students.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "target_updaters": {name: updater.state_dict() for name, updater in self.target_updaters.items()},
            "schedules": {
                name: {buffer: schedule.state_dict() for buffer, schedule in schedules.items()}
                for name, schedules in self.schedules.items()
            },
            "returns": copy.deepcopy(self._returns),
            "teacher": {} if self._teacher.copy is None else self._teacher.copy.state_dict(),
            "updates": self.updates,
            "measured": {"dormant": self._dormant, "drift": self._drift, "warned": sorted(self._warned)},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, before or after :meth:`register`."""
        saved = state_dict["students"].keys()
        if saved != self.students.keys():
            raise ValueError(
                f"the saved students must be those of this hook, {sorted(self.students)}: got {sorted(saved)}; "
                "build the hook with the same students."
            )
        for name in self.students:
            self.students[name].load_state_dict(state_dict["students"][name])
            # A copy, since PyTorch's optimisers keep the loaded tensors themselves.
            self.optimizers[name].load_state_dict(copy.deepcopy(state_dict["optimizers"][name]))
        self._saved_updaters = dict(state_dict["target_updaters"])
        for name, updater in self.target_updaters.items():
            updater.load_state_dict(self._saved_updaters.pop(name))
        for name, schedules in self.schedules.items():
            for buffer, schedule in schedules.items():
                schedule.load_state_dict(state_dict["schedules"][name][buffer])
        self._returns = copy.deepcopy(state_dict["returns"])
        if self._teacher.copy is not None:
            self._teacher.copy.load_state_dict(state_dict["teacher"])
        self.updates = int(state_dict["updates"])
        measured = state_dict.get("measured", {})
        self._dormant = measured.get("dormant")
        self._drift = dict(measured.get("drift", {}))
        self._warned = set(measured.get("warned", ()))


def _check_students(students: Mapping[str, PolicyDistillationLoss]) -> None:
    if not students:
        raise ValueError("students must hold at least one loss: got none; without students use the plain trainer.")
    for name, loss in students.items():
        if not isinstance(loss, PolicyDistillationLoss):
            raise TypeError(
                f"student {name!r} must be a DistillationLoss or StudentDQNLoss: got {type(loss).__name__}; "
                "wrap the network in one of them."
            )
        if loss.reduction == "none":
            raise ValueError(f"the loss of student {name!r} must be reduced: got reduction='none'; use 'mean'.")


def _mean(values: Iterable[float | None]) -> float | None:
    """Of what is known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _schedules_by_student(
    schedules: Mapping[str, Any], students: Mapping[str, PolicyDistillationLoss]
) -> dict[str, dict[str, Schedule]]:
    """The schedules of each student, copies where all share them."""
    if not any(isinstance(value, Mapping) for value in schedules.values()):
        schedules = dict.fromkeys(students, schedules)
    unknown = schedules.keys() - students.keys()
    if unknown:
        raise ValueError(
            f"schedules must be for all students or by student name, {sorted(students)}: got {sorted(unknown)}; "
            "write {'distill_coeff': schedule} or {student: {'distill_coeff': schedule}}."
        )
    for name, own in schedules.items():
        check_schedules(students[name], own)
    return {name: copy.deepcopy(dict(own)) for name, own in schedules.items()}


def _step_target(updater: TargetNetUpdater) -> None:
    """``updater.step()``; of a hard one that is not due only the count: it would look at every parameter first."""
    if type(updater) is HardUpdate and updater.counter < updater.value_network_update_interval:
        updater.counter += 1
    else:
        updater.step()


def _updater_like(updater: TargetNetUpdater | None, loss: PolicyDistillationLoss) -> TargetNetUpdater:
    """A target updater for a student, of the kind and interval of the teacher's."""
    if isinstance(updater, HardUpdate):
        return HardUpdate(loss, value_network_update_interval=updater.value_network_update_interval)
    if isinstance(updater, SoftUpdate):
        return SoftUpdate(loss, eps=updater.eps)
    raise RuntimeError(
        "students with target parameters need a target updater, and the trainer has no HardUpdate or SoftUpdate to "
        f"copy: got {type(updater).__name__}; pass "
        "target_updater=partial(HardUpdate, value_network_update_interval=1000)."
    )
