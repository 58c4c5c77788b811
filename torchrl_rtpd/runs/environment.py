"""Command, versions, hardware and commit of a run, written beside its results."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["run_environment"]


def run_environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return command, versions, hardware and commit of this run, to stand beside its numbers."""
    packages = ("torch", "torchrl", "tensordict", "gymnasium", "ale-py", "torchrl_rtpd")
    device = torch.device(device)
    return {
        "command": _command(),
        "commit": _git_commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def _command() -> str:
    """The command of this process: ``python -m`` a module, or a script as it is called from here."""
    script, *arguments = sys.argv
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        start = f"-m {spec.name.removesuffix('.__main__')}"
    elif Path(script).is_absolute() and Path(script).is_relative_to(Path.cwd()):
        start = str(Path(script).relative_to(Path.cwd()))
    else:
        start = script
    return " ".join(["python", start, *arguments])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that was not installed
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    instructions = torch.backends.cpu.get_cpu_capability()
    if any(line.startswith("flags") and "avx512_bf16" in line.split() for line in lines):
        instructions += " with bfloat16"
    return f"{model}, {os.cpu_count()} cores, {instructions}"
