"""Whether what a run is about to hold fits."""

import platform
import subprocess
import sys

import pytest
import torch

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
    assert torch.equal(torch.tensor(large._frames.shape), torch.zeros(3, dtype=torch.long))  # nothing is held yet


COUNT_FAULTS = """
import resource, sys, torch
from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.replay.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def update():
    blocks = [torch.ones(1_000_000) for _ in range(20)]  # 4 MB each
    return sum(block[0] for block in blocks)
update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    update()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_kept_memory_is_used_again_without_page_faults():
    """Twenty updates that take and free 80 MB each: 20,000 pages an update by default."""
    faults = {}
    for setting in ("keep", "default"):
        command = [sys.executable, "-c", COUNT_FAULTS, setting]
        faults[setting] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert faults["keep"] < 0.1 * faults["default"]
