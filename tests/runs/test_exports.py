"""Students as files at the end of a run: which, with what on their cards, and never the end of the report."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from drop_in_dqn import build as build_dqn
from drop_in_dqn import make_env
from drop_in_ppo import build as build_ppo
from torchrl.envs import GymEnv

from torchrl_rtpd import AtariVecEnv, Evaluator, Experiment, make_actor
from torchrl_rtpd.deploy.check import check_file
from torchrl_rtpd.runs.exports import check_export, export_students, told_by

pytest.importorskip("onnx", reason="needs the export extra")
pytest.importorskip("onnxruntime", reason="needs the export extra")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Batches of both scripts."""
    for name in ("drop_in_dqn", "drop_in_ppo"):
        monkeypatch.setattr(f"{name}.STEPS_PER_BATCH", 64)
    monkeypatch.setattr("drop_in_dqn.UPDATES_PER_BATCH", 2)


def made(folder, build=build_dqn, **options):
    """An experiment of two batches that plays final games only."""
    trainer, networks = build(128, seed=0, **options)
    evaluator = Evaluator(lambda: make_env(2), episodes=2, epsilon=0.0)
    about = {"game": "CartPole-v1", "seed": 0}
    return Experiment(trainer, networks, evaluator, folder, about=about, progress_bar=False)


def test_students_are_exported_and_the_teacher_is_not(tmp_path, capsys):
    """Checked by their own runtimes, with the run and its scores on the card."""
    results = made(tmp_path / "run").run(export=["onnx", "numpy"])
    folder = tmp_path / "run" / "deployed"
    names = {"student.onnx", "student.npz", "student_numpy.py", "student.json", "student.md"}
    assert {path.name for path in folder.iterdir()} == names
    outcomes = list(check_file(folder / "student.json"))
    assert [outcome.format for outcome in outcomes] == ["onnx", "numpy"]
    assert not any(outcome.problems for outcome in outcomes)
    metadata, row = json.loads((folder / "student.json").read_text())["metadata"], results["networks"][1]
    assert (metadata["game"], metadata["seed"]) == ("CartPole-v1", 0)
    assert (metadata["score"], metadata["episodes"]) == (row["score_mean"], 2)
    assert (metadata["agreement_with_teacher"], metadata["regret_by_teacher"]) == (row["agreement"], row["regret"])
    assert metadata["random_score"] == results["random_score"]
    assert {key: metadata[key] for key in ("command", "commit")}.items() <= results["environment"].items()
    assert f"onnx: {folder / 'student.onnx'}" in capsys.readouterr().out


def test_a_format_that_a_student_has_not_does_not_keep_the_others_from_being_written(tmp_path):
    """PPO's policy in ONNX, and not in NumPy."""
    with pytest.warns(UserWarning, match="'student' was not exported: format numpy holds chains of"):
        made(tmp_path / "run", build=build_ppo).run(export=["numpy", "onnx"])
    names = {path.name for path in (tmp_path / "run" / "deployed").iterdir()}
    assert names == {"student.onnx", "student.json", "student.md"}


def test_an_export_that_fails_leaves_the_report_and_says_why(tmp_path):
    """PPO's policy has layers that NumPy's thirty lines do not know."""
    with pytest.warns(UserWarning, match="'student' was not exported: format numpy holds chains of"):
        results = made(tmp_path / "run", build_ppo).run(export=["numpy"])
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert (tmp_path / "run" / "table.md").exists() and not list((tmp_path / "run").glob("deployed/*"))


def test_a_run_that_is_asked_to_end_exports_nothing(tmp_path, capsys, monkeypatch):
    """Its report is finished, and it says how to get the files."""
    experiment = made(tmp_path / "run")
    report = experiment._report

    def signalled(results):
        os.kill(os.getpid(), signal.SIGTERM)
        report(results)

    monkeypatch.setattr(experiment, "_report", signalled)
    with pytest.raises(SystemExit):
        experiment.run(export=["numpy"])
    assert (tmp_path / "run" / "results.json").exists() and not (tmp_path / "run" / "deployed").exists()
    assert "The students were not exported. To go on from step 128: build the run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("export", "message"),
    [
        (["tflite"], r"export must be some of onnx, onnx_int8, pt2, c, numpy: got \['tflite'\]"),
        (["onnx", "onnx_int8"], "is for students that read raw bytes: got float32 for 'student'; export it as onnx"),
    ],
)
def test_formats_that_no_student_has_are_refused_before_the_folder_is_made(tmp_path, export, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "run").run(export=export)
    assert not (tmp_path / "run").exists()


def test_a_teacher_alone_is_not_exported():
    env = make_env(1)
    with pytest.raises(ValueError, match=r"export writes students: got networks \['teacher'\]; leave it out"):
        check_export(["onnx"], {"teacher": torch.nn.Identity()}, env)
    assert check_export([], {"teacher": torch.nn.Identity()}, env) == []


def test_integers_take_their_ranges_from_the_final_games(tmp_path: Path) -> None:
    """512 states that the run kept; a network alone, which learned without a teacher, is a student."""
    env = AtariVecEnv("road_runner", 4, seed=0)
    network = make_actor("net17", env.action_spec, seed=0)
    states = env.rollout(128, break_when_any_done=False).select("pixels").reshape(-1)
    results = {
        "game": "road_runner",
        "networks": [{"name": "net17", "score_mean": 5.0}],
        "environment": {"command": "python mine.py", "commit": None},
    }
    options = {"formats": ["onnx_int8"], "env": env, "states": states, "results": results}
    report = export_students({"net17": network}, tmp_path, **options)["net17"]
    env.close()
    card = json.loads(report.card.read_text())
    assert (card["compared_on_states"], card["compared_on"]) == (512, "those of the calibration")
    assert card["files"]["onnx_int8"]["agreement"] >= 0.9
    metadata = card["metadata"]
    assert metadata["action_meanings"][:2] == ["NOOP", "FIRE"] and len(metadata["action_meanings"]) == env.num_actions
    assert (metadata["frame_skip"], metadata["score"]) == (4, 5.0)


def test_an_environment_that_names_no_actions_leaves_them_out():
    assert told_by(GymEnv("CartPole-v1")) == {"frame_skip": 1}
