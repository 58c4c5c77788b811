"""The first script a reader meets: short, fast, and the student learns."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "minimal.py"


def _scores(text):
    """Teacher's and student's score, before and after."""
    found = re.findall(r"^(before|after): +teacher (\d+), student (\d+)$", text, re.MULTILINE)
    assert [moment for moment, _, _ in found] == ["before", "after"], text
    return [(int(teacher), int(student)) for _, teacher, student in found]


def test_script_is_a_page_without_machinery():
    """At most 60 lines, of at most 120 characters, with no options and no functions beyond two makers."""
    lines = SCRIPT.read_text().splitlines()
    assert len(lines) <= 60
    assert not any(word in line for line in lines for word in ("argparse", "hydra", "__main__", "sys."))


def test_a_short_run_prints_scores_before_and_after(capsys):
    """Every line runs; a few updates are enough for that."""
    source, count = re.subn(r"^STEPS = [\d_]+$", "STEPS = 192", SCRIPT.read_text(), flags=re.MULTILINE)
    assert count == 1
    exec(compile(source, str(SCRIPT), "exec"), {"__name__": "minimal"})
    before, after = _scores(capsys.readouterr().out)
    assert min(*before, *after) > 0


@pytest.mark.slow
def test_the_whole_run_teaches_the_student_in_twenty_seconds():
    """Both networks end far above where they began, within 20 s of processor time, imports included."""
    start = os.times()
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    end = os.times()
    before, after = _scores(done.stdout)
    assert all(late >= 3 * early for early, late in zip(before, after, strict=True)), done.stdout
    seconds = end.children_user + end.children_system - start.children_user - start.children_system
    assert seconds < 20
