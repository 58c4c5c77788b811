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


def counted(**settings: object) -> list[object]:
    """Threads, and whether networks learn beside each other, of a configuration."""
    given = {"threads": "auto", "concurrent": "auto", "batch_size": 16, "device": "cpu", "method": "rtpd"}
    given |= {"students": ["net1", "net17"], **settings}
    config = OmegaConf.create(given)
    command.count_threads(config)
    return [config.threads, config.concurrent]


@pytest.mark.parametrize(
    ("settings", "free", "expected"),
    [
        ({}, 1, [1, False]),
        ({}, 2, [1, True]),
        ({}, 3, [1, True]),
        ({}, 8, [4, True]),
        ({"batch_size": 64}, 2, [1, True]),
        ({"batch_size": 65}, 2, [2, False]),
        ({"students": ["net17"]}, 2, [1, True]),
        ({"students": ["net17"], "batch_size": 17}, 2, [2, False]),
        ({"method": "teacher_only"}, 2, [2, False]),
        ({"method": "scratch", "students": ["net17"]}, 2, [2, False]),
        ({"method": "two_stage"}, 2, [1, True]),
        ({"device": "cuda"}, 4, [4, False]),
        ({"concurrent": False}, 4, [4, False]),
        ({"concurrent": True, "batch_size": 256}, 4, [2, True]),
        ({"concurrent": True}, 1, [1, True]),
        ({"threads": 2}, 4, [2, False]),
        ({"threads": 2, "concurrent": True}, 4, [2, True]),
        ({"threads": 2, "concurrent": False}, 4, [2, False]),
    ],
)
def test_teacher_and_students_share_what_is_free_where_minibatches_are_small(
    monkeypatch, settings: dict[str, object], free: int, expected: list[object]
) -> None:
    monkeypatch.setattr(command, "free_processors", lambda: FreeProcessors(free, 0.0))
    assert counted(**settings) == expected


def test_auto_takes_what_is_free_and_says_so(busy, capsys) -> None:
    assert counted() == [1, False]
    assert counted() == [2, True]
    assert capsys.readouterr().out == (
        "Threads: 1 of 4 processors, of which others keep 2.9 busy; threads=1 concurrent=false repeats the run to the "
        "bit.\nThreads: 4 of 4 processors, of which others keep 0.0 busy; threads=2 concurrent=true repeats the run to "
        "the bit.\n"
    )


def test_a_number_is_taken_as_it_is_without_a_look(busy, capsys, monkeypatch) -> None:
    monkeypatch.setattr(command, "all_processors", lambda: 4)
    assert counted(threads=3) == [3, False]
    assert busy == []
    assert capsys.readouterr().out == (
        "Threads: 3 of 4 processors; threads=3 concurrent=false repeats the run to the bit.\n"
    )


def test_more_threads_than_processors_are_warned_of(busy, capsys, monkeypatch) -> None:
    """Three for each of teacher and students."""
    monkeypatch.setattr(command, "all_processors", lambda: 4)
    assert counted(threads=3, concurrent=True) == [3, True]
    assert capsys.readouterr().out.endswith(
        "Warning: 6 threads wait for each other on 4 processors; threads=auto takes fewer.\n"
    )


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_in_quotes_is_the_flag(tmp_path: Path, value: bool) -> None:
    run(tmp_path, f"concurrent='{str(value).lower()}'", "threads=1")
    assert OmegaConf.load(tmp_path / "config.yaml").concurrent is value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("threads=1.5", "threads must be auto or a whole number: got 1.5"),
        ("threads=null", "threads must be auto or a whole number: got None"),
        ("concurrent=null", "concurrent must be auto, true or false: got None"),
    ],
)
def test_parts_of_a_thread_and_no_answer_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", override)
    assert not any(tmp_path.iterdir())


def test_both_phases_of_a_run_and_its_configuration_have_one_number(busy, tmp_path: Path) -> None:
    """Looked for once, although there is more room later; so a resumed run has as many."""
    run(tmp_path, "threads=auto", "method=two_stage")
    for folder in (tmp_path, tmp_path / "teacher"):
        saved = OmegaConf.load(folder / "config.yaml")
        assert (saved.threads, saved.concurrent) == (1, False)
    assert busy == [1]


@pytest.mark.parametrize("value", ["sometimes", "1"])
def test_neither_a_flag_nor_auto_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=f"concurrent must be one of auto, true, false: got '?{value}"):
        run(tmp_path / "run", f"concurrent={value}")
    assert not any(tmp_path.iterdir())


def test_neither_a_number_nor_auto_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"threads must lie in \[1, 1e12\], or be auto: got 'many'"):
        run(tmp_path / "run", "threads=many")
    assert not any(tmp_path.iterdir())
