"""Published tables are what the files under docs/results/ say."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from torchrl_rtpd.report import read_metrics

DOCS = Path(__file__).parents[1] / "docs"


def _script(name):
    """A script of the documentation as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


make_results, make_students, make_gpu = (_script(name) for name in ("make_results", "make_students", "make_gpu"))

RESULTS = DOCS / "results"
STUDIES = sorted({path.parents[1].name for path in RESULTS.glob("*/*/metrics.csv")})


PAGES = {**make_results.pages(), **make_gpu.pages()}


@pytest.mark.parametrize("name", PAGES)
def test_published_page_is_generated_from_its_files(name):
    """Writing the page again changes nothing, so no number in it was typed."""
    assert (RESULTS / name).read_text() == PAGES[name]


def test_every_published_page_has_a_generator():
    """Those of make_results.py, and those that other scripts in docs/ write."""
    others = {"README.md", "choosing.md", "students.md", *make_gpu.pages()}
    assert {path.name for path in RESULTS.glob("*.md")} - others == make_results.pages().keys()


def test_the_page_on_students_is_generated_from_its_files():
    runs = [json.loads(path.read_text()) for path in sorted((RESULTS / "students").glob("seed*.json"))]
    assert len(runs) >= 2
    assert (RESULTS / "students.md").read_text() == make_students.page(runs)
    assert all(len(run["environment"]["commit"]) == 40 for run in runs)


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_has_its_metrics_configuration_and_commit(study):
    """A published number has its curves, its command and the commit it was made with."""
    runs = sorted((RESULTS / study).glob("*/results.json"))
    assert runs
    for path in runs:
        assert (path.parent / "metrics.csv").exists() and (path.parent / "config.yaml").exists()
        environment = json.loads(path.read_text())["environment"]
        assert len(environment["commit"]) == 40 and environment["command"].startswith("python ")


def test_standard_errors_above_random_by_hand():
    """Means 10 and 4 with standard errors 3 and 4 differ by 6 / 5 standard errors."""
    run = {"random_score": 4.0, "random_standard_error": 4.0}
    network = {"score_mean": 10.0, "score_standard_error": 3.0}
    assert make_results.errors_above_random(run, network) == pytest.approx(1.2)


def test_summary_counts_the_seeds_that_reach_ninety_percent():
    """Three seeds at 0.95, 0.90 and 0.50: two reach it, the median is 0.90."""
    runs = [
        {
            "seed": seed,
            "random_score": 0.0,
            "random_standard_error": 1.0,
            "networks": [
                {"name": "net17", "score_mean": 100 * share, "score_standard_error": 0.0, "normalised": share}
            ],
        }
        for seed, share in enumerate((0.95, 0.90, 0.50))
    ]
    assert make_results.summary_rows(runs)[1] == ["net17", "90", "0.90", "0.50", "0.95", "2 of 3", "50.0"]


def test_the_teacher_of_the_fleet_is_that_of_the_quick_run() -> None:
    """Same seed, two students there and six here: equal scores at every evaluation, as docs/results.md says."""
    runs = [read_metrics(RESULTS / study / "seed0" / "metrics.csv") for study in ("quick", "six_students")]
    quick, fleet = ([score for score in run["teacher/score"] if not math.isnan(score)] for run in runs)
    assert quick == fleet and len(quick) > 1
