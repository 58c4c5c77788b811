"""Keys of a configuration, each with all there is to know of it, and what a resumed run keeps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchrl.checkpoint import CheckpointError

from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.config import (
    changed_settings,
    check_settings,
    resumed_config,
    resumed_steps,
    saved_config,
    setting,
    settings_help,
    settings_that_may_change,
)


@dataclass
class Config:
    gamma: float = setting(0.99, "discount factor", within="[0, 1)")
    loss: str = setting("l2", "of the TD errors", choices=["l1", "l2"])
    temperature: Any = setting(0.1, "of the teacher", within="(0, inf)", choices=["auto"])
    students: list[str] = setting(["net1"], "names")
    steps: int = setting(help="of the run", within="[1, 1e12]", may_change=True)
    output_dir: str | None = setting(None, "folder")
    resume: str | None = setting(None, "checkpoint")
    log: bool = setting(True, "write events", may_change=True)


def config(**values: Any) -> Any:
    return OmegaConf.merge(OmegaConf.structured(Config), {"steps": 10, **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gamma": 1.0}, r"^gamma must lie in \[0, 1\): got 1\.0\.$"),
        ({"gamma": float("nan")}, r"^gamma must lie in \[0, 1\): got nan\.$"),
        ({"loss": "l3"}, r"^loss must be one of l1, l2: got 'l3'\.$"),
        ({"temperature": 0}, r"^temperature must lie in \(0, inf\), or be auto: got 0\.$"),
        ({"temperature": "cold"}, r"^temperature must lie in \(0, inf\), or be auto: got 'cold'\.$"),
        ({"temperature": True}, r"^temperature must lie in \(0, inf\), or be auto: got True\.$"),
        ({"steps": 0}, r"^steps must lie in \[1, 1e12\]: got 0\.$"),
    ],
)
def test_a_value_that_a_key_does_not_take_is_refused_by_its_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings(config(**values), Config)


@pytest.mark.parametrize("values", [{}, {"gamma": 0}, {"temperature": "auto"}, {"temperature": 1e9}, {"loss": "l1"}])
def test_what_a_key_takes_passes(values: dict[str, Any]) -> None:
    check_settings(config(**values), Config)


def test_a_field_is_typed_has_its_default_and_shares_no_list() -> None:
    """OmegaConf takes the class as a schema; a key without a default is missing until a file gives it."""
    assert OmegaConf.structured(Config)._get_node("steps")._value() == MISSING
    assert Config().students == ["net1"] and Config().students is not Config().students
    with pytest.raises(OmegaConfBaseException, match="gamma"):
        config(gamma="high")
    with pytest.raises(ValueError, match="every key is explained in one line: got help=''"):
        setting(1)


def test_help_has_a_line_for_each_key_with_default_meaning_and_values() -> None:
    lines = settings_help(Config).splitlines()
    assert [line.split()[0] for line in lines] == [entry.name for entry in dataclasses.fields(Config)]
    assert lines[0].split(maxsplit=2) == ["gamma", "0.99", "discount factor; in [0, 1)"]
    assert lines[2].split(maxsplit=2) == ["temperature", "0.1", "of the teacher; auto; in (0, inf)"]
    assert [line.split()[1] for line in lines[3:]] == ["[net1]", "-", "null", "null", "true"]


def test_help_shows_a_scripts_own_values_in_place_of_defaults() -> None:
    lines = settings_help(Config, {"gamma": 0.9, "students": ["net1", "net17"]}).splitlines()
    assert (lines[0].split()[1], lines[3].split()[1]) == ("0.9", "[net1,net17]")
    assert settings_that_may_change(Config) == ["steps", "log"]


class Nothing:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""


def saved(folder: Path, content: Any, steps: int = 10) -> Path:
    """A checkpoint of a run in ``folder``, whose configuration is ``content``."""
    metadata = {"collected_frames": steps, **({} if content is None else {"config": content})}
    path = folder / "checkpoints" / f"checkpoint-{steps:012d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return VerifiedCheckpoint(part=Nothing()).save(path, metadata=metadata)


def test_a_resumed_run_has_its_own_configuration_but_for_what_may_change(tmp_path: Path) -> None:
    """``resume`` is the checkpoint, and ``output_dir`` the folder the run is in now."""
    path = saved(tmp_path, {"gamma": 0.5, "steps": 10, "log": True, "output_dir": "elsewhere"})
    command = [f"resume={tmp_path}", "steps=20"]
    found = resumed_config(config(resume=str(tmp_path), steps=20), command, may_change=["steps", "log"])
    assert (found.gamma, found.steps, found.log) == (0.5, 20, True)
    assert (found.resume, found.output_dir) == (str(path), str(tmp_path))
    assert resumed_steps(str(tmp_path)) == resumed_steps(str(path)) == 10 and resumed_steps(None) == 0
    assert changed_settings(saved_config(path), found, ["steps", "log"]) == "steps=20 (was 10)"


def test_what_may_not_change_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, {"gamma": 0.5})
    message = r"keeps its configuration but for log, steps: got gamma=0.1 \(was 0.5\), loss=l1 \(was not set\); leave"
    with pytest.raises(ValueError, match=message):
        resumed_config(config(resume=str(tmp_path)), ["steps=3", "+gamma=0.1", "loss=l1"], may_change=["steps", "log"])


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"teacher": {"checkpoint": "a.pt"}, "steps": 3}, {"teacher_checkpoint": "a.pt", "steps": 3}),
        ({"teacher": {"checkpoint": None}}, {"teacher_checkpoint": None}),
        ({"teacher_checkpoint": "b.pt"}, {"teacher_checkpoint": "b.pt"}),
        ({"old": 1, "steps": 3}, {"new": 1, "steps": 3}),
    ],
)
def test_keys_of_earlier_versions_get_their_new_names(tmp_path: Path, content: Any, wanted: Any) -> None:
    path = saved(tmp_path, content)
    assert saved_config(path, {"teacher.checkpoint": "teacher_checkpoint", "old": "new"}) == wanted


def test_a_checkpoint_without_a_configuration_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, None)
    with pytest.raises(CheckpointError, match="holds no configuration: it was not written by a script that saves one"):
        saved_config(path)


def test_a_key_that_is_given_as_it_was_changes_nothing(tmp_path: Path) -> None:
    """So that a command is repeated with ``resume=`` behind it."""
    saved(tmp_path, {"gamma": 0.5, "steps": 10, "students": ["net1"]})
    given = config(resume=str(tmp_path), gamma=0.5, students=["net1"])
    found = resumed_config(given, [f"resume={tmp_path}", "gamma=0.5", "students=[net1]"], may_change=["steps"])
    assert (found.gamma, found.students) == (0.5, ["net1"])
