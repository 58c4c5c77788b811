"""Metrics of a run as a CSV file, and results as JSON."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["write_json"]


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


class MetricsFile:
    """A CSV file that grows by one row a log point and is whole after each.

    Where the disk is full rows wait in memory, with a warning, until it takes them.

    Args:
        path: file to write; its folder is made if need be. The first row replaces an existing file, unless :meth:`cut`
            comes before it.
        columns: names, in order; network metrics are named ``<network>/<metric>``.

    Raises:
        ValueError: at ``append``, a column that was not named; at ``cut``, a file that has changed since it was left.

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
        self._written = self.columns  # those of the file, which an earlier version may have begun
        self._begun = False
        self._kept: Mapping[str, Any] | None = None  # position in the existing file, once cut() has looked at it
        self._pending: list[Mapping[str, float]] = []  # rows that the disk did not take yet

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row; columns that it lacks stay empty."""
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
        """Write the waiting rows, all of them or none."""
        self._begin()
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._written, restval="", extrasaction="ignore").writerows(self._pending)
        except OSError:
            os.truncate(self.path, size)
            raise
        self._pending.clear()

    def _begin(self) -> None:
        if self._begun:
            return
        if self._kept is not None:
            os.truncate(self.path, int(self._kept["bytes"]))
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerow(self.columns)
        self._begun = True

    @property
    def left_at(self) -> Mapping[str, Any] | None:
        """Position given to :meth:`cut`, None without one."""
        return self._kept

    def position(self) -> dict[str, Any]:
        """Return where the next row will come, for :meth:`cut`. All rows have reached the disk by then."""
        self._write()
        with self.path.open("rb+") as file:
            content = file.read()
            os.fsync(file.fileno())
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def cut(self, position: Mapping[str, Any]) -> None:
        """Go on behind a :meth:`position` of this file.

        Rows behind it are dropped when the next one is written, so that a run that ends before that changes nothing. A
        file keeps its columns: metrics that it has no column for are left out.
        """
        size, digest = int(position["bytes"]), position["sha256"]
        content = self.path.read_bytes()[:size] if self.path.exists() else b""
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(
                f"a run goes on in the metrics it left, {size:,} bytes of {self.path} unchanged: got "
                f"{len(content):,} bytes, or others; put the file back, or resume in a copy of the whole folder."
            )
        self._begun, self._kept = False, dict(position)
        self._written = next(csv.reader(content.decode().splitlines()), self.columns)
        self._pending.clear()


class Averages:
    """Means of a distiller's metrics between two rows.

    Args:
        columns: names that are averaged, ``<student>/<metric>``; others are left out.

    Attributes:
        last: the means that were taken last.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = frozenset(columns)
        self._sums: dict[str, float] = {}
        self._count = 0
        self._newest: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a batch, named ``distill/<student>/<metric>``; none at all is no batch."""
        if not metrics:
            return
        self._newest = {key.removeprefix("distill/"): value for key, value in metrics.items()}
        for name, value in self._newest.items():
            if name in self._columns:
                self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and begin the next ones."""
        averages = {name: total / self._count for name, total in self._sums.items()}
        for name in averages:
            if name.endswith("/dormant"):  # measured now and then: the last value, not a mean of copies
                averages[name] = self._newest.get(name, averages[name])
        self._sums, self._count = {}, 0
        self.last = averages or self.last
        return averages

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, and the means that were taken last."""
        return {"sums": dict(self._sums), "count": self._count, "last": dict(self.last)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._sums, self._count = dict(state_dict["sums"]), state_dict["count"]
        self.last = dict(state_dict["last"])


def read_metrics(path: str | os.PathLike) -> dict[str, list[float]]:
    """Columns of a metrics file; empty cells are NaN.

    Args:
        path: file written by :class:`MetricsFile`.

    Raises:
        ValueError: a file that is not a table of numbers, with the line at fault.
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
