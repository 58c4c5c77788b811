"""Single frames from the environment, stacked for the network that acts and rebuilt when sampled, as with stacks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.modules import EGreedyModule

from torchrl_rtpd import (
    AtariVecEnv,
    DualNetworkCollector,
    Evaluator,
    FrameStackStorage,
    TeacherStudentPolicy,
    make_actor,
    make_replay_buffer,
)
from torchrl_rtpd.collectors.frames import FrameStacker

SLOTS, STEPS = 3, 4


def collected(frame_stack: int, *, overlap: bool = False, batches: int = 8) -> list[TensorDictBase]:
    """Batches of Breakout, in games of at most 12 steps, by an exploring teacher."""
    env = AtariVecEnv("breakout", SLOTS, frame_stack=frame_stack, max_frames=48, noop_max=0, seed=3)
    teacher = make_actor("net17", env.action_spec, seed=1)
    torch.manual_seed(0)
    collector = DualNetworkCollector(
        env,
        teacher,
        exploration=EGreedyModule(env.action_spec_unbatched, eps_init=0.3, eps_end=0.3),
        frame_stack=4 if frame_stack == 1 else None,
        overlap=overlap,
        frames_per_batch=SLOTS * STEPS,
        total_frames=batches * SLOTS * STEPS,
    )
    found = [batch.clone() for batch in collector]
    collector.shutdown()
    return found


@pytest.fixture(scope="module")
def stacks() -> list[TensorDictBase]:
    return collected(4)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_network_that_acts_sees_the_stacks_that_ale_would_have_shown(
    stacks: list[TensorDictBase], overlap: bool
) -> None:
    """So that actions and games are the same, and what is stored is the newest frame of each stack."""
    frames = collected(1, overlap=overlap)
    for one, other in zip(frames, stacks, strict=True):
        assert one["pixels"].shape == (SLOTS, STEPS, 1, 84, 84)
        assert torch.equal(one["action"], other["action"])
        for key in ("pixels", ("next", "pixels")):
            assert torch.equal(one[key], other[key][:, :, -1:])
        assert torch.equal(one["next", "done"], other["next", "done"])
    assert sum(batch["next", "done"].sum() for batch in frames) >= 2 * SLOTS


def test_a_game_begins_where_the_environment_says_so(stacks: list[TensorDictBase]) -> None:
    frames = torch.cat(collected(1), 1)
    begins = torch.cat([torch.ones_like(frames["next", "done"][:, :1]), frames["next", "done"][:, :-1]], 1)
    assert torch.equal(frames["is_init"], begins)
    assert not frames["next", "is_init"].any()


def test_sampled_transitions_are_those_of_stored_stacks(stacks: list[TensorDictBase]) -> None:
    """Byte for byte, across the ends of games and the seam of the ring."""
    buffers = []
    for batches in (collected(1), stacks):
        storage = FrameStackStorage(5 * SLOTS * STEPS, num_envs=SLOTS, steps_per_write=STEPS, n_step=3)
        buffer = make_replay_buffer(storage, batch_size=64, seed=0)
        for batch in batches:
            buffer.extend(batch.reshape(-1))
        buffers.append(buffer)
    one, other = (buffer.sample() for buffer in buffers)
    for key in other.keys(True, True):
        assert torch.equal(one[key], other[key]), key


def test_frames_that_do_not_continue_are_refused() -> None:
    """A batch left out, and stacks after frames."""
    batches = collected(1)
    first, second = (
        make_replay_buffer(FrameStackStorage(5 * SLOTS * STEPS, num_envs=SLOTS, steps_per_write=STEPS), batch_size=4)
        for _ in range(2)
    )
    for buffer in (first, second):
        buffer.extend(batches[0].reshape(-1))
    with pytest.raises(ValueError, match="stacks must continue those of the step before, slot by slot"):
        first.extend(batches[2].reshape(-1))
    with pytest.raises(ValueError, match=r"'pixels' must be torch.uint8 \[12, 1, 84, 84\]: got .*\[12, 4, 84, 84\]"):
        second.extend(collected(4, batches=1)[0].reshape(-1))


def test_a_step_taken_back_may_be_seen_again() -> None:
    stacker = FrameStacker(3)

    def see(value: int) -> list[int]:
        frame = torch.full((1, 1, 1, 1), value, dtype=torch.uint8)
        seen = stacker(TensorDict({"pixels": frame, "is_init": torch.zeros(1, 1, dtype=torch.bool)}, [1]))
        return seen["pixels"].flatten().tolist()

    assert [see(1), see(2)] == [[0, 0, 1], [0, 1, 2]]
    stacker.take_back()
    assert see(5) == [0, 1, 5]
    stacker.forget()
    assert see(6) == [0, 0, 6]


def test_frames_are_stacked_from_single_ones_only() -> None:
    with pytest.raises(ValueError, match="frame_stack must be an integer of at least 2: got 1; without a stack leave"):
        FrameStacker(1)
    env = AtariVecEnv("pong", 2, seed=0)
    with pytest.raises(ValueError, match=r"got \[2, 4, 84, 84\] and no entry 'is_init'; build .* with frame_stack=1"):
        DualNetworkCollector(
            env, make_actor("net17", env.action_spec), frame_stack=4, frames_per_batch=4, total_frames=4
        )


def test_a_policy_that_stacks_frames_is_evaluated_as_one_that_sees_stacks() -> None:
    """The evaluator plays the same games with single frames and the policy's stacks as with ALE's."""
    scores = []
    for frame_stack in (4, 1):
        make = partial(AtariVecEnv, "breakout", SLOTS, frame_stack=frame_stack, max_frames=48, noop_max=0)
        evaluator = Evaluator(make, episodes=SLOTS, epsilon=0.0, seed=1)
        teacher = make_actor("net17", evaluator.env.action_spec, seed=1)
        policy = teacher if frame_stack == 4 else TeacherStudentPolicy(teacher, frame_stack=4)
        actions: list[torch.Tensor] = []
        policy.register_forward_hook(lambda module, args, out, actions=actions: actions.append(out["action"].clone()))
        scores.append((evaluator(policy), torch.stack(actions)))
        evaluator.close()
    assert scores[0][0] == scores[1][0]
    assert torch.equal(scores[0][1], scores[1][1])
    assert len(scores[0][1].unique()) > 1
