"""The score of a teacher beside its students', for scripts that train by a loop of their own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torchrl import torchrl_logger
from torchrl.envs import EnvBase

from torchrl_rtpd import Evaluator
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.final import compared_scores, network_sizes
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.report import results_table


def quiet() -> None:
    """Leave out what nobody can act on: TorchRL says that its trainers are experimental, and hooks to be replaced."""
    warnings.filterwarnings("ignore", message=r"\w+Trainer is an experimental", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torchrl")
    torchrl_logger.setLevel("WARNING")
    for library in ("onnxscript", "onnx_ir"):  # passes over a student that is being exported
        logging.getLogger(library).setLevel("WARNING")


def begin() -> None:
    """Prepare the process of a script: quiet, and in one thread, since its networks are too small for more."""
    quiet()
    torch.set_num_threads(1)


def compare(
    make_env: Callable[[int], EnvBase], networks: Mapping[str, TensorDictModule], *, episodes: int, seed: int
) -> dict[str, Any]:
    """Play each network, and a random player, on the same games; the first network is the teacher.

    Every game has a slot of its own in an environment made for this, and a seed that training never used. Policies play
    without exploration.
    """
    evaluator = Evaluator(lambda: make_env(episodes), episodes=episodes, epsilon=0.0)
    _, compared = compared_scores(networks, evaluator, seed=10_000_000 + seed)
    evaluator.close()
    rows = compared.pop("rows")
    return {**compared, "networks": [{**size, **rows[name]} for name, size in network_sizes(networks).items()]}


def report(results: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Print the table; with a folder, write ``results.json`` there. Returns the results with command and versions."""
    results = {**results, "environment": run_environment()}
    print(results_table(results))
    if out is not None:
        write_json(Path(out) / "results.json", results)
    return results
