"""The update of a teacher and the updates of its students side by side, on several processors.

A minibatch of a small network is too little work for two threads to share: at the end of each of some hundred parallel
loops an update they wait for each other. Teacher and students have no loop in common, so each side has a thread::

    trainer's thread   network(state) ──────┬─ loss ─┬─ backward, clip, step ─ sample ─ network(state) ─ ...
    beside it          target(next state) ──┘        └─ student 1, student 2, ... ────┬ target(next state) ─ ...

Students learn from a minibatch while the teacher makes its step, goes on to the next minibatch and runs its network.
Where the trainer's thread has nothing left to do before they are through, it takes over the last of those that wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.trainers import LRSchedulerHook, OptimizationStepper, Trainer

from torchrl_rtpd.networks.beside import Beside
from torchrl_rtpd.networks.pixels import pixels_scaled_once
from torchrl_rtpd.networks.running import same_in_training
from torchrl_rtpd.trainers._torchrl import has_module, hooks_of
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.whole_update import WholeUpdate, numbers, teach, total_loss

__all__ = ["ConcurrentStepper"]


class ConcurrentStepper(WholeUpdate):
    """Optimisation step in which students learn in a thread beside that of their teacher, on a CPU.

    ``ConcurrentStepper(hook).register(trainer)`` takes the place of ``hook.register(trainer)``. Weights are the same to
    the last bit. Each of the two threads computes with :func:`torch.get_num_threads` threads, so set half the number of
    processors. With a :class:`~torchrl_rtpd.objectives.TeacherDQNLoss` the target network's values of the next states
    are computed beside as well.

    Students have learned from all minibatches of an epoch before its end, when metrics are logged, checks run, networks
    are evaluated and checkpoints are written. Read them in between after :meth:`.RealTimeDistillTrainer.wait` only.

    All learn in the trainer's thread, after their teacher as with the hook, where they would otherwise draw from one
    random stream at a time that nobody knows, or read what is changed meanwhile: students, or networks that they learn
    from, that drew random numbers at the first minibatch or have dropout, batch normalisation or noisy layers; students
    whose loss runs the very network that is trained, as beside PPO, or its target; those whose loss writes a priority;
    those whose learning rate is stepped with each update, which is after them here and before them with the hook; and
    all where autocast is on around training.

    Args:
        hook: the students and how they learn. Do not register it as well. None makes the teacher's update alone.
        stepper: makes the teacher's step where that is not one of the trainer's optimiser, as for a frozen teacher, and
            is over before students begin.

    Raises:
        RuntimeError: at the first update, a trainer without an optimiser and no ``stepper``, or networks on a GPU,
            where one thread starts everything.

    Examples:
        >>> from functools import partial
        >>> import torch
        >>> from torch import nn
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> from torchrl_rtpd.objectives import DistillationLoss
        >>> student = QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
        >>> hook = RealTimeDistillTrainer(DistillationLoss(student), optimizer=partial(torch.optim.Adam, lr=5e-4))
        >>> stepper = ConcurrentStepper(hook)  # then stepper.register(trainer)
    """

    def __init__(self, hook: RealTimeDistillTrainer | None = None, stepper: OptimizationStepper | None = None) -> None:
        super().__init__(hook)
        self.stepper = stepper
        self._beside = Beside()
        self._began = False
        self._drew: set[str] = set()
        self._students_beside = False
        self._late = False  # students learn when the trainer has moved the target as well

    def register(self, trainer: Trainer, name: str = "optimization_stepper") -> None:
        """Become the trainer's optimisation step; the hook logs once a batch and is saved with its checkpoints.

        A ``stepper`` that was given is saved as well, for what it remembers.
        """
        super().register(trainer, name)
        if self.stepper is not None and not has_module(trainer, name):
            self.stepper.register(trainer, name)
        if self.hook is not None:
            trainer.register_op("post_epoch", self.hook.wait)
            trainer.register_op("post_optim_log", self._learn_late)

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Make the teacher's update, and begin those of its students; return the teacher's losses and ``grad_norm``."""
        first = not self._began
        if first:
            self._check(trainer)
        with pixels_scaled_once():
            update = self._teach if self.stepper is None else self._step
            metrics = update(trainer, sub_batch)
        if first:  # made in this thread alone, to see who draws random numbers
            self._begin(trainer)
        return metrics

    def _teach(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Let students begin between the teacher's loss and its backward pass."""
        with self._watching("teacher"):
            losses = trainer.compute_loss(sub_batch)
        batch = self._begin_students(sub_batch)
        total = total_loss(losses)
        norm = teach(trainer, total)
        self.update_priority(trainer, sub_batch)
        self._end_students(sub_batch, batch)
        return TensorDict(numbers({**losses, "loss": total, "grad_norm": norm}))

    def _step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Let students begin when the stepper given has ended."""
        assert self.stepper is not None
        with self._watching("teacher"):
            metrics = self.stepper.step(trainer, sub_batch)
        if not getattr(self.stepper, "updates_replay_priority", False):
            self.update_priority(trainer, sub_batch)
        self._end_students(sub_batch, self._begin_students(sub_batch))
        return metrics

    def _begin_students(self, sub_batch: TensorDictBase) -> TensorDictBase | None:
        """Let them learn beside, if they do; return the minibatch with the teacher's values then."""
        if self.hook is None or not self._students_beside:
            return None
        return self.hook.learn_beside(self._beside, sub_batch)

    def _end_students(self, sub_batch: TensorDictBase, batch: TensorDictBase | None) -> None:
        """After the teacher's step: what follows an update, and the update itself if it was not begun beside."""
        if self.hook is None or self._late:
            return
        if batch is None:
            with self._watching("students"):
                self.hook.step(sub_batch)
        else:
            self.hook.after_update(sub_batch, batch)

    def _learn_late(self, sub_batch: TensorDictBase) -> None:
        """Let students that run the trained network, or its target, learn where those of the hook do."""
        if self.hook is not None and self._late:
            self.hook.step(sub_batch)

    @contextmanager
    def _watching(self, who: str) -> Iterator[None]:
        """At the first update, note whether somebody draws from torch's random stream inside."""
        before = None if self._began else torch.get_rng_state()
        yield
        if before is not None and not torch.equal(before, torch.get_rng_state()):
            self._drew.add(who)

    def _check(self, trainer: Trainer) -> None:
        """Refuse a trainer whose updates cannot be made so."""
        if self.stepper is None:
            self.check(trainer)
        self._late = self.students_run_the_teacher(trainer)
        device = next(trainer.loss_module.parameters()).device
        if device.type != "cpu":
            raise RuntimeError(
                f"students learn beside their teacher on a CPU: got networks on {device}, where kernels of several "
                "networks run side by side within a CudaGraphStepper; use that, or register the hook itself."
            )

    def _begin(self, trainer: Trainer) -> None:
        """Let run beside what can, from the second update on."""
        self._began = True
        loss: Any = trainer.loss_module
        if torch.is_autocast_enabled("cpu"):  # it keeps cast weights until it ends, for each thread
            return
        if hasattr(loss, "value_next_states_in") and "teacher" not in self._drew:
            loss.value_next_states_in(self._beside)
        students = {} if self.hook is None else self.hook.students
        networks = [student.student_network for student in students.values()]
        networks += [student.teacher_network for student in students.values() if student.teacher_network is not None]
        self._students_beside = (
            bool(students)
            and "students" not in self._drew
            and not self._late
            and not self._rates_change_with_updates(trainer)
            and all(same_in_training(network) for network in networks)
            and all(student.tensor_keys.priority is None for student in students.values())
        )

    def _rates_change_with_updates(self, trainer: Trainer) -> bool:
        """Return True if a schedule sets a student's learning rate after each update, while the student learns."""
        optimizers = () if self.hook is None else self.hook.optimizers.values()
        schedules = [hook for hook in hooks_of(trainer).values() if isinstance(hook, LRSchedulerHook)]
        return any(
            hook.interval == "optim" and any(hook.scheduler.optimizer is optimizer for optimizer in optimizers)
            for hook in schedules
        )
