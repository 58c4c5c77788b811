"""The study of what keeps a tiny student alive: run on a real game, seconds long, and the tables made from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs.pages import students, train_students
from docs.pages.train_students import NORM_VARIANTS, STUDIES, run
from docs.pages.two_games import two_games_block

pytestmark = pytest.mark.filterwarnings("ignore:.*dormant:UserWarning")

TINY = [
    "total_steps=1_024",  # past the first note of the curves, which is due at 1,000
    "warmup_steps=256",
    "steps_per_update=32",
    "replay_capacity=1_024",
    "max_episode_steps=60",
    "evaluate_every_steps=null",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    """Results of one seed of both studies, each of two variants, where pages look for them."""
    root, results = tmp_path_factory.mktemp("results"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_students, "GAMES", 2)
        for study, variants in STUDIES.items():
            two = dict(list(variants.items())[:2])
            results[study] = run(0, 1, TINY, two)
            (root / study).mkdir()
            (root / study / "seed0.json").write_text(json.dumps(results[study]))
    return root, results


def test_all_students_of_a_seed_follow_the_same_teacher(found: tuple[Path, dict[str, dict]]) -> None:
    """Both studies train the same teacher, whatever learns beside it, and play it to the same score."""
    first, second = found[1].values()
    assert first["teacher_score"] == second["teacher_score"]
    assert first["updates"] == second["updates"] > 0


def test_a_variant_differs_in_its_norm_alone(found: tuple[Path, dict[str, dict]]) -> None:
    """net17 has layers of 8, 8, 8 and 64 units: a scale and a shift more for each."""
    plain, normed = found[1]["students_norm"]["parameters"].values()
    assert list(NORM_VARIANTS)[:2] == ["net17, plain", "net17, LayerNorm"]
    assert normed - plain == 2 * (8 + 8 + 8 + 64)
    for curve in found[1]["students_norm"]["curves"].values():
        assert curve["steps"] and all(0 <= share <= 1 for share in curve["dormant"] + curve["agreement"])


@pytest.mark.parametrize(("study", "block"), [("students", "students_block"), ("students_norm", "norm_block")])
def test_the_tables_hold_every_variant(found: tuple[Path, dict[str, dict]], study: str, block: str) -> None:
    """One row a variant, beneath the head."""
    text = getattr(students, block)(found[0])
    for name in found[1][study]["students"]:
        assert f"| {name} |" in text


def test_a_share_of_a_teacher_no_better_than_random_is_a_dash(
    found: tuple[Path, dict[str, dict]], tmp_path: Path
) -> None:
    """There is no share of nothing; it isn't counted as zero."""
    result = json.loads(json.dumps(found[1]["students"]))
    for student in result["students"].values():
        student["normalised"] = None
    for study in STUDIES:
        (tmp_path / study).mkdir()
        (tmp_path / study / "seed0.json").write_text(json.dumps(result))
    assert all("| - |" in make(tmp_path) for make in (students.students_block, students.norm_block))


def test_a_student_of_two_games_has_a_row_a_seed_and_game(tmp_path: Path) -> None:
    """Made by the block itself, of two results written here."""
    for seed, game, agreement in ((0, "pong", 0.8125), (1, "breakout", 0.5)):
        folder = tmp_path / "two_games" / f"seed-{seed}" / game
        folder.mkdir(parents=True)
        networks = [
            {"parameters": 113_346, "score_mean": 20.4, "episodes": 4},
            {"parameters": 29_994, "score_mean": 1_018.0, "episodes": 4},
        ]
        results = {
            "game": game,
            "seed": seed,
            "steps": 8_000,
            "follows": {"agreement": agreement, "favourite": 0.25, "regret": 0.314},
            "networks": networks,
            "random_score": 3.0,
            "environment": {"cpu": "a processor", "commit": "0123456789abcdef", "command": "python two_games.py"},
        }
        (folder / "results.json").write_text(json.dumps(results))
    block = two_games_block(tmp_path)
    assert "| 0 | pong | 81% | 25% | 0.31 | 20 | 1,018 | 3 |" in block
    assert "| 1 | breakout | 50% | 25% | 0.31 | 20 | 1,018 | 3 |" in block
    assert "29,994 parameters and two teachers of 113,346 each, after 8,000 agent steps" in block
    assert "Commit 0123456789. Command of the first: `python two_games.py`." in block
