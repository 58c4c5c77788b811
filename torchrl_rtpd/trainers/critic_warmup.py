"""A critic's head start: it learns alone until it can judge the policy that it was given."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn
from torchrl.trainers import Trainer, TrainerHookBase

from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.trainers._torchrl import check_part, runs_elsewhere
from torchrl_rtpd.trainers.cudagraph import CudaGraphStepper
from torchrl_rtpd.trainers.policies import critic_parameters

__all__ = ["CriticWarmup"]


class CriticWarmup(TrainerHookBase):
    """Hook that freezes all but the critic of PPO, SAC or the like for the first updates.

    A policy that can already play, such as a distilled student, is soon spoilt by the advantages of a critic that knows
    nothing. Frozen are the actor, layers that it shares with the critic, and an entropy coefficient that is learned.
    The optimiser passes frozen parameters over: weights and moments stay as they are. A run that ends before the
    warm-up warns of it.

    Args:
        updates: minibatches from which the critic learns alone, at least 1.

    Raises:
        ValueError: no such number; at ``register``, a loss without actor and critic.
        RuntimeError: at ``register``, learners in other processes, a name that is taken, or an update that is captured
            as a CUDA graph.

    Examples:
        >>> hook = CriticWarmup(1_000)  # then hook.register(trainer)
        >>> hook.is_over
        False
    """

    def __init__(self, updates: int) -> None:
        check_integers(1, updates=updates)
        self.warmup_updates = updates
        self.updates = 0
        self._frozen: list[nn.Parameter] = []

    @property
    def is_over(self) -> bool:
        """True once the actor learns as well."""
        return self.updates >= self.warmup_updates

    def register(self, trainer: Trainer, name: str = "critic_warmup") -> None:
        """Attach to a trainer, and freeze what waits for the critic."""
        if runs_elsewhere(trainer):
            raise RuntimeError(
                "a critic's warm-up runs in the trainer's process, but learner_backend='ray' updates it in remote "
                "ones; train with learner_backend='local'."
            )
        if isinstance(trainer.optimization_stepper, CudaGraphStepper):
            raise RuntimeError(
                "a critic's warm-up changes what an update does, which a captured one cannot follow: got a "
                "CudaGraphStepper; leave it out."
            )
        check_part(trainer, name)
        loss = trainer.loss_module
        critics = {id(parameter) for parameter in critic_parameters(loss)}
        if not critics:
            raise ValueError(
                f"a critic's warm-up needs a loss with an actor and a critic: got {type(loss).__name__}; leave it out."
            )
        waiting = [parameter for parameter in loss.parameters() if id(parameter) not in critics]
        self._frozen = [parameter for parameter in waiting if parameter.requires_grad]
        self._freeze()
        trainer.register_op("post_optim", self.after_update)
        trainer.register_op("shutdown", partial(self.after_training, weakref.proxy(trainer)))
        trainer.register_module(name, self)

    def after_update(self) -> None:
        """Count a minibatch, and let the actor learn once the critic is ready; called after each."""
        self.updates += 1
        if self.updates == self.warmup_updates:
            self._freeze()

    def after_training(self, trainer: Trainer) -> None:
        """Warn of a warm-up that was longer than the run; called when the trainer has ended."""
        if not self.is_over and trainer.collected_frames >= trainer.total_frames:
            warnings.warn(
                f"the actor never learned: the critic's warm-up takes {self.warmup_updates} updates, and the run had "
                f"{self.updates}; take a shorter warm-up, or go on from a checkpoint with more frames.",
                stacklevel=2,
            )

    def _freeze(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(self.is_over)
            parameter.grad = None  # of an update before, on which the optimiser would act

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, before or after :meth:`register`."""
        self.updates = int(state_dict["updates"])
        self._freeze()
