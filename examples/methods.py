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

Networks, replay, updates and, with ``student_updates=1``, their number are the same everywhere, and the teacher of a
seed is, bit for bit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from algorithms import ALGORITHMS
from learning import FrozenTeacher, RecycleUnits, recycler, settle, student_optimizer
from tasks import batch_steps
from tensordict.nn import TensorDictModule
from torchrl.trainers import Trainer

from torchrl_rtpd import load_weights

SAME_SIZE = "teacher_size"
"""Name of a student of the teacher's size."""


OPTIONS = {
    "learn_from": ("latest", "method=rtpd, whose teacher changes"),
    "teacher_from": (None, "method=two_stage"),
    "teacher_checkpoint": (None, "methods with a teacher"),
    "cudagraph": (False, "methods whose first network learns"),
    "export": ([], "methods with students"),
    "search": (False, "methods with several students"),
}
"""Keys that only some methods have a use for: the value that means nothing, and where others belong."""


class Method:
    """``rtpd``: which networks there are, for how many steps the first one acts, and how it learns meanwhile."""

    takes: tuple[str, ...] = ("learn_from", "teacher_checkpoint", "cudagraph", "export", "search")

    def check(self, config: Any) -> None:
        """Refuse students and options that the method has no use for."""
        self._check_students(config)
        for key, (unused, place) in OPTIONS.items():
            value = getattr(config, key)
            if value != unused and key not in self.takes:
                raise ValueError(f"{key}={value} is for {place}: got method={config.method}; leave it out.")

    def _check_students(self, config: Any) -> None:
        if not student_sizes(config):
            raise ValueError(f"method={config.method} needs students: got []; name some, or use method=teacher_only.")

    def sizes(self, config: Any) -> dict[str, str]:
        """Size of each network by name; the first one acts, the others learn from it."""
        return {"teacher": "teacher", **student_sizes(config)}

    def first_phase(self, config: Any) -> Any:
        """Configuration of a run that must be made before this one, None without one."""
        return None

    def load(self, config: Any, networks: Mapping[str, TensorDictModule]) -> dict[str, float] | None:
        """Give networks what an earlier phase has learned; returns what that phase spent, None without one."""
        return None

    def game_seed(self, config: Any) -> int:
        """Seed of the games that are played to learn from."""
        return 1_000 * config.seed

    def num_steps(self, config: Any) -> int:
        """Agent steps to collect."""
        return config.total_steps

    def warmup_steps(self, config: Any) -> int:
        """Agent steps of random play before the first update."""
        return config.warmup_steps or 0

    def epsilon(self, config: Any) -> tuple[float, float]:
        """Share of random actions at first and at last."""
        return 1.0, config.epsilon_end

    def optimizer(self, config: Any, parameters: Any) -> torch.optim.Optimizer | None:
        """Optimiser of the network that acts, None if that does not learn."""
        rate = config.teacher_learning_rate
        if config.teacher_optimizer == "rmsprop":
            return torch.optim.RMSprop(parameters, lr=rate, alpha=0.95, eps=0.01, centered=True)
        if config.teacher_optimizer == "radam":
            return torch.optim.RAdam(parameters, lr=rate)
        return torch.optim.Adam(parameters, lr=rate, eps=1.5e-4, fused=True)

    def equip(self, config: Any, trainer: Trainer) -> None:
        """Attach to a trainer what the learning of the network that acts needs."""
        settle(config, trainer, "teacher", trainer.optimizer, config.teacher_settles)


class TeacherOnly(Method):
    """The teacher alone; students that are named are left out."""

    takes = ("teacher_checkpoint", "cudagraph")

    def _check_students(self, config: Any) -> None:
        student_sizes(config)

    def sizes(self, config: Any) -> dict[str, str]:
        return {"teacher": "teacher"}


class Scratch(Method):
    """One student, which acts and learns by DQN alone."""

    takes = ("cudagraph", "export")

    def _check_students(self, config: Any) -> None:
        if len(student_sizes(config)) != 1:
            raise ValueError(
                f"method=scratch trains one student, which plays for itself: got {list(config.students)}; make a run "
                "for each."
            )

    def sizes(self, config: Any) -> dict[str, str]:
        return student_sizes(config)

    def optimizer(self, config: Any, parameters: Any) -> torch.optim.Optimizer:
        return student_optimizer(config)(parameters)

    def equip(self, config: Any, trainer: Trainer) -> None:
        (name,) = self.sizes(config)
        settle(config, trainer, name, trainer.optimizer, config.student_settles)
        if config.recycle_every_updates is not None:
            RecycleUnits(recycler(config)).register(trainer)


class TwoStage(Method):
    """Students of a frozen teacher, which an earlier run has left or a first phase trains."""

    takes = ("teacher_from", "teacher_checkpoint", "export", "search")

    def first_phase(self, config: Any) -> Any:
        if config.teacher_from is not None:
            return None  # it has been made
        first = copy.deepcopy(config)
        first.method, first.output_dir = "teacher_only", f"{config.output_dir}/teacher"
        first.export, first.search = [], False
        return first

    def load(self, config: Any, networks: Mapping[str, TensorDictModule]) -> dict[str, float]:
        return load_teacher(networks["teacher"], config.teacher_from)

    def game_seed(self, config: Any) -> int:
        return super().game_seed(config) + 500  # other games than those of the first phase

    def num_steps(self, config: Any) -> int:
        """As many as give the updates of the first phase, which its warm-up ends with."""
        if not config.warmup_steps:
            return config.total_steps
        return config.total_steps - config.warmup_steps + batch_steps(config)

    def warmup_steps(self, config: Any) -> int:
        return 0

    def epsilon(self, config: Any) -> tuple[float, float]:
        return config.two_stage_epsilon, config.two_stage_epsilon

    def optimizer(self, config: Any, parameters: Any) -> None:
        return None

    def equip(self, config: Any, trainer: Trainer) -> None:
        trainer.optimization_stepper = FrozenTeacher(with_next=ALGORITHMS[config.teacher].reads_next(config))


METHODS: dict[str, Method] = {
    "rtpd": Method(),
    "two_stage": TwoStage(),
    "scratch": Scratch(),
    "teacher_only": TeacherOnly(),
}


def student_sizes(config: Any) -> dict[str, str]:
    """Size of each student by its name, which is the same but for one of the teacher's size: that is no teacher."""
    names = [SAME_SIZE if size == "teacher" else size for size in config.students]
    if len(set(names)) != len(names):
        raise ValueError(
            f"students must differ, {SAME_SIZE} being the one of size teacher: got {list(config.students)}."
        )
    return dict(zip(names, config.students, strict=True))


def load_teacher(teacher: TensorDictModule, folder: str | Path) -> dict[str, float]:
    """Give a teacher the last weights of an earlier run.

    Args:
        teacher: receives the weights.
        folder: what the earlier run of ``rtpd_atari.py`` or ``rtpd_classic.py`` left.

    Returns:
        Steps, updates and seconds that run spent, for :class:`~torchrl_rtpd.runs.RunMonitor`.
    """
    load_weights(teacher, Path(folder) / "weights" / "last" / "teacher.safetensors")
    results: Mapping[str, float] = json.loads((Path(folder) / "results.json").read_text())
    return {name: results[name] for name in ("steps", "updates", "training_seconds", "cpu_seconds")}
