"""Who acts, what is stored, and where new weights arrive."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from collector_parts import (
    ENVIRONMENT_KEYS,
    Tape,
    _Counted,
    _counting_run,
    actor,
    always,
    cartpole,
    collected,
    observations,
    trainer_of,
)
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type
from torchrl.modules import EGreedyModule, ProbabilisticActor, QValueActor

from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.collectors.policy import TeacherStudentPolicy
from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.networks.towers import Tower, make_actor
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
    """Of 4000 draws at 0.3, standard deviation 0.7 %; who acted is said truly, and drawn anew at every step."""
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


def test_further_outputs_of_whoever_acts_can_be_kept() -> None:
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


def test_the_tape_of_two_slots_holds_every_step_in_order() -> None:
    """[N, T] batches; games end at 3 and 5 steps, and the next begins in the row after; new weights act at once."""
    collector = DualNetworkCollector(Tape(), always(0), frames_per_batch=8, total_frames=16)
    batches = []
    for batch in collector:
        batches.append(batch.clone())
        collector.update_policy_weights_(always(1))
    collector.shutdown()
    assert [batch.shape for batch in batches] == [torch.Size([2, 4])] * 2
    tape = torch.cat(batches, 1)
    assert tape["observation"].squeeze(-1).tolist() == [
        [0, 1, 2, 10, 11, 12, 20, 21],
        [100, 101, 102, 103, 104, 110, 111, 112],
    ]
    assert tape["next", "observation"].squeeze(-1).tolist() == [
        [1, 2, 3, 11, 12, 13, 21, 22],
        [101, 102, 103, 104, 105, 111, 112, 113],
    ]
    assert tape["next", "done"].squeeze(-1).int().tolist() == [[0, 0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]]
    assert tape["action"].tolist() == [[0] * 4 + [1] * 4] * 2


def test_nothing_but_the_environment_and_the_action_is_stored() -> None:
    """TorchRL's own collector with a bare teacher stores more: its values."""
    stored = {}
    for acting in ("teacher", 0.5):
        collector = DualNetworkCollector(
            cartpole(), actor(seed=0), actor(seed=1), acting=acting, frames_per_batch=8, total_frames=8
        )
        (stored[acting],) = collected(collector)
    extra = ["reward_sum", ("next", "reward_sum")]
    assert set(stored["teacher"].keys(True, True)) == {*ENVIRONMENT_KEYS, *extra}
    assert set(stored[0.5].keys(True, True)) == {*ENVIRONMENT_KEYS, *extra, "acted_by"}
    # observations 2 * 16, action 8, reward 4, sums 2 * 4, flags 6, trajectory 8
    assert stored["teacher"].bytes() == 8 * 66
    assert stored[0.5].bytes() == 8 * 67


def test_recording_stores_both_networks_values_as_they_compute_them() -> None:
    teacher, student = actor(seed=0), actor(seed=1, hidden=3)
    collector = DualNetworkCollector(
        cartpole(), teacher, student, acting=0.5, record=True, frames_per_batch=20, total_frames=20, acting_seed=0
    )
    (batch,) = collected(collector)
    for name, network in (("teacher", teacher), ("student", student)):
        values = network(batch.select("observation"))["action_value"]
        assert batch[name, "action_value"].shape == (2, 10, 2)
        torch.testing.assert_close(batch[name, "action_value"], values.detach())
    greedy = torch.where(
        batch["acted_by"] == 2, batch["student", "action_value"].argmax(-1), batch["teacher", "action_value"].argmax(-1)
    )
    assert torch.equal(batch["action"], greedy)
    assert {1, 2} == set(batch["acted_by"].flatten().tolist())


def test_atari_frames_are_collected_slot_by_slot_without_a_warning() -> None:
    """Warnings are errors here; TorchRL's own default would warn of transforms that only recurrent networks need."""
    env = AtariVecEnv("pong", 2, seed=0)
    actors = [make_actor(Tower((2, 2, 2), 8), env.action_spec, seed=seed) for seed in (0, 1)]
    collector = DualNetworkCollector(env, *actors, acting=0.5, frames_per_batch=8, total_frames=16)
    batches = list(collected(collector))
    assert [batch.shape for batch in batches] == [torch.Size([2, 4])] * 2
    assert batches[0]["pixels"].shape == (2, 4, 4, 84, 84)
    assert torch.equal(batches[0]["next", "pixels"][:, -1], batches[1]["pixels"][:, 0])
    assert not set(batches[0].keys(True, True)) & {"is_init", "action_value", "chosen_action_value"}


def test_the_environment_can_be_made_with_arguments() -> None:
    collector = DualNetworkCollector(
        lambda seed: cartpole(seed), actor(), frames_per_batch=4, total_frames=4, create_env_kwargs={"seed": 3}
    )
    reference = cartpole(3).reset()["observation"]
    (batch,) = collected(collector)
    assert torch.equal(batch["observation"][:, 0], reference)


def test_torchrls_own_collector_runs_the_policy() -> None:
    policy = TeacherStudentPolicy(actor(seed=0), actor(seed=1), acting=0.5, seed=0)
    collector = Collector(cartpole(), policy, frames_per_batch=8, total_frames=8, auto_register_policy_transforms=False)
    (batch,) = collected(collector)
    assert set(batch.keys()) >= {"acted_by", "action"}


def test_worker_processes_run_the_policy() -> None:
    """TorchRL's multi-process collector, one worker."""
    policy = TeacherStudentPolicy(always(0), always(1), acting=0.5, seed=0)
    collector = MultiSyncCollector(
        [Tape], policy, frames_per_batch=8, total_frames=8, auto_register_policy_transforms=False
    )
    (batch,) = collected(collector)
    (batch,) = batch  # one worker
    assert batch["observation"].squeeze(-1).tolist() == [[0, 1, 2, 10], [100, 101, 102, 103]]
    assert torch.equal(batch["action"], batch["acted_by"].long() - 1)
    assert {1, 2} == set(batch["acted_by"].flatten().tolist())


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate copy"])
@pytest.mark.parametrize("explores", [False, True])
@pytest.mark.parametrize("with_student", [False, True])
def test_a_stock_trainers_weight_update_reaches_the_teacher_that_acts(
    separate: bool, explores: bool, with_student: bool
) -> None:
    """With and without exploration, and the student's weights stay."""
    teacher, student = actor(seed=0), actor(seed=1, hidden=3) if with_student else None
    exploration = EGreedyModule(Categorical(2), annealing_num_steps=40) if explores else None
    acting_parts = (teacher, student, exploration)
    if separate:
        acting_parts = copy.deepcopy(acting_parts)
    collector = DualNetworkCollector(
        cartpole(), *acting_parts[:2], exploration=acting_parts[2], frames_per_batch=10, total_frames=40
    )
    trainer = trainer_of(collector, teacher, exploration)
    student_before = None if student is None else copy.deepcopy(collector.policy.students["student"].state_dict())
    before = copy.deepcopy(teacher.state_dict())
    trainer.train()
    after = teacher.state_dict()
    assert not all(torch.equal(after[name], before[name]) for name in after)  # it learned
    for name, tensor in collector.policy.teacher.state_dict().items():
        assert torch.equal(tensor, after[name]), name
    if with_student:
        for name, tensor in collector.policy.students["student"].state_dict().items():
            assert torch.equal(tensor, student_before[name]), name
    if explores:
        assert collector.policy.exploration.eps.item() == exploration.eps.item() < 1


def test_a_whole_policy_can_be_sent() -> None:
    collector = DualNetworkCollector(Tape(), always(0), always(0), acting=0.5, frames_per_batch=8, total_frames=8)
    collector.update_policy_weights_(TeacherStudentPolicy(always(1), always(1), acting=0.5))
    (batch,) = collected(collector)
    assert batch["action"].eq(1).all()


def test_weights_of_another_network_are_refused() -> None:
    """TorchRL names the entry that does not fit."""
    collector = DualNetworkCollector(Tape(), always(0), frames_per_batch=8, total_frames=8)
    with pytest.raises(KeyError, match="was not found"):
        collector.update_policy_weights_(actor(features=1))
    collector.shutdown()


def test_a_restored_collector_goes_on_with_networks_and_draws() -> None:
    """Another collector that loads the state draws the same students and counts the same frames."""

    def build(seed: int) -> DualNetworkCollector:
        networks = (actor(features=1, seed=seed), actor(features=1, seed=seed + 1))
        return DualNetworkCollector(
            Tape(), *networks, acting=0.5, acting_seed=seed, frames_per_batch=8, total_frames=24
        )

    first, second = build(0), build(5)
    iterator = iter(first)
    next(iterator)
    second.load_state_dict(first.state_dict())
    expected = next(iterator)["acted_by"].clone()
    assert torch.equal(next(iter(second))["acted_by"], expected)
    for name, tensor in first.policy.teacher.state_dict().items():
        assert torch.equal(second.policy.teacher.state_dict()[name], tensor)
    first.shutdown()
    second.shutdown()


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


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_network_for_another_number_of_actions_is_refused_before_the_first_step(role: str, one_hot: bool) -> None:
    networks = {
        name: always(0, num_actions=3 if name == role else 2, one_hot=one_hot) for name in ("teacher", "student")
    }
    env = Tape(one_hot)
    with pytest.raises(
        ValueError, match=rf"the {role} has 3 actions, the environment 2; build it from env\.action_spec"
    ):
        DualNetworkCollector(env, **networks, frames_per_batch=8, total_frames=8)
    assert (env.game == -1).all()  # it was not even reset


def test_a_network_that_declares_no_actions_is_taken_as_it_is() -> None:
    network = TensorDictModule(lambda seen: (seen[..., 0] % 2).long(), in_keys=["observation"], out_keys=["action"])
    (batch,) = collected(DualNetworkCollector(Tape(), network, frames_per_batch=8, total_frames=8))
    assert torch.equal(batch["action"], (batch["observation"][..., 0] % 2).long())


def test_recording_random_steps_is_refused() -> None:
    """TorchRL runs no policy in them and would store zeros as if they were values."""
    with pytest.raises(ValueError, match=r"record=True needs the networks at every step.*: got init_random_frames=4;"):
        DualNetworkCollector(
            Tape(), always(0), always(1), record=True, frames_per_batch=8, total_frames=8, init_random_frames=4
        )


def test_transforms_for_recurrent_networks_can_still_be_asked_for() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collector = DualNetworkCollector(
            Tape(), always(0), frames_per_batch=8, total_frames=8, auto_register_policy_transforms=True
        )
    (batch,) = collected(collector)
    assert "is_init" in batch.keys()


@pytest.mark.parametrize("rollout_steps", [1, 3])
def test_with_overlap_the_first_step_of_a_batch_is_chosen_one_batch_earlier(rollout_steps: int) -> None:
    for overlap in (False, True):
        batches = _counting_run(overlap, rollout_steps)
        for number, batch in enumerate(batches):
            first = max(number - overlap, 0)
            assert batch["action"].tolist() == [[first] + [number] * (rollout_steps - 1)] * 2


def test_a_step_that_was_played_meanwhile_is_the_step_of_its_actions() -> None:
    """The same actions give the same frames as without overlap, and the stream has no seam."""
    stream = torch.cat(_counting_run(True, 3), 1)
    env = AtariVecEnv("pong", 2, seed=0)
    state = env.reset()
    for step in range(stream.shape[1]):
        assert torch.equal(state["pixels"], stream["pixels"][:, step])
        state.set("action", stream["action"][:, step])
        played, state = env.step_and_maybe_reset(state)
        assert torch.equal(played["next", "pixels"], stream["next", "pixels"][:, step])
    env.close()


def test_random_steps_are_not_begun_before_their_turn() -> None:
    """They run no network, so that there is nothing to choose early."""
    batches = _counting_run(True, 2, init_random_frames=8)
    assert [batch["action"][0].tolist() for batch in batches[2:]] == [[1, 2], [2, 3]]


def test_who_acts_is_stored_of_steps_that_were_begun_early_too() -> None:
    """The teacher always takes action 0 here, the student 1."""
    teacher, student = (QValueActor(_Counted(), in_keys=["pixels"], spec=Categorical(6)) for _ in range(2))
    nn.init.constant_(student.module[0].module.weight, 1)
    env = AtariVecEnv("pong", 2, seed=0)
    collector = DualNetworkCollector(
        env, teacher, student, acting=0.5, acting_seed=0, frames_per_batch=2, total_frames=40, overlap=True
    )
    batches = torch.cat([batch.clone() for batch in collector], 1)
    collector.shutdown()
    assert torch.equal(batches["acted_by"].long(), batches["action"] + 1)
    assert {1, 2} == set(batches["acted_by"].flatten().tolist())


def test_a_reset_drops_the_step_that_was_begun() -> None:
    env = AtariVecEnv("pong", 2, seed=0)
    collector = DualNetworkCollector(
        env, make_actor("net17", env.action_spec, seed=0), frames_per_batch=4, total_frames=16, overlap=True
    )
    batches = iter(collector)
    next(batches)
    collector.reset()
    assert not next(batches)["pixels"][:, 0, :3].any()  # a game begins
    collector.shutdown()


def test_overlap_is_refused_where_nothing_steps_by_itself() -> None:
    with pytest.raises(ValueError, match=r"overlap=True needs an environment .* with a method send: got Tape; use"):
        DualNetworkCollector(Tape(), always(0), frames_per_batch=8, total_frames=8, overlap=True)
    with pytest.raises(ValueError, match=r"overlap=True is for backend='direct': got backend='process', whose workers"):
        DualNetworkCollector(Tape, always(0), frames_per_batch=8, total_frames=8, overlap=True, num_collectors=2)


def test_one_exploration_type_serves_the_whole_process() -> None:
    """Why a collector in a thread is warned of: TorchRL's losses set it while they are computed."""
    with set_exploration_type(ExplorationType.DETERMINISTIC), ThreadPoolExecutor(1) as thread:
        assert thread.submit(exploration_type).result() is ExplorationType.DETERMINISTIC
