"""The hook as an optimisation step, for trainers whose updates run elsewhere or are compiled whole."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.trainers import DefaultOptimizationStepper, OptimizationStepper, Trainer

from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer

__all__ = ["RealTimeDistillStepper"]


class RealTimeDistillStepper(OptimizationStepper):
    """The hook as an optimisation step, for trainers whose updates run elsewhere or are compiled whole.

    With several learner ranks each trains students of its own on its share of the batch; saved are those of the first.

    Args:
        hook: the students and how they learn. Do not register it as well.
        stepper: the teacher's own step. Default: :class:`~torchrl.trainers.DefaultOptimizationStepper`.

    Examples:
        >>> from functools import partial
        >>> from torch import nn
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> from torchrl_rtpd.objectives import DistillationLoss
        >>> student = QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
        >>> hook = RealTimeDistillTrainer(DistillationLoss(student), optimizer=partial(torch.optim.Adam, lr=5e-4))
        >>> stepper = RealTimeDistillStepper(hook)  # then Trainer(..., optimization_stepper=stepper)
    """

    updates_replay_priority = True

    def __init__(self, hook: RealTimeDistillTrainer, stepper: OptimizationStepper | None = None) -> None:
        self.hook = hook
        self.stepper = DefaultOptimizationStepper() if stepper is None else stepper
        self._attached = False

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Make one update of the teacher and of every student; return their detached metrics."""
        if not self._attached:
            self.hook.attach(trainer)
            self._attached = True
        metrics = self.stepper.step(trainer, sub_batch).detach()
        replay_buffer = getattr(trainer, "replay_buffer", None)
        update_priority = getattr(replay_buffer, "update_tensordict_priority", None)
        if update_priority is not None and not getattr(self.stepper, "updates_replay_priority", False):
            update_priority(sub_batch)
        self.hook.step(sub_batch)
        for name, value in (self.hook.log() or {}).items():
            metrics.set(name, torch.tensor(value))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the teacher's step and of the hook."""
        return {"stepper": self.stepper.state_dict(), "hook": self.hook.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.stepper.load_state_dict(state_dict["stepper"])
        self.hook.load_state_dict(state_dict["hook"])
