"""A captured step of the teacher: the actions of the uncaptured one, and a rollout that waits for nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from collector_parts import Tape, always, cartpole, collected, observations, trainer_of
from device_parts import DEVICES, HostReads
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.data import Categorical, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_rtpd import AtariVecEnv, DualNetworkCollector, TeacherStudentPolicy, make_actor

SLOTS, STEPS = 3, 8


def batches(
    device: str, *, captured: bool, frame_stack: int = 4, overlap: bool = False, on_host: bool = False, count: int = 4
) -> list[TensorDictBase]:
    """Batches of Breakout in games of 12 steps, by a teacher that explores; games lie on its device or on the CPU."""
    torch.manual_seed(0)
    env = AtariVecEnv(
        "breakout",
        SLOTS,
        frame_stack=frame_stack,
        max_frames=48,
        noop_max=0,
        seed=3,
        device="cpu" if on_host else device,
    )
    collector = DualNetworkCollector(
        env,
        make_actor("net17", env.action_spec, seed=1, device=device),
        exploration=EGreedyModule(env.action_spec_unbatched, 0.3, 0.3, device=torch.device(device)),
        keep=["action_value"],
        frame_stack=4 if frame_stack == 1 else None,
        overlap=overlap,
        frames_per_batch=SLOTS * STEPS,
        total_frames=count * SLOTS * STEPS,
        policy_device=device,
        env_device="cpu" if on_host else device,
        storing_device=device,
        track_traj_ids=False,
        cudagraph_policy=captured,
    )
    return [batch.cpu() for batch in collected(collector)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("frame_stack", [4, 1])
def test_a_captured_teacher_acts_as_an_uncaptured_one(frame_stack: int, overlap: bool, device: str) -> None:
    """To the last bit, random actions included, with stacks and single frames."""
    found = [batches(device, captured=captured, frame_stack=frame_stack, overlap=overlap) for captured in (False, True)]
    for one, other in zip(*found, strict=True):
        assert set(one.keys(True, True)) == set(other.keys(True, True))
        assert all(torch.equal(value, other[key]) for key, value in one.items(True, True))
    assert sum(batch["next", "done"].sum() for batch in found[0]) >= SLOTS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("frame_stack", [4, 1])
def test_games_shown_on_the_gpu_are_those_shown_on_the_cpu(frame_stack: int) -> None:
    """Every entry of every batch; ends of games too, whose last frames differ from those of the next game."""
    found = [batches("cuda", captured=True, frame_stack=frame_stack, on_host=on_host) for on_host in (False, True)]
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(value, other[key]) for key, value in one.items(True, True))


@pytest.mark.parametrize("frame_stack", [4, 1])
def test_a_captured_rollout_reads_nothing_on_the_host(frame_stack: int) -> None:
    """But the actions, as an array; TorchRL's numbers of trajectories, which it reads at each step, are left out."""
    env = AtariVecEnv("breakout", SLOTS, frame_stack=frame_stack, max_frames=48, noop_max=0, seed=3)
    found = {}
    for captured in (False, True):
        collector = DualNetworkCollector(
            env,
            make_actor("net17", env.action_spec, seed=1),
            exploration=EGreedyModule(env.action_spec_unbatched, 0.3, 0.3),
            frame_stack=4 if frame_stack == 1 else None,
            frames_per_batch=SLOTS * 16,
            total_frames=-1,
            cudagraph_policy=captured,
        )
        with HostReads() as reads:
            batch = next(iter(collector))
        assert batch["next", "done"].any()
        assert (("collector", "traj_ids") in batch.keys(True)) is not captured
        found[captured] = {caller for _, caller in reads.found}
    assert found == {False: {"_update_traj_ids", "get_traj_and_increment"}, True: set()}
    env.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("frame_stack", [4, 1])
def test_a_captured_rollout_waits_for_nothing_but_the_actions(frame_stack: int) -> None:
    """By torch's own debugger, which does not see the event that the actions are waited for with."""
    env = AtariVecEnv("breakout", SLOTS, frame_stack=frame_stack, max_frames=48, noop_max=0, seed=3, device="cuda")
    collector = DualNetworkCollector(
        env,
        make_actor("net17", env.action_spec, seed=1, device="cuda"),
        exploration=EGreedyModule(env.action_spec_unbatched, 0.3, 0.3, device=torch.device("cuda")),
        frame_stack=4 if frame_stack == 1 else None,
        frames_per_batch=SLOTS * 16,
        total_frames=-1,
        policy_device="cuda",
        env_device="cuda",
        storing_device="cuda",
        cudagraph_policy=True,
    )
    rollouts = iter(collector)
    next(rollouts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        collector.rollout()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    collector.shutdown()


@pytest.mark.parametrize("device", DEVICES)
def test_weights_and_randomness_follow_the_trainer(device: str) -> None:
    """They change in place: a captured teacher acts by the new ones, as an uncaptured one does."""
    found = []
    for captured in (False, True):
        torch.manual_seed(0)
        spec = Categorical(2)
        teacher = QValueActor(torch.nn.Linear(4, 2), in_keys=["observation"], spec=spec).to(device)
        exploration = EGreedyModule(spec, 1.0, 0.0, annealing_num_steps=20, device=torch.device(device))
        collector = DualNetworkCollector(
            cartpole(),
            teacher,
            exploration=exploration,
            frames_per_batch=10,
            total_frames=40,
            policy_device=device,
            env_device="cpu",
            storing_device=device,
            cudagraph_policy=captured,
        )
        places = {name: value.data_ptr() for name, value in teacher.state_dict().items()}
        shares = exploration.eps.data_ptr()
        actions: list[torch.Tensor] = []
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(40, device=device), batch_size=10)
        trainer = trainer_of(collector, teacher, exploration, replay_buffer=buffer)
        trainer.register_op("pre_steps_log", lambda batch, actions=actions: actions.append(batch["action"].cpu()))
        trainer.train()
        assert len(actions) == 4
        assert {name: value.data_ptr() for name, value in teacher.state_dict().items()} == places
        assert exploration.eps.data_ptr() == shares
        found.append(actions)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_copies_capture_their_own_networks() -> None:
    """A copy acts by its own weights."""
    policy = TeacherStudentPolicy(always(0), cudagraph=True)
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy)), policy.with_seed(1)):
        twin.teacher.load_state_dict(always(1).state_dict())
        assert twin(observations())["action"].tolist() == [1] * 8
        assert policy(observations())["action"].tolist() == [0] * 8


class Remembers(torch.nn.Module):
    """Counts steps."""

    def forward(self, observation: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.zeros(len(observation), dtype=torch.long), count + 1


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("acting='student'", {"student": True, "acting": "student"}),
        ("acting=0.25", {"student": True, "acting": 0.25}),
        ("record=True", {"student": True, "record": True}),
        ("a teacher that remembers", {"remembers": True}),
        ("exploration with a mask", {"masked": True}),
    ],
)
def test_what_cannot_be_captured_is_refused(what: str, options: dict) -> None:
    teacher = always(0)
    if options.pop("remembers", False):
        keys = {"in_keys": ["observation", "count"], "out_keys": ["action", ("next", "count")]}
        teacher = TensorDictModule(Remembers(), **keys)
    if options.pop("masked", False):
        options["exploration"] = EGreedyModule(Categorical(2), action_mask_key="action_mask")
    student = always(1) if options.pop("student", False) else None
    with pytest.raises(ValueError, match=f"teacher that acts alone: got {what}; leave out cudagraph_policy"):
        TeacherStudentPolicy(teacher, student, cudagraph=True, **options)


def test_options_of_torchrls_capture_and_workers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"cudagraph_policy must be True or False: got \{'warmup': 5\}; the capture"):
        DualNetworkCollector(Tape(), always(0), frames_per_batch=8, cudagraph_policy={"warmup": 5})
    with pytest.raises(ValueError, match="cudagraph_policy=True is for backend='direct': got backend='process', whose"):
        DualNetworkCollector(Tape, always(0), frames_per_batch=8, cudagraph_policy=True, num_collectors=2)
