"""Blocks and the figure on what was measured on a GPU.

From ``docs/results/gpu.json``, saved by ``tests/benchmarks/gpu.py``, and ``docs/results/gpu_pong/``, a run of the main
example on an earlier day. The machine was lent for minutes, so the former was filled by several calls; each part
has its command, commit and date in the file.
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
    environment = result["environment"]
    commits, commands, dates = (
        sorted({made[key] for made in result["made"].values()}) for key in ("commit", "command", "date")
    )
    return "\n".join(
        [
            f"{environment['device']}, {environment['cpu']}, torch {environment['versions']['torch']}, "
            f"{', '.join(dates)}.",
            "",
            *_checks(result),
            "One update, batch 32, in milliseconds:",
            "",
            markdown(update_rows(result)),
            "",
            "Time of a captured update: the host's to start it, the device's for the graph, and the sum over its "
            "kernels one after the other, which students' streams avoid:",
            "",
            markdown(profile_rows(result["captured_profile"])),
            "",
            f"An update of the paper's five takes {_guard_cost(result):.1%} longer with a guard that skips what is "
            "not finite.",
            "",
            "A minibatch of 32, drawn and brought to the GPU:",
            "",
            markdown([["replay", "ms"], *([name, f"{value:.2f}"] for name, value in replay_rows(result["replay_ms"]))]),
            "",
            *saving(result["checkpoints"]),
            "The main example with an update every 4 steps, timed from its first update on:",
            "",
            markdown(rate_rows(result)),
            "",
            "Parts of a batch of 256 steps, in milliseconds, from the rates above and the parts measured alone:",
            "",
            markdown(batch_rows(result)),
            "",
            *loop_lines(result.get("loop", {})),
            f"Commit of the package: {', '.join(commit[:10] for commit in commits)}. Commands: "
            f"{'; '.join(f'`{command}`' for command in commands)}.",
            "",
        ]
    )


def _checks(result: dict[str, Any]) -> list[str]:
    """Findings of equality, one line each."""
    same, waits, captured = (result[key] for key in ("same_losses", "waits_nowhere", "captured_is_same"))
    guarded, resumed, suite = (result[key] for key in ("guarded", "resumed", "suite"))
    largest = max(captured["largest_difference_of_weights"].values())
    apart = max(resumed["largest_difference_of_weights_of_two_resumes"].values())
    without = _yes(captured["teacher_identical_without_students"])
    others = [
        f"{', '.join(f'`{name}`' for name in names)} {outcome} ({message})"
        for outcome in ("skipped", "failed")
        for message, names in _by_message(suite[outcome]).items()
    ]
    return [
        "Checks:",
        "",
        f"- The {same['metrics']} losses and metrics of teacher and five students differ from the CPU's by at most "
        f"{same['largest_relative_difference']:.0e} of their value.",
        f"- Under torch's synchronisation debugger {waits['whole_captured_updates_without_waiting']} captured updates, "
        "and as many of a student by the hook, waited for nothing.",
        f"- After {captured['updates']} updates the weights of captured and eager networks differ by {largest:g}; the "
        f"teacher's are bit for bit the same with and without students: {without}.",
        f'- Of {guarded["updates"] + 1} captured updates with `DivergenceGuard(policy="skip")` one had rewards that '
        f"are no numbers: {guarded['left_out']} networks left it out, and all weights are bit for bit those without "
        f"it: {_yes(guarded['identical_to_never_made'])}.",
        f"- The main example with five students, captured, resumed twice from its checkpoint at step "
        f"{resumed['cut_at']:,}, replay included, and run to step {resumed['steps']:,}: "
        f"weights differ by {apart:g}, rows of metrics are the same: "
        f"{'yes' if resumed['same_rows'] else 'no'}.",
        *pqn_checks(result),
        f"- Tests marked `gpu`: {len(suite['passed'])} passed; {'; '.join(others) or 'none failed'}.",
        "",
    ]


def _by_message(outcomes: dict[str, str]) -> dict[str, list[str]]:
    """Names of tests, without their files, by the first line of what they said."""
    found: dict[str, list[str]] = {}
    for name, message in sorted(outcomes.items()):
        found.setdefault(message.split("\n")[0], []).append(name.rpartition(".")[2])
    return found


def pqn_checks(result: dict[str, Any]) -> list[str]:
    """Findings of equality for PQN and for rollouts, one line each; none where they were not looked for."""
    lines = []
    if "pqn_captured_is_same" in result:
        captured = result["pqn_captured_is_same"]
        largest = max(captured["largest_difference_of_weights"].values())
        lines.append(
            f"- PQN with RAdam: after {captured['updates']} updates the weights of captured and eager networks differ "
            f"by {largest:g}; the teacher's are bit for bit the same with and without students: "
            f"{_yes(captured['teacher_identical_without_students'])}."
        )
    if "rollout_waits_nowhere" in result:
        rollout = result["rollout_waits_nowhere"]
        lines.append(
            f"- A captured teacher played {rollout['steps']:,} steps, exploring, of which "
            f"{rollout['steps_of_each_game_without_waiting']} in each game under the debugger, and waited for nothing "
            f"but its actions; they are an uncaptured one's: {_yes(rollout['identical_to_uncaptured'])}."
        )
    for method in ("dqn", "pqn"):
        if f"{method}_resumed" in result:
            resumed = result[f"{method}_resumed"]
            apart = max(resumed["largest_difference_of_weights_of_two_resumes"].values())
            lines.append(
                f"- A loop of {method.upper()} with five students, resumed twice from its checkpoint at step "
                f"{resumed['cut_at']:,} and run to step {resumed['steps']:,}: weights differ by {apart:g}."
            )
    return lines


def loop_lines(loops: dict[str, Any]) -> list[str]:
    """The whole loop by method and fleet, and the shares of its time; nothing where it was not measured."""
    if not loops:
        return []
    rows = [["loop", "steps a second", "games", "inference", "learning", "the rest", "GPU busy"]]
    for name, loop in loops.items():
        shares = [f"{loop['shares'].get(key, 0.0):.0%}" for key in ("environment", "inference", "learning", "rest")]
        busy = f"{loop['gpu_busy_percent']:.0f}%" if "gpu_busy_percent" in loop else "-"
        method, _, fleet = name.partition(", ")
        rows.append([f"{method.upper()}, {fleet}", f"{loop['steps_per_second']:,.0f}", *shares, busy])
    return [
        "The whole loop from the package's parts, without evaluations, and the shares of its time by what the host did "
        "or waited for; busy is the driver's own account:",
        "",
        markdown(rows),
        "",
    ]


def update_rows(result: dict[str, Any]) -> list[list[str]]:
    """One update by fleet."""
    rows = [["fleet", "eager", "captured", "times as fast", "captured, bfloat16", "captured, compiled"]]
    for fleet, row in result["update_ms"].items():
        eager, graph = row["eager"], row["captured"]
        compiled = result["compiled_update_ms"].get(fleet, {}).get("captured, compiled")
        numbers = [f"{eager:.2f}", f"{graph:.2f}", f"{eager / graph:.0f}", f"{row['captured, bfloat16']:.2f}"]
        rows.append([fleet, *numbers, "not measured" if compiled is None else f"{compiled:.2f}"])
    return rows


def profile_rows(profile: dict[str, Any]) -> list[list[str]]:
    """Host, device and kernels of a captured update by fleet."""
    rows = [["fleet", "host, ms", "device, ms", "kernels", "kernels one after the other, ms"]]
    for fleet, part in profile.items():
        sizes = [f"{part[key]:.2f}" for key in ("host_ms", "graph_alone_ms")]
        rows.append([fleet, *sizes, f"{part['kernels']:.0f}", f"{part['kernels_ms']:.2f}"])
    return rows


def replay_rows(times: dict[str, float]) -> list[tuple[str, float]]:
    """Times of sampling by where the replay lies."""
    return [
        (f"in {'the host' if 'host' in name else 'the GPU'}'s memory, {name.partition(',')[0]}", value)
        for name, value in times.items()
    ]


def saving(found: dict[str, Any]) -> list[str]:
    """Cost of checkpoints on the device."""
    run, replay = found["run"], found["replay"]
    return [
        f"A checkpoint of the paper's preset with five students, without its replay: {run['megabytes']:.0f} MB in "
        f"{run['save_seconds']:.2f} s, which is {run['percent_of_training']:.1f} % of the time between two, "
        f"{run['interval_seconds']:.0f} s for {run['interval_steps']:,} steps. A replay of "
        f"{replay['transitions']:,} transitions in the "
        f"GPU's memory, {replay['gigabytes']:.2f} GB: saved in {replay['save_seconds']:.2f} s, restored in "
        f"{replay['restore_seconds']:.2f} s, to the bit: {'yes' if replay['identical'] else 'no'}.",
        "",
    ]


def rate_rows(result: dict[str, Any]) -> list[list[str]]:
    """Steps a second; the share of time in which updates keep the GPU busy, where its time for one is known."""
    rows = [["run", "steps a second", "minutes for ten million steps", "GPU busy with updates"]]
    for name, run in result["training"].items():
        share = "-"
        if "captured" in name and "bfloat16" not in name:
            update = result["captured_profile"][_fleet(name)]["graph_alone_ms"]
            share = f"{run['steps_per_second'] / 4 * update / 1e3:.0%}"
        rows.append([name, f"{run['steps_per_second']:,.0f}", f"{run['minutes_for_ten_million']:.0f}", share])
    return rows


def batch_rows(result: dict[str, Any], steps: int = 256, updates: int = 64) -> list[list[str]]:
    """Time of a batch of the main example: updates, sampling and playing alone, and the rest."""
    playing = 1e3 * steps / result["playing"]["64 games"]["collector, stacks"]
    sampling = updates * result["replay_ms"]["64 together"]
    rows = [["run", "whole", "updates", "sampling", "playing", "the rest"]]
    for name in ("teacher alone, captured", "one student, captured", "five students, captured"):
        whole = 1e3 * steps / result["training"][name]["steps_per_second"]
        learning = updates * result["captured_profile"][_fleet(name)]["whole_ms"]
        parts = (whole, learning, sampling, playing, whole - learning - sampling - playing)
        rows.append([name, *(f"{part:.0f}" for part in parts)])
    return rows


def _fleet(run: str) -> str:
    """Name the fleet whose update a run makes."""
    return {"five": "the paper's five", "one": "one student", "teacher": "teacher"}[run.split()[0]]


def _guard_cost(result: dict[str, Any]) -> float:
    return result["guard_ms"]["guard"] / result["guard_ms"]["no guard"] - 1


def _yes(found: dict[str, bool]) -> str:
    return "yes" if all(found.values()) else "no"


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


def pqn_game_block(results: Path) -> str:
    """A run of the main example by PQN, and what had become of its students when it was cut."""
    result = json.loads((results / "gpu.json").read_text())
    game, made = result["game"], result["made"]["game"]
    found, last = game["evaluations"], game["last_means"]
    networks = [name.removesuffix("/score") for name in found if name.endswith("/score")]
    rows = [["steps", "updates", "minutes", *networks]]
    for index, steps in enumerate(found["steps"]):
        scores = [
            f"{found[f'{name}/score'][index]:.1f} +- {found[f'{name}/score_std'][index]:.1f}" for name in networks
        ]
        rows.append(
            [f"{steps:,.0f}", f"{found['updates'][index]:,.0f}", f"{found['seconds'][index] / 60:.1f}", *scores]
        )
    alive = [["student", "agreement", "KL", "entropy", "dormant"]]
    for name in networks[1:]:
        values = [f"{last[f'{name}/{key}']:.2f}" for key in ("agreement", "kl_to_teacher", "student_entropy")]
        alive.append([name, *values, f"{last[f'{name}/dormant']:.0%}"])
    return "\n".join(
        [
            f"Pong by PQN, one run, seed 0, on one {game['device']}, {made['date']}: mean raw scores and standard "
            f"deviations of 8 games each, a random player has {game['random_score']:.1f}. The lent machine's time "
            f"ended at step {game['steps']:,.0f}, after {game['updates']:,} updates. The GPU was busy "
            f"{game['gpu_busy_percent']:.0f} % of the time, evaluations included.",
            "",
            markdown(rows),
            "",
            "Means over the last rollout before the end; dormant units are those of the worst layer:",
            "",
            markdown(alive),
            "",
            f"Hardware: {result['environment']['cpu']}, {game['device']}. Commit {made['commit'][:10]}. Command: "
            f"`{game['command']}`.",
            "",
        ]
    )


def pong_figure(docs: Path, path: Path) -> None:
    """Learning curves of that run."""
    metrics = read_metrics(docs / "results" / "gpu_pong" / "metrics.csv")
    plot_curves(metrics, NETWORKS, path, title="Pong on one H200, seed 0")
