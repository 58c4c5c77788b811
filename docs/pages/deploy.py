"""Blocks on exported students, from what ``tests/benchmarks/bench_deploy.py`` saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docs.pages.front import GAMES
from docs.pages.tables import made_by, markdown, table_block

STUDENT = "net17"
ROWS = {  # what the tables call each format
    "onnx": "`onnx`",
    "onnx_int8": "`onnx_int8`",
    "numpy": "`numpy`",
    "c": "`c`, float, `-O3 -march=native`",
    "c_o2": "`c`, float, `-O2 -ftree-vectorize -march=native`",
    "c_int8": "`c`, 8-bit integers, `-O3 -march=native`",
    "c_int8_o2": "`c`, 8-bit integers, `-O2 -ftree-vectorize -march=native`",
    "pt2": "`pt2`, by torch",
    "torch": "eager PyTorch",
    "torch.export as it comes": "`torch.export` of the network as it comes",
}
PIXELS = 4 * 84 * 84


def formats_block(results: Path) -> str:
    """Every format of the trained student."""
    result = _read(results)
    parts, games = result["parts"], result["options"]["games"]
    times, taken = parts["latency"]["milliseconds"][STUDENT], parts["sizes"][STUDENT]
    heading = ["format", "bytes", "ms", "first action, s", "peak MB"]
    rows = [[*heading, *(f"agreement, {_game(game)}" for game in games), "regret"]]
    for form, text in ROWS.items():
        entry = taken.get(form, {})
        own = not form.startswith("c") and bool(entry)  # a C source is no process of its own
        played = [parts[f"play {game}"] for game in games]
        rows.append(
            [
                text,
                f"{entry['bytes']:,}" if own else "",
                f"{times[form]:.3f}",
                f"{entry['first_action_seconds']:.1f}" if own else "",
                f"{entry['peak_memory_mb']:.0f}" if own else "",
                *(f"{part['agreement'][form]:.3f}" if form in part["agreement"] else "" for part in played),
                ", ".join(f"{100 * part['regret'][form]:.2f} %" for part in played if form in part["regret"]),
            ]
        )
    text = (
        f"`{STUDENT}`, one observation at a time on one thread, medians of {parts['latency']['turns']} turns. "
        f"Agreement and regret are against the float network on {_frames(parts, games)} frames of whole games that "
        "gave no ranges; regret is in standard deviations of its values over actions. First action and most memory are "
        "those of a process of its own, with its runtime. Bytes of the C source are in the table of the "
        "microcontroller."
    )
    return table_block(text, rows, f"{_ratios(times)} {_export(parts['export'], games)}\n\n{_origin(result)}")


def _ratios(times: dict[str, float]) -> str:
    return (
        f"The ONNX file takes 1/{times['torch'] / times['onnx']:.1f} of eager PyTorch's time and "
        f"1/{times['torch.export as it comes'] / times['onnx']:.1f} of that of what `torch.export` makes of the "
        f"network as it comes; 8-bit integers take {times['onnx_int8'] / times['onnx']:.2f} times as long as floats."
    )


def _export(export: dict[str, Any], games: list[str]) -> str:
    seconds = max(export[game]["seconds"] for game in games)
    memory = max(export[game]["peak_memory_mb"] for game in games)
    return (
        f"Exporting all formats, checks included, took {seconds:.0f} s on {export['cores']} cores, and "
        f"{memory / 1e3:.1f} GB with all processes that it starts."
    )


def sizes_block(results: Path) -> str:
    """Small networks against the teacher's size."""
    result = _read(results)
    times = result["parts"]["latency"]["milliseconds"]
    forms = ["torch", "pt2", "numpy", "c_o2", "c_int8_o2", "onnx", "onnx_int8"]
    short = {"c_o2": "`c`", "c_int8_o2": "`c`, 8 bits", "pt2": "`pt2`"}
    rows = [["network", *(short.get(form, ROWS[form]) for form in forms)]]
    rows += [[f"`{name}`", *(f"{own[form]:.3f}" for form in forms)] for name, own in times.items()]
    largest = list(times)[-1]
    ratios = [f"{times[largest][form] / times[STUDENT][form]:.1f}" for form in forms]
    rows.append([f"`{largest}` over `{STUDENT}`", *ratios])
    text = "Milliseconds of one observation on one thread, all in turns; C by `gcc -O2 -ftree-vectorize -march=native`."
    return table_block(text, rows, _origin(result))


def scores_block(results: Path) -> str:
    """Games of the float and of the 8-bit file."""
    result = _read(results)
    rows = [["game", "file", "games", "score", "standard deviation", "difference from float"]]
    for game in result["options"]["games"]:
        part = result["parts"][f"play {game}"]
        for form, scores in part["scores"].items():
            rows.append(
                [
                    _game(game),
                    f"`{form}`",
                    str(scores["episodes"]),
                    f"{scores['mean']:,.1f} ± {scores['standard_error']:,.1f}",
                    f"{scores['std']:,.1f}",
                    "" if form == "onnx" else _difference(part["scores"]["onnx"], scores),
                ]
            )
    text = (
        "Played with onnxruntime, with the evaluation's share of random actions and seeds of their own; ± is one "
        f"standard error. A game ends after {result['options']['max_steps']:,} decisions at the latest."
    )
    return table_block(text, rows, _origin(result))


def _difference(base: dict[str, float], other: dict[str, float]) -> str:
    error = (base["standard_error"] ** 2 + other["standard_error"] ** 2) ** 0.5
    return f"{other['mean'] - base['mean']:+,.1f} ± {error:,.1f}"


def flash_block(results: Path) -> str:
    """Flash and RAM of the C source on a microcontroller."""
    result = _read(results)
    taken = result["parts"]["sizes"]
    rows = [["network", "numbers", "flash: constants", "flash: code", "RAM: static", "RAM: stack, at most"]]
    command = version = ""
    for name in result["options"]["networks"]:
        for form, numbers in {"c": "float", "c_int8": "8-bit integers"}.items():
            entry = taken[name][form]["compiled"].get("Cortex-M4")
            if entry is None:
                continue
            command, version = entry["command"], entry["version"]
            rows.append(
                [f"`{name}`", numbers, *(f"{entry[key]:,}" for key in ("constants", "code", "static", "stack"))]
            )
    text = (
        f"Bytes, compiled by `{command}` ({version}). In addition the observation takes {PIXELS:,} bytes of RAM, which "
        "are the player's own."
    )
    return "\n".join([text, "", markdown(rows), "", _origin(result), ""])


def _read(results: Path) -> dict[str, Any]:
    return json.loads((results / "deploy.json").read_text())


def _game(name: str) -> str:
    return GAMES.get(name, name.replace("_", " ").title())


def _frames(parts: dict[str, Any], games: list[str]) -> str:
    counts = sorted({parts[f"play {game}"]["frames"] for game in games})
    return " and ".join(f"{count:,}" for count in counts)


def _origin(result: dict[str, Any]) -> str:
    return made_by(result["environment"])


BLOCKS: dict[str, Callable[[Path], str]] = {
    "deploy_formats": formats_block,
    "deploy_sizes": sizes_block,
    "deploy_scores": scores_block,
    "deploy_flash": flash_block,
}
