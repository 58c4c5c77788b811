"""Presets of a user's own, in a folder of theirs, for either teacher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "rtpd_classic.py"
OWN = """# @package _global_
defaults: [pqn_classic]
total_steps: 512
num_epochs: 1
evaluate_every_steps: null
final_episodes: 10
"""


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    """A folder with a preset of PQN's."""
    (tmp_path / "config" / "preset").mkdir(parents=True)
    (tmp_path / "config" / "preset" / "mine.yaml").write_text(OWN)
    return tmp_path / "config"


def command(presets: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(EXAMPLE), "--config-dir", str(presets), "preset=mine", "progress_bar=false"]
    return subprocess.run([*words, *overrides], capture_output=True, text=True, cwd=presets.parent)


def test_an_own_preset_names_its_teacher(presets: Path) -> None:
    done = command(presets, "students=[mlp16]", "output_dir=run")
    assert done.returncode == 0, done.stderr
    assert "teacher: pqn" in (presets.parent / "run" / "config.yaml").read_text()


def test_another_teacher_than_that_of_an_own_preset_is_refused_before_a_folder_is_made(presets: Path) -> None:
    done = command(presets, "teacher=dqn", "output_dir=run")
    assert done.returncode == 2
    assert "preset=mine is for teacher=pqn: got teacher=dqn; leave one of them out." in done.stderr
    assert not (presets.parent / "run").exists()


def test_the_same_teacher_may_be_named_as_well(presets: Path) -> None:
    done = command(presets, "teacher=pqn", "students=[mlp16]", "output_dir=run")
    assert done.returncode == 0, done.stderr
