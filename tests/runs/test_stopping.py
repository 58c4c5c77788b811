"""Ending a run: on a signal at the end of the batch, on a second one at once, and when students have caught up."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from parts import BATCH_STEPS, small_run

from torchrl_rtpd import Scores
from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.checkpoints import newest_checkpoint
from torchrl_rtpd.runs.metrics import read_metrics
from torchrl_rtpd.runs.stopping import StopOnSignal, StopWhenCaughtUp, catches_up

ROOT = Path(__file__).parents[2]


def _signalled(run, number, at_steps):
    """Send this process a signal in the middle of the batch that reaches these steps."""
    sent = []

    def send(*_):
        if run.trainer.collected_frames >= at_steps and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    run.trainer.register_op("post_optim_log", send)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_its_batch_with_a_checkpoint(tmp_path, capfd, number):
    """All updates of the batch are made, the environments closed, and the earlier handler has the signal again."""
    before = signal.getsignal(number)
    run = small_run(tmp_path, 400)
    stopper = StopOnSignal()
    stopper.register(run.trainer)
    _signalled(run, number, at_steps=64)
    run.trainer.train()
    assert stopper.received == number
    assert run.trainer.collected_frames == 64 and run.trainer._optim_count == (64 - 16) // BATCH_STEPS * 2 + 2
    assert newest_checkpoint(tmp_path).name == "checkpoint-000000000064"
    assert run.collector.closed
    assert signal.getsignal(number) is before
    assert run.evaluator(run.networks["teacher"]).episodes == 2  # games after the run go to their end
    assert "stopping after this batch; a second one leaves at once" in capfd.readouterr().err
    latest = str(run.saver.latest())
    assert run.saver.how_to_resume == (
        f"To go on from step 64: build the trainer by the same lines and call saver.restore({latest!r}) right before "
        "train()"
    )


def test_a_signal_during_an_evaluation_does_not_wait_for_its_games(tmp_path):
    """The evaluation is given up without scores, and made up for when the run is resumed."""
    run = small_run(tmp_path, 400)
    StopOnSignal().register(run.trainer)
    steps = []
    step = run.evaluator.env.step_and_maybe_reset

    def slow(tensordict):
        steps.append(1)
        if run.trainer.collected_frames == 48 and len(steps) > 65:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(tensordict)

    run.evaluator.env.step_and_maybe_reset = slow
    run.trainer.train()
    played = len(steps)
    assert run.trainer.collected_frames == 48
    scores = read_metrics(tmp_path / "metrics.csv")["teacher/score"]
    assert sum(score == score for score in scores) == 1 and played < 90
    resumed = small_run(tmp_path, 96)
    resumed.saver.restore(newest_checkpoint(tmp_path))
    resumed.trainer.train()
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert [s for s, score in zip(metrics["steps"], metrics["teacher/score"], strict=True) if score == score] == [
        16.0,
        56.0,
        96.0,
    ]


SCRIPT = """
import sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path.insert(0, "tests")
from parts import small_run
from torchrl_rtpd.runs import StopOnSignal
run = small_run(Path(sys.argv[1]), 100_000, every_steps=40)
StopOnSignal().register(run.trainer)
run.trainer.register_op("post_steps", lambda: print(run.trainer.collected_frames, flush=True))
if len(sys.argv) > 2:  # a batch that does not end
    run.trainer.register_op("post_optim_log", lambda *_: time.sleep(60) if run.trainer._stop_training else None)
run.trainer.train()
"""


def test_a_second_signal_leaves_at_once_and_the_last_checkpoint_is_whole(tmp_path):
    """Even where the batch would go on for a minute."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "endless"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < 96:
            pass
        process.send_signal(signal.SIGTERM)
        while "stopping after this batch" not in process.stderr.readline():
            pass
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        assert time.monotonic() - start < 5
    VerifiedCheckpoint.verify(newest_checkpoint(tmp_path))


def test_signals_stay_where_they_are_outside_the_main_thread():
    """Where Python would refuse to take them."""
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=StopOnSignal().take)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_catching_up_by_hand():
    """Ten games each of 90 +- 10 against 100 +- 10 and a random player's 0, at a share of 0.8.

    The student leads by 90 - 80 = 10; standard errors are 10 / sqrt(10) and 0.8 times that, together 4.05; times 1.645
    that is 6.66, less than 10. At a share of 0.85 the lead of 5 is not enough.
    """
    spread = [10 * sign * (9 / 10) ** 0.5 for sign in (-1, 1)] * 5  # sample deviation 10
    student = Scores(tuple(90 + x for x in spread), 0, 0)
    teacher = Scores(tuple(100 + x for x in spread), 0, 0)
    assert student.std == pytest.approx(10)
    assert catches_up(student, teacher, 0.0, share=0.8)
    assert not catches_up(student, teacher, 0.0, share=0.85)


def test_nobody_catches_up_with_a_teacher_that_is_no_better_than_chance():
    games = Scores((1.0, 2.0), 0, 0)
    assert not catches_up(games, games, 1.5)
    assert not catches_up(Scores((9.0,), 0, 0), games, 0.0)  # one game shows no spread


def test_training_ends_when_every_student_held_the_gap_several_times_in_a_row(tmp_path):
    """A bad evaluation in between begins the count again; the students' best networks stay kept."""
    run = small_run(tmp_path, 1_000, evaluate_every_steps=16)
    stopper = StopWhenCaughtUp(run.monitor, evaluations=2, share=0.9)
    stopper.register(run.trainer)
    good, bad = Scores((10.0, 10.0), 0, 0), Scores((1.0, 1.0), 0, 0)
    students = iter([good, bad, good, good, good])

    def evaluate(network, seed=None, epsilon=None, should_stop=None):
        if epsilon == 1.0:
            return Scores((0.0, 0.0), 0, 0)
        return good if network is run.networks["teacher"] else next(students)

    run.monitor.evaluator = SimpleEvaluator(evaluate)
    run.trainer.train()
    assert stopper.caught_up
    assert run.trainer.collected_frames == 64  # the fourth evaluation: 16, 32, 48, 64
    assert run.monitor.best_scores["net17"].mean == 10.0
    assert "net17 held 90% of the teacher's score for 2 evaluations" in run.trainer._stop_reason


class SimpleEvaluator(SimpleNamespace):
    """Scores as a test wants them."""

    def __init__(self, evaluate):
        super().__init__(evaluate=evaluate, seed=0)

    def __call__(self, *args, **kwargs):
        return self.evaluate(*args, **kwargs)


@pytest.mark.parametrize("option", [{"evaluations": 0}, {"share": 0.0}, {"share": 1.5}, {"confidence": 0.5}])
def test_options_out_of_range_are_refused(option):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=rf"{name} must lie in .*: got {value}"):
        StopWhenCaughtUp(SimpleNamespace(networks={"teacher": None, "net17": None}), **option)


def test_a_run_without_students_cannot_wait_for_them():
    with pytest.raises(ValueError, match=r"only students catch up: got a monitor of \['teacher'\]"):
        StopWhenCaughtUp(SimpleNamespace(networks={"teacher": None}))
