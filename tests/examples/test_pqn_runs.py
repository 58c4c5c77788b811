"""The main example with a teacher without replay: every method, going on, and what does not go with it."""

import shutil
from pathlib import Path

import hydra
import pytest
import rtpd_atari
import rtpd_classic
import torch
from command import resumed
from safetensors.torch import load_file

from torchrl_rtpd.runs.metrics import read_metrics

EXAMPLES = Path(__file__).parents[2] / "examples"
TOTAL, ROLLOUT, UPDATES = 512, 64, 8 * 4 * 2  # rollouts, minibatches and epochs
SHORT = [
    "teacher=pqn",
    f"total_steps={TOTAL}",
    "rollout_steps=8",
    "batch_size=16",
    "num_epochs=2",
    "epsilon_steps=256",
    "evaluate_every_steps=192",
    "evaluation_episodes=2",
    "final_episodes=2",
    "students=[mlp16]",
    "progress_bar=false",
]


def composed(*overrides, script="rtpd_classic"):
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        return hydra.compose(script, list(overrides))


def run(folder, *overrides):
    return rtpd_atari.run(composed(*SHORT, f"output_dir={folder}", *overrides), rtpd_classic.CLASSIC)


def last(folder, name):
    return load_file(folder / "weights" / "last" / f"{name}.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of every method with one seed: folders and results by method."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("rtpd", "two_stage", "scratch", "teacher_only")}
    options = {"rtpd": ["checkpoint_every_steps=256", "checkpoint_keep=9"]}
    return {name: (folder, run(folder, f"method={name}", *options.get(name, []))) for name, folder in folders.items()}


def test_the_teacher_is_the_same_in_every_method(made):
    """Alone, with a student, and as the first phase of two: equal to the last bit, and frozen in the second phase."""
    alone = last(made["teacher_only"][0], "teacher")
    for folder in (made["rtpd"][0], made["two_stage"][0] / "teacher", made["two_stage"][0]):
        assert equal(alone, last(folder, "teacher"))


@pytest.mark.parametrize("method", ["rtpd", "two_stage", "scratch", "teacher_only"])
def test_each_method_spends_its_budget_and_reports_its_networks(made, method):
    """There is no warm-up, so that a second phase is as long as the first one."""
    folder, results = made[method]
    phases = 1 + (method == "two_stage")
    assert (results["steps"], results["updates"]) == (TOTAL * phases, UPDATES * phases)
    names = {"scratch": ["mlp16"], "teacher_only": ["teacher"]}.get(method, ["teacher", "mlp16"])
    assert [row["name"] for row in results["networks"]] == names
    assert all(row["final_score"] > 0 for row in results["networks"])
    assert ((folder / "curves.png").exists() and "mlp16" in (folder / "table.md").read_text()) or names == ["teacher"]


def test_students_learn_by_the_divergence_alone_or_with_errors_of_their_own(made, tmp_path):
    """Another student each, and the same teacher."""
    run(tmp_path, "td_coeff=0")
    assert equal(last(tmp_path, "teacher"), last(made["rtpd"][0], "teacher"))
    assert not equal(last(tmp_path, "mlp16"), last(made["rtpd"][0], "mlp16"))
    columns = read_metrics(made["rtpd"][0] / "metrics.csv"), read_metrics(tmp_path / "metrics.csv")
    assert columns[0]["mlp16/loss_td"][-1] > 0 and not columns[1]["mlp16/loss_td"][-1] > 0


@pytest.mark.parametrize("learn_from", ["average", "lagging", "best"])
def test_students_may_learn_from_another_version_of_the_teacher(made, tmp_path, learn_from):
    run(tmp_path, f"learn_from={learn_from}")
    assert equal(last(tmp_path, "teacher"), last(made["rtpd"][0], "teacher"))
    assert not equal(last(tmp_path, "mlp16"), last(made["rtpd"][0], "mlp16"))


def test_a_student_may_act(made, tmp_path):
    """Then values are computed for the targets, since those that acted are not all the teacher's."""
    run(tmp_path, "acting=student")
    assert not equal(last(tmp_path, "teacher"), last(made["rtpd"][0], "teacher"))


def test_a_run_goes_on_from_its_middle_as_often_as_it_is_asked(made, tmp_path):
    """Two resumes of one checkpoint are equal to the last bit; exploration goes on where it was."""
    ends = []
    for name in ("one", "other"):
        folder = tmp_path / name
        shutil.copytree(made["rtpd"][0], folder)
        (middle,) = (folder / "checkpoints").glob("checkpoint-*192")
        command = [f"resume={middle}", "progress_bar=false"]
        results = rtpd_atari.run(resumed(composed(*command), command), rtpd_classic.CLASSIC)
        assert (results["steps"], results["updates"]) == (TOTAL, UPDATES)
        ends.append({network: last(folder, network) for network in ("teacher", "mlp16")})
    assert all(equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_run_goes_on_for_longer(made, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(made["rtpd"][0], folder)
    command = [f"resume={folder}", "progress_bar=false", "total_steps=640"]
    results = rtpd_atari.run(resumed(composed(*command), command), rtpd_classic.CLASSIC)
    assert (results["steps"], results["updates"]) == (640, UPDATES * 640 // TOTAL)


@pytest.mark.parametrize("method", ["rtpd", "two_stage", "scratch"])
def test_a_real_game_is_played_by_each_method(tmp_path, method):
    """Frames of the rollout are kept singly, and lives end its games."""
    small = ["total_steps=64", "num_envs=4", "rollout_steps=8", "batch_size=16", "num_epochs=1", "epsilon_steps=64"]
    play = ["evaluation_episodes=2", "final_episodes=2", "max_episode_steps=20", "evaluate_every_steps=0", "threads=1"]
    quiet = ["progress_bar=false", "tensorboard=false", f"output_dir={tmp_path}", f"method={method}"]
    config = composed("teacher=pqn", *small, *play, *quiet, "students=[net17]", script="rtpd_atari")
    results = rtpd_atari.run(config)
    assert results["updates"] == 4 * (1 + (method == "two_stage"))
    assert results["networks"][-1]["parameters"] > 28_660  # LayerNorm is in the presets of PQN


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["n_step=3"],
            "keys of teacher=dqn have no use with teacher=pqn: got n_step=3; leave them out, or add teacher=dqn",
        ),
        (["replay_capacity=9", "imitation=false"], "got imitation=False, replay_capacity=9; leave them out"),
        (["checkpoint_replay=true"], "have no use with teacher=pqn: got checkpoint_replay=True"),
        (["teacher=dqn", "lmbda=0.5"], "keys of teacher=pqn have no use with teacher=dqn: got lmbda=0.5, num_epochs=2"),
        (["lmbda=null"], "teacher=pqn needs a number for lmbda: got null; give it, or take a preset for teacher=pqn"),
        (["lmbda=1.5"], r"lmbda must lie in \[0, 1\]: got 1.5"),
        (["teacher=ddpg"], "teacher"),
        (["norm=batch"], "norm must be one of layer: got 'batch'"),
        (["batch_size=48"], r"must be a multiple of batch_size: got 8 \* 8 and 48; change num_envs or rollout_steps"),
        (["export=[onnx,c]"], r"with norm=layer are exported as onnx or pt2: got export=\['c'\], which hold no norms"),
        (
            ["recycle_every_updates=5"],
            "units behind a norm are not recycled: got recycle_every_updates=5 with norm=layer",
        ),
        (
            ["overlap=true", "amp=true"],
            "keys of Atari games have no use here: got overlap=True, amp=True; leave them out",
        ),
        (["+lmda=0.5"], "keys must be those of the script: got lmda; did you mean lmbda?"),
        (["+zzz=0.5"], "keys must be those of the script: got zzz; --help shows them."),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, overrides, message):
    """Before a folder is made."""
    with pytest.raises((ValueError, hydra.errors.MissingConfigException), match=message):
        run(tmp_path / "run", *overrides)
    assert not any(tmp_path.iterdir())


def test_a_mixture_of_players_needs_whole_stacks(tmp_path):
    """Single frames are targeted by the values that acted, which the teacher's are not where a student acts."""
    config = composed(
        "teacher=pqn", "acting=0.5", "single_frames=true", f"output_dir={tmp_path / 'run'}", script="rtpd_atari"
    )
    with pytest.raises(ValueError, match=r"where it acts alone: got acting=0\.5; leave one of them out"):
        rtpd_atari.run(config)
    assert not any(tmp_path.iterdir())


def test_a_preset_is_for_its_teacher():
    """teacher=pqn takes the quick one of its own; a preset alone says which teacher it is for."""
    assert composed("teacher=pqn", script="rtpd_atari") == composed("preset=pqn_quick", script="rtpd_atari")
    paper = composed("preset=pqn", script="rtpd_atari")
    assert (paper.teacher, paper.norm, paper.teacher_optimizer, paper.loss_function) == ("pqn", "layer", "radam", "l2")
    assert (paper.num_envs, paper.rollout_steps, paper.batch_size, paper.num_epochs) == (128, 32, 128, 2)
    assert (paper.lmbda, paper.gamma, paper.epsilon_end) == (0.65, 0.99, 0.001)
    assert paper.epsilon_steps * 10 == paper.total_steps
