"""How many threads a run takes: a number as it is, or those that others leave free when it begins."""

from __future__ import annotations

from pathlib import Path

import command
import hydra
import pytest
import rtpd_atari
import rtpd_classic
from omegaconf import OmegaConf

from torchrl_rtpd.runs.threads import FreeProcessors

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(folder: Path, *overrides: str) -> None:
    short = ["total_steps=768", "warmup_steps=256", "replay_capacity=768", "evaluate_every_steps=null"]
    quiet = ["progress_bar=false", "students=[mlp16]", f"output_dir={folder}"]
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        config = hydra.compose("rtpd_classic", [*short, *quiet, *overrides])
    rtpd_atari.run(config, rtpd_classic.CLASSIC)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Four processors, one of which others keep busy, as long as none is looked at; and how often they were."""
    looks: list[int] = []

    def look() -> FreeProcessors:
        looks.append(1)
        return FreeProcessors(4, 2.9 if len(looks) == 1 else 0.0)

    monkeypatch.setattr(command, "free_processors", look)
    return looks


def test_auto_takes_what_is_free_and_says_so(busy, capsys) -> None:
    assert command.counted_threads("auto") == 1
    assert capsys.readouterr().out == (
        "Threads: 1 of 4 processors, of which others keep 2.9 busy; threads=1 repeats the run to the bit.\n"
    )


def test_a_number_is_taken_as_it_is_without_a_look(busy, capsys) -> None:
    assert command.counted_threads(3) == 3
    assert (busy, capsys.readouterr().out) == ([], "")


def test_both_phases_of_a_run_and_its_configuration_have_one_number(busy, tmp_path: Path) -> None:
    """Looked for once, although there is more room later; so a resumed run has as many."""
    run(tmp_path, "threads=auto", "method=two_stage")
    for folder in (tmp_path, tmp_path / "teacher"):
        assert OmegaConf.load(folder / "config.yaml").threads == 1
    assert busy == [1]


def test_neither_a_number_nor_auto_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"threads must lie in \[1, 1e12\], or be auto: got 'many'"):
        run(tmp_path / "run", "threads=many")
    assert not any(tmp_path.iterdir())
