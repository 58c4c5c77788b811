"""The hook that teaches students while a TorchRL trainer teaches their teacher.

One update, in order::

    sample [B] -> teacher: loss, backward, step (TorchRL's) -> each student: loss, backward, clip, step, target
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import exploration_type, set_exploration_type
from torchrl.objectives.utils import TargetNetUpdater
from torchrl.trainers import Trainer, TrainerHookBase

from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.networks.beside import Beside, Call, results_of
from torchrl_rtpd.networks.pixels import pixels_scaled_once, share_scaled_pixels
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.schedules import Schedule
from torchrl_rtpd.trainers._torchrl import check_part, count_learned_minibatches, hooks_of, runs_elsewhere
from torchrl_rtpd.trainers.averages import Averages
from torchrl_rtpd.trainers.checks import Check, DormancyCheck, check_distinct, refuse_shared_parts
from torchrl_rtpd.trainers.returns import Returns
from torchrl_rtpd.trainers.slices import refuse_flat_slices
from torchrl_rtpd.trainers.student import (
    OptimizerFactory,
    Student,
    UpdaterFactory,
    build_students,
    check_dropped,
    load_states,
    refuse_foreign_memory,
    refuse_shared_names,
    refuse_shared_parameters,
    states_of,
)
from torchrl_rtpd.trainers.teacher_copies import TeacherCopy
from torchrl_rtpd.trainers.teacher_values import TeacherValues, WrittenValues, find_values

__all__ = ["RealTimeDistillTrainer"]


class RealTimeDistillTrainer(TrainerHookBase):
    """Hook that distils students from the policy a TorchRL trainer is learning.

    Sun & Fazli 2019 (https://arxiv.org/abs/1912.12630). ``hook.register(trainer)`` is the whole integration. The
    teacher learns bit for bit as it would without students, unless a student has dropout or noisy layers, which draw
    from the random stream of training. Its values are those of the moment. A student whose loss was given another
    ``teacher_network``, such as a frozen expert or a mixture, learns from that one, which its loss runs. A student that
    is to learn from stored values reads them under a key of its own, which is left as it is
    (``loss.set_keys(teacher_action_value=("stored", "action_value"))``).

    Discount, keys, loss function and target interval of students follow the trainer's own loss unless they were set.
    What was set to something else is reported once, by a warning.

    Args:
        students: one loss, or losses by name, each with a student of its own; sizes and divergences may differ.

    Keyword Args:
        optimizer: builds each student's optimiser from its parameters, for example ``partial(Adam, lr=5e-4)``; or a
            mapping of such by student name. Required, since a good rate depends on the student.
        clip_norm: clip each student's gradient to this norm; None does not clip.
        updates_per_step: student updates on each minibatch. The counter ``updates`` counts minibatches.
        target_updater: builds each student's target updater from its loss. None copies kind and interval of the
            trainer's own; losses without target parameters get none.
        metrics_every_updates: minibatches between two whose metrics are computed, the first one after each log among
            them; a student's metrics cost about a tenth of its update. The loss is that of the same minibatches.
        schedules: by name of a schedulable buffer, such as ``{"distill_coeff": LinearSchedule(1.0, 0.1,
            end_updates=10_000)}``, for all students, each with a copy of its own; or such mappings by student name.
            Applied once a batch. Those that follow returns are told them by :meth:`report_returns`.
        teacher: ``"latest"`` (the paper), or a copy to learn from instead, for teachers that write action values:
            :class:`.AverageTeacher`, :class:`.LaggingTeacher` or :class:`.BestTeacher`.
        checks: work done now and then, in this order: :class:`.DormancyCheck`, :class:`.DriftCheck`,
            :class:`.RecyclingCheck`, or a :class:`.Check` of your own. None is ``[DormancyCheck()]``, ``[]`` is none.

    Logged once a batch, as averages over the updates that were measured: ``distill/<student>/loss`` and what its
    loss returns, such as ``kl_to_teacher``, ``agreement`` (for continuous actions ``action_distance``),
    ``teacher_entropy``, ``student_entropy``, ``loss_distill`` and ``loss_td``. In addition, where used: what checks
    report, the scheduled values under their own names, and the probability of ``acting`` in a
    :class:`~torchrl_rtpd.collectors.DualNetworkCollector`, to which students that may act are sent once a batch.

    Attributes:
        updates: minibatches learned from, those before a restart included.
        metrics: the last averages.
        dropped: names of students that learn no more, see :meth:`drop`.

    Raises:
        TypeError: a student that is not one of our losses, or a check that is none.
        ValueError: no student, a name that others bear, a loss that is not reduced, a missing or unknown optimiser, a
            number out of range, a schedule without a buffer, or two learners, the teacher among them, that share
            parameters. At ``register``, a copy of a teacher from which no student learns. At the first minibatch, a
            check that cannot work.
        RuntimeError: at ``register``, a Ray learner backend, a name that is taken, or no target updater to mirror.

    Examples:
        >>> from functools import partial
        >>> import torch
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> from torchrl_rtpd.objectives import DistillationLoss
        >>> student = QValueActor(torch.nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
        >>> hook = RealTimeDistillTrainer({"tiny": DistillationLoss(student)}, optimizer=partial(torch.optim.Adam))
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
        schedules: Mapping[str, Schedule] | Mapping[str, Mapping[str, Schedule]] | None = None,
        teacher: Literal["latest"] | TeacherCopy = "latest",
        checks: Sequence[Check] | None = None,
    ) -> None:
        check_integers(1, "1 is the paper's", updates_per_step=updates_per_step)
        if teacher != "latest" and not isinstance(teacher, TeacherCopy):
            raise ValueError(f"teacher must be 'latest' or a TeacherCopy, such as AverageTeacher(): got {teacher!r}.")
        losses = {"student": students} if isinstance(students, PolicyDistillationLoss) else students
        self.learners = build_students(losses, optimizer, target_updater, schedules or {}, clip_norm)
        self.updates_per_step = updates_per_step
        self.checks = [DormancyCheck()] if checks is None else list(checks)
        check_distinct(self.checks)
        self.updates = 0
        self.metrics: dict[str, float] = {}
        self.dropped: list[str] = []
        self._copy = None if teacher == "latest" else teacher
        self._values: TeacherValues = WrittenValues()
        self._averages = Averages(metrics_every_updates)
        self._returns = Returns()
        self._collector: Any = None  # the trainer's
        self._teacher_loss: Any = None  # likewise
        self._began = False  # in this process
        self._learning: dict[str, Call] = {}  # from a minibatch beside this thread, by student
        self._exploration: Any = None  # TorchRL's type when they began

    def __repr__(self) -> str:
        return f"{type(self).__name__}(students={list(self.learners)})"

    @property
    def students(self) -> dict[str, PolicyDistillationLoss]:
        """Losses of the students by name."""
        return {name: student.loss for name, student in self.learners.items()}

    @property
    def optimizers(self) -> dict[str, Any]:
        """Optimisers of the students by name."""
        return {name: student.optimizer for name, student in self.learners.items()}

    @property
    def target_updaters(self) -> dict[str, TargetNetUpdater]:
        """Target updaters by name of the students that have target parameters, once the hook is attached."""
        updaters = {name: student.target_updater for name, student in self.learners.items()}
        return {name: updater for name, updater in updaters.items() if updater is not None}

    # Attaching

    def register(self, trainer: Trainer, name: str = "real_time_distill") -> None:
        """Attach to a trainer: learn after each of its updates, log once a batch, be saved with its checkpoints."""
        if runs_elsewhere(trainer):
            raise RuntimeError(
                "the hook runs in the trainer's process, but learner_backend='ray' updates the teacher in remote ones; "
                "pass RealTimeDistillStepper as the trainer's optimization_stepper instead."
            )
        self.register_log(trainer, name)
        trainer.register_op("process_optim_batch", self.before_update)
        trainer.register_op("post_optim_log", self.step)

    def register_log(self, trainer: Trainer, name: str = "real_time_distill") -> None:
        """:meth:`register` without the updates, for a stepper that makes them."""
        check_part(trainer, name)
        others = [hook for hook in hooks_of(trainer).values() if isinstance(hook, RealTimeDistillTrainer)]
        refuse_shared_parameters(self.learners, *(hook.learners for hook in others))
        for hook in others:
            refuse_shared_names(self.learners, hook.learners)
            refuse_shared_parts([*self.checks, self._copy], [*hook.checks, hook._copy])
        self.attach(trainer)
        count_learned_minibatches(trainer)
        self._collector = trainer.collector
        trainer.register_op("setup", partial(refuse_flat_slices, trainer))  # once all hooks are in place
        trainer.register_op("post_optim_complete_log", self.log)
        trainer.register_module(name, self)

    def attach(self, trainer: Any) -> None:
        """Find the trainer's teacher, and let students follow its loss; called by :meth:`register`, or by a stepper."""
        refuse_shared_parameters(self.learners, trainer=trainer)
        self._teacher_loss = trainer.loss_module
        for student in self.learners.values():
            student.attach(trainer)
        self._values = find_values(trainer.loss_module, self._copy)
        self._values.check(self._followers())
        self._apply_schedules({})

    def _followers(self) -> dict[str, PolicyDistillationLoss]:
        """Losses of the students that learn from the network that is trained, and not from a teacher of their own."""
        return {name: student.loss for name, student in self.learners.items() if not student.own_teacher}

    # Learning

    def before_update(self, sub_batch: TensorDictBase) -> TensorDictBase:
        """Let the teacher's update and :meth:`step` share a minibatch's pixels, scaled once; return the minibatch."""
        share_scaled_pixels()
        return sub_batch

    def step(self, sub_batch: TensorDictBase) -> None:
        """Update every student on the minibatch ``[B]`` the teacher has just learned from. The batch is not changed."""
        batch = self.prepare_batch(sub_batch)
        metrics = self._averages.due()
        with pixels_scaled_once():
            self._add_metrics({name: self._learn(student, batch, metrics) for name, student in self.learners.items()})
        self.after_update(sub_batch, batch)

    def learn_beside(self, beside: Beside, sub_batch: TensorDictBase) -> TensorDictBase:
        """Let every student learn from a minibatch in a thread beside this one, which goes on; see :meth:`wait`.

        To be called where the teacher's values are known and, from then on, neither the minibatch nor a network that a
        student's loss runs is changed; :meth:`after_update` once the teacher has made its step.

        Returns:
            The minibatch with the teacher's values.
        """
        batch = self.prepare_batch(sub_batch)
        self.wait()
        self._exploration = exploration_type()
        metrics = self._averages.due()
        for name, student in self.learners.items():
            self._learning[name] = beside.call(self._learn, student, batch, metrics)
        return batch

    def wait(self) -> None:
        """Wait until the students have learned from every minibatch given so far; raise what went wrong meanwhile.

        Students whose turn has not come yet learn in this thread.
        """
        learning = self._learning
        try:
            found = results_of(list(learning.values()))
        except Exception:
            self._forget_learning()
            raise
        self._forget_learning()  # after a KeyboardInterrupt some are still at it, and the next call waits for them
        self._add_metrics(dict(zip(learning, found, strict=True)))

    def _forget_learning(self) -> None:
        """Forget calls that are over.

        TorchRL's exploration type is one for all threads, and its losses set it and put back what they found. Those
        that overlap would leave it as one of them has set it.
        """
        if self._learning:
            set_exploration_type(self._exploration).__enter__()
        self._learning = {}

    def _learn(self, student: Student, batch: TensorDictBase, metrics: bool) -> list[Tensor | None]:
        """Let a student learn from a minibatch with the teacher's values, and move its target; return its metrics."""
        found = []
        for _ in range(self.updates_per_step):
            found.append(student.learn(batch, metrics=metrics))
            student.after_learning()
        return found

    def _add_metrics(self, found: Mapping[str, list[Tensor | None]]) -> None:
        """Keep what students measured, in each of their updates on a minibatch."""
        for values in zip(*found.values(), strict=True):
            if measured := {name: value for name, value in zip(found, values, strict=True) if value is not None}:
                self._averages.add(measured)

    def prepare_batch(self, sub_batch: TensorDictBase) -> TensorDictBase:
        """Return the minibatch with the teacher's values, before students learn from it. The original stays."""
        losses = list(self._followers().values())
        batch = self._values.add_to(sub_batch, losses)
        if not self._began:
            self._began = True
            for student in self.learners.values():  # the teacher's loss may have been set meanwhile
                student.follow(self._teacher_loss)
            refuse_foreign_memory(self.learners, self._values.outputs, sub_batch)
            self._values.warn_of_stored(sub_batch, batch, losses)
            for check in self.checks:
                check.before_first_update(self.learners, batch)
        return batch

    def record(self, learned: Mapping[str, Tensor | None]) -> None:
        """After each student's :meth:`~torchrl_rtpd.trainers.Student.learn`: move targets, keep the metrics."""
        for student in self.learners.values():
            student.after_learning()
        self._add_metrics({name: [values] for name, values in learned.items()})

    def after_update(self, sub_batch: TensorDictBase, batch: TensorDictBase) -> None:
        """Count the minibatch, and run each check that is due; ``batch`` is the one with the teacher's values."""
        self.updates += 1
        self._averages.after_minibatch()
        if self._copy is not None:
            self._copy.after_update(self.updates)
        for check in self.checks:
            if check.due(self.updates):
                self.wait()
                check.run(self.learners, sub_batch, batch, self.updates)

    def drop(self, *names: str) -> None:
        """Let students go that are to learn and act no more; the others go on to the last bit as they would have.

        Args:
            names: of students, not all of them. Between two batches; checkpoints remember it.

        Raises:
            ValueError: a name that no student bears, or nobody left.
        """
        self.wait()
        check_dropped(self.learners, names)
        self._let_go(names)

    def _let_go(self, names: Sequence[str]) -> None:
        for name in names:
            self.learners.pop(name, None)
            self._averages.forget(name)
        self.dropped = list(dict.fromkeys([*self.dropped, *names]))
        if names:  # a run that is only restored sends nothing, and asks no schedule once more
            self._update_collector({})

    # Logging

    def log(self, *_: Any) -> dict[str, float] | None:
        """Return means since the last call, by metric name; one device synchronisation for all of them."""
        self.wait()
        found = self._averages.means({name: student.metric_names for name, student in self.learners.items()})
        if not found:
            return None
        for check in self.checks:
            found.update(check.log(self.learners))
        metrics = {f"distill/{name}": value for name, value in found.items()}
        metrics.update(self._apply_schedules(metrics))
        self.metrics = metrics | self._update_collector(metrics)
        return self.metrics

    @property
    def follows_returns(self) -> bool:
        """True if :meth:`report_returns` makes a difference: with schedules, or a copy as the teacher."""
        return any(student.schedules for student in self.learners.values()) or self._copy is not None

    def report_returns(self, returns: Mapping[str, float], teacher_return: float, random_return: float) -> None:
        """Tell schedules, and a teacher that is to be the best so far, the scores of an evaluation, right after it.

        Args:
            returns: raw returns of students by name; those not named keep their last.
            teacher_return: raw return of the teacher.
            random_return: raw return of a random player.
        """
        self._returns.report(returns, teacher_return, random_return)
        if self._copy is not None:
            self._copy.after_evaluation(teacher_return)

    def _apply_schedules(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Set what is scheduled, and return the values by metric name."""
        values: dict[str, float] = {}
        for name, student in self.learners.items():
            applied = student.apply_schedules(self._returns.run_state(self.updates, [name], metrics))
            values.update((f"distill/{name}/{buffer}", value) for buffer, value in applied.items())
        return values

    def _update_collector(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Send the students to a collector in which they act, and return the probabilities that they do."""
        if not hasattr(self._collector, "update_students"):
            return {}
        state = self._returns.run_state(self.updates, self.learners, metrics)
        probabilities = self._collector.update_students(state, dropped=self.dropped)
        return {f"distill/{name}/acting": probability for name, probability in probabilities.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of students, targets, optimisers, schedules and checks, and the number of updates."""
        self.wait()
        return {
            **states_of(self.learners),
            "returns": self._returns.state_dict(),
            "teacher": {} if self._copy is None else self._copy.state_dict(),
            "updates": self.updates,
            **({"dropped": list(self.dropped)} if self.dropped else {}),
            "measured": {key: value for check in self.checks for key, value in check.state_dict().items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, before or after :meth:`register`."""
        self.wait()
        dropped = [*self.dropped, *state_dict.get("dropped", ())]
        load_states(self.learners, state_dict, left_out=dropped)
        self._let_go(dropped)
        self._returns.load_state_dict(state_dict["returns"])
        if self._copy is not None:
            self._copy.load_state_dict(state_dict["teacher"])
        self.updates = int(state_dict["updates"])
        for check in self.checks:
            check.load_state_dict(state_dict.get("measured", {}))
