"""Blocks on speed, from what ``tests/benchmarks/`` saved: the whole loop and its parts."""

from __future__ import annotations

from typing import Any

from docs.pages.tables import made_by, markdown, table_block

PROGRAMS = {
    "ours": "this package with `concurrent=true`",
    "ours_in_turn": "this package with `concurrent=false`",
    "ours_short": "this package, one step of each game a batch",
    "ours_short_overlap": "this package, one step of each game a batch and `overlap=true`",
    "ours_bfloat16": "this package with `amp=true`",
    "before": "this package at an older commit",
    "plain": "plain PyTorch",
    "plain_kept": "plain PyTorch that keeps freed memory as ours does",
    "torchrl_stock": "TorchRL's stock way, teacher alone",
    "stable_baselines3": "stable-baselines3's DQN, teacher alone",
    "cleanrl": "CleanRL's DQN, teacher alone in one game",
}
TASKS = {
    "student": "**One student.** A teacher and net17, which learns by the divergence alone: batch {batch}, an update "
    "every {every} steps.",
    "quick": "**The quick preset, with net1 and net17 and all terms of their loss**, in a shorter run.",
    "fleet": "**Six students.** A teacher and net1, net2, net3, net4, net5 and net17 with the paper's loss: batch "
    "{batch}, an update every {every} steps.",
}
NEIGHBOURS = {"none": "alone", "10": "beside a neighbour", "0": "beside one of the same priority"}


def speed_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_loop.py`` saved: a table for each task."""
    options = result["options"]
    begin, end = (load[0] for load in result["load"])
    older = "" if result["against"] is None else f" The older commit is {result['against']}."
    text = (
        f"Agent steps a second, {options['game']}, {options['threads']} threads; medians, and each round's in the last "
        "column, with a semicolon between situations. A neighbour is a program of low priority that computes without "
        "end in one thread. Runs of the programs alternate, and ratios are medians over rounds. Load of the machine at "
        f"the beginning and end: {begin:.1f} and {end:.1f}.{older}"
    )
    tables = [
        f"{TASKS[task].format(**options)}\n\n{markdown(_speed_rows(result, task))}\n" for task in result["speeds"]
    ]
    return "\n".join([text, "", *tables, made_by(result["environment"]), ""])


def _speed_rows(result: dict[str, Any], task: str) -> list[list[str]]:
    speeds, medians, over = (result[key][task] for key in ("speeds", "medians", "ours_over"))
    heads = [text for niceness in speeds for text in (NEIGHBOURS[niceness], "ours over it")]
    rows = [["program", *heads, "runs"]]
    for name in next(iter(speeds.values())):
        numbers: list[str] = []
        for niceness in speeds:
            timed = name in medians[niceness]
            numbers += [f"{medians[niceness][name]:.0f}", f"{over[niceness][name]:.2f}"] if timed else ["-", "-"]
        runs = "; ".join(
            ", ".join(f"{speed:.0f}" for speed in found[name]) for found in speeds.values() if name in found
        )
        rows.append([PROGRAMS[name], *numbers, runs])
    return rows


def profile_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_profile.py`` saved."""
    options, total = result["options"], result["ms_an_update"]
    rows = [["part", "ms an update", "share"]]
    rows += [
        [f"{part['owner']}: {part['work']}", f"{part['ms']:.2f}", f"{part['ms'] / total:.1%}"]
        for part in result["parts"]
        if part["ms"] >= 0.01
    ]
    students = ", ".join(options["students"])

    def speed(ms: float) -> str:
        return f"{1e3 * int(options['steps_per_update']) / ms:.0f}"

    learning = sum(
        part["ms"]
        for part in result["parts"]
        if part["work"] in ("networks", "backward") and part["owner"] != "collector"
    )
    least = 1e3 * result["gigaflops_an_update"] / result["gigaflops_a_second"]
    without = total * (1 - result["share_of_library"])
    norm = sum(part["ms"] for part in result["parts"] if part["work"] == "gradient norm")
    limit = (
        f"with networks that also learn at the speed of that product it would be {speed(without - learning + least)}."
        if least < learning
        else "its networks learn no slower than that product is made."
    )

    text = (
        f"Where the time between two updates goes: {options['game']}, teacher and {students}, batch "
        f"{options['batch_size']}, an update every {options['steps_per_update']} steps, {options['threads']} threads "
        f"on {options['device']}, mean of {result['updates']:,} updates. Everything but environment, networks, "
        f"backward passes and optimisers is {result['share_of_library']:.0%} of {total:.1f} ms, "
        f"{norm / total:.0%} in the clipping of the gradient by TorchRL's trainer. The networks' "
        f"learning takes {learning:.1f} ms of it; its {result['gigaflops_an_update']:.1f} GFLOP would take {least:.1f} "
        f"ms at the {result['gigaflops_a_second']:.0f} GFLOP/s of a large matrix product. "
        f"That is {speed(total)} agent steps a second. An update of nothing but environment, networks, backward passes "
        f"and optimisers would make {speed(without)}; {limit}"
    )
    return table_block(text, rows, made_by(result["environment"]))


def env_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_env.py`` saved."""
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
    return table_block(text, rows, made_by(result["environment"]))


def objectives_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_objectives.py`` saved."""
    environment = result["environment"]
    rows = [["batch", "plain PyTorch, ms", "DistillationLoss, ms", "overhead", "without metrics"]]
    for row in [*result["rows"], *result["recurrent"]]:
        times = [f"{row[key]:.2f}" for key in ("plain_ms", "ours_ms")]
        name = str(row.get("batch_size"))
        if "burn_in" in row:
            name = f"LSTM of {row['units']} units, {row['rows']} rows of {row['steps']} steps, burn-in {row['burn_in']}"
        overheads = [f"{row[key]:.0f} %" for key in ("overhead_percent", "overhead_percent_without_metrics")]
        rows.append([name, *times, *overheads])
    text = (
        "Forward and backward of the loss of the smallest student, against the same maths by hand with the same "
        f"network; medians of {result['rows'][0]['repetitions']} calls, taking turns, {result['threads']} thread. A "
        "hook computes the metrics in one of four minibatches."
    )
    return table_block(text, rows, made_by(environment))


def collector_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_collector.py`` saved."""
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
    return table_block(text, rows, made_by(result["environment"]))


def fleet_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_fleet.py`` saved."""
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
    return table_block(text, rows, made_by(result["environment"]))


PQN_PROGRAMS = {
    "ours": "this package, teacher and one student",
    "plain": "plain PyTorch, teacher and one student",
    "plain_kept": "plain PyTorch that keeps freed memory as ours does",
    "ours_alone": "this package, teacher alone",
    "cleanrl": "CleanRL's script on EnvPool, teacher alone",
}


def pqn_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_pqn.py`` saved."""
    options, memory = result["options"], result["memory"]
    rows = [["games x steps", "program", "by the clock", "ours over it", "by processor time", "ours over it", "runs"]]
    for name, size in result["sizes"].items():
        clock, processor = size["steps_per_second"], size["steps_per_cpu_second"]
        for program, runs in clock["runs"].items():
            columns = [
                text
                for speeds in (clock, processor)
                for text in (f"{speeds['medians'][program]:.0f}", _ratio(speeds["ours_over"].get(program)))
            ]
            rows.append([name, PQN_PROGRAMS[program], *columns, ", ".join(f"{speed:.0f}" for speed in runs)])
    first = next(iter(result["sizes"].values()))
    text = (
        f"Agent steps a second, {options['game']}, minibatches of {first['batch']}, {first['epochs']} epochs, "
        f"{options['threads']} threads, from the second rollout on; runs of the programs alternate, and ratios are "
        "medians over rounds, of teacher and student over teacher and student, and alone over alone. Load of the "
        f"machine at the beginning and end: {result['load'][0]:.1f} and {result['load'][1]:.1f}. A teacher and "
        f"{len(memory['students'])} students at {memory['envs']} x {memory['rollout']} held at most "
        f"{memory['resident_gb_most']:.2f} GB."
    )
    return table_block(text, rows, made_by(result["environment"]))


def threads_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_threads.py`` saved."""
    speeds, medians = result["speeds"], result["medians"]
    rows = [["neighbour", *next(iter(speeds.values()))]]
    for name, ways in speeds.items():
        runs = {way: ", ".join(f"{speed:.0f}" for speed in found) for way, found in ways.items()}
        rows.append([name, *(f"{medians[name][way]:.0f} ({runs[way]})" for way in ways)])
    text = (
        "Agent steps a second of the quick preset with net1 and net17 and all terms of their loss, from the first "
        "update on, beside a program that computes without end in one thread; medians of "
        f"{result['options']['repeats']} rounds, and each round's."
    )
    return table_block(text, rows, made_by(result["environment"]))


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
