"""The main example cut and resumed twice from one checkpoint."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from main_example import ROOT, rtpd_atari
from safetensors.torch import load_file

from gpu_parts.update import distance
from torchrl_rtpd.runs.metrics import read_metrics

__all__ = ["example_config", "resumed"]


def example_config(folder: Path, device: str, *overrides: str) -> Any:
    """The main example's, for a run that only trains, captured where there is a GPU."""
    training_alone = ["recycle_every_updates=null", "evaluate_every_steps=null", "tensorboard=false", "threads=2"]
    graph = f"cudagraph={str(device.startswith('cuda')).lower()}"
    with initialize_config_dir(str(ROOT / "examples" / "config"), version_base="1.3"):
        return compose(
            "rtpd_atari",
            [*training_alone, "progress_bar=false", graph, f"device={device}", f"output_dir={folder}", *overrides],
        )


def resumed(device: str, steps: int) -> dict[str, Any]:
    """The main example to its end, and twice more from the checkpoint in its middle, replay included.

    Games of ALE cannot be saved and begin anew, so that the two resumed runs can be alike, and the first one cannot.
    """
    steps = max(256, min(steps, 4_096) // 256 * 256)
    small = [f"total_steps={steps}", f"warmup_steps={steps // 4}", f"replay_capacity={steps}", "num_envs=16"]
    small += ["students=[net1,net2,net3,net4,net5]", "steps_per_update=4", "batch_size=32", "n_step=3", "game=pong"]
    small += [f"checkpoint_every_steps={steps // 4}", "checkpoint_keep=9", "checkpoint_replay=true", "threads=2"]
    torch.backends.cudnn.deterministic = True
    warnings.filterwarnings("ignore", message="DQNTrainer is an experimental", category=UserWarning)
    with tempfile.TemporaryDirectory() as place:
        first = Path(place) / "first"
        rtpd_atari.run(example_config(first, device, *small))
        middle = min((first / "checkpoints").glob("checkpoint-*"), key=lambda path: abs(_steps(path) - steps // 2))
        size = sum(path.stat().st_size for path in middle.rglob("*") if path.is_file())
        runs = []
        for name in ("one", "other"):
            folder = Path(place) / name
            shutil.copytree(first, folder)
            config = example_config(folder, device, *small)
            config.resume = str(folder / "checkpoints" / middle.name)
            rtpd_atari.run(config)
            weights = {path.stem: load_file(path) for path in sorted((folder / "weights" / "last").iterdir())}
            runs.append((weights, read_metrics(folder / "metrics.csv")))
    torch.backends.cudnn.deterministic = False
    (one, rows), (other, other_rows) = runs
    clocks = ("seconds", "training_seconds", "cpu_seconds", "steps_per_second")
    differences = {name: max(distance(one[name][key], other[name][key]) for key in one[name]) for name in one}
    return {
        "steps": steps,
        "cut_at": _steps(middle),
        "captured": device.startswith("cuda"),
        "checkpoint_megabytes": size / 1e6,
        "steps_at_the_end": rows["steps"][-1],
        "updates_at_the_end": rows["updates"][-1],
        "largest_difference_of_weights_of_two_resumes": differences,
        "same_rows": all(str(rows[key]) == str(other_rows[key]) for key in rows if key not in clocks),
    }


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
