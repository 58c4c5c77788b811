"""Runs that go on otherwise than they began: for longer, with other games side by side, elsewhere. On CartPole."""

import hashlib
import json
import shutil
from pathlib import Path

import hydra
import pytest
import rtpd_atari
import rtpd_classic
import torch
from command import resumed
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torchrl.trainers import LRSchedulerHook

from torchrl_rtpd.runs.folder import RunFolder
from torchrl_rtpd.runs.metrics import read_metrics

EXAMPLES = Path(__file__).parents[2] / "examples"
TOTAL, WARMUP, BATCH = 512, 128, 64
SHORT = [
    f"total_steps={TOTAL}",
    f"warmup_steps={WARMUP}",
    "rollout_steps=8",
    "batch_size=16",
    "steps_per_update=8",
    "replay_capacity=512",
    "target_every_updates=10",
    "epsilon_steps=512",
    "evaluate_every_steps=null",
    "evaluation_episodes=2",
    "final_episodes=2",
    "students=[mlp16]",
    "progress_bar=false",
]
INITIAL = {"teacher": 1e-3, "mlp16": 1e-3}


def composed(*overrides):
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        return hydra.compose("rtpd_classic", list(overrides))


def going_on(folder, *overrides):
    """Configuration of a run that is resumed with these overrides."""
    command = [f"resume={folder}", "progress_bar=false", *overrides]
    return resumed(composed(*command), command)


def last(folder, name):
    return load_file(folder / "weights" / "last" / f"{name}.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, which keeps its checkpoint of the middle, too."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    every = ["checkpoint_every_steps=256", "checkpoint_keep=9"]
    rtpd_atari.run(composed(*SHORT, *every, f"output_dir={folder}"), rtpd_classic.CLASSIC)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def rates(experiment):
    """Learning rate of each network, as a share of the initial one, and the share of random actions."""
    hooks = experiment.trainer._modules.items()
    schedules = {name.split(".")[1]: hook for name, hook in hooks if isinstance(hook, LRSchedulerHook)}
    shares = {name: hook.scheduler.get_last_lr()[0] / INITIAL[name] for name, hook in schedules.items()}
    return {**shares, "epsilon": float(experiment.trainer.greedy_module.eps)}


def built(config):
    torch.set_num_threads(config.threads)
    with RunFolder(config.output_dir).claim(resume=True) as folder:
        return rtpd_atari.build(config, folder, rtpd_classic.CLASSIC)


def test_a_finished_run_trains_for_longer(run, finished, capsys):
    """It has twice the steps and updates, its rows go on behind those it had, and the networks have moved."""
    rows = (run / "metrics.csv").read_text()
    results = rtpd_atari.run(going_on(run, f"total_steps={2 * TOTAL}"), rtpd_classic.CLASSIC)
    assert results["steps"] == 2 * TOTAL
    assert results["updates"] == (2 * TOTAL - WARMUP + BATCH) // 8
    assert (run / "metrics.csv").read_text().startswith(rows)
    metrics = read_metrics(run / "metrics.csv")
    assert metrics["steps"] == sorted(set(metrics["steps"])) and metrics["steps"][-1] == 2 * TOTAL
    assert not any(equal(last(run, name), last(finished, name)) for name in ("teacher", "mlp16"))
    assert OmegaConf.load(run / "config.yaml").total_steps == 2 * TOTAL
    assert f"Resumed at step {TOTAL} with total_steps={2 * TOTAL} (was {TOTAL})." in capsys.readouterr().out


def test_schedules_stretch_to_the_same_shares_of_the_longer_run(run):
    """Rates settle in [0.5, 0.8] and [0.75, 1.0] of the learning steps, epsilon in the first 512 of 512 steps.

    After 448 of 896 learning steps the teacher's rate is about to fall and the student's has not; before, both were at
    a hundredth. Epsilon is half way from 1 to 0.05.
    """
    before = rates(built(going_on(run)))
    assert before == pytest.approx({"teacher": 0.01, "mlp16": 0.01, "epsilon": 0.05})
    config = going_on(run, f"total_steps={2 * TOTAL}")
    assert (config.schedules, config.schedule_steps, config.epsilon_steps) == ("stretch", None, 1024)
    assert rates(built(config)) == pytest.approx({"teacher": 1.0, "mlp16": 1.0, "epsilon": 0.525})


def test_schedules_that_are_kept_stay_at_their_end(run):
    """And are still kept when the run is resumed again."""
    config = going_on(run, f"total_steps={2 * TOTAL}", "schedules=keep")
    assert (config.schedule_steps, config.epsilon_steps) == (TOTAL, 512)
    assert rates(built(config)) == pytest.approx({"teacher": 0.01, "mlp16": 0.01, "epsilon": 0.05})
    rtpd_atari.run(config, rtpd_classic.CLASSIC)
    again = going_on(run)
    assert (again.total_steps, again.schedules, again.schedule_steps) == (2 * TOTAL, "keep", TOTAL)
    stretched = going_on(run, "schedules=stretch", f"total_steps={4 * TOTAL}")
    assert (stretched.schedule_steps, stretched.epsilon_steps) == (None, 4 * 512)


def test_a_run_that_is_resumed_as_it_was_has_the_schedules_it_had(run):
    """In the middle, too: the numbers are those that the checkpoint holds."""
    middle = run / "checkpoints" / "checkpoint-000000000256"
    config = going_on(middle)
    assert (config.schedule_steps, config.epsilon_steps) == (None, 512)
    now = rates(built(config))
    assert now["teacher"] == 1.0 and now["mlp16"] == 1.0  # 3 of 6 batches
    assert now["epsilon"] == pytest.approx(1 - 0.95 * 256 / 512, abs=1e-4)


@pytest.mark.parametrize("num_envs", [4, 16])
def test_another_number_of_games_goes_on_with_the_schedules_at_the_same_step(run, num_envs, capsys):
    """Batches have another size, and a learning rate that has followed three of them has followed their steps."""
    middle = run / "checkpoints" / "checkpoint-000000000256"
    config = going_on(middle, f"num_envs={num_envs}")
    assert f"num_envs={num_envs} (was 8)" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=f"goes on with {num_envs} instead of 8"):
        experiment = built(config)
    scheduler = experiment.trainer._modules["lr_scheduler.teacher"].scheduler
    assert scheduler.last_epoch * num_envs * 8 == 3 * BATCH
    with pytest.warns(UserWarning, match=f"goes on with {num_envs} instead of 8"):
        results = rtpd_atari.run(config, rtpd_classic.CLASSIC)
    assert results["steps"] == TOTAL
    assert results["updates"] == (TOTAL - WARMUP + BATCH) // 8
    end = rates(built(going_on(run)))
    assert end == pytest.approx({"teacher": 0.01, "mlp16": 0.01, "epsilon": 0.05}, abs=1e-4)


def test_other_threads_and_a_longer_run_at_once(run):
    with pytest.warns(UserWarning, match=r"goes on with .*2 instead of 1"):
        results = rtpd_atari.run(going_on(run, "threads=2", f"total_steps={TOTAL + BATCH}"), rtpd_classic.CLASSIC)
    assert results["steps"] == TOTAL + BATCH and results["environment"]["threads"] == 2


def test_a_run_goes_on_with_students_beside_their_teacher_and_back_to_the_same_bits(run, tmp_path):
    """One run goes on beside each other twice, the other only at first."""
    others = tmp_path / "others"
    shutil.copytree(run, others)
    for folder, ways in ((run, ("true", "true")), (others, ("true", "false"))):
        for batches, way in enumerate(ways, start=1):
            longer = f"total_steps={TOTAL + 2 * batches * BATCH}"
            rtpd_atari.run(
                going_on(
                    folder,
                    f"concurrent={way}",
                    longer,
                ),
                rtpd_classic.CLASSIC,
            )
    assert all(equal(last(run, name), last(others, name)) for name in ("teacher", "mlp16"))


def test_a_run_that_was_on_another_device_goes_on_here(run, capsys):
    """A checkpoint of a GPU, as far as a CPU can tell: its configuration says so."""
    change_config(run, device="cuda", cudagraph=True)
    config = going_on(run, "device=cpu", "cudagraph=false", f"total_steps={TOTAL + BATCH}")
    assert (config.device, config.cudagraph) == ("cpu", False)
    assert "device=cpu (was cuda), cudagraph=false (was true)" in capsys.readouterr().out
    assert rtpd_atari.run(config, rtpd_classic.CLASSIC)["steps"] == TOTAL + BATCH


def change_config(run, *dropped, **values):
    """Write other values into the configuration of a run's newest checkpoint, under a seal that fits."""
    path = max((run / "checkpoints").glob("checkpoint-*"))
    manifest = json.loads((path / "manifest.json").read_text())
    config = manifest["metadata"]["config"]
    config.update(values)
    for key in dropped:
        del config[key]
    (path / "manifest.json").write_text(json.dumps(manifest))
    content = (path / "manifest.json").read_bytes()
    seal = json.loads((path / "sealed.json").read_text())
    seal["files"]["manifest.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "sealed.json").write_text(json.dumps(seal))


@pytest.mark.parametrize(
    "overrides",
    [
        ["game=acrobot"],
        ["students=[mlp32]"],
        ["method=teacher_only"],
        ["divergence=reverse_kl"],
        ["td_coeff=0"],
        ["gamma=0.9"],
        ["seed=1"],
        ["teacher_checkpoint=x"],
        ["output_dir=elsewhere"],
        ["rollout_steps=4", "n_step=1"],
    ],
)
def test_what_a_run_learns_stays_and_is_refused_by_name(run, overrides):
    names = ".*, ".join(sorted(override.partition("=")[0] + "=" for override in overrides))
    with pytest.raises(ValueError, match=rf"keeps its configuration but for .*total_steps.*: got {names}.*; leave it"):
        going_on(run, *overrides)


@pytest.mark.parametrize("steps", [TOTAL - BATCH, BATCH * 4])
def test_fewer_steps_than_were_made_are_refused(run, steps):
    with pytest.raises(ValueError, match=rf"goes on: got total_steps={steps} at step {TOTAL}; give more"):
        going_on(run, f"total_steps={steps}")


def test_what_does_not_fit_is_refused_before_the_folder_changes(run):
    """Three games make batches of 24 steps, which are whole updates; of 7 steps an update they would not be."""
    change_config(run, steps_per_update=7)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(ValueError, match="num_envs \\* rollout_steps must be a multiple of steps_per_update: got 3"):
        rtpd_atari.run(going_on(run, "num_envs=3"), rtpd_classic.CLASSIC)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_configuration_of_an_earlier_version_is_upgraded(run):
    """``teacher: {checkpoint: ...}`` is now ``teacher_checkpoint``, and keys that came later get their defaults."""
    change_config(run, "teacher_checkpoint", "schedules", "schedule_steps", teacher={"checkpoint": "dqn.pt"})
    config = going_on(run, f"total_steps={TOTAL + BATCH}")
    assert (config.teacher_checkpoint, config.teacher) == ("dqn.pt", "dqn")
    assert (config.schedules, config.schedule_steps) == ("stretch", None)
    assert rtpd_atari.run(config, rtpd_classic.CLASSIC)["steps"] == TOTAL + BATCH
