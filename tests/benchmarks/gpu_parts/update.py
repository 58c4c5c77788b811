"""One update of a teacher and its students on a minibatch, by DQN or by PQN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.objectives import HardUpdate
from torchrl.trainers import DefaultOptimizationStepper

from torchrl_rtpd import (
    CudaGraphStepper,
    DivergenceGuard,
    PQNLoss,
    RealTimeDistillTrainer,
    StudentDQNLoss,
    StudentPQNLoss,
    TeacherDQNLoss,
    make_actor,
)

__all__ = ["FLEETS", "METHODS", "NUM_ACTIONS", "Update", "distance", "losses_of", "minibatch", "optimizer_of"]

FLEETS = {"teacher": [], "one student": ["net17"], "the paper's five": ["net1", "net2", "net3", "net4", "net5"]}
NUM_ACTIONS = 18
METHODS = ("dqn", "pqn")


def minibatch(size: int, device: str, seed: int = 0) -> TensorDict:
    """What the replay gives for a batch."""
    generator = torch.Generator().manual_seed(seed)

    def pixels() -> torch.Tensor:
        frames = torch.randint(256, (size, 84, 84, 4), dtype=torch.uint8, generator=generator)
        return frames.permute(0, 3, 1, 2)

    over = torch.rand(size, 1, generator=generator) < 0.01
    following = {"pixels": pixels(), "reward": torch.randn(size, 1, generator=generator), "done": over}
    following["terminated"] = over
    action = torch.randint(NUM_ACTIONS, (size,), generator=generator)
    target = torch.randn(size, 1, generator=generator)  # read by PQN alone
    return TensorDict({"pixels": pixels(), "action": action, "next": following, "value_target": target}, [size]).to(
        device
    )


class Update:
    """One update of a teacher and its students on a minibatch, by the package's own parts.

    Args:
        students: names of towers.
        device: where everything lies.
        method: by which the teacher learns.
        captured: as one CUDA graph.
        bfloat16: below the heads.
        compiled: the teacher's network and the students' losses, by torch.compile.
        guarded: leaves out what is not finite.
    """

    def __init__(
        self,
        students: list[str],
        device: str,
        method: str = "dqn",
        *,
        captured: bool = False,
        bfloat16: bool = False,
        compiled: bool = False,
        guarded: bool = False,
    ) -> None:
        norm = "layer" if method == "pqn" else None
        dtype = torch.bfloat16 if bfloat16 else None
        make = partial(make_actor, device=device, autocast_dtype=dtype, norm=norm)
        teacher = make("teacher", Categorical(NUM_ACTIONS), seed=0)
        actors = {name: make(name, Categorical(NUM_ACTIONS), seed=1 + i) for i, name in enumerate(students)}
        loss, losses = losses_of(method, teacher, actors)
        if compiled:
            torch._dynamo.config.recompile_limit = 100
            teacher.module[0].module.compile()
            for student in losses.values():
                student.compile()
        optimizer = optimizer_of(method, device)
        self.trainer: Any = SimpleNamespace(
            loss_module=loss,
            compute_loss=loss,
            optimizer=optimizer(loss.parameters()),
            clip_grad_norm=True,
            clip_norm=10.0,
            target_net_updater=HardUpdate(loss, value_network_update_interval=1_000) if method == "dqn" else None,
        )
        self.hook = None
        if losses:
            self.hook = RealTimeDistillTrainer(losses, optimizer=optimizer, checks=[])
            self.hook.attach(self.trainer)
        self.guard = DivergenceGuard(self.hook, policy="skip")
        if guarded:
            self.trainer.register_op = self.trainer.register_module = lambda *_: None
            self.trainer.collected_frames = self.trainer._optim_count = 0
            self.guard.register(self.trainer)
        self.stepper: Any = CudaGraphStepper(self.hook) if captured else DefaultOptimizationStepper()

    def __call__(self, batch: TensorDict) -> TensorDict:
        """The teacher's metrics."""
        metrics = self.stepper.step(self.trainer, batch)
        if self.hook is not None and not isinstance(self.stepper, CudaGraphStepper):
            self.hook.step(batch)
        if self.trainer.target_net_updater is not None:
            self.trainer.target_net_updater.step()
        return metrics

    def weights(self) -> dict[str, list[torch.Tensor]]:
        """Weights of the teacher and of every student."""
        modules = {"teacher": self.trainer.loss_module, **({} if self.hook is None else self.hook.students)}
        return {name: [value.cpu() for value in module.state_dict().values()] for name, module in modules.items()}


def losses_of(method: str, teacher: QValueActor, actors: dict[str, QValueActor]) -> tuple[Any, dict[str, Any]]:
    """Losses of a teacher and of its students."""
    if method == "pqn":
        return PQNLoss(teacher), {name: StudentPQNLoss(actor) for name, actor in actors.items()}
    loss = TeacherDQNLoss(teacher, loss_function="smooth_l1", action_space="categorical", delay_value=True)
    return loss, {name: StudentDQNLoss(actor, loss_function="smooth_l1") for name, actor in actors.items()}


def optimizer_of(method: str, device: str) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Adam, fused, or PQN's RAdam, which counts on the device where there is one, captured or not."""
    if method == "dqn":
        return partial(torch.optim.Adam, lr=1e-4, fused=True)
    return partial(torch.optim.RAdam, lr=2.5e-4, capturable=device.startswith("cuda"))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference of two tensors."""
    return (one.double() - other.double()).abs().max().item()
