"""Blocks and the figure on what was measured on a GPU.

From ``docs/results/gpu.json``, saved by ``tests/benchmarks/gpu.py``, and ``docs/results/gpu_pong/``, a run of the main
example. The machine was lent for minutes, so the parts of the former come from several calls, whose commits stand
beside them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from docs.pages.tables import markdown
from torchrl_rtpd.runs.figures import plot_curves
from torchrl_rtpd.runs.metrics import read_metrics

NETWORKS = ["teacher", "net1", "net3", "net5", "net17"]


def gpu_block(result: dict[str, Any]) -> str:
    """Checks, times and rates."""
    environment, commits = result["environment"], result["commits"]
    profile = result["captured_profile"]
    times = [["fleet", "eager, ms", "captured, ms", "times as fast", "captured, bfloat16, ms"]]
    parts = [["fleet", "host, ms", "device, ms", "kernels", "kernels one after the other, ms"]]
    for fleet, row in result["update_ms"].items():
        eager, graph = row["eager"], row["captured"]
        bfloat16 = row["captured, bfloat16"]
        times.append([fleet, f"{eager:.2f}", f"{graph:.2f}", f"{eager / graph:.0f}", f"{bfloat16:.2f}"])
        part = profile[fleet]
        sizes = [f"{part[key]:.2f}" for key in ("host_ms", "graph_alone_ms")]
        parts.append([fleet, *sizes, f"{part['kernels']:.0f}", f"{part['kernels_ms']:.2f}"])
    rates = [["run", "steps a second", "minutes for ten million steps", "GPU busy"]]
    for name, run in result["training"].items():
        numbers = [f"{run['steps_per_second']:,.0f}", f"{run['minutes_for_ten_million']:.0f}"]
        rates.append([name, *numbers, f"{run['gpu_busy_percent']:.0f} %"])
    return "\n".join(
        [
            f"{environment['device']}, {environment['cpu']}, torch {environment['versions']['torch']}, "
            f"{result['date']}.",
            "",
            _checks(result),
            "",
            "One update, batch 32:",
            "",
            markdown(times),
            "",
            "Time of a captured update: the host's to start it, the device's for the graph, and the sum over its "
            "kernels one after the other, which students' streams avoid:",
            "",
            markdown(parts),
            "",
            "The main example with an update every 4 steps:",
            "",
            markdown(rates),
            "",
            f"Commits: {', '.join(f'{name} {commit[:10]}' for name, commit in commits.items())}. "
            f"Command: `{environment['command']}`.",
            "",
        ]
    )


def _checks(result: dict[str, Any]) -> str:
    same, waits, captured = (result[key] for key in ("same_losses", "waits_nowhere", "captured_is_same"))
    largest = max(captured["largest_difference_of_weights"].values())
    identical = all(captured["teacher_identical_without_students"].values())
    return (
        f"Checks: the {same['metrics']} losses and metrics of teacher and five students differ from the CPU's by "
        f"at most {same['largest_relative_difference']:.0e} of their value. Under torch's synchronisation "
        f"debugger {waits['whole_captured_updates_without_waiting']} captured updates, and as many of a student "
        f"by the hook, waited for nothing. After {captured['updates']} updates the weights of captured and eager "
        f"networks differ by {largest:g}; the teacher's are bit for bit the same with and without students: "
        f"{'yes' if identical else 'no'}."
    )


def pong_block(results: Path) -> str:
    """The evaluations of the run on Pong."""
    run = json.loads((results / "gpu_pong" / "run.json").read_text())
    metrics = read_metrics(results / "gpu_pong" / "metrics.csv")
    rows = [["steps", "updates", "minutes", *NETWORKS]]
    for index, steps in enumerate(metrics["steps"]):
        if math.isnan(metrics["teacher/score"][index]):
            continue
        scores = [
            f"{metrics[f'{name}/score'][index]:.1f} +- {metrics[f'{name}/score_std'][index]:.1f}" for name in NETWORKS
        ]
        minutes = metrics["seconds"][index] / 60
        rows.append([f"{steps:,.0f}", f"{metrics['updates'][index]:,.0f}", f"{minutes:.1f}", *scores])
    return "\n".join(
        [
            f"Pong, one run, seed {run['seed']}, on one {run['device']}, {run['date']}: mean raw scores and standard "
            "deviations of 8 games each. The networks are those of the moment; no evaluation chose them. The final "
            f"games are missing, since {run['left_out']}. The GPU was busy {run['gpu_busy_percent']:.0f} % of the "
            "time, evaluations included.",
            "",
            markdown(rows),
            "",
            f"Hardware: {run['cpu']}, {run['device']}. Commit {run['commit'][:10]}. Command: `{run['command']}`.",
            "",
        ]
    )


def pong_figure(docs: Path, path: Path) -> None:
    """Learning curves of that run."""
    metrics = read_metrics(docs / "results" / "gpu_pong" / "metrics.csv")
    plot_curves(metrics, NETWORKS, path, title="Pong on one H200, seed 0")
