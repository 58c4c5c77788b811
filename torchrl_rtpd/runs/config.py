"""Configuration of a run: what each key may be, and what a resumed run keeps.

A configuration is a dataclass whose fields come from :func:`setting`, so that type, default, range and help of a key
stand together, once. Hydra and OmegaConf take such a class as a schema; YAML files then hold values only.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING as UNSET
from omegaconf import DictConfig, OmegaConf
from torchrl.checkpoint import CheckpointError

from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.functional.checks import lies_within
from torchrl_rtpd.runs.checkpoints import newest_checkpoint

__all__ = [
    "changed_settings",
    "check_settings",
    "renamed_settings",
    "resumed_config",
    "resumed_steps",
    "saved_config",
    "setting",
    "settings_help",
    "settings_that_may_change",
]


@dataclass(frozen=True)
class _Rule:
    """Help, interval and names of one key, and whether a resumed run may change it."""

    help: str
    within: str | None
    choices: tuple[str, ...]
    may_change: bool

    def check(self, key: str, value: Any) -> None:
        named = str(value).lower() if isinstance(value, bool) else value
        if value is None or (self.choices and named in self.choices):
            return
        if self.within is None:
            if self.choices:
                raise ValueError(f"{key} must be one of {', '.join(self.choices)}: got {value!r}.")
        elif not lies_within(value, self.within):
            words = "".join(f", or be {name}" for name in self.choices)
            raise ValueError(f"{key} must lie in {self.within}{words}: got {value!r}.")


def setting(
    default: Any = UNSET,
    help: str = "",
    *,
    within: str | None = None,
    choices: Sequence[str] = (),
    may_change: bool = False,
) -> Any:
    """Field of a configuration's dataclass: one key with all there is to know of it.

    Args:
        default: its value where no YAML file and no command line gives one; a list is copied. Without one, a YAML file
            must give the value.
        help: one line for ``--help``.
        within: interval of a number, such as ``"(0, 1]"`` or ``"[1, inf)"``.
        choices: names it may have, ``true`` and ``false`` among them for flags; with an interval, names beside the
            numbers.
        may_change: whether a resumed run may take another value from its command line.

    Returns:
        A :func:`dataclasses.field`.

    Raises:
        ValueError: a key without help.

    Examples:
        >>> @dataclass
        ... class Config:
        ...     gamma: float = setting(0.99, "discount factor", within="[0, 1]")
        ...     divergence: str = setting("forward_kl", "of the students", choices=["forward_kl", "mse"])
        >>> check_settings(Config(), Config)
        >>> check_settings(Config(gamma=1.5), Config)
        Traceback (most recent call last):
        ValueError: gamma must lie in [0, 1]: got 1.5.
    """
    if not help:
        raise ValueError("every key is explained in one line: got help=''; write what it does.")
    metadata = {"rule": _Rule(help, within, tuple(choices), may_change)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _rules(schema: type) -> dict[str, _Rule]:
    return {entry.name: entry.metadata["rule"] for entry in dataclasses.fields(schema)}


def check_settings(config: Any, schema: type) -> None:
    """Refuse keys that there are not, and values that lie outside the interval of their key or are not among its names.

    Args:
        config: an object with the keys of ``schema`` as attributes. None is allowed wherever it is found.
        schema: a dataclass of :func:`setting` fields.

    Raises:
        ValueError: the first key, or value, that is refused, by its name.
    """
    for key in config if isinstance(config, Mapping | DictConfig) else ():
        if key not in _rules(schema):
            near = difflib.get_close_matches(str(key), _rules(schema), n=1)
            meant = f"; did you mean {near[0]}?" if near else "; --help shows them."
            raise ValueError(f"keys must be those of the script: got {key}{meant}")
    for key, rule in _rules(schema).items():
        rule.check(key, getattr(config, key))


def settings_that_may_change(schema: type) -> list[str]:
    """Names of the keys that a resumed run may take from its command line."""
    return [key for key, rule in _rules(schema).items() if rule.may_change]


def settings_help(schema: type, values: Mapping[str, Any] | None = None) -> str:
    """Help of every key, a line each: name, value, meaning, and what else it takes.

    Args:
        schema: a dataclass of :func:`setting` fields.
        values: of a script's YAML files, in place of the defaults.

    Returns:
        The lines. A dash stands for a value that a YAML file must give.

    Examples:
        >>> @dataclass
        ... class Config:
        ...     gamma: float = setting(0.99, "discount factor", within="[0, 1]")
        ...     game: str = setting(help="game to play")
        >>> print(settings_help(Config))
        gamma  0.99  discount factor; in [0, 1]
        game   -     game to play
    """
    values = values or {}
    fields = dataclasses.fields(schema)
    rows = [(entry.name, _shown(values.get(entry.name, _default(entry))), _shown_rule(entry)) for entry in fields]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{key.ljust(widths[0])}  {default.ljust(widths[1])}  {text}" for key, default, text in rows)


def _default(entry: Field) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _shown(value: Any) -> str:
    """Return a value as it would be typed; a dash where a YAML file gives it."""
    if isinstance(value, str) and value == UNSET:
        return "-"
    if isinstance(value, list):
        return f"[{','.join(_shown(item) for item in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shown_rule(entry: Field) -> str:
    rule: _Rule = entry.metadata["rule"]
    choices = [" | ".join(rule.choices)] if rule.choices else []
    interval = [f"in {rule.within}"] if rule.within else []
    return "; ".join([rule.help, *choices, *interval])


def saved_config(path: str | Path, renamed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Configuration of the run that wrote a checkpoint, as plain values.

    Args:
        path: a checkpoint, of which only the manifest is read; or a run's folder, whose newest whole one is taken.
        renamed: see :func:`renamed_settings`.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or one without a configuration.
    """
    path = _checkpoint(path)
    saved = VerifiedCheckpoint.manifest(path)["metadata"].get("config")
    if not isinstance(saved, Mapping):
        raise CheckpointError(
            f"{path} holds no configuration: it was not written by a script that saves one; resume it in its own."
        )
    return renamed_settings(saved, renamed or {})


def renamed_settings(saved: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return a configuration under the names that its keys have today.

    Args:
        saved: of this version or an earlier one.
        renamed: keys that had another name in earlier versions, by that name; dots lead into a mapping.

    Examples:
        >>> renamed_settings({"teacher": {"checkpoint": None}, "seed": 1}, {"teacher.checkpoint": "teacher_checkpoint"})
        {'seed': 1, 'teacher_checkpoint': None}
    """
    config = dict(saved)
    for old, new in renamed.items():
        place, _, leaf = old.rpartition(".")
        holder = config.get(place) if place else config
        if isinstance(holder, Mapping) and leaf in holder:
            config[new] = holder[leaf]
            del config[place or leaf]
    return config


def resumed_config(
    config: Any, overrides: Sequence[str], *, may_change: Collection[str], renamed: Mapping[str, str] | None = None
) -> DictConfig:
    """Configuration a run was started with, read from its checkpoint, with what may differ when it goes on.

    Args:
        config: the command line's configuration; ``resume`` names a checkpoint or a run's folder.
        overrides: the command line itself, ``key=value`` each.
        may_change: keys that may differ; all others are the run's.
        renamed: see :func:`saved_config`.

    Returns:
        The run's configuration. ``resume`` is the checkpoint, and ``output_dir`` the folder the run is in now.

    Raises:
        ValueError: another value of a key that may not change.
        CheckpointError: no checkpoint there, a damaged one, or one without a configuration.
    """
    given = {override.lstrip("+~").partition("=")[0]: override.partition("=")[2] for override in overrides}
    path = newest_checkpoint(config.resume)
    before = saved_config(path, renamed)
    fixed = [
        f"{key}={_typed(given[key])} (was {_typed(before.get(key, 'not set'))})"
        for key in sorted(given.keys() - set(may_change) - {"resume"})
        if key not in before or OmegaConf.create([OmegaConf.select(config, key)]) != OmegaConf.create([before[key]])
    ]
    if fixed:
        raise ValueError(
            f"a resumed run keeps its configuration but for {', '.join(sorted(may_change))}: got {', '.join(fixed)}; "
            "leave it out, or start a new run, from this one's weights if you like (teacher_checkpoint=PATH)."
        )
    own = {key: OmegaConf.select(config, key) for key in given.keys() & set(may_change)}
    run_folder = path.resolve().parent.parent  # of <run>/checkpoints/checkpoint-<steps>
    place = {"resume": str(path), "output_dir": str(run_folder)}
    return cast(DictConfig, OmegaConf.merge(config, before, own, place))


def changed_settings(before: Mapping[str, Any], config: Any, keys: Collection[str]) -> str:
    """Keys that a resumed run has changed, ready to be printed: ``num_envs=4 (was 8), total_steps=1024 (was 512)``.

    Args:
        before: the run's configuration until now, from :func:`saved_config`.
        config: the configuration it goes on with.
        keys: those to compare.

    Examples:
        >>> changed_settings({"num_envs": 8, "device": "cpu"}, OmegaConf.create({"num_envs": 4, "device": "cpu"}),
        ...                  ["num_envs", "device"])
        'num_envs=4 (was 8)'
    """
    now = {key: getattr(config, key) for key in keys if key in before}
    return ", ".join(
        f"{key}={_typed(value)} (was {_typed(before[key])})" for key, value in now.items() if value != before[key]
    )


def _typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def resumed_steps(path: str | None) -> int:
    """Agent steps at a checkpoint, 0 for None: a run that is new."""
    if path is None:
        return 0
    return int(VerifiedCheckpoint.manifest(_checkpoint(path))["metadata"]["collected_frames"])


def _checkpoint(path: str | Path) -> Path:
    """A checkpoint as it is, or the newest whole one of a folder: who restores it verifies it, once."""
    return Path(path) if (Path(path) / "manifest.json").exists() else newest_checkpoint(path)
