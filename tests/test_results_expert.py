"""The tables of runs of whole length: shares of a human and of the teacher, and what a small student costs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from docs.pages.expert import COLUMNS, expert_block
from docs.pages.people import of_a_human, references

COMPARED = ("final_agreement", "final_own_agreement", "final_regret", "final_own_regret")


def line(row: str, seed: int, network: str, score: float, **more: object) -> dict[str, object]:
    """A line of ``runs.csv`` as far as the tables read it."""
    common = {"steps": 1_000, "updates": 500, "episodes": 30, "random_score": -20.0}
    return {"row": row, "game": "pong", "seed": seed, "network": network, "final_score": score, **common, **more}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two seeds of a teacher of 20 and 10 points and of students, one of which learned alone."""
    sizes = {"parameter_ratio": 0.0177, "file_bytes_int8": 34_560, "latency_int8_ms": 0.0351}
    lines = []
    for seed, score in enumerate((20.0, 10.0)):
        lines.append(line("rtpd", seed, "teacher", score, **{**sizes, "parameter_ratio": 1.0}))
        lines.append(line("rtpd", seed, "net17", score / 2, **sizes, **dict.fromkeys(COMPARED, 0.25 + seed / 2)))
        lines.append(line("scratch_net17", seed, "net17", -20.0, **{**sizes, "parameter_ratio": ""}))
    (tmp_path / "atari_expert").mkdir()
    columns = list(dict.fromkeys(key for one in lines for key in one))
    with (tmp_path / "atari_expert" / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(lines)
    (tmp_path / "atari_expert" / "evaluations.csv").write_text("row,game,seed,network,score\n")
    return tmp_path


def test_each_network_stands_beside_the_human_and_its_own_teacher(results: Path) -> None:
    """By hand: a human has 14.6 points and a random player -20.7."""
    text = expert_block(results).splitlines()
    assert text[0].startswith("**Pong**: 1,000 agent steps and 500 updates a run, seeds 0, 1; the last weights on 30")
    cells = {
        row[0]: dict(zip(COLUMNS, row, strict=True))
        for row in ([cell.strip() for cell in one.strip("|").split("|")] for one in text if one.startswith("|"))
    }
    teacher, student, alone = cells["teacher"], cells["rtpd"], cells["scratch_net17"]
    assert (teacher["scores"], teacher["of the teacher"], teacher["agreement"]) == ("20.0, 10.0", "1", "-")
    assert teacher["of a human"].startswith("1.01 [")  # mean of 40.7 and 30.7, over 35.3
    assert student["of a human"].startswith("0.80 [")
    assert student["of the teacher"].startswith("0.79 [")  # mean of 30 / 40 and 25 / 30
    assert [student[key] for key in ("agreement", "own agreement", "regret", "own regret")] == ["0.50"] * 4
    assert (student["of the teacher's parameters"], student["int8 file, kB"], student["int8, ms"]) == (
        "1.8%",
        "35",
        "0.035",
    )
    assert (alone["of the teacher"], alone["agreement"], alone["of the teacher's parameters"]) == (
        "0.00 [0.00, 0.00]",
        "-",
        "-",
    )


def test_a_human_is_one_and_a_random_player_nothing() -> None:
    """A player worse than random has less than nothing; of a game without references nothing is said."""
    low, high = references()["pong"]
    assert (of_a_human(low, "pong"), of_a_human(high, "pong")) == (0.0, 1.0)
    assert (of_a_human(low - 1.0, "pong") or 0.0) < 0 and of_a_human(1.0, "chess") is None
    assert all(random < human for random, human in references().values())
