"""Optimisation steps that make the update of the teacher and of its students themselves, in an order of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import PrioritizedSampler
from torchrl.trainers import OptimizationStepper, Trainer

from torchrl_rtpd.trainers._torchrl import has_module
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer

__all__ = ["WholeUpdate", "numbers", "stateless_parts", "teach", "total_loss"]


class WholeUpdate(OptimizationStepper):
    """Base of the steps that :class:`.CudaGraphStepper` and :class:`.ConcurrentStepper` make.

    As with every step of TorchRL's, what is registered with the trainer at ``process_loss``, ``post_loss`` and
    ``optimizer`` is not called.

    Args:
        hook: the students and how they learn, not registered itself; None makes the teacher's update alone.

    Raises:
        TypeError: another object than a hook.
    """

    updates_replay_priority = True

    def __init__(self, hook: RealTimeDistillTrainer | None = None) -> None:
        if hook is not None and not isinstance(hook, RealTimeDistillTrainer):
            raise TypeError(f"hook must be a RealTimeDistillTrainer or None: got {type(hook).__name__}.")
        self.hook = hook

    def register(self, trainer: Trainer, name: str = "optimization_stepper") -> None:
        """Become the trainer's optimisation step; the hook logs once a batch and is saved with its checkpoints.

        The step itself has no state and no place in them, so that a run may go on with another one.

        Raises:
            RuntimeError: a hook that is registered already; the trainer is left as it was.
        """
        if self.hook is not None:
            self.hook.register_log(trainer)  # refuses before anything is changed
        trainer.optimization_stepper = self

    @staticmethod
    def check(trainer: Trainer) -> None:
        """Refuse a trainer without an optimiser of the teacher."""
        if trainer.optimizer is None:
            raise RuntimeError(
                "the update of a teacher needs its optimiser: got optimizer=None; pass it to the trainer."
            )

    def students_run_the_teacher(self, trainer: Trainer) -> bool:
        """Return True if a student's loss runs weights of the teacher, or of its target, which change meanwhile."""
        own = (*trainer.loss_module.parameters(), *trainer.loss_module.buffers())
        trained = {tensor.data_ptr() for tensor in (*own, *_trained(trainer))}
        networks = () if self.hook is None else [loss.teacher_network for loss in self.hook.students.values()]
        read = (parameter for network in networks if network is not None for parameter in network.parameters())
        return any(parameter.data_ptr() in trained for parameter in read)

    @staticmethod
    def update_priority(trainer: Trainer, sub_batch: TensorDictBase) -> None:
        """Tell a prioritised replay the priorities that the minibatch holds, as the trainer does without a stepper."""
        replay_buffer: Any = getattr(trainer, "replay_buffer", None)
        if isinstance(getattr(replay_buffer, "sampler", None), PrioritizedSampler):
            replay_buffer.update_tensordict_priority(sub_batch)


def stateless_parts(trainer: Trainer) -> set[str]:
    """Parts of a checkpoint that earlier versions saved of such a step, although it has no state."""
    name = "optimization_stepper"
    ours = isinstance(trainer.optimization_stepper, WholeUpdate) and not has_module(trainer, name)
    return {f"trainer_module.{name}"} if ours else set()


def total_loss(losses: Mapping[str, Any] | TensorDictBase) -> Tensor:
    """Sum the entries whose names begin with "loss", as TorchRL's trainers do."""
    total = sum(value for key, value in losses.items() if key.startswith("loss"))
    assert isinstance(total, Tensor)
    return total


def numbers(metrics: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the numbers that a trainer logs, detached; those on the loss's device."""
    device = metrics["loss"].device
    return {name: value.detach() for name, value in metrics.items() if value.numel() == 1 and value.device == device}


def teach(trainer: Trainer, total: Tensor) -> Tensor:
    """Make the teacher's step as TorchRL does, and return its gradient's norm ``[]``, left on the device."""
    total.backward()
    parameters = _trained(trainer)
    if trainer.clip_grad_norm and trainer.clip_norm is not None:
        norm = _clipped(parameters, trainer.clip_norm)
    else:
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if trainer.clip_norm is not None:
            nn.utils.clip_grad_value_(parameters, trainer.clip_norm)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return norm


def _clipped(parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Clip gradients to a norm, and return the one before.

    PyTorch multiplies every gradient, by one where nothing is to be clipped. On a CPU, where nobody waits for the norm,
    that pass over the memory is left out; what comes out is the same to the last bit.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if norm.device.type != "cpu" or not clip_norm / (norm + 1e-6) >= 1:  # 1e-6 is PyTorch's; NaN is to spread
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm


def _trained(trainer: Trainer) -> list[nn.Parameter]:
    if trainer.optimizer is None:
        return []
    return [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
