"""The score of a teacher beside its students', as every script ends with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase

from torchrl_rtpd.evaluation.comparison import paper_percentages
from torchrl_rtpd.evaluation.evaluator import Evaluator
from torchrl_rtpd.evaluation.scores import Scores, agreement_with_teacher
from torchrl_rtpd.functional.scores import normalised_score
from torchrl_rtpd.networks.towers import num_parameters
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.monitor import RunMonitor
from torchrl_rtpd.runs.report import results_table


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


def final_scores(monitor: RunMonitor, games: int, *, seed: int) -> dict[str, Any]:
    """Play the kept networks of a run on games that chose none of them, and compare them with the kept teacher.

    ``final_score`` is that of the last weights in the same games. Without a teacher there is nothing to compare with.
    """
    evaluator, networks = monitor.evaluator, monitor.best
    evaluator.quota = games
    scores = {
        name: evaluator(network, seed=seed, keep_observations=512 if name == "teacher" else 0)
        for name, network in networks.items()
    }
    last = {name: _of_last_weights(monitor, name, scores[name], seed) for name in networks}
    random_score = evaluator(next(iter(networks.values())), seed=seed, epsilon=1.0)
    compared: dict[str, dict[str, Any]] = {name: {} for name in networks}
    if "teacher" in networks:
        teacher_mean, states = scores["teacher"].mean, scores["teacher"].observations
        agreements = agreement_with_teacher(networks["teacher"], networks, states)
        for name, score in scores.items():
            compared[name] = {
                "percent_of_teacher": 100 * score.mean / teacher_mean if teacher_mean else None,
                "normalised": normalised_score(score.mean, random_score.mean, teacher_mean),
                "agreement": agreements[name],
            }
    rows = {
        name: {
            "score_mean": score.mean,
            "score_std": score.std,
            "score_standard_error": score.standard_error,
            "episodes": score.episodes,
            "cut_episodes": score.cut,
            **compared[name],
            "kept_score": monitor.best_scores[name].mean if name in monitor.best_scores else None,
            "last_score": monitor.last_scores[name].mean if name in monitor.last_scores else None,
            "final_score": last[name].mean,
        }
        for name, score in scores.items()
    }
    return {
        "random_score": random_score.mean,
        "random_standard_error": random_score.standard_error,
        "rows": rows,
    }


def during_training(
    metrics: Mapping[str, Sequence[float]], networks: Sequence[str], random_score: float | None
) -> dict[str, dict[str, float | None]]:
    """The paper's Max and Mean of each student, and what is sane beside them, from the evaluations of a run."""
    scores = {name: [score for score in metrics[f"{name}/score"] if not math.isnan(score)] for name in networks}
    if random_score is None or not scores.get("teacher"):
        return {}
    return {
        name: paper_percentages(own, scores["teacher"], random_score)
        for name, own in scores.items()
        if name != "teacher"
    }


def _of_last_weights(monitor: RunMonitor, name: str, kept: Scores, seed: int) -> Scores:
    """Scores of the last weights, which often are the kept ones."""
    state, last = monitor.best[name].state_dict(), monitor.networks[name].state_dict()
    same = all(torch.equal(state[key], value) for key, value in last.items())
    return kept if same else monitor.evaluator(monitor.networks[name], seed=seed)
