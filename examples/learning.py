"""Learning of the main example's networks: optimisers, learning rates that settle, recycled units, a frozen teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from algorithms import ALGORITHMS
from tasks import batch_steps
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.trainers import LRSchedulerHook, OptimizationStepper, Trainer

from torchrl_rtpd import (
    AverageTeacher,
    BestTeacher,
    ConcurrentStepper,
    CudaGraphStepper,
    DistillationLoss,
    DormancyCheck,
    LaggingTeacher,
    RealTimeDistillTrainer,
    RecyclingCheck,
    SizeSearch,
)
from torchrl_rtpd.networks.recycling import UnitRecycler
from torchrl_rtpd.trainers._torchrl import hooks_of, updates_made
from torchrl_rtpd.trainers.stateless import StatelessHook

TEACHERS: dict[str, Callable[[], Any]] = {
    "latest": lambda: "latest",
    "average": AverageTeacher,
    "lagging": LaggingTeacher,
    "best": BestTeacher,
}
"""Versions of the learning teacher that the students of ``rtpd`` can learn from."""


def distiller(config: Any, losses: Mapping[str, DistillationLoss]) -> RealTimeDistillTrainer:
    """The hook that teaches students, given by the losses that they learn by."""
    recycling = [] if config.recycle_every_updates is None else [RecyclingCheck(recycler(config))]
    return RealTimeDistillTrainer(
        losses,
        optimizer=student_optimizer(config),
        updates_per_step=config.student_updates,
        checks=[DormancyCheck(warning=1.0 if config.search else 0.9), *recycling],  # a search drops those that die
        teacher=TEACHERS[config.learn_from](),
    )


def search_of(config: Any) -> SizeSearch:
    """The search for the smallest student that will do; ``command.spell_out`` lets evaluations fall on its rungs."""
    return SizeSearch(min_share=config.min_share, max_latency_ms=config.max_latency_ms, max_bytes=config.max_bytes)


def attach(config: Any, trainer: Trainer, hook: RealTimeDistillTrainer | None) -> None:
    """Let students learn beside their teacher in the way that the device and the processors want; None has none."""
    if config.cudagraph:
        CudaGraphStepper(hook).register(trainer)
    elif config.concurrent is True:
        ConcurrentStepper(hook, trainer.optimization_stepper).register(trainer)
    elif hook is not None:
        hook.register(trainer)


def student_optimizer(config: Any) -> Callable[[Any], torch.optim.Optimizer]:
    """A student's optimiser, without parameters yet."""
    return partial(torch.optim.Adam, lr=config.student_learning_rate, eps=1e-5, fused=True)


class RateWhileLearning(LRSchedulerHook):
    """Schedule of a student's learning rate, which stays as it is when a search has dropped the student."""

    def __init__(self, schedule: Any, hook: RealTimeDistillTrainer, name: str) -> None:
        super().__init__(schedule)
        self._hook, self._name = hook, name

    def __call__(self, batch: TensorDictBase | None = None) -> TensorDictBase | None:
        return super().__call__(batch) if self._name in self._hook.learners else batch


def settle(
    config: Any,
    trainer: Trainer,
    name: str,
    optimizer: torch.optim.Optimizer,
    share: list[float] | None,
    hook: RealTimeDistillTrainer | None = None,
) -> None:
    """Lower a learning rate linearly to a hundredth, between two shares of the run; None leaves it alone.

    The rate of a student of ``hook`` is lowered as long as it learns.
    """
    if share is None:
        return
    batches = learning_batches(config)
    begin, end = (fraction * batches for fraction in share)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda batch: 1 - 0.99 * min(1.0, max(0.0, (batch - begin) / (end - begin)))
    )
    rate = LRSchedulerHook(schedule) if hook is None else RateWhileLearning(schedule, hook, name)
    rate.register(trainer, name=f"lr_scheduler.{name}")


def schedule_steps(config: Any) -> int:
    """Length of the run whose shares learning rates settle over."""
    return config.schedule_steps or config.total_steps


def learning_batches(config: Any) -> float:
    """Batches of that run that are learned from."""
    return (schedule_steps(config) - (config.warmup_steps or 0)) / batch_steps(config)


def recycler(config: Any) -> UnitRecycler:
    """Gives dormant units of students a new start, until their learning rate settles."""
    share = 1.0 if config.student_settles is None else config.student_settles[0]
    updates = int(learning_batches(config) * ALGORITHMS[config.teacher].updates(config))
    return UnitRecycler(
        every_updates=config.recycle_every_updates,
        until_updates=int(share * updates),
        reset_step=True,
        seed=config.seed,
    )


def go_on(config: Any, before: Mapping[str, Any], trainer: Trainer, epsilon: tuple[float, float]) -> None:
    """Put learning rates and exploration of a resumed run where its schedules, as they are now, have them.

    Both are counted, the former in batches, and what was counted stands for other steps where batches have another size
    or schedules another length. Where neither has changed nothing is done.

    Args:
        config: of the run as it goes on.
        before: what it was, from :func:`~torchrl_rtpd.runs.config.saved_config`.
        trainer: restored.
        epsilon: share of random actions at first and at last.
    """
    batches = before["num_envs"] * before["rollout_steps"] / batch_steps(config)
    length = before.get("schedule_steps") or before["total_steps"]
    if batches == 1 and schedule_steps(config) == length and config.epsilon_steps == before["epsilon_steps"]:
        return
    for hook in hooks_of(trainer).values():
        if isinstance(hook, LRSchedulerHook):
            hook.scheduler.last_epoch = hook.scheduler.last_epoch * batches - 1
            hook.scheduler.step()  # adds one, and sets the rate
    first, last = epsilon
    passed = min(1.0, trainer.collected_frames / config.epsilon_steps)
    trainer.collector.dual_policy.exploration.eps.fill_(first - (first - last) * passed)
    trainer.collector.update_policy_weights_()


def compile_towers(networks: Mapping[str, TensorDictModule]) -> None:
    """Compile the networks inside actors, in place."""
    # Networks, batch sizes and modes share one cache.
    torch._dynamo.config.recompile_limit = 100
    for network in networks.values():
        network.module[0].module.compile()


class FrozenTeacher(OptimizationStepper):
    """Writes the teacher's values of the minibatch where students read them, in place of an update of the teacher.

    Args:
        with_next: also of the next states, which the target of Eq. 5 asks for.
    """

    def __init__(self, *, with_next: bool) -> None:
        self.with_next = with_next

    @torch.no_grad()
    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Run the teacher on ``sub_batch``; there is nothing to log."""
        loss = trainer.loss_module
        teacher, key = loss.value_network, loss.tensor_keys.teacher_action_value
        with loss.value_network_params.to_module(teacher):
            for part in [sub_batch, sub_batch.get("next")] if self.with_next else [sub_batch]:
                part.set(key, teacher(part.select(*teacher.in_keys)).get("action_value"))
        return TensorDict({}, [])


class RecycleUnits(StatelessHook):
    """Gives the network that a trainer trains a new start for dormant units, as students have it.

    Args:
        recycler: says when, and does it.
    """

    def __init__(self, recycler: UnitRecycler) -> None:
        self.recycler = recycler

    def register(self, trainer: Trainer, name: str = "recycle_units") -> None:
        """Attach to a trainer with a DQN loss."""
        self._trainer = trainer
        trainer.register_op("post_optim_log", self.recycle)

    def recycle(self, sub_batch: TensorDictBase) -> None:
        """Recycle after an update, if it is time."""
        updates, loss = updates_made(self._trainer), self._trainer.loss_module
        if self.recycler.due(updates):
            with loss.value_network_params.to_module(loss.value_network):
                self.recycler(loss.value_network, sub_batch, self._trainer.optimizer, updates=updates)
