"""Final scores of a run: kept and last networks, on games that chose none of them.

Scores are raw returns of whole games; ``normalised`` is 0 for the random player and 1 for the teacher.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule

from torchrl_rtpd.evaluation.comparison import paper_percentages
from torchrl_rtpd.evaluation.evaluator import Evaluator
from torchrl_rtpd.evaluation.scores import (
    Scores,
    agreement_with_teacher,
    favourite_action_share,
    regret_of_students,
)
from torchrl_rtpd.functional.scores import normalised_score
from torchrl_rtpd.networks.towers import num_parameters
from torchrl_rtpd.runs.deployed import deployed_row
from torchrl_rtpd.runs.metrics import read_metrics
from torchrl_rtpd.runs.monitor import RunMonitor

__all__ = ["compared_scores", "final_results", "network_sizes", "teacher_name"]

_STATES = 512  # of a network's games: agreement, regret, and ranges of 8-bit integers
_COMPARED = tuple(f"{whose}{measure}" for whose in ("", "own_") for measure in ("agreement", "favourite", "regret"))


def teacher_name(networks: Mapping[str, TensorDictModule]) -> str | None:
    """Name of the teacher: the first of several networks; a network alone is one if it is called so.

    Examples:
        >>> teacher_name({"big": None, "small": None}), teacher_name({"teacher": None}), teacher_name({"net17": None})
        ('big', 'teacher', None)
    """
    first = next(iter(networks))
    return first if len(networks) > 1 or first == "teacher" else None


def network_sizes(networks: Mapping[str, TensorDictModule]) -> dict[str, dict[str, Any]]:
    """Role, parameters and their ratio to the teacher's, by name; for ``results.json``."""
    teacher = teacher_name(networks)
    whole = None if teacher is None else num_parameters(networks[teacher])
    return {
        name: {
            "name": name,
            "role": "teacher" if name == teacher else "student",
            "parameters": num_parameters(network),
            "parameter_ratio": num_parameters(network) / whole if whole else None,
        }
        for name, network in networks.items()
    }


def compared_scores(
    networks: Mapping[str, TensorDictModule],
    evaluator: Evaluator,
    *,
    seed: int,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[dict[str, Scores], dict[str, Any]]:
    """Play each network, and a random player, on the same games, and compare them with the teacher.

    Args:
        networks: by name; see :func:`teacher_name`.
        evaluator: plays its quota of games.
        seed: of the games.
        should_stop: asked after each step of the games; True gives up.

    Returns:
        Scores by name; and ``random_score``, ``random_standard_error`` and ``rows``, a mapping for each name with
        ``score_mean``, ``score_std``, ``score_standard_error``, ``episodes`` and ``cut_episodes``; if there is a
        teacher, also ``percent_of_teacher``, ``normalised`` and, where networks value actions and see what the teacher
        sees, ``agreement``, ``regret`` and ``favourite`` in states of the teacher's games: the last is the agreement of
        a network that always takes the teacher's favourite action there. ``own_agreement``, ``own_regret`` and
        ``own_favourite`` are those in states of the network's own games, where these hold what the teacher reads. The
        first network's scores hold the states that it met.

    Raises:
        EvaluationStopped: games that were given up.
    """
    scores, compared = _played(networks, evaluator, seed, should_stop)
    teacher, first = teacher_name(networks), next(iter(networks))
    chance = evaluator(networks[first], seed=seed, epsilon=1.0, should_stop=should_stop)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "score_mean": found.mean,
            "score_std": found.std,
            "score_standard_error": found.standard_error,
            "episodes": found.episodes,
            "cut_episodes": found.cut,
            **({} if teacher is None else _beside_teacher(found.mean, scores[teacher].mean, chance.mean)),
            **compared[name],
        }
        for name, found in scores.items()
    }
    return scores, {"random_score": chance.mean, "random_standard_error": chance.standard_error, "rows": rows}


def _played(
    networks: Mapping[str, TensorDictModule], evaluator: Evaluator, seed: int, should_stop: Callable[[], bool] | None
) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """Scores of each network on the same games, and how it compares with the teacher, in its states and its own."""
    teacher, first = teacher_name(networks), next(iter(networks))
    scores: dict[str, Scores] = {}
    compared: dict[str, dict[str, float]] = {name: {} for name in networks}
    for name, network in networks.items():
        kept = _STATES if teacher or name == first else 0
        found = evaluator(network, seed=seed, keep_observations=kept, should_stop=should_stop)
        scores[name] = found if name == first else dataclasses.replace(found, observations=None)
        if teacher is not None:
            there = _compared(networks[teacher], name, network, scores[teacher].observations)
            own = (
                _compared(networks[teacher], name, network, found.observations) if there and name != teacher else there
            )
            compared[name] = there | {f"own_{key}": value for key, value in own.items()}
    return scores, compared


def _beside_teacher(score: float, teacher_score: float, random_score: float) -> dict[str, float | None]:
    return {
        "percent_of_teacher": 100 * score / teacher_score if teacher_score > 0 else None,
        "normalised": normalised_score(score, random_score, teacher_score),
    }


def _compared(
    teacher: TensorDictModule, name: str, network: TensorDictModule, states: TensorDictBase | None
) -> dict[str, float]:
    """Agreement, its least, and regret of a network in states ``[K]``, where they can be told."""
    if states is None or not all("action_value" in each.out_keys for each in (teacher, network)):
        return {}
    if not set(states.keys(include_nested=True)).issuperset([*teacher.in_keys, *network.in_keys]):
        return {}
    student = {name: network}
    try:
        return {
            "agreement": agreement_with_teacher(teacher, student, states)[name],
            "favourite": favourite_action_share(teacher, states),
            "regret": regret_of_students(teacher, student, states)[name],
        }
    except ValueError as error:  # a report of a run of days must not end here
        warnings.warn(f"the report has no agreement of {name!r}: {error}", stacklevel=2)
        return {}


def final_results(
    monitor: RunMonitor, *, games: int | None, seed: int, should_stop: Callable[[], bool] | None = None
) -> tuple[dict[str, Any], TensorDictBase | None]:
    """Entries of ``results.json`` on the networks that a run has kept, a row each under ``networks``.

    ``kept_score`` is the score for which a network was kept, ``last_score`` that of the last evaluation, and
    ``final_score`` that of the last weights in the final games, with its ``final_standard_error``; so are
    ``final_agreement`` and others that begin with ``final_``, of the last weights of network and teacher. Latencies are
    those of :func:`~torchrl_rtpd.runs.deployed.deployed_row`.

    Args:
        monitor: has watched the run; its evaluator plays.
        games: of each slot of the evaluator; None plays none, and leaves the scores out.
        seed: of the games; one that no evaluation of the run has used.
        should_stop: asked after each step of the games; True gives up.

    Returns:
        ``random_score`` and ``random_standard_error``, if games were played, and ``networks``; and up to 512 states of
        the first network's final games, None without games.

    Raises:
        EvaluationStopped: games that were given up.
    """
    played: dict[str, Any] = {"rows": {}}
    states = None
    if games is not None:
        monitor.evaluator.quota = games
        scores, played = compared_scores(monitor.best, monitor.evaluator, seed=seed, should_stop=should_stop)
        states = next(iter(scores.values())).observations
        last = _of_last_weights(monitor, scores, played["rows"], seed, should_stop)
        for name, row in played["rows"].items():
            row.update(_scores_of_the_run(monitor, name), **last[name])
    rows = played.pop("rows")
    ratios = _during_training(monitor, played.get("random_score"))
    networks = []
    for name, size in network_sizes(monitor.best).items():
        deployed = deployed_row(name, monitor.best[name], monitor.evaluator.env, states)
        networks.append({**size, **deployed, **rows.get(name, {}), **ratios.get(name, {})})
    return {**played, "networks": networks}, states


def _scores_of_the_run(monitor: RunMonitor, name: str) -> dict[str, float | None]:
    kept, last = monitor.best_scores.get(name), monitor.last_scores.get(name)
    return {"kept_score": kept.mean if kept else None, "last_score": last.mean if last else None}


def _of_last_weights(
    monitor: RunMonitor,
    kept: Mapping[str, Scores],
    rows: Mapping[str, Mapping[str, float]],
    seed: int,
    should_stop: Callable[[], bool] | None,
) -> dict[str, dict[str, float]]:
    """Score of the last weights, and how they compare with the teacher's last; they often are the kept ones."""
    scores, compared = kept, rows
    if not all(_same(network, monitor.best[name]) for name, network in monitor.networks.items()):
        scores, compared = _played(monitor.networks, monitor.evaluator, seed, should_stop)
    return {
        name: {
            "final_score": found.mean,
            "final_standard_error": found.standard_error,
            **{f"final_{key}": compared[name][key] for key in _COMPARED if key in compared[name]},
        }
        for name, found in scores.items()
    }


def _same(network: TensorDictModule, kept: TensorDictModule) -> bool:
    state = kept.state_dict()
    return all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def _during_training(monitor: RunMonitor, random_score: float | None) -> dict[str, dict[str, float | None]]:
    """The paper's Max and Mean of each student, and sane ratios beside them, from the evaluations of the run."""
    teacher = teacher_name(monitor.best)
    if random_score is None or teacher is None:
        return {}
    metrics = read_metrics(monitor.metrics.path)
    scores = {name: _finite(metrics[f"{name}/score"]) for name in monitor.best}
    if not scores[teacher]:
        return {}
    return {
        name: paper_percentages(own, scores[teacher], random_score) for name, own in scores.items() if name != teacher
    }


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
