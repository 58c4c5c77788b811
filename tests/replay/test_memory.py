"""Memory of a replay: whether it fits, how much it takes, and frames in a file."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from replay_parts import Stream, assert_same, atari_rollout, buffer_of, filled, naive

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.replay.buffer import make_replay_buffer
from torchrl_rtpd.replay.memory import available_bytes, check_fits
from torchrl_rtpd.replay.storage import FrameStackStorage


def test_available_memory_is_that_of_the_system():
    """What /proc/meminfo says, within what other programs may take meanwhile."""
    with open("/proc/meminfo") as meminfo:
        kilobytes = next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable"))
    assert available_bytes() == pytest.approx(1024 * kilobytes, rel=0.1)


def test_unknown_devices_are_not_judged():
    assert available_bytes("meta") is None
    check_fits(1e18, "a replay", "store less", "meta")


def test_what_does_not_fit_is_refused_with_both_numbers():
    check_fits(1.0, "a replay", "store less")
    with pytest.raises(
        MemoryError, match=r"a replay needs 1,000,000\.0 GB on cpu, where [\d.]+ GB are .*; store less\."
    ):
        check_fits(1e15, "a replay", "store less")


def test_a_replay_that_cannot_fit_is_refused_before_anything_is_stored():
    with pytest.raises(MemoryError, match=r"a replay of 1,000,000,000 .* needs 7,1\d\d\.\d GB .* lower max_size"):
        FrameStackStorage(1_000_000_000, num_envs=8)


def test_the_estimate_is_what_is_held():
    """Of a storage of this size, within one per cent; below 7.2 kB a transition at a million."""
    buffer = make_replay_buffer(FrameStackStorage(4_000, num_envs=2, steps_per_write=10), batch_size=4)
    env = AtariVecEnv("pong", 2, seed=0)
    buffer.extend(env.rollout(10, policy=None, break_when_any_done=False).reshape(-1))
    env.close()
    storage = buffer.storage
    assert storage.estimated_bytes == pytest.approx(storage.bytes_per_transition * storage.max_size, rel=0.01)
    large = FrameStackStorage(1_000_000, num_envs=8)
    assert large.estimated_bytes / large.max_size < 7_200
    assert large.state_dict()["_frames"].numel() == 0  # nothing is held yet


# Bytes a transition


def test_a_transition_of_atari_takes_at_most_7200_bytes() -> None:
    """At a capacity of 100,000, of which only what is written takes memory, with the entries that a collector adds.

    Breakout under random play has about the shortest games there are, so the final frames that they add are counted in:
    one for each game, and the storage makes room for an eighth more.
    """
    rollout = atari_rollout("breakout", 4, 280)
    rollout["collector", "traj_ids"] = torch.zeros(4, 280, dtype=torch.int64)
    storage = FrameStackStorage(100_000, num_envs=4, steps_per_write=280 // 14)
    assert storage.bytes_per_transition == 0
    buffer = buffer_of(storage)
    before = None
    for batch in rollout.split(20, 1):
        buffer.extend(batch.reshape(-1))
        before = before or storage.bytes_per_transition
    games = rollout["next", "done"].sum().item()
    assert games >= 4
    assert before + 84 * 84 * 9 / 8 * games / (4 * 280) < 7_200


def test_memory_is_one_frame_a_transition_and_a_few_more() -> None:
    """A frame has 6 bytes, bookkeeping 6, the other entries 32; 9 final frames are given room for 16."""
    stream = Stream(2, ends=[(step, slot) for step in range(5, 8) for slot in range(2)] + [(8, 0), (8, 1), (9, 0)])
    buffer, _ = filled(stream, 20, 3)
    entries = 3 * 8 + 4 + 4 * 1
    assert buffer.storage.bytes_per_transition == ((20 + 8 + 1) * 6 + 20 * (6 + entries)) / 20
    for _ in range(7):
        buffer.extend(stream.play(1).reshape(-1))
    assert buffer.storage.bytes_per_transition == ((20 + 8 + 1) * 6 + 16 * 6 + 20 * (6 + entries)) / 20


def test_places_of_old_final_frames_are_used_again() -> None:
    """A game of one step in every slot, for five turns of the ring: memory stops growing after the first."""
    stream = Stream(2, ends=[(step, slot) for step in range(60) for slot in range(2)])
    buffer, _ = filled(stream, 20, 10)
    size = buffer.storage.bytes_per_transition
    whole = naive(20)
    for _ in range(50):
        batch = stream.play(1).reshape(-1)
        buffer.extend(batch)
        whole.extend(batch)
    assert buffer.storage.bytes_per_transition <= size + 8 * 6 / 20
    assert_same(buffer[:], whole[:])


# Frames in a file


def mapped_files() -> list[str]:
    """Files of frames that this process has mapped, by Linux's own account."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "replay-" in line]


def test_frames_in_a_file_are_those_in_memory_and_leave_nothing_behind(tmp_path: Path) -> None:
    """Over a turn of the ring, and restored; the file has no name while it is used and no space afterwards."""
    buffers = [filled(Stream(2, ends=[(3, 0), (8, 1)]), 20, 25, scratch_dir=folder)[0] for folder in (None, tmp_path)]
    in_memory, in_file = (buffer.storage for buffer in buffers)
    assert len(mapped_files()) == 1 and not list(tmp_path.iterdir())
    assert_same(in_file.get(range(20)), in_memory.get(range(20)))
    restored = FrameStackStorage(20, num_envs=2, scratch_dir=tmp_path)
    restored.load_state_dict(in_memory.state_dict())
    assert len(mapped_files()) == 2
    assert_same(restored.get(range(20)), in_memory.get(range(20)))
    del buffers, in_file, restored
    gc.collect()
    assert not mapped_files()


def test_a_file_that_cannot_be_had_is_an_early_error(tmp_path: Path) -> None:
    with pytest.raises(
        MemoryError, match=rf"a replay of 1,000,000,000,000 .* GB on {tmp_path}, where .* lower max_size"
    ):
        FrameStackStorage(1_000_000_000_000, num_envs=2, scratch_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        FrameStackStorage(20, num_envs=2, scratch_dir=tmp_path / "missing")
    with pytest.raises(ValueError, match="a file holds frames for the CPU only: got scratch_dir and device=meta; give"):
        FrameStackStorage(20, num_envs=2, scratch_dir=tmp_path, device="meta")
