"""The block on a student of two live teachers, from the runs of ``examples/two_games.py``."""

from __future__ import annotations

import json
from pathlib import Path

from docs.pages.tables import made_by, table_block


def two_games_block(results: Path) -> str:
    """Agreement, regret and scores of the student and its teacher in each game, by seed."""
    runs = [json.loads(path.read_text()) for path in sorted(results.glob("two_games/seed-*/*/results.json"))]
    rows = [
        ["seed", "game", "agreement", "favourite action", "regret", "teacher's score", "student's score", "random"],
    ]
    for run in runs:
        follows, scores = run["follows"], [f"{network['score_mean']:,.0f}" for network in run["networks"]]
        rows.append(
            [
                str(run["seed"]),
                run["game"],
                f"{follows['agreement']:.0%}",
                f"{follows['favourite']:.0%}",
                f"{follows['regret']:.2f}",
                *scores,
                f"{run['random_score']:,.0f}",
            ]
        )
    teacher, student = runs[0]["networks"]
    text = (
        f"One student of {student['parameters']:,} parameters and two teachers of {teacher['parameters']:,} each, "
        f"after {runs[0]['steps']:,} agent steps of both games together. Agreement and regret are over states of a "
        "game in which a random player chose half of the actions; beside them stands the share of the action that the "
        "teacher takes most often there, which needs no student. Scores are means of "
        f"{teacher['episodes']} games without exploration."
    )
    return table_block(text, rows, made_by(runs[0]["environment"], "Command of the first"))
