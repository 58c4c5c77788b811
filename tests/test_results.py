"""Published tables are what the files under docs/results/ say."""

import importlib.util
import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
_SPEC = importlib.util.spec_from_file_location("make_results", DOCS / "make_results.py")
make_results = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_results)

STUDIES = sorted(path.name for path in (DOCS / "results").iterdir() if path.is_dir())


@pytest.mark.parametrize("study", STUDIES)
def test_published_page_is_generated_from_its_files(study):
    """Writing the page again changes nothing, so no number in it was typed."""
    written = (DOCS / "results" / f"{study}.md").read_text()
    assert written == make_results.page(DOCS / "results" / study)


def test_the_page_on_speed_is_generated_from_its_file():
    written = (DOCS / "results" / "speed.md").read_text()
    assert written == make_results.speed_page(json.loads((DOCS / "results" / "speed.json").read_text()))


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_has_its_metrics_configuration_and_commit(study):
    """A published number has its curves, its command and the commit it was made with."""
    runs = sorted((DOCS / "results" / study).glob("*/results.json"))
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
