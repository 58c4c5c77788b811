"""Blocks on kills, checkpoints and long runs, from what ``tests/benchmarks/`` saved."""

from __future__ import annotations

from typing import Any

from docs.pages.tables import made_by, table_block


def kills_block(result: dict[str, Any]) -> str:
    """Lives of the main example that were ended by kill -9."""
    text = (
        "Processes of the main example ended by `kill -9` at random moments, while starting, playing, learning, "
        f"evaluating or saving. A checkpoint comes every {result['interval']} steps, a batch has {result['batch']}. "
        "Rows of metrics.csv are compared with those of a run that was never killed."
    )
    columns = {
        "kills": "kills",
        "gone on from a checkpoint": "resumed",
        "begun from scratch, killed before the first": "restarted",
        "runs finished": "runs",
        "rows lost": "lost",
        "rows doubled": "doubled",
        "most steps repeated": "most_repeated",
    }
    rows = [list(columns), [str(result[key]) for key in columns.values()]]
    return table_block(text, rows, made_by(result["environment"]))


def checkpoint_block(result: dict[str, Any]) -> str:
    """Cost of checkpoints."""
    run, replay = result["run"], result["replay"]
    copy = replay["disk_copy_seconds"]
    text = (
        "The quick run's checkpoint, without its replay, against the time its interval takes; and a full prioritised "
        "replay with its checksums, saved to the disk and restored from it, against `dd` that reads as many bytes from "
        "this disk and writes them to it. Memory is what saving takes beside the replay itself."
    )
    rows = [
        ["state", "GB", "save s", "restore s", "cost"],
        [
            "quick run",
            f"{run['megabytes'] / 1e3:.3f}",
            f"{run['save_seconds']:.2f}",
            "",
            f"{run['percent_of_training']:.2f} % of training, one every {run['interval_steps']:,} steps",
        ],
        [
            f"{replay['transitions']:,} transitions",
            f"{replay['gigabytes']:.2f}",
            f"{replay['save_seconds']:.1f}",
            f"{replay['restore_seconds']:.1f}",
            f"{replay['save_seconds'] / copy:.2f} and {replay['restore_seconds'] / copy:.2f} times a copy's {copy:.1f} "
            f"s, {replay['extra_megabytes_while_saving']:.0f} MB",
        ],
    ]
    return table_block(text, rows, made_by(result["environment"]))


def soak_block(result: dict[str, Any]) -> str:
    """A long run."""
    text = (
        f"The main example for {result['minutes']:.0f} minutes, {result['steps']:,.0f} steps, from the moment its "
        "replay was full: the second fifth of that time against the last."
    )
    files, threads = (" to ".join(str(n) for n in sorted(set(result[key]))) for key in ("files", "threads"))
    rows = [
        ["", "early", "late", "change"],
        [
            "resident memory, MB",
            f"{result['resident_mb_early']:.0f}",
            f"{result['resident_mb_late']:.0f}",
            f"{result['growth_percent_an_hour']:+.2f} % an hour",
        ],
        [
            "steps a second, evaluation left out",
            f"{result['steps_per_second_early']:.1f}",
            f"{result['steps_per_second_late']:.1f}",
            f"{result['drift_percent']:+.1f} %",
        ],
        ["the same in the processor's time, whatever else ran", "", "", f"{result['cpu_drift_percent']:+.1f} %"],
        ["open files", files, "", ""],
        ["Python threads", threads, "", ""],
        ["values the trainer keeps of its log", f"at most {result['logged_values_most']:,}", "", ""],
    ]
    return table_block(text, rows, made_by(result["environment"]))
