"""The storage in TorchRL's buffers, samplers and trainers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from replay_parts import Stream, assert_same, naive
from torchrl.collectors import Collector
from torchrl.data import (
    PrioritizedSampler,
    RandomSampler,
    ReplayBuffer,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
)
from torchrl.trainers import ReplayBufferTrainer

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.replay.buffer import make_replay_buffer
from torchrl_rtpd.replay.storage import FrameStackStorage


@pytest.mark.parametrize("kind", [ReplayBuffer, TensorDictReplayBuffer])
@pytest.mark.parametrize(
    "sampler", [RandomSampler, SamplerWithoutReplacement, lambda: PrioritizedSampler(12, 0.7, 0.5)]
)
def test_samples_are_stored_transitions(kind: type, sampler: type) -> None:
    stream, whole = Stream(2, ends=[(2, 0), (5, 0), (5, 1)]), naive(12)
    buffer = kind(storage=FrameStackStorage(12, num_envs=2), sampler=sampler(), batch_size=8)
    for _ in range(8):
        batch = stream.play(1).reshape(-1)
        buffer.extend(batch)
        whole.extend(batch)
    sample, info = buffer.sample(return_info=True)
    assert sample.batch_size == (8,)
    extra = ["index", "priority_weight", "_weight"]
    assert_same(sample.exclude(*extra), whole[:][info["index"]])


def test_priorities_land_on_the_transitions_they_were_given_to() -> None:
    """Also after the ring has turned: whatever has all the priority is all that is sampled."""
    stream = Stream(2, ends=[(2, 0)])
    buffer = make_replay_buffer(
        FrameStackStorage(24, num_envs=2, steps_per_write=3), batch_size=64, prioritized=True, alpha=1.0
    )
    for write in range(7):
        buffer.extend(stream.play(3).reshape(-1))
        chosen = (3 * write + 1, write % 2)
        everything = buffer[:].set("index", torch.arange(len(buffer)))
        wanted = (everything["step"] == chosen[0]) & (everything["slot"] == chosen[1])
        assert wanted.sum().item() == 1
        buffer.update_tensordict_priority(everything.set("td_error", torch.where(wanted, 1e6, 0.0)))
        sample = buffer.sample()
        assert set(zip(sample["step"].tolist(), sample["slot"].tolist(), strict=True)) == {chosen}


def test_sampled_batches_carry_priorities_back() -> None:
    """A priority set on a sampled batch reaches the index that the batch says."""
    buffer = make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=6, prioritized=True, alpha=1.0, seed=0)
    stream = Stream(2)
    for _ in range(6):
        buffer.extend(stream.play(1).reshape(-1))
    everything = buffer[:].set("index", torch.arange(12)).set("td_error", torch.full((12,), 1e-6))
    sample = buffer.sample()
    assert sample["priority_weight"].shape == (6,)
    buffer.update_tensordict_priority(everything)
    buffer.update_tensordict_priority(sample.set("td_error", torch.full((6,), 1e6)))
    again = torch.cat([buffer.sample() for _ in range(8)])
    assert set(again["index"].tolist()) == set(sample["index"].tolist())
    assert torch.equal(again["step"], again["index"] // 2)
    assert torch.equal(again["slot"], again["index"] % 2)


def test_a_stock_trainers_hook_fills_and_samples_it() -> None:
    """It flattens [N, T] batches and marks the last step of each as truncated, which changes no stack and no sum."""
    collector = Collector(
        lambda: AtariVecEnv("breakout", 2, seed=0, max_frames=52), frames_per_batch=20, total_frames=200
    )
    storage = FrameStackStorage(60, num_envs=2, steps_per_write=10, n_step=3)
    buffer, whole = make_replay_buffer(storage, batch_size=16), naive(60)
    hook = ReplayBufferTrainer(buffer, flatten_tensordicts=True)
    for batch in collector:
        whole.extend(batch.reshape(-1).clone())
        hook.extend(batch)
        sample = hook.sample(batch)
        hook.update_priority(sample)
        truth = whole[:][sample["index"]]
        assert torch.equal(sample["pixels"], truth["pixels"])
        assert torch.equal(sample["collector", "traj_ids"], truth["collector", "traj_ids"])
        assert_same(buffer[:].select("pixels", "action"), whole[:].select("pixels", "action"))
    collector.shutdown()
    found = buffer[:]
    assert found["next", "truncated"].sum() > whole[:]["next", "truncated"].sum() > 0
    lengths = found["steps_to_next_obs"].reshape(3, 2, 10)
    assert (lengths[:, :, 7:9] == 3).any()  # across the steps that the hook marked


def test_a_seed_makes_samples_reproducible_and_leaves_the_global_generator() -> None:
    stream = Stream(2)
    batches = [stream.play(1).reshape(-1) for _ in range(6)]
    drawn = []
    before = torch.get_rng_state()
    for seed in (1, 1, 2):
        buffer = make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=32, seed=seed)
        for batch in batches:
            buffer.extend(batch)
        drawn.append(buffer.sample()["index"].tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:Got conflicting batch_sizes")  # TorchRL's, once, about any other size
def test_minibatches_drawn_together_are_those_drawn_one_by_one() -> None:
    """Also across a write, and while one of another size is asked for; each belongs to itself."""
    single, several = (
        make_replay_buffer(FrameStackStorage(12, num_envs=2, n_step=2), batch_size=8, seed=3, minibatches_at_once=count)
        for count in (1, 3)
    )
    stream = Stream(2, ends=[(2, 0), (5, 1)])
    for _ in range(4):
        batch = stream.play(1).reshape(-1)
        for buffer in (single, several):
            buffer.extend(batch)
        for number in range(3):
            one, other = single.sample(), several.sample()
            assert_same(other, one, number)
            other["pixels"].zero_()
    assert several.sample(5).batch_size == torch.Size([5])


@pytest.mark.parametrize("change", ["extend", "load_state_dict", "empty"])
def test_minibatches_drawn_before_a_change_are_not_handed_out_after_it(change: str) -> None:
    buffer = make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=4, minibatches_at_once=100)
    stream = Stream(2)
    buffer.extend(stream.play(1).reshape(-1))
    assert buffer.sample()["index"].max() < 2
    if change == "load_state_dict":
        other = make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=4)
        for _ in range(3):
            other.extend(stream.play(1).reshape(-1))
        buffer.load_state_dict(other.state_dict())
    elif change == "empty":
        buffer.empty()
        stream = Stream(2)
    if change != "load_state_dict":
        for _ in range(3):
            buffer.extend(stream.play(1).reshape(-1))
    assert torch.cat([buffer.sample()["index"] for _ in range(20)]).max() >= 4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"minibatches_at_once": 0}, "minibatches_at_once must be an integer of at least 1: got 0"),
        (
            {"minibatches_at_once": 2, "prioritized": True},
            "must be 1 for a prioritised buffer, .*: got 2; leave it out",
        ),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1: got 0"),
        ({"prioritized": True, "alpha": -1.0}, r"alpha must be .*, got alpha=-1\.0"),
        ({"prioritized": True, "beta": -0.5}, r"beta must be .*, got beta=-0\.5"),
    ],
)
def test_options_that_do_not_fit_are_refused_one_by_one(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_replay_buffer(FrameStackStorage(12, num_envs=2), **{"batch_size": 4, **options})


@pytest.mark.parametrize("prioritized", [False, True])
def test_without_a_seed_samples_follow_torchs_global_generator(prioritized: bool) -> None:
    """Numpy's, from which TorchRL's prioritised sampler draws, is neither read nor moved."""
    buffer = make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=32, prioritized=prioritized)
    stream = Stream(2)
    for _ in range(6):
        buffer.extend(stream.play(1).reshape(-1))
    numpy_state = np.random.get_state()[1].copy()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(buffer.sample()["index"].tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert (np.random.get_state()[1] == numpy_state).all()
    assert drawn[2] != buffer.sample()["index"].tolist()


def test_a_seed_makes_prioritised_samples_reproducible_whatever_the_global_generators() -> None:
    drawn = []
    for seed in (1, 1, 2):
        buffer = make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=32, prioritized=True, seed=seed)
        stream = Stream(2)
        for _ in range(6):
            buffer.extend(stream.play(1).reshape(-1))
        before = torch.get_rng_state()
        drawn.append(buffer.sample()["index"].tolist())
        assert torch.equal(torch.get_rng_state(), before)
    assert drawn[0] == drawn[1] != drawn[2]


def test_prioritised_replay_without_torchrls_extension_names_versions_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TorchRL leaves None where its compiled classes would be; uniform replay goes on working."""
    monkeypatch.setattr("torchrl.data.replay_buffers.samplers.prioritized.SumSegmentTreeFp32", None)
    storage = FrameStackStorage(4, num_envs=2)
    versions = rf"got torchrl 0\.\d+\.\d+ with torch {torch.__version__.replace('+', '.')}"
    with pytest.raises(
        RuntimeError, match=rf"must match torch: {versions}; install the pair in constraints\.txt, or sample"
    ):
        make_replay_buffer(storage, batch_size=2, prioritized=True)
    assert isinstance(make_replay_buffer(storage, batch_size=2).sampler, RandomSampler)
