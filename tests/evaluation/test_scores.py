"""Scores, agreement and regret of students, and the time of a decision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from recurrent_parts import recurrent_actor
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor, QValueModule

from torchrl_rtpd.evaluation.scores import (
    Scores,
    agreement_with_teacher,
    favourite_action_share,
    latency_ms,
    regret_of_students,
)
from torchrl_rtpd.functional.scores import normalised_score
from torchrl_rtpd.networks.towers import make_actor


def test_means_and_errors_are_the_textbook_ones() -> None:
    """1, 2, 3, 4: sample variance 5/3, standard error its root over 2."""
    scores = Scores((1.0, 2.0, 3.0, 4.0), cut=0, steps=40)
    assert scores.mean == 2.5
    assert scores.std == pytest.approx((5 / 3) ** 0.5)
    assert scores.standard_error == pytest.approx((5 / 3) ** 0.5 / 2)
    single = Scores((7.0,), cut=0, steps=1)
    assert (single.mean, single.std, single.standard_error) == (7.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("score", "random_score", "teacher_score", "expected"),
    [
        (-5.0, -20.0, 10.0, 0.5),
        (21.0, -21.0, 21.0, 1.0),
        (-21.0, -20.0, -10.0, -0.1),  # worse than random
        (-8.0, -20.0, -10.0, 1.2),  # better than a teacher with a negative score
        (5.0, 3.0, 3.0, None),
        (5.0, 3.0, 2.0, None),
    ],
)
def test_a_normalised_score_lies_between_random_and_teacher(
    score: float, random_score: float, teacher_score: float, expected: float | None
) -> None:
    """And there is none where the teacher is no better than random."""
    normalised = normalised_score(score, random_score, teacher_score)
    assert normalised == (None if expected is None else pytest.approx(expected))


def test_agreement_is_the_share_of_equal_greedy_actions() -> None:
    """Four states, the teacher takes 0, 1, 0, 1; one student differs in the last."""
    states = TensorDict(
        {
            "observation": torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [-2.0, -1.0]]),
            "other": torch.tensor([[9.0, 8.0], [1.0, 2.0], [0.1, 0.0], [5.0, 4.0]]),
        },
        [4],
    )
    teacher = TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["action_value"])
    student = TensorDictModule(nn.Identity(), in_keys=["other"], out_keys=["action_value"])
    before = states.clone()
    assert agreement_with_teacher(teacher, {"itself": teacher, "net": student}, states) == {"itself": 1.0, "net": 0.75}
    assert (states == before).all()
    assert set(states.keys()) == {"observation", "other"}


def constant(values: list[float], **parts: list[int]) -> TensorDictModule:
    """A student that knows one action, of several choices with ``var_nums``."""
    module = TensorDictModule(
        lambda seen: torch.tensor(values).expand(len(seen), -1), in_keys=["observation"], out_keys=["action_value"]
    )
    return TensorDictSequential(module, QValueModule(action_space="mult_one_hot", **parts)) if parts else module


@pytest.mark.parametrize("parts", [{}, {"var_nums": [2, 3]}])
def test_the_favourite_actions_share_is_the_best_agreement_of_a_student_that_knows_one_action(
    parts: dict[str, list[int]],
) -> None:
    """Of all students that always take the same action, of one choice of five or of two and three."""
    generator = torch.Generator().manual_seed(0)
    states = TensorDict({"observation": torch.randn(200, 5, generator=generator).add(torch.arange(5) / 4)}, [200])
    teacher = TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["action_value"])
    taken = [[i, 2 + j] for i in range(2) for j in range(3)] if parts else [[i] for i in range(5)]
    students = {str(ones): constant([float(i in ones) for i in range(5)], **parts) for ones in taken}
    if parts:
        teacher = TensorDictSequential(teacher, QValueModule(action_space="mult_one_hot", **parts))
    best = max(agreement_with_teacher(teacher, students, states).values())
    assert favourite_action_share(teacher, states) == pytest.approx(best)
    assert 1 / len(taken) < best < 1.0


def test_one_number_for_all_choices_is_that_of_each() -> None:
    """TorchRL's QValueModule takes ``var_nums=2`` for any number of choices of two."""
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    states = TensorDict({"observation": values}, [50])
    one, each = (
        TensorDictSequential(
            TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["action_value"]),
            QValueModule(action_space="mult_one_hot", var_nums=var_nums),
        )
        for var_nums in (2, [2, 2])
    )
    assert agreement_with_teacher(one, {"itself": one, "each": each}, states) == {"itself": 1.0, "each": 1.0}
    assert regret_of_students(each, {"net": one}, states) == {"net": 0.0}
    assert favourite_action_share(one, states) == favourite_action_share(each, states)


def test_a_favourite_action_is_an_allowed_one() -> None:
    """The third action is the best in all states and allowed in one of four; then it is the first in two of them."""
    seen = torch.tensor([[2.0, 1.0, 3.0], [2.0, 1.0, 3.0], [1.0, 2.0, 3.0], [2.0, 1.0, 3.0]])
    states = TensorDict({"observation": seen}, [4])
    teacher = TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["action_value"])
    assert favourite_action_share(teacher, states) == 1.0
    states["action_mask"] = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    assert favourite_action_share(teacher, states) == 0.5


def agreement_with_itself(network: TensorDictModule, states: TensorDict) -> float:
    return agreement_with_teacher(network, {"itself": network}, states)["itself"]


def test_nobody_agrees_where_no_action_is_allowed() -> None:
    """So the favourite action's share is no larger than the teacher's agreement with itself, with choices as well."""
    generator = torch.Generator().manual_seed(0)
    for parts in ({}, {"var_nums": 2}):
        states = TensorDict({"observation": torch.randn(200, 4, generator=generator)}, [200])
        teacher = TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["action_value"])
        if parts:
            teacher = TensorDictSequential(teacher, QValueModule(action_space="mult_one_hot", **parts))
        for allowed in (0.3, 0.0):
            states["action_mask"] = torch.rand(200, 4, generator=generator) < allowed
            itself = agreement_with_itself(teacher, states)
            share = favourite_action_share(teacher, states)
            assert share < itself < 1.0 if allowed else share == itself == 0.0


@pytest.mark.parametrize("measure", [agreement_with_itself, favourite_action_share])
def test_states_come_in_any_batch_but_an_empty_one(measure: Callable[..., object]) -> None:
    """A rollout ``[N, T]`` counts as its steps; masks have the shape of the values."""
    teacher = TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["action_value"])
    states = TensorDict({"observation": torch.randn(6, 3, generator=torch.Generator().manual_seed(0))}, [6])
    assert measure(teacher, states.reshape(2, 3)) == measure(teacher, states)
    with pytest.raises(
        ValueError, match=r"compared in one state or more: got states of batch \[0\]; .*keep_observations"
    ):
        measure(teacher, states[:0])
    states["action_mask"] = torch.ones(6, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"action_mask must have the shape of values: got \[6, 1\] and \[6, 3\]"):
        measure(teacher, states)


def test_the_favourite_action_of_several_agents_is_one_for_all_of_them() -> None:
    """Two agents: (0, 1) in two states of four, while each agent alone has an action that it takes in three."""
    left, right = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    taken = [(left, right), (left, right), (left, left), (right, right)]
    states = TensorDict({"agents": {"observation": torch.stack([torch.stack(pair) for pair in taken])}}, [4])
    teacher = TensorDictModule(
        nn.Identity(), in_keys=[("agents", "observation")], out_keys=[("agents", "action_value")]
    )
    assert favourite_action_share(teacher, states) == 0.5


def test_agreement_is_measured_in_eval_mode() -> None:
    """A teacher with dropout agrees with itself."""
    teacher = TensorDictModule(
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.9)), in_keys=["observation"], out_keys=["action_value"]
    )
    states = TensorDict({"observation": torch.randn(64, 8, generator=torch.Generator().manual_seed(0))}, [64])
    assert agreement_with_teacher(teacher, {"itself": teacher}, states) == {"itself": 1.0}
    assert all(module.training for module in teacher.modules())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: QValueActor(network, in_keys=["observation"], spec=Categorical(2)),
        lambda network: TensorDictModule(network, in_keys=["observation"], out_keys=["action_value"]),
        lambda network: network,
    ],
    ids=["actor", "tensordict module", "plain module"],
)
def test_latency_is_positive_and_measured_on_a_copy(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network = wrap(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    calls = []
    for module in network.modules():
        module.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    before = [parameter.clone() for parameter in network.parameters()]
    assert latency_ms(network, torch.ones(1, 2), repeats=3) > 0
    assert all(module.training for module in network.modules())
    assert all(map(torch.equal, network.parameters(), before))
    assert calls  # copies of the hooks were called, ...
    assert not any(calls)  # ... without gradient


def test_latency_grows_with_the_network() -> None:
    """The paper's teacher costs several times net17's 29,214 parameters."""
    pixels = torch.zeros(1, 4, 84, 84, dtype=torch.uint8)
    teacher, small = (latency_ms(make_actor(name, Categorical(6), seed=0), pixels) for name in ("teacher", "net17"))
    assert teacher > small


# Several choices, several agents, no values


def fixed(values: Tensor, key: object = "action_value", **kwargs: object) -> TensorDictModule:
    """A network of these values, whatever it sees."""
    return TensorDictModule(lambda seen: values, in_keys=["observation"], out_keys=[key], **kwargs)


STATES = TensorDict({"observation": torch.zeros(2, 1)}, [2])


def test_regret_is_the_price_of_the_students_action_in_the_teachers_spread() -> None:
    """Values 0, 3, 3 and 0, 3, 3: mean 2, deviation sqrt(2). Action 0 costs 3 / sqrt(2), actions 1 and 2 nothing."""
    teacher = fixed(torch.tensor([[0.0, 3.0, 3.0], [0.0, 3.0, 3.0]]))
    students = {
        "harmless": fixed(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])),
        "fatal": fixed(torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])),
        "itself": teacher,
    }
    regrets = regret_of_students(teacher, students, STATES)
    assert regrets == {"harmless": 0.0, "fatal": pytest.approx(3 / 2**0.5 / 2), "itself": 0.0}
    assert agreement_with_teacher(teacher, students, STATES) == {"harmless": 0.0, "fatal": 0.0, "itself": 1.0}


def test_forbidden_actions_count_for_neither_agreement_nor_regret() -> None:
    """Both want action 0, which is forbidden: of actions 1 and 2 the teacher prefers 2, worth twice a deviation."""
    states = STATES.clone().set("action_mask", torch.tensor([[False, True, True]] * 2))
    teacher = fixed(torch.tensor([[9.0, 1.0, 3.0]] * 2))
    student = fixed(torch.tensor([[9.0, 2.0, 1.0]] * 2))
    assert agreement_with_teacher(teacher, {"net": student}, STATES) == {"net": 1.0}
    assert agreement_with_teacher(teacher, {"net": student}, states) == {"net": 0.0}
    assert regret_of_students(teacher, {"net": student}, states) == {"net": 2.0}
    named = states.rename_key_("action_mask", "legal")
    assert agreement_with_teacher(teacher, {"net": student}, named, action_mask_key="legal") == {"net": 0.0}


def test_a_shift_of_one_choices_values_changes_no_action() -> None:
    """Choices of 5 and 3 actions; one joint argmax over all 8 values would differ."""

    def actor(values: Tensor) -> TensorDictSequential:
        return TensorDictSequential(fixed(values), QValueModule(action_space="mult_one_hot", var_nums=[5, 3]))

    values = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    shifted = values + torch.tensor([0.0] * 5 + [4.0] * 3)
    other = values.clone()
    other[0, 5:] = values[0, 5:].flip(0) * -1  # another second choice in the first state
    students = {"shifted": actor(shifted), "other": actor(other)}
    agreement = agreement_with_teacher(actor(values), students, STATES)
    assert agreement == {"shifted": 1.0, "other": 0.5 + 0.5 * (other[0, 5:].argmax() == values[0, 5:].argmax()).item()}
    assert regret_of_students(actor(values), students, STATES)["shifted"] == 0.0


def test_agents_agree_if_all_of_them_do() -> None:
    """Two states, two agents: in the second state one agent differs."""
    key = ("agents", "action_value")
    teacher = fixed(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]] * 2), key)
    student = fixed(torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]), key)
    assert agreement_with_teacher(teacher, {"net": student}, STATES) == {"net": 0.5}
    assert regret_of_students(teacher, {"net": student}, STATES) == {"net": 1.0}


def test_policies_of_logits_are_compared_by_them() -> None:
    teacher = fixed(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "logits")
    student = fixed(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert agreement_with_teacher(teacher, {"net": student}, STATES) == {"net": 0.5}


def test_networks_without_greedy_actions_are_refused_by_name() -> None:
    gaussian = TensorDictModule(lambda seen: (seen, seen), in_keys=["observation"], out_keys=["loc", "scale"])
    teacher = fixed(torch.zeros(2, 2))
    for networks, name in (((gaussian, {"net": teacher}), "teacher"), ((teacher, {"net": gaussian}), "net")):
        with pytest.raises(ValueError, match=rf"got \['loc', 'scale'\] from '{name}' \(TensorDictModule\); for"):
            agreement_with_teacher(*networks, STATES)
        with pytest.raises(ValueError, match=rf"got \['loc', 'scale'\] from '{name}'"):
            regret_of_students(*networks, STATES)


def test_distributions_of_returns_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"value an action: got 'action_value' of shape \[2, 5, 3\] from 'teacher'"):
        agreement_with_teacher(fixed(torch.zeros(2, 5, 3)), {}, STATES)


def test_students_of_other_actions_are_refused_by_name() -> None:
    teacher = fixed(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"'net' must choose among the teacher's actions: got \[2, 3\] .* \[2, 4\]"):
        agreement_with_teacher(teacher, {"net": fixed(torch.zeros(2, 3))}, STATES)
    several = TensorDictSequential(teacher, QValueModule(action_space="mult_one_hot", var_nums=[2, 2]))
    with pytest.raises(ValueError, match=r"got \[2, 4\] and choices \(2, 2\), the teacher's are \[2, 4\] and None"):
        agreement_with_teacher(teacher, {"net": several}, STATES)


def test_recurrent_students_are_refused_by_name_and_recurrent_teachers_compared() -> None:
    """A teacher's memory is among the observations of its evaluation; a student's is not."""
    teacher = recurrent_actor("gru", 4, seed=1)
    memory = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    states = STATES.clone().update({"recurrent_state": memory, "is_init": torch.zeros(2, 1, dtype=torch.bool)})
    same = fixed(teacher(states.clone())["action_value"].detach())
    assert agreement_with_teacher(teacher, {"net": same, "itself": teacher}, states) == {"net": 1.0, "itself": 1.0}
    with pytest.raises(ValueError, match=r"what a network remembers: got \['recurrent_state'\] read by 'net'; compare"):
        agreement_with_teacher(same, {"net": recurrent_actor("gru", 4)}, states)


# Latency of all parts


class Slow(nn.Module):
    """Notes its calls."""

    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, seen: Tensor) -> Tensor:
        self.calls.append(seen.shape[-1])
        return torch.cat([seen, seen], -1)

    def __deepcopy__(self, memo: dict) -> Slow:
        return Slow(self.calls)


def test_all_parts_of_a_network_are_timed() -> None:
    """Three parts before the choice; each sees twice as many features as the one before, 13 times."""
    calls: list[int] = []
    keys = ["observation", "one", "two", "action_value"]
    parts = [TensorDictModule(Slow(calls), [keys[i]], [keys[i + 1]]) for i in range(3)]
    network = TensorDictSequential(TensorDictSequential(*parts[:2]), parts[2], QValueModule(spec=Categorical(8)))
    assert latency_ms(network, torch.ones(1, 1), repeats=3) > 0
    assert calls == [1, 2, 4] * 13


def test_networks_of_two_inputs_are_timed_on_a_tensordict() -> None:
    network = TensorDictModule(nn.Bilinear(2, 3, 4), in_keys=["left", "right"], out_keys=["action_value"])
    states = TensorDict({"left": torch.ones(1, 2), "right": torch.ones(1, 3)}, [1])
    assert latency_ms(network, states, repeats=3) > 0
    with pytest.raises(ValueError, match=r"the network reads \['left', 'right'\]: got one tensor; pass a TensorDict"):
        latency_ms(network, torch.ones(1, 2))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_networks_are_timed_with_a_memory_of_their_own(kind: str) -> None:
    """The network itself neither runs nor remembers."""
    network = recurrent_actor(kind, 4)
    states: list[Tensor] = []
    network[0].register_forward_hook(lambda module, args, out: states.append(out["features"].clone()))
    assert latency_ms(network, torch.ones(1, 1), repeats=3) > 0
    assert len({tuple(state.flatten().tolist()) for state in states}) == 13  # each step goes on from the last


def test_the_memory_of_an_observation_is_where_timing_begins() -> None:
    counter = TensorDictModule(lambda count: (count, count + 1), ["count"], ["action", ("next", "count")])
    assert latency_ms(counter, TensorDict({"count": torch.zeros(1, 1)}, [1]), repeats=2) > 0
