"""Settings of the process."""

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys, torch
from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.runs.process import keep_freed_memory
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
