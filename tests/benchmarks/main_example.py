"""The main example for benchmarks: its parts, and its speed in training."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import rtpd_atari  # examples are scripts, not a package

__all__ = ["ROOT", "rtpd_atari", "steps_per_second"]

ROOT = Path(__file__).resolve().parents[2]


def steps_per_second(**overrides: object) -> float:
    """Agent steps a second from the first update on, of a run that only trains: no evaluation, recycling or display.

    Args:
        overrides: keys of ``examples/config/rtpd_atari.yaml``.
    """
    with tempfile.TemporaryDirectory() as folder:
        training_alone = {
            "output_dir": folder,
            "threads": 2,
            "recycle_every_updates": "null",
            "evaluate_every_steps": "null",
            "tensorboard": "false",
            "progress_bar": "false",
        }
        command = [sys.executable, str(ROOT / "examples" / "rtpd_atari.py")]
        command += [f"{key}={value}" for key, value in {**training_alone, **overrides}.items()]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        return json.loads((Path(folder) / "results.json").read_text())["steps_per_second"]
