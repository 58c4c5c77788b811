"""The tables of runs of whole length: shares of a human and of the teacher, and what a small student costs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from docs.pages.expert import COLUMNS, expert_block, methods_block
from docs.pages.people import humans, of_a_human
from docs.pages.study_data import load

COMPARED = tuple(f"final_{own}{key}" for own in ("", "own_") for key in ("agreement", "favourite", "regret"))


def line(row: str, seed: int, network: str, score: float, **more: object) -> dict[str, object]:
    """A line of ``runs.csv`` as far as the tables read it."""
    common = {"steps": 1_000, "updates": 500, "episodes": 30, "random_score": -20.0, "cpu": "a", "commit": "b"}
    common["command"] = f"python {row}"
    return {"row": row, "game": "pong", "seed": seed, "network": network, "final_score": score, **common, **more}


def write(path: Path, lines: list[dict]) -> None:
    """A table whose columns are those of all its lines."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for one in lines for key in one)), restval="")
        writer.writeheader()
        writer.writerows(lines)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two seeds of a teacher of 20 and 10 points and of students, one of which learned alone."""
    sizes = {"parameters": 177, "file_bytes_int8": 34_560, "latency_ms": 0.0311, "latency_int8_ms": 0.0351}
    lines = []
    for seed, score in enumerate((20.0, 10.0)):
        lines.append(line("rtpd", seed, "teacher", score, **{**sizes, "parameters": 10_000}))
        lines.append(line("rtpd", seed, "net17", score / 2, **sizes, **dict.fromkeys(COMPARED, 0.25 + seed / 2)))
        lines.append(line("scratch_net17", seed, "net17", -20.0, **sizes))
    (tmp_path / "atari_expert").mkdir()
    write(tmp_path / "atari_expert" / "runs.csv", lines)
    (tmp_path / "atari_expert" / "evaluations.csv").write_text("row,game,seed,network,score\n")
    return tmp_path


def test_each_network_stands_beside_the_human_and_its_own_teacher(results: Path) -> None:
    """By hand: a human has 14.6 points, the random player of the runs -20."""
    text = expert_block(results).splitlines()
    assert text[0].startswith("**Pong**: 1,000 agent steps and 500 updates a run, seeds 0, 1; the last weights on 30")
    assert text[2:5] == [
        "- **18 points or more?** teacher in 1 and net17 in 0 of 2 seeds.",
        "- **Is the teacher as good as a human?** Yes: 1.01 [0.87, 1.16].",
        "- **Does net17 end at 95 % of its teacher or more, the interval above 85 %?** No: 0.79 [0.75, 0.83] "
        "of what the teacher has above a random player.",
    ]
    cells = {
        row[0]: dict(zip(COLUMNS, row, strict=True))
        for row in ([cell.strip() for cell in one.strip("|").split("|")] for one in text if one.startswith("|"))
    }
    teacher, student, alone = cells["teacher"], cells["rtpd"], cells["scratch_net17"]
    assert (teacher["scores"], teacher["of the teacher"], teacher[COLUMNS[-3]]) == (
        "20.0, 10.0",
        "1.00 [1.00, 1.00]",
        "-",
    )
    assert teacher["of a human"].startswith("1.01 [")  # mean of 40 and 30, over 34.6
    assert student["of a human"].startswith("0.79 [")
    assert student["of the teacher"].startswith("0.79 [")  # mean of 30 / 40 and 25 / 30
    assert [student[key] for key in COLUMNS[-3:]] == ["0.50 (0.50)"] * 3
    assert (student["of the teacher's parameters"], student["int8 file, kB"], student["int8, ms"]) == (
        "1.8%",
        "35",
        "0.035",
    )
    assert (cells["a random player"]["scores"], cells["a human"]["scores"]) == ("-20.0, -20.0", "14.6")
    assert (alone["of the teacher"], alone[COLUMNS[-3]], alone["of the teacher's parameters"]) == (
        "0.00 [0.00, 0.00]",
        "-",
        "1.8%",
    )


def test_a_human_is_one_and_the_runs_own_random_player_nothing() -> None:
    """A player worse than random has less than nothing; of a game without a reference nothing is said."""
    assert (of_a_human(-20.0, -20.0, "pong"), of_a_human(humans()["pong"], -20.0, "pong")) == (0.0, 1.0)
    assert (of_a_human(-21.0, -20.0, "pong") or 0.0) < 0 and of_a_human(1.0, 0.0, "chess") is None


def test_a_game_of_other_runs_alone_and_columns_of_later_ones_are_left_out(results: Path) -> None:
    """As where a study goes on, or older files lack what is measured today."""
    file = results / "atari_expert" / "runs.csv"
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    alone = [{**row, "game": "breakout"} for row in rows if row["row"] == "scratch_net17"]
    older = [{key: cell for key, cell in row.items() if key != "file_bytes_int8"} for row in rows + alone]
    write(file, older)
    load.cache_clear()
    text = expert_block(results)
    assert "breakout" not in text and "| rtpd | 1.8% | - | 0.031 | 0.035 |" in text


def test_methods_are_compared_in_games_that_have_two_phases(results: Path) -> None:
    """Of Pong alone: a student of two phases spends twice the steps, and the other game has none."""
    folder = results / "atari_expert"
    with (folder / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows += [{**row, "game": "krull"} for row in rows]
    rows += [{**row, "row": "two_stage"} for row in rows if row["row"] == "rtpd" and row["game"] == "pong"]
    named, costs = ("row", "game", "seed", "network"), ("steps", "updates", "training_seconds", "cpu_seconds")
    lines: dict[str, list[dict[str, str]]] = {"runs.csv": [], "evaluations.csv": []}
    for row in rows:
        whole = 2_000 if row["row"] == "two_stage" else 1_000
        lines["runs.csv"].append(row | {"parameter_ratio": "0.02"} | dict.fromkeys(costs, str(whole)))
        for steps, score in ((whole / 2, "-20"), (whole - 100, row["final_score"]), (whole, row["final_score"])):
            own = {key: row[key] for key in named}
            lines["evaluations.csv"].append(own | dict.fromkeys(costs, str(steps)) | {"score": score})
    for name, found in lines.items():
        write(folder / name, found)
    load.cache_clear()
    again = "seed 0's teacher, played again 3 times while it taught in two phases: -20 to 20, 7 in the mean; 20 in the"
    assert again in expert_block(results)
    text = methods_block(results)
    assert text.startswith("Games pong; seeds 0, 1; students net17") and "krull" not in text
    assert "Yes: net17 scores higher in rtpd than in scratch_net17 with probability 1.00 [1.00, 1.00]" in text
    assert "| pong | net17 | steps | 0.50 [0.50, 0.50] |" in text  # neither ever held 95 %
    assert "Commits" not in text
