"""Watching for a run that goes wrong, without making the device wait: one look a batch.

A look takes in the means that trainer and hook have summed anyway, and the size of the weights.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.trainers import Trainer, TrainerHookBase

from torchrl_rtpd.runs.checkpoints import SaveCheckpoints
from torchrl_rtpd.runs.monitor import Watching
from torchrl_rtpd.runs.ranges import check_ranges
from torchrl_rtpd.trainers._torchrl import hooks_of, updates_made
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer

__all__ = ["DivergenceError", "DivergenceGuard"]

POLICIES = ("stop", "skip", "rollback")
_REMEMBERED, _ENOUGH = 100, 10  # batches whose losses are remembered, and are needed to know what is usual
_LEAST = 1e-3  # a usual loss below this counts as this: a multiple of almost nothing is no explosion
_ENDLESS = 20  # batches in a row with skipped updates, after which skipping is given up

_Finding = tuple[str, str]  # a part, and the value that gave its divergence away


class DivergenceError(RuntimeError):
    """Training has diverged: the message says at which step, in which part, and where to go on."""


class DivergenceGuard(TrainerHookBase):
    """Hook that notices non-finite losses, gradients and weights, exploding student losses and a collapsing teacher.

    Args:
        distiller: the students' hook; None takes the trainer's own, if it has one.
        policy: response to a divergence. Everything that is found in one batch is one divergence.

            - ``"stop"``: raise a :class:`DivergenceError`. With a ``saver`` the state as it is lies in
              ``diverged-<steps>`` beside the checkpoints, of which none is touched.
            - ``"skip"``: leave out updates whose gradient is not finite, and warn. A fused optimiser of torch leaves
              such an update out altogether, on the device; any other one makes a step with a gradient of zero, which
              may still move weights by its momentum. Finite updates keep their bits. Skipping cannot undo weights that
              are not finite, nor twenty batches in a row with skipped updates: these stop. Explosions and collapses
              warn.
            - ``"rollback"``: go back to the best checkpoint, or without evaluations to the newest, with networks,
              targets and optimisers. Time, data and random numbers go on; priorities that are not finite become the
              largest one. Needs a ``saver``.
        monitor: knows scores, for a collapsing teacher; None does not look for one.
        saver: keeps the state that diverged and the checkpoints to go back to.
        explosion: multiple of its usual value, the median of the last hundred batches, that a student's loss may reach.
            Default: 100, which no healthy run of ours comes near.
        collapse: share of the teacher's best score above random that it must keep.
        collapse_evaluations: evaluations in a row over which its score is averaged, now and at its best, with two
            standard errors' grace each.
        max_rollbacks: number of rollbacks after which a divergence stops the run.

    Attributes:
        skipped: number of updates left out so far.

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
        monitor: Watching | None = None,
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
        bounds = {"explosion": explosion, "collapse": collapse}
        check_ranges(bounds, {"(1, inf]": "explosion", "[0, 1)": "collapse"})
        counts = {"collapse_evaluations": collapse_evaluations, "max_rollbacks": max_rollbacks}
        check_ranges(counts, {"[1, inf)": "collapse_evaluations", "[0, inf)": "max_rollbacks"})
        self.distiller = distiller
        self.policy = policy
        self.monitor = monitor
        self.saver = saver
        self.explosion = explosion
        self.collapse = collapse
        self.collapse_evaluations = collapse_evaluations
        self.max_rollbacks = max_rollbacks
        self.skipped = 0
        self._rollbacks = 0
        self._bad_batches = 0  # in a row
        self._bad_part = ""  # of the last of them
        self._usual: dict[str, deque[float]] = {}
        self._means: list[float] = []  # scores of the teacher's last evaluations
        self._best: float | None = None  # its score at its best, for sure
        self._looked_at = -1
        self._skippers: dict[str, _Skipper] = {}

    def register(self, trainer: Trainer, name: str = "divergence_guard") -> None:
        """Attach to a trainer, after the students' hook and the monitor."""
        self._trainer = trainer
        if self.distiller is None:
            hooks = (hook for hook in hooks_of(trainer).values() if isinstance(hook, RealTimeDistillTrainer))
            self.distiller = next(hooks, None)
        students = {} if self.distiller is None else self.distiller.optimizers
        self._optimizers = dict(students)
        if trainer.optimizer is not None:  # a frozen teacher has none
            self._optimizers = {"teacher": trainer.optimizer, **students}
        if self.policy == "skip":
            self._skippers = {part: _Skipper(optimizer) for part, optimizer in self._optimizers.items()}
        trainer.register_op("post_optim_complete_log", self.look)
        trainer.register_op("post_steps", self.look_at_scores)
        trainer.register_module(name, self)

    def look(self, optim_steps: int, average_losses: TensorDictBase | None) -> dict[str, float] | None:
        """Judge the batch of updates that has just been made; called by the trainer.

        Args:
            optim_steps: the trainer's updates so far.
            average_losses: the teacher's means over this batch.

        Returns:
            The number of updates left out so far, for the log, if there are any.
        """
        losses = {} if average_losses is None else {str(key): value for key, value in average_losses.items()}
        weights = {part: _size(optimizer) for part, optimizer in self._optimizers.items()}
        skipped = {part: skipper.count for part, skipper in self._skippers.items()}
        named = [("loss", losses), ("weights", weights), ("skipped", skipped)]
        device = next(iter(weights.values())).device
        tensors = [tensor.detach().float().mean().to(device) for _, group in named for tensor in group.values()]
        values = iter(torch.stack(tensors).tolist())  # the batch's one look at the device
        found = {kind: {key: next(values) for key in group} for kind, group in named}
        if self.policy == "skip":
            self._report_skipped(found["skipped"])
        self._judge(found["weights"], found["loss"])
        return {"skipped_updates": float(self.skipped)} if self.skipped else None

    def _judge(self, weights: Mapping[str, float], teacher: Mapping[str, float]) -> None:
        """Act on a batch, once: a number that is not finite shows in weights and losses of all that learned from it."""
        broken = [(part, f"weights of size {size}") for part, size in weights.items() if not math.isfinite(size)]
        students = self._student_losses()
        if self.policy != "skip":  # which leaves such updates out: their loss is all that shows
            broken += [("teacher", f"{key} of {value}") for key, value in teacher.items() if not math.isfinite(value)]
            broken += [(part, f"{key} of {value}") for part, key, value in students if not math.isfinite(value)]
        elif not broken and self._bad_batches >= _ENDLESS:
            broken = [(self._bad_part, f"gradients that are not finite in {_ENDLESS} batches in a row")]
        if broken:
            self._diverged(broken, hopeless=True)
            return
        finite = [(part, value) for part, key, value in students if key == "loss" and math.isfinite(value)]
        exploded = [found for part, loss in finite if (found := self._explosion(part, loss)) is not None]
        if exploded:
            self._diverged(exploded)

    def _student_losses(self) -> list[tuple[str, str, float]]:
        """Student, name and mean of each loss that the students' hook has logged last."""
        metrics = {} if self.distiller is None else self.distiller.metrics
        found = []
        for name, value in metrics.items():
            part, _, key = name.removeprefix("distill/").partition("/")
            if key.startswith("loss"):
                found.append((part, key, value))
        return found

    def _explosion(self, part: str, loss: float) -> _Finding | None:
        """Compare a student's loss with its usual one, of which it becomes a part if it is no explosion."""
        usual = self._usual.setdefault(part, deque(maxlen=_REMEMBERED))
        if len(usual) >= _ENOUGH:
            median = max(statistics.median(usual), _LEAST)
            if loss > self.explosion * median:
                return part, f"loss of {loss:.3g}, {loss / median:.0f} times the usual {median:.3g}"
        usual.append(loss)
        return None

    def _report_skipped(self, counts: Mapping[str, float]) -> None:
        new = {part: int(count) for part, count in counts.items() if count}
        for part, count in new.items():
            self._skippers[part].count.zero_()
            self._say(
                f"{self._where()}: {part} had a gradient that is not finite in {count} updates, which were left out."
            )
        self.skipped += sum(new.values())
        self._bad_batches = self._bad_batches + 1 if new else 0
        self._bad_part = next(iter(new), self._bad_part)

    def look_at_scores(self) -> None:
        """Judge the last evaluation, if it is a new one; called by the trainer after each batch.

        A teacher that surely played well several evaluations in a row, and surely no longer does, has collapsed. Sure
        is a mean over that many evaluations, two standard errors of it taken off or added: a lucky network among bad
        ones, as they come early in training, proves nothing.
        """
        monitor, count = self.monitor, self.collapse_evaluations
        if monitor is None or monitor.evaluated_steps in (-1, self._looked_at):
            return
        self._looked_at = monitor.evaluated_steps
        chance = monitor.measure_random()
        if chance is None:
            return
        name = next(iter(monitor.networks))
        self._means = [*self._means, monitor.last_scores[name].mean][-count:]
        if len(self._means) < count:
            return
        mean = statistics.fmean(self._means)
        error = statistics.stdev(self._means) / count**0.5 if count > 1 else 0.0
        best = self._best if self._best is not None else chance
        self._best = max(best, mean - 2 * error)
        if best > chance and mean + 2 * error < chance + self.collapse * (best - chance):
            self._means = []
            scores = (
                f"scores of {mean:.1f} over {count} evaluations after {best:.1f} at least, {chance:.1f} being random"
            )
            self._diverged([(name, scores)])

    def _where(self) -> str:
        return f"step {self._trainer.collected_frames:,}, update {updates_made(self._trainer):,}"

    def _diverged(self, findings: Sequence[_Finding], *, hopeless: bool = False) -> None:
        """Do what the policy says about one divergence, however many values gave it away."""
        found = f"{self._where()}: {', '.join(f'{part} has {what}' for part, what in findings)}"
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
        """Return counters, and the losses that are usual."""
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
    """Lets an optimiser leave out updates with a gradient that is not finite, and counts them on the device."""

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
    """Return the norm of all weights of an optimiser, which is not finite where one of them is not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.stack(torch._foreach_norm(parameters)).sum()
