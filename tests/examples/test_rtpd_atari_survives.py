"""The main example, interrupted and resumed, and begun with somebody else's teacher."""

import os
import signal
from pathlib import Path

import hydra
import pytest
import rtpd_atari as EXAMPLE
from command import resumed
from torchrl.checkpoint import CheckpointError

from torchrl_rtpd import make_actor, save_weights
from torchrl_rtpd.files.weights import load_weights
from torchrl_rtpd.runs.config import resumed_steps
from torchrl_rtpd.runs.metrics import read_metrics
from torchrl_rtpd.runs.monitor import RunMonitor

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = [
    "total_steps=192",
    "warmup_steps=64",
    "replay_capacity=192",
    "steps_per_update=8",
    "recycle_every_updates=null",
    "evaluate_every_steps=96",
    "evaluate_from_steps=0",
    "evaluation_episodes=2",
    "final_episodes=2",
    "max_episode_steps=20",
    "students=[net17]",
    "progress_bar=false",
    "tensorboard=false",
    "threads=1",
    "checkpoint_every_steps=64",
]


def _config(*overrides, short=SHORT):
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        return hydra.compose("rtpd_atari", [*short, *overrides])


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was sent SIGTERM in the middle, and what it said."""
    folder = tmp_path_factory.mktemp("run")
    patch = pytest.MonkeyPatch()
    watch = RunMonitor.watch

    def watch_and_send(monitor):
        watch(monitor)
        if monitor.clock.steps == 128:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(RunMonitor, "watch", watch_and_send)
    with pytest.raises(SystemExit) as stopped:
        EXAMPLE.run(_config(f"output_dir={folder}"))
    patch.undo()
    return folder, stopped.value.code


def test_a_stopped_run_goes_on_with_its_own_configuration(interrupted):
    """Only resume=PATH is given: seed, students, steps and folder are those of the run, rows go on behind its own."""
    folder, code = interrupted
    assert code == 128 + signal.SIGTERM
    rows = (folder / "metrics.csv").read_text()
    assert resumed_steps(str(folder)) == 128
    command = [f"resume={folder}", "progress_bar=false"]
    config = resumed(_config(*command, short=[]), command)
    assert config.output_dir == str(folder) and config.total_steps == 192 and list(config.students) == ["net17"]
    results = EXAMPLE.run(config)
    assert results["steps"] == 192
    assert results["updates"] == (192 - 64) // 8 + 4
    assert (folder / "metrics.csv").read_text().startswith(rows)
    metrics = read_metrics(folder / "metrics.csv")
    assert metrics["steps"] == sorted(set(metrics["steps"])) and metrics["steps"][-1] == 192
    assert metrics["seconds"] == sorted(metrics["seconds"])


def test_a_resumed_run_keeps_its_configuration(interrupted):
    folder, _ = interrupted
    command = [f"resume={folder}", "game=pong"]
    with pytest.raises(ValueError, match=r"keeps its configuration but for .*: got game=pong \(was .*\); leave"):
        resumed(_config(*command, short=[]), command)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*nothing"):
        resumed(_config(f"resume={tmp_path / 'nothing'}"), [])


def test_a_new_run_does_not_begin_in_the_folder_of_another(interrupted):
    folder, _ = interrupted
    with pytest.raises(RuntimeError, match=r"holds another run, .*: resume it, choose another"):
        EXAMPLE.run(_config(f"output_dir={folder}"))


def test_a_teacher_is_loaded_by_name_of_its_file(tmp_path, capsys):
    """teacher_checkpoint=PATH; the run is a new one all the same."""
    config = _config(f"teacher_checkpoint={tmp_path / 'dqn.safetensors'}")
    env = EXAMPLE.AtariVecEnv(config.game, 1, seed=0)
    save_weights(make_actor("teacher", env.action_spec, seed=77), tmp_path / "dqn.safetensors")
    networks = EXAMPLE.build_networks(config, env)
    env.close()
    wanted = make_actor("teacher", env.action_spec, seed=1)
    load_weights(wanted, tmp_path / "dqn.safetensors")
    for name, tensor in networks["teacher"].state_dict().items():
        assert tensor.equal(wanted.state_dict()[name])
    assert "Teacher: 10 tensors" in capsys.readouterr().out
