"""The wheel, installed alone beside its dependencies and outside of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
USER_SCRIPT = """
from typing import assert_type
import torch
from torchrl_rtpd import StudentDQNLoss
from torchrl_rtpd.functional import forward_kl, policy_log_probs

log_probs = policy_log_probs(torch.zeros(1, 2), temperature=1.0)
assert_type(forward_kl(log_probs, log_probs), torch.Tensor)
assert_type(StudentDQNLoss.divergence_of_nobody, int)  # WRONG: no such attribute
policy_log_probs(torch.zeros(1, 2), temperature="warm")  # WRONG: no number
"""
MYPY = """
[mypy]
[mypy-torchrl.*,tensordict.*]
follow_imports = skip
ignore_missing_imports = True
"""


def run(*command: object, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with nothing of the checkout on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert not check or done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the files that packaging needs, so that the checkout stays clean."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "torchrl_rtpd", source / "torchrl_rtpd", ignore=shutil.ignore_patterns("__pycache__"))
    return out / run(sys.executable, "-c", BUILD, out, folder=source).stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that has the wheel, and its dependencies from this one; no checkout."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, folder=home)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(packages)  # a wheel of pure Python is laid out as it is installed
    return home / "bin" / "python"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every module, the marker of its types, and no documentation or tests."""
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "torchrl_rtpd").rglob("*.py")}
    assert names >= modules | {"torchrl_rtpd/py.typed"}
    assert {name.split("/")[0] for name in names} == {"torchrl_rtpd"}


@pytest.mark.slow
def test_the_wheel_runs_the_first_script_outside_of_the_checkout(python: Path, tmp_path: Path) -> None:
    """Shortened; and the package that it imports is the installed one."""
    text, count = re.subn(
        r"^STEPS = [\d_]+$", "STEPS = 192", (ROOT / "examples" / "minimal.py").read_text(), flags=re.M
    )
    assert count == 1
    (tmp_path / "minimal.py").write_text(text + '\nprint(__import__("torchrl_rtpd").__file__)\n')
    *scores, place = run(python, "minimal.py", folder=tmp_path).stdout.splitlines()
    assert [line.partition(":")[0] for line in scores if "teacher" in line] == ["before", "after"]
    assert Path(place).is_relative_to(python.parents[1])


@pytest.mark.slow
def test_a_users_script_is_checked_against_the_types_of_the_wheel(python: Path, tmp_path: Path) -> None:
    """Errors in the two wrong lines and in no other: the package brings its types along."""
    (tmp_path / "script.py").write_text(USER_SCRIPT)
    (tmp_path / "mypy.ini").write_text(MYPY)
    done = run(sys.executable, "-m", "mypy", "--python-executable", python, "script.py", folder=tmp_path, check=False)
    wrong = [number for number, line in enumerate(USER_SCRIPT.splitlines(), 1) if "WRONG" in line]
    found = {int(line) for line in re.findall(r"^script\.py:(\d+): error", done.stdout, flags=re.MULTILINE)}
    assert found == set(wrong), done.stdout + done.stderr
