"""A run whose students learn beside their teacher is the run in which they learn after it, to the last bit."""

from __future__ import annotations

from pathlib import Path

import hydra
import numpy as np
import pytest
import rtpd_atari
import torch
from safetensors.torch import load_file

from torchrl_rtpd.runs.metrics import read_metrics

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = [
    *("total_steps=640", "evaluate_every_steps=320", "evaluate_from_steps=0", "evaluation_episodes=2"),
    *("final_episodes=2", "max_episode_steps=40", "students=[net3,net17]", "threads=1", "progress_bar=false"),
    *("tensorboard=false", "recycle_every_updates=20"),
]
DQN = ["warmup_steps=320", "replay_capacity=640", "target_every_updates=15"]
RUNS = {
    "rtpd": [*DQN, "acting=0.3"],
    "two_stage": [*DQN, "method=two_stage"],
    "pqn": ["teacher=pqn", "norm=null"],
}


def run(folder: Path, *overrides: str) -> Path:
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        rtpd_atari.run(hydra.compose("rtpd_atari", [*SHORT, f"output_dir={folder}", *overrides]))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("weights/last/*.safetensors"))
    return {f"{path.relative_to(folder)}: {name}": value for path in files for name, value in load_file(path).items()}


@pytest.mark.parametrize("name", RUNS)
def test_weights_and_metrics_are_those_of_a_run_in_one_thread(name: str, tmp_path: Path) -> None:
    one, other = (run(tmp_path / flag, f"concurrent={flag}", *RUNS[name]) for flag in ("false", "true"))
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys() and len(mine) >= 10
    assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    for path in sorted(one.rglob("metrics.csv")):
        first, second = read_metrics(path), read_metrics(other / path.relative_to(one))
        assert first.keys() == second.keys()
        same = [column for column in first if "second" not in column]
        np.testing.assert_equal([first[column] for column in same], [second[column] for column in same])
