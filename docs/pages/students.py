"""The block on settings that keep a tiny student alive, from what :mod:`docs.pages.train_students` saved."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from docs.pages.tables import made_by, spread, table_block

GAMES = 24  # of each network, at the end


def runs_of(results: Path, study: str) -> list[dict[str, Any]]:
    """Results of a study of students, a seed each."""
    return [json.loads(path.read_text()) for path in sorted(results.glob(f"{study}/seed*.json"))]


def norm_block(results: Path) -> str:
    """Students with LayerNorm and without: means over the seeds."""
    runs = runs_of(results, "students_norm")
    first = runs[0]
    rows = [["student", "parameters", "dormant", "agreement", "KL", "normalised score"]]
    for name in first["students"]:
        curves, students = [run["curves"][name] for run in runs], [run["students"][name] for run in runs]
        rows.append(
            [
                name,
                f"{first['parameters'][name]:,}",
                spread([curve["dormant"][-1] for curve in curves], "{:.0%}"),
                spread([student["agreement"] for student in students], "{:.2f}"),
                spread([curve["kl_to_teacher"][-1] for curve in curves], "{:.3f}"),
                spread([student["normalised"] for student in students if student["normalised"] is not None], "{:.2f}"),
            ]
        )
    text = (
        f"{first['game']}, {first['steps']:,} steps and {first['updates']:,} updates, seeds "
        f"{', '.join(str(run['seed']) for run in runs)}: mean and standard deviation over the seeds. Teachers, without "
        f"LayerNorm and the same for all students of a seed, scored "
        f"{', '.join(format(run['teacher_score'], ',.0f') for run in runs)}; {GAMES} games a network. Dormant units "
        "are those of the worst layer at the end; agreement is that on states which the teacher plays."
    )
    return table_block(text, rows, made_by(first["environment"], "Command of the first"))


def students_block(results: Path) -> str:
    """All variants and seeds."""
    runs = runs_of(results, "students")
    first = runs[0]
    rows = [["variant", "dormant", "agreement", "normalised score", "mean"]]
    for name in first["students"]:
        students = [run["students"][name] for run in runs]
        dormant = [run["curves"][name]["dormant"][-1] for run in runs]
        normalised = [student["normalised"] for student in students]
        known = [share for share in normalised if share is not None]
        rows.append(
            [
                name,
                ", ".join(f"{share:.0%}" for share in dormant),
                ", ".join(f"{student['agreement']:.2f}" for student in students),
                ", ".join("-" if share is None else f"{share:.2f}" for share in normalised),
                f"{statistics.fmean(known):.2f}" if known else "-",
            ]
        )
    text = (
        f"{first['game']}, {first['steps']:,} steps and {first['updates']:,} updates, seeds "
        f"{', '.join(str(run['seed']) for run in runs)}. Teachers scored "
        f"{', '.join(format(run['teacher_score'], ',.0f') for run in runs)}; {GAMES} games a network. Normalised "
        "scores and agreement are those of each seed; dormant units are those of the worst layer at the end."
    )
    return table_block(text, rows, made_by(first["environment"], "Command of the first"))
