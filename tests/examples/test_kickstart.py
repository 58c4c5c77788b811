"""A kickstarted student beside one that learns alone: one script, its results, and equal beginnings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kickstart
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_short_run_leaves_results(tmp_path):
    """In a process of its own: scores of all three, what they played, and that no return was good."""
    command = [sys.executable, str(EXAMPLES / "kickstart.py"), "--steps", "1024", "--teacher-steps", "1024"]
    options = ["--episodes", "2", "--out", str(tmp_path)]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("teacher", "kickstarted", "alone", "random player"))
    assert "alone: a mean return of 195 after more than 1024 steps" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert [network["name"] for network in results["networks"]] == ["teacher", "kickstarted", "alone"]
    assert results["steps_to_good_return"] == {"teacher": None, "kickstarted": None, "alone": None}
    first, second = (results["returns"][name][0] for name in ("kickstarted", "alone"))
    assert first == second  # the same weights and games before the first update


def test_the_pull_ends_half_way(monkeypatch):
    """Four batches of 128 steps, 8 updates each: 10, 5, and nothing from 16 updates on; the teacher stays."""
    monkeypatch.setattr(kickstart, "STEPS_PER_BATCH", 128)
    teacher = kickstart.make_policy(8, seed=0).requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = kickstart.make_policy(4, seed=1)
    trainer, played = kickstart.build(512, student, seed=0)
    kickstart.kickstart(trainer, student, teacher, 16)
    trainer.train()
    assert trainer._log_dict["kickstart/distill_coeff"] == [10.0, 5.0, 0.0, 0.0]
    assert [steps for steps, _ in played] == [128, 256, 384, 512]
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_steps_to_a_return_by_hand():
    played = [[512, 20.0], [1024, 200.0], [1536, 150.0]]
    assert kickstart.steps_to(played) == 1024 and kickstart.steps_to(played, 300.0) is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_full_run_saves_steps():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reached = kickstart.run(seed=0)["steps_to_good_return"]
    finally:
        torch.set_num_threads(threads)
    assert reached["kickstarted"] < (reached["alone"] or float("inf"))
