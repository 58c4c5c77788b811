"""Published tables, sentences and figures are what the files under docs/results/ say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from docs.pages import (
    build,
    figures,
    front,
    games,
    glance,
    measure_choosing,
    published,
    runs,
    speed,
    studies,
    study_data,
    study_figures,
    study_tables,
    teachers,
    train_students,
)
from docs.pages.study_verdicts import default_verdict, verdicts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
STUDIES = sorted({path.parents[1].name for path in RESULTS.glob("*/*/metrics.csv")})
KNOWN = build.sections(ROOT)
PAGES = {str(path.relative_to(ROOT)): path for path in build.pages(ROOT)}


def blocks(path: Path) -> list[str]:
    """Names of the blocks of a page."""
    return [block["name"] for block in build.BLOCK.finditer(path.read_text())]


@pytest.mark.parametrize("name", PAGES)
def test_writing_a_page_again_changes_nothing(name: str) -> None:
    """So no number in a block was typed."""
    text = PAGES[name].read_text()
    assert build.filled(text, KNOWN) == text


@pytest.mark.parametrize("name", figures.FIGURES)
def test_drawing_a_figure_again_changes_nothing(name: str) -> None:
    path = ROOT / "docs" / name
    before = path.read_bytes()
    assert not figures.drawn(figures.FIGURES[name], ROOT / "docs", path)
    assert path.read_bytes() == before


def test_one_command_renews_a_block_and_a_figure_that_were_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number typed into a page and a figure that is gone come back as they were; nothing else changes."""
    for name in ("README.md", "docs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    gone = "images/direction.png"
    monkeypatch.setattr(build, "FIGURES", {gone: figures.FIGURES[gone]})
    assert build.write(tmp_path) == []
    page, figure = tmp_path / "docs" / "memory.md", tmp_path / "docs" / gone
    page.write_text(page.read_text().replace("7,184", "184"))
    figure.unlink()
    assert build.write(tmp_path) == [page, figure]
    assert page.read_bytes() == (ROOT / "docs" / "memory.md").read_bytes()
    assert figure.read_bytes()[:4] == b"\x89PNG"


def test_every_block_that_can_be_made_stands_in_a_page() -> None:
    """Nothing that was measured is left out; text shared with the README need not be."""
    shown = {name for path in PAGES.values() for name in blocks(path)}
    assert {name for name in KNOWN if not name.startswith("README: ")} <= shown <= KNOWN.keys()


def test_a_block_that_nothing_makes_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"no block is called 'spede'; there are .*speed"):
        build.filled("<!-- generated: spede -->\n<!-- end: spede -->", KNOWN)


def test_every_image_of_a_page_is_there_and_every_figure_stands_in_a_page() -> None:
    shown = set()
    for path in PAGES.values():
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} shows {target}, which is not there"
            shown.add((path.parent / target).resolve())
    drawn = {ROOT / "docs" / name for name in figures.FIGURES}
    images, run = ROOT / "docs" / "images", ROOT / "docs" / "results" / "quick" / "seed0"
    played = {run / "play.gif", ROOT / "docs" / "results" / "atari_expert" / "play.gif"}  # by runs of the main example
    # the other two by hand and by examples/deploy.py
    assert drawn <= shown == drawn | played | {images / "flow.svg", images / "deploy.gif"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_as_github_shows_it(name: str) -> None:
    """No includes, no drawings in HTML, no roles; links to other pages lead somewhere."""
    text = PAGES[name].read_text()
    assert not re.search(r"\{include\}|\{raw\}|<svg|\{(func|class|mod|data|ref|doc)\}`", text)
    for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (PAGES[name].parent / target).exists(), f"{name} links to {target}"


def test_a_glance_is_eleven_lines_with_a_link_each() -> None:
    lines = glance.glance_block(RESULTS).splitlines()
    assert [line.partition(".")[0] for line in lines] == [str(number) for number in range(1, 12)]
    assert all(re.search(r"\d.*\]\([\w#-]+\.md(#[\w-]+)?\)", line) for line in lines)


def test_the_front_door_says_what_the_files_say() -> None:
    """A learned game, claim, quick run, cost and limit, each with the number it stands on."""
    learned, claim, quick, cost, limit = front.front_block(RESULTS).splitlines()
    gpu = json.loads((RESULTS / "gpu.json").read_text())["update_ms"]
    ratio = gpu["the paper's five"]["captured"] / gpu["teacher"]["captured"]
    found = runs.load_runs(RESULTS / "quick")
    low = [run["random_score"] for run in found]
    shares = [
        (run["networks"][2]["score_mean"] - zero) / (29_028.1 - zero) for run, zero in zip(found, low, strict=True)
    ]
    assert f"of {min(shares):.2f} to {max(shares):.2f} with 1.7 % of its parameters" in quick
    study = study_data.load(RESULTS / "atari_expert")
    for row, name in (("rtpd", "net17"), ("rtpd", "teacher"), ("two_stage", "net17"), ("scratch_net17", "net17")):
        wanted = (row, front.GAME, name)
        ends = [float(run["final_score"]) for key, run in study.runs.items() if key[:2] + key[3:] == wanted]
        assert f"{min(ends):,.0f}" in learned and f"{max(ends):,.0f}" in learned
    assert "a human has 29,028" in learned
    assert "1.01 [0.99, 1.03]" in claim and "0.73 [0.53, 0.81]" in claim
    assert f"takes {ratio:.1f} times as long" in cost
    assert "do not show that" in limit and "1.11 [0.97, 1.37]" in limit


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_has_its_metrics_configuration_and_commit(study):
    """A published number has its curves, its command and the commit it was made with."""
    found = sorted((RESULTS / study).glob("*/results.json"))
    assert found
    for path in found:
        assert (path.parent / "metrics.csv").exists() and (path.parent / "config.yaml").exists()
        environment = json.loads(path.read_text())["environment"]
        assert len(environment["commit"]) == 40 and environment["command"].startswith("python ")


def test_what_is_measured_here_is_written_where_the_blocks_are_read() -> None:
    """Both scripts find the checkout, and their variants and settings are those of the published files."""
    found = json.loads((RESULTS / "students" / "seed0.json").read_text())["students"]
    assert train_students.ROOT == ROOT and train_students.VARIANTS.keys() == found.keys()
    growth = json.loads((RESULTS / "choosing.json").read_text())["growth"]
    assert measure_choosing.RESULT == RESULTS / "choosing.json" and measure_choosing.SETTINGS.keys() == growth.keys()


def test_the_study_of_students_has_several_seeds_with_their_commits() -> None:
    found = [json.loads(path.read_text()) for path in sorted((RESULTS / "students").glob("seed*.json"))]
    assert len(found) >= 2
    assert all(len(run["environment"]["commit"]) == 40 for run in found)


def test_standard_errors_above_random_by_hand():
    """Means 10 and 4 with standard errors 3 and 4 differ by 6 / 5 standard errors."""
    run = {"random_score": 4.0, "random_standard_error": 4.0}
    network = {"score_mean": 10.0, "score_standard_error": 3.0}
    assert runs.errors_above_random(run, network) == pytest.approx(1.2)


def test_a_network_of_a_run_stands_beside_a_human_where_there_are_references():
    """In Pong a human has 14.6 points; of chess nobody has told, and older runs have no regret."""
    scores = {"score_mean": -2.7, "score_std": 1.0, "score_standard_error": 0.0, "episodes": 8}
    network = {"name": "net17", "parameter_ratio": 0.018, "normalised": None, "agreement": 0.9, **scores}
    run = {"seed": 0, "game": "pong", "seconds": 9.0, "random_score": -20.0, "random_standard_error": 1.0}
    titles, cells = runs.seed_rows([{**run, "networks": [{**network, "regret": 0.123}]}])
    found = dict(zip(titles, cells, strict=True))
    assert (found["of a human"], found["normalised"], found["regret"]) == ("0.50", "-", "0.12")
    titles, cells = runs.seed_rows([{**run, "game": "chess", "networks": [network]}])
    assert dict(zip(titles, cells, strict=True))["of a human"] == "-" and "regret" not in titles


def test_summary_counts_the_seeds_that_reach_ninety_percent():
    """Three seeds at 0.95, 0.90 and 0.50: two reach it, the median is 0.90."""
    entries = [
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
    assert runs.summary_rows(entries)[1] == ["net17", "90", "0.90", "0.50", "0.95", "2 of 3", "50.0"]


def test_precisions_are_compared_network_by_network() -> None:
    """Of four pairs of runs bfloat16 scores higher in three; a teacher agrees with itself, which says nothing."""

    def played(scores: tuple[float, ...]) -> list[dict]:
        named = [{"name": "teacher", "score_mean": 10.0, "agreement": 1.0}]
        origin = {"environment": {"cpu": "abacus", "commit": "0123456789ab", "command": "python run.py"}}
        network = {"name": "net17", "agreement": 0.5}
        return [{**origin, "networks": [*named, {**network, "score_mean": score}]} for score in scores]

    lines = runs.precision_table(played((1.0, 4.0)), played((3.0, 5.0))).splitlines()
    assert "| teacher | 10 | 10 | 0.50 [0.50, 0.50] | - | - |" in lines
    (line,) = (line for line in lines if line.startswith("| net17"))
    assert line.startswith("| net17 | 2 | 4 | 0.75 [0.00, 1.00]") and line.endswith("| 0.50 | 0.50 |")


def _study(**final_scores):
    """A study of one game, a seed a score, in which teachers score 110 and random players 10."""
    lines, curves = {}, {}
    rows = {"teacher_only": [110.0] * 4, **final_scores}
    for row, scores in rows.items():
        network = "teacher" if row == "teacher_only" else "small"
        for seed, score in enumerate(scores):
            whole = 200.0 if row == "two_stage" else 100.0
            lines[row, "pole", seed, network] = {
                "final_score": score,
                "random_score": 10.0,
                "parameter_ratio": 0.02,
            } | dict.fromkeys(("steps", "updates", "training_seconds", "cpu_seconds"), whole)
            times = [whole * share for share in (0.7, 0.8, 0.9, 1.0)]
            curves[row, "pole", seed, network] = {
                "score": [10.0, score, score, score],
                **dict.fromkeys(("steps", "updates", "training_seconds", "cpu_seconds"), times),
            }
    return study_data.Study("made_up", lines, curves)


def test_scores_of_a_study_are_normalised_by_the_teacher_of_the_seed():
    """(60 - 10) / (110 - 10) is one half."""
    study = _study(rtpd=[60.0, 110.0, 10.0, 120.0])
    assert study.normalised("rtpd", "small") == [[0.5, 1.0, 0.0, 1.1]]


def test_time_saved_is_the_ratio_of_pairs_of_one_seed():
    """80 of 100 steps against 160 of 200 is 0.5; the teacher held its level 20 steps before its end: 80 / 140."""
    study = _study(rtpd=[110.0] * 4, two_stage=[110.0] * 4)
    row = study_tables.saved_rows(study)[1]
    assert row[:4] == ["pole", "small", "steps", "0.50 [0.50, 0.50]"]
    assert row[4:] == ["0.57 [0.57, 0.57]", "4"]


def test_processor_seconds_are_compared_where_both_trained_the_same_students():
    """A fleet takes longer than one of its students alone, whatever the method."""
    study = _study(rtpd=[110.0] * 4, two_stage=[110.0] * 4)
    assert [row[2] for row in study_tables.saved_rows(study)[1:]] == ["steps", "updates", "cpu seconds"]
    for part in (study.runs, study.curves):
        part.update({(*key[:3], "large"): own for key, own in part.items() if key[0] == "rtpd"})
    assert [row[1:3] for row in study_tables.saved_rows(study)[1:]] == [["small", "steps"], ["small", "updates"]]


def test_a_student_that_never_gets_there_is_counted_with_its_whole_run():
    """100 of 100 steps against 160 of 200; and it is said to have reached it in no run."""
    study = _study(rtpd=[50.0] * 4, two_stage=[110.0] * 4)
    assert study_tables.saved_rows(study)[1][3] == "0.62 [0.62, 0.62]"
    assert study_data.held(study, "rtpd", "small") == "0 of 4"


def test_a_game_with_one_seed_has_no_interval_and_no_sentence_speaks_of_it():
    """With two seeds, both are there."""
    one, two = (_study(rtpd=[110.0] * seeds, two_stage=[110.0] * seeds) for seeds in (1, 2))
    assert study_tables.saved_rows(one)[1][3] == "0.50" and verdicts(one) == []
    better = [study_tables.score_rows(study, "rtpd")[-1][-2] for study in (one, two)]
    assert better[0] == "-" and better[1].startswith("0.50 [")
    assert "Of pole there is one seed" in studies.heading(one)
    assert "half the time or less?** Yes" in verdicts(two)[0]
    assert "one seed" not in studies.heading(two)


def test_the_network_that_learns_alone_is_compared_with_itself_in_the_fleet():
    """A row scratch_small answers what scratch does, of its own network."""
    study = _study(rtpd=[110.0] * 4, scratch_small=[50.0] * 4)
    (sentence,) = (line for line in verdicts(study) if "learns alone" in line)
    assert "Yes: small scores higher in rtpd than in scratch_small with probability 1.00" in sentence
    assert ("scratch_small", "small") in studies.curves(study)


def test_teachers_that_learned_alone_are_the_measure_where_every_seed_has_one():
    """Else those of rtpd are, and what students cost beside them is said of the seeds that have both."""
    study = _study(rtpd=[60.0] * 4)
    for part in (study.runs, study.curves):
        part.update({("rtpd", *key[1:]): own for key, own in part.items() if key[0] == "teacher_only"})
    assert study.measure == "teacher_only" and study.seeds("rtpd", "pole") == [0, 1, 2, 3]
    for part in (study.runs, study.curves):
        del part["teacher_only", "pole", 3, "teacher"]
    assert study.measure == "rtpd" and study.seeds("rtpd", "pole") == [0, 1, 2, 3]
    assert study.seeds("rtpd", "pole", "teacher_only") == [0, 1, 2]
    assert study_tables.marginal_cost(study) == "+0% [+0%, +0%]"


def test_rows_of_the_sweep_are_told_by_their_names():
    found = [study_data.temperature_of(row) for row in ("both_0.01", "teacher_auto", "rtpd", "teacher_only")]
    assert found == [("0.01", "both"), ("auto", "teacher"), ("0.1", "both"), None]


def test_the_papers_medians_are_those_of_its_tables():
    """Over its seven games Net1 has 95.2 and 100.1 % by forward KL, Net3 101.2 and 100.5 % by reverse KL."""
    rows = published.papers_rows(RESULTS / "published.csv")
    found = {(row[0], row[1]): row[3:5] for row in rows}
    assert found["Sun & Fazli, net1", "forward_kl"] == ["95.2", "100.1"]
    assert found["Sun & Fazli, net3", "reverse_kl"] == ["101.2", "100.5"]
    assert found["Sun & Fazli, net5, no imitation", "forward_kl"] == ["87.5", "89.3"]


def test_figures_of_a_study_are_drawn(tmp_path):
    """Each is a PNG, also where a row has not all games or never reached the level."""
    study = _study(rtpd=[50.0, 110.0], two_stage=[110.0] * 4, both_1=[60.0], teacher_auto=[80.0, 90.0])
    study_figures.plot_curves(study, studies.curves(study), tmp_path / "curves.png")
    for plot in (study_figures.plot_intervals, study_figures.plot_times, study_figures.plot_temperatures):
        plot(study, tmp_path / f"{plot.__name__}.png")
    drawn = list(tmp_path.glob("*.png"))
    assert len(drawn) == 4 and all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)


def test_verdicts_say_yes_no_or_that_they_cannot_tell():
    """Half the steps is a yes; a student that ends at half its teacher's level is a no; equal runs decide nothing."""
    yes, level, same, *_ = verdicts(_study(rtpd=[110.0] * 4, two_stage=[110.0] * 4))
    assert yes.startswith(
        "**pole: half the time or less?** Yes: small holds 95 % of the final teacher after 0.50 [0.50, 0.50]"
    )
    assert "** Yes: 1.00 [1.00, 1.00]" in level and "These runs cannot tell" in same
    slow, level, *_ = verdicts(_study(rtpd=[60.0] * 4, two_stage=[110.0] * 4))
    assert "** No: small holds" in slow and "** No: 0.50 [0.50, 0.50]" in level
    worse = verdicts(_study(rtpd=[60.0] * 4, scratch=[110.0] * 4))[1]
    assert "No, the other way round: small scores higher in rtpd than in scratch" in worse
    assert "with probability 0.00 [0.00, 0.00]" in worse


def test_temperatures_are_better_worse_or_alike():
    """Runs that all score more, all less, or the same as those at the default."""
    study = _study(rtpd=[90.0, 91.0], both_1=[20.0, 30.0], both_auto=[100.0, 99.0], teacher_10=[90.0, 91.0])
    assert default_verdict(study) == (
        "Against the default of `StudentDQNLoss`, 0.1 on both: better auto on both; worse 1 on both; not to be told "
        "apart by these runs 10 on teacher."
    )


def test_the_page_on_teachers_tells_right_readings_from_wrong_ones_and_names_the_reason_of_a_refusal() -> None:
    made = {"file": "a.pt", "what": "a library", "versions": {"a": "1", "torch": "2"}}
    read = {**made, "refused": False, "frames": 9, "agreement_with_frames": 1.0}
    result = {
        "environment": {"commit": "0123456789ab", "command": "run", "cpu": "a CPU"},
        "files": {
            "right": {**read, "said": "pixels were folded into the first layer", "warning": "", "agreement": 1.0},
            "wrong": {**read, "said": "", "warning": "a.pt does not tell if x: this file is", "agreement": 0.17},
            "refused": {**made, "refused": True, "said": "the network in a.pt has more layers"},
        },
    }
    lines = teachers.teachers_block(result).splitlines()
    assert "| a library (`a.pt`) | a 1 | loaded, scale folded | 100.0% | 100.0% |  |" in lines
    assert "| a library (`a.pt`) | a 1 | warned, read wrongly without frames | 17.0% | 100.0% | if x |" in lines
    assert "| a library (`a.pt`) | a 1 | refused |  |  | has more layers |" in lines


def test_speeds_have_a_table_a_task_with_a_column_a_situation() -> None:
    """As measured, alone and beside a neighbour; a task that was not measured has no table."""
    measured = {"none": {"ours": [99.6, 120.4], "cleanrl": [50.0, 60.2]}, "10": {"ours": [80.0], "cleanrl": [20.0]}}
    medians = {"none": {"ours": 110.0, "cleanrl": 55.1}, "10": {"ours": 80.0, "cleanrl": 20.0}}
    over = {"none": {"ours": 1.0, "cleanrl": 2.0}, "10": {"ours": 1.0, "cleanrl": 4.0}}
    result = {
        **{"speeds": {"student": measured}, "medians": {"student": medians}, "ours_over": {"student": over}},
        **{"load": [[0.5, 1.0, 1.0], [2.25, 1.0, 1.0]], "against": "0123456789"},
        "options": {"game": "pong", "threads": 2, "batch": 32, "every": 4},
        "environment": {"commit": "abcdef0123456789", "command": "python bench.py", "cpu": "a CPU"},
    }
    text, caption, *rows = [line for line in speed.speed_block(result).splitlines() if line]
    assert "beginning and end: 0.5 and 2.2. The older commit is 0123456789." in text
    assert caption.endswith("by the divergence alone: batch 32, an update every 4 steps.")
    assert rows == [
        "| program | alone | ours over it | beside a neighbour | ours over it | runs |",
        "| --- | --- | --- | --- | --- | --- |",
        "| this package with `concurrent=true` | 110 | 1.00 | 80 | 1.00 | 100, 120; 80 |",
        "| CleanRL's DQN, teacher alone in one game | 55 | 2.00 | 20 | 4.00 | 50, 60; 20 |",
        "Hardware: a CPU. Commit abcdef0123. Command: `python bench.py`.",
    ]


def test_two_measured_points_tell_the_part_of_a_step_that_threads_do_not_share() -> None:
    """64 games: 8 ms with 8 threads and 5 with 16 are 2 and 64 * 0.75 / threads, hence 24 ms of games with two."""
    assert games.fixed_and_game_ms(64, {16: 5.0, 8: 8.0}) == (2.0, 0.75)
    speeds = {"games alone, 8 threads": 8_000.0, "games alone, 16 threads": 12_800.0, "collector, stacks": 1.0}
    text = games.many_cores_text({"playing": {"64 games": speeds}, "environment": {"cpu": "a CPU"}})
    assert "On a CPU, 64 games of Pong took 8.0 ms with 8 threads and 5.0 ms with 16 threads a step." in text
    assert "one game takes 0.75 ms there and the fixed part 2.0 ms" in text
    assert "2 threads would take 24 ms for the games alone" in text


def test_the_table_of_games_has_a_row_a_size_and_leaves_envpool_out_where_it_was_not_installed(tmp_path: Path) -> None:
    row = {"games": 8, "threads": 1, "ms": {"50": 2.0, "99": 3.0}, "processor_ms": 1.9}
    ale = {**row, "engine": "ale", "steps_per_second": 4_000.0, "speed_of_ale": 1.0}
    ours = {**row, "engine": "ours", "steps_per_second": 3_600.0, "speed_of_ale": 0.9, "processor_ms": 2.5}
    two = [{**ale, "threads": 2}, {**ours, "threads": 2}, {**ale, "threads": 2, "engine": "envpool"}]
    measured = {
        "sweep": [ale, ours, *two],
        "one_game_ms": {
            "pong": {"step": 0.25, "four_frames": 0.2, "new_game": 4.0, "opening": 65.0, "first_game_of_a_seed": 68.0}
        },
        "beside_torch_ms": {"1": 16.0, "2": 20.0},
        "options": {"game": "pong", "sweep_steps": 100, "most_games": 256, "load": [0.6, 3.0]},
        "environment": {"commit": "0123456789ab", "command": "run", "cpu": "a CPU"},
    }
    (tmp_path / "env.json").write_text(json.dumps({"games": measured}))
    shutil.copy(RESULTS / "gpu.json", tmp_path)
    lines = games.games_block(tmp_path).splitlines()
    assert "| 8 | 1 | 4,000 | 2.0 | 3.0 | 1.9 | 0.90 | 3.0 | 2.5 | - | - |" in lines
    assert "| 8 | 2 | 4,000 | 2.0 | 3.0 | 1.9 | 0.90 | 3.0 | 2.5 | 1.00 | 1.9 |" in lines
    assert "| pong | 0.25 | 0.20 | 4.00 | 16 | 65 | 68 |" in lines
    assert any("a step of 64 games takes 16.0 processor milliseconds" in line and "20.0 if" in line for line in lines)
