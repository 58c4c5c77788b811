"""Who may write a run's folder: claims, refusals, locks that were left behind, and runs that fail before their time."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from parts import ForgetfulEnv, small_run

from torchrl_rtpd.runs.checkpoints import SaveCheckpoints, newest_checkpoint
from torchrl_rtpd.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]

# Claims a folder, says so, and stays.
HOLDER = """
import sys, time
from torchrl_rtpd.runs.folder import RunFolder
folder = RunFolder(sys.argv[1]).claim(resume=True)
print("held", flush=True)
time.sleep(600)
"""


def contents(folder):
    """Bytes of every file, by its name."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def lock_of(place, **changes):
    """Change a folder's lock as another process would have written it."""
    path = place / "run.lock"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a run of 48 steps has come to its end."""
    folder = tmp_path_factory.mktemp("finished")
    run = small_run(folder, 48)
    run.trainer.train()
    run.monitor.save_last()
    run.monitor.folder.release()
    return folder


def test_a_folder_is_claimed_once_and_released(tmp_path):
    """The lock names host and process, and goes with the claim."""
    with RunFolder(tmp_path / "run").claim() as folder:
        lock = json.loads((tmp_path / "run" / "run.lock").read_text())
        assert (lock["host"], lock["process"]) == (socket.gethostname(), os.getpid())
        assert folder.held and not folder.resumed
        folder.claim()  # once more
    assert not folder.held and list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("file", "left"),
    [
        ("checkpoints/checkpoint-000000000048/sealed.json", "up to checkpoint-000000000048"),
        ("checkpoint-000000000048/sealed.json", "up to checkpoint-000000000048"),
        ("results.json", "of which results.json is left"),
        ("metrics.csv", "of which metrics.csv is left"),
        ("weights/teacher.safetensors", "of which teacher.safetensors is left"),
    ],
)
def test_a_folder_with_the_results_of_another_run_is_refused_unchanged(tmp_path, file, left):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("kept")
    before = contents(tmp_path)
    with pytest.raises(RuntimeError, match=f"holds another run, {left}: resume it, choose another folder or delete"):
        RunFolder(tmp_path).claim()
    assert contents(tmp_path) == before
    assert RunFolder(tmp_path).claim(resume=True).resumed


def test_other_files_are_nobodys_results(tmp_path):
    """A configuration and hydra's folder come before a claim; a first phase has a folder of its own."""
    (tmp_path / "config.yaml").write_text("seed: 0")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "teacher" / "weights").mkdir(parents=True)
    assert RunFolder(tmp_path).claim().held


def test_a_folder_that_a_live_process_holds_is_refused_and_after_its_kill_taken(tmp_path):
    """With process, host and remedy; a killed process leaves its lock, which is seen to be void."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        before = contents(tmp_path)
        for resume in (False, True):
            with pytest.raises(
                RuntimeError, match=rf"held by another run, process {process.pid} on host .*: wait for its end or"
            ):
                RunFolder(tmp_path).claim(resume=resume)
        assert contents(tmp_path) == before
        process.kill()
    assert contents(tmp_path) == before
    assert RunFolder(tmp_path).claim().held


def test_the_lock_of_another_host_is_refused_with_its_remedy(tmp_path):
    """Nobody can see from here whether that process lives."""
    holder = RunFolder(tmp_path).claim()
    lock_of(tmp_path, host="elsewhere")
    with pytest.raises(RuntimeError, match=r"on host elsewhere since .*gone for sure, delete .*run\.lock"):
        RunFolder(tmp_path).claim()
    (tmp_path / "run.lock").unlink()
    assert RunFolder(tmp_path).claim().held
    holder.release()


@pytest.mark.parametrize(
    "changes", [{"folder": -1}, {"process": 2**22 + 1}, {"process_started": "another boot:1", "process": 1}]
)
def test_a_lock_that_was_left_behind_is_replaced(tmp_path, changes):
    """Copied with its folder; of a process that is gone; of one whose number another process has by now."""
    holder = RunFolder(tmp_path).claim()
    lock_of(tmp_path, **changes)
    later = RunFolder(tmp_path).claim()
    assert later.held
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    holder.release()
    assert (tmp_path / "run.lock").exists()  # it is not the holder's any more


def test_a_lock_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "run.lock").write_text("{")
    with pytest.raises(RuntimeError, match=r"one whose run\.lock cannot be read: .*delete"):
        RunFolder(tmp_path).claim()


def test_a_lock_without_an_identity_is_refused(tmp_path):
    """Whatever wrote it, a person has to look."""
    (tmp_path / "run.lock").write_text('{"run": 1}')
    with pytest.raises(RuntimeError, match=r"whose run\.lock cannot be read"):
        RunFolder(tmp_path).claim()


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RuntimeError, match=r"must be a folder: got a file, .*run; choose another name"):
        RunFolder(tmp_path / "run").claim()
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_was_moved_during_the_run_is_named(tmp_path):
    folder = RunFolder(tmp_path / "run").claim()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match=r"run was moved or deleted: this run writes nothing more"):
        folder.check()


def test_a_later_run_of_this_process_takes_the_folder_and_the_earlier_one_may_not_write(tmp_path):
    """As in a notebook, where a failed run's objects live on."""
    earlier = RunFolder(tmp_path).claim()
    later = RunFolder(tmp_path).claim()
    later.check()
    with pytest.raises(RuntimeError, match=rf"was lost to another run, process {os.getpid()} on host"):
        earlier.check()
    earlier.release()
    later.check()


def test_a_lock_that_was_deleted_by_hand_is_made_again(tmp_path):
    folder = RunFolder(tmp_path).claim()
    (tmp_path / "run.lock").unlink()
    folder.check()
    assert (tmp_path / "run.lock").exists()


def test_only_a_claimed_folder_may_be_written(tmp_path):
    with pytest.raises(RuntimeError, match=r"writes the folder it has claimed: .* is not; call claim\(\) before"):
        RunFolder(tmp_path).check()


def test_a_forked_child_releases_nothing(tmp_path):
    folder = RunFolder(tmp_path).claim()
    child = os.fork()
    if child == 0:
        folder.release()
        os._exit(0)
    os.waitpid(child, 0)
    folder.check()
    assert (tmp_path / "run.lock").exists()


def test_of_many_that_want_a_folder_at_once_one_gets_it(tmp_path):
    """Eight processes, one that holds it; and a void lock before."""
    script = """
import os, sys
from torchrl_rtpd.runs.folder import RunFolder
tried, over = os.pipe(), os.pipe()
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        try:
            folder = RunFolder(sys.argv[1]).claim()
        except RuntimeError:
            os.write(tried[1], b"-")
            os._exit(1)
        os.write(tried[1], b"+")
        os.read(over[0], 1)  # until all have tried
        folder.check()
        os._exit(0)
    children.append(child)
for _ in children:
    os.read(tried[0], 1)
os.write(over[1], b"." * 8)
print(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children))
"""
    holder = RunFolder(tmp_path).claim()
    lock_of(tmp_path, process=2**22 + 1)
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    holder.release()


def test_fresh_names_are_never_shared(tmp_path):
    """Twenty threads that ask in the same moment."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(RunFolder.fresh(tmp_path / "run"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {folder.path.name for folder in found} == {"run", *(f"run-{number}" for number in range(2, 21))}


def test_writing_is_put_off_in_a_resumed_folder_until_the_first_batch(tmp_path):
    written = []
    new = RunFolder(tmp_path / "new").claim()
    new.once_begun(lambda: written.append("new"))
    resumed = RunFolder(tmp_path / "new").claim(resume=True)
    resumed.once_begun(lambda: written.append("resumed"))
    assert written == ["new"]
    resumed.begin()
    resumed.begin()
    assert written == ["new", "resumed"]


# Runs


def test_a_second_run_in_a_used_folder_changes_no_byte(finished):
    """Refused when training begins; its last weights are not written either."""
    before = contents(finished)
    run = small_run(finished, 96)
    with pytest.raises(RuntimeError, match="holds another run, up to checkpoint-000000000048: resume it"):
        run.trainer.train()
    run.trainer.shutdown()
    run.monitor.save_last()
    assert contents(finished) == before


def test_checkpoints_alone_are_claimed_as_well(tmp_path):
    """Without a monitor the folder of the checkpoints is the run's."""
    run = small_run(tmp_path / "watched", 16)
    run.trainer.checkpoint = run.trainer.checkpoint_rotation = None
    saver = SaveCheckpoints(tmp_path / "alone", every_steps=8)
    assert saver.folder.path == tmp_path / "alone"
    (tmp_path / "alone" / "checkpoint-000000000008").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="holds another run, up to checkpoint-000000000008"):
        saver._first()


class BreaksAt(ForgetfulEnv):
    """Games that break at a step of their choice."""

    left = 0

    def _step(self, tensordict):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the emulator broke")
        return super()._step(tensordict)


@pytest.mark.parametrize("stage", ["restore", "setup", "first batch", "first update"])
def test_a_resumed_run_that_fails_before_its_first_batch_is_over_changes_no_byte(finished, stage):
    """Each time with everything that a script does in its ``finally``."""
    before = contents(finished)
    run = small_run(finished, 96, env=BreaksAt() if stage == "first batch" else None)

    def fail(*_, **__):
        raise RuntimeError("the emulator broke")

    if stage == "restore":
        run.collector.load_state_dict = fail
    if stage == "setup":
        run.trainer.register_op("setup", fail)
    if stage == "first update":
        run.trainer.register_op("post_optim", fail)
    with pytest.raises(Exception, match="the emulator broke"):
        try:
            run.saver.restore(newest_checkpoint(finished))
            run.trainer.train()
        finally:
            run.trainer.shutdown()
            run.monitor.save_last()
    run.monitor.folder.release()
    assert contents(finished) == before


def test_a_run_that_lost_its_folder_writes_no_more(tmp_path):
    """It ends with an error at the next batch, and its last weights stay out."""
    run = small_run(tmp_path, 400)

    def lose():
        if run.trainer.collected_frames == 64:
            (tmp_path / "run.lock").unlink()
            run.thief = RunFolder(tmp_path).claim(resume=True)
            run.before = contents(tmp_path)

    run.trainer.register_op("batch_process", lambda batch: lose() or batch)
    with pytest.raises(RuntimeError, match="was lost to another run"):
        run.trainer.train()
    with pytest.warns(UserWarning, match="the last weights are not saved: .* was lost to another run"):
        run.monitor.save_last()
    assert contents(tmp_path) == run.before


LIFE = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path.insert(0, "tests")
print("starts", flush=True)
from parts import small_run
from torchrl_rtpd.runs import newest_checkpoint
folder = Path(sys.argv[1])
run = small_run(folder, 96)
run.trainer.register_op("post_optim", lambda: print("learns", flush=True))
print("built", flush=True)
if sys.argv[2] == "resume":
    run.saver.restore(newest_checkpoint(folder))
    print("restored", flush=True)
try:
    run.trainer.train()
finally:
    run.trainer.shutdown()
    run.monitor.save_last()
"""


@pytest.mark.parametrize("how", ["new", "resume"])
def test_a_second_run_killed_before_its_first_batch_leaves_the_first_ones_files(finished, how):
    """At random moments after it was built; bench_kills.py --starts 50 does it with the main example."""
    moments = random.Random(how)
    before = contents(finished)
    for _ in range(2):
        command = [sys.executable, "-c", LIFE, str(finished), how]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as life:
            for line in life.stdout:
                if line.strip() == "built":
                    break
            threading.Timer(moments.random() * 0.05, lambda life=life: os.kill(life.pid, signal.SIGKILL)).start()
            told = life.stdout.read().split()
        after = contents(finished)
        if "learns" not in told:
            after.pop("run.lock", None)
            assert after == before


def test_two_runs_that_start_together_write_two_folders(tmp_path):
    """Default names are made in one step."""
    first, second = RunFolder.fresh(tmp_path / "now"), RunFolder.fresh(tmp_path / "now")
    runs = [small_run(tmp_path / "unused", 16) for _ in range(2)]
    assert first.path != second.path and all(not run.monitor.folder.held for run in runs)
    assert not (tmp_path / "unused").exists()
