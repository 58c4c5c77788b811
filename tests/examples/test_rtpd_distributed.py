"""Collection and learning in other processes: they end, they resume, and what dies is named."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import rtpd_distributed
import torch
from distributed_parts import LearnerState, make_actor
from torchrl.checkpoint import Checkpoint
from torchrl.trainers import Trainer

from torchrl_rtpd.trainers._torchrl import started_learners

STEPS, KILLED_AT = 4_096, 1_280  # sixteen batches of 256 steps, of which five are learned from before somebody dies
UPDATES = {"dqn": 16 * 32, "pqn": 16 * 4 * 4}


@pytest.fixture
def ray_options(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Six cores as Ray counts them; its workers are as important as the test and find the examples."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(rtpd_distributed.__file__).parent))
    yield {
        "ray_init_config": {"num_cpus": 6, "include_dashboard": False, "object_store_memory": 100_000_000},
        "remote_configs": {"num_cpus": 1, "memory": 0},
    }
    ray.shutdown()


class Watch:
    """Stands where the example names dead actors: notes how each training began, and does something in mid-run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began: list[tuple[int, int]] = []  # steps and stored transitions when training began
        self.hooks: list[Any] = []
        self.at_step: Callable[[Trainer], None] = lambda trainer: None
        self.at_batch: Callable[[Trainer, Any], None] = lambda trainer, batch: None
        self._named, self._make_hook = rtpd_distributed.dead_actors_named, rtpd_distributed.student_hook
        monkeypatch.setattr(rtpd_distributed, "dead_actors_named", self.named)
        monkeypatch.setattr(rtpd_distributed, "student_hook", self.make_hook)

    def make_hook(self, *args: Any) -> Any:
        self.hooks.append(self._make_hook(*args))
        return self.hooks[-1]

    @contextmanager
    def named(self, trainer: Trainer) -> Iterator[None]:
        self.began.append((trainer.collected_frames, len(trainer.replay_buffer)))
        at_step, at_batch = self.at_step, self.at_batch
        trainer.register_op("post_steps", lambda: at_step(trainer) if trainer.collected_frames == KILLED_AT else None)
        trainer.register_op("batch_process", lambda batch: at_batch(trainer, batch) or batch)
        with self._named(trainer):
            yield


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def kill(actor: Any) -> None:
    """Kill the process of a Ray actor, and see it gone."""
    import ray

    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.__ray_ready__.remote(), timeout=30)


def kill_collector(trainer: Trainer) -> None:
    kill(trainer.collector.remote_collectors[1])


def kill_learner(trainer: Trainer) -> None:
    kill(started_learners(trainer)[1])


def kill_process(trainer: Trainer) -> None:
    os.kill(trainer.collector.procs[1].pid, signal.SIGKILL)
    trainer.collector.procs[1].join()


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in (folder / "checkpoints").glob("checkpoint-*"))


def dies_and_resumes(watch: Watch, folder: Path, murder: Callable[[Trainer], None], message: str, **where: Any) -> None:
    """A run whose worker is killed says so; the next one goes on from its newest checkpoint and ends as it would have.

    The replay holds what it held, and no update is made twice or left out.
    """
    watch.at_step = murder
    with pytest.raises(RuntimeError, match=message):
        rtpd_distributed.run(steps=STEPS, sync=True, episodes=2, out=folder, **where)
    newest = saved_steps(folder)[-1]
    assert 0 < newest < KILLED_AT
    watch.at_step = lambda trainer: None
    results = rtpd_distributed.run(steps=STEPS, sync=True, episodes=2, out=folder, resume=True, **where)
    stored = 256 if where["teacher"] == "pqn" else newest
    assert watch.began[1] == (newest, stored)
    assert watch.hooks[1].updates == UPDATES[where["teacher"]]
    assert saved_steps(folder)[-1] == STEPS
    assert [network["name"] for network in results["networks"]] == ["teacher", "student"]


# Processes


def test_the_student_acts_in_worker_processes(tmp_path: Path) -> None:
    results = rtpd_distributed.run(steps=512, acting=0.3, episodes=2, out=tmp_path)
    assert results["networks"][1]["episodes"] == 2
    assert (tmp_path / "results.json").exists()


@pytest.mark.parametrize("teacher", ["dqn", "pqn"])
def test_a_worker_process_is_killed_and_nothing_that_was_saved_is_lost(
    watch: Watch, tmp_path: Path, teacher: str
) -> None:
    message = r"worker 1 died \(exit code -9\); .* what was stored is kept"
    dies_and_resumes(watch, tmp_path, kill_process, message, teacher=teacher)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learners", "2"], "--learners needs --backend ray --sync, and the teacher acts."),
        (["--learners", "2", "--backend", "ray"], "--learners needs --backend ray --sync, and the teacher acts."),
        (["--teacher", "pqn"], "--teacher pqn needs --sync: its targets are those of one rollout of all workers."),
        (["--resume"], "--resume needs --out, the folder to go on from."),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["rtpd_distributed.py", *options])
    with pytest.raises(SystemExit):
        rtpd_distributed.main()
    assert message in capsys.readouterr().err


# Ray


@pytest.mark.ray
@pytest.mark.parametrize("teacher", ["dqn", "pqn"])
def test_two_remote_learners_train_a_teacher_and_one_student(
    ray_options: dict[str, Any], tmp_path: Path, teacher: str
) -> None:
    """Both networks come back changed, and both learners hold the same student."""
    torch.manual_seed(0)
    before = {"teacher": make_actor(teacher, 128), "student": make_actor(teacher, 16)}
    after = rtpd_distributed.train_remotely(
        teacher, 1_024, tmp_path, seed=0, workers=2, learners=2, resume=False, backend_options=ray_options
    )
    for name, network in after.items():
        for parameter, value in network.named_parameters():
            assert not torch.equal(value, before[name].get_parameter(parameter)), (name, parameter)
    learned = LearnerState()
    Checkpoint(learner_execution=learned).load(tmp_path / "checkpoint-000000001024")
    first, second = (
        rank["optimization_stepper"]["hook"]["students"]["student"] for rank in learned.state["backend"]["ranks"]
    )
    assert len(first) >= 6
    assert all(torch.equal(value, second[name]) for name, value in first.items() if isinstance(value, torch.Tensor))


def returns_by_hand(trainer: Trainer, rollout: Any, gamma: float, lmbda: float) -> torch.Tensor:
    """Targets ``[2, 4, 32]`` by a loop, from the weights that the first collector acts by."""
    actor = make_actor("pqn", 128)
    actor.load_state_dict(trainer.collector.state_dict()[0]["policy_state_dict"])
    with torch.no_grad():
        values = actor(rollout["next"].select("observation"))["action_value"].amax(-1)
    following = rollout["next"].squeeze()
    reward, done, terminated = (rollout["next", key].squeeze(-1) for key in ("reward", "done", "terminated"))
    targets = torch.zeros_like(values)
    for step in reversed(range(following.shape[-1])):
        later = values[..., step]
        if step + 1 < following.shape[-1]:
            mixed = (1 - lmbda) * later + lmbda * targets[..., step + 1]
            later = torch.where(done[..., step], later, mixed)
        targets[..., step] = reward[..., step] + gamma * torch.where(terminated[..., step], 0.0, later)
    return targets


@pytest.mark.ray
def test_targets_of_remote_learners_are_of_the_weights_that_acted(
    watch: Watch, ray_options: dict[str, Any], tmp_path: Path
) -> None:
    seen = []

    def compare(trainer: Trainer, rollout: Any) -> None:
        expected = returns_by_hand(trainer, rollout, gamma=0.99, lmbda=0.9)
        torch.testing.assert_close(rollout["value_target"].squeeze(-1), expected, rtol=1e-4, atol=1e-4)
        seen.append(expected)

    watch.at_batch = compare
    rtpd_distributed.train_remotely(
        "pqn", 768, tmp_path, seed=0, workers=2, learners=1, resume=False, backend_options=ray_options
    )
    assert [target.shape for target in seen] == [(2, 4, 32)] * 3


@pytest.mark.ray
def test_an_error_while_all_actors_live_is_not_blamed_on_one(
    watch: Watch, ray_options: dict[str, Any], tmp_path: Path
) -> None:
    """TorchRL ends them all because of it."""

    def fail(trainer: Trainer, batch: Any) -> None:
        raise ValueError("a hook of the user's failed")

    watch.at_batch = fail
    with pytest.raises(ValueError, match="a hook of the user's failed"):
        rtpd_distributed.train_remotely(
            "dqn", 512, tmp_path, seed=0, workers=1, learners=1, resume=False, backend_options=ray_options
        )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "learners", "murder", "message"),
    [
        ("dqn", 2, kill_learner, r"learner 1 of 2 died; what was saved is kept, so go on from the newest checkpoint"),
        ("pqn", 2, kill_collector, r"collector 1 of 2 died; what was saved is kept"),
        ("pqn", 0, kill_collector, r"(collector 1 of 2|worker 1 of the 2 Ray actors that collect) died"),
        ("dqn", 0, kill_collector, r"(collector 1 of 2|worker 1 of the 2 Ray actors that collect) died"),
    ],
)
def test_an_actor_is_killed_and_nothing_that_was_saved_is_lost(
    watch: Watch,
    ray_options: dict[str, Any],
    tmp_path: Path,
    teacher: str,
    learners: int,
    murder: Callable[[Trainer], None],
    message: str,
) -> None:
    where = {"teacher": teacher, "learners": learners, "backend": "ray", "backend_options": ray_options}
    dies_and_resumes(watch, tmp_path, murder, message, **where)
