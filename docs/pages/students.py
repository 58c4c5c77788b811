"""Blocks on settings that keep a tiny student alive: from :mod:`docs.pages.train_students`, and from a GPU beside PQN."""

from __future__ import annotations

import json
import math
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


def pqn_students_block(results: Path) -> str:
    """Students beside one PQN teacher on a GPU, by ``tests/benchmarks/gpu.py``: what became of each seed."""
    result = json.loads((results / "gpu.json").read_text())
    found, made = result["survival"], result["made"]["survival"]
    variants: dict[str, list[dict[str, list[float]]]] = {}
    for name, student in found["students"].items():
        variants.setdefault(name.partition(";")[0], []).append(student)
    rows = [["student", "agreement", "KL", "entropy", "dormant"]]
    for name, seeds in variants.items():
        columns = (("agreement", "{:.2f}"), ("kl_to_teacher", "{:.3f}"), ("student_entropy", "{:.2f}"))
        cells = [", ".join(form.format(seed[key][-1]) for seed in seeds) for key, form in columns]
        rows.append([name, *cells, ", ".join(f"{seed['dormant'][-1]:.0%}" for seed in seeds)])
    text = (
        f"Pong, {found['steps'][-1]:,} steps and {found['updates'][-1]:,} updates of one PQN teacher, whose minibatches "
        f"all students share; {len(next(iter(variants.values())))} of each, by seed of their weights. Values are means "
        "over the last rollout's minibatches; entropy is of the softened policy, which is "
        f"{math.log(found['num_actions']):.2f} where all {found['num_actions']} actions are alike; dormant units are "
        "those of the worst layer."
    )
    where = f"Hardware: {made['device']}. Commit {made['commit'][:10]}. Command: `{made['command']}`."
    return table_block(text, rows, where)


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
