"""The main example as a job of Hydra's launchers: run by another process, and side by side in one second."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = [
    "total_steps=96",
    "warmup_steps=64",
    "rollout_steps=4",
    "batch_size=8",
    "steps_per_update=8",
    "replay_capacity=96",
    "evaluate_every_steps=null",
    "evaluation_episodes=1",
    "final_episodes=1",
    "progress_bar=false",
    "tensorboard=false",
    "threads=1",
]
STUDENTS = {"rtpd_atari": "students=[net17]", "rtpd_classic": "students=[mlp16]"}
joblib = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins") is None
    or importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="needs hydra-joblib-launcher",
)


def swept(script, folder, *overrides):
    """Results of all runs of a sweep, by the name of their folder."""
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), "-m", STUDENTS[script], *TINY, *overrides]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "HYDRA_FULL_ERROR": "1"}
    )
    assert done.returncode == 0, done.stderr
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("outputs/*/results.json")}


@joblib
def test_joblibs_workers_run_the_script(tmp_path):
    """In processes of their own, which get the script's functions pickled."""
    assert len(swept("rtpd_atari", tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "seed=0")) == 1


@joblib
def test_jobs_of_one_name_in_one_second_get_a_folder_each(tmp_path):
    """Two at a time, which differ in what the name does not hold."""
    two = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "temperature=0.1,0.5"]
    assert len(swept("rtpd_classic", tmp_path, *two)) == 2


def test_a_sweep_in_one_process_gives_each_run_a_folder(tmp_path):
    assert len(swept("rtpd_classic", tmp_path, "temperature=0.1,0.5")) == 2


def test_every_function_of_the_script_can_be_pickled_by_value():
    """As launchers do it that send a main script elsewhere: by cloudpickle, which takes its functions apart."""
    code = (
        "import runpy, sys, cloudpickle\n"
        "names = runpy.run_path(sys.argv[1], run_name='script')\n"
        "functions = {n: f for n, f in names.items() if callable(f) and getattr(f, '__module__', '') == 'script'}\n"
        "assert 'main' in functions and len(functions) >= 4\n"
        "for name, function in functions.items():\n"
        "    assert callable(cloudpickle.loads(cloudpickle.dumps(function))), name\n"
    )
    pytest.importorskip("cloudpickle")
    for script in STUDENTS:
        command = [sys.executable, "-c", code, str(EXAMPLES / f"{script}.py")]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": _with(EXAMPLES)}
        )
        assert done.returncode == 0, done.stderr


def _with(folder):
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
