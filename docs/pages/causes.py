"""Blocks on what an update takes beyond its arithmetic, and on other arrangements of it."""

from __future__ import annotations

from typing import Any

from docs.pages.tables import made_by, markdown

TASKS = {
    "quick": "teacher, net1 and net17 with all terms, batch 16",
    "student": "teacher and net17 by the divergence alone, batch 32",
}
PARTS = {
    "update": "an update as it runs",
    "kernels": "= its operations, each repeated alone",
    "caches": "+ in their order, with data that push each other out of the caches",
    "program": "+ Python, TensorDicts, autograd and TorchRL around them",
    "of kernels: dispatch": "of the operations: as many sums of two numbers",
    "of kernels: layout": "of the operations: copies and conversions",
    "of kernels: wake-ups": "of the operations: beyond half of one thread's",
    "more with small pages": "more in their order with pages of 4 KiB",
    "more if memory is given back": "more again if freed memory is given back",
}


def causes_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_causes.py`` saved."""
    rows = result["rows"]
    heads = [f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}" for row in rows]
    tables = []
    for task, words in TASKS.items():
        found = [(head, row) for head, row in zip(heads, rows, strict=True) if row["task"] == task]
        lines = [["milliseconds", *(head for head, _ in found)]]
        lines += [[text, *(f"{row[part]:.1f}" for _, row in found)] for part, text in PARTS.items()]
        _, alone = found[0]
        tables.append(
            f"**{words[0].upper()}{words[1:]}**: {alone['operations']:.0f} operations; {alone['page faults then']:.0f} "
            f"page faults an update if freed memory is given back.\n\n{markdown(lines)}\n"
        )
    kernels = " with the kernels for AVX2 alone" if result["avx2"] else ""
    text = (
        f"Milliseconds of an update of the main example, students after their teacher{kernels}; medians of "
        f"{result['rounds']} processes of each setting. The first line is the sum of the next three."
    )
    return "\n".join([text, "", *tables, made_by(result["environment"]), ""])


def arrangements_block(result: dict[str, Any]) -> str:
    """The block of what ``tests/benchmarks/bench_arrangements.py`` saved."""
    settings = list(dict.fromkeys((row["batch"], row["threads"]) for row in result["rows"]))
    found = {(row["task"], row["way"], row["batch"], row["threads"]): row for row in result["rows"]}
    lines = [["what", "arrangement", *(f"batch {batch}, {threads}" for batch, threads in settings)]]
    for task, way in dict.fromkeys((row["task"], row["way"]) for row in result["rows"]):
        first = way == next(row["way"] for row in result["rows"] if row["task"] == task)
        times = [found[task, way, *setting] for setting in settings]
        cells = [f"{row['ms']:.2f}" if first else f"{row['ms']:.2f} ({row['over_the_first']:.2f})" for row in times]
        lines.append([task if first else "", way, *cells])
    seconds = max(row["first_call_seconds"] for row in result["rows"])
    text = (
        "Milliseconds, and in brackets their ratio to the arrangement above that the package has; columns are batch "
        f"and threads. Medians of {result['repetitions']} turns. All give the same but for rounding. Compiling took "
        f"up to {seconds:.0f} s."
    )
    return "\n".join([text, "", markdown(lines), "", made_by(result["environment"]), ""])
