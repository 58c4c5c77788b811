"""The same policy on every engine: worker processes in step and out of step, and Ray actors."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from collector_parts import Tape, actor, always, trainer_of
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.collectors import BaseCollector
from torchrl.data import Categorical, LazyMemmapStorage, LazyTensorStorage, RayReplayBuffer, TensorDictReplayBuffer
from torchrl.envs import DoubleToFloat, EnvBase, GymEnv, RewardSum, SerialEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule

from torchrl_rtpd import (
    AtariVecEnv,
    DistillationLoss,
    FrameStackStorage,
    RealTimeDistillTrainer,
    make_actor,
    make_replay_buffer,
)
from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.collectors.engines import _WatchedWorkers, _worker_seed, _workers_env_fns
from torchrl_rtpd.collectors.policy import TeacherStudentPolicy
from torchrl_rtpd.schedules import RunState

PROCESS = {"backend": "process", "num_collectors": 2}
RAY_OPTIONS = {
    "ray_init_config": {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100_000_000},
    "remote_configs": {"num_cpus": 1, "memory": 0},
}
RAY = {"backend": "ray", "num_collectors": 2, "backend_options": RAY_OPTIONS}
ENGINES = [
    pytest.param({**PROCESS, "sync": True}, id="process-sync"),
    pytest.param({**PROCESS, "sync": False}, id="process-async"),
    pytest.param({**RAY, "sync": True}, id="ray-sync", marks=pytest.mark.ray),
    pytest.param({**RAY, "sync": False}, id="ray-async", marks=pytest.mark.ray),
]


@pytest.fixture(autouse=True)
def quick_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray's workers are as important as the rest of the test, and find the tests' modules; it ends with the test."""
    if request.node.get_closest_marker("ray") is None:
        yield
        return
    monkeypatch.setenv("RAY_worker_niceness", "0")
    here = os.path.dirname(__file__)
    folders = here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    yield
    ray = pytest.importorskip("ray")
    ray.shutdown()


def collector_on(engine: dict[str, Any], *networks: Any, **kwargs: Any) -> BaseCollector:
    return DualNetworkCollector(make_tape, *networks, **{"frames_per_batch": 16, **engine, **kwargs})


def make_tape() -> EnvBase:
    return TransformedEnv(Tape(), RewardSum(in_keys=["reward"], out_keys=["reward_sum"]))


def rows(batch: TensorDictBase) -> TensorDictBase:
    """One row a worker and slot, whether the batch holds all workers ``[W, 2, T]`` or one ``[2, T]``."""
    return batch.reshape(-1, batch.shape[-1]).clone()


def check_tape(batch: TensorDictBase) -> None:
    """Observations tell slot, game and step; games end after 3 steps in one slot and 5 in the other."""
    observation, following = batch["observation"].squeeze(-1), batch["next", "observation"].squeeze(-1)
    slot, step = torch.tensor([0, 1]).repeat(len(batch) // 2)[:, None], observation % 10
    assert torch.equal(following, observation + 1)
    assert torch.equal(batch["next", "done"].squeeze(-1), step + 1 == torch.where(slot == 0, 3, 5))
    assert (observation[:, :1].div(10).floor() >= 10 * slot).all()
    goes_on = ~batch["next", "done"].squeeze(-1)[:, :-1]
    assert torch.equal(observation[:, 1:][goes_on], following[:, :-1][goes_on])
    assert (observation[:, 1:][~goes_on] % 10).eq(0).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_life_of_a_collector(engine: dict[str, Any]) -> None:
    """Every phase ends when what was sent must have reached both workers: five batches later.

    Teacher and students take action 0 until they get weights that take action 1.
    """
    networks = {name: always(0) for name in ("teacher", "a", "b")}
    teacher, *students = networks.values()
    collector = collector_on(
        engine,
        teacher,
        dict(zip("ab", students, strict=True)),
        acting=lambda state: "b" if state.updates else {"a": 0.3, "b": 0.3},
        acting_seed=0,
        total_frames=4 * 5 * 16,
    )
    phases = []
    for number, batch in enumerate(collector):
        batch = rows(batch)
        check_tape(batch)
        if number % 5 == 4:
            phases.append(batch)
            if len(phases) == 1:
                # Of a copy: worker processes share memory with the policy they were given.
                new = copy.deepcopy(collector.dual_policy)
                for network in (new.teacher, *new.students.values()):
                    network.load_state_dict(always(1).state_dict())
                collector.update_policy_weights_(new.weights("teacher"))
            elif len(phases) == 2:
                collector.update_policy_weights_(new.weights("students"))
            elif len(phases) == 3:
                assert collector.update_students(RunState(1)) == {"a": 0.0, "b": 1.0}
    collector.shutdown()
    start, teacher_sent, students_sent, only_b = phases
    assert {1, 2, 3} == set(start["acted_by"].flatten().tolist())
    assert len({tuple(row.tolist()) for row in start["acted_by"]}) > 1  # slots, and workers, draw for themselves
    assert start["action"].eq(0).all()
    assert torch.equal(teacher_sent["action"] == 1, teacher_sent["acted_by"] == 1)
    assert students_sent["action"].eq(1).all()
    assert {1, 2, 3} == set(students_sent["acted_by"].flatten().tolist())
    assert only_b["acted_by"].eq(3).all()


def test_workers_draw_who_acts_by_seeds_of_their_own() -> None:
    """The seed plus the worker's number, so that a run can be repeated."""
    policy = TeacherStudentPolicy(always(0), always(1), acting=0.5, seed=3)
    states = TensorDict({"observation": torch.zeros(64, 1)}, [64])
    draws = [policy.with_seed(3 + worker)(states.clone())["acted_by"] for worker in range(2)]
    assert torch.equal(draws[0], policy(states.clone())["acted_by"])
    assert not torch.equal(*draws)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stock_trainers_weight_update_reaches_the_workers(engine: dict[str, Any]) -> None:
    """Recorded values are those of the weights that acted: in step, the teacher's when the batch arrives."""
    teacher, student = actor(1, seed=0), actor(1, seed=1, hidden=3)
    # With exploration in step and without out of step; TorchRL's trainer sends different weights then.
    exploration = EGreedyModule(Categorical(2), eps_init=0.0, eps_end=0.0) if engine["sync"] else None
    collector = collector_on(engine, teacher, student, exploration=exploration, record=True, total_frames=160)
    trainer = trainer_of(collector, teacher, exploration, frames=160)
    seen: list[tuple[TensorDictBase, TensorDictBase]] = []

    def note(batch: TensorDictBase) -> TensorDictBase:
        with torch.no_grad():
            values = [network(batch.select("observation"))["action_value"] for network in (teacher, student)]
        now = TensorDict({"teacher": values[0], "student": values[1]}, batch.shape)
        seen.append((batch.select("teacher", "student").clone(), now))
        return batch

    trainer.register_op("batch_process", note)
    trainer.train()
    collector.shutdown()
    assert (seen[0][1]["teacher"] - seen[-1][1]["teacher"]).abs().max() > 1e-3  # it learned
    for recorded, now in seen:
        torch.testing.assert_close(recorded["student", "action_value"], now["student"])
        if engine["sync"]:
            torch.testing.assert_close(recorded["teacher", "action_value"], now["teacher"])
    first, last = (recorded["teacher", "action_value"].reshape(-1, 2) for recorded in (seen[0][0], seen[-1][0]))
    assert (first.mean(0) - last.mean(0)).abs().max() > 1e-3


# Written by the workers themselves


@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyMemmapStorage])
@pytest.mark.parametrize("engine", [pytest.param({}, id="direct"), *ENGINES[:2]])
def test_workers_write_transitions_into_the_replay_buffer(engine: dict[str, Any], storage: type) -> None:
    """Every step of every slot is there, whole and once, in the order of its own slot."""
    shared = bool(engine)
    buffer = TensorDictReplayBuffer(storage=storage(256, shared_init=shared), batch_size=32, shared=shared)
    collector = collector_on(
        engine, always(0), always(1), acting=0.5, acting_seed=0, replay_buffer=buffer, total_frames=48
    )
    assert list(collector) == [None] * 3
    collector.shutdown()
    assert len(buffer) >= 48  # out of step, workers may have written more by now
    stored = buffer[:]
    assert stored.batch_size == (len(buffer),)
    check_steps(stored)
    sample = buffer.sample()
    assert torch.equal(sample["action"], sample["acted_by"].long() - 1)
    assert {1, 2} == set(stored["acted_by"].tolist())


@pytest.mark.ray
@pytest.mark.parametrize("sync", [True, False])
def test_ray_actors_write_transitions_into_the_replay_buffer(sync: bool) -> None:
    buffer = RayReplayBuffer(
        replay_buffer_cls=TensorDictReplayBuffer,
        storage=partial(LazyTensorStorage, 256),
        batch_size=32,
        ray_init_config=RAY_OPTIONS["ray_init_config"],
        remote_config={"num_cpus": 0},
    )
    collector = collector_on(
        {**RAY, "sync": sync}, always(0), always(1), acting=0.5, acting_seed=0, replay_buffer=buffer, total_frames=48
    )
    for batch in collector:
        assert batch is None
    assert len(buffer) >= 48
    stored = buffer[:]
    assert stored.batch_size == (len(buffer),)
    check_steps(stored)
    assert {1, 2} == set(stored["acted_by"].tolist())
    collector.shutdown()


def check_steps(stored: TensorDictBase) -> None:
    """Transitions of the tape, each with its own next state; the first twelve of each slot are there."""
    observation = stored["observation"].squeeze(-1)
    assert torch.equal(stored["next", "observation"].squeeze(-1), observation + 1)
    assert torch.equal(stored["next", "done"].squeeze(-1), observation % 10 + 1 == torch.where(observation < 100, 3, 5))
    for slot, length in enumerate((3, 5)):
        first = {100 * slot + 10 * (step // length) + step % length for step in range(12)}
        assert first <= set(observation.int().tolist())


def test_the_frame_storage_is_written_by_the_collector() -> None:
    """As by a trainer: stacks come back whole."""
    env = AtariVecEnv("pong", 2, seed=0)
    networks = [make_actor(name, env.action_spec, seed=0) for name in ("teacher", "net17")]
    buffer = make_replay_buffer(FrameStackStorage(64, num_envs=2, steps_per_write=4), batch_size=8)
    collector = DualNetworkCollector(env, *networks, replay_buffer=buffer, frames_per_batch=8, total_frames=32)
    assert list(collector) == [None] * 4
    collector.shutdown()
    first = buffer[:8].reshape(2, 4)  # one write, slot by slot
    assert torch.equal(first["pixels"][:, 1:], first["next", "pixels"][:, :-1])
    assert len(buffer) == 32


@pytest.mark.parametrize("engine", [pytest.param({}, id="direct"), pytest.param(PROCESS, id="process-async")])
def test_an_asynchronous_trainer_learns_from_what_the_workers_write(engine: dict[str, Any]) -> None:
    """TorchRL's DQNTrainer with ``async_collection``: the collector runs on, students act and are sent."""
    shared = bool(engine)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(100_000, shared_init=shared), batch_size=10, shared=shared
    )
    teacher, student = actor(1, seed=0), actor(1, seed=1, hidden=3)
    before = copy.deepcopy(student.state_dict())
    collector = collector_on(engine, teacher, student, acting=0.5, acting_seed=0, replay_buffer=buffer, total_frames=-1)
    trainer = trainer_of(collector, teacher, None, frames=400, replay_buffer=buffer, async_collection=True)
    hook = RealTimeDistillTrainer(DistillationLoss(student), optimizer=partial(torch.optim.Adam, lr=1e-2))
    hook.register(trainer)
    warned = pytest.warns(UserWarning, match="explores nothing while a loss .*num_collectors=1")
    # The thread and the losses may leave the process's exploration type as either had set it: it is put back here.
    with nullcontext() if engine else warned, set_exploration_type(ExplorationType.RANDOM):
        trainer.train()
        collector.async_shutdown()
    assert len(buffer) >= 400
    assert hook.updates > 0
    assert hook.metrics["distill/student/acting"] == 0.5
    assert not all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert {1, 2} == set(buffer[:]["acted_by"].tolist())


def test_a_storage_that_workers_cannot_share_is_refused() -> None:
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(64), batch_size=8)
    with pytest.raises(ValueError, match=r"known to all .* got LazyTensorStorage without shared_init; build it"):
        collector_on(PROCESS, always(0), replay_buffer=buffer)
    buffer = make_replay_buffer(FrameStackStorage(64, num_envs=2, steps_per_write=4), batch_size=8)
    with pytest.raises(ValueError, match=r"a FrameStackStorage is written in order, by one writer: got workers"):
        collector_on(PROCESS, always(0), replay_buffer=buffer)


# Seeds of workers


def seeded_cartpole(seed: int = 0) -> EnvBase:
    """Two slots whose seed is inside the function."""
    env = SerialEnv(2, partial(GymEnv, "CartPole-v1", categorical_action_encoding=True))
    env.set_seed(seed)
    return TransformedEnv(env, DoubleToFloat())


def test_workers_with_a_seed_inside_their_function_play_games_of_their_own() -> None:
    """The first worker keeps the function's seed; the other gets a number that follows from acting_seed."""
    collector = DualNetworkCollector(
        seeded_cartpole, actor(), num_collectors=2, sync=True, frames_per_batch=40, total_frames=40, acting_seed=3
    )
    (batch,) = (batch.clone() for batch in collector)
    collector.shutdown()
    first, second = batch["observation"].reshape(2, 2, -1, 4)
    assert not any(torch.equal(one, other) for one in first for other in second)
    assert torch.equal(first[:, 0], seeded_cartpole().reset()["observation"])
    env = seeded_cartpole()
    env.set_seed(_worker_seed(3, 1))
    assert torch.equal(second[:, 0], env.reset()["observation"])


def first_observations(env_fns: Any, kwargs: Any, acting_seed: int = 0) -> list[torch.Tensor]:
    """First observations of two workers, from the very functions that they are given."""
    policy = TeacherStudentPolicy(actor(), seed=acting_seed)
    made = _workers_env_fns(env_fns, 2, policy, kwargs)
    each = kwargs if isinstance(kwargs, list) else [kwargs or {}] * 2
    return [env_fn(**own).reset()["observation"] for env_fn, own in zip(made, each, strict=True)]


@pytest.mark.parametrize(
    ("env_fns", "kwargs"),
    [
        (seeded_cartpole, None),
        ([seeded_cartpole] * 2, None),
        ([partial(seeded_cartpole, seed=1), partial(seeded_cartpole, seed=1)], None),
        (seeded_cartpole, {"seed": 1}),
        (seeded_cartpole, [{"seed": 1}, {"seed": 1}]),
    ],
    ids=["one function", "one function twice", "equal partials", "one mapping", "equal mappings"],
)
def test_workers_of_equal_functions_are_told_apart_however_they_are_given(env_fns: Any, kwargs: Any) -> None:
    """No slot of one shows what a slot of the other shows, and another acting_seed changes all but the first worker."""
    first, second = first_observations(env_fns, kwargs)
    assert not any(torch.equal(one, other) for one in first for other in second)
    again, other = (first_observations(env_fns, kwargs, seed) for seed in (0, 1))
    assert torch.equal(again[0], first)
    assert torch.equal(again[1], second)
    assert torch.equal(other[0], first)
    assert not torch.equal(other[1], second)


@pytest.mark.parametrize(
    ("env_fns", "kwargs"),
    [
        ([partial(seeded_cartpole, seed=1), partial(seeded_cartpole, seed=2)], None),
        (seeded_cartpole, [{"seed": 1}, {"seed": 2}]),
    ],
    ids=["partials", "mappings"],
)
def test_workers_that_the_caller_seeds_apart_keep_their_seeds(env_fns: Any, kwargs: Any) -> None:
    for seen, seed in zip(first_observations(env_fns, kwargs), (1, 2), strict=True):
        assert torch.equal(seen, seeded_cartpole(seed).reset()["observation"])


def test_an_environment_instead_of_a_function_is_refused() -> None:
    with pytest.raises(TypeError, match=r"workers make their own environments: got an environment; give a function"):
        DualNetworkCollector(Tape(), always(0), frames_per_batch=16, total_frames=16, num_collectors=2)


# Errors


@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_that_dies_is_reported_within_ten_seconds(engine: dict[str, Any]) -> None:
    collector = collector_on(engine, always(0), total_frames=1_000_000)
    iterator = iter(collector)
    next(iterator)
    if engine["backend"] == "process":
        os.kill(collector.procs[1].pid, signal.SIGKILL)
        message = r"must live as long as its run: worker 1 died \(exit code -9\)"
    else:
        import ray

        ray.kill(collector.remote_collectors[1])
        message = r"(?i)worker 1 of the 2"
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        for _ in iterator:
            assert time.monotonic() - start < 10
    assert time.monotonic() - start < 10
    collector.shutdown()


class BrokenConnection:
    """An engine that loses the connection to its workers."""

    def iterator(self) -> Iterator[TensorDictBase]:
        raise EOFError


class BrokenCollector(_WatchedWorkers, BrokenConnection):
    pass


def die_slowly() -> None:
    os.closerange(3, 1024)  # its sentinel among them
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_is_named_even_where_it_has_no_exit_code_yet_when_its_connection_breaks() -> None:
    collector = BrokenCollector()
    collector.procs = [multiprocessing.get_context("fork").Process(target=die_slowly)]
    collector.procs[0].start()
    with pytest.raises(RuntimeError, match=r"worker 0 died \(exit code -9\)"):
        next(collector.iterator())


def test_a_writing_worker_that_dies_is_reported_when_weights_are_sent_and_what_it_stored_is_kept() -> None:
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100_000, shared_init=True), batch_size=8, shared=True)
    collector = collector_on(PROCESS, always(0), replay_buffer=buffer, total_frames=-1)
    collector.start()
    while len(buffer) < 64:
        time.sleep(0.05)
    os.kill(collector.procs[0].pid, signal.SIGKILL)
    collector.procs[0].join()
    with pytest.raises(RuntimeError, match=r"worker 0 died \(exit code -9\); .* is kept"):
        collector.update_policy_weights_(collector.dual_policy.weights("teacher"))
    check_steps(buffer[:64])
    collector.shutdown()


class FailingTape(Tape):
    """Its third step raises."""

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if (self.step_count >= 2).any():
            raise RuntimeError("the console caught fire")
        return super()._step(tensordict)


@pytest.mark.parametrize("engine", [pytest.param({}, id="direct"), *ENGINES])
def test_an_environment_that_raises_ends_collection(engine: dict[str, Any], capfd: pytest.CaptureFixture) -> None:
    """Here the error itself; from a worker its number, with its error printed (process) or attached (Ray)."""
    collector = DualNetworkCollector(FailingTape, always(0), frames_per_batch=16, total_frames=64, **engine)
    start = time.monotonic()
    with pytest.raises(Exception, match=r"caught fire|worker \d") as raised:
        list(collector)
    assert time.monotonic() - start < 10
    assert "caught fire" in str(raised.value) + capfd.readouterr().err
    collector.shutdown()


# Versions


@pytest.mark.parametrize("engine", [pytest.param({}, id="direct"), ENGINES[0]])
def test_every_step_names_the_version_of_the_weights_that_acted(engine: dict[str, Any]) -> None:
    """One version an update; the values recorded with a step are those of its version's weights."""
    teacher, student = actor(1, seed=0), actor(1, seed=1, hidden=3)
    collector = collector_on(engine, teacher, student, record=True, total_frames=64, track_policy_version=True)
    versions: dict[int, TensorDictModule] = {}
    seen: list[int] = []
    for number, batch in enumerate(collector):
        (version,) = set(batch["next", "policy_version"].flatten().tolist())
        seen.append(int(version))
        if number:
            expected = versions[number](batch.select("observation"))["action_value"]
            torch.testing.assert_close(batch["teacher", "action_value"], expected.detach())
        versions[number + 1] = new = actor(1, seed=10 + number)
        weights = copy.deepcopy(collector.dual_policy)
        weights.teacher.load_state_dict(new.state_dict())
        collector.update_policy_weights_(weights.weights("teacher"))
    collector.shutdown()
    assert [version - seen[0] for version in seen] == [0, 1, 2, 3]


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="backend must be 'direct', 'process' or 'ray': got 'threads'"):
        collector_on({"backend": "threads"}, always(0))


def test_a_network_for_another_number_of_actions_is_refused_before_any_worker_starts() -> None:
    with pytest.raises(ValueError, match=r"the student has 3 actions, the environment 2; build it from env\.action"):
        collector_on(PROCESS, always(0), always(0, num_actions=3), acting=0.5)


def test_an_environment_that_raises_in_a_worker_is_reported() -> None:
    collector = collector_on({**PROCESS, "sync": True}, always(0), total_frames=64)
    with pytest.raises(Exception, match="no such game"):
        DualNetworkCollector(_broken, always(0), frames_per_batch=16, total_frames=64, **PROCESS)
    collector.shutdown()


def _broken() -> Tape:
    raise RuntimeError("no such game")
