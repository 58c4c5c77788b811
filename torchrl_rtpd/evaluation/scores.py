"""Raw full-game scores, agreement of students with their teacher, and the time of a decision."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_rtpd.envs.streams import streams_kept
from torchrl_rtpd.functional.checks import check_same_shape
from torchrl_rtpd.functional.choices import choice_sizes, split_choices
from torchrl_rtpd.functional.discrete import greedy_agreement, teacher_regret
from torchrl_rtpd.networks.choices import declared_var_nums
from torchrl_rtpd.networks.keys import last_part, policy_inputs
from torchrl_rtpd.networks.memory import START_KEY, Memory, memory_keys
from torchrl_rtpd.networks.running import bare_network, eval_mode

__all__ = ["Scores", "agreement_with_teacher", "favourite_action_share", "latency_ms", "regret_of_students"]


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


def agreement_with_teacher(
    teacher: TensorDictModule,
    students: Mapping[str, TensorDictModule],
    observations: TensorDictBase,
    *,
    action_mask_key: NestedKey = "action_mask",
) -> dict[str, float]:
    """Share of states in which each student's greedy action is the teacher's.

    An action of several choices, or of several agents, is the teacher's if all of them are.

    Args:
        teacher: writes ``action_value`` or ``logits`` ``[K, A]``, of several agents ``[K, agents, A]``. It may be
            recurrent if ``observations`` hold what it remembered, as those of its own evaluation do.
        students: networks by name, likewise, but without a memory.
        observations: states ``[*B]`` that no network learned from, such as :attr:`Scores.observations`.
        action_mask_key: boolean entry of the states, True where an action is allowed, if they have it.

    Returns:
        Shares in [0, 1] by name.

    Raises:
        ValueError: a network that writes neither action values nor logits, such as one of continuous actions; values
            that are no single number an action; a student that chooses among others than the teacher, or remembers; a
            mask of another shape than the values; no states.

    Examples:
        >>> states = TensorDict({"observation": torch.tensor([[1.0, 2.0], [4.0, 3.0]])}, [2])
        >>> teacher = TensorDictModule(torch.nn.Identity(), in_keys=["observation"], out_keys=["action_value"])
        >>> student = TensorDictModule(lambda seen: -seen[:1].expand(2, 2), ["observation"], ["action_value"])
        >>> agreement_with_teacher(teacher, {"net": student}, states)
        {'net': 0.5}
    """
    return _compared(greedy_agreement, teacher, students, observations, action_mask_key, worst="amin")


def regret_of_students(
    teacher: TensorDictModule,
    students: Mapping[str, TensorDictModule],
    observations: TensorDictBase,
    *,
    action_mask_key: NestedKey = "action_mask",
) -> dict[str, float]:
    """Mean price of each student's greedy action in the teacher's values, in their standard deviations over actions.

    Beside :func:`agreement_with_teacher` it tells harmless differences from fatal ones: 0 for a student that only
    differs where actions are equally good. See :func:`~torchrl_rtpd.functional.discrete.teacher_regret`. Of several
    agents the largest counts.

    Args:
        teacher: as for :func:`agreement_with_teacher`.
        students: likewise.
        observations: likewise.
        action_mask_key: likewise.

    Returns:
        Regrets by name, 0 or more.

    Raises:
        ValueError: as :func:`agreement_with_teacher`.

    Examples:
        >>> states = TensorDict({"observation": torch.tensor([[1.0, 3.0], [3.0, 1.0]])}, [2])
        >>> teacher = TensorDictModule(torch.nn.Identity(), in_keys=["observation"], out_keys=["action_value"])
        >>> student = TensorDictModule(lambda seen: seen[:1].expand(2, 2), ["observation"], ["action_value"])
        >>> regret_of_students(teacher, {"net": student}, states)  # 0 and (3 - 1) / 1
        {'net': 1.0}
    """
    return _compared(teacher_regret, teacher, students, observations, action_mask_key, worst="amax")


@torch.no_grad()
def favourite_action_share(
    teacher: TensorDictModule, observations: TensorDictBase, *, action_mask_key: NestedKey = "action_mask"
) -> float:
    """Share of states in which the teacher's greedy action is the one that it takes most often.

    It is the agreement of a student that knows nothing but that action, the least that
    :func:`agreement_with_teacher` must exceed before it says anything. Several choices, or agents, count as one action.

    Args:
        teacher: as for :func:`agreement_with_teacher`.
        observations: likewise.
        action_mask_key: likewise.

    Returns:
        Share in [0, 1]. A state in which no action is allowed has none, and counts as one where nobody agrees.

    Raises:
        ValueError: as :func:`agreement_with_teacher`.

    Examples:
        >>> states = TensorDict({"observation": torch.tensor([[1.0, 2.0], [4.0, 3.0], [0.0, 1.0]])}, [3])
        >>> teacher = TensorDictModule(torch.nn.Identity(), in_keys=["observation"], out_keys=["action_value"])
        >>> round(favourite_action_share(teacher, states), 2)  # the second action in two states of three
        0.67
    """
    states = _listed(observations)
    with eval_mode(teacher):
        values = _values("teacher", teacher, states)
    mask = _mask(states, action_mask_key, values)
    var_nums = _sizes(teacher, values)
    choices: list[tuple[Tensor, Tensor | None]] = (
        [(values, mask)] if var_nums is None else split_choices(var_nums, values, mask)
    )
    actions, possible = [], torch.ones(len(values), dtype=torch.bool, device=values.device)
    for own, allowed in choices:
        if allowed is not None:
            own = torch.where(allowed, own, -math.inf)
            possible &= allowed.any(-1).reshape(len(values), -1).all(-1)
        actions.append(own.argmax(-1).reshape(len(values), -1))
    _, counts = torch.cat(actions, -1)[possible].unique(dim=0, return_counts=True)
    return counts.max().item() / len(values) if len(counts) else 0.0


@torch.no_grad()
def _compared(
    measure: Callable[..., Tensor],
    teacher: TensorDictModule,
    students: Mapping[str, TensorDictModule],
    observations: TensorDictBase,
    action_mask_key: NestedKey,
    worst: Literal["amin", "amax"],
) -> dict[str, float]:
    """Mean of a measure of teacher and student over states, of several agents that of the worst."""
    states = _listed(observations)
    results = {}
    with eval_mode(teacher, *students.values()):
        values = _values("teacher", teacher, states)
        mask = _mask(states, action_mask_key, values)
        var_nums = _sizes(teacher, values)
        for name, student in students.items():
            if student is not teacher and memory_keys(student):
                raise ValueError(
                    f"single states do not say what a network remembers: got {memory_keys(student)} read by {name!r}; "
                    "compare scores instead."
                )
            own = _values(name, student, states).to(values.device)
            if own.shape != values.shape or _sizes(student, own) not in (None, var_nums):
                raise ValueError(
                    f"{name!r} must choose among the teacher's actions: got {list(own.shape)} "
                    f"and choices {_sizes(student, own)}, the teacher's are {list(values.shape)} and {var_nums}; "
                    "build both from one action spec."
                )
            measured = measure(values, own, mask, var_nums)
            results[name] = getattr(measured.reshape(len(values), -1), worst)(-1).mean().item()
    return results


def _listed(observations: TensorDictBase) -> TensorDictBase:
    """States ``[*B]`` as ``[K]``."""
    if not observations.batch_size.numel():
        raise ValueError(
            f"networks are compared in one state or more: got states of batch {list(observations.batch_size)}; an "
            "evaluation with keep_observations collects some."
        )
    return observations.reshape(-1)


def _mask(states: TensorDictBase, key: NestedKey, values: Tensor) -> Tensor | None:
    mask = states.get(key, None)
    if mask is not None:
        check_same_shape("action_mask", mask, "values", values)
    return None if mask is None else mask.to(values.device)


def _sizes(network: TensorDictModule, values: Tensor) -> tuple[int, ...] | None:
    """Actions of each choice among values ``[K, A]``, None for a single choice."""
    var_nums = declared_var_nums(network)
    return None if var_nums is None else choice_sizes(var_nums, values.shape[-1])


def _values(name: str, network: TensorDictModule, observations: TensorDictBase) -> Tensor:
    """Action values or logits ``[K, A]`` of a network, of several agents ``[K, agents, A]``."""
    outputs = network(policy_inputs(network, observations))
    for entry in ("action_value", "logits"):
        for key in network.out_keys:
            if last_part(key) == entry:
                values = outputs.get(key)
                agents = 0 if isinstance(key, str) else 1
                if values.ndim != observations.ndim + 1 + agents:
                    raise ValueError(
                        f"greedy actions need one value an action: got {key!r} of shape {list(values.shape)} from "
                        f"{name!r}; reduce a distribution of returns to its mean first."
                    )
                return values
    raise ValueError(
        f"greedy actions are compared by action values or logits: got {list(network.out_keys)} from {name!r} "
        f"({type(network).__name__}); for continuous actions compare scores instead."
    )


@streams_kept()
@torch.no_grad()
def latency_ms(network: TensorDictModule, observation: Tensor | TensorDictBase, *, repeats: int = 50) -> float:
    """Median time of one decision on the CPU, in milliseconds.

    All parts of the network up to its values count, on plain tensors as a small device would run them. A recurrent
    network is run as the tensordict module that it is, step by step with its own memory.

    Args:
        network: an actor; a copy of it is timed, in one thread.
        observation: one observation with batch dimension 1, such as ``[1, 4, 84, 84]``; a tensordict of batch ``[1]``
            for a network that reads several entries.
        repeats: timed decisions, after ten that are not counted.

    Raises:
        ValueError: a tensor for a network that reads several entries.
    """
    decide = _decision(network, observation.cpu())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    try:
        for _ in range(repeats + 10):
            start = time.perf_counter()
            decide()
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(seconds[10:])


def _decision(network: TensorDictModule, observation: Tensor | TensorDictBase) -> Callable[[], object]:
    """One decision of a copy of a network."""
    keys = list(getattr(network, "in_keys", ["observation"]))
    remembered = memory_keys(network) if hasattr(network, "in_keys") else []
    read = [key for key in keys if key not in remembered and key != START_KEY]
    if isinstance(observation, Tensor) and len(read) > 1:
        raise ValueError(f"the network reads {read}: got one tensor; pass a TensorDict with all of them.")
    step = TensorDict({read[0]: observation}, [1]) if isinstance(observation, Tensor) else observation.copy()
    if remembered:
        actor = copy.deepcopy(network).cpu().eval()
        memory = Memory(actor)
        step.set(START_KEY, torch.zeros(*step.shape, 1, dtype=torch.bool))
        starts = torch.zeros(step.shape, dtype=torch.bool)
        return lambda: memory.remember(actor(memory.recall(step, starts)))
    module = copy.deepcopy(bare_network(network)).cpu().eval()
    inputs = [step.get(key) for key in getattr(module, "in_keys", read)]
    return lambda: module(*inputs)
