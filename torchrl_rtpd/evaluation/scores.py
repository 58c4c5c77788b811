"""Raw full-game scores, agreement of students with their teacher, and the time of a decision."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_rtpd.functional.discrete import greedy_agreement
from torchrl_rtpd.networks.keys import policy_inputs
from torchrl_rtpd.networks.running import bare_network, eval_mode

__all__ = ["Scores", "agreement_with_teacher", "latency_ms"]


@dataclass(frozen=True)
class Scores:
    """Scores of one policy.

    Attributes:
        scores: raw score of each game, slot by slot.
        cut: games among them that the step bound ended; they count with the score they had.
        steps: agent decisions played, all slots together.
        observations: observations ``[K]`` met on the way, if asked for.
    """

    scores: tuple[float, ...]
    cut: int
    steps: int
    observations: TensorDictBase | None = field(default=None, repr=False, compare=False)

    @property
    def episodes(self) -> int:
        """Games played."""
        return len(self.scores)

    @property
    def mean(self) -> float:
        """Mean score."""
        return statistics.fmean(self.scores)

    @property
    def std(self) -> float:
        """Sample standard deviation of the scores, 0 for a single game."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of the mean score."""
        return self.std / len(self.scores) ** 0.5


@torch.no_grad()
def agreement_with_teacher(
    teacher: TensorDictModule, students: Mapping[str, TensorDictModule], observations: TensorDictBase
) -> dict[str, float]:
    """Share of states in which each student's greedy action is the teacher's.

    Args:
        teacher: writes ``action_value`` ``[K, A]``.
        students: networks by name, likewise.
        observations: states ``[K]`` that nobody learned from, such as :attr:`Scores.observations`.

    Returns:
        Shares in [0, 1] by name.
    """
    with eval_mode(teacher, *students.values()):
        values = teacher(policy_inputs(teacher, observations)).get("action_value")
        shares = {
            name: greedy_agreement(values, student(policy_inputs(student, observations)).get("action_value")).mean()
            for name, student in students.items()
        }
    return {name: share.item() for name, share in shares.items()}


@torch.no_grad()
def latency_ms(network: TensorDictModule, observation: Tensor, *, repeats: int = 50) -> float:
    """Median time of one decision on the CPU, in milliseconds.

    Args:
        network: an actor; its bare network is timed, on a copy, in one thread, as a small device would run it.
        observation: one observation with batch dimension 1, such as ``[1, 4, 84, 84]``.
        repeats: timed decisions, after ten that are not counted.
    """
    module = copy.deepcopy(bare_network(network)).cpu().eval()
    observation = observation.cpu()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    try:
        for _ in range(repeats + 10):
            start = time.perf_counter()
            module(observation)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(seconds[10:])
