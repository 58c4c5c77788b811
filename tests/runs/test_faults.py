"""Faults injected for real: killed processes, full and read-only disks, damaged files, bad games, clocks that jump."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import torch
from parts import ForgetfulEnv, WalkEnv, small_run
from torch import nn
from torchrl.checkpoint import CheckpointError

from torchrl_rtpd import Evaluator, make_actor
from torchrl_rtpd.evaluation.evaluator import EvaluationStopped
from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.checkpoints import newest_checkpoint
from torchrl_rtpd.runs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
TOTAL = 400

# Resumes if there is something to resume, and says at which step it is.
LIFE = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path.insert(0, "tests")
from parts import small_run
from torchrl_rtpd.runs import newest_checkpoint
folder, total = Path(sys.argv[1]), int(sys.argv[2])
run = small_run(folder, total, every_steps=40)
if list(folder.glob("checkpoints/checkpoint-*")):
    run.saver.restore(newest_checkpoint(folder))
run.trainer.register_op("post_steps", lambda: print(run.trainer.collected_frames, flush=True))
run.trainer.train()
"""


def _life(folder, total=TOTAL, **options):
    command = [sys.executable, "-c", LIFE, str(folder), str(total)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)


def test_a_killed_run_goes_on_and_no_row_is_lost_or_doubled(tmp_path):
    """Three times kill -9 at a random step: at most a checkpoint interval and a batch are repeated each time."""
    moments = random.Random(3)
    at = 0
    for _ in range(3):
        with _life(tmp_path) as process:
            first = int(process.stdout.readline())
            assert first == at + 8  # the batch after the last checkpoint
            until = first + moments.randrange(0, 120, 8)
            reached = first
            while reached < until:
                reached = int(process.stdout.readline())
            time.sleep(moments.random() * 0.05)
            process.kill()
        at = int(newest_checkpoint(tmp_path).name.rpartition("-")[2])
        assert reached - at <= 40 + 8
    with _life(tmp_path) as process:
        process.communicate()
    assert process.returncode == 0
    assert read_metrics(tmp_path / "metrics.csv")["steps"] == [
        8.0,
        *(float(steps) for steps in range(16, TOTAL + 1, 16)),
    ]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_kills_of_the_main_example_are_survived(tmp_path):
    """At random points of real runs, starting and saving included; bench_kills.py publishes the same."""
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    from bench_kills import BATCH, INTERVAL, kill_runs

    found = kill_runs(tmp_path, kills=50, seed=1)
    assert found["kills"] == 50 and found["lost"] == found["doubled"] == 0
    assert found["most_repeated"] <= INTERVAL + BATCH


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(tmp_path):
    """Thirty times, a few milliseconds into saving after saving: the newest of each is whole."""
    moments = random.Random(0)
    network = nn.Linear(200, 200)
    checkpoint = VerifiedCheckpoint(network=network)
    for life in range(30):
        checkpoint.save(tmp_path / f"checkpoint-{life:06d}")
        child = os.fork()
        if child == 0:
            number = life * 1_000
            while True:
                number += 1
                checkpoint.save(tmp_path / f"checkpoint-{life:06d}")  # over the one before, and beside it
                checkpoint.save(tmp_path / f"other-{number}")
        time.sleep(0.02 + 0.08 * moments.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path in tmp_path.glob("[a-z]*"):  # what has its name is whole; what is half written has another
            VerifiedCheckpoint.verify(path)
        for path in tmp_path.glob("other-*"):
            shutil.rmtree(path)
        # In the moment in which one replaces the other the old one has its other name.
        assert (tmp_path / f"checkpoint-{life:06d}").exists() or list(tmp_path.glob(".checkpoint-*.old-*"))


def test_a_full_disk_costs_checkpoints_and_nothing_else(tmp_path):
    """A limit of 64 kB a file: the run warns, ends as planned, and the checkpoint before the limit is whole."""
    with _life(tmp_path, total=48) as process:
        process.communicate()
    before = newest_checkpoint(tmp_path)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))

    with _life(tmp_path, total=160, preexec_fn=limit) as process:
        steps = process.communicate()[0].split()
    assert process.returncode == 0 and steps[-1] == "160"
    assert newest_checkpoint(tmp_path) == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")] == []
    with _life(tmp_path, total=160) as process:  # there is space again
        process.communicate()
    assert newest_checkpoint(tmp_path).name == "checkpoint-000000000160"


@pytest.fixture
def read_only():
    """A folder that this process may read but not write; a superuser becomes somebody else meanwhile."""
    folder = Path(tempfile.mkdtemp())
    VerifiedCheckpoint(network=nn.Linear(2, 2)).save(folder / "checkpoint-000000000000")
    folder.chmod(0o555)
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    yield folder
    if superuser:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_an_error_that_names_it(read_only):
    """And what is in it stays usable."""
    with pytest.raises(PermissionError, match=r"Permission denied: .*checkpoint-000000000008"):
        VerifiedCheckpoint(network=nn.Linear(2, 2)).save(read_only / "checkpoint-000000000008")
    assert newest_checkpoint(read_only).name == "checkpoint-000000000000"


def test_a_run_goes_on_where_its_checkpoints_cannot_be_written(tmp_path):
    """With a warning each time; in /proc nobody may make a folder."""
    run = small_run(tmp_path, 48)
    run.saver.rotation.directory = Path("/proc/checkpoints")
    with pytest.warns(UserWarning, match=r"the checkpoint of step \d+ could not be written"):
        run.trainer.train()
    assert run.trainer.collected_frames == 48


def test_a_changed_byte_in_any_file_of_a_checkpoint_is_noticed(tmp_path):
    """In the middle, at the start and at the end of each; nothing is loaded."""
    run = small_run(tmp_path, 48)
    run.trainer.train()
    path = run.saver.latest()
    other = small_run(tmp_path, 48)
    untouched = [parameter.clone() for parameter in other.loss.parameters()]
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len(files) > 20
    for file in files:
        content = file.read_bytes()
        for place in {0, len(content) // 2, len(content) - 2}:
            changed = bytearray(content)
            changed[place] ^= 0x11
            file.write_bytes(changed)
            with pytest.raises(CheckpointError, match=r"is damaged|must be a checkpoint folder|files of its seal"):
                other.saver.restore(path)
        file.write_bytes(content)
    assert all(torch.equal(*pair) for pair in zip(untouched, other.loss.parameters(), strict=True))
    other.saver.restore(path)


class RaisingEnv(ForgetfulEnv):
    """Games that break after some steps."""

    left = 30

    def _step(self, tensordict):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the emulator broke")
        return super()._step(tensordict)


def test_games_that_raise_end_the_run_and_leave_a_checkpoint_to_go_on_from(tmp_path):
    run = small_run(tmp_path, TOTAL, env=RaisingEnv())
    with pytest.raises(RuntimeError, match="the emulator broke"):
        run.trainer.train()
    run.trainer.shutdown()
    assert run.collector.closed
    resumed = small_run(tmp_path, 160, env=ForgetfulEnv())
    resumed.saver.restore(newest_checkpoint(tmp_path))
    assert 0 < resumed.trainer.collected_frames <= 56
    resumed.trainer.train()
    assert resumed.trainer.collected_frames == 160


class EndlessEnv(WalkEnv):
    """Games that are never over, in slow motion."""

    def _step(self, tensordict):
        time.sleep(0.02)
        step = super()._step(tensordict)
        return step.update({name: torch.zeros_like(step[name]) for name in ("done", "terminated")})


def test_an_evaluation_that_hangs_is_given_up_at_its_bound(tmp_path):
    """With a warning and without scores; training goes on."""
    run = small_run(tmp_path, 64, evaluate_every_steps=32)
    run.monitor.evaluator.env = EndlessEnv()
    run.monitor.evaluator.max_steps = 1_000_000
    run.monitor.evaluator.max_seconds = 0.2
    with pytest.warns(UserWarning, match=r"no scores at step \d+: an evaluation was given up .* max_seconds=0\.2"):
        start = time.monotonic()
        run.trainer.train()
    assert time.monotonic() - start < 60
    assert run.trainer.collected_frames == 64
    assert not any(score == score for score in read_metrics(tmp_path / "metrics.csv")["teacher/score"])


def test_an_evaluation_says_why_it_gave_up():
    """Time, or a run that is to end."""
    env = WalkEnv()
    actor = make_actor("net17", env.action_spec, seed=0)
    evaluator = Evaluator(WalkEnv, episodes=2, max_seconds=1e-9)
    with pytest.raises(EvaluationStopped, match=r"after 0 steps and 0 s: its bound is max_seconds=1e-09; it gives no"):
        evaluator(actor)
    evaluator.max_seconds = None
    with pytest.raises(EvaluationStopped, match="the run is to end"):
        evaluator(actor, should_stop=lambda: True)
    with pytest.raises(ValueError, match="max_seconds must be positive: got 0"):
        Evaluator(WalkEnv, episodes=2, max_seconds=0)


def test_a_clock_that_jumps_changes_no_order(tmp_path, monkeypatch):
    """Ten days back in the middle of the run, twenty ahead: checkpoints go by steps, seconds by a clock nobody sets."""
    run = small_run(tmp_path, 160)
    true_time = time.time

    def jump():
        if run.trainer.collected_frames == 64:
            monkeypatch.setattr(time, "time", lambda: true_time() - 10 * 86_400)
            for path in run.saver.rotation.checkpoints():
                os.utime(path, (true_time() + 5 * 86_400,) * 2)
        if run.trainer.collected_frames == 104:
            monkeypatch.setattr(time, "time", lambda: true_time() + 20 * 86_400)

    run.trainer.register_op("post_steps", jump)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.trainer.train()
    steps = [int(path.name.rpartition("-")[2]) for path in run.saver.rotation.checkpoints()]
    assert steps == sorted(steps) and newest_checkpoint(tmp_path).name == "checkpoint-000000000160"
    seconds = read_metrics(tmp_path / "metrics.csv")["seconds"]
    assert seconds == sorted(seconds) and seconds[-1] < 600
