"""What keeps a run alive is attached in the one order that works."""

import pytest
from drop_in_dqn import build, make_env

from torchrl_rtpd import Evaluator, Protection
from torchrl_rtpd.runs.monitor import RunMonitor
from torchrl_rtpd.runs.protect import protect

ORDER = ["run_monitor", "stop_when_caught_up", "divergence_guard", "save_checkpoints"]


@pytest.fixture
def parts(tmp_path):
    trainer, networks = build(512, seed=0)
    evaluator = Evaluator(lambda: make_env(2), episodes=2)
    monitor = RunMonitor(networks, evaluator, tmp_path / "run", progress_bar=False)
    yield trainer, monitor, tmp_path / "run" / "checkpoints"
    evaluator.close()


def test_a_batch_is_watched_then_judged_then_saved(parts, monkeypatch):
    """Hooks are called in the order in which they are registered, by TorchRL's contract."""
    trainer, monitor, folder = parts
    before, registered, register = list(trainer._modules), [], trainer.register_op

    def spy(dest, op, **kwargs):
        registered.append((dest, getattr(op, "__self__", None)))
        register(dest, op, **kwargs)

    monkeypatch.setattr(trainer, "register_op", spy)
    found = protect(trainer, monitor, folder, Protection(stop_after_evaluations=2))
    assert list(trainer._modules)[len(before) :] == ORDER
    after_steps = [hook for dest, hook in registered if dest == "post_steps"]
    assert [type(hook).__name__ for hook in after_steps] == [
        "RunMonitor",
        "StopWhenCaughtUp",
        "DivergenceGuard",
        "SaveCheckpoints",
    ]
    assert after_steps[0] is monitor and after_steps[2:] == [found.guard, found.saver]
    assert found.guard.saver is found.saver and found.guard.monitor is monitor and found.saver.monitor is monitor


def test_defaults_stop_at_divergence_and_never_early(parts):
    trainer, monitor, folder = parts
    found = protect(trainer, monitor, folder)
    assert "stop_when_caught_up" not in trainer._modules
    assert (found.guard.policy, found.saver.every_steps, found.saver.replay) == ("stop", 10_000, False)
    assert not folder.exists()


def test_a_trainer_that_saves_already_is_refused(parts):
    trainer, monitor, folder = parts
    protect(trainer, monitor, folder)
    with pytest.raises((RuntimeError, KeyError)):
        protect(trainer, monitor, folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_every_steps": 0}, "got 0|every_steps=0"),
        ({"on_divergence": "explode"}, "policy must be one of stop, skip, rollback: got 'explode'"),
        ({"stop_after_evaluations": 0}, "got 0|evaluations=0"),
    ],
)
def test_an_option_out_of_its_range_is_refused(parts, options, message):
    trainer, monitor, folder = parts
    with pytest.raises(ValueError, match=message):
        protect(trainer, monitor, folder, Protection(**options))
