"""Rows of a run as a CSV file, and results as JSON: claims about their files."""

import json
import math
import resource

import pytest

from torchrl_rtpd.runs.metrics import MetricsFile, read_metrics, write_json


def test_metrics_file_is_whole_after_each_row(tmp_path):
    """A row is readable as soon as it is appended, and cells without a value are NaN."""
    metrics = MetricsFile(tmp_path / "new" / "metrics.csv", ["steps", "teacher/score"])
    metrics.append({"steps": 10})
    metrics.append({"steps": 20, "teacher/score": -2.5})
    columns = read_metrics(metrics.path)
    assert columns["steps"] == [10.0, 20.0]
    assert math.isnan(columns["teacher/score"][0])
    assert columns["teacher/score"][1] == -2.5


def test_metrics_file_refuses_an_unnamed_column(tmp_path):
    """A metric without a column is an error that names it, and the file keeps what it had."""
    metrics = MetricsFile(tmp_path / "metrics.csv", ["steps"])
    metrics.append({"steps": 1})
    with pytest.raises(ValueError, match="every metric needs a column: got \\['loss'\\]"):
        metrics.append({"steps": 2, "loss": 0.5})
    assert read_metrics(metrics.path) == {"steps": [1.0]}


def test_a_file_of_an_earlier_version_keeps_its_columns(tmp_path):
    """A metric that came since has no column there, and is left out; a new file has it."""
    path = tmp_path / "metrics.csv"
    old = MetricsFile(path, ["steps", "loss"])
    old.append({"steps": 1, "loss": 0.5})
    resumed = MetricsFile(path, ["steps", "regret", "loss"])
    resumed.cut(old.position())
    resumed.append({"steps": 2, "regret": 0.1, "loss": 0.25})
    assert read_metrics(path) == {"steps": [1.0, 2.0], "loss": [0.5, 0.25]}


def test_json_is_replaced_as_a_whole(tmp_path):
    """What cannot be written leaves the earlier file as it was."""
    path = tmp_path / "results.json"
    write_json(path, {"steps": 1})
    with pytest.raises(TypeError):
        write_json(path, {"steps": object()})
    assert json.loads(path.read_text()) == {"steps": 1}


def test_rows_wait_for_a_full_disk(tmp_path):
    """A limit of a few bytes more stands for it: no row is torn, and all are there once it takes them."""
    metrics = MetricsFile(tmp_path / "metrics.csv", ["steps", "loss"])
    metrics.append({"steps": 0, "loss": 0.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.path.stat().st_size + 5, limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"metrics\.csv takes no rows: .*; 1 wait in memory, free some space"):
            metrics.append({"steps": 100, "loss": 0.25})
        assert read_metrics(metrics.path)["steps"] == [0.0]
        with pytest.raises(OSError, match="too large"):
            metrics.position()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    metrics.append({"steps": 200, "loss": 0.125})
    assert read_metrics(metrics.path) == {"steps": [0.0, 100.0, 200.0], "loss": [0.5, 0.25, 0.125]}


def test_rows_go_on_behind_a_position(tmp_path):
    """What came after it is cut off; another file is refused."""
    metrics = MetricsFile(tmp_path / "metrics.csv", ["steps"])
    metrics.append({"steps": 1})
    position = metrics.position()
    metrics.append({"steps": 2})
    resumed = MetricsFile(metrics.path, ["steps"])
    resumed.cut(position)
    resumed.append({"steps": 3})
    assert read_metrics(metrics.path)["steps"] == [1.0, 3.0]
    metrics.path.write_text("steps\n7\n")
    with pytest.raises(ValueError, match=r"goes on in the metrics it left, \d+ bytes of .* unchanged: got 8 bytes"):
        resumed.cut(position)
