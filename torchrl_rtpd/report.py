"""What a run leaves behind: rows of metrics, a table of results, a figure of the curves.

Files are written as the run goes on, so that one that fails leaves what it had. Every figure and table is made from
these files.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "MetricsFile",
    "pareto_front",
    "plot_curves",
    "plot_front",
    "read_metrics",
    "results_table",
    "run_environment",
    "write_json",
]


class MetricsFile:
    """A CSV file that grows by one row a log point and is whole after each.

    Where the disk is full rows wait in memory, with a warning, until it takes them.

    Args:
        path: file to write; its folder is made if need be. An existing file is replaced at the first row, unless
            :meth:`cut` comes first.
        columns: names, in order; network metrics are named ``<network>/<metric>``.

    Raises:
        ValueError: at ``append``, a column that was not named; at ``cut``, another file than the one that was left.

    Examples:
        >>> import tempfile
        >>> metrics = MetricsFile(tempfile.mkdtemp() + "/metrics.csv", ["steps", "teacher/score"])
        >>> metrics.append({"steps": 100, "teacher/score": 2.5})
        >>> read_metrics(metrics.path)
        {'steps': [100.0], 'teacher/score': [2.5]}
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]) -> None:
        self.path = Path(path)
        self.columns = list(columns)
        self._begun = False
        self._pending: list[Mapping[str, float]] = []  # rows that the disk did not take yet

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row; columns it lacks stay empty."""
        unknown = row.keys() - set(self.columns)
        if unknown:
            raise ValueError(f"every metric needs a column: got {sorted(unknown)}; name them when the file is made.")
        self._pending.append(row)
        try:
            self._write()
        except OSError as error:
            warnings.warn(
                f"{self.path} takes no rows: {error}; {len(self._pending)} wait in memory, free some space.",
                stacklevel=2,
            )

    def _write(self) -> None:
        """Write what waits, all of it or nothing."""
        self._begin()
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerows(self._pending)
        except OSError:
            os.truncate(self.path, size)
            raise
        self._pending.clear()

    def _begin(self) -> None:
        if self._begun:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerow(self.columns)
        self._begun = True

    def position(self) -> dict[str, Any]:
        """Where the next row will come, for :meth:`cut`; what is there now has reached the disk when this returns."""
        self._write()
        with self.path.open("rb+") as file:
            content = file.read()
            os.fsync(file.fileno())
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def cut(self, position: Mapping[str, Any]) -> None:
        """Go on behind a :meth:`position` of this file: rows that came after it are dropped."""
        size, digest = int(position["bytes"]), position["sha256"]
        content = self.path.read_bytes()[:size] if self.path.exists() else b""
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(
                f"a run goes on in the metrics it left, {size:,} bytes of {self.path} unchanged: got "
                f"{len(content):,} bytes, or others; put the file back, or resume in a copy of the whole folder."
            )
        os.truncate(self.path, size)
        self._begun = True
        self._pending.clear()


def read_metrics(path: str | os.PathLike) -> dict[str, list[float]]:
    """Columns of a metrics file; empty cells are NaN.

    Args:
        path: file written by :class:`MetricsFile`.

    Raises:
        ValueError: a file that is no table of numbers, with the line.
    """
    try:
        rows = list(csv.reader(Path(path).read_text().splitlines()))
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{path} must be a table of numbers, as MetricsFile writes it: {error}.") from error
    heading = rows[0] if rows else []
    columns: dict[str, list[float]] = {name: [] for name in heading}
    for line, row in enumerate(rows[1:], 2):
        try:
            for name, cell in zip(heading, row, strict=True):
                columns[name].append(float(cell) if cell else math.nan)
        except ValueError as error:
            raise ValueError(
                f"{path} must be a table of numbers, as MetricsFile writes it: line {line} does not fit: {error}."
            ) from error
    return columns


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def run_environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Command, versions, hardware and commit of this run, to stand beside its numbers."""
    packages = ("torch", "torchrl", "tensordict", "gymnasium", "ale-py", "torchrl_rtpd")
    device = torch.device(device)
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": _git_commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that was not installed
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    instructions = torch.backends.cpu.get_cpu_capability()
    if any(line.startswith("flags") and "avx512_bf16" in line.split() for line in lines):
        instructions += " with bfloat16"
    return f"{model}, {os.cpu_count()} cores, {instructions}"


_COLUMNS = (
    ("network", "name", "{}"),
    ("parameters", "parameters", "{:,}"),
    ("of teacher's", "parameter_ratio", "{:.1%}"),
    ("score", "score_mean", "{:,.1f}"),
    ("+- std", "score_std", "{:,.1f}"),
    ("games", "episodes", "{}"),
    ("% of teacher", "percent_of_teacher", "{:.1f}"),
    ("normalised", "normalised", "{:.3f}"),
    ("Max %", "max_percent", "{:.1f}"),
    ("Mean %", "mean_percent", "{:.1f}"),
    ("agreement", "agreement", "{:.3f}"),
    ("CPU ms", "latency_ms", "{:.2f}"),
    ("front", "front", "{}"),
)


def results_table(results: Mapping[str, Any]) -> str:
    """A run's ``results.json`` as a Markdown table, one row a network: teacher, students by score, random player.

    With several students those on the :func:`pareto_front` are marked.

    Args:
        results: the content of ``results.json``. What no network has gets no column.
    """
    teacher, *students = results["networks"]
    if all(student.get("score_mean") is not None for student in students):
        students = sorted(students, key=lambda student: -student["score_mean"])
    front = pareto_front(results["networks"]) if len(students) > 1 else set()
    networks = [
        {**network, "front": "*" if network["name"] in front else ("" if front else None)}
        for network in (teacher, *students)
    ]
    columns = [column for column in _COLUMNS if any(network.get(column[1]) is not None for network in networks)]
    rows = [[title for title, _, _ in columns]]
    for network in networks:
        rows.append(["-" if network.get(key) is None else text.format(network[key]) for _, key, text in columns])
    if "random_score" in results:
        cells = {"name": "random player", "score_mean": f"{results['random_score']:,.1f}"}
        rows.append([cells.get(key, "") for _, key, _ in columns])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def pareto_front(networks: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the networks that no other beats: smaller or equal, faster or equal and scoring as high, one strictly.

    Args:
        networks: entries of ``results.json``, with ``parameters``, ``latency_ms`` and ``score_mean``; none are on the
            front where one of them lacks a score.

    Examples:
        >>> sizes = {"teacher": (100, 9.0), "small": (10, 5.0), "useless": (20, 4.0)}
        >>> sorted(pareto_front([
        ...     {"name": name, "parameters": size, "latency_ms": 1.0, "score_mean": score}
        ...     for name, (size, score) in sizes.items()
        ... ]))
        ['small', 'teacher']
    """
    if any(network.get("score_mean") is None or network.get("latency_ms") is None for network in networks):
        return set()
    costs = {
        network["name"]: (network["parameters"], network["latency_ms"], -network["score_mean"]) for network in networks
    }
    return {
        name
        for name, own in costs.items()
        if not any(
            other != own and all(theirs <= mine for theirs, mine in zip(other, own, strict=True))
            for other in costs.values()
        )
    }


def plot_front(results: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Score against size of all networks, with standard errors; those on the :func:`pareto_front` are joined.

    Args:
        results: the content of ``results.json``, with scores.
        path: file to write, PNG or SVG by its ending.

    Returns:
        The path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = _figure((7, 4.5))
    axes = figure.subplots()
    networks = sorted(results["networks"], key=lambda network: network["parameters"])
    front = pareto_front(networks)
    for network in networks:
        where = (network["parameters"], network["score_mean"])
        colour = "tab:blue" if network["name"] in front else "tab:grey"
        axes.errorbar(*where, yerr=network["score_standard_error"], fmt="o", color=colour, capsize=3)
        label = f"{network['name']}, {network['latency_ms']:.2f} ms"
        axes.annotate(label, where, xytext=(5, 5), textcoords="offset points", fontsize=8)
    joined = [network for network in networks if network["name"] in front]
    axes.plot([network["parameters"] for network in joined], [network["score_mean"] for network in joined], alpha=0.4)
    axes.axhline(results["random_score"], linestyle=":", color="grey", label="random player")
    axes.set(xscale="log", xlabel="parameters", ylabel="raw score, whole games", title=results["game"])
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    return Path(path)


def plot_curves(
    metrics: Mapping[str, Sequence[float]],
    networks: Sequence[str],
    path: str | os.PathLike,
    *,
    title: str,
    random_score: float | None = None,
) -> Path:
    """Learning curves in one figure: scores, agreement and KL to the teacher, dormant units, against agent steps.

    Args:
        metrics: columns, as :func:`read_metrics` gives them.
        networks: names, the teacher first.
        path: file to write, PNG or SVG by its ending.
        title: heading of the figure.
        random_score: raw score of the random player, drawn as a line.

    Returns:
        The path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = _figure((11, 7))
    figure.suptitle(title)
    panels = (
        ("score", "raw score, whole games"),
        ("agreement", "greedy agreement with the teacher"),
        ("kl_to_teacher", "KL(teacher || student), nats"),
        ("dormant", "share of dormant units"),
    )
    for axes, (metric, label) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for index, name in enumerate(networks):
            _draw(axes, metrics, f"{name}/{metric}", color=f"C{index}", width=2.5 if index == 0 else 1.5)
        if metric == "score" and random_score is not None:
            axes.axhline(random_score, color="grey", linestyle=":", label="random player")
        axes.set(xlabel="agent steps", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return Path(path)


def _draw(axes: Any, metrics: Mapping[str, Sequence[float]], column: str, *, color: str, width: float) -> None:
    points = [
        (steps, value)
        for steps, value in zip(metrics["steps"], metrics.get(column, ()), strict=False)
        if not math.isnan(value)
    ]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, linewidth=width, marker=".", label=column.split("/")[0])


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the figure needs matplotlib: pip install 'torchrl_rtpd[plots]'.") from error
    return Figure(figsize=size, layout="constrained")
