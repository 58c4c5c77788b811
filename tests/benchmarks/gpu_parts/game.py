"""One real run of the main example by PQN with five students, cut where time is up and gone on with later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from main_example import ROOT

from gpu_parts.trainings import utilisation
from torchrl_rtpd.runs.metrics import read_metrics

__all__ = ["PONG", "SAVING", "game"]

PONG = [
    *["preset=pqn", "game=pong", "students=[net1,net2,net3,net4,net5]", "single_frames=true"],
    *["total_steps=2457600", "epsilon_steps=245760", "evaluate_every_steps=491520", "checkpoint_every_steps=245760"],
    *["evaluation_episodes=8", "final_episodes=16", "max_episode_steps=4000"],
]
"""Keys of the main example: 600 rollouts of 4,096 steps, a tenth of them exploring, scored five times on the way."""

SAVING = 40.0  # seconds that a run may take to save itself once it is told to stop


def command(device: str, folder: Path, overrides: Sequence[str]) -> list[str]:
    """Command of a run that begins, or goes on where its folder holds checkpoints."""
    script = [sys.executable, str(ROOT / "examples" / "rtpd_atari.py")]
    shown = [f"device={device}", "progress_bar=false", f"threads={os.cpu_count()}"]
    if list(folder.glob("checkpoints/checkpoint-*")):
        return [*script, f"resume={folder}", *shown]
    graph = f"cudagraph={str(device.startswith('cuda')).lower()}"
    return [*script, f"output_dir={folder}", "tensorboard=false", graph, *shown, *overrides]


def game(found: dict[str, Any], device: str, seconds: float, folder: Path, overrides: Sequence[str]) -> None:
    """Train as long as there is time, then let the run save itself, and report what it has by then.

    Args:
        found: what to fill; an entry ``"finished"`` once the run has ended by itself.
        device: where it learns.
        seconds: for all of it.
        folder: of the run; a later call goes on with it.
        overrides: keys of the main example.

    Raises:
        TimeoutError: the run is not at its end; a later call goes on.
        RuntimeError: it failed; the message ends with what it printed.
    """
    end = time.perf_counter() + seconds - SAVING
    run = command(device, folder, overrides)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    with log.open("a") as output, utilisation() as busy:
        process = subprocess.Popen(run, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            process.wait(max(1.0, end - time.perf_counter()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it saves a checkpoint and ends
            process.wait(SAVING)
        finally:
            process.kill()
    found["command"] = " ".join(run)
    found["device"] = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    found.update(progress(folder), **busy)
    if "finished" not in found:
        message = f"the run is at step {found.get('steps', 0):,.0f}; call again to go on"
        if process.returncode not in (0, -signal.SIGTERM, 128 + signal.SIGTERM) and not found.get("steps"):
            raise RuntimeError(f"{message}; it printed: {log.read_text()[-1_500:]}")
        raise TimeoutError(message)


def progress(folder: Path) -> dict[str, Any]:
    """Scores of a run so far, and the content of its results.json at its end."""
    found: dict[str, Any] = {}
    metrics = read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").exists() else {}
    if metrics.get("steps"):
        scores = {name: values for name, values in metrics.items() if name.endswith(("/score", "/score_std"))}
        kept = {name: metrics[name] for name in ("steps", "updates", "seconds", "training_seconds") if name in metrics}
        played = [row for row in range(len(metrics["steps"])) if any(v[row] == v[row] for v in scores.values())]
        found["evaluations"] = {name: [values[row] for row in played] for name, values in {**kept, **scores}.items()}
        found["steps"] = float(metrics["steps"][-1])
    if (folder / "results.json").exists():
        found["finished"] = json.loads((folder / "results.json").read_text())
    return found
