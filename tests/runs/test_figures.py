"""Figures of a run: claims about their files."""

import builtins
import math

import pytest
from parts import FLEET

from torchrl_rtpd.runs.figures import _timed, plot_curves, plot_front


def test_a_fleet_is_drawn(tmp_path):
    path = plot_front(FLEET, tmp_path / "front.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_figure_is_drawn_from_the_metrics(tmp_path):
    """The file exists, is a PNG, and networks without a metric are left out of its panel."""
    metrics = {"steps": [1.0, 2.0], "teacher/score": [math.nan, 3.0], "net17/agreement": [0.1, 0.2]}
    path = plot_curves(metrics, ["teacher", "net17"], tmp_path / "curves.png", title="t", random_score=1.0)
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
        plot_curves({"steps": []}, [], tmp_path / "curves.png", title="t")


def test_a_label_of_the_front_says_the_time_and_where_it_is_not_everybodys_the_runtime(tmp_path):
    """Results of earlier versions look as they did."""
    old = {"name": "net17", "latency_ms": 0.456}
    assert _timed(old, None) == "net17, 0.46 ms"
    new = {"name": "net17", "latency_ms": 0.0306, "latency_runtime": "onnxruntime", "latency_int8_ms": 0.0298}
    assert _timed(new, "onnxruntime") == "net17, 0.031 ms, int8 0.030"
    assert _timed({**new, "latency_int8_ms": None}, None) == "net17, 0.031 ms by onnxruntime"
    fleet = {**FLEET, "networks": [{**network, "latency_runtime": "torch"} for network in FLEET["networks"]]}
    assert plot_front(fleet, tmp_path / "front.svg").read_text() != plot_front(FLEET, tmp_path / "old.svg").read_text()
