"""Blocks on clusters: scores on Ray beside those of one machine, and a model of cost from measured pieces.

From ``docs/results/distributed.json`` and ``docs/results/cluster.json``, which ``bench_distributed.py`` and
``bench_cluster.py`` of ``tests/benchmarks/`` save; an update's seconds on a GPU are those of ``docs/results/gpu.json``.

One round of a training in step: every collector plays a batch, the driver passes the batches on to the replay, the
learner makes its updates, and the weights go to every collector. A machine has ``CORES`` collectors.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from docs.pages.tables import made_by, markdown

CORES = 16  # collectors of a machine, one a core
BATCH_STEPS = 128  # of each collector in a round
STEPS_PER_UPDATE = {"dqn": 4, "pqn": 16}  # both by minibatches of 32, as measured: the main example's, and two passes
LINK_BYTES_PER_SECOND = 1.25e9  # ten gigabits, as between machines of one rack; assumed, not measured
MACHINES = (1, 10, 100)
NAMES = {
    "collecting": "playing",
    "link": "the link to the learner",
    "driver": "the driver",
    "learner": "updates",
    "broadcast": "sending weights",
}
WAYS = {
    "processes": "worker processes, learning in the driver",
    "ray, two learners": "Ray, two collectors and two learners",
    "ray, learning here": "Ray, two collectors, learning in the driver",
}


@dataclass(frozen=True)
class Pieces:
    """Measured numbers of one kind of teacher."""

    steps_per_second: float  # of a collector
    bytes_a_step: float  # that reach the learner's machine
    bytes_of_weights: float  # that leave it for each receiver
    driver_seconds: float  # a step, to pass it on to the replay
    update_seconds: float  # with the minibatch
    steps_per_update: int
    broadcast_seconds: float  # whatever the number of collectors
    broadcast_seconds_each: float  # for each receiver in addition
    receivers: int = CORES  # of weights, in a machine: its collectors, or one that has them as worker processes


def seconds_of_round(pieces: Pieces, machines: int) -> dict[str, float]:
    """Seconds of each part of a round, which follow one another when workers are in step."""
    collectors = machines * CORES
    steps, receivers = collectors * BATCH_STEPS, machines * pieces.receivers
    carried = steps * pieces.bytes_a_step + receivers * pieces.bytes_of_weights
    return {
        "collecting": BATCH_STEPS / pieces.steps_per_second,
        "link": carried / LINK_BYTES_PER_SECOND,
        "driver": steps * pieces.driver_seconds,
        "learner": steps / pieces.steps_per_update * pieces.update_seconds,
        "broadcast": pieces.broadcast_seconds + receivers * pieces.broadcast_seconds_each,
    }


def machines_where_it_bites(pieces: Pieces) -> dict[str, float]:
    """Number of machines from which a part takes longer than playing does; infinite for one that never does."""
    found = {}
    playing = BATCH_STEPS / pieces.steps_per_second
    for part in ("link", "driver", "learner", "broadcast"):
        alone = seconds_of_round(replace(pieces, broadcast_seconds=0.0), 1)[part]
        free = playing - (pieces.broadcast_seconds if part == "broadcast" else 0.0)
        found[part] = max(0.0, free) / alone if alone > 0 else math.inf
    return found


def distributed_block(result: dict[str, Any]) -> str:
    """Scores over seeds of each way to run the same training, and whether they are alike."""
    rows = [["teacher", "where", "seeds", "score of the teacher", "score of the student", "seconds"]]
    for teacher in result["compared"]:
        for way, label in WAYS.items():
            runs = [run for run in result["runs"] if (run["algorithm"], run["way"]) == (teacher, way)]
            if runs:
                scores = [_spread([run["scores"][name] for run in runs]) for name in ("teacher", "student")]
                seconds = statistics.median(run["seconds"] for run in runs)
                rows.append([teacher.upper(), label, str(len(runs)), *scores, f"{seconds:.0f}"])
    verdicts = [_verdict(teacher, compared, result["tolerance"]) for teacher, compared in result["compared"].items()]
    loads = [run["load"] for run in result["runs"]]
    steps = {run["algorithm"]: run["steps"] for run in result["runs"]}
    lengths = " and ".join(f"{number:,} steps of {kind.upper()}" for kind, number in steps.items())
    text = (
        f"CartPole, best score {result['best_score']:.0f}, {result['games']} games a network, {lengths}. Mean over "
        f"seeds, and the lowest and highest. Others used the machine at the same time (load {min(loads):.0f} to "
        f"{max(loads):.0f} on two cores), so seconds say little."
    )
    origin = f"Ray {result['ray']}. {made_by(result['environment'])}"
    return "\n".join([text, "", markdown(rows), "", *verdicts, *_discarded(result["discarded"]), "", origin, ""])


def _discarded(runs: list[dict[str, Any]]) -> list[str]:
    """Lines on runs that led to other numbers of the example, every one of them."""
    lines = []
    for reason in dict.fromkeys(run["reason"] for run in runs):
        found = [
            f"{run['algorithm'].upper()}, {WAYS[run['way']]}, seed {run['seed']}: teacher "
            f"{run['scores']['teacher']:.0f}, student {run['scores']['student']:.0f}"
            for run in runs
            if run["reason"] == reason
        ]
        lines.append(f"- Not counted above ({reason}): {'; '.join(found)}.")
    return lines


def _spread(scores: list[float]) -> str:
    return f"{statistics.mean(scores):.0f} ({min(scores):.0f} to {max(scores):.0f})"


def _verdict(teacher: str, compared: dict[str, Any], tolerance: float) -> str:
    alike = "within" if compared["alike"] else "**beyond**"
    seeds = len(compared["seeds"])
    of_seeds = "scores of the one seed" if seeds == 1 else f"means over the {seeds} seeds"
    return (
        f"- {teacher.upper()}: {of_seeds} that all ways have differ by at most "
        f"{compared['largest_difference']:.0f}, {alike} the tolerance of {tolerance:.0f} that was set before."
    )


def cluster_block(results: Path) -> str:
    """Measured pieces, and what follows from them for 1, 10 and 100 machines."""
    result = json.loads((results / "cluster.json").read_text())
    kinds = kinds_of_learner(result, json.loads((results / "gpu.json").read_text()))
    times, load = result["options"]["repetitions"], result["load"]
    every, link = STEPS_PER_UPDATE, 8e-9 * LINK_BYTES_PER_SECOND
    model = (
        f"The model: workers in step, {CORES} collectors a machine, {BATCH_STEPS} steps of each in a round, single "
        f"frames, an update every {every['dqn']} steps of DQN or {every['pqn']} of PQN (two passes over each round) by "
        f"minibatches of {result['options']['batch']}, one learner with all five "
        f"students that draws minibatches from the replay's actor, a link of {link:.0f} Gbit/s (assumed). Steps a "
        "second, and the part that takes the largest share of a round:"
    )
    bites = "Machines from which a part takes longer than playing, where the parts follow one another:"
    return "\n".join(
        [
            f"Measured, each time the shortest of {times}, since others used the machine (load {load:.0f}):",
            "",
            markdown(piece_rows(result)),
            "",
            model,
            "",
            markdown(round_rows(kinds)),
            "",
            bites,
            "",
            markdown(bite_rows(kinds)),
            "",
            f"Ray {result['ray']}. {made_by(result['environment'])}",
            "",
        ]
    )


def broadcast_line(seconds: dict[str, float]) -> tuple[float, float]:
    """Seconds of a broadcast to any number of collectors, and for each: a line through the fewest and the most."""
    numbers = sorted(int(number) for number in seconds)
    few, many = numbers[0], numbers[-1]
    each = max(0.0, (seconds[str(many)] - seconds[str(few)]) / (many - few))
    return max(0.0, seconds[str(few)] - few * each), each


def kinds_of_learner(result: dict[str, Any], gpu: dict[str, Any]) -> dict[str, Pieces]:
    """Pieces by teacher and device of the learner."""
    fixed, each = broadcast_line(result["broadcast"]["seconds"])
    on_gpu = {how: ms / 1e3 for how, ms in gpu["update_ms"]["the paper's five"].items()}
    found = {}
    for kind in ("dqn", "pqn"):
        seconds = {"CPU": result["update_seconds"][kind], "GPU": on_gpu["eager"], "GPU, captured": on_gpu["captured"]}
        for device, update in seconds.items():
            found[f"{kind.upper()}, {device}"] = Pieces(
                steps_per_second=result["collection"]["steps_per_second"],
                bytes_a_step=result["bytes_a_step"]["single frames"]["sent"],
                bytes_of_weights=result["broadcast"]["bytes"],
                driver_seconds=result["collection"]["driver_seconds_a_step"],
                update_seconds=update + result["collection"]["seconds_a_sample"],
                steps_per_update=STEPS_PER_UPDATE[kind],
                broadcast_seconds=fixed,
                broadcast_seconds_each=each,
            )
    found["PQN, GPU, captured, one receiver a machine"] = replace(found["PQN, GPU, captured"], receivers=1)
    return found


def piece_rows(result: dict[str, Any]) -> list[list[str]]:
    """Table of what was measured."""
    sent = {kind: sizes["sent"] for kind, sizes in result["bytes_a_step"].items()}
    broadcast, collection, behind = result["broadcast"], result["collection"], result["broadcasts_behind"]
    seconds = ", ".join(f"{1e3 * value:.0f} ms to {number}" for number, value in broadcast["seconds"].items())
    lags = {
        way: ", ".join(f"{lag:.1f} with {number}" for number, lag in found.items()) for way, found in behind.items()
    }
    return [
        ["piece", "measured"],
        ["bytes of a step that is sent", ", ".join(f"{size:,.0f} as {kind}" for kind, size in sent.items())],
        ["steps a second of one collector, teacher acting", f"{collection['steps_per_second']:.0f}"],
        ["driver's time to pass a step on to the replay", f"{1e6 * collection['driver_seconds_a_step']:.0f} µs"],
        ["a minibatch from the replay's actor", f"{1e3 * collection['seconds_a_sample']:.1f} ms"],
        *(
            [
                f"one update of {kind.upper()}, teacher and five students, batch {result['options']['batch']}",
                f"{1e3 * value:.0f} ms",
            ]
            for kind, value in result["update_seconds"].items()
        ),
        [f"sending all weights, {broadcast['bytes'] / 1e6:.1f} MB", f"{seconds} collectors"],
        *([f"broadcasts that data are behind, {way}", f"{lag} collectors"] for way, lag in lags.items()),
    ]


def round_rows(kinds: dict[str, Pieces]) -> list[list[str]]:
    """Table of speed and bound."""
    rows = [
        ["learner", *(f"{number} machine{'s' * (number > 1)}" for number in MACHINES), "updates a round of one machine"]
    ]
    for name, pieces in kinds.items():
        cells = []
        for machines in MACHINES:
            parts = seconds_of_round(pieces, machines)
            total, bound = sum(parts.values()), max(parts, key=lambda part: parts[part])
            rate = machines * CORES * BATCH_STEPS / total
            cells.append(f"{rate:,.0f}; {NAMES[bound]}, {parts[bound] / total:.0%}")
        rows.append([name, *cells, f"{CORES * BATCH_STEPS / pieces.steps_per_update:.0f}"])
    return rows


def bite_rows(kinds: dict[str, Pieces]) -> list[list[str]]:
    """Table of the numbers of machines at which each part begins to matter."""
    parts = ("learner", "driver", "link", "broadcast")
    rows = [["learner", *(NAMES[part] for part in parts)]]
    for name, pieces in kinds.items():
        found = machines_where_it_bites(pieces)
        rows.append([name, *(f"{found[part]:.2g}" if found[part] < 100 else f"{found[part]:.0f}" for part in parts)])
    return rows
