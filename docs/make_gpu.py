"""Write the page on what was measured on a GPU: ``python docs/make_gpu.py``.

From ``docs/results/gpu.json``, saved by ``tests/benchmarks/gpu.py``, and ``docs/results/gpu_pong/``, a run of the main
example. The machine was lent for minutes, so the parts of the former come from several calls, whose commits stand
beside them. Writes ``docs/results/gpu.md``, ``docs/results/gpu_pong.md`` and its figure.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from make_results import markdown

from torchrl_rtpd.runs.figures import plot_curves
from torchrl_rtpd.runs.metrics import read_metrics

RESULTS = Path(__file__).parent / "results"
NETWORKS = ["teacher", "net1", "net3", "net5", "net17"]


def gpu_page(result: dict[str, Any]) -> str:
    """Checks, times and rates."""
    environment, commits = result["environment"], result["commits"]
    same, waits, captured = (result[key] for key in ("same_losses", "waits_nowhere", "captured_is_same"))
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
    largest = max(captured["largest_difference_of_weights"].values())
    identical = all(captured["teacher_identical_without_students"].values())
    return "\n".join(
        [
            "<!-- written by docs/make_gpu.py from docs/results/gpu.json -->",
            "",
            f"{environment['device']}, {environment['cpu']}, torch {environment['versions']['torch']}, "
            f"{result['date']}.",
            "",
            f"Checks: the {same['metrics']} losses and metrics of teacher and five students differ from the CPU's by "
            f"at most {same['largest_relative_difference']:.0e} of their value. Under torch's synchronisation "
            f"debugger {waits['whole_captured_updates_without_waiting']} captured updates, and as many of a student "
            f"by the hook, waited for nothing. After {captured['updates']} updates the weights of captured and eager "
            f"networks differ by {largest:g}; the teacher's are bit for bit the same with and without students: "
            f"{'yes' if identical else 'no'}.",
            "",
            "One update, batch 32:",
            "",
            markdown(times),
            "",
            "Where a captured update goes: the host's time to start it, the device's time for the graph, and what its "
            "kernels would take one after the other, which students' streams avoid:",
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


def pong_page(run: dict[str, Any], metrics: dict[str, list[float]]) -> str:
    """The evaluations of the run."""
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
            "<!-- written by docs/make_gpu.py from docs/results/gpu_pong/ -->",
            "",
            f"Pong, one run, seed {run['seed']}, on one {run['device']}, {run['date']}: mean raw scores and standard "
            "deviations of 8 games each. The networks are those of the moment, chosen by nothing; the final games are "
            f"missing, since {run['left_out']}. The GPU was busy {run['gpu_busy_percent']:.0f} % of the time, "
            "evaluations included.",
            "",
            markdown(rows),
            "",
            f"Hardware: {run['cpu']}, {run['device']}. Commit {run['commit'][:10]}. Command: `{run['command']}`.",
            "",
        ]
    )


def pages() -> dict[str, str]:
    """Every page by its file name."""
    run = json.loads((RESULTS / "gpu_pong" / "run.json").read_text())
    return {
        "gpu.md": gpu_page(json.loads((RESULTS / "gpu.json").read_text())),
        "gpu_pong.md": pong_page(run, read_metrics(RESULTS / "gpu_pong" / "metrics.csv")),
    }


def main() -> None:
    """Write the pages and the figure."""
    for name, text in pages().items():
        (RESULTS / name).write_text(text)
    metrics = read_metrics(RESULTS / "gpu_pong" / "metrics.csv")
    plot_curves(metrics, NETWORKS, RESULTS / "gpu_pong" / "curves.png", title="Pong on one H200, seed 0")


if __name__ == "__main__":
    main()
