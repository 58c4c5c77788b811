"""The same policy on every engine: worker processes in step and out of step, and Ray actors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from test_collectors import Tape, actor, always, trainer_of
from torchrl.collectors import BaseCollector
from torchrl.data import Categorical, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import EGreedyModule

from torchrl_rtpd.collectors import DualNetworkCollector
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
    """Ray's workers are as important as the rest of the test, and find this folder's modules; it ends with the test."""
    if request.node.get_closest_marker("ray") is None:
        yield
        return
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    yield
    ray = pytest.importorskip("ray")
    ray.shutdown()


def collector_on(engine: dict[str, Any], *networks: Any, **kwargs: Any) -> BaseCollector:
    return DualNetworkCollector(Tape, *networks, **{"frames_per_batch": 16, **engine, **kwargs})


def rows(batch: TensorDictBase) -> TensorDictBase:
    """One row a worker and slot, whether the batch holds all workers ``[W, 2, T]`` or one ``[2, T]``."""
    return batch.reshape(-1, batch.shape[-1]).clone()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_slot_of_every_worker_plays_its_own_games_in_order(engine: dict[str, Any]) -> None:
    """Observations tell slot, game and step; games end after 3 steps in one slot and 5 in the other."""
    collector = collector_on(engine, always(0), always(1), acting=0.5, acting_seed=0, total_frames=64)
    batches = [rows(batch) for batch in collector]
    collector.shutdown()
    acted = torch.cat([batch["acted_by"].flatten() for batch in batches])
    assert sum(batch.numel() for batch in batches) == 64
    for batch in batches:
        assert torch.equal(batch["action"], batch["acted_by"].long() - 1)
        observation, following = batch["observation"].squeeze(-1), batch["next", "observation"].squeeze(-1)
        slot, step = observation.div(100, rounding_mode="floor"), observation % 10
        assert torch.equal(following, observation + 1)
        assert torch.equal(batch["next", "done"].squeeze(-1), step + 1 == torch.where(slot == 0, 3, 5))
        assert torch.equal(slot, slot[:, :1].expand_as(slot))
    assert {1, 2} == set(acted.tolist())
    halves = acted.reshape(2, -1)
    assert not torch.equal(halves[0], halves[1])


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_draw_who_acts_by_seeds_of_their_own(engine: dict[str, Any]) -> None:
    """And a second collector of the same seed draws the same."""
    draws = []
    for _ in range(2):
        collector = collector_on(
            engine, always(0), always(1), acting=0.5, acting_seed=3, frames_per_batch=96, total_frames=192
        )
        batches = torch.cat([rows(batch)["acted_by"] for batch in collector])
        collector.shutdown()
        draws.append({tuple(row.tolist()) for row in batches})
    assert len(draws[0]) == len(batches)  # no two rows alike
    if engine["sync"]:
        assert draws[0] == draws[1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("part", ["teacher", "students", "all"])
def test_weights_of_a_part_reach_the_workers_and_the_rest_stays(engine: dict[str, Any], part: str) -> None:
    """Teacher and student take action 0 until their new weights, which take action 1, arrive."""
    networks = (always(0), always(0))
    collector = collector_on(engine, *networks, acting=0.5, acting_seed=0, total_frames=160)
    for number, batch in enumerate(collector):
        if number == 0:
            with torch.no_grad():
                for network in networks:
                    network.load_state_dict(always(1).state_dict())
            collector.update_policy_weights_(collector.dual_policy.weights(part))
        last = batch.clone()
    collector.shutdown()
    changed = {"teacher": [1], "students": [2], "all": [1, 2]}[part]
    assert torch.equal(last["action"].bool(), torch.isin(last["acted_by"], torch.tensor(changed, dtype=torch.uint8)))
    assert {1, 2} == set(last["acted_by"].flatten().tolist())


@pytest.mark.parametrize("engine", ENGINES)
def test_who_acts_changes_with_the_state_of_the_run(engine: dict[str, Any]) -> None:
    students = {"a": always(0), "b": always(1)}
    collector = collector_on(
        engine, always(0), students, acting=lambda state: "b" if state.updates else 0.0, total_frames=160
    )
    batches = []
    for batch in collector:
        batches.append(batch["acted_by"].clone())
        assert collector.update_students(RunState(1)) == {"a": 0.0, "b": 1.0}
    collector.shutdown()
    assert batches[0].eq(1).all()
    assert batches[-1].eq(3).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("explores", [False, True])
def test_a_stock_trainers_weight_update_reaches_the_workers(engine: dict[str, Any], explores: bool) -> None:
    """Recorded values are those of the weights that acted: in step, the teacher's when the batch arrives."""
    teacher, student = actor(1, seed=0), actor(1, seed=1, hidden=3)
    exploration = EGreedyModule(Categorical(2), eps_init=0.0, eps_end=0.0) if explores else None
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


def test_worker_processes_write_a_replay_buffer_directly() -> None:
    """TorchRL's shared storage, filled by both workers."""
    replay_buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(64, ndim=2), batch_size=8, shared=True, compilable=False
    )
    collector = collector_on(
        {**PROCESS, "sync": True},
        always(0),
        always(1),
        acting="student",
        total_frames=64,
        replay_buffer=replay_buffer,
        extend_buffer=True,
    )
    for _ in collector:
        pass
    collector.shutdown()
    assert replay_buffer.sample()["acted_by"].eq(2).all()


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
