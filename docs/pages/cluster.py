"""Blocks on clusters: scores on Ray beside those of one machine, and a model of cost from measured pieces.

From ``docs/results/distributed.json`` and ``docs/results/cluster.json``, which ``bench_distributed.py`` and
``bench_cluster.py`` of ``tests/benchmarks/`` save; seconds of an update on a GPU are those of ``docs/results/gpu.json``.

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
STEPS_PER_UPDATE = {"dqn": 4, "pqn": 64}  # the main example's, and PQN's authors': two passes by minibatches of 128
LINK_BYTES_PER_SECOND = 1.25e9  # ten gigabits, as between machines of one rack; assumed, not measured
MACHINES = (1, 10, 100)
NAMES = {
    "collecting": "playing",
    "link": "the learner's link",
    "driver": "the driver",
    "learner": "updates",
    "broadcast": "sending weights",
}


@dataclass(frozen=True)
class Pieces:
    """Measured numbers of one kind of teacher."""

    steps_per_second: float  # of a collector
    bytes_a_step: float  # that reach the learner's machine
    driver_seconds: float  # a step, to pass it on to the replay
    update_seconds: float
    steps_per_update: int
    broadcast_seconds: float  # whatever the number of collectors
    broadcast_seconds_each: float  # for each collector in addition


def seconds_of_round(pieces: Pieces, machines: int) -> dict[str, float]:
    """Seconds of each part of a round, which follow one another when workers are in step."""
    collectors = machines * CORES
    steps = collectors * BATCH_STEPS
    return {
        "collecting": BATCH_STEPS / pieces.steps_per_second,
        "link": steps * pieces.bytes_a_step / LINK_BYTES_PER_SECOND,
        "driver": steps * pieces.driver_seconds,
        "learner": steps / pieces.steps_per_update * pieces.update_seconds,
        "broadcast": pieces.broadcast_seconds + collectors * pieces.broadcast_seconds_each,
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
