"""What a run leaves behind: claims about its files, table and figure."""

import builtins
import json
import math
import resource

import pytest

from torchrl_rtpd.runs import report

RESULTS = {
    "random_score": 10.0,
    "networks": [
        {
            "name": "teacher",
            "parameters": 1_687_206,
            "parameter_ratio": 1.0,
            "score_mean": 1_234.5,
            "score_std": 20.0,
            "episodes": 24,
            "percent_of_teacher": 100.0,
            "normalised": 1.0,
            "agreement": 1.0,
            "latency_ms": 1.5,
        },
        {
            "name": "net17",
            "parameters": 29_214,
            "parameter_ratio": 29_214 / 1_687_206,
            "score_mean": -3.0,
            "score_std": 0.5,
            "episodes": 24,
            "percent_of_teacher": None,
            "normalised": None,
            "agreement": 0.5,
            "latency_ms": 0.25,
        },
    ],
}


def test_metrics_file_is_whole_after_each_row(tmp_path):
    """A row is readable as soon as it is appended, and cells without a value are NaN."""
    metrics = report.MetricsFile(tmp_path / "new" / "metrics.csv", ["steps", "teacher/score"])
    metrics.append({"steps": 10})
    metrics.append({"steps": 20, "teacher/score": -2.5})
    columns = report.read_metrics(metrics.path)
    assert columns["steps"] == [10.0, 20.0]
    assert math.isnan(columns["teacher/score"][0])
    assert columns["teacher/score"][1] == -2.5


def test_metrics_file_refuses_an_unnamed_column(tmp_path):
    """A metric without a column is an error that names it, and the file keeps what it had."""
    metrics = report.MetricsFile(tmp_path / "metrics.csv", ["steps"])
    metrics.append({"steps": 1})
    with pytest.raises(ValueError, match="every metric needs a column: got \\['loss'\\]"):
        metrics.append({"steps": 2, "loss": 0.5})
    assert report.read_metrics(metrics.path) == {"steps": [1.0]}


def test_json_is_replaced_as_a_whole(tmp_path):
    """What cannot be written leaves the earlier file as it was."""
    path = tmp_path / "results.json"
    report.write_json(path, {"steps": 1})
    with pytest.raises(TypeError):
        report.write_json(path, {"steps": object()})
    assert json.loads(path.read_text()) == {"steps": 1}


def test_table_has_a_row_for_each_network_and_the_random_player():
    """Numbers are formatted with units a reader knows; what has no value shows as a dash."""
    lines = report.results_table(RESULTS).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["teacher", "1,687,206", "100.0%", "1,234.5", "20.0", "24", "100.0", "1.000", "1.000", "1.50"]
    assert cells[3] == ["net17", "29,214", "1.7%", "-3.0", "0.5", "24", "-", "-", "0.500", "0.25"]
    assert cells[4][:4] == ["random player", "", "", "10.0"]
    assert len({len(line) for line in lines}) == 1


def entry(name, parameters, latency, score):
    """A network of results.json with a standard error of 1."""
    return {
        "name": name,
        "parameters": parameters,
        "latency_ms": latency,
        "score_mean": score,
        "score_standard_error": 1.0,
    }


FLEET = {
    "game": "pong",
    "random_score": -20.0,
    "networks": [
        entry("teacher", 100, 2.0, 9.0),
        entry("large", 50, 1.0, 5.0),
        entry("dominated", 60, 1.0, 5.0),
        entry("small", 10, 1.0, 7.0),
        entry("quick", 20, 0.5, 6.0),
    ],
}


def test_the_front_holds_what_nothing_else_beats():
    """``large`` is larger than ``small`` and scores less, ``quick`` is the fastest."""
    assert report.pareto_front(FLEET["networks"]) == {"teacher", "small", "quick"}
    assert report.pareto_front([*FLEET["networks"], {"name": "unplayed", "parameters": 1}]) == set()


def test_a_fleet_is_ranked_by_score_with_its_front_marked():
    lines = report.results_table(FLEET).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells[2:]] == ["teacher", "small", "quick", "large", "dominated", "random player"]
    assert cells[0][-1] == "front"
    assert [row[-1] for row in cells[2:]] == ["*", "*", "*", "", "", ""]


def test_a_fleet_is_drawn(tmp_path):
    path = report.plot_front(FLEET, tmp_path / "front.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_table_without_scores_leaves_the_random_player_out():
    """A run that played no games still has a table of its networks, without columns for what nobody has."""
    table = report.results_table({"networks": [{"name": "teacher", "parameters": 5, "parameter_ratio": 1.0}]})
    assert "random" not in table
    cells = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
    assert cells == ["network", "parameters", "of teacher's"]


def test_figure_is_drawn_from_the_metrics(tmp_path):
    """The file exists, is a PNG, and networks without a metric are left out of its panel."""
    metrics = {"steps": [1.0, 2.0], "teacher/score": [math.nan, 3.0], "net17/agreement": [0.1, 0.2]}
    path = report.plot_curves(metrics, ["teacher", "net17"], tmp_path / "curves.png", title="t", random_score=1.0)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_figure_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    """The error says what to install."""
    real_import = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r"torchrl_rtpd\[plots\]"):
        report.plot_curves({"steps": []}, [], tmp_path / "curves.png", title="t")


def test_environment_names_versions_hardware_and_command():
    """Everything needed to place a number is there."""
    environment = report.run_environment()
    assert environment["versions"]["torchrl"].startswith("0.14")
    assert environment["cpu"] and environment["threads"] >= 1 and environment["device"] == "cpu"
    assert environment["command"].startswith("python ")


def test_commit_is_unknown_outside_a_checkout(tmp_path, monkeypatch):
    """A run elsewhere has no commit rather than an error."""
    monkeypatch.chdir(tmp_path)
    assert report.run_environment()["commit"] is None


def test_rows_wait_for_a_full_disk(tmp_path):
    """A limit of a few bytes more stands for it: no row is torn, and all are there once it takes them."""
    metrics = report.MetricsFile(tmp_path / "metrics.csv", ["steps", "loss"])
    metrics.append({"steps": 0, "loss": 0.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.path.stat().st_size + 5, limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"metrics\.csv takes no rows: .*; 1 wait in memory, free some space"):
            metrics.append({"steps": 100, "loss": 0.25})
        assert report.read_metrics(metrics.path)["steps"] == [0.0]
        with pytest.raises(OSError, match="too large"):
            metrics.position()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    metrics.append({"steps": 200, "loss": 0.125})
    assert report.read_metrics(metrics.path) == {"steps": [0.0, 100.0, 200.0], "loss": [0.5, 0.25, 0.125]}


def test_rows_go_on_behind_a_position(tmp_path):
    """What came after it is cut off; another file is refused."""
    metrics = report.MetricsFile(tmp_path / "metrics.csv", ["steps"])
    metrics.append({"steps": 1})
    position = metrics.position()
    metrics.append({"steps": 2})
    resumed = report.MetricsFile(metrics.path, ["steps"])
    resumed.cut(position)
    resumed.append({"steps": 3})
    assert report.read_metrics(metrics.path)["steps"] == [1.0, 3.0]
    metrics.path.write_text("steps\n7\n")
    with pytest.raises(ValueError, match=r"goes on in the metrics it left, \d+ bytes of .* unchanged: got 8 bytes"):
        resumed.cut(position)
