"""Distillation inside a running TorchRL trainer.

:class:`RealTimeDistillTrainer` is a hook: after each update of the teacher every student learns from the very same
minibatch. One update, in order::

    sample [B] -> teacher: loss, backward, step (TorchRL's) -> each student: loss, backward, clip, step, target

The teacher's values of the minibatch are those its own loss has just computed, before its step; nothing is sampled
twice, nothing is drawn from a random generator (unless by a student's own dropout), and no gradient leaves a student.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import unravel_key
from torch import Tensor, nn
from torchrl.modules import NoisyLinear
from torchrl.objectives import HardUpdate, SoftUpdate
from torchrl.objectives.utils import TargetNetUpdater
from torchrl.trainers import (
    DefaultOptimizationStepper,
    OptimizationStepper,
    ReplayBufferTrainer,
    Trainer,
    TrainerHookBase,
)

from torchrl_rtpd.networks import dormant_share
from torchrl_rtpd.objectives import DistillationLoss

__all__ = ["KeepWarmupData", "RealTimeDistillStepper", "RealTimeDistillTrainer", "SampleToDevice"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
UpdaterFactory = Callable[[DistillationLoss], TargetNetUpdater]

# Layers whose training-mode outputs are no targets: random, or moved by the batch.
_TRAINING_LAYERS = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, NoisyLinear)


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
        dormant_every_updates: minibatches between two measurements of dormant units, after one at the first; see
            :func:`~torchrl_rtpd.networks.dormant_share`. None never measures.
        dormant_warning: share of dormant units, in a student's worst layer, above which it is reported, once.

    Logged once a batch, as averages over its updates: ``distill/<student>/loss``, ``kl_to_teacher``, ``agreement``,
    ``teacher_entropy``, ``student_entropy``, ``loss_distill`` and ``loss_td``, and ``dormant`` when measured.

    Raises:
        TypeError: a student that is not a :class:`~torchrl_rtpd.objectives.DistillationLoss`.
        ValueError: no student, one whose loss is not reduced, or a missing or unknown name among the optimisers;
            numbers out of range.
        RuntimeError: at ``register``, a Ray learner backend, or a target updater that cannot be derived.

    Examples:
        >>> from functools import partial
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> student = QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
        >>> students = {"tiny": DistillationLoss(student)}
        >>> hook = RealTimeDistillTrainer(students, optimizer=partial(torch.optim.Adam, lr=5e-4))
        >>> hook  # then hook.register(trainer)
        RealTimeDistillTrainer(students=['tiny'])
    """

    def __init__(
        self,
        students: DistillationLoss | Mapping[str, DistillationLoss],
        *,
        optimizer: OptimizerFactory | Mapping[str, OptimizerFactory],
        clip_norm: float | None = None,
        updates_per_step: int = 1,
        target_updater: UpdaterFactory | None = None,
        dormant_every_updates: int | None = 500,
        dormant_warning: float = 0.9,
    ) -> None:
        if isinstance(students, DistillationLoss):
            students = {"student": students}
        _check_students(students)
        if updates_per_step < 1 or (clip_norm is not None and clip_norm <= 0):
            raise ValueError(
                "updates_per_step must be at least 1 and clip_norm positive or None: "
                f"got updates_per_step={updates_per_step}, clip_norm={clip_norm}."
            )
        self.students = dict(students)
        self.clip_norm = clip_norm
        self.updates_per_step = updates_per_step
        self.dormant_every_updates = dormant_every_updates
        self.dormant_warning = dormant_warning
        self.updates = 0
        self.metrics: dict[str, float] = {}  # the last averages, for whoever shows progress
        factories = optimizer if isinstance(optimizer, Mapping) else dict.fromkeys(self.students, optimizer)
        if factories.keys() != self.students.keys():
            raise ValueError(
                f"optimizer must name every student, {sorted(self.students)}: got {sorted(factories)}; "
                "pass one factory to serve them all."
            )
        self.optimizers = {name: factories[name](list(loss.parameters())) for name, loss in self.students.items()}
        self._target_updater = target_updater
        self.target_updaters: dict[str, TargetNetUpdater] = {}
        self._teacher = _TeacherValues()
        self._sums: dict[str, dict[str, Tensor]] = {name: {} for name in self.students}
        self._num_summed = 0
        self._dormant: dict[str, float] | None = None  # not measured yet
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
        self.prepare(trainer)
        trainer.register_op("post_optim_log", self.step)
        trainer.register_op("post_optim_complete_log", self.averages)
        trainer.register_module(name, self)

    def prepare(self, trainer: Trainer) -> None:
        """Find the trainer's teacher and give each student its target updater; called by :meth:`register`."""
        self._teacher.attach(trainer.loss_module)
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
        batch = self._teacher.added_to(sub_batch, self.students.values())
        for name, loss in self.students.items():
            for _ in range(self.updates_per_step):
                self._update(name, loss, batch)
        self.updates += 1
        self._num_summed += self.updates_per_step
        every = self.dormant_every_updates
        # Measured at once too: a stepper must return the same metrics at every update.
        if every and (self._dormant is None or self.updates % every == 0):
            self._measure_dormant(batch)

    def _update(self, name: str, loss: DistillationLoss, batch: TensorDictBase) -> None:
        optimizer = self.optimizers[name]
        losses = loss(batch)
        total = sum(value for key, value in losses.items() if key.startswith("loss"))
        total.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(loss.parameters(), self.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if name in self.target_updaters:
            self.target_updaters[name].step()
        sums = self._sums[name]
        for key, value in (*losses.items(), ("loss", total)):
            value = value.detach()
            sums[key] = sums[key] + value if key in sums else value

    def averages(self, *_: Any) -> dict[str, float] | None:
        """Means since the last call, by metric name; one device synchronisation for all of them."""
        if not self._num_summed:
            return None
        names = [f"distill/{name}/{key}" for name, sums in self._sums.items() for key in sums]
        values = torch.stack([value for sums in self._sums.values() for value in sums.values()]) / self._num_summed
        self._sums = {name: {} for name in self.students}
        self._num_summed = 0
        metrics = dict(zip(names, values.tolist(), strict=True))
        metrics.update((f"distill/{name}/dormant", share) for name, share in (self._dormant or {}).items())
        self.metrics = metrics
        return metrics

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
        """Students, their targets and temperatures, optimisers, target counters and the number of updates."""
        return {
            "students": {name: loss.state_dict() for name, loss in self.students.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "target_updaters": {name: updater.state_dict() for name, updater in self.target_updaters.items()},
            "updates": self.updates,
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
        self.updates = int(state_dict["updates"])


class RealTimeDistillStepper(OptimizationStepper):
    """The hook as an optimisation step, for trainers whose updates run elsewhere or are compiled whole.

    With several learner ranks each trains students of its own on its share of the batch; saved are those of the first.

    Args:
        hook: the students and how they learn. Do not register it as well.
        stepper: the teacher's own step. Default: :class:`~torchrl.trainers.DefaultOptimizationStepper`.

    Examples:
        >>> from functools import partial
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> student = QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
        >>> hook = RealTimeDistillTrainer(DistillationLoss(student), optimizer=partial(torch.optim.Adam, lr=5e-4))
        >>> stepper = RealTimeDistillStepper(hook)  # then Trainer(..., optimization_stepper=stepper)
    """

    updates_replay_priority = True

    def __init__(self, hook: RealTimeDistillTrainer, stepper: OptimizationStepper | None = None) -> None:
        self.hook = hook
        self.stepper = DefaultOptimizationStepper() if stepper is None else stepper
        self._prepared = False

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """One update of the teacher and of every student; returns their detached metrics."""
        if not self._prepared:
            self.hook.prepare(trainer)
            self._prepared = True
        metrics = self.stepper.step(trainer, sub_batch).detach()
        replay_buffer = getattr(trainer, "replay_buffer", None)
        update_priority = getattr(replay_buffer, "update_tensordict_priority", None)
        if update_priority is not None and not getattr(self.stepper, "updates_replay_priority", False):
            update_priority(sub_batch)
        self.hook.step(sub_batch)
        for name, value in (self.hook.averages() or {}).items():
            metrics.set(name, torch.tensor(value))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """State of the teacher's step and of the hook."""
        return {"stepper": self.stepper.state_dict(), "hook": self.hook.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.stepper.load_state_dict(state_dict["stepper"])
        self.hook.load_state_dict(state_dict["hook"])


class KeepWarmupData(TrainerHookBase):
    """Store the batches of the warm-up, which TorchRL's off-policy trainers collect and throw away.

    They extend the replay buffer only in batches that also optimise, so what comes before ``init_random_frames`` is
    lost.

    Args:
        replay_buffer: the trainer's buffer.
    """

    def __init__(self, replay_buffer: Any) -> None:
        self.replay_buffer = replay_buffer
        self._storer = ReplayBufferTrainer(replay_buffer, flatten_tensordicts=True)
        self._trainer: Trainer | None = None

    def register(self, trainer: Trainer, name: str = "keep_warmup_data") -> None:
        """Attach to a trainer."""
        self._trainer = trainer
        trainer.register_op("batch_process", self.extend)

    def extend(self, batch: TensorDictBase) -> None:
        """Store ``batch`` ``[N, T]``, as TorchRL would, if the trainer will not."""
        trainer = self._trainer
        if trainer is None:
            raise RuntimeError("extend was called before register: call hook.register(trainer) first.")
        mask = batch.get(("collector", "mask"), None)
        steps = batch.numel() if mask is None else int(mask.sum())
        if trainer.collected_frames + steps * trainer.frame_skip < trainer.collector.init_random_frames:
            self._storer.extend(batch)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the hook holds no state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class SampleToDevice(TrainerHookBase):
    """Move each minibatch to the learner's device, after TorchRL has moved it to the storage's.

    Args:
        device: where the loss lives.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def register(self, trainer: Trainer, name: str = "sample_to_device") -> None:
        """Attach to a trainer, after its own sampling."""
        trainer.register_op("process_optim_batch", self.to_device)

    def to_device(self, sub_batch: TensorDictBase) -> TensorDictBase:
        """The minibatch on the device."""
        # To the CPU the copy must have arrived when it is read.
        return sub_batch.to(self.device, non_blocking=self.device.type == "cuda")

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the hook holds no state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class _TeacherValues:
    """The teacher's values of a minibatch, overheard from its own loss. What is not heard the students' losses compute.

    A DQN loss runs its network on the state and, with target parameters, on the next state (last). Both calls are
    recognised by the very tensors of the minibatch, so that values of another batch are never taken. A teacher with
    dropout, batch normalisation or noisy layers is not listened to: targets come from its eval mode.
    """

    def __init__(self) -> None:
        self._network: TensorDictModule | None = None
        self._heard: list[tuple[Tensor, Tensor]] = []  # input and values of each call since the last minibatch

    def attach(self, loss_module: nn.Module) -> None:
        names = ("value_network", "local_value_network", "actor_network")
        network = next((getattr(loss_module, name) for name in names if hasattr(loss_module, name)), None)
        if network is None or "action_value" not in network.out_keys:
            return
        if not any(isinstance(layer, _TRAINING_LAYERS) for layer in network.modules()):
            self._network = network
            network.register_forward_hook(self._hear)

    def __deepcopy__(self, memo: dict) -> _TeacherValues:
        return _TeacherValues()  # a copied network takes this hook along, but is not listened to

    def _hear(self, network: Any, inputs: tuple[Any, ...], output: TensorDictBase) -> None:
        observation_key = network.in_keys[0]
        if network is self._network and isinstance(output, TensorDictBase):
            self._heard.append((output.get(observation_key), output.get("action_value").detach()))
            del self._heard[:-4]  # collection with the same network overhears itself: keep the last few only

    def added_to(self, sub_batch: TensorDictBase, losses: Iterable[DistillationLoss]) -> TensorDictBase:
        """A shallow copy of the minibatch with the teacher's values, under the keys the losses read."""
        (heard, self._heard), network = (self._heard, []), self._network
        if not heard or network is None:
            return sub_batch
        batch = sub_batch.copy()
        if "next" in batch.keys():
            batch.set("next", batch.get("next").copy())
        current = DistillationLoss.default_keys.teacher_action_value
        for key in dict.fromkeys(unravel_key(loss.tensor_keys.teacher_action_value) for loss in losses):
            for prefix in ((), ("next",)):
                target = unravel_key((*prefix, key))
                if key != current and batch.get(target, None) is not None:
                    continue  # stored values under a key of their own were asked for
                observation = batch.get(unravel_key((*prefix, network.in_keys[0])), None)
                values = next((values for tensor, values in reversed(heard) if tensor is observation), None)
                if values is not None:
                    batch.set(target, values)
        return batch


def _check_students(students: Mapping[str, DistillationLoss]) -> None:
    if not students:
        raise ValueError("students must hold at least one loss: got none; without students use the plain trainer.")
    for name, loss in students.items():
        if not isinstance(loss, DistillationLoss):
            raise TypeError(
                f"student {name!r} must be a DistillationLoss or StudentDQNLoss: got {type(loss).__name__}; "
                "wrap the network in one of them."
            )
        if loss.reduction == "none":
            raise ValueError(f"the loss of student {name!r} must be reduced: got reduction='none'; use 'mean'.")


def _updater_like(updater: TargetNetUpdater | None, loss: DistillationLoss) -> TargetNetUpdater:
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
