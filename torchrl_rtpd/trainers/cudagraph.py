"""The whole update of a teacher and its students as one CUDA graph.

A tiny student's update is some hundred and fifty kernels of a few microseconds each, and starting them from Python
takes longer than running them. A graph starts them all at once. Students do not depend on each other, so inside it each
has a stream of its own, beside the teacher's backward pass::

    minibatch -> teacher: losses ─┬─ backward, clip, step ──────┬─ averages, targets (outside the graph)
                                  ├─ student 1: learn ──────────┤
                                  └─ student 2: learn ──────────┘

Where a student's loss runs the teacher itself, as beside PPO, the teacher's step comes first, as with the hook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.trainers import Trainer

from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.networks.captured import Captured
from torchrl_rtpd.networks.pixels import pixels_scaled_once
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.whole_update import WholeUpdate, numbers, teach, total_loss

__all__ = ["CudaGraphStepper"]


class CudaGraphStepper(WholeUpdate):
    """Optimisation step that replays the update of the teacher and all students as one CUDA graph.

    ``CudaGraphStepper(hook).register(trainer)`` takes the place of ``hook.register(trainer)``. Results are those of the
    hook but for rounding: fused kernels count their steps on the device. On a CPU the same update runs uncaptured. A
    student whose loss was given the trainer's target network sees it before it moves, and with the hook after.

    The first updates run as they are, then one is captured; so minibatches keep their keys and types from then on.
    Those of another size, such as the last one of an epoch, are captured by themselves. Target networks and the hook's
    checks, such as that for dormant units, stay outside. Learning rates become tensors on the device, which TorchRL's
    and PyTorch's schedulers fill. The trainer logs the same numbers of the teacher's loss as without the stepper.

    It works with off-policy and on-policy trainers whose loss reads no value on the host.
    :class:`~torchrl.objectives.ClipPPOLoss` does for its entropy bonus, and is captured with ``entropy_bonus=False``.
    ``RAdam`` counts in float32 on the device, so that its first rectified steps are a little shorter, by less than a
    percent.

    Args:
        hook: the students and how they learn. Do not register it as well. None captures the teacher's update alone.
        warmup_updates: updates before the capture, at least 2, in which optimisers make their state.

    Raises:
        ValueError: too short a warm-up, or a hook with several updates a step.
        RuntimeError: at the first update, an optimiser that cannot be captured; at the capture, a loss that reads a
            value on the host.

    Examples:
        >>> from functools import partial
        >>> from torch import nn
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> from torchrl_rtpd.objectives import DistillationLoss
        >>> student = QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
        >>> hook = RealTimeDistillTrainer(DistillationLoss(student), optimizer=partial(torch.optim.Adam, lr=5e-4))
        >>> stepper = CudaGraphStepper(hook)  # then stepper.register(trainer)
    """

    def __init__(self, hook: RealTimeDistillTrainer | None = None, *, warmup_updates: int = 3) -> None:
        check_integers(2, "optimisers make their state in the first", warmup_updates=warmup_updates)
        if hook is not None and hook.updates_per_step != 1:
            raise ValueError(
                f"a captured update holds one update of each student: got updates_per_step={hook.updates_per_step}; "
                "use 1, or register the hook itself."
            )
        super().__init__(hook)
        self.warmup_updates = warmup_updates
        self._update: Captured | None = None
        self._optimizers: list[torch.optim.Optimizer] = []
        self._rates: list[Any] = []  # of the optimisers when they were captured
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._teacher_first = False  # it makes its step before students learn
        self._metric_names: list[str] = []  # of the teacher, in the order in which they are stacked

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Make one update of the teacher and of every student; return the teacher's losses and ``grad_norm``."""
        if self._update is None or self._is_changed():
            self._begin(trainer)
        assert self._update is not None
        learned = self._update(sub_batch)
        self.update_priority(trainer, sub_batch)
        if self.hook is not None:
            self.hook.record({name: learned[name].clone() for name in self.hook.learners})
            self.hook.after_update(sub_batch, learned["batch"])
        return TensorDict(dict(zip(self._metric_names, learned["teacher"].clone().unbind(), strict=True)), [])

    def _begin(self, trainer: Trainer) -> None:
        """Prepare a capture: at first, and when :meth:`_is_changed`."""
        self.check(trainer)
        device = next(trainer.loss_module.parameters()).device
        students = {} if self.hook is None else self.hook.optimizers
        self._optimizers = [trainer.optimizer, *students.values()]
        if device.type == "cuda":
            for optimizer in self._optimizers:
                _make_capturable(optimizer, device)
            self._streams = self._streams or {name: torch.cuda.Stream(device) for name in students}
        self._teacher_first = self.students_run_the_teacher(trainer)
        self._rates = self._current_rates()
        self._update = Captured(lambda batch: self._learn(trainer, batch), device, warmup=self.warmup_updates)

    def _is_changed(self) -> bool:
        """Return True if an optimiser was given another state, or a student was dropped, since the capture."""
        if self.hook is not None and len(self.hook.learners) != len(self._optimizers) - 1:
            return True
        return any(now is not then for now, then in zip(self._current_rates(), self._rates, strict=True))

    def _current_rates(self) -> list[Any]:
        """Objects from which optimisers read their learning rates; others, once a state was loaded."""
        return [group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups]

    def _learn(self, trainer: Trainer, batch: TensorDictBase) -> dict[str, Any]:
        """Make the update that is captured; return its results by name, and the minibatch with the teacher's values."""
        learned: dict[str, Any] = {"batch": batch}
        with pixels_scaled_once():
            losses = trainer.compute_loss(batch)
            total = total_loss(losses)
            if self.hook is not None:
                learned["batch"] = self.hook.prepare_batch(batch)
            norm = teach(trainer, total) if self._teacher_first else None
            joined = []
            for name, student in ({} if self.hook is None else self.hook.learners).items():
                with _beside(self._streams.get(name)) as join:
                    learned[name] = student.learn(learned["batch"])
                joined.append(join)
            norm = teach(trainer, total) if norm is None else norm
            learned["teacher"] = self._measured({**losses, "loss": total, "grad_norm": norm})
            for join in joined:
                join()
        return learned

    def _measured(self, metrics: dict[str, Any]) -> Tensor:
        """Stack the numbers that the trainer logs."""
        found = numbers(metrics)
        self._metric_names = list(found)
        return torch.stack([value.reshape(()).float() for value in found.values()])


@contextmanager
def _beside(stream: torch.cuda.Stream | None) -> Iterator[Callable[[], None]]:
    """Run on a stream of its own from here on; the function given makes the present stream wait for it."""
    if stream is None:
        yield lambda: None
        return
    present = torch.cuda.current_stream()
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        yield lambda: present.wait_stream(stream)


def _make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let an optimiser count and read its learning rates on the device."""
    for group in optimizer.param_groups:
        if "capturable" not in group:
            raise RuntimeError(
                f"a captured update needs optimisers with a capturable mode: {type(optimizer).__name__} has none; "
                "use Adam, AdamW, RAdam or RMSprop, or register the hook itself."
            )
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(device, torch.float32)
