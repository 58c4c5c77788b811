"""The block and figures of the page on choosing a loss, from what :mod:`docs.pages.measure_choosing` saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs.pages.tables import markdown


def choosing_block(measured: dict[str, Any]) -> str:
    """The same two policies under every divergence and temperature, and the end of each growth curve."""
    values = measured["values"]
    temperatures = list(next(iter(values.values())))
    rows = [["divergence", *(f"temperature {temperature}" for temperature in temperatures)]]
    rows += [
        [f"`{name}`", *(f"{found[temperature]:.3g}" for temperature in temperatures)] for name, found in values.items()
    ]
    ends = [["temperatures", "teacher's entropy, spread 0.05", "spread 0.5", "agreement at the end"]]
    for name, curve in measured["growth"].items():
        entropy = curve["teacher_entropy"]
        ends.append([name, f"{entropy[0]:.2f}", f"{entropy[-1]:.2f}", f"{curve['agreement'][-1]:.2f}"])
    return f"{markdown(rows)}\n\n{markdown(ends)}\n"


def direction_figure(docs: Path, path: Path) -> None:
    """A teacher with two bumps, and the best student with one under each of three divergences."""
    from matplotlib.figure import Figure

    measured = json.loads((docs / "results" / "choosing.json").read_text())["direction"]
    figure = Figure(figsize=(6.5, 2.8), layout="constrained")
    panels = figure.subplots(1, len(measured["students"]), sharey=True)
    for axes, (divergence, best) in zip(panels, measured["students"].items(), strict=True):
        actions = range(len(measured["teacher"]))
        axes.bar([action - 0.2 for action in actions], measured["teacher"], width=0.4, label="teacher")
        axes.bar([action + 0.2 for action in actions], best["probs"], width=0.4, label="best student")
        axes.set_title(f"{divergence}\n{best['value']:.2f} nats", fontsize="medium")
        axes.set_xlabel("action")
    panels[0].set_ylabel("probability")
    panels[-1].legend(fontsize="small")
    figure.savefig(path, dpi=130)


def growth_figure(docs: Path, path: Path) -> None:
    """Temperature, the teacher's entropy and agreement while the teacher's values grow."""
    from matplotlib.figure import Figure

    curves = json.loads((docs / "results" / "choosing.json").read_text())["growth"]
    figure = Figure(figsize=(6.5, 2.8), layout="constrained")
    panels = {
        "temperature": "temperature",
        "teacher_entropy": "entropy, nats",
        "agreement": "greedy agreement",
    }
    for axes, (key, name) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for setting, curve in curves.items():
            axes.plot(curve["spread"], curve[key], label=setting)
        axes.set_title(name, fontsize="medium")
        axes.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    figure.axes[2].legend(fontsize="small", title="temperatures", title_fontsize="small", loc="lower right")
    figure.supxlabel("spread of the teacher's values", fontsize="medium")
    figure.savefig(path, dpi=130)
