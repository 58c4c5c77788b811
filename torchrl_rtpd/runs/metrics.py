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
