"""One student of two live teachers of two Atari games."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_games

SCRIPT = Path(two_games.__file__)


def test_each_game_shows_its_number_and_the_actions_that_it_has() -> None:
    """Breakout has four of ALE's 18 actions; both states of a transition say so."""
    env = two_games.make_game(("pong", "breakout"), 1, 2, seed=0)
    rollout = env.rollout(3, break_when_any_done=False)
    names = env.base_env.action_meanings
    for states in (rollout, rollout["next"]):
        assert states["teacher_id"].dtype is torch.long
        assert states["teacher_id"].flatten().tolist() == [1] * 6
        allowed = states["action_mask"].reshape(-1, 18)
        assert all({names[i] for i in row.nonzero()[:, 0]} == {"NOOP", "FIRE", "RIGHT", "LEFT"} for row in allowed)
    env.close()


def test_a_short_run_trains_all_three_and_reports_game_by_game(tmp_path: Path) -> None:
    """In a process of its own: a few hundred steps, a table and results for each game."""
    options = "--steps 240 --tower net3 --episodes 1 --max-frames 200".split()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--out", str(tmp_path)], capture_output=True, text=True, check=True
    )
    for game in two_games.GAMES:
        results = json.loads((tmp_path / game / "results.json").read_text())
        assert results["game"] == game and results["steps"] == 240
        teacher, student = results["networks"]
        assert (teacher["name"], student["name"]) == ("teacher", "net17")
        assert results["follows"].keys() == {"agreement", "favourite", "regret"}
        assert 0 <= results["follows"]["agreement"] <= 1 and results["follows"]["regret"] >= 0
        assert f"\n{game}:\n" in done.stdout
    assert done.stdout.count("The student follows this teacher: agreement ") == 2


def test_both_teachers_learn_from_their_own_game_and_act_within_its_actions() -> None:
    """Weights of all three have moved, and no stored action is one that the game has not."""
    trainer, networks = two_games.build(two_games.GAMES, 160, tower="net3", seed=0)
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}
    trainer.train()
    for name, network in networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True)), name
    stored = trainer.replay_buffer[:]
    assert stored["action_mask"].gather(-1, stored["action"].unsqueeze(-1)).all()
    assert sorted(stored["teacher_id"].unique().tolist()) == [0, 1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_run_ends_with_a_student_that_follows_both_teachers() -> None:
    """More often than one that always takes the teacher's favourite action, in both games."""
    follows = [results["follows"] for results in two_games.run(seed=0).values()]
    assert all(found["agreement"] > found["favourite"] + 0.03 for found in follows), follows
