"""Command, versions, hardware and commit that stand beside results."""

import subprocess
import sys

import pytest

from torchrl_rtpd.runs.environment import run_environment


def test_environment_names_versions_hardware_and_command():
    """Everything needed to place a number is there."""
    environment = run_environment()
    assert environment["versions"]["torchrl"].startswith("0.14")
    assert environment["cpu"] and environment["threads"] >= 1 and environment["device"] == "cpu"
    assert environment["command"].startswith("python ")


def test_commit_is_unknown_outside_a_checkout(tmp_path, monkeypatch):
    """A run elsewhere has no commit rather than an error."""
    monkeypatch.chdir(tmp_path)
    assert run_environment()["commit"] is None


@pytest.mark.parametrize(
    ("called", "told"),
    [
        (["pieces/part.py", "--seed", "0"], "python pieces/part.py --seed 0"),
        (["{here}/pieces/part.py", "x=1"], "python pieces/part.py x=1"),
        (["-m", "pieces.part", "x=1"], "python -m pieces.part x=1"),
        (["-m", "pieces"], "python -m pieces"),
        (["-c", "import pieces.part", "x=1"], "python -c x=1"),
    ],
)
def test_a_command_is_told_as_it_is_typed_in_its_folder(tmp_path, called, told):
    """No folder of the machine stands before a script or a module."""
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "__init__.py").touch()
    for name in ("part", "__main__"):
        (tmp_path / "pieces" / f"{name}.py").write_text(
            "from torchrl_rtpd.runs.environment import run_environment\nprint(run_environment()['command'])"
        )
    command = [sys.executable, *(word.format(here=tmp_path) for word in called)]
    assert subprocess.check_output(command, cwd=tmp_path, text=True).strip() == told
