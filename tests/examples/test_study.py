"""The launcher of studies: what it runs, skips, begins anew and collects."""

import csv
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import command  # noqa: F401, which registers the settings with Hydra
import hydra
import pytest
import study
from checking import check
from omegaconf import OmegaConf

CONFIG = Path(study.__file__).parent / "config"
NAMES = sorted(path.stem for path in (CONFIG / "study").glob("*.yaml"))
TINY = {
    "script": "rtpd_classic",
    "games": ["cartpole"],
    "seeds": [0],
    "overrides": [
        "total_steps=256",
        "warmup_steps=128",
        "rollout_steps=8",
        "batch_size=16",
        "evaluate_every_steps=128",
        "evaluation_episodes=2",
        "final_episodes=2",
        "students=[mlp16]",
        "progress_bar=false",
    ],
    "rows": {
        "teacher_only": ["method=teacher_only"],
        "two_stage": ["method=two_stage", "teacher_from={out}/{game}/teacher_only/seed{seed}"],
    },
}
CLOCK = {"training_seconds", "cpu_seconds", "seconds", "evaluation_seconds", "steps_per_second", "latency_ms"}


def _table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A tiny study, made."""
    out = tmp_path_factory.mktemp("study")
    runs = list(study.runs_of(TINY, out))
    assert all(study.make(run) for run in runs)
    return out, runs


def test_runs_are_all_rows_games_and_seeds_with_their_folders_filled_in():
    """Game by game, each row after those above it, so that a row can begin from what an earlier one left."""
    two = {**TINY, "games": ["cartpole", "acrobot"], "seeds": [3, 4]}
    runs = list(study.runs_of(two, Path("o")))
    assert [(run.game, run.row, run.seed) for run in runs[:5]] == [
        ("cartpole", "teacher_only", 3),
        ("cartpole", "teacher_only", 4),
        ("cartpole", "two_stage", 3),
        ("cartpole", "two_stage", 4),
        ("acrobot", "teacher_only", 3),
    ]
    assert len({run.folder for run in runs}) == len(runs) == 8
    assert runs[2].overrides[-4:] == (
        "teacher_from=o/cartpole/teacher_only/seed3",
        "game=cartpole",
        "seed=3",
        "output_dir=o/cartpole/two_stage/seed3",
    )
    assert runs[2].command == f"python examples/rtpd_classic.py {' '.join(runs[2].overrides)}"


def test_a_game_may_have_seeds_and_overrides_of_its_own():
    """Its overrides stand between those of the study and the row's, which win."""
    games = {"cartpole": {"overrides": ["total_steps=512"], "seeds": [5]}, "acrobot": {}}
    runs = list(study.runs_of({**TINY, "games": games}, Path("o")))
    found = {(run.game, run.seed) for run in runs}
    assert found == {("cartpole", 5), ("acrobot", 0)}
    cartpole, acrobot = runs[1].overrides, runs[3].overrides
    place = cartpole.index("total_steps=512")
    assert cartpole.index("progress_bar=false") < place < cartpole.index("method=two_stage")
    assert "total_steps=512" not in acrobot
    bare = list(study.runs_of({**TINY, "games": {"cartpole": None}}, Path("o")))
    assert [run.command for run in bare] == [run.command for run in study.runs_of(TINY, Path("o"))]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"seed": [5]},
            r"a game may have seeds and overrides of its own: got cartpole: \{'seed': \[5\]\}; name them so",
        ),
        (["b=2"], r"a game may have seeds and overrides of its own: got cartpole: \['b=2'\]; name them so"),
        ({"overrides": "b=2"}, r"overrides of a game are a list: got cartpole: 'b=2'; write \[...\]"),
        ({"seeds": 5}, r"seeds of a game are a list that is not empty: got cartpole: 5; write \[...\]"),
        ({"seeds": []}, r"seeds of a game are a list that is not empty: got cartpole: \[\]; write \[...\]"),
        ({"overrides": None}, r"overrides of a game are a list: got cartpole: None; write \[...\]"),
    ],
)
def test_what_a_game_cannot_have_of_its_own_is_refused(own, message):
    with pytest.raises(ValueError, match=message):
        list(study.runs_of({**TINY, "games": {"cartpole": own}}, Path("o")))


def test_a_part_of_a_study_is_chosen_by_row_game_and_seed():
    runs = study.runs_of({**TINY, "seeds": [0, 1]}, Path("o"))
    found = study.chosen(runs, row=["two_stage"], game=None, seed=[1])
    assert [(run.row, run.seed) for run in found] == [("two_stage", 1)]
    games = {"cartpole": {"seeds": [7]}, "acrobot": {}}
    found = study.chosen(study.runs_of({**TINY, "games": games}, Path("o")), game=["cartpole", "acrobot"], seed=[0])
    assert {(run.game, run.seed) for run in found} == {("acrobot", 0)}
    with pytest.raises(ValueError, match="the study has rows teacher_only, two_stage: got three_stage"):
        study.chosen(study.runs_of(TINY, Path("o")), row=["three_stage"])


def test_a_run_that_was_cut_goes_on_from_its_last_checkpoint(done):
    """Here from the very last, so that the same is played at the end."""
    _, runs = done
    results = runs[1].folder / "results.json"
    before = json.loads(results.read_text())
    results.unlink()
    (runs[1].folder / "left.txt").write_text("of the run that was cut")
    assert study.make(runs[1])
    (runs[1].folder / "left.txt").unlink()
    after = json.loads(results.read_text())
    same = ("steps", "updates", "random_score")
    assert [after[key] for key in same] == [before[key] for key in same]
    scores = [[network["final_score"] for network in found["networks"]] for found in (before, after)]
    assert scores[0] == scores[1]


def test_a_cut_run_that_fails_to_go_on_keeps_what_it_has(done, tmp_path, monkeypatch):
    """It is named as failed, and not begun from scratch."""
    _, runs = done
    cut = dataclasses.replace(runs[0], folder=tmp_path / "cut")
    shutil.copytree(runs[0].folder, cut.folder)
    (cut.folder / "results.json").unlink()
    monkeypatch.setattr(sys, "executable", "false")  # a machine on which nothing starts
    assert not study.make(cut)
    assert (cut.folder / "metrics.csv").read_text() == (runs[0].folder / "metrics.csv").read_text()
    shutil.rmtree(cut.folder / "checkpoints")
    assert not study.make(cut) and not cut.folder.exists()


def test_the_status_of_each_run_is_printed_and_nothing_runs(done, tmp_path, monkeypatch, capsys):
    """Of two_stage one was cut at the last step of its second phase; one has a torn line, one an empty file."""
    out, _ = done
    (tmp_path / "config" / "study").mkdir(parents=True)
    OmegaConf.save({**TINY, "seeds": [0, 1, 2, 3]}, tmp_path / "config" / "study" / "tiny.yaml")
    shutil.copytree(out, tmp_path / "out")
    folder = tmp_path / "out" / "cartpole"
    (folder / "two_stage" / "seed0" / "results.json").unlink()
    for seed, text in ((1, "steps,updates\n128"), (2, "")):
        (folder / "two_stage" / f"seed{seed}").mkdir()
        (folder / "two_stage" / f"seed{seed}" / "metrics.csv").write_text(text)
    monkeypatch.setattr(study, "CONFIG", tmp_path / "config")
    monkeypatch.setattr(sys, "executable", "false")
    monkeypatch.setattr("sys.argv", ["study.py", "tiny", "--out", str(tmp_path / "out"), "--status"])
    study.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["cartpole teacher_only seed 0: done", "cartpole teacher_only seed 1: not begun"]
    states = ["at step 448", "begun", "begun", "not begun"]
    assert lines[4:] == [f"cartpole two_stage seed {seed}: {state}" for seed, state in enumerate(states)]


def test_a_run_that_is_done_is_left_alone_and_one_that_fails_is_named(done, tmp_path, monkeypatch, capsys):
    """Here by a row that the script refuses."""
    out, runs = done
    monkeypatch.setitem(study.__dict__, "CONFIG", tmp_path)
    (tmp_path / "study").mkdir()
    rows = {**TINY["rows"], "wrong": ["method=magic"]}
    OmegaConf.save({**TINY, "rows": rows}, tmp_path / "study" / "tiny.yaml")
    monkeypatch.setattr("sys.argv", ["study.py", "tiny", "--out", str(out)])
    before = [(run.folder / "results.json").stat().st_mtime_ns for run in runs]
    with pytest.raises(SystemExit, match=r"These failed:\npython examples/rtpd_classic.py .*method=magic"):
        study.main()
    assert "2 of 3 runs are done." in capsys.readouterr().out
    assert before == [(run.folder / "results.json").stat().st_mtime_ns for run in runs]


def test_published_files_hold_every_network_and_evaluation_with_its_command(done, tmp_path):
    """A line a network in one file, a line an evaluation in the other; the command is the run's own."""
    _, runs = done
    study.publish(runs, tmp_path)
    lines = _table(tmp_path / "runs.csv")
    assert [(line["row"], line["network"]) for line in lines] == [
        ("teacher_only", "teacher"),
        ("two_stage", "teacher"),
        ("two_stage", "mlp16"),
    ]
    assert [line["command"] for line in lines[:2]] == [run.command for run in runs]
    assert lines[0]["final_score"] == lines[1]["final_score"]  # one teacher, the same games
    assert float(lines[1]["steps"]) == 256 + 256 - 128 + 64 and lines[2]["agreement"]
    curve = [
        line
        for line in _table(tmp_path / "evaluations.csv")
        if (line["row"], line["network"]) == ("two_stage", "mlp16")
    ]
    assert len(curve) >= 2 and all(line["score"] and line["kl_to_teacher"] for line in curve)
    assert [float(line["steps"]) for line in curve] == sorted(float(line["steps"]) for line in curve)


def test_publishing_adds_to_what_was_published_and_replaces_only_what_was_made_anew(done, tmp_path):
    """Runs whose folders are gone keep their lines, in the order of the study, whichever part was published first."""
    _, (first, second) = done
    gone = dataclasses.replace(first, folder=tmp_path / "gone"), dataclasses.replace(second, folder=tmp_path / "gone")
    study.publish([first, second], tmp_path / "whole")
    for part in ([gone[0], second], [first, gone[1]], [first, gone[1]]):
        study.publish(part, tmp_path / "parts")
    for name in ("runs.csv", "evaluations.csv"):
        assert _table(tmp_path / "parts" / name) == _table(tmp_path / "whole" / name)


def test_a_study_made_twice_gives_equal_files(done, tmp_path):
    """But for the clock and the folder in the commands."""
    _, runs = done
    again = list(study.runs_of(TINY, tmp_path / "again"))
    assert all(study.make(run) for run in again)
    for part, made in (("one", runs), ("other", again)):
        study.publish(made, tmp_path / part)
    for name in ("runs.csv", "evaluations.csv"):
        one, other = (
            [
                {key: cell for key, cell in line.items() if key not in CLOCK | {"command"}}
                for line in _table(path / name)
            ]
            for path in (tmp_path / "one", tmp_path / "other")
        )
        assert one == other and one


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_a_study_has_a_configuration_the_script_accepts(name, monkeypatch):
    """Each row composes, passes the script's own check and has a folder of its own."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # those for a GPU are checked here, too
    content = OmegaConf.to_container(OmegaConf.load(CONFIG / "study" / f"{name}.yaml"))
    runs = list(study.runs_of(content, Path("o")))
    assert len({run.folder for run in runs}) == len(runs) > 0
    with hydra.initialize_config_dir(str(CONFIG), version_base="1.3"):
        for run in runs:
            if run.seed == runs[0].seed:
                check(hydra.compose(run.script, list(run.overrides)))


def test_there_are_studies_to_check():
    assert {"classic", "atari_cpu", "paper"} <= set(NAMES)
