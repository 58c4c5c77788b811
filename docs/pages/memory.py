"""Blocks on memory, from what ``tests/benchmarks/`` saved."""

from __future__ import annotations

from typing import Any

from docs.pages.tables import made_by, table_block


def replay_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_replay.py`` saved."""
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
    return table_block(text, rows, made_by(result["environment"]))


def memory_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_memory.py`` saved."""
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
    return table_block(text, rows, made_by(result["environment"]))
