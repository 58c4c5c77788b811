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

    With several learner ranks, each of which has a share of the batch, the students' gradients are averaged over the
    ranks as TorchRL averages the teacher's, so that all ranks hold the same students. A check that draws at random
    (``RecyclingCheck``) draws for itself on each rank and makes them differ; saved are those of the first.

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
            self._average_over_ranks(getattr(trainer, "process_group", None))
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

    def _average_over_ranks(self, ranks: Any) -> None:
        """Average each gradient of a student over the learners as soon as it is complete, in their own group."""
        if ranks is None or ranks.world_size == 1:
            return

        def average(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None  # just accumulated
            torch.distributed.all_reduce(gradient, group=ranks.process_group)
            gradient.div_(ranks.world_size)

        for student in self.hook.learners.values():
            for parameter in student.loss.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(average)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the teacher's step and of the hook."""
        return {"stepper": self.stepper.state_dict(), "hook": self.hook.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.stepper.load_state_dict(state_dict["stepper"])
        self.hook.load_state_dict(state_dict["hook"])
