"""Going on as if nothing had happened: interrupted runs against uninterrupted ones, bit for bit."""

import shutil
from functools import partial

import pytest
import torch
from parts import BATCH_STEPS, ForgetfulEnv, bits, small_run, whole_state
from tensordict import TensorDict
from torchrl.checkpoint import CheckpointError
from torchrl.data import LazyTensorStorage, ListStorage, TensorDictReplayBuffer

from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.checkpoints import newest_checkpoint
from torchrl_rtpd.runs.components import ReplayState
from torchrl_rtpd.runs.metrics import read_metrics

TOTAL = 160


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A whole run on games that can be saved, its final state and its folder with all checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    run = small_run(folder, TOTAL)
    run.trainer.train()
    return run, whole_state(run), folder


CLOCKS = ("seconds", "training_seconds", "cpu_seconds", "steps_per_second")


def _resumed(folder, checkpoint, **options):
    """The same run built from scratch, as another process would, and resumed."""
    torch.manual_seed(12345)  # whatever the new process drew before
    run = small_run(folder, TOTAL, **options)
    run.saver.restore(folder / "checkpoints" / checkpoint)
    run.trainer.train()
    return run


def _rows(folder):
    """Metrics without clocks."""
    metrics = read_metrics(folder / "metrics.csv")
    return {name: str(column) for name, column in metrics.items() if name not in CLOCKS}


@pytest.mark.parametrize("steps", [0, 16, 48, 88, 144])
def test_an_interrupted_run_is_bit_identical_to_an_uninterrupted_one(uninterrupted, tmp_path, steps):
    """Networks, targets, optimisers, schedules, exploration, games, replay, generators, counters, scores and rows."""
    _, wanted, whole = uninterrupted
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    run = _resumed(folder, f"checkpoint-{steps:012d}")
    state = whole_state(run)
    for name in wanted:
        assert state[name] == wanted[name], name
    assert state.keys() == wanted.keys()
    assert _rows(folder) == _rows(whole)


DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_a_run_on_a_device_goes_on_in_the_same_bits(tmp_path, monkeypatch, device, captured):
    """Also with replay and optimisers on a GPU, and where the update is captured anew; cuDNN's algorithms are fixed."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    run = small_run(tmp_path / "whole", TOTAL, device=device, captured=captured)
    run.trainer.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    resumed = _resumed(tmp_path / "run", f"checkpoint-{88:012d}", device=device, captured=captured)
    assert {value.device.type for value in resumed.buffer[:].values(True, True)} == {device}
    assert next(resumed.loss.parameters()).device.type == device
    state, wanted = whole_state(resumed), whole_state(run)
    assert [name for name in wanted if state[name] != wanted[name]] == []
    assert state.keys() == wanted.keys()
    assert _rows(tmp_path / "run") == _rows(tmp_path / "whole")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("there, here", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(tmp_path, there, here):
    """Networks and replay come back to the bit where they are now; the rest of the run is another, by rounding."""
    run = small_run(tmp_path, 88, device=there)
    run.trainer.train()
    other = small_run(tmp_path, TOTAL, device=here)
    other.saver.restore(run.saver.latest())
    assert bits(dict(other.loss.state_dict())) == bits(dict(run.loss.state_dict()))
    assert bits(other.buffer[:].to_dict()) == bits(run.buffer[:].to_dict())
    other.trainer.train()
    assert other.trainer.collected_frames == TOTAL


def test_a_replay_keeps_its_generator_where_the_saved_one_is_of_another_device(tmp_path):
    """It could not sample with it; without a GPU, a state that says it is of one."""
    run = small_run(tmp_path, 48)
    run.trainer.train()
    state = ReplayState(run.buffer).state_dict()
    own, (values, _) = run.buffer._rng, state["_rng"]
    state["_rng"] = (values, "cuda:0" if own.device.type == "cpu" else "cpu")
    ReplayState(run.buffer).load_state_dict(state)
    assert run.buffer._rng is own
    assert run.buffer.sample().shape == (4,)


def test_replay_and_its_priorities_come_back(tmp_path):
    """With prioritised sampling, whose trees are no data, and all entries as they were."""
    run = small_run(tmp_path, 96, prioritized=True)
    run.trainer.train()
    buffer = run.buffer
    other = small_run(tmp_path, 96, prioritized=True)
    other.saver.restore(run.saver.latest())
    index = torch.arange(len(buffer))
    assert len(other.buffer) == len(buffer) > 0
    assert bits(other.buffer[:].to_dict()) == bits(buffer[:].to_dict())
    for tree in ("_sum_tree", "_min_tree"):
        assert torch.equal(getattr(other.buffer.sampler, tree)[index], getattr(buffer.sampler, tree)[index])
    torch.manual_seed(5)
    wanted = buffer.sample()
    torch.manual_seed(5)
    assert bits(other.buffer.sample().to_dict()) == bits(wanted.to_dict())


@pytest.mark.parametrize("replay", [True, False])
def test_two_resumes_are_bit_identical_where_games_cannot_be_saved(tmp_path, replay):
    """Games begin from scratch, with or without the replay; all else goes on the same way twice."""
    first = tmp_path / "first"
    run = small_run(first, 88, env=ForgetfulEnv(), replay=replay)
    run.trainer.train()
    second = tmp_path / "second"
    shutil.copytree(first, second)
    runs = [_resumed(folder, f"checkpoint-{88:012d}", env=ForgetfulEnv(), replay=replay) for folder in (first, second)]
    assert whole_state(runs[0]) == whole_state(runs[1])
    assert runs[0].trainer.collected_frames == TOTAL
    assert _rows(first) == _rows(second)


def test_the_games_before_a_resume_are_closed(tmp_path):
    """No n-step sum and no stack reaches from an old game into a new one."""
    run = small_run(tmp_path, 64, env=ForgetfulEnv())
    run.trainer.train()
    resumed = small_run(tmp_path, 64, env=ForgetfulEnv())
    resumed.saver.restore(run.saver.latest())
    storage = resumed.buffer.storage
    newest = torch.arange(storage._num_written - 2, storage._num_written) % storage.max_size
    assert storage._stop[newest].all()
    assert (storage._ring._final_index[newest] >= 0).all()


def test_without_the_replay_it_is_filled_by_playing_and_those_steps_do_not_count(tmp_path):
    run = small_run(tmp_path, 88, replay=False)
    run.trainer.train()
    resumed = small_run(tmp_path, 88, replay=False)
    resumed.saver.restore(run.saver.latest())
    assert len(resumed.buffer) == 16  # the warm-up's size
    assert resumed.trainer.collected_frames == resumed.collector._frames == 88


def test_rows_after_the_checkpoint_are_cut_off_and_come_again(tmp_path):
    """None is lost, none doubled, and steps and seconds only grow."""
    run = small_run(tmp_path, TOTAL)
    run.trainer.train()
    assert read_metrics(tmp_path / "metrics.csv")["steps"][-1] == TOTAL
    resumed = small_run(tmp_path, TOTAL)
    resumed.saver.restore(tmp_path / "checkpoints" / f"checkpoint-{88:012d}")
    assert read_metrics(tmp_path / "metrics.csv")["steps"][-1] == TOTAL  # nothing changes before the first batch
    resumed.trainer.train()
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics["steps"] == [8.0, *(float(steps) for steps in range(16, TOTAL + 1, 16))]
    assert metrics["seconds"] == sorted(metrics["seconds"])


def test_metrics_that_were_changed_are_not_cut(tmp_path):
    run = small_run(tmp_path, 48)
    run.trainer.train()
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().replace("steps", "STEPS"))
    resumed = small_run(tmp_path, 48)
    with pytest.raises(CheckpointError, match=r"bytes of .*metrics.csv unchanged"):
        resumed.saver.restore(run.saver.latest())


def test_the_progress_bar_goes_on(tmp_path):
    run = small_run(tmp_path, 48)
    run.trainer.train()
    resumed = small_run(tmp_path, 96)
    resumed.saver.restore(run.saver.latest())
    assert resumed.monitor._bar.n == resumed.monitor._bar.initial == 48


def test_tensorboard_hides_what_came_after_the_checkpoint(tmp_path):
    """The reader drops the steps that are run again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torchrl.record.loggers import TensorboardLogger

    def logger():
        return TensorboardLogger("events", log_dir=str(tmp_path))

    run = small_run(tmp_path, TOTAL, logger=logger())
    run.trainer.train()
    run.logger.experiment.close()
    resumed = small_run(tmp_path, TOTAL, logger=logger())
    resumed.saver.restore(tmp_path / "checkpoints" / f"checkpoint-{88:012d}")
    resumed.trainer.train()
    resumed.logger.experiment.close()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    steps = [event.step for event in events.Scalars("score/teacher")]
    assert steps == [16, 48, 96, 144, 160]


def test_checkpoints_rotate_and_the_best_student_stays(tmp_path):
    """The last ones by step, and the one taken right after the students' best evaluation."""
    run = small_run(tmp_path, TOTAL, every_steps=24)
    run.saver.rotation.keep_last = 2
    run.trainer.train()
    kept = run.saver.rotation.checkpoints()
    best = run.saver.rotation.best()
    assert kept[-1].name == f"checkpoint-{TOTAL:012d}"
    assert len(kept) == 3 if best not in kept[-2:] else 2
    scores = read_metrics(tmp_path / "metrics.csv")
    index = scores["net17/score"].index(max(score for score in scores["net17/score"] if score == score))
    assert int(best.name.split("-")[1]) == scores["steps"][index]


def test_checkpoints_of_a_later_past_are_dropped(tmp_path):
    """A run resumed from an earlier checkpoint leaves none that is newer than itself."""
    run = small_run(tmp_path, TOTAL)
    run.trainer.train()
    resumed = small_run(tmp_path, 96)
    resumed.saver.restore(tmp_path / "checkpoints" / f"checkpoint-{48:012d}")
    resumed.saver.rotation.keep_last = 1
    resumed.trainer.train()
    left = [int(path.name[-3:]) for path in resumed.saver.rotation.checkpoints()]
    assert left[-1] == 96 and len(left) <= 2  # the last, and the best


def test_the_newest_whole_checkpoint_of_a_run_is_found(tmp_path):
    """By the run's folder; a damaged one is passed over with a warning, and refused when named."""
    run = small_run(tmp_path, 96)
    run.trainer.train()
    newest = newest_checkpoint(tmp_path)
    assert newest == run.saver.latest() and newest.name == f"checkpoint-{96:012d}"
    file = next(newest.glob("components/*loss_module/tensors.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="loss_module/tensors.safetensors' of the checkpoint .* is damaged"):
        assert newest_checkpoint(tmp_path).name == f"checkpoint-{88:012d}"
    with pytest.raises(CheckpointError, match="is damaged: it has changed since it was written"):
        newest_checkpoint(newest)


def test_a_run_with_other_parts_is_refused(tmp_path):
    """The message names the parts."""
    run = small_run(tmp_path, 16)
    run.trainer.train()
    other = small_run(tmp_path, 16)
    other.trainer.register_module("another", other.hook)
    with pytest.raises(CheckpointError, match=r"lacks \['trainer_module.another'\]"):
        other.saver.restore(run.saver.latest())


def test_a_checkpoint_with_the_step_that_earlier_versions_saved_is_resumed(tmp_path):
    """The step has no state; a run with another step than ours refuses it, as it does every part that it lacks."""
    run = small_run(tmp_path, 16, captured=True)
    run.trainer.register_module("optimization_stepper", run.trainer.optimization_stepper)
    run.trainer.train()
    resumed = small_run(tmp_path, 16, captured=True)
    resumed.saver.restore(run.saver.latest())
    assert bits(resumed.hook.state_dict()) == bits(run.hook.state_dict()) and run.hook.updates > 0
    with pytest.raises(CheckpointError, match=r"has \['trainer_module.optimization_stepper'\] in addition"):
        small_run(tmp_path, 16).saver.restore(run.saver.latest())


def test_the_state_of_the_first_version_is_upgraded(tmp_path):
    """The monitor's state then held best networks and scores alone."""
    run = small_run(tmp_path, 48)
    run.trainer.train()
    state = run.monitor.state_dict()
    scores = {name: found["scores"] for name, found in state["best_scores"].items()}
    old = {"best": state["best"], "best_scores": scores}

    class Old:
        def state_dict(self):
            return old

        def load_state_dict(self, state_dict):
            """Nothing."""

    path = VerifiedCheckpoint(**{"trainer_module.run_monitor": Old()}).save(tmp_path / "old")
    _set_version(path, 1)
    resumed = small_run(tmp_path, 48)
    resumed.monitor.best_scores.clear()
    VerifiedCheckpoint(**{"trainer_module.run_monitor": resumed.monitor}).load(path)
    assert resumed.monitor.best_scores["net17"].scores == run.monitor.best_scores["net17"].scores


def test_the_state_of_the_second_version_is_upgraded(tmp_path):
    """Clocks, sums and intervals then lay side by side with the scores, under names of their own."""
    run = small_run(tmp_path, 48)
    run.trainer.train()
    state = run.monitor.state_dict()
    clock, averages = state.pop("clock"), state.pop("averages")
    old = {
        **state,
        "seconds": 12.5,
        "cpu_seconds": 11.5,
        "evaluation_seconds": 2.5,
        "_evaluation_cpu_seconds": 1.5,
        "learning_since": (3.0, 16, 0.5),
        "sums": {"net17/agreement": 1.5},
        "_num_summed": 3,
        "shown": {"net17/agreement": 0.25},
        "_next_log": state.pop("next_log"),
        "_next_evaluation": state.pop("next_evaluation"),
    }
    del old["next_log"], old["next_evaluation"]

    class Old:
        def state_dict(self):
            return old

        def load_state_dict(self, state_dict):
            """Nothing."""

    path = VerifiedCheckpoint(**{"trainer_module.run_monitor": Old()}).save(tmp_path / "old")
    _set_version(path, 2)
    resumed = small_run(tmp_path, 96)
    VerifiedCheckpoint(**{"trainer_module.run_monitor": resumed.monitor}).load(path)
    found = resumed.monitor.state_dict()
    assert found["clock"]["seconds"] == pytest.approx(12.5, abs=1) and clock.keys() == found["clock"].keys()
    assert found["clock"]["evaluation_seconds"] == 2.5 and found["clock"]["evaluation_cpu_seconds"] == 1.5
    assert found["clock"]["learning_since"] == (3.0, 16, 0.5)
    assert found["averages"] == {
        "sums": {"net17/agreement": 1.5},
        "count": 3,
        "last": {"net17/agreement": 0.25},
    }
    assert averages.keys() == found["averages"].keys()
    assert (found["next_log"], found["next_evaluation"]) == (64, 96)
    assert found["evaluated_steps"] == state["evaluated_steps"] and found["best_scores"] == state["best_scores"]


def _set_version(path, version):
    """Make a checkpoint look as if it was written by another version."""
    import hashlib
    import json

    seal = json.loads((path / "sealed.json").read_text())
    seal["version"] = version
    for name, entry in seal["files"].items():
        if name.endswith("state.json"):
            content = json.loads((path / name).read_text())
            content["version"] = version
            (path / name).write_text(json.dumps(content))
            text = (path / name).read_bytes()
            entry.update(size=len(text), sha256=hashlib.sha256(text).hexdigest())
    (path / "sealed.json").write_text(json.dumps(seal))


def test_a_newer_version_is_refused_by_name(tmp_path):
    run = small_run(tmp_path, 16)
    run.trainer.train()
    path = run.saver.latest()
    _set_version(path, 99)
    with pytest.raises(CheckpointError, match="up to version 3 can be read: got version 99"):
        small_run(tmp_path, 16).saver.restore(path)


def test_saving_changes_nothing_in_training(tmp_path):
    """A run that saves every batch and one that saves almost never end in the same bits."""
    states = []
    for name, every_steps in (("often", BATCH_STEPS), ("seldom", 10_000)):
        run = small_run(tmp_path / name, 96, every_steps=every_steps)
        run.trainer.train()
        state = whole_state(run)
        state["trainer_state"].pop("_last_save")
        states.append(state)
    assert states[0] == states[1]


@pytest.mark.parametrize("option", [{"every_steps": 0}, {"every_steps": 5, "keep_last": 0}])
def test_numbers_out_of_range_are_refused(tmp_path, option):
    from torchrl_rtpd.runs.checkpoints import SaveCheckpoints

    name, value = list(option.items())[-1]
    with pytest.raises(ValueError, match=rf"{name} must lie in \[1, inf\): got {value}"):
        SaveCheckpoints(tmp_path, **option)


def test_a_trainer_that_saves_already_is_refused(tmp_path):
    run = small_run(tmp_path, 16)
    with pytest.raises(RuntimeError, match="has one way of saving"):
        run.saver.register(run.trainer)


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_run(tmp_path, monkeypatch):
    """It goes on with a warning that names the last whole one."""
    run = small_run(tmp_path, 96)

    def full(*_):
        raise OSError(28, "No space left on device")

    fill = partial(monkeypatch.setattr, "torchrl_rtpd.files.verified.write_tensors", full)
    run.trainer.register_op("post_steps", fill)  # the first checkpoint comes before
    with pytest.warns(UserWarning, match=r"could not be written: .*No space.*checkpoint-000000000000 is still whole"):
        run.trainer.train()
    assert run.trainer.collected_frames == 96
    assert newest_checkpoint(tmp_path).name == "checkpoint-000000000000"
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_what_a_killed_process_left_behind_is_tidied_up(tmp_path):
    """Half written folders go; one that was about to be replaced gets its name back."""
    run = small_run(tmp_path, 16)
    run.trainer.train()
    latest = run.saver.latest()
    folder = latest.parent
    latest.rename(folder / f".{latest.name}.old-1234")
    (folder / ".checkpoint-000000000024.partial-5678").mkdir()
    resumed = small_run(tmp_path, 24)
    assert newest_checkpoint(tmp_path) == folder / f".{latest.name}.old-1234"
    resumed.saver.restore(newest_checkpoint(tmp_path))
    assert resumed.trainer.collected_frames == 16
    resumed.trainer.train()
    assert latest.exists()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("make", [LazyTensorStorage, ListStorage])
def test_a_replay_with_entries_that_are_no_tensors_is_refused(make) -> None:
    """TorchRL leaves them out of a storage's state without a word."""
    buffer = TensorDictReplayBuffer(storage=make(4), batch_size=2)
    buffer.extend(TensorDict({"a": torch.zeros(2), "said": {"text": ["x", "y"]}}, [2]))
    with pytest.raises(ValueError, match=r"holds tensors only: got \('said', 'text'\), which is none"):
        ReplayState(buffer).state_dict()
