"""A trainer of TorchRL's as a whole run by one call: claims on real trainers, DQN's and PPO's, on CartPole."""

import json
import os
import signal
import threading
import time

import pytest
import torch
from drop_in_dqn import build as build_dqn
from drop_in_dqn import make_env
from drop_in_ppo import build as build_ppo
from safetensors.torch import load_file
from torchrl.checkpoint import CheckpointError

from torchrl_rtpd import Evaluator, Experiment, Protection
from torchrl_rtpd.networks.beside import Beside
from torchrl_rtpd.runs.folder import RunFolder
from torchrl_rtpd.runs.metrics import read_metrics

STEPS, BATCH = 512, 128


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Batches of both scripts."""
    for name in ("drop_in_dqn", "drop_in_ppo"):
        monkeypatch.setattr(f"{name}.STEPS_PER_BATCH", BATCH)
    monkeypatch.setattr("drop_in_dqn.UPDATES_PER_BATCH", 4)


def made(folder, build=build_dqn, *, steps=STEPS, every=256, with_student=True, **options):
    """An experiment that is built, with evaluations of two games."""
    trainer, networks = build(steps, seed=0, with_student=with_student)
    options = {"about": {"game": "CartPole-v1", "seed": 0}, "progress_bar": False, **options}
    evaluator = Evaluator(lambda: make_env(2), episodes=2, epsilon=0.0)
    return Experiment(trainer, networks, evaluator, folder, evaluate_every_steps=every, **options)


def weights(experiment):
    return [
        tensor.clone() for network in experiment.monitor.networks.values() for tensor in network.state_dict().values()
    ]


@pytest.mark.parametrize("build", [build_dqn, build_ppo], ids=["dqn", "ppo"])
def test_any_trainer_is_a_whole_run(tmp_path, capsys, build):
    """Table, figures, metrics, weights and checkpoints lie in the folder, and results.json is what run returned."""
    results = made(tmp_path / "run", build).run(final_episodes=4)
    folder = tmp_path / "run"
    wanted = {"results.json", "table.md", "metrics.csv", "curves.png", "front.png", "checkpoints", "weights"}
    assert {path.name for path in folder.iterdir()} == wanted
    assert json.loads((folder / "results.json").read_text()) == results
    assert list(results)[:2] == ["game", "seed"] and results["steps"] == STEPS
    roles = [(row["name"], row["role"], row["episodes"]) for row in results["networks"]]
    assert roles == [("teacher", "teacher", 4), ("student", "student", 4)]
    assert results["networks"][1]["parameter_ratio"] < 0.05
    metrics = read_metrics(folder / "metrics.csv")
    assert metrics["steps"][-1] == STEPS and metrics["teacher/score"][-1] == metrics["teacher/score"][-1]
    for name in ("teacher", "student"):
        assert (folder / "weights" / f"{name}.safetensors").exists()
        assert (folder / "weights" / "last" / f"{name}.safetensors").exists()
    assert (folder / "checkpoints" / f"checkpoint-{STEPS:012d}").is_dir()
    printed = capsys.readouterr().out
    assert (folder / "table.md").read_text() in printed + "\n" and f"Everything lies in {folder}" in printed


def test_results_name_the_commit_of_the_code_that_ran(tmp_path, monkeypatch):
    """Not that of a checkout in which work went on meanwhile."""
    commits = iter(["began", *["went on"] * 9])
    monkeypatch.setattr("torchrl_rtpd.runs.environment._git_commit", lambda: next(commits))
    assert made(tmp_path / "run", every=None).run()["environment"]["commit"] == "began"


@pytest.mark.parametrize(("build", "updates"), [(build_dqn, 16), (build_ppo, 16)], ids=["dqn", "ppo"])
def test_updates_are_the_minibatches_learned_from(tmp_path, build, updates):
    """Four batches: DQN learns from four minibatches of each, PPO from one of 128 in each of four epochs."""
    assert made(tmp_path / "run", build, every=None).run()["updates"] == updates


@pytest.mark.parametrize("build", [build_dqn, build_ppo], ids=["dqn", "ppo"])
def test_training_is_that_of_the_trainer_alone(tmp_path, build):
    """Watching, evaluating, guarding and saving change no bit of either network."""
    experiment = made(tmp_path / "run", build)
    torch.manual_seed(1)
    experiment.run()
    trainer, networks = build(STEPS, seed=0)
    torch.manual_seed(1)  # TorchRL draws numbers where environments are wrapped, those of the evaluator among them
    trainer.train()
    alone = [tensor for network in networks.values() for tensor in network.state_dict().values()]
    assert all(map(torch.equal, weights(experiment), alone))


@pytest.mark.parametrize("build", [build_dqn, build_ppo], ids=["dqn", "ppo"])
def test_a_finished_run_goes_on_when_its_trainer_is_to_train_for_longer(tmp_path, build):
    """From the last checkpoint, with rows behind the run's own; networks move on."""
    first = made(tmp_path / "run", build, steps=STEPS)
    first.run()
    rows = (tmp_path / "run" / "metrics.csv").read_text()
    longer = made(tmp_path / "run", build, steps=2 * STEPS).resume()
    assert all(map(torch.equal, weights(longer), weights(first)))
    results = longer.run()
    assert results["steps"] == 2 * STEPS
    assert (tmp_path / "run" / "metrics.csv").read_text().startswith(rows)
    assert not all(map(torch.equal, weights(longer), weights(first)))


def test_a_folder_that_holds_a_run_is_refused_and_keeps_every_byte(tmp_path):
    made(tmp_path / "run").run()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError, match=r"run holds another run, .*: resume it, choose another folder or delete"):
        made(tmp_path / "run").run()
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_claimed_folder_is_taken_as_it_is_and_without_a_name_a_new_one_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunFolder("mine").claim() as folder:
        (folder.path / "note.txt").write_text("the script's own")
        made(folder, every=None).run()
    assert (tmp_path / "mine" / "results.json").exists()
    places = [made(None, every=None).folder.path for _ in range(2)]
    assert places[0] != places[1] and all(place.parent.name == "outputs" for place in places)


def test_without_games_there_are_no_scores(tmp_path):
    results = made(tmp_path / "run", every=None).run()
    assert "random_score" not in results and "score_mean" not in results["networks"][0]


def test_final_games_alone_are_played_by_the_last_networks(tmp_path):
    """With 0 no network is kept before the end, so that the last weights are scored, once."""
    results = made(tmp_path / "run", every=0).run()
    teacher = results["networks"][0]
    assert teacher["score_mean"] == teacher["final_score"] and teacher["kept_score"] is None


@pytest.mark.parametrize("episodes", [3, 0])
def test_final_games_are_a_multiple_of_the_slots(tmp_path, episodes):
    experiment = made(tmp_path / "run")
    with pytest.raises(ValueError, match=rf"a multiple of the evaluator's 2 slots: got {episodes}; use [24]"):
        experiment.run(final_episodes=episodes)
    assert not (tmp_path / "run").exists()


def test_a_signal_ends_the_run_with_its_last_checkpoint_and_status(tmp_path, capsys):
    """As a shell reports a process that SIGTERM has ended; there are no results yet."""
    experiment = made(tmp_path / "run", every=None)
    experiment.trainer.register_op("post_steps", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        experiment.run()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "results.json").exists()
    hint = f"To go on from step {BATCH:,}: build the run by the same lines and call experiment.resume().run()\n"
    assert hint in capsys.readouterr().out
    assert made(tmp_path / "run", every=None).resume().run()["steps"] == STEPS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_final_games_gives_them_up_and_the_resumed_run_plays_them_only(tmp_path, capfd, number):
    """Nothing is trained again, and the results are those of a run that was never stopped."""
    whole = made(tmp_path / "whole").run()
    before, experiment, asked = signal.getsignal(number), made(tmp_path / "run"), []
    shutdown, step = experiment.trainer.shutdown, experiment.monitor.evaluator.env.step_and_maybe_reset

    def in_final_games():
        shutdown()
        experiment.monitor.evaluator.env.step_and_maybe_reset = signalled

    def signalled(tensordict):
        asked.append(os.kill(os.getpid(), number))
        return step(tensordict)

    experiment.trainer.shutdown = in_final_games
    with pytest.raises(SystemExit) as stopped:
        experiment.run()
    assert stopped.value.code == 128 + number and len(asked) == 1
    assert signal.getsignal(number) is before
    printed = capfd.readouterr()
    assert f"{number.name}: stopping without further games; a second one leaves at once." in printed.err
    assert f"The final games are missing. To go on from step {STEPS}: build the run by the same lines" in printed.out
    assert not (tmp_path / "run" / "results.json").exists() and not (tmp_path / "run" / "run.lock").exists()
    resumed = made(tmp_path / "run").resume()
    results = resumed.run()
    scores = ("name", "score_mean", "kept_score", "final_score", "normalised")
    assert results["steps"] == STEPS and results["updates"] == whole["updates"]
    assert [[row[key] for key in scores] for row in results["networks"]] == [
        [row[key] for key in scores] for row in whole["networks"]
    ]


def test_a_signal_in_the_report_lets_it_be_finished(tmp_path, monkeypatch):
    experiment = made(tmp_path / "run", every=None)
    report = experiment._report

    def signalled(results):
        os.kill(os.getpid(), signal.SIGTERM)
        report(results)

    monkeypatch.setattr(experiment, "_report", signalled)
    with pytest.raises(SystemExit) as stopped:
        experiment.run()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert {"results.json", "table.md", "curves.png"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert not (tmp_path / "run" / "run.lock").exists()


def test_a_hint_of_the_scripts_own_is_printed_instead(tmp_path):
    protection = Protection(resume_hint="python mine.py resume=here")
    experiment = made(tmp_path / "run", every=None, protection=protection)
    experiment.run()
    assert experiment.protected.saver.how_to_resume == f"To go on from step {STEPS}: python mine.py resume=here"


def test_a_run_that_fails_leaves_metrics_and_weights_and_says_where_to_go_on(tmp_path, capsys):
    experiment = made(tmp_path / "run", every=None)

    def fail():
        if experiment.trainer.collected_frames == 2 * BATCH:
            raise OSError("the emulator broke")

    experiment.trainer.register_op("post_steps", fail)
    with pytest.raises(OSError, match="the emulator broke"):
        experiment.run()
    assert (tmp_path / "run" / "weights" / "last" / "student.safetensors").exists()
    assert "To go on from step" in capsys.readouterr().out


def test_a_run_that_fails_while_students_learn_beside_their_teacher_saves_them_when_they_are_through(tmp_path):
    """The thread is held back until the run has failed."""
    experiment = made(tmp_path / "run", every=None)
    trainer, hook, student = experiment.trainer, experiment.monitor.distiller, experiment.monitor.networks["student"]
    beside, failing = Beside(), threading.Event()

    def learn():
        failing.wait(10)
        time.sleep(0.2)
        next(student.parameters()).data.fill_(0.5)
        return [None]

    def fail(*_):
        if hook.updates == 6:
            hook._learning = {"student": beside.call(learn)}
            while not hook._learning["student"]._future.running():
                time.sleep(0.001)
            failing.set()
            raise OSError("no more")

    trainer.register_op("post_optim_log", fail)
    with pytest.raises(OSError, match="no more"):
        experiment.run()
    saved = load_file(tmp_path / "run" / "weights" / "last" / "student.safetensors")
    assert any(bool((value == 0.5).all()) for value in saved.values())


def test_resuming_nothing_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*run"):
        made(tmp_path / "run").resume()


def test_a_run_without_students_has_a_table_of_its_teacher(tmp_path):
    (teacher,) = made(tmp_path / "run", with_student=False).run()["networks"]
    assert (teacher["name"], teacher["role"], teacher["parameter_ratio"]) == ("teacher", "teacher", 1.0)


@pytest.mark.parametrize("name", ["a/b", "", "..", "net 17", "new\nline"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    trainer, networks = build_dqn(STEPS, seed=0)
    evaluator = Evaluator(lambda: make_env(2), episodes=2)
    with pytest.raises(ValueError, match="a network's name is part of file names and columns") as refused:
        Experiment(trainer, {"teacher": networks["teacher"], name: networks["student"]}, evaluator, tmp_path / "run")
    assert repr(name) in str(refused.value)


def test_one_network_under_two_names_is_refused(tmp_path):
    trainer, networks = build_dqn(STEPS, seed=0)
    evaluator = Evaluator(lambda: make_env(2), episodes=2)
    twice = {"teacher": networks["teacher"], "student": networks["teacher"]}
    with pytest.raises(ValueError, match="got 'teacher' and 'student' for one network"):
        Experiment(trainer, twice, evaluator, tmp_path / "run")
    with pytest.raises(ValueError, match="a run trains at least one network: got none"):
        Experiment(trainer, {}, evaluator, tmp_path / "run")


def test_options_of_protection_reach_its_hooks(tmp_path):
    protection = Protection(
        checkpoint_every_steps=64, checkpoint_keep=3, checkpoint_replay=True, on_divergence="rollback"
    )
    protected = made(tmp_path / "run", protection=protection).protected
    assert (protected.saver.every_steps, protected.saver.rotation.keep_last, protected.saver.replay) == (64, 3, True)
    assert protected.guard.policy == "rollback" and protected.guard.saver is protected.saver
    with pytest.raises(ValueError, match="policy must be one of stop, skip, rollback: got 'explode'"):
        made(tmp_path / "other", protection=Protection(on_divergence="explode"))
