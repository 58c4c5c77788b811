"""The block on settings that keep a tiny student alive, from what :mod:`docs.pages.train_students` saved."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from docs.pages.tables import made_by, table_block

GAMES = 24  # of each network, at the end


def students_block(results: Path) -> str:
    """All variants and seeds."""
    runs = [json.loads(path.read_text()) for path in sorted(results.glob("students/seed*.json"))]
    first = runs[0]
    rows = [["variant", "dormant", "agreement", "normalised score", "mean"]]
    for name in first["students"]:
        students = [run["students"][name] for run in runs]
        dormant = [run["curves"][name]["dormant"][-1] for run in runs]
        normalised = [student["normalised"] or 0.0 for student in students]
        rows.append(
            [
                name,
                ", ".join(f"{share:.0%}" for share in dormant),
                ", ".join(f"{student['agreement']:.2f}" for student in students),
                ", ".join(f"{share:.2f}" for share in normalised),
                f"{statistics.fmean(normalised):.2f}",
            ]
        )
    text = (
        f"{first['game']}, {first['steps']:,} steps and {first['updates']:,} updates, seeds "
        f"{', '.join(str(run['seed']) for run in runs)}. Teachers scored "
        f"{', '.join(format(run['teacher_score'], ',.0f') for run in runs)}; {GAMES} games a network. Normalised "
        "scores and agreement are those of each seed; dormant units are those of the worst layer at the end."
    )
    return table_block(text, rows, made_by(first["environment"], "Command of the first"))
