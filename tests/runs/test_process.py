"""Settings of the process."""

import platform
import subprocess
import sys
from pathlib import Path

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


LARGE_PAGES = """
from pathlib import Path
import torch
from torchrl_rtpd.runs.process import keep_freed_memory
assert keep_freed_memory() and keep_freed_memory()
held = [torch.ones(1_000_000) for _ in range(40)]  # 4 MB each
in_heap, sizes = False, {"Size": 0, "Rss": 0, "AnonHugePages": 0}
for name, *rest in map(str.split, Path("/proc/self/smaps").read_text().splitlines()):
    if not name.endswith(":"):
        in_heap = rest[-1] == "[heap]"
    elif in_heap and name[:-1] in sizes:
        sizes[name[:-1]] += int(rest[0]) // 1024
print(*sizes.values())
"""
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="Linux gives no large pages here")
def test_the_heap_is_held_in_large_pages():
    """Of 160 MB most, in MB; addresses are taken for 512 MB, once, and memory for what is used."""
    done = subprocess.run([sys.executable, "-c", LARGE_PAGES], check=True, capture_output=True, text=True)
    addresses, memory, large = map(int, done.stdout.split())
    assert large > 100
    assert addresses < 1_000 and memory < 500
