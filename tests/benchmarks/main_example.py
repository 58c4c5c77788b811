"""The main example for benchmarks: its parts, and its speed in training."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import rtpd_atari  # examples are scripts, not a package

__all__ = ["ROOT", "known_keys", "rtpd_atari", "steps_per_second"]

ROOT = Path(__file__).resolve().parents[2]


def steps_per_second(root: Path = ROOT, **overrides: object) -> float:
    """Agent steps a second from the first update on, of a run that only trains: no evaluation, recycling or display.

    Args:
        root: the checkout whose example and package run. Keys that another checkout than this one does not know are
            left out.
        overrides: keys of ``examples/config/rtpd_atari.yaml``.

    Raises:
        RuntimeError: the example failed; the message has its command and what it printed.
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
        keys = {**training_alone, **overrides}
        if root != ROOT:
            keys = {key: value for key, value in keys.items() if key in known_keys(root)}
        command = [sys.executable, str(root / "examples" / "rtpd_atari.py")]
        command += [f"{key}={value}" for key, value in keys.items()]
        path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}  # its own package, whichever is installed
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=root, env=environment
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        return json.loads((Path(folder) / "results.json").read_text())["steps_per_second"]


def known_keys(root: Path) -> set[str]:
    """Keys that the main example of a checkout takes, read from its ``examples/settings.py``."""
    module = ast.parse((root / "examples" / "settings.py").read_text())
    (config,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    fields = (node.target for node in config.body if isinstance(node, ast.AnnAssign))
    return {field.id for field in fields if isinstance(field, ast.Name)}
