"""The methods that the main example compares: what each trains, and the parts that only some of them need.

==============  ===============================  ==============================================  ==================
method          who acts                         who learns                                      budget
==============  ===============================  ==============================================  ==================
rtpd            the teacher                      teacher and students, from the same minibatches one run
two_stage       the teacher, then it again       first the teacher alone, then the students      both phases
                with its weights frozen          from the frozen teacher's new games
scratch         the student                      one student, by DQN alone                       one run
teacher_only    the teacher                      the teacher                                     one run
==============  ===============================  ==============================================  ==================

Networks, replay, updates and their number are the same everywhere, and the teacher of a seed is, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase
from torchrl.modules import QValueActor
from torchrl.trainers import OptimizationStepper, Trainer, TrainerHookBase

from torchrl_rtpd import AverageTeacher, BestTeacher, LaggingTeacher, load_weights
from torchrl_rtpd.networks.recycling import UnitRecycler

METHODS = ("rtpd", "two_stage", "scratch", "teacher_only")
TEACHERS: dict[str, Callable[[], Any]] = {
    "latest": lambda: "latest",
    "average": AverageTeacher,
    "lagging": LaggingTeacher,
    "best": BestTeacher,
}
"""Which version of the learning teacher the students of ``rtpd`` learn from."""


@dataclass(frozen=True)
class Task:
    """What the script must know about a kind of games.

    Attributes:
        make_env: environments from the configuration, slots, a seed, and whether they are for evaluation.
        make_actor: a network from the configuration, its name, the environment and a seed.
        make_replay: the replay buffer from the configuration.
        make_postproc: what the collector does to each batch, from the configuration; None does nothing.
        terminated: the entry that ends bootstrapping.
    """

    make_env: Callable[..., EnvBase]
    make_actor: Callable[..., QValueActor]
    make_replay: Callable[[Any], Any]
    make_postproc: Callable[[Any], Callable[[TensorDictBase], TensorDictBase] | None]
    terminated: str


def check_method(config: Any) -> None:
    """Refuse methods and options of theirs that do not go together."""
    method, students = config.method, list(config.students)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}: got {method!r}.")
    if method in ("rtpd", "two_stage") and not students:
        raise ValueError(f"method={method} needs students: got []; name some, or use method=teacher_only.")
    if method == "scratch" and len(students) != 1:
        raise ValueError(
            f"method=scratch trains one student, which plays for itself: got {students}; make a run for each."
        )
    if config.learn_from not in TEACHERS:
        raise ValueError(f"learn_from must be one of {', '.join(TEACHERS)}: got {config.learn_from!r}.")
    if method != "rtpd" and config.learn_from != "latest":
        raise ValueError(f"learn_from={config.learn_from} is for method=rtpd, whose teacher changes: got {method}.")
    if method != "two_stage" and config.teacher_from is not None:
        raise ValueError(f"teacher_from is for method=two_stage: got {method}; leave it out.")
    if config.td_coeff == 0 and config.distill_coeff == 0:
        raise ValueError("students learn nothing with td_coeff=0 and distill_coeff=0; set one of them.")


def num_steps(config: Any) -> int:
    """Agent steps to collect; the second phase of ``two_stage`` makes as many updates, and has no warm-up."""
    if config.method != "two_stage":
        return config.total_steps
    return config.total_steps - config.warmup_steps + config.num_envs * config.rollout_steps


def load_teacher(teacher: TensorDictModule, folder: str | Path) -> dict[str, float]:
    """Give a teacher the last weights of an earlier run.

    Args:
        teacher: receives the weights.
        folder: what the earlier run of ``rtpd_atari.py`` or ``rtpd_classic.py`` left.

    Returns:
        What that run spent, for :class:`~torchrl_rtpd.runs.RunMonitor`.
    """
    load_weights(teacher, Path(folder) / "weights" / "last" / "teacher.safetensors")
    results: Mapping[str, float] = json.loads((Path(folder) / "results.json").read_text())
    return {name: results[name] for name in ("steps", "updates", "training_seconds", "cpu_seconds")}


class FrozenTeacher(OptimizationStepper):
    """Instead of an update of the teacher: its values of the minibatch, written where students read them.

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


class RecycleUnits(TrainerHookBase):
    """Give the network that a trainer trains what students have: a new start for dormant units.

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
        updates, loss = self._trainer._optim_count, self._trainer.loss_module
        if self.recycler.due(updates):
            with loss.value_network_params.to_module(loss.value_network):
                self.recycler(loss.value_network, sub_batch, self._trainer.optimizer, updates=updates)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the hook holds no state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""
