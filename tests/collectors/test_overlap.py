"""Steps that are begun while the caller learns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from collector_parts import (
    Tape,
    _Counted,
    _counting_run,
    always,
)
from torch import nn
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type
from torchrl.modules import QValueActor

from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.networks.towers import make_actor


@pytest.mark.parametrize("rollout_steps", [1, 3])
def test_with_overlap_the_first_step_of_a_batch_is_chosen_one_batch_earlier(rollout_steps: int) -> None:
    for overlap in (False, True):
        batches = _counting_run(overlap, rollout_steps)
        for number, batch in enumerate(batches):
            first = max(number - overlap, 0)
            assert batch["action"].tolist() == [[first] + [number] * (rollout_steps - 1)] * 2


def test_a_step_that_was_played_meanwhile_is_the_step_of_its_actions() -> None:
    """The same actions give the same frames as without overlap, and the stream has no seam."""
    stream = torch.cat(_counting_run(True, 3), 1)
    env = AtariVecEnv("pong", 2, seed=0)
    state = env.reset()
    for step in range(stream.shape[1]):
        assert torch.equal(state["pixels"], stream["pixels"][:, step])
        state.set("action", stream["action"][:, step])
        played, state = env.step_and_maybe_reset(state)
        assert torch.equal(played["next", "pixels"], stream["next", "pixels"][:, step])
    env.close()


def test_random_steps_are_not_begun_before_their_turn() -> None:
    """They run no network, so that there is nothing to choose early."""
    batches = _counting_run(True, 2, init_random_frames=8)
    assert [batch["action"][0].tolist() for batch in batches[2:]] == [[1, 2], [2, 3]]


def test_who_acts_is_stored_of_steps_that_were_begun_early_too() -> None:
    """The teacher always takes action 0 here, the student 1."""
    teacher, student = (QValueActor(_Counted(), in_keys=["pixels"], spec=Categorical(6)) for _ in range(2))
    nn.init.constant_(student.module[0].module.weight, 1)
    env = AtariVecEnv("pong", 2, seed=0)
    collector = DualNetworkCollector(
        env, teacher, student, acting=0.5, acting_seed=0, frames_per_batch=2, total_frames=40, overlap=True
    )
    batches = torch.cat([batch.clone() for batch in collector], 1)
    collector.shutdown()
    assert torch.equal(batches["acted_by"].long(), batches["action"] + 1)
    assert {1, 2} == set(batches["acted_by"].flatten().tolist())


def test_a_reset_drops_the_step_that_was_begun() -> None:
    env = AtariVecEnv("pong", 2, seed=0)
    collector = DualNetworkCollector(
        env, make_actor("net17", env.action_spec, seed=0), frames_per_batch=4, total_frames=16, overlap=True
    )
    batches = iter(collector)
    next(batches)
    collector.reset()
    assert not next(batches)["pixels"][:, 0, :3].any()  # a game begins
    collector.shutdown()


def test_overlap_is_refused_where_nothing_steps_by_itself() -> None:
    with pytest.raises(ValueError, match=r"overlap=True needs an environment .* with a method send: got Tape; use"):
        DualNetworkCollector(Tape(), always(0), frames_per_batch=8, total_frames=8, overlap=True)
    with pytest.raises(ValueError, match=r"overlap=True is for backend='direct': got backend='process', whose workers"):
        DualNetworkCollector(Tape, always(0), frames_per_batch=8, total_frames=8, overlap=True, num_collectors=2)


def test_one_exploration_type_serves_the_whole_process() -> None:
    """Why a collector in a thread is warned of: TorchRL's losses set it while they are computed."""
    with set_exploration_type(ExplorationType.DETERMINISTIC), ThreadPoolExecutor(1) as thread:
        assert thread.submit(exploration_type).result() is ExplorationType.DETERMINISTIC
