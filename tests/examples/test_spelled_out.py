"""Keys that stand for others, and what they become before a run begins."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import pytest
import rtpd_atari
import rtpd_classic
from command import spell_out
from settings import Config

from torchrl_rtpd.networks import LADDER

CONFIG = Path(__file__).parents[2] / "examples" / "config"


def spelled_out(*overrides: str) -> Config:
    with hydra.initialize_config_dir(str(CONFIG), version_base="1.3"):
        config = hydra.compose("rtpd_atari", [*overrides])
    spell_out(config, rtpd_atari.ATARI)
    return config


@pytest.mark.parametrize("given", [[], ["teacher=pqn"]])
def test_a_quick_run_leaves_its_students_as_onnx(given: list[str]) -> None:
    assert spelled_out(*given).export == ["onnx"]


@pytest.mark.parametrize("given", ["method=teacher_only", "method=no_such_method", "preset=paper"])
def test_nothing_is_exported_unasked_where_nothing_can_be_or_a_run_is_long(given: str) -> None:
    assert spelled_out(given).export == []


def test_without_onnx_a_quick_run_says_how_to_have_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # importing it fails
    assert spelled_out().export == []
    assert "Students are not exported: pip install onnx onnxruntime" in capsys.readouterr().out


def test_formats_are_auto_or_a_list() -> None:
    with pytest.raises(ValueError, match=r"export must be auto or a list such as \[onnx,c\]: got 'onnx'"):
        spelled_out("export=onnx")


def test_students_auto_are_the_ladder_and_are_searched() -> None:
    config = spelled_out("students=auto")
    assert tuple(config.students) == LADDER and config.search
    assert len(rtpd_classic.LADDER) == len(set(rtpd_classic.LADDER)) == 16
