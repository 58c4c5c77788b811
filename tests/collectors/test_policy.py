"""Choice of the network that acts, and what the policy writes."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from collector_parts import (
    always,
    observations,
)
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule, ProbabilisticActor

from torchrl_rtpd.collectors.policy import TeacherStudentPolicy
from torchrl_rtpd.schedules import LinearSchedule, RunState


@pytest.mark.parametrize(("acting", "action"), [("teacher", 0), ("student", 1), (0.0, 0), (1.0, 1)])
def test_the_named_network_acts(acting: str | float, action: int) -> None:
    """The teacher always takes action 0, the student action 1."""
    out = TeacherStudentPolicy(always(0), always(1), acting=acting)(observations())
    assert out["action"].tolist() == [action] * 8
    if action == 1:
        assert out["acted_by"].tolist() == [2] * 8
    else:
        assert "acted_by" not in out.keys()


@pytest.mark.parametrize("one_hot", [False, True])
def test_with_a_probability_the_student_acts_in_that_share_of_slots_and_steps(one_hot: bool) -> None:
    """Of 4000 draws at 0.3, standard deviation 0.7 %; who acted is said truly, and drawn again at every step."""
    policy = TeacherStudentPolicy(always(0, one_hot=one_hot), always(1, one_hot=one_hot), acting=0.3, seed=0)
    steps = [policy(observations(40)) for _ in range(100)]
    acted = torch.stack([step["acted_by"] == 2 for step in steps])
    actions = torch.stack([step["action"] for step in steps])
    assert torch.equal(actions.argmax(-1) if one_hot else actions, acted.long())
    assert acted.shape == (100, 40)
    assert acted.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert len({tuple(row.tolist()) for row in acted}) == 100
    assert len({tuple(column.tolist()) for column in acted.T}) == 40


def test_who_acts_is_drawn_from_the_policys_own_generator() -> None:
    """One seed, one sequence; torch's global generator is neither read nor moved."""
    networks, draws = (always(0), always(1)), []
    for seed in (3, 3, 4):
        torch.manual_seed(len(draws))
        before = torch.get_rng_state()
        policy = TeacherStudentPolicy(*networks, acting=0.5, seed=seed)
        draws.append(policy(TensorDict({"observation": torch.zeros(64, 1)}, [64]))["acted_by"].tolist())
        assert torch.equal(torch.get_rng_state(), before)
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_copies_and_restored_policies_go_on_with_the_same_draws(copied) -> None:
    """Also a policy of another seed that loads the state."""
    policy = TeacherStudentPolicy(always(0), always(1), acting=0.5, seed=3)
    policy(observations())
    twin = copied(policy)
    other = TeacherStudentPolicy(always(1), always(0), acting=0.5, seed=4)
    other.load_state_dict(policy.state_dict())
    expected = policy(observations(64))["acted_by"]
    assert torch.equal(twin(observations(64))["acted_by"], expected)
    out = other(observations(64))
    assert torch.equal(out["acted_by"], expected)
    assert torch.equal(out["action"], expected.long() - 1)  # its networks are those of the state


def test_a_schedule_or_a_function_of_the_runs_state_says_who_acts() -> None:
    """It is asked at the start and then whenever the trainer's hook says so."""
    policy = TeacherStudentPolicy(always(0), always(1), acting=LinearSchedule(0.0, 1.0, end_updates=10), seed=0)
    assert policy(observations(100))["acted_by"].tolist() == [1] * 100
    assert policy.update_acting(RunState(9)) == {"student": pytest.approx(0.9)}
    assert policy(observations(1_000))["action"].float().mean().item() == pytest.approx(0.9, abs=0.04)
    policy = TeacherStudentPolicy(
        always(0), {"a": always(1), "b": always(1)}, acting=lambda state: "b" if state.updates else "teacher"
    )
    assert policy.update_acting(RunState(1)) == {"a": 0.0, "b": 1.0}
    assert policy(observations())["acted_by"].tolist() == [3] * 8


@pytest.mark.parametrize(
    ("acting", "shares"),
    [
        ("student", [0.0, 0.5, 0.5]),
        ("b", [0.0, 0.0, 1.0]),
        (0.6, [0.4, 0.3, 0.3]),
        ({"a": 0.2}, [0.8, 0.2, 0.0]),
        ({"a": 0.2, "b": 0.8}, [0.0, 0.2, 0.8]),
    ],
)
def test_of_several_students_the_one_that_acts_is_drawn(acting: object, shares: list[float]) -> None:
    """Teacher, a and b take actions 0, 1 and 2; of 4,000 draws, standard deviation 0.8 %."""
    students = {"a": always(1, num_actions=3), "b": always(2, num_actions=3)}
    out = TeacherStudentPolicy(always(0, num_actions=3), students, acting=acting, seed=0)(observations(4_000))
    assert torch.equal(out["acted_by"].long() - 1, out["action"])
    found = torch.bincount(out["action"], minlength=3) / 4_000
    torch.testing.assert_close(found, torch.tensor(shares), atol=0.03, rtol=0)
    assert all((found == 0) == (torch.tensor(shares) == 0))


def test_further_outputs_of_the_network_that_acts_can_be_kept() -> None:
    """A stochastic policy's log-probability, which PPO needs."""

    def stochastic(seed: int) -> ProbabilisticActor:
        torch.manual_seed(seed)
        logits = TensorDictModule(nn.Linear(1, 3), in_keys=["observation"], out_keys=["logits"])
        return ProbabilisticActor(
            logits, in_keys=["logits"], distribution_class=torch.distributions.Categorical, return_log_prob=True
        )

    networks = {1: stochastic(0), 2: stochastic(1)}
    policy = TeacherStudentPolicy(*networks.values(), acting=0.5, keep=["action_log_prob"], seed=0)
    with set_exploration_type(ExplorationType.RANDOM):
        out = policy(observations(200))
    assert set(out.keys()) == {"observation", "action", "action_log_prob", "acted_by"}
    for number, network in networks.items():
        rows = out[out["acted_by"] == number]
        assert len(rows) > 50
        torch.testing.assert_close(network.get_dist(rows).log_prob(rows["action"]), rows["action_log_prob"])


@pytest.mark.parametrize("acting", ["teacher", "student", 0.5])
def test_exploration_replaces_the_action_of_whichever_acts(acting: str | float) -> None:
    """Teacher and student never take action 2 or 3; with epsilon 1 all four are equally likely."""
    exploration = EGreedyModule(Categorical(4), eps_init=1.0, eps_end=1.0)
    teacher, student = always(0, num_actions=4), always(1, num_actions=4)
    torch.manual_seed(0)
    policy = TeacherStudentPolicy(teacher, student, acting=acting, exploration=exploration, seed=0)
    shares = torch.bincount(policy(observations(4_000))["action"], minlength=4) / 4_000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.03, rtol=0)


def test_a_network_that_is_not_needed_is_not_run() -> None:
    calls: list[str] = []
    teacher, student = always(0), always(1)
    teacher.register_forward_hook(lambda *_: calls.append("teacher"))
    student.register_forward_hook(lambda *_: calls.append("student"))
    for acting in ("teacher", "student", 0.5):
        TeacherStudentPolicy(teacher, student, acting=acting)(observations())
    TeacherStudentPolicy(teacher, student, record=True)(observations())
    assert calls == ["teacher", "student", "teacher", "student", "teacher", "student"]


def test_networks_without_values_of_their_own_leave_the_input_alone() -> None:
    """What a policy reads stays as it was; it adds what ``out_keys`` says and nothing else."""
    data = observations()
    before = data.clone()
    policy = TeacherStudentPolicy(always(0), always(1), acting=0.5, record=True)
    policy(data)
    assert torch.equal(data["observation"], before["observation"])
    assert set(data.keys(True, True)) == {"observation", *policy.out_keys}


def test_its_parts_have_names() -> None:
    teacher, student, exploration = always(0), always(1), EGreedyModule(Categorical(2))
    policy = TeacherStudentPolicy(teacher, student, exploration=exploration)
    assert (policy.teacher, policy.students, policy.exploration) == (teacher, {"student": student}, exploration)
    alone = TeacherStudentPolicy(teacher)
    assert (alone.teacher, alone.students, alone.exploration) == (teacher, {}, None)


@pytest.mark.parametrize(
    "acting", [-0.1, 1.5, "both", None, float("nan"), {"pupil": 0.5}, {"student": 1.1}, {"student": -0.5}]
)
def test_acting_out_of_range_is_refused(acting: object) -> None:
    message = (
        f"acting must be 'teacher', 'student', the name of one, .* got {re.escape(repr(acting))}; students are stu"
    )
    with pytest.raises(ValueError, match=message):
        TeacherStudentPolicy(always(0), always(1), acting=acting)
    policy = TeacherStudentPolicy(always(0), always(1), acting=lambda state: acting if state.updates else 0.0)
    with pytest.raises(ValueError, match="acting must be 'teacher'"):
        policy.update_acting(RunState(1))


@pytest.mark.parametrize("arguments", [{"acting": "student"}, {"acting": 0.2}, {"record": True}])
def test_a_student_that_acts_or_is_recorded_must_be_there(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"needs? a student: got None; pass one or let the teacher act"):
        TeacherStudentPolicy(always(0), **arguments)


# What is recorded


def gaussian() -> TensorDictSequential:
    return TensorDictSequential(
        TensorDictModule(lambda seen: (seen, seen.exp()), in_keys=["observation"], out_keys=["loc", "scale"]),
        TensorDictModule(nn.Identity(), in_keys=["loc"], out_keys=["action"]),
    )


def test_networks_without_action_values_are_recorded_by_their_logits_or_location_and_scale() -> None:
    """Each network by what it writes."""
    logits = TensorDictModule(nn.Linear(1, 2), in_keys=["observation"], out_keys=["logits"])
    policy = ProbabilisticActor(logits, in_keys=["logits"], distribution_class=torch.distributions.Categorical)
    out = TeacherStudentPolicy(policy, {"q": always(1)}, record=True)(observations())
    torch.testing.assert_close(out["teacher", "logits"], logits.module(out["observation"]))
    assert out["q", "action_value"].tolist() == [[0.0, 1.0]] * 8
    assert set(out.keys(True, True)) == {"observation", "action", ("teacher", "logits"), ("q", "action_value")}
    out = TeacherStudentPolicy(gaussian(), gaussian(), record=True)(observations())
    for name in ("teacher", "student"):
        assert torch.equal(out[name, "loc"], out["observation"])
        assert torch.equal(out[name, "scale"], out["observation"].exp())


def test_a_network_of_which_nothing_could_be_recorded_is_refused() -> None:
    """Its actions alone, and values that are left out."""
    bare = TensorDictModule(nn.Linear(1, 1), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(ValueError, match=r"loc and scale: got \['action'\] from the student; name its outputs"):
        TeacherStudentPolicy(always(0), bare, record=True)
    hidden = always(0).select_out_keys("action")
    with pytest.raises(ValueError, match=r"got \['action'\] from the teacher; name its outputs so, or .*record=False"):
        TeacherStudentPolicy(hidden, always(1), record=True)
    TeacherStudentPolicy(hidden, bare)


def test_a_network_that_writes_no_action_is_refused() -> None:
    values = TensorDictModule(nn.Linear(1, 2), in_keys=["observation"], out_keys=["action_value"])
    with pytest.raises(ValueError, match=r"must write 'action': got \['action_value'\] from the net; name its"):
        TeacherStudentPolicy(always(0), {"net": values})
