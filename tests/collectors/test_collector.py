"""Data that a collector in this process stores, its weights and seeds."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from collector_parts import (
    ENVIRONMENT_KEYS,
    Tape,
    actor,
    always,
    cartpole,
    collected,
    trainer_of,
)
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import Categorical, Composite, MultiCategorical
from torchrl.envs import DoubleToFloat, GymEnv, SerialEnv, TransformedEnv
from torchrl.modules import EGreedyModule

from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.collectors.policy import TeacherStudentPolicy
from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.networks.towers import Tower, make_actor


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


# Seeds


def test_a_seed_gives_the_same_frames_twice_from_the_first_transition_on() -> None:
    """In collectors that have reset their environments already; no transition mixes two games."""
    batches = []
    for seed in (1, 1, 2):
        env = SerialEnv(2, lambda: GymEnv("CartPole-v1", categorical_action_encoding=True))
        collector = DualNetworkCollector(
            TransformedEnv(env, DoubleToFloat()), actor(), frames_per_batch=60, total_frames=60
        )
        collector.set_seed(seed)
        batches.extend(collected(collector))
    first, second, other = batches
    for key in ("observation", "action", ("next", "observation")):
        assert torch.equal(first[key], second[key])
    assert not torch.equal(first["observation"], other["observation"])
    goes_on = ~first["next", "done"][:, :-1, 0]
    assert torch.equal(first["observation"][:, 1:][goes_on], first["next", "observation"][:, :-1][goes_on])
    assert (first["next", "observation"][:, 0] - first["observation"][:, 0]).abs().max() < 0.5  # one game


def test_a_seed_in_mid_run_begins_the_seeds_games() -> None:
    """Also where a step of the old games was begun early."""
    env = AtariVecEnv("breakout", 2, seed=0)
    networks = make_actor(Tower((2, 2, 2), 8), env.action_spec, seed=0)
    collector = DualNetworkCollector(env, networks, frames_per_batch=4, total_frames=16, overlap=True)
    iterator, batches = iter(collector), []
    for _ in range(3):
        batches.append(next(iterator).clone())
        collector.set_seed(5)
    collector.shutdown()
    assert torch.equal(batches[1]["pixels"], batches[2]["pixels"])
    assert not torch.equal(batches[0]["pixels"], batches[1]["pixels"])
    assert not batches[2]["pixels"][:, 0, :3].any()  # a game begins


# Several choices


def test_networks_for_other_choices_are_refused_before_the_first_step() -> None:
    """Numbers of actions are compared choice by choice."""

    class Choices(Tape):
        def __init__(self) -> None:
            super().__init__()
            self.action_spec = MultiCategorical([3, 2], shape=(2, 2))

    teacher = TensorDictModule(lambda seen: torch.zeros(2, 2), in_keys=["observation"], out_keys=["action"])
    teacher.spec = Composite(action=MultiCategorical([2, 3]))
    with pytest.raises(ValueError, match=r"the teacher has \[2, 3\] actions, the environment \[3, 2\]; build it from"):
        DualNetworkCollector(Choices(), teacher, frames_per_batch=4, total_frames=4)
