"""The model of a cluster's cost, on numbers that can be redone by hand, and the verdict on scores."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from docs.pages import cluster

ROOT = Path(__file__).resolve().parent.parent
PIECES = cluster.Pieces(
    steps_per_second=64.0,  # so that a batch of 128 steps is played in two seconds
    bytes_a_step=1.25e5,  # so that the link takes 10,000 steps a second
    bytes_of_weights=1.25e7,  # so that it takes 100 copies of the weights a second
    driver_seconds=5e-4,
    update_seconds=0.001,
    steps_per_update=4,
    broadcast_seconds=0.4,
    broadcast_seconds_each=0.01,
)


def test_a_round_of_one_and_of_ten_machines() -> None:
    """One machine: 16 collectors x 128 steps = 2,048 steps, 512 updates of a millisecond, 0.4 + 16 x 0.01 s to send.

    On the link 0.2048 s of steps and 0.16 s of 16 copies of the weights.
    """
    one, ten = (cluster.seconds_of_round(PIECES, machines) for machines in (1, 10))
    assert one == pytest.approx(
        {"collecting": 2.0, "link": 0.3648, "driver": 1.024, "learner": 0.512, "broadcast": 0.56}
    )
    assert ten == pytest.approx({"collecting": 2.0, "link": 3.648, "driver": 10.24, "learner": 5.12, "broadcast": 2.0})


def test_each_part_bites_where_it_takes_as_long_as_playing() -> None:
    """Two seconds over what one machine takes; of the broadcast 2 - 0.4 s are left, over 0.16 s a machine."""
    found = cluster.machines_where_it_bites(PIECES)
    expected = {"link": 2 / 0.3648, "driver": 2 / 1.024, "learner": 2 / 0.512, "broadcast": 10.0}
    assert found == pytest.approx(expected)
    for part, machines in expected.items():
        assert cluster.seconds_of_round(PIECES, machines)[part] == pytest.approx(2.0)


def test_the_tables_say_which_part_is_the_bound() -> None:
    """Ten machines: 20,480 steps in 23.008 s are 890 a second, of which the driver has 10.24 s, 45 %."""
    row = cluster.round_rows({"made up": PIECES})[1]
    assert row == ["made up", "459; playing, 45%", "890; the driver, 45%", row[3], "512"]
    assert cluster.bite_rows({"made up": PIECES})[1] == ["made up", "3.9", "2", "5.5", "10"]


def test_one_receiver_a_machine_sends_a_sixteenth_of_the_weights() -> None:
    """Ten machines, ten copies: 2.048 + 0.1 s on the link, 0.4 + 0.1 s to send; it bites at 160 machines, not at 10."""
    pieces = replace(PIECES, receivers=1)
    found = cluster.seconds_of_round(pieces, 10)
    assert (found["link"], found["broadcast"]) == pytest.approx((2.148, 0.5))
    assert cluster.machines_where_it_bites(pieces)["broadcast"] == pytest.approx(160)


def test_a_broadcast_is_a_line_through_the_fewest_and_the_most_collectors() -> None:
    """0.03 s to one and 0.09 s to four: 0.02 s each and 0.01 s in any case."""
    assert cluster.broadcast_line({"1": 0.03, "2": 0.07, "4": 0.09}) == pytest.approx((0.01, 0.02))


@pytest.fixture(scope="module")
def bench() -> dict:
    folder = ROOT / "tests" / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        return runpy.run_path(str(folder / "bench_distributed.py"))
    finally:
        sys.path.remove(str(folder))


def entry(way: str, seed: int, score: float) -> dict:
    scores = {"teacher": score, "student": 400.0}
    return {"algorithm": "dqn", "way": way, "seed": seed, "scores": scores}


def test_only_seeds_that_all_ways_have_are_compared(bench: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds 0 and 1 on both: 450 and 410 are 40 apart; seed 2, which Ray lacks, would make it 25."""
    monkeypatch.setitem(bench["differences"].__globals__, "TEACHERS", ("dqn",))
    runs = [entry("processes", seed, score) for seed, score in enumerate((440.0, 460.0, 405.0))]
    runs += [entry("ray, two learners", seed, score) for seed, score in enumerate((400.0, 420.0))]
    found = bench["differences"](runs)["dqn"]
    assert (found["seeds"], found["largest_difference"], found["alike"]) == ([0, 1], 40.0, True)
    worse = bench["differences"]([*runs[:3], *(entry("ray, two learners", seed, 390.0) for seed in (0, 1))])["dqn"]
    assert (worse["largest_difference"], worse["alike"]) == (60.0, False)


def test_the_saved_comparison_is_that_of_its_runs_and_every_network_has_learned(bench: dict) -> None:
    """Three seeds or more of both teachers, on one machine and on Ray with two learners."""
    result = json.loads((ROOT / "docs" / "results" / "distributed.json").read_text())
    assert bench["differences"](result["runs"]) == result["compared"]
    for teacher in ("dqn", "pqn"):
        means = result["compared"][teacher]["means"]
        assert {"processes", "ray, two learners"} <= means.keys()
        assert min(score for mean in means.values() for score in mean.values()) > 400


def test_manifest_and_batch_script_of_the_page_start_the_example_with_options_it_has() -> None:
    """Their commands are parsed by the example's own parser, up to the point where it would run."""
    text = (ROOT / "docs" / "clusters.md").read_text()
    joined = re.sub(r"\\\n\s*|>-\n\s*", " ", text)
    commands = re.findall(r"python examples/rtpd_distributed\.py((?:\s+--?[\w/-]+|\s+[\w/\"$]+)+)", joined)
    assert len(commands) == 3
    source = (ROOT / "examples" / "rtpd_distributed.py").read_text()
    for command in commands:
        for option in re.findall(r"--[a-z]+", command):
            assert f'"{option}"' in source, option
