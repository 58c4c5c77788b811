"""Kickstarting: reinforcement learning with a pull to a teacher, both in one optimiser step.

The pull is added to what the trainer's own loss returns, which stays the very object it is: target updaters, keys,
value estimators, checkpoints and hooks that look for its class find what they know. One update, in order::

    sample [B] -> loss of the trainer -> + coefficient * divergence to the teacher -> backward, clip, step (TorchRL's)
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import nn
from torchrl.objectives import DQNLoss, LossModule
from torchrl.trainers import Trainer, TrainerHookBase

from torchrl_rtpd.functional.checks import check_within, real_number
from torchrl_rtpd.networks.running import eval_mode
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.teacher_dqn import refuse_without_choice
from torchrl_rtpd.schedules import (
    ExponentialSchedule,
    GapSchedule,
    KLGate,
    LinearSchedule,
    PiecewiseSchedule,
    Schedule,
)
from torchrl_rtpd.trainers._torchrl import adaptive_rates, check_part, runs_elsewhere
from torchrl_rtpd.trainers.cudagraph import CudaGraphStepper
from torchrl_rtpd.trainers.own_teachers import evaluated, trained_keys
from torchrl_rtpd.trainers.policies import acts_by_values, policy_of
from torchrl_rtpd.trainers.returns import Returns

__all__ = ["Kickstarting"]

_LOSS = "loss_distill"
_WITHOUT_ENTROPY = (LinearSchedule, ExponentialSchedule, PiecewiseSchedule, GapSchedule)  # which never read it
_OWN_STATE = "student_network_params"  # of the student's weights, which the trainer's loss saves


class Kickstarting(TrainerHookBase):
    r"""Hook that pulls the policy a TorchRL trainer is learning to that of a teacher, less and less.

    Schmitt et al. 2018 (https://arxiv.org/abs/1803.03835): :math:`L = L_{RL} + \lambda \, D(\pi_T, \pi_S)`, in which
    the student acts for itself and the coefficient falls to 0. The paper's cross-entropy has the gradient of the
    forward KL. ``hook.register(trainer)`` is the whole integration: any loss with an acting network (DQN, PQN, PPO,
    SAC with discrete or continuous actions, TD3) and any trainer that learns in this process. The critic feels nothing
    of the pull, unless it shares layers with the actor. While the coefficient is 0 training is bit for bit that of the
    trainer alone, and neither teacher nor student is run for it, except once a batch for a schedule that may follow the
    teacher's entropy, such as a :class:`.KLGate`, which would never open otherwise.

    Args:
        loss: a :class:`.DistillationLoss` or :class:`.ContinuousDistillationLoss` of the very network that the
            trainer's loss trains, usually with a frozen teacher. A policy's logits are compared at temperatures of 1.
            A network of action values needs one temperature for both sides, ``student_temperature=None``.

    Keyword Args:
        distill_coeff: coefficient of the pull, at least 0, or a schedule of it over updates, applied once a batch.
            Default: 1.0, which does not fall.

    Logged with the trainer's own losses: ``loss_distill``, which is the divergence times the coefficient, and the
    metrics of ``loss``, such as ``kl_to_teacher`` and ``agreement``; they end with the pull. Once a batch:
    ``kickstart/distill_coeff``.

    Without a trainer, in a loop of your own: :meth:`attach` to the loss, :meth:`after_update` after each step and
    :meth:`log` once a batch. A copy of the loss (:func:`copy.deepcopy`, :mod:`pickle`, :func:`torch.save`) has no pull
    and holds nothing of the trainer; attach another hook where it is to be pulled.

    Warning: a rate that follows the policy's KL (:class:`~torchrl.objectives.KLAdaptiveLR`) takes the pull for steps
    that are too large and lowers itself, so that the student comes to its teacher more slowly or stalls. One that is
    found in the trainer is reported.

    Attributes:
        loss: the distillation loss.
        distill_coeff: coefficient now.
        updates: minibatches learned from, those before a restart included.

    Raises:
        TypeError: something that is no distillation loss, no schedule, or a trainer's loss without an acting network.
        ValueError: a distillation loss with a temporal-difference error of its own or one that is not reduced, a
            negative coefficient, a gate that could never open; at ``register``, a second pull of a loss, a loss of
            another network, a teacher that is the student or, beside a loss that writes its own values for students,
            none, or the temperatures of a policy on a network of action values. At an update, names that the trainer's
            loss writes already.
        RuntimeError: at ``register``, learners in other processes, a name that is taken, or a second loss; as training
            begins, an update captured as a CUDA graph, in which the coefficient could not change.

    Examples:
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> from torchrl.objectives import DQNLoss
        >>> from torchrl_rtpd import DistillationLoss, LinearSchedule
        >>> actor = lambda: QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3))
        >>> student, teacher = actor(), actor().requires_grad_(False)
        >>> pull = DistillationLoss(student, teacher, teacher_temperature=0.1, student_temperature=None)
        >>> hook = Kickstarting(pull, distill_coeff=LinearSchedule(1.0, 0.0, end_updates=10_000))
        >>> hook.attach(DQNLoss(student, delay_value=False))  # or hook.register(trainer)
        >>> hook.distill_coeff
        1.0
    """

    def __init__(self, loss: PolicyDistillationLoss, *, distill_coeff: float | Schedule = 1.0) -> None:
        _check_loss(loss)
        if not isinstance(distill_coeff, Schedule):
            if real_number(distill_coeff) is None:
                raise TypeError(
                    f"distill_coeff must be a number or a Schedule: got {type(distill_coeff).__name__}; write "
                    "LinearSchedule(1.0, 0.0, end_updates=10_000)."
                )
            check_within("[0, inf)", "0 leaves the trainer alone", distill_coeff=distill_coeff)
            distill_coeff = PiecewiseSchedule({0: float(distill_coeff)})
        _check_gate(loss, distill_coeff)
        self.loss = loss
        self.updates = 0
        self.distill_coeff = 0.0
        self._schedule = distill_coeff
        self._returns = Returns()
        self._entropy: Any = None  # of the teacher, at the last update
        self._trainer: Any = None
        self._pull: _Pull | None = None
        self._trained_keys: list[NestedKey] | None = None  # hidden from the pull; found at the first minibatch
        self._apply_schedule()

    # Attaching

    def register(self, trainer: Trainer, name: str = "kickstarting") -> None:
        """Attach to a trainer: pull at each of its updates, log once a batch, be saved with its checkpoints."""
        if runs_elsewhere(trainer):
            raise RuntimeError(
                "kickstarting runs in the trainer's process, but learner_backend='ray' updates the student in remote "
                "ones; train with learner_backend='local'."
            )
        _refuse_second_pull(trainer.loss_module)
        check_part(trainer, name)
        self.attach(trainer.loss_module)
        self._trainer = trainer
        trainer.register_op("setup", self.before_training)
        trainer.register_op("post_optim", self.after_update)
        trainer.register_op("post_optim_complete_log", self.log)
        trainer.register_module(name, self)

    def attach(self, rl_loss: LossModule) -> None:
        """Add the pull to what a loss returns from now on; called by :meth:`register`.

        Args:
            rl_loss: trains the network that ``loss`` has as its student. It is called with a tensordict.
        """
        if self._pull is not None:
            raise RuntimeError("a Kickstarting serves one loss: got a second one; build a hook for each.")
        _refuse_second_pull(rl_loss)
        if isinstance(rl_loss, DQNLoss):
            refuse_without_choice(rl_loss.value_network)
        _check_networks(self.loss, rl_loss)
        if getattr(rl_loss, "reduction", "mean") == "none":
            raise ValueError("the trainer's loss must be reduced: got reduction='none'; use 'mean'.")
        if self.loss.teacher_network is None and _written_for_students(self.loss, rl_loss) is not None:
            raise ValueError(
                f"the pull needs a teacher of its own: {type(rl_loss).__name__} writes the student's values where the "
                "pull reads its teacher's; give the distillation loss a teacher_network."
            )
        self.loss.follow(rl_loss)
        self._pull = _Pull(self, rl_loss)
        rl_loss.register_forward_hook(self._pull, with_kwargs=True)

    def before_training(self) -> None:
        """Look at the trainer's parts, once all of them are in place; called as training begins."""
        if isinstance(self._trainer.optimization_stepper, CudaGraphStepper):
            raise RuntimeError(
                "kickstarting needs an update that is run, not captured, as its coefficient changes: got a "
                "CudaGraphStepper; leave it out."
            )
        rates = [rate for rate in adaptive_rates(self._trainer) if rate.optimizer is self._trainer.optimizer]
        if rates:
            warnings.warn(
                "KLAdaptiveLR lowers the learning rate while the policy moves, and a pull to a teacher moves it: the "
                f"rate may fall as far as its min_lr, {rates[0].min_lr}, and the student comes to its teacher more "
                "slowly or not at all. Use a rate that follows time, such as LambdaLR, while distill_coeff is above 0, "
                "or raise min_lr.",
                stacklevel=2,
            )

    # Learning

    def add_to(self, losses: Any, rl_loss: nn.Module, batch: Any) -> Any:
        """Return the losses of a minibatch with divergence and metrics; called by the loss that is pulled."""
        if self.distill_coeff == 0:
            self._measure_entropy(rl_loss, batch)
            return losses
        if not isinstance(batch, TensorDictBase) or not isinstance(losses, TensorDictBase):
            raise TypeError(
                f"a loss with kickstarting takes and returns tensordicts: got {type(batch).__name__} and "
                f"{type(losses).__name__}; call it as loss(tensordict)."
            )
        pull = self._evaluated(rl_loss, batch)
        taken = sorted(set(pull.keys()) & set(losses.keys()))
        if taken:
            raise ValueError(
                f"the pull and the trainer's loss must write different names: got {taken} from both; use a loss of "
                "reinforcement learning alone, or one pull."
            )
        self._entropy = pull.get("teacher_entropy", None)
        pull.set(_LOSS, pull.get(_LOSS) * self.distill_coeff)
        return losses.update(pull)

    def _evaluated(self, rl_loss: nn.Module, batch: TensorDictBase) -> TensorDictBase:
        if self._trained_keys is None:  # once entries have their names
            self._trained_keys = trained_keys(self.loss, rl_loss)
        return evaluated(self.loss, batch, self._trained_keys)

    @torch.no_grad()
    def _measure_entropy(self, rl_loss: nn.Module, batch: Any) -> None:
        """Let a schedule that may follow the teacher's entropy see it while the pull is nothing, once a batch."""
        if (
            type(self._schedule) in _WITHOUT_ENTROPY
            or self._entropy is not None
            or not isinstance(batch, TensorDictBase)
        ):
            return
        with eval_mode(self.loss.student_network):  # draws nothing, and moves no statistics
            self._entropy = self._evaluated(rl_loss, batch.copy()).get("teacher_entropy", None)

    def after_update(self) -> None:
        """Count a minibatch; called after each."""
        self.updates += 1

    def log(self, *_: Any) -> dict[str, float]:
        """Return the coefficient of the last batch, by metric name, and set that of the next; called once a batch."""
        logged = {"kickstart/distill_coeff": self.distill_coeff}
        self._apply_schedule()
        return logged

    def report_returns(self, student_return: float, teacher_return: float, random_return: float) -> None:
        """Tell a schedule that follows returns, such as :class:`.GapSchedule`, the scores of an evaluation.

        Args:
            student_return: raw return of the network that learns.
            teacher_return: raw return of the teacher.
            random_return: raw return of a random player.
        """
        self._returns.report({"student": student_return}, teacher_return, random_return)

    def _apply_schedule(self) -> None:
        known = {} if self._entropy is None else {"distill/student/teacher_entropy": self._entropy.mean().item()}
        self._entropy = None  # each batch is seen once
        value = float(self._schedule(self._returns.run_state(self.updates, ["student"], known)))
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"distill_coeff must be finite and not negative: its schedule gave {value} after {self.updates} "
                "updates; end it at 0."
            )
        self.distill_coeff = value

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return coefficient, schedule and updates, and the state of the distillation loss without the networks."""
        own = {name: value for name, value in self.loss.state_dict().items() if not _is_weight(name)}
        return {
            "distill_coeff": self.distill_coeff,
            "schedule": self._schedule.state_dict(),
            "returns": self._returns.state_dict(),
            "updates": self.updates,
            "loss": own,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, before or after :meth:`register`."""
        self._schedule.load_state_dict(state_dict["schedule"])
        self._returns.load_state_dict(state_dict["returns"])
        own = {name: value for name, value in self.loss.state_dict().items() if _is_weight(name)}
        self.loss.load_state_dict({**own, **state_dict["loss"]})
        self.updates = int(state_dict["updates"])
        self.distill_coeff = float(state_dict["distill_coeff"])


class _Pull:
    """Forward hook of a loss that is pulled. A copy of the loss, and one that was pickled, has one without a pull."""

    def __init__(self, hook: Kickstarting | None = None, rl_loss: nn.Module | None = None) -> None:
        self.hook = hook
        self._rl_loss = None if rl_loss is None else weakref.ref(rl_loss)

    def __call__(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], losses: Any) -> Any:
        if not self.pulls(module):
            return losses
        assert self.hook is not None
        return self.hook.add_to(losses, module, args[0] if args else kwargs.get("tensordict"))

    def pulls(self, module: nn.Module) -> bool:
        """Return True for the loss itself, and not for one that shares its hooks."""
        return self._rl_loss is not None and self._rl_loss() is module

    def __reduce__(self) -> tuple[type[_Pull], tuple[()]]:
        return _Pull, ()


def _refuse_second_pull(rl_loss: nn.Module) -> None:
    hooks = getattr(rl_loss, "_forward_hooks", {}).values()
    if any(isinstance(hook, _Pull) and hook.pulls(rl_loss) for hook in hooks):
        raise ValueError(
            f"a loss has one pull, under whose names it is logged: got a second Kickstarting of a "
            f"{type(rl_loss).__name__}; pull to several teachers by a TeacherMixture or a TeacherByKey."
        )


def _is_weight(name: str) -> bool:
    return name.startswith(_OWN_STATE)


def _written_for_students(loss: PolicyDistillationLoss, rl_loss: nn.Module) -> NestedKey | None:
    """Key under which the trainer's loss writes its network's values, if a pull reads its teacher's there."""
    read = getattr(loss.tensor_keys, "teacher_action_value", None)
    written = getattr(rl_loss.tensor_keys, "teacher_action_value", None)
    return read if getattr(rl_loss, "shares_values", False) and read == written else None


def _check_loss(loss: PolicyDistillationLoss) -> None:
    if not isinstance(loss, PolicyDistillationLoss):
        raise TypeError(
            f"the pull must be a DistillationLoss or ContinuousDistillationLoss: got {type(loss).__name__}; the "
            "trainer's own loss stays with the trainer."
        )
    others = [name for name in loss.out_keys if name.startswith("loss") and name != _LOSS]
    if others:
        raise ValueError(
            f"the pull must be a divergence alone: got {type(loss).__name__}, which adds {', '.join(others)} to the "
            "error of the trainer's own loss; use DistillationLoss."
        )
    if loss.reduction == "none":
        raise ValueError("the pull must be reduced: got reduction='none'; use 'mean'.")


def _check_gate(loss: PolicyDistillationLoss, schedule: Schedule) -> None:
    """Refuse a gate on a loss that measures no entropy over discrete actions: it would never open."""
    if isinstance(schedule, KLGate) and not isinstance(loss, DistillationLoss):
        raise ValueError(
            f"a KLGate follows a teacher's entropy over discrete actions: got one for a {type(loss).__name__}, which "
            "measures none; use a schedule of updates or a GapSchedule."
        )


def _check_networks(loss: PolicyDistillationLoss, rl_loss: LossModule) -> None:
    """Refuse a pull on another network than the one that acts, one to itself, and one that spoils action values."""
    acting = {id(parameter) for parameter in policy_of(rl_loss).parameters()}
    pulled = [id(parameter) for parameter in loss.parameters()]
    strange = [parameter for parameter in pulled if parameter not in acting]
    if strange or not pulled:
        raise ValueError(
            f"the pull must be on the very network that {type(rl_loss).__name__} trains: got {len(strange)} of "
            f"{len(pulled)} parameters of another; build the distillation loss on the same module, or a part of it."
        )
    teacher = loss.teacher_network
    if teacher is not None and any(id(parameter) in acting for parameter in teacher.parameters()):
        raise ValueError(
            "teacher and student must be two networks: got a teacher with parameters of the student; give the pull a "
            "copy.deepcopy of the network as it was."
        )
    if not isinstance(loss, DistillationLoss) or not acts_by_values(rl_loss) or loss.student_temperature is None:
        return
    student, given = loss.student_temperature.item(), loss.teacher_temperature.item()
    if loss.divergence not in ("mse", "huber") and student == 1.0 and given < 1.0:
        raise ValueError(
            "a network of action values needs the teacher's temperature, or the pull makes its outputs logits: got "
            f"student_temperature={student} and teacher_temperature={given:.4g}; pass student_temperature=None, and a "
            "teacher_temperature of about 0.1."
        )
