"""The main example, run in this process on a real game for a few hundred steps."""

import json
from pathlib import Path

import hydra
import numpy as np
import pytest
import rtpd_atari as EXAMPLE
import torch
from safetensors.torch import load_file

from torchrl_rtpd import load_weights, make_actor
from torchrl_rtpd.runs.metrics import read_metrics

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = [
    "total_steps=640",
    "warmup_steps=320",
    "replay_capacity=640",
    "evaluate_every_steps=160",
    "evaluate_from_steps=0",
    "evaluation_episodes=2",
    "final_episodes=4",
    "max_episode_steps=40",
    "students=[net3,net17]",
    "threads=2",  # runs that are compared must have as many
    "progress_bar=false",
]


def _config(output_dir, *overrides):
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        return hydra.compose("rtpd_atari", [*SHORT, f"output_dir={output_dir}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run and the folder it left."""
    folder = tmp_path_factory.mktemp("run")
    return EXAMPLE.run(_config(folder, "export=[onnx,onnx_int8]")), folder


def test_run_writes_every_file(finished):
    """One folder holds results, table, metrics, figure, configuration, weights and events."""
    _, folder = finished
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wanted = {"results.json", "table.md", "metrics.csv", "curves.png", "config.yaml"}
    weights = {f"weights/{sub}{name}.safetensors" for sub in ("", "last/") for name in ("teacher", "net3", "net17")}
    assert wanted | weights <= names
    assert any("tfevents" in name for name in names)
    assert not any(name.endswith(".partial") for name in names)


def test_results_hold_the_agreed_fields(finished):
    """results.json is what run returned, with every field of the contract."""
    results, folder = finished
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["steps"] == 640
    assert results["updates"] == (640 - 320) // 2 + 16  # the batch that ends the warm-up already learns
    assert results["steps_per_second"] > 0
    assert {"game", "algorithm", "method", "seed", "seconds", "random_score"} <= results.keys()
    roles = [(network["name"], network["role"]) for network in results["networks"]]
    assert roles == [("teacher", "teacher"), ("net3", "student"), ("net17", "student")]
    fields = {"parameters", "parameter_ratio", "score_mean", "score_std", "episodes", "percent_of_teacher"}
    fields |= {"normalised", "agreement", "regret", "latency_ms", "latency_runtime"}
    assert all(fields <= network.keys() for network in results["networks"])
    assert [network["episodes"] for network in results["networks"]] == [4, 4, 4]
    assert results["networks"][0]["agreement"] == 1.0


def test_students_are_exported_with_their_run_on_the_card(finished):
    """Few states of short games make the export play games of its own."""
    pytest.importorskip("onnxruntime", reason="needs the export extra")
    results, folder = finished
    names = {f"{name}{suffix}" for name in ("net3", "net17") for suffix in (".onnx", ".int8.onnx", ".json", ".md")}
    assert {path.name for path in (folder / "deployed").iterdir()} == names
    for row in results["networks"][1:]:
        card = json.loads((folder / "deployed" / f"{row['name']}.json").read_text())
        told = card["metadata"]
        assert (told["game"], told["method"], told["seed"], told["frame_skip"]) == ("atlantis", "rtpd", 0, 4)
        assert told["score"] == row["score_mean"] and told["action_meanings"][0] == "NOOP"
        assert card["compared_on_states"] == 512 and card["files"]["onnx_int8"]["agreement"] > 0.8


def test_metrics_follow_the_run(finished):
    """Rows come in the order of steps, with scores, agreement, KL and dormant units of every student."""
    _, folder = finished
    metrics = read_metrics(folder / "metrics.csv")
    assert metrics["steps"] == sorted(metrics["steps"]) and metrics["steps"][-1] == 640
    for student in ("net3", "net17"):
        assert 0 <= metrics[f"{student}/agreement"][-1] <= 1
        assert metrics[f"{student}/kl_to_teacher"][-1] >= 0
    assert {"teacher/score", "net17/score", "net17/dormant", "net17/loss_td"} <= metrics.keys()


def test_kept_weights_load_into_a_fresh_network(finished):
    """The weights file of a student is that student."""
    _, folder = finished
    from torchrl.data import Categorical

    path = folder / "weights" / "net17.safetensors"
    actor = make_actor("net17", Categorical(4))
    load_weights(actor, path)
    saved = load_file(path)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in actor.state_dict().items())


def test_same_seed_gives_the_same_weights(finished, tmp_path):
    """A run repeats exactly, its metrics but for seconds, too; and its teacher is the same without students."""
    _, folder = finished
    again, alone = tmp_path / "again", tmp_path / "alone"
    EXAMPLE.run(_config(again, "tensorboard=false"))
    EXAMPLE.run(_config(alone, "tensorboard=false", "method=teacher_only"))

    def last(run, name):
        return load_file(run / "weights" / "last" / f"{name}.safetensors")

    for name in ("teacher", "net3", "net17"):
        assert all(torch.equal(tensor, last(again, name)[key]) for key, tensor in last(folder, name).items())
    assert all(torch.equal(tensor, last(alone, "teacher")[key]) for key, tensor in last(folder, "teacher").items())
    first, second = (read_metrics(run / "metrics.csv") for run in (folder, again))
    same = [name for name in first if "second" not in name]
    assert first.keys() == second.keys() and len(same) > 10
    np.testing.assert_equal([first[name] for name in same], [second[name] for name in same])  # NaN where none was due


def test_runs_that_overlap_playing_and_learning_are_equal_too(tmp_path):
    """What is played while learning does not depend on how long either takes."""
    runs = [tmp_path / name for name in ("once", "again")]
    for folder in runs:
        EXAMPLE.run(_config(folder, "overlap=true", "evaluate_every_steps=null"))
    once, again = [load_file(folder / "weights/last/net17.safetensors") for folder in runs]
    assert once.keys() == again.keys() and all(torch.equal(once[key], again[key]) for key in once)


def test_divergence_alone_needs_no_td_term(tmp_path):
    """td_coeff=0 distils by the divergence only, and evaluate_every_steps=null plays no games."""
    results = EXAMPLE.run(
        _config(
            tmp_path,
            "td_coeff=0",
            "single_frames=true",
            "evaluate_every_steps=null",
            "divergence=reverse_kl",
            "temperature=auto",
        )
    )
    assert "random_score" not in results and "score_mean" not in results["networks"][0]
    assert (tmp_path / "weights" / "net17.safetensors").exists()


def test_failing_run_leaves_metrics_and_weights(tmp_path, monkeypatch):
    """What was measured and learned before an error is on disk."""
    from torchrl_rtpd import AtariVecEnv

    real_step, count = AtariVecEnv._step, [0]

    def failing_step(self, tensordict):
        count[0] += 1
        if count[0] == 200:
            raise OSError("the emulator broke")
        return real_step(self, tensordict)

    monkeypatch.setattr(AtariVecEnv, "_step", failing_step)
    with pytest.raises(OSError, match="the emulator broke"):
        EXAMPLE.run(_config(tmp_path))
    assert read_metrics(tmp_path / "metrics.csv")["steps"]
    assert (tmp_path / "weights" / "last" / "teacher.safetensors").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=magic", "method must be one of rtpd, two_stage, scratch, teacher_only: got 'magic'"),
        ("students=[]", "method=rtpd needs students"),
        ("students=[net1,net1]", "students must differ"),
        ("students=[net6]", "unknown network 'net6'"),
        ("game=pongg", "unknown game 'pongg'.*pong"),
        ("steps_per_update=3", "num_envs \\* rollout_steps must be a multiple of steps_per_update"),
        ("final_episodes=3", "final_episodes must be a multiple of evaluation_episodes: got 3 and 2"),
        ("teacher_optimizer=sgd", "teacher_optimizer must be one of adam, rmsprop, radam: got 'sgd'"),
        ("divergence=kl", "divergence must be one of"),
        ("export=[tflite]", r"export must be some of onnx, onnx_int8, pt2, c, numpy: got \['tflite'\]"),
        ("cudagraph=true", "cudagraph=true needs device=cuda: got device=cpu; use compile=true on a CPU"),
        ("temperature=0", r"temperature must lie in \(0, 1e12\], or be auto: got 0"),
        ("acting=1.5", r"acting must lie in \[0, 1\], or be teacher, or be student: got 1.5"),
        ("student_settles=[0.9,0.5]", r"student_settles must be two shares of the run.*got \[0\.9, 0\.5\]"),
        ("teacher_settles=[0.5]", r"teacher_settles must be two shares of the run.*got \[0\.5\]"),
        ("warmup_steps=640", r"got warmup_steps=640 of total_steps=640; make it shorter"),
        (
            "students=[teacher,teacher]",
            r"students must differ, teacher_size being .*: got \['teacher', 'teacher'\]",
        ),
    ],
)
def test_bad_values_fail_before_the_first_step(tmp_path, monkeypatch, override, message):
    """Each mistake has its own message, and no environment was stepped."""
    from torchrl_rtpd import AtariVecEnv

    def no_step(self, tensordict):
        raise AssertionError("an environment was stepped")

    monkeypatch.setattr(AtariVecEnv, "_step", no_step)
    with pytest.raises(ValueError, match=message):
        EXAMPLE.run(_config(tmp_path / "run", override))


def test_a_captured_update_has_one_update_of_each_student(tmp_path, monkeypatch):
    """Also where the second one comes from the preset."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = _config(tmp_path, "device=cuda", "cudagraph=true", "student_updates=2")
    with pytest.raises(ValueError, match=r"got cudagraph=true and student_updates=2; use student_updates=1\."):
        EXAMPLE.run(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_missing_gpu_is_an_early_error(tmp_path):
    """device=cuda without a GPU names the remedy."""
    with pytest.raises(ValueError, match="device=cuda needs a GPU"):
        EXAMPLE.run(_config(tmp_path, "device=cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cudagraph", ["true", "false"])
def test_networks_learn_and_play_on_a_gpu(tmp_path, cudagraph):
    """Learning, recycling, evaluation and the report."""
    results = EXAMPLE.run(_config(tmp_path, "device=cuda", f"cudagraph={cudagraph}", "recycle_every_updates=50"))
    assert results["updates"] == (640 - 320) // 2 + 16
    assert all(network["episodes"] == 4 for network in results["networks"])


def test_unknown_override_is_refused_by_hydra(tmp_path):
    """A key that does not exist never starts a run."""
    with pytest.raises(hydra.errors.ConfigCompositionException, match="speed"):
        _config(tmp_path, "speed=9")
