"""A stored replay goes on after it was saved, and a state that does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from replay_parts import Stream, assert_same, atari_rollout, buffer_of, filled

from torchrl_rtpd.replay.buffer import make_replay_buffer
from torchrl_rtpd.replay.storage import FrameStackStorage


def test_a_restored_storage_gives_identical_samples_and_goes_on_identically() -> None:
    """In the middle of a game, after the ring has turned; the two share nothing."""
    ends = [(1, 0), (7, 1), (9, 0), (13, 1)]
    stream = Stream(2, ends=ends)
    first = make_replay_buffer(FrameStackStorage(12, num_envs=2, n_step=2), batch_size=32, seed=3)
    second = make_replay_buffer(FrameStackStorage(12, num_envs=2, n_step=2), batch_size=32, seed=4)
    for _ in range(9):
        first.extend(stream.play(1).reshape(-1))
    second.load_state_dict(first.state_dict())
    kept = first[:]
    assert_same(second[:], kept)
    assert_same(second.sample(), first.sample())
    batches = [stream.play(1).reshape(-1) for _ in range(7)]
    for batch in batches:
        first.extend(batch)
    assert_same(second[:], kept)
    for batch in batches:
        second.extend(batch)
    assert_same(second[:], first[:])
    assert_same(second.sample(), first.sample())


def test_priorities_are_restored_with_their_transitions() -> None:
    buffers = [
        make_replay_buffer(FrameStackStorage(12, num_envs=2), batch_size=16, prioritized=True, alpha=1.0)
        for _ in range(2)
    ]
    stream = Stream(2)
    for _ in range(8):
        buffers[0].extend(stream.play(1).reshape(-1))
    buffers[0].update_priority(torch.arange(12), torch.tensor([0.0] * 5 + [1e6] + [0.0] * 6))
    buffers[1].load_state_dict(buffers[0].state_dict())
    assert set(buffers[1].sample()["index"].tolist()) == {5}
    assert_same(buffers[1][:], buffers[0][:])


def test_a_storage_that_was_never_written_can_be_restored() -> None:
    storage, restored = FrameStackStorage(8, num_envs=2), FrameStackStorage(8, num_envs=2)
    restored.set(range(2), Stream(2).play(1).reshape(-1))
    restored.load_state_dict(storage.state_dict())
    assert len(restored) == 0
    restored.set(range(2), Stream(2).play(1).reshape(-1))
    assert_same(restored[:], Stream(2).play(1).reshape(-1))


def test_a_state_survives_a_file_without_code(tmp_path: Path) -> None:
    """``torch.load`` with ``weights_only`` accepts it."""
    buffer, _ = filled(Stream(2, ends=[(1, 0)]), 8, 5)
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    restored = buffer_of(FrameStackStorage(8, num_envs=2))
    restored.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    assert_same(restored[:], buffer[:])


def test_a_buffers_own_dumps_and_loads_keep_everything(tmp_path: Path) -> None:
    stream = Stream(2, ends=[(1, 0)])
    buffer, _ = filled(stream, 8, 5)
    restored = buffer_of(FrameStackStorage(8, num_envs=2))
    for _ in range(2):  # the second time over the first one's files
        buffer.extend(stream.play(1).reshape(-1))
        buffer.dumps(tmp_path / "saved")
        restored.loads(tmp_path / "saved")
        assert_same(restored[:], buffer[:])
    batch = stream.play(1).reshape(-1)
    buffer.extend(batch)
    restored.extend(batch)
    assert_same(restored[:], buffer[:])


@pytest.mark.parametrize(
    "sizes",
    [{"max_size": 16}, {"num_envs": 1}, {"steps_per_write": 2}, {"frame_stack": 3}],
    ids=lambda sizes: next(iter(sizes)),
)
def test_a_state_of_other_sizes_is_refused(sizes: dict) -> None:
    buffer, _ = filled(Stream(2), 8, 2)
    other = FrameStackStorage(**{"max_size": 8, "num_envs": 2, **sizes})
    (name, value), *_ = sizes.items()
    with pytest.raises(
        ValueError, match=rf"fits only one of its sizes, .*'num_envs': 2.*: got .*'{name}': {value}.*; build"
    ):
        other.load_state_dict(buffer.storage.state_dict())
    assert len(other) == 0


def test_the_names_of_a_state_are_those_of_files_written_before() -> None:
    """And so are its sizes; colours are named only where there are any."""
    buffer, _ = filled(Stream(2), 8, 2)
    ring = {"_num_written", "_single", "_frames", "_finals", "_free_finals", "_final_index", "_depth"}
    state = buffer.storage.state_dict()
    assert set(state) == {"sizes", "extra", "_stop"} | ring
    assert state["sizes"] == {"max_size": 8, "num_envs": 2, "steps_per_write": 1, "frame_stack": 4}
    colours = FrameStackStorage(8, num_envs=2, channels=3)
    assert colours.state_dict()["sizes"]["channels"] == 3
    with pytest.raises(ValueError, match=r"fits only one of its sizes, .*'channels': 3.*: got "):
        FrameStackStorage(8, num_envs=2).load_state_dict(colours.state_dict())


def test_a_replay_saved_before_there_was_a_raw_episode_reward_goes_on_without_it() -> None:
    """As it was; any other new entry is refused as ever."""
    rollout = atari_rollout("pong", 2, 6)
    newer = ["raw_episode_reward", ("next", "raw_episode_reward")]
    old = buffer_of(FrameStackStorage(12, num_envs=2, steps_per_write=2))
    old.extend(rollout[:, :2].exclude(*newer).reshape(-1))
    restored = buffer_of(FrameStackStorage(12, num_envs=2, steps_per_write=2))
    restored.load_state_dict(old.state_dict())
    restored.extend(rollout[:, 2:4].reshape(-1))
    assert_same(restored[4:8], rollout[:, 2:4].exclude(*newer).reshape(-1))
    with pytest.raises(ValueError, match="got more, fewer or others at surprise; give"):
        restored.extend(rollout[:, 4:].set("surprise", torch.zeros(2, 2)).reshape(-1))
