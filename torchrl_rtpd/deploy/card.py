"""The contract of an exported student: which numbers go in and come out, where they are from, and how well it plays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["contract_of", "contract_text", "file_entry", "page"]

# Entries of metadata with a place of their own on the page, in order, with their titles.
_KNOWN = {
    "game": "Game",
    "frame_skip": "Frame skip",
    "action_meanings": "Actions",
    "method": "Method",
    "seed": "Seed",
    "score": "Score of the float network",
    "score_standard_error": "Standard error of that score",
    "episodes": "Games played for it",
    "random_score": "Score of a random player",
    "agreement_with_teacher": "Agreement of the float network with its teacher",
    "regret_by_teacher": "Regret of the float network by its teacher's values",
    "exported_score": "Score of the exported network",
    "command": "Command of the run",
    "commit": "Commit of the run",
}


def contract_of(
    name: str, inputs: Sequence[Any], outputs: Sequence[Any], sizes: Mapping[str, int], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what stands in every file and on the card."""
    pixels = any(port.dtype == "uint8" and len(port.shape) == 3 for port in inputs)
    described = [
        {
            "name": port.name,
            "shape": list(port.shape),
            "dtype": port.dtype,
            "scaling": "inside the file: give raw numbers"
            + (", 0..255" if port.dtype == "uint8" else ", as the environment does"),
        }
        for port in inputs
    ]
    return {
        "format": 1,
        "name": name,
        "inputs": described,
        "outputs": [{"name": port.name, "shape": list(port.shape), "dtype": port.dtype} for port in outputs],
        **({"frame_order": "oldest first, newest last"} if pixels else {}),
        **sizes,
        "metadata": dict(metadata),
    }


def contract_text(contract: Mapping[str, Any]) -> str:
    """Return a contract in a few lines, for the head of a C file."""
    lines = [f"{contract['name']}, a student written by torchrl_rtpd. A batch dimension comes first in other formats."]
    for kind in ("inputs", "outputs"):
        for port in contract[kind]:
            scaling = f"; scaling is {port['scaling']}" if "scaling" in port else ""
            lines.append(f"{kind[:-1]} {port['name']}: {port['dtype']} {port['shape']}{scaling}")
    if "frame_order" in contract:
        lines.append(f"frames: {contract['frame_order']}")
    lines += [f"{key}: {value}" for key, value in contract["metadata"].items()]
    lines.append(f"{contract['parameters']:,} parameters, {contract['multiply_adds']:,} multiply-adds an observation")
    return "\n".join(lines)


def file_entry(path: Path, **measured: Any) -> dict[str, Any]:
    """Return what the card says of one file."""
    content = path.read_bytes()
    return {"path": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **measured}


def page(card: Mapping[str, Any]) -> str:
    """Return the card as one page of Markdown."""
    lines = [f"# {card['name']}", "", "A student written by torchrl_rtpd.", ""]
    for kind in ("inputs", "outputs"):
        for port in card[kind]:
            scaling = f"; scaling {port['scaling']}" if "scaling" in port else ""
            lines.append(
                f"- {kind[:-1]} `{port['name']}`: {port['dtype']} `[B, {', '.join(map(str, port['shape']))}]`{scaling}"
            )
    if "frame_order" in card:
        lines.append(f"- frames: {card['frame_order']}")
    metadata = card["metadata"]
    ordered = [*(key for key in _KNOWN if key in metadata), *(key for key in metadata if key not in _KNOWN)]
    lines += [f"- {_KNOWN.get(key, key)}: {metadata[key]}" for key in ordered]
    lines.append(f"- {card['parameters']:,} parameters, {card['multiply_adds']:,} multiply-adds an observation")
    lines += ["", _measured_on(card), "", *_table(card["files"])]
    lines += [
        "",
        f"Check a file: `python -m torchrl_rtpd.deploy check {next(iter(card['files'].values()))['path']}`",
        "",
    ]
    return "\n".join(lines)


def _measured_on(card: Mapping[str, Any]) -> str:
    states = card["compared_on_states"]
    compared = (
        f"Agreement and regret are those against the float network on {states:,} states ({card['compared_on']})."
        if states
        else "Agreement and regret were not measured: no states were given."
    )
    return f"{compared} Latency is for one observation on one thread of {card['machine']}."


def _table(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [["format", "file", "bytes", "ms", "peak MB", "agreement", "regret"], ["---"] * 7]
    for name, entry in files.items():
        rows.append(
            [
                name,
                entry["path"],
                f"{entry['bytes']:,}",
                _number(entry["latency_ms"], ".3f"),
                _number(entry["peak_memory_mb"], ".0f"),
                _number(entry["agreement"], ".3f"),
                _number(entry["regret"], ".4f"),
            ]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
