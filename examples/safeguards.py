"""What keeps a run of the main example alive, and what it refuses to begin with: checks, checkpoints, guards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torchrl.trainers import Trainer

from torchrl_rtpd import RealTimeDistillTrainer
from torchrl_rtpd.objectives.discrete import DIVERGENCES
from torchrl_rtpd.runs.checkpoints import SaveCheckpoints
from torchrl_rtpd.runs.guards import POLICIES, DivergenceGuard
from torchrl_rtpd.runs.monitor import RunMonitor
from torchrl_rtpd.runs.ranges import check_choices, check_ranges
from torchrl_rtpd.runs.stopping import StopOnSignal, StopWhenCaughtUp

# What a resumed run takes from the command line.
FREE = (
    "threads",
    "tensorboard",
    "progress_bar",
    "checkpoint_every_steps",
    "checkpoint_keep",
    "checkpoint_replay",
    "on_divergence",
)

# Where the numbers of a configuration must lie, None aside.
RANGES = {
    "[1, 1e12]": "threads total_steps num_envs rollout_steps batch_size steps_per_update n_step replay_capacity "
    "target_every_updates epsilon_steps evaluation_episodes final_episodes max_episode_steps checkpoint_every_steps "
    "checkpoint_keep recycle_every_updates stop_after_evaluations",
    "[0, 1e12]": "warmup_steps td_coeff distill_coeff evaluate_every_steps evaluate_from_steps",
    "[0, 1e6]": "seed",
    "(0, 1e12]": "evaluation_seconds student_temperature",
    "[0, 1]": "teacher_learning_rate student_learning_rate gamma epsilon_end evaluation_epsilon two_stage_epsilon",
}


@dataclass
class TeacherSource:
    """Where the teacher's first weights come from."""

    checkpoint: str | None = None


def check_values(config: Any) -> None:
    """Refuse numbers out of range, unknown names, and options that do not go together."""
    check_ranges(config, RANGES)
    if config.warmup_steps >= config.total_steps:
        raise ValueError(
            f"nothing is learned in the warm-up: got warmup_steps={config.warmup_steps} of total_steps="
            f"{config.total_steps}; make it shorter."
        )
    check_choices(config, divergence=DIVERGENCES, loss_function=("smooth_l1", "l2", "l1"), on_divergence=POLICIES)
    if config.temperature != "auto":
        check_ranges(config, {"(0, inf)": "temperature"})
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise ValueError(f"device must be cpu, cuda or cuda:<number>: got {config.device!r}.")
    if config.teacher.checkpoint is not None and config.method == "scratch":
        raise ValueError("teacher.checkpoint gives a teacher its first weights: got method=scratch, which has none.")


def protect(
    config: Any, trainer: Trainer, hook: RealTimeDistillTrainer | None, monitor: RunMonitor
) -> tuple[StopOnSignal, SaveCheckpoints]:
    """Checkpoints, guards and ways to stop; a run that is resumed is put where it was."""
    stopper = StopOnSignal()
    stopper.register(trainer)
    if config.stop_after_evaluations is not None:
        StopWhenCaughtUp(monitor, evaluations=config.stop_after_evaluations).register(trainer)
    saver = SaveCheckpoints(
        Path(config.output_dir) / "checkpoints",
        every_steps=config.checkpoint_every_steps,
        keep_last=config.checkpoint_keep,
        replay=config.checkpoint_replay,
        metadata={"config": OmegaConf.to_container(OmegaConf.create(config), resolve=True)},
        monitor=monitor,
    )
    DivergenceGuard(hook, policy=config.on_divergence, monitor=monitor, saver=saver).register(trainer)
    saver.register(trainer)
    if config.resume is not None:
        saver.restore(config.resume)
    return stopper, saver
