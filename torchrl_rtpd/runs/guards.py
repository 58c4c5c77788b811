"""Watching for a run that goes wrong, without making the device wait: one look a batch.

Looked at are the means that trainer and hook have summed anyway, and the size of the weights.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.trainers import Trainer, TrainerHookBase

from torchrl_rtpd.runs.checkpoints import SaveCheckpoints
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer

__all__ = ["DivergenceError", "DivergenceGuard"]

POLICIES = ("stop", "skip", "rollback")
_REMEMBERED, _ENOUGH = 100, 10  # batches whose losses are remembered, and are needed to know what is usual
_LEAST = 1e-3  # a usual loss below this counts as this: a multiple of almost nothing is no explosion
_ENDLESS = 20  # batches in a row with skipped updates, after which skipping is given up


class DivergenceError(RuntimeError):
    """Training has diverged: the message says at which step, in which part, and where to go on."""


class DivergenceGuard(TrainerHookBase):
    """Hook that notices non-finite losses, gradients and weights, exploding student losses and a collapsing teacher.

    Args:
        distiller: the students' hook; None takes the trainer's own, if it has one.
        policy: what to do.

            - ``"stop"``: raise a :class:`DivergenceError`. With a ``saver`` the state as it is lies in
              ``diverged-<steps>`` beside the checkpoints, of which none is touched.
            - ``"skip"``: leave out updates whose gradient is not finite, and warn. A fused optimiser of torch leaves
              such an update out altogether, on the device; any other one makes a step with a gradient of zero, which
              may still move weights by its momentum. Finite updates keep their bits. What no skipping can undo (weights
              that are not finite, twenty batches in a row with skipped updates) stops; explosions and collapses warn.
            - ``"rollback"``: go back to the best checkpoint, or without evaluations to the newest, with networks,
              targets and optimisers; time, data and random numbers go on. Needs a ``saver``.
        monitor: tells scores, for a collapsing teacher; None does not look for one.
        saver: keeps the state that diverged and the checkpoints to go back to.
        explosion: how many times its usual value, the median of the last hundred batches, a student's loss may reach.
            Default: 100, which no healthy run of ours comes near.
        collapse: share of the teacher's best score above random that it must keep.
        collapse_evaluations: evaluations in a row over which its score is averaged, now and at its best, with two
            standard errors' grace each.
        max_rollbacks: after so many, stop.

    Raises:
        ValueError: an unknown policy, numbers out of range, or a rollback without a saver.
        DivergenceError: while training, as ``policy`` says.

    Examples:
        >>> DivergenceGuard(policy="explode")
        Traceback (most recent call last):
        ValueError: policy must be one of stop, skip, rollback: got 'explode'.
    """

    def __init__(
        self,
        distiller: RealTimeDistillTrainer | None = None,
        *,
        policy: Literal["stop", "skip", "rollback"] = "stop",
        monitor: Any = None,
        saver: SaveCheckpoints | None = None,
        explosion: float = 100.0,
        collapse: float = 0.2,
        collapse_evaluations: int = 3,
        max_rollbacks: int = 3,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}: got {policy!r}.")
        if policy == "rollback" and saver is None:
            raise ValueError("policy='rollback' goes back to checkpoints: got saver=None; pass a SaveCheckpoints.")
        if not explosion > 1 or not 0 <= collapse < 1 or collapse_evaluations < 1 or max_rollbacks < 0:
            raise ValueError(
                "explosion is a multiple above 1, collapse a share in [0, 1), collapse_evaluations at least 1 and "
                f"max_rollbacks at least 0: got explosion={explosion}, collapse={collapse}, "
                f"collapse_evaluations={collapse_evaluations}, max_rollbacks={max_rollbacks}."
            )
        if monitor is not None:
            monitor.measures_random = True
        self.distiller = distiller
        self.policy = policy
        self.monitor = monitor
        self.saver = saver
        self.explosion = explosion
        self.collapse = collapse
        self.collapse_evaluations = collapse_evaluations
        self.max_rollbacks = max_rollbacks
        self.skipped = 0  # updates left out so far
        self._rollbacks = 0
        self._bad_batches = 0  # in a row
        self._usual: dict[str, deque[float]] = {}
        self._means: list[float] = []  # scores of the teacher's last evaluations
        self._best: float | None = None  # what it surely scored at its best
        self._looked_at = -1
        self._skippers: dict[str, _Skipper] = {}

    def register(self, trainer: Trainer, name: str = "divergence_guard") -> None:
        """Attach to a trainer, after the students' hook and the monitor."""
        self._trainer = trainer
        if self.distiller is None:
            hooks = (hook for hook in trainer._modules.values() if isinstance(hook, RealTimeDistillTrainer))
            self.distiller = next(hooks, None)
        students = {} if self.distiller is None else self.distiller.optimizers
        self._optimizers = dict(students)
        if trainer.optimizer is not None:  # a frozen teacher has none
            self._optimizers = {"teacher": trainer.optimizer, **students}
        if self.policy == "skip":
            self._skippers = {part: _Skipper(optimizer) for part, optimizer in self._optimizers.items()}
        trainer.register_op("post_optim_complete_log", self.look)
        trainer.register_op("post_steps", self._look_at_scores)
        trainer.register_module(name, self)

    def look(self, optim_steps: int, average_losses: TensorDictBase | None) -> dict[str, float] | None:
        """Judge the batch of updates that has just been made; called by the trainer.

        Args:
            optim_steps: the trainer's updates so far.
            average_losses: the teacher's means over this batch.

        Returns:
            The number of updates left out so far, for the log, where there are any.
        """
        losses = {} if average_losses is None else {str(key): value for key, value in average_losses.items()}
        weights = {part: _size(optimizer) for part, optimizer in self._optimizers.items()}
        skipped = {part: skipper.count for part, skipper in self._skippers.items()}
        named = [("loss", losses), ("weights", weights), ("skipped", skipped)]
        device = next(iter(weights.values())).device
        tensors = [tensor.detach().float().mean().to(device) for _, group in named for tensor in group.values()]
        values = iter(torch.stack(tensors).tolist())  # the batch's one look at the device
        found = {kind: {key: next(values) for key in group} for kind, group in named}
        self._look_at_weights(found["weights"])
        if self.policy == "skip":
            return self._report_skipped(found["skipped"])
        self._look_at_losses(found["loss"])
        return None

    def _look_at_weights(self, sizes: Mapping[str, float]) -> None:
        for part, size in sizes.items():
            if not math.isfinite(size):
                self._diverged(part, f"weights of size {size}", hopeless=self.policy == "skip")

    def _look_at_losses(self, teacher: Mapping[str, float]) -> None:
        for key, value in teacher.items():
            if not math.isfinite(value):
                self._diverged("teacher", f"{key} of {value}")
        for key, value in ({} if self.distiller is None else self.distiller.metrics).items():
            _, part, metric = key.rsplit("/", 2) if key.count("/") > 1 else ("", key, "")
            if metric.startswith("loss") and not math.isfinite(value):
                self._diverged(part, f"{metric} of {value}")
            elif metric == "loss":
                self._look_for_explosion(part, value)

    def _look_for_explosion(self, part: str, loss: float) -> None:
        usual = self._usual.setdefault(part, deque(maxlen=_REMEMBERED))
        if len(usual) >= _ENOUGH:
            median = max(statistics.median(usual), _LEAST)
            if loss > self.explosion * median:
                self._diverged(part, f"loss of {loss:.3g}, {loss / median:.0f} times the usual {median:.3g}")
                return
        usual.append(loss)

    def _report_skipped(self, counts: Mapping[str, float]) -> dict[str, float] | None:
        new = {part: int(count) for part, count in counts.items() if count}
        for part in new:
            self._skippers[part].count.zero_()
        self.skipped += sum(new.values())
        self._bad_batches = self._bad_batches + 1 if new else 0
        for part, count in new.items():
            self._say(f"{self._where(part)} had a gradient that is not finite in {count} updates, which were left out.")
        if self._bad_batches >= _ENDLESS:
            self._diverged(
                next(iter(new)), f"gradients that are not finite in {_ENDLESS} batches in a row", hopeless=True
            )
        for key, value in ({} if self.distiller is None else self.distiller.metrics).items():
            if key.endswith("/loss") and math.isfinite(value):
                self._look_for_explosion(key.split("/")[1], value)
        return {"skipped_updates": float(self.skipped)} if self.skipped else None

    def _look_at_scores(self) -> None:
        """A teacher that surely played well several evaluations in a row, and surely no longer does, has collapsed.

        Sure is a mean over that many evaluations, two standard errors of it taken off or added: a lucky network among
        bad ones, as they come early in training, proves nothing.
        """
        monitor, count = self.monitor, self.collapse_evaluations
        if monitor is None or monitor.evaluated_steps in (-1, self._looked_at) or monitor.random_return is None:
            return
        self._looked_at = monitor.evaluated_steps
        name = next(iter(monitor.networks))
        self._means = [*self._means, monitor.last_scores[name].mean][-count:]
        if len(self._means) < count:
            return
        mean, chance = statistics.fmean(self._means), monitor.random_return
        error = statistics.stdev(self._means) / count**0.5 if count > 1 else 0.0
        best = self._best if self._best is not None else chance
        self._best = max(best, mean - 2 * error)
        if best > chance and mean + 2 * error < chance + self.collapse * (best - chance):
            self._means = []
            scores = (
                f"scores of {mean:.1f} over {count} evaluations after {best:.1f} at least, {chance:.1f} being random"
            )
            self._diverged(name, scores)

    def _where(self, part: str) -> str:
        trainer = self._trainer
        return f"step {trainer.collected_frames:,}, update {trainer._optim_count:,}: {part}"

    def _diverged(self, part: str, what: str, *, hopeless: bool = False) -> None:
        """Do what the policy says."""
        found = f"{self._where(part)} has {what}"
        if self.policy == "skip" and not hopeless:
            self._say(f"{found}; training goes on, since no update can be skipped for that.")
            return
        saver = self.saver
        target = None if saver is None else saver.rotation.best() or saver.latest()
        if self.policy == "rollback" and target is not None and self._rollbacks < self.max_rollbacks:
            self._rollbacks += 1
            saver.restore_learning(target)  # type: ignore[union-attr]
            self._usual.clear()
            self._say(f"{found}; back to {target.name}, {self._rollbacks} of at most {self.max_rollbacks} times.")
            return
        kept = "nothing of it is kept"
        if saver is not None:
            folder = saver.rotation.directory / f"diverged-{self._trainer.collected_frames:012d}"
            kept = f"its state is kept in {saver.save(folder)}, the last good one in {saver.latest()}"
        raise DivergenceError(
            f"training diverged at {found}; {kept}. Lower that part's learning rate, clip its gradient, or skip such "
            "updates (policy='skip')."
        )

    @staticmethod
    def _say(text: str) -> None:
        warnings.warn(text, stacklevel=3)

    def state_dict(self) -> dict[str, Any]:
        """Counters, and the losses that are usual."""
        return {
            "skipped": self.skipped,
            "rollbacks": self._rollbacks,
            "bad_batches": self._bad_batches,
            "means": list(self._means),
            "best": self._best,
            "looked_at": self._looked_at,
            "usual": {part: list(losses) for part, losses in self._usual.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.skipped, self._rollbacks = state_dict["skipped"], state_dict["rollbacks"]
        self._bad_batches, self._best = state_dict["bad_batches"], state_dict["best"]
        self._means = list(state_dict["means"])
        self._looked_at = state_dict["looked_at"]
        self._usual = {part: deque(losses, maxlen=_REMEMBERED) for part, losses in state_dict["usual"].items()}


class _Skipper:
    """Called before each step of an optimiser: tells it, on the device, to leave out a gradient that is not finite."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        device = optimizer.param_groups[0]["params"][0].device
        self.count = torch.zeros((), device=device)
        optimizer.register_step_pre_hook(self._before_step)

    @torch.no_grad()
    def _before_step(self, optimizer: Any, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        bad = ~torch.stack(torch._foreach_norm(gradients)).sum().isfinite()
        self.count += bad
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # a fused one takes the verdict of torch's scaler
            optimizer.grad_scale, optimizer.found_inf = None, bad.float()
        else:
            for gradient in gradients:
                gradient.masked_fill_(bad, 0.0)


@torch.no_grad()
def _size(optimizer: torch.optim.Optimizer) -> Tensor:
    """Norm of all weights of an optimiser, not finite where one of them is not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.stack(torch._foreach_norm(parameters)).sum()
