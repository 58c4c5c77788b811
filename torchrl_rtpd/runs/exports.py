"""Students of a run as files for devices, written when its report is done."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_rtpd.deploy.export import ExportReport, export_student
from torchrl_rtpd.deploy.formats import FormatError, checked_formats
from torchrl_rtpd.deploy.states import LEAST_STATES
from torchrl_rtpd.runs.deployed import first_step, states_for
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.final import teacher_name

__all__ = ["check_export", "expected_metadata", "export_students", "metadata_of", "told_by"]

_INTEGERS = {"onnx_int8", "c"}  # formats that take ranges from states
_OF_THE_NETWORK = {  # entries of results.json and their names on the card
    "score_mean": "score",
    "score_standard_error": "score_standard_error",
    "episodes": "episodes",
    "agreement": "agreement_with_teacher",
    "regret": "regret_by_teacher",
}


def check_export(formats: Sequence[str], networks: Mapping[str, TensorDictModule], env: EnvBase) -> list[str]:
    """Refuse, before a run begins, formats that could only fail at its end.

    Args:
        formats: some of :func:`~torchrl_rtpd.deploy.export_student`'s; empty for none.
        networks: by name, the teacher first.
        env: an environment that they play in.

    Returns:
        The formats, each once.

    Raises:
        ValueError: an unknown format, no student, or 8-bit integers for students that read other numbers than bytes.
        ImportError: the export extra is not installed.
    """
    if not formats:
        return []
    found = checked_formats(formats, "export")
    students = _students(networks)
    if not students:
        raise ValueError(f"export writes students: got networks {list(networks)}; leave it out.")
    spec = env.full_observation_spec
    for name, network in students.items():
        read = [spec[key].dtype for key in network.in_keys if key in spec.keys(True, True)]
        if "onnx_int8" in found and read != [torch.uint8]:
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in read)
            raise ValueError(
                f"export=onnx_int8 is for students that read raw bytes: got {kinds} for {name!r}; export it as onnx."
            )
    return found


def export_students(
    networks: Mapping[str, TensorDictModule],
    folder: Path,
    *,
    formats: Sequence[str],
    env: EnvBase,
    states: TensorDictBase | None,
    results: Mapping[str, Any],
) -> dict[str, ExportReport]:
    """Write each student into a folder, with a card that says which run it is from.

    Args:
        networks: by name, the teacher first; it is not written.
        folder: of the files ``<student>.*``.
        formats: see :func:`~torchrl_rtpd.deploy.export_student`.
        env: an environment that they play in. It says frame skip and meanings of actions if it has ``frame_skip``,
            ``action_meanings`` or ``get_action_meanings()``; games are played in it where ``states`` are too few.
        states: ``[K]`` of the final games; None without games.
        results: the content of ``results.json``.

    Returns:
        Reports by name, of those that could be written.

    Warns:
        UserWarning: a student, or one of its formats, that could not be, with the reason. A run's report goes on.
    """
    rows = {row["name"]: row for row in results["networks"]}
    reports = {}
    for name, network in _students(networks).items():
        wanted = list(formats)
        while wanted:
            try:
                reports[name] = export_student(
                    network,
                    folder / name,
                    formats=wanted,
                    calibration=_calibration(network, states, env, wanted),
                    example=first_step(network, env),
                    metadata=metadata_of(results, rows[name], env),
                )
                break
            except Exception as error:  # of many libraries; results and weights are written already
                warnings.warn(f"{name!r} was not exported: {error}", stacklevel=2)
                if not isinstance(error, FormatError):
                    break
                wanted.remove(error.format)  # the others may hold the network
    return reports


def told_by(env: EnvBase) -> dict[str, Any]:
    """Return frame skip and meanings of the actions, as far as an environment tells them.

    Examples:
        >>> from torchrl_rtpd.envs import AtariVecEnv
        >>> env = AtariVecEnv("pong", 1)
        >>> told_by(env)["frame_skip"], told_by(env)["action_meanings"][:3]
        (4, ['NOOP', 'FIRE', 'RIGHT'])
        >>> env.close()
    """
    found = {"frame_skip": getattr(env, "frame_skip", None), "action_meanings": getattr(env, "action_meanings", None)}
    if found["action_meanings"] is None and callable(get := getattr(env, "get_action_meanings", None)):
        found["action_meanings"] = list(get())
    return {name: value for name, value in found.items() if value is not None}


def _students(networks: Mapping[str, TensorDictModule]) -> dict[str, TensorDictModule]:
    teacher = teacher_name(networks)
    return {name: network for name, network in networks.items() if name != teacher}


def _reads_bytes(network: TensorDictModule, env: EnvBase) -> bool:
    """Return True for a network of one input of bytes, which has 8-bit integers."""
    keys, spec = list(network.in_keys), env.full_observation_spec
    return len(keys) == 1 and keys[0] in spec.keys(True, True) and spec[keys[0]].dtype == torch.uint8


def _calibration(
    network: TensorDictModule, states: TensorDictBase | None, env: EnvBase, formats: Sequence[str]
) -> Tensor | EnvBase | None:
    """States of the final games if they are enough, otherwise the environment if integers need some."""
    given = states_for(network, states)
    if given is not None and len(given) >= LEAST_STATES:
        return given
    return env if _INTEGERS & set(formats) and _reads_bytes(network, env) else None


def expected_metadata(about: Mapping[str, Any], env: EnvBase) -> dict[str, Any]:
    """Return metadata as long as those that a student's file will have when its run has ended.

    Args:
        about: entries that head ``results.json``.
        env: an environment that the students play in.
    """
    number = -1_000 / 3  # as long as a float is written
    results = {**about, "random_score": number, "environment": run_environment()}
    return metadata_of(results, dict.fromkeys(_OF_THE_NETWORK, number), env)


def metadata_of(results: Mapping[str, Any], row: Mapping[str, Any], env: EnvBase) -> dict[str, Any]:
    """Return what a student's file and card say of its run.

    Args:
        results: the content of ``results.json``.
        row: the student's.
        env: an environment that the students play in.
    """
    about = {key: results[key] for key in ("game", "algorithm", "method", "seed") if key in results}
    measured = {title: row[key] for key, title in _OF_THE_NETWORK.items() if row.get(key) is not None}
    origin = {key: results["environment"][key] for key in ("command", "commit")}
    chance = {"random_score": results["random_score"]} if "random_score" in results else {}
    found = {**about, **told_by(env), **measured, **chance, **origin}
    return {key: value for key, value in found.items() if not (isinstance(value, float) and math.isnan(value))}
