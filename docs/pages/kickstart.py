"""The block on students that a teacher kickstarts, from the runs of ``examples/kickstart.py``."""

from __future__ import annotations

import json
from pathlib import Path

from docs.pages.tables import made_by, table_block


def kickstart_block(results: Path) -> str:
    """Scores at the end, and steps until games were good, of each network and seed."""
    runs = [json.loads(path.read_text()) for path in sorted(results.glob("kickstart/*/results.json"))]
    rows = [["seed", "network", "parameters", "steps", "steps to a good return", "score at the end", "random"]]
    for run in runs:
        for network in run["networks"]:
            name = network["name"]
            reached = run["steps_to_good_return"][name]
            rows.append(
                [
                    str(run["seed"]),
                    name,
                    f"{network['parameters']:,}",
                    f"{run['teacher_steps' if name == 'teacher' else 'steps']:,}",
                    "not reached" if reached is None else f"{reached:,.0f}",
                    f"{network['score_mean']:,.0f} +- {network['score_std']:,.0f}",
                    f"{run['random_score']:,.0f}",
                ]
            )
    episodes = runs[0]["networks"][0]["episodes"]
    text = (
        f"Agent steps until the games that ended in a batch, played with exploration, had a mean return of "
        f"{runs[0]['good_return']:.0f}; and the last networks on {episodes} games without exploration, mean and "
        "standard deviation. The steps of the teacher come on top where there was none before."
    )
    return table_block(text, rows, made_by(runs[0]["environment"], "Command of the first"))
