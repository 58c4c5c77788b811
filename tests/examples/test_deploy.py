"""The example exports, checks and plays with onnxruntime alone."""

from __future__ import annotations

from pathlib import Path

import deploy
import pytest

pytest.importorskip("onnx", reason="needs the export extra")
pytest.importorskip("onnxruntime", reason="needs the export extra")


def test_the_example_exports_checks_plays_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["-", "pong", "--formats", "onnx", "--steps", "20", "--out", str(tmp_path)]
    path = deploy.main(arguments)
    out = capsys.readouterr().out
    assert "onnx: self-check passed" in out
    assert "in 20 decisions" in out
    assert path.read_bytes()[:3] == b"GIF"
