"""Processors that others leave free, from tapes of the system's counts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from torchrl_rtpd.runs import threads
from torchrl_rtpd.runs.threads import FreeProcessors, free_processors

ALLOWED = (0, 1, 5)


def counts(busy: dict[int, int], ticks: int) -> str:
    """What Linux tells after ``ticks`` on six processors: user, nice, system, idle and waiting for a disk, and more.

    Half of the busy ones are the system's, and a quarter of the others are at low priority.
    """
    lines = ["cpu  1 2 3 4 5 6 7 8 9 10"]
    for number in range(6):
        used = busy.get(number, ticks)  # those that are not ours are always busy
        free = ticks - used
        nice, waiting = free // 4, free // 3
        lines.append(
            f"cpu{number} {used // 2} {nice} {used - used // 2} {free - nice - waiting} {waiting} 0 0 0 {99 * ticks} 0"
        )
    return "\n".join([*lines, "intr 1", "ctxt 2"])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine of six processors, three of them ours, whose counts go on while it is looked at."""

    def build(busy: dict[int, int], quota: str = "max 100000", own: float = 0.0) -> None:
        stat, limit, clock = tmp_path / "stat", tmp_path / "cpu.max", [0.0]
        stat.write_text(counts(dict.fromkeys(ALLOWED, 0), 0))
        limit.write_text(quota)

        def sleep(seconds: float) -> None:
            stat.write_text(counts(busy, 100))
            clock[0] += own * seconds

        monkeypatch.setattr(threads, "_STAT", stat)
        monkeypatch.setattr(threads, "_QUOTA", limit)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(ALLOWED), raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 6)
        monkeypatch.setattr(os, "nice", lambda _: 0)
        monkeypatch.setattr(time, "sleep", sleep)
        monkeypatch.setattr(time, "process_time", lambda: clock[0])

    return build


@pytest.mark.parametrize(
    ("busy", "number"),
    [
        ({0: 0, 1: 0, 5: 0}, 3),
        ({0: 100, 1: 0, 5: 0}, 2),
        ({0: 100, 1: 30, 5: 0}, 2),
        ({0: 100, 1: 100, 5: 10}, 1),
        ({0: 100, 1: 100, 5: 100}, 1),
    ],
)
def test_a_thread_for_each_processor_that_others_leave(machine, busy: dict[int, int], number: int) -> None:
    """Ours alone are counted, and one thread runs however busy they are."""
    machine(busy)
    found = free_processors()
    assert found == FreeProcessors(3, pytest.approx(sum(busy.values()) / 100))
    assert found.threads == number


def test_programs_of_low_priority_count_where_this_one_is_of_low_priority(machine, monkeypatch) -> None:
    """Each of our three processors gives them a quarter of its time."""
    machine({0: 0, 1: 0, 5: 0})
    monkeypatch.setattr(os, "nice", lambda _: 5)
    assert free_processors() == FreeProcessors(3, pytest.approx(0.75))


def test_what_this_process_does_meanwhile_is_not_others(machine) -> None:
    machine({0: 100, 1: 50, 5: 0}, own=0.5)
    assert free_processors().busy == pytest.approx(1.0)


def test_the_limit_of_a_control_group_counts(machine) -> None:
    """150 ms of every 100 ms: two processors at most."""
    machine({0: 0, 1: 0, 5: 0}, quota="150000 100000")
    assert free_processors() == FreeProcessors(2, 0.0)


@pytest.mark.parametrize(("busy", "number"), [({0: 100, 1: 0, 5: 0}, 2), ({0: 100, 1: 100, 5: 0}, 1)])
def test_others_may_have_what_the_limit_keeps_from_us(machine, busy: dict[int, int], number: int) -> None:
    """Two of three processors are ours, and it doesn't matter which: one that others keep busy takes nothing away."""
    machine(busy, quota="200000 100000")
    assert free_processors().threads == number


def test_a_system_that_tells_nothing_has_all_processors_free(machine, monkeypatch, tmp_path) -> None:
    machine({0: 100, 1: 100, 5: 100})
    monkeypatch.setattr(threads, "_STAT", tmp_path / "nowhere")
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "nowhere")
    assert free_processors() == FreeProcessors(3, 0.0)


@pytest.mark.parametrize("seconds", [0.0, None, "x"])
def test_a_time_that_is_none_is_refused(seconds) -> None:
    with pytest.raises(ValueError, match=rf"seconds must lie in \(0, 60\]: got {seconds!r}"):
        free_processors(seconds)


def test_this_machine_is_looked_at() -> None:
    found = free_processors(0.1)
    assert 1 <= found.threads <= found.all
    assert 0.0 <= found.busy <= (os.cpu_count() or 1) + 0.5
