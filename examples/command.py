"""Command line of the main example and of its twin: ``--help``, refusals in one line, and runs that go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from checking import check
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from methods import METHODS
from omegaconf import OmegaConf
from scoreboard import quiet
from settings import RENAMED, Config
from showing import show_at_the_end
from tasks import Task, batch_steps, threads_in_all

from torchrl_rtpd.deploy.formats import checked_formats
from torchrl_rtpd.runs.config import (
    changed_settings,
    resumed_config,
    resumed_steps,
    saved_config,
    settings_help,
    settings_that_may_change,
)
from torchrl_rtpd.runs.folder import RunFolder
from torchrl_rtpd.runs.threads import all_processors, free_processors

_CONFIG = Path(__file__).parent / "config"
_PRESETS = {
    "rtpd_atari": {"dqn": ("quick", "expert", "paper"), "pqn": ("pqn_quick", "pqn")},
    "rtpd_classic": {"dqn": ("dqn_classic",), "pqn": ("pqn_classic",)},
}
"""Presets by script and teacher; the first is taken where none is named."""
_LARGEST_BATCH = (0, 16, 64)
"""Largest minibatch with which no, one or several students beside their teacher pay; see docs/speed.md."""


def _help(script: str) -> str:
    """Template of a script's ``--help``, with the values of the preset that the command line takes."""
    given = dict(part.split("=", 1) for part in sys.argv[1:] if "=" in part)
    presets = _PRESETS[script]
    shown = given.get("preset", presets.get(given.get("teacher", "dqn"), presets["dqn"])[0])
    if not (_CONFIG / "preset" / f"{shown}.yaml").exists():
        shown = presets["dqn"][0]
    values: dict[str, Any] = {}
    for file in (f"{script}.yaml", f"preset/{shown}.yaml"):
        values |= cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(_CONFIG / file), resolve=False))
    named = "; ".join(f"for teacher={teacher} {' and '.join(names)}" for teacher, names in presets.items())
    return f"""Keys, their values and their meaning:

{settings_help(Config, values)}

Give any of them as key=value. Values are those of preset={shown}; presets are {named}.

$FLAGS_HELP
"""


ConfigStore.instance().store(name="settings", node=Config)
for script in _PRESETS:
    template = {"app_name": "", "header": "", "footer": "", "template": _help(script)}
    ConfigStore.instance().store(group="hydra/help", name=script, node=template)


def prepared(config: Config, task: Task) -> tuple[Config, Task, RunFolder]:
    """Configuration, games and claimed folder of the run that a command line asks for.

    What is wrong with the command is printed without a traceback, and ends the process with status 2.
    """
    quiet()
    try:
        _check_teacher(config)
        if config.resume is not None:
            config = resumed_phases(config, HydraConfig.get().overrides.task)
        return config, task, claimed(config, task)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _check_teacher(config: Config) -> None:
    """Refuse a preset of another teacher than the one that is asked for by name."""
    command = HydraConfig.get()
    named = any(part.startswith("teacher=") for part in command.overrides.task)
    asked, preset = command.runtime.choices["teacher"] if named else config.teacher, command.runtime.choices["preset"]
    ours = _PRESETS.get(command.job.config_name, {})
    teacher = next((name for name, presets in ours.items() if preset in presets), config.teacher)
    if teacher != asked:
        raise ValueError(f"preset={preset} is for teacher={teacher}: got teacher={asked}; leave one of them out.")


def launched(run: Callable[..., Any], config: Config, task: Task) -> None:
    """Prepare a run, make it and show it; one that is interrupted before it trains ends in one line."""
    try:
        config, task, folder = prepared(config, task)
        run(config, task, folder)
    except KeyboardInterrupt:
        print("\nStopped before anything was learned.", file=sys.stderr)
        raise SystemExit(130) from None
    if config.video and config.evaluate_every_steps is not None:  # a run without games has none to show
        show_at_the_end(folder.path, task)


def claimed(config: Config, task: Task) -> RunFolder:
    """Check a configuration, then take the folder of its run; without a name that is a new one in outputs/."""
    spell_out(config, task)
    config.concurrent = {"true": True, "false": False}.get(config.concurrent, config.concurrent)  # quoted
    check(config)
    _check_threads(config)
    task.check(config)
    _check_paths(config)
    if config.output_dir is None:
        return RunFolder.fresh(f"outputs/{time.strftime('%Y-%m-%d_%H-%M-%S')}-{config.game}-seed{config.seed}")
    return RunFolder(config.output_dir).claim(resume=config.resume is not None)


def spell_out(config: Config, task: Task) -> None:
    """Write out what ``students=auto`` and ``export=auto`` stand for, and let a search evaluate at its rungs."""
    if config.students == "auto":
        config.students, config.search = list(task.ladder), _takes(config, "search")
    elif isinstance(config.students, str):
        raise ValueError(f"students must be auto or a list such as [net1,net17]: got {config.students!r}.")
    if config.export == "auto":
        config.export = ["onnx"] if _takes(config, "export") and _has_onnx() else []
    elif isinstance(config.export, str):
        raise ValueError(f"export must be auto or a list such as [onnx,c]: got {config.export!r}.")
    if config.search and config.resume is None and config.evaluate_every_steps:
        config.evaluate_every_steps = -(-config.total_steps // (8 * batch_steps(config))) * batch_steps(config)
        config.evaluate_from_steps, config.keep_from_steps = 2 * config.evaluate_every_steps, 0
        print(f"A search evaluates at its rungs: every {config.evaluate_every_steps:,} steps from the second time on.")


def _takes(config: Config, key: str) -> bool:
    return config.method in METHODS and key in METHODS[config.method].takes


def _has_onnx() -> bool:
    try:
        checked_formats(["onnx"])
    except ImportError:
        print("Students are not exported: pip install onnx onnxruntime, or the export extra, for files for devices.")
        return False
    return True


def count_threads(config: Config) -> None:
    """Settle the threads of a run, and print what it takes.

    Half of the processors go to each of teacher and students where minibatches are too small for threads to share and
    students have enough to do. Threads that are given are taken as they are, and students then learn in turn unless
    asked.
    """
    if config.threads != "auto":
        config.concurrent = config.concurrent is True
        _show_threads(config, all_processors())
        return
    found = free_processors()
    if config.concurrent == "auto":
        students = len(METHODS[config.method].sizes(config)) - 1
        largest = _LARGEST_BATCH[min(students, 2)]
        config.concurrent = found.threads > 1 and config.batch_size <= largest and config.device == "cpu"
    config.threads = max(1, found.threads // 2) if config.concurrent else found.threads
    _show_threads(config, found.all, f", of which others keep {found.busy:.1f} busy")


def _show_threads(config: Config, processors: int, others: str = "") -> None:
    taken = threads_in_all(config)
    print(
        f"Threads: {taken} of {processors} processors{others}; threads={config.threads} "
        f"concurrent={str(config.concurrent).lower()} repeats the run to the bit."
    )
    if taken > processors:
        print(f"Warning: {taken} threads wait for each other on {processors} processors; threads=auto takes fewer.")


def _check_threads(config: Config) -> None:
    for key, rule, fits in (
        ("threads", "auto or a whole number", config.threads == "auto" or type(config.threads) is int),
        ("concurrent", "auto, true or false", config.concurrent is not None),
    ):
        if not fits:
            raise ValueError(f"{key} must be {rule}: got {getattr(config, key)}.")


def _check_paths(config: Config) -> None:
    new = config.resume is None  # one that goes on has read the file
    if new and config.teacher_checkpoint is not None and not Path(config.teacher_checkpoint).exists():
        raise ValueError(
            f"teacher_checkpoint must be a file or a folder: got {config.teacher_checkpoint}, and there is neither."
        )
    if config.teacher_from is not None and not Path(config.teacher_from, "results.json").exists():
        raise ValueError(
            f"teacher_from must be the folder of a finished run: got {config.teacher_from}, which has no results.json."
        )


def resumed_phases(config: Config, overrides: Sequence[str]) -> Config:
    """:func:`resumed`; where the first of two phases was cut, that one goes on and the second one follows."""
    whole = Path(str(config.resume))
    first = whole / "teacher"
    if not first.is_dir() or set(whole.rglob("checkpoint-*")) != set(first.rglob("checkpoint-*")):
        return resumed(config, overrides)
    config.resume = str(first)
    both = resumed(config, overrides)
    both.method, both.output_dir = "two_stage", str(whole)
    if (first / "results.json").exists():
        both.teacher_from, both.resume = str(first), None
    return both


def resumed(config: Config, overrides: Sequence[str]) -> Config:
    """Configuration of a run that goes on: its own, with what the command line may change, which is printed.

    Args:
        config: the command line's; ``resume`` names a checkpoint or a run's folder.
        overrides: the command line itself, ``key=value`` each.

    Raises:
        ValueError: a key that a resumed run keeps, or fewer steps than it has made.
    """
    keys = settings_that_may_change(Config)
    run = cast(Config, resumed_config(config, overrides, may_change=keys, renamed=RENAMED))
    before, done = saved_config(run.resume, RENAMED), resumed_steps(run.resume)
    if run.total_steps != before["total_steps"] and METHODS[run.method].num_steps(run) <= done:
        raise ValueError(f"a resumed run goes on: got total_steps={run.total_steps} at step {done}; give more.")
    changed = changed_settings(before, run, keys)
    length = before.get("schedule_steps") or before["total_steps"]
    if run.schedules == "stretch":
        run.epsilon_steps = max(1, round(run.epsilon_steps * run.total_steps / length))
        run.schedule_steps = None
    else:
        run.schedule_steps = length
    if changed:
        print(f"Resumed at step {done:,} with {changed}.")
    return run
