"""The score of a teacher beside its student's, as every drop_in_*.py script ends with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase

from torchrl_rtpd.evaluation import Evaluator, normalised_score
from torchrl_rtpd.networks import num_parameters
from torchrl_rtpd.report import results_table, run_environment, write_json


def compare(
    make_env: Callable[[int], EnvBase], networks: Mapping[str, TensorDictModule], *, episodes: int, seed: int
) -> dict[str, Any]:
    """Play each network, and a random player, on the same games; the first network is the teacher.

    Every game has a slot of its own in an environment made for this, and a seed that training never used. Policies play
    without exploration. Scores are raw returns; ``normalised`` is 0 for the random player and 1 for the teacher.
    """
    evaluator = Evaluator(lambda: make_env(episodes), episodes=episodes, epsilon=0.0, seed=10_000_000 + seed)
    teacher = next(iter(networks.values()))
    random_score = evaluator(teacher, epsilon=1.0)
    scores = {name: evaluator(network) for name, network in networks.items()}
    evaluator.close()
    teacher_mean = next(iter(scores.values())).mean
    rows = [
        {
            "name": name,
            "role": "teacher" if network is teacher else "student",
            "parameters": num_parameters(network),
            "parameter_ratio": num_parameters(network) / num_parameters(teacher),
            "score_mean": scores[name].mean,
            "score_std": scores[name].std,
            "episodes": scores[name].episodes,
            "percent_of_teacher": 100 * scores[name].mean / teacher_mean,
            "normalised": normalised_score(scores[name].mean, random_score.mean, teacher_mean),
        }
        for name, network in networks.items()
    ]
    return {"random_score": random_score.mean, "networks": rows}


def report(results: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Print the table; with a folder, write ``results.json`` there. Returns the results with command and versions."""
    results = {**results, "environment": run_environment()}
    print(results_table(results))
    if out is not None:
        write_json(Path(out) / "results.json", results)
    return results
