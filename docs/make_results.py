"""Write the tables of the results page from the files under ``docs/results/``: ``python docs/make_results.py``.

- ``<study>/<run>/``: ``results.json``, ``metrics.csv`` and ``config.yaml`` of one run of the main example each;
- ``drop_in/<script>-seed<S>/results.json``: what ``examples/<script>.py --seed S --out ...`` left;
- ``speed.json``, ``profile.json`` and so on: what the benchmarks in ``tests/benchmarks/`` saved.

Each gets a page beside it. Nothing in a page is typed by hand.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the scripts of this folder are no package
from survival_pages import checkpoint_page, kills_page, soak_page
from tables import made_by, markdown, table_page, with_interval

from torchrl_rtpd.evaluation.comparison import probability_of_improvement

RESULTS = Path(__file__).parent / "results"


def load_runs(study: Path) -> list[dict[str, Any]]:
    """The ``results.json`` of every run of a study, by seed."""
    runs = [json.loads(path.read_text()) for path in sorted(study.glob("*/results.json"))]
    return sorted(runs, key=lambda run: run["seed"])


def errors_above_random(run: dict[str, Any], network: dict[str, Any]) -> float:
    """How far a network's mean score is above the random player's, in standard errors of the difference."""
    error = (network["score_standard_error"] ** 2 + run["random_standard_error"] ** 2) ** 0.5
    return (network["score_mean"] - run["random_score"]) / error if error else float("inf")


def seed_rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    """One row a network and seed."""
    heading = [
        "seed",
        "network",
        "parameters",
        "score",
        "std",
        "games",
        "normalised",
        "agreement",
        "above random",
        "seconds",
    ]
    rows = [heading]
    for run in runs:
        for network in run["networks"]:
            rows.append(
                [
                    str(run["seed"]),
                    network["name"],
                    f"{network['parameter_ratio']:.1%}",
                    f"{network['score_mean']:,.0f}",
                    f"{network['score_std']:,.0f}",
                    str(network["episodes"]),
                    "-" if network["normalised"] is None else f"{network['normalised']:.2f}",
                    f"{network['agreement']:.2f}",
                    f"{errors_above_random(run, network):.1f} SE",
                    f"{run['seconds']:.0f}",
                ]
            )
    return rows


def summary_rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    """One row a network: over the seeds."""
    rows = [
        [
            "network",
            "median score",
            "median normalised",
            "worst",
            "best",
            "seeds at 0.90 or more",
            "fewest SE above random",
        ]
    ]
    for name in [network["name"] for network in runs[0]["networks"]]:
        entries = [(run, network) for run in runs for network in run["networks"] if network["name"] == name]
        shares = [network["normalised"] for _, network in entries if network["normalised"] is not None]
        rows.append(
            [
                name,
                f"{statistics.median(network['score_mean'] for _, network in entries):,.0f}",
                f"{statistics.median(shares):.2f}",
                f"{min(shares):.2f}",
                f"{max(shares):.2f}",
                f"{sum(share >= 0.9 for share in shares)} of {len(entries)}",
                f"{min(errors_above_random(run, network) for run, network in entries):.1f}",
            ]
        )
    return rows


def page(study: Path) -> str:
    """The Markdown page of a study."""
    runs = load_runs(study)
    first = runs[0]
    environment = first["environment"]
    randoms = ", ".join(f"{run['random_score']:,.0f}" for run in runs)
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    commits = ", ".join(sorted({str(run["environment"]["commit"])[:10] for run in runs}))
    seconds = [run["seconds"] for run in runs]
    return "\n".join(
        [
            f"<!-- written by docs/make_results.py from docs/results/{study.name}/*/results.json -->",
            "",
            f"Game {first['game']}, {first['steps']:,} agent steps and {first['updates']:,} updates a run, seeds "
            f"{', '.join(str(run['seed']) for run in runs)}. Each network is the best by evaluation "
            f"during the run, played anew on {first['networks'][0]['episodes']} games; the random "
            f"player scored {randoms}. Runs took {min(seconds):.0f} to {max(seconds):.0f} s.",
            "",
            markdown(summary_rows(runs)),
            "",
            markdown(seed_rows(runs)),
            "",
            f"Hardware: {environment['cpu']}. {versions}. Commit {commits}. Command of the first run: "
            f"`{environment['command']}`.",
            "",
        ]
    )


def precision_page(float32: list[dict[str, Any]], bfloat16: list[dict[str, Any]]) -> str:
    """The Markdown page that compares runs in the two precisions, network by network."""
    titles = ["network", "score, float32", "score, bfloat16", "bfloat16 scores higher, probability"]
    rows = [[*titles, "agreement, float32", "agreement, bfloat16"]]
    for place, network in enumerate(float32[0]["networks"]):
        scores, agreements = (
            [[run["networks"][place][measure] for run in runs] for runs in (float32, bfloat16)]
            for measure in ("score_mean", "agreement")
        )
        rows.append(
            [
                network["name"],
                *(f"{statistics.median(found):,.0f}" for found in scores),
                with_interval(probability_of_improvement, [scores[1]], [scores[0]]),
                *("-" if network["name"] == "teacher" else f"{statistics.median(found):.2f}" for found in agreements),
            ]
        )
    text = (
        f"Medians of {len(float32)} runs in float32 and {len(bfloat16)} in bfloat16, and the probability that a run "
        "in bfloat16 scores higher than one in float32, with its 95 % interval; 0.5 is no difference."
    )
    origin = made_by(bfloat16[0]["environment"], "Command of the first in bfloat16")
    return table_page("{float32,bfloat16}/*/results.json", text, rows, origin)


PROGRAMS = {
    "ours": "this package, teacher and one student",
    "ours_short": "this package, one step of each game a batch",
    "ours_short_overlap": "this package, one step of each game a batch and `overlap=true`",
    "ours_bfloat16": "this package with `amp=true`",
    "plain": "plain PyTorch, teacher and one student",
    "plain_kept": "plain PyTorch that keeps freed memory as ours does",
    "torchrl_stock": "TorchRL's stock way, teacher alone",
    "stable_baselines3": "stable-baselines3's DQN, teacher alone",
}


def speed_page(result: dict[str, Any]) -> str:
    """The Markdown page of what ``tests/benchmarks/bench_loop.py`` saved."""
    options, environment = result["options"], result["environment"]
    rows = [["program", "median", "ours over it", "ours with `amp=true` over it", "runs"]]
    for name, speeds in result["speeds"].items():
        runs = ", ".join(f"{speed:.0f}" for speed in speeds)
        over = [f"{result[of][name]:.2f}" for of in ("ours_over", "bfloat16_over")]
        rows.append([PROGRAMS[name], f"{result['medians'][name]:.0f}", *over, runs])
    text = (
        f"Agent steps a second, {options['game']}, batch {options['batch']}, an update every {options['every']} steps, "
        f"{options['threads']} threads; runs of the programs alternate, and ratios are medians over rounds."
    )
    return table_page("speed.json", text, rows, made_by(environment))


def profile_page(result: dict[str, Any]) -> str:
    """The Markdown page of what ``tests/benchmarks/bench_profile.py`` saved."""
    options, total = result["options"], result["ms_an_update"]
    rows = [["part", "ms an update", "share"]]
    rows += [
        [f"{part['owner']}: {part['work']}", f"{part['ms']:.2f}", f"{part['ms'] / total:.1%}"]
        for part in result["parts"]
        if part["ms"] >= 0.01
    ]
    students = ", ".join(options["students"])
    learning = sum(
        part["ms"]
        for part in result["parts"]
        if part["work"] in ("networks", "backward") and part["owner"] != "collector"
    )
    least = 1e3 * result["gigaflops_an_update"] / result["gigaflops_a_second"]
    without = total * (1 - result["share_of_library"])
    norm = sum(part["ms"] for part in result["parts"] if part["work"] == "gradient norm")
    bound = without - learning + least

    def speed(ms: float) -> str:
        return f"{1e3 * int(options['steps_per_update']) / ms:.0f}"

    text = (
        f"Where the time between two updates goes: {options['game']}, teacher and {students}, batch "
        f"{options['batch_size']}, an update every {options['steps_per_update']} steps, {options['threads']} threads "
        f"on {options['device']}, mean of {result['updates']:,} updates. Everything but environment, networks, "
        f"backward passes and optimisers is {result['share_of_library']:.0%} of {total:.1f} ms, "
        f"{norm / total:.0%} in the clipping of the gradient by TorchRL's trainer. The networks' "
        f"learning takes {learning:.1f} ms of it; its {result['gigaflops_an_update']:.1f} GFLOP would take {least:.1f} "
        f"ms at the {result['gigaflops_a_second']:.0f} GFLOP/s of a large matrix product, the best this machine does. "
        f"That is {speed(total)} agent steps a second; nothing but environment, networks, backward passes and "
        f"optimisers would make {speed(without)}, and the networks' learning at the speed of that product besides "
        f"{speed(bound)}."
    )
    return table_page("profile.json", text, rows, made_by(result["environment"]))


def env_page(result: dict[str, Any]) -> str:
    """The Markdown page of what ``tests/benchmarks/bench_env.py`` saved."""
    options = result["options"]
    names = {
        "ale": "ALE's vector environment itself",
        "stepping": "`AtariVecEnv`, stepped",
        "wrapper_stepping": "TorchRL's `GymWrapper`, stepped",
        "collecting": "`AtariVecEnv` through TorchRL's collector",
        "wrapper_collecting": "`GymWrapper` through TorchRL's collector",
    }
    rows = [["alternative", "steps a second", "of ALE's own speed"]]
    for name, text in names.items():
        rows.append([text, f"{result['steps_per_second'][name]:,.0f}", f"{result['speed_of_ale'][name]:.2f}"])
    text = (
        f"Random play in {options['envs']} games of {options['game']}, {options['threads']} threads; medians of "
        f"{options['repetitions']} times {options['steps']} steps, taking turns."
    )
    return table_page("env.json", text, rows, made_by(result["environment"]))


def replay_page(result: dict[str, Any]) -> str:
    """The Markdown page of what ``tests/benchmarks/bench_replay.py`` saved."""
    options = result["options"]
    names = {
        "frames": "`FrameStackStorage`",
        "frames_prioritized": "the same, prioritised",
        "frames_10_step": "the same, 10-step returns",
        "stacks": "TorchRL's `LazyTensorStorage` of whole stacks",
        "stacks_prioritized": "the same, prioritised",
        "stacks_channels_last": "the same, brought into the networks' memory layout",
    }
    rows = [["buffer", "sample, ms", "over whole stacks", "write, ms", "bytes a transition"]]
    for name, text in names.items():
        written, held = result["write_ms"].get(name), result["bytes_per_transition"].get(name)
        rows.append(
            [
                text,
                f"{result['sample_ms'][name]:.2f}",
                f"{result['sample_over_stacks'][name]:.2f}",
                "" if written is None else f"{written:.2f}",
                "" if held is None else f"{held:,.0f}",
            ]
        )
    text = (
        f"Samples of {options['batch']} from {options['capacity']:,} transitions, writes of "
        f"{options['envs'] * options['steps']}; medians of {options['repetitions']}, taking turns, "
        f"{options['threads']} threads."
    )
    return table_page("replay.json", text, rows, made_by(result["environment"]))


def memory_page(result: dict[str, Any]) -> str:
    """The Markdown page of what ``tests/benchmarks/bench_memory.py`` saved."""
    rows = [["quantity", "value"]]
    rows += [
        ["transitions in the replay", f"{result['transitions']:,}"],
        ["bytes a transition", f"{result['bytes_per_transition']:,.0f}"],
        ["estimate printed before the run", f"{result['estimated_gb']:.2f} GB"],
        ["resident memory before the replay filled", f"{result['resident_gb_before']:.2f} GB"],
        ["most resident memory while training", f"{result['resident_gb_most']:.2f} GB"],
        ["growth from the first to the last quarter of the run", f"{result['growth_percent']:+.2f} %"],
    ]
    text = f"The main example with a full replay, {result['updates']:,} updates."
    return table_page("memory.json", text, rows, made_by(result["environment"]))


def drop_in_page(runs: dict[str, dict[str, Any]]) -> str:
    """The Markdown page of the ``drop_in_*.py`` scripts, from their results by ``<script>-seed<S>``."""
    rows = [["script", "seed", "task", "teacher", "student", "random", "normalised", "student's size", "seconds"]]
    for name, run in sorted(runs.items()):
        teacher, student = run["networks"]
        scores = [f"{network['score_mean']:,.0f} +- {network['score_std']:,.0f}" for network in (teacher, student)]
        share = "-" if student["normalised"] is None else f"{student['normalised']:.2f}"
        size = f"{student['parameter_ratio']:.1%}"
        seed, random = str(run["seed"]), f"{run['random_score']:,.0f}"
        rows.append([name.split("-")[0], seed, run["game"], *scores, random, share, size, f"{run['seconds']:.0f}"])
    first = next(iter(runs.values()))
    environment, games = first["environment"], first["networks"][0]["episodes"]
    text = (
        f"The last networks of each run, on {games} games without exploration: mean and standard deviation. "
        "Seconds are those of training; some runs shared the machine."
    )
    return table_page("drop_in/*/results.json", text, rows, made_by(environment, "Command of the first"))


def objectives_page(result: dict[str, Any]) -> str:
    """The Markdown page of what ``tests/benchmarks/bench_objectives.py`` saved."""
    environment = result["environment"]
    rows = [["batch", "plain PyTorch, ms", "DistillationLoss, ms", "overhead"]]
    for row in result["rows"]:
        times = [f"{row[key]:.2f}" for key in ("plain_ms", "ours_ms")]
        rows.append([str(row["batch_size"]), *times, f"{row['overhead_percent']:.0f} %"])
    text = (
        "Forward and backward of the loss of the smallest student, against the same maths by hand with the same "
        f"network; medians of {result['rows'][0]['repetitions']} calls, taking turns, {result['threads']} thread."
    )
    return table_page("objectives.json", text, rows, made_by(environment))


def collector_page(result: dict[str, Any]) -> str:
    """The Markdown page of what ``tests/benchmarks/bench_collector.py`` saved."""
    options, medians = result["options"], result["medians_ms"]
    names = {
        "plain": "ALE's vector environment and the network, by hand",
        "teacher": "collector, the teacher acting",
        "idle_students": f"the same with {result['idle_students']} students that neither act nor record",
        "recording": "the same with net1, recording both networks' values",
        "forward": "net1's forward passes alone",
    }
    rows = [["alternative", "ms a rollout"], *([text, f"{medians[name]:.0f}"] for name, text in names.items())]
    text = (
        f"Rollouts of {options['rollout_steps']} steps of {options['envs']} games of {options['game']} with the "
        f"paper's teacher, {options['threads']} threads; medians of {options['repetitions']}, taking turns. "
        f"The collector reaches {result['speed_of_plain']:.2f} of the speed of the loop by hand; idle students "
        f"change it by {100 * result['cost_of_idle_students']:+.1f} %; recording costs "
        f"{result['recording_over_extra_forward']:.2f} times the extra forward pass."
    )
    return table_page("collector.json", text, rows, made_by(result["environment"]))


def fleet_page(result: dict[str, Any]) -> str:
    """The Markdown page of what ``tests/benchmarks/bench_fleet.py`` saved."""
    options = result["options"]
    rows = [
        ["student", "by the hook, ms", "by hand, ms", "ratio", "ratio with metrics", "ms a step of a run with it alone"]
    ]
    for name, times in result["updates_ms"].items():
        alone = 1e3 * result["alone_seconds_a_step"][name]
        ratios = [f"{times[key]:.2f}" for key in ("ratio", "ratio_with_metrics")]
        rows.append([name, f"{times['hook']:.1f}", f"{times['hand']:.1f}", *ratios, f"{alone:.1f}"])
    text = (
        f"One update with the paper's loss, batch {options['batch']}, {options['threads']} threads; medians of "
        f"{options['repetitions']}, taking turns. The second ratio is to an update by hand that also sums the metrics "
        f"which the hook logs. A run with all {len(rows) - 1} students takes "
        f"{1e3 * result['fleet_seconds_a_step']:.1f} ms a step; separate runs take "
        f"{result['separate_over_fleet']:.1f} times as long together."
    )
    return table_page("fleet.json", text, rows, made_by(result["environment"]))


def pages() -> dict[str, str]:
    """Every page by its file name."""
    found = {}
    for study in sorted({path.parents[1] for path in RESULTS.glob("*/*/metrics.csv")}):
        found[f"{study.name}.md"] = page(study)
    precisions = [load_runs(RESULTS / name) for name in ("float32", "bfloat16")]
    if all(precisions):
        found["precision.md"] = precision_page(*precisions)
    drop_ins = sorted((RESULTS / "drop_in").glob("*/results.json"))
    if drop_ins:
        found["drop_in.md"] = drop_in_page({path.parent.name: json.loads(path.read_text()) for path in drop_ins})
    benchmarks = {
        "speed": speed_page,
        "profile": profile_page,
        "env": env_page,
        "replay": replay_page,
        "memory": memory_page,
        "objectives": objectives_page,
        "collector": collector_page,
        "fleet": fleet_page,
        "kills": kills_page,
        "checkpoint": checkpoint_page,
        "soak": soak_page,
    }
    for name, make in benchmarks.items():
        if (RESULTS / f"{name}.json").exists():
            found[f"{name}.md"] = make(json.loads((RESULTS / f"{name}.json").read_text()))
    return found


def main() -> None:
    """Write all pages."""
    for name, text in pages().items():
        (RESULTS / name).write_text(text)


if __name__ == "__main__":
    main()
