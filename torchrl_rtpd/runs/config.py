"""The configuration of a run that is resumed: its own, not that of the command line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torchrl.checkpoint import CheckpointError

from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.checkpoints import newest_checkpoint

__all__ = ["resumed_config", "resumed_steps"]


def resumed_config(config: Any, overrides: Sequence[str], *, free: Collection[str]) -> DictConfig:
    """What a run was started with, read from its checkpoint, with what may differ when it goes on.

    Args:
        config: the command line's configuration; ``resume`` names a checkpoint or a run's folder.
        overrides: the command line itself, ``key=value`` each.
        free: keys that may differ; all others are the run's.

    Returns:
        The run's configuration. ``resume`` is the checkpoint, and ``output_dir`` the folder the run is in now.

    Raises:
        ValueError: an override of a key that is not free.
        CheckpointError: no checkpoint there, a damaged one, or one without a configuration.
    """
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    fixed = sorted(given - set(free) - {"resume"})
    if fixed:
        raise ValueError(
            f"a resumed run keeps its configuration but for {', '.join(sorted(free))}: got {', '.join(fixed)}; leave "
            "it out, or start a new run, from this one's weights if you like (teacher.checkpoint=PATH)."
        )
    path = newest_checkpoint(config.resume)
    saved = VerifiedCheckpoint.manifest(path)["metadata"].get("config")
    if not isinstance(saved, Mapping):
        raise CheckpointError(
            f"{path} holds no configuration: it was not written by a script that saves one; resume it in its own."
        )
    own = {key: OmegaConf.select(config, key) for key in given & set(free)}
    run_folder = path.resolve().parent.parent  # of <run>/checkpoints/checkpoint-<steps>
    place = {"resume": str(path), "output_dir": str(run_folder)}
    return cast(DictConfig, OmegaConf.merge(config, saved, own, place))


def resumed_steps(path: str | None) -> int:
    """Agent steps at a checkpoint, 0 for None: a run that is new."""
    if path is None:
        return 0
    checkpoint = path if (Path(path) / "manifest.json").exists() else newest_checkpoint(path)
    return int(VerifiedCheckpoint.manifest(checkpoint)["metadata"]["collected_frames"])
