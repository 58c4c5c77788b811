"""AtariVecEnv as an environment of TorchRL's: specs, resets, collectors."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from env_parts import assert_equals_reference, opened, play, random_actions, reference_env, reference_play, same
from gymnasium.wrappers import TimeLimit
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, RenameTransform, RewardSum, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.replay.storage import FrameStackStorage


@pytest.mark.parametrize(
    ("game", "num_envs", "options"),
    [
        ("pong", 1, {}),
        ("seaquest", 3, {"device": "cpu", "frame_stack": 2, "clip_rewards": False}),
        ("pong", 2, {"grayscale": False, "image_size": (50, 40), "full_action_space": True, "frame_stack": 1}),
        ("breakout", 2, {"max_frames": 8}),  # every game is cut within check_env_specs's own rollout
    ],
)
def test_specs_hold(game: str, num_envs: int, options: dict) -> None:
    with opened(game, num_envs, **options) as env:
        check_env_specs(env, seed=0, break_when_any_done="both")


def test_keys_have_the_promised_shapes_and_types() -> None:
    with opened("seaquest", 3, device="cpu") as env:
        rollout = play(env, random_actions(3, 2, 18))
        assert env.batch_size == (3,)
        assert env.num_actions == env.action_spec.n == 18
        assert env.action_spec.shape == (3,)
        assert env.device == rollout.device == torch.device("cpu")
    layout = {key: (tuple(value.shape[2:]), value.dtype) for key, value in rollout["next"].items()}
    assert layout == {
        "pixels": ((4, 84, 84), torch.uint8),
        "reward": ((1,), torch.float32),
        "raw_reward": ((1,), torch.float32),
        "episode_reward": ((1,), torch.float32),
        "raw_episode_reward": ((1,), torch.float32),
        "end_of_life": ((1,), torch.bool),
        "done": ((1,), torch.bool),
        "terminated": ((1,), torch.bool),
        "truncated": ((1,), torch.bool),
    }
    assert (rollout["action"].shape, rollout["action"].dtype) == ((3, 2), torch.int64)


def test_what_was_collected_is_not_overwritten_by_later_steps() -> None:
    with opened("breakout", 2, noop_max=0, max_frames=24) as env:
        env.reset()
        kept, copies = [], []
        tensordict = env.reset()
        for _ in range(15):
            stepped, tensordict = env.step_and_maybe_reset(tensordict.set("action", torch.tensor([1, 2])))
            kept.append(stepped)
            copies.append(stepped.clone())
    assert all(same(now, then) for now, then in zip(kept, copies, strict=True))


def test_a_collector_gets_gymnasiums_scores() -> None:
    """Random actions through TorchRL's own Collector, in batches, and its actions again in gymnasium."""
    torch.manual_seed(0)
    collector = Collector(partial(AtariVecEnv, "breakout", 2, noop_max=0), frames_per_batch=100, total_frames=600)
    batches = list(collector)
    collector.shutdown()
    assert [batch.shape for batch in batches] == [(2, 50)] * 6
    collected = torch.cat(batches, 1)
    scores = 0
    for slot in range(2):
        reference = reference_play(reference_env("breakout"), collected["action"][slot])
        assert_equals_reference(collected[slot], reference, f"slot {slot}")
        done = reference["next", "done"]
        assert torch.equal(collected[slot]["next", "episode_reward"][done], reference["next", "episode_reward"][done])
        scores += done.sum().item()
    assert scores >= 2


def test_a_full_reset_in_the_middle_starts_all_games_from_scratch() -> None:
    with opened("breakout", 2, noop_max=0) as env:
        first = play(env, random_actions(2, 120, 4))
        again = play(env, random_actions(2, 120, 4))
    assert first["next", "episode_reward"][0, -1].item() == 1
    assert again["episode_reward"][0, 0].item() == 0
    assert same(first, again)


def test_slots_whose_game_ended_go_on_with_the_game_that_ale_began() -> None:
    """Only those: the other slot keeps its frames and its score. Asking again changes nothing."""
    with opened("breakout", 2, noop_max=0) as env:
        tensordict = env.reset()
        actions = random_actions(2, 200, 4)
        for action in actions.unbind(1):
            stepped = env.step(tensordict.set("action", action))
            if stepped["next", "done"].any():
                break
            tensordict = stepped["next"].exclude("reward")
        done = stepped["next", "done"]
        assert done.sum().item() == 1
        following = stepped["next"].exclude("reward").set("_reset", done)
        begun, again = env.reset(following.clone()), env.reset(following.clone())
    slot, other = done.flatten().nonzero().item(), (~done).flatten().nonzero().item()
    assert same(begun, again)
    assert not begun["pixels"][slot, :3].any() and begun["pixels"][slot, 3].any()
    assert begun["episode_reward"][slot].item() == 0
    assert torch.equal(begun["pixels"][other], stepped["next", "pixels"][other])
    assert torch.equal(begun["episode_reward"][other], stepped["next", "episode_reward"][other])


# Games that are begun again from outside


def test_games_that_a_transform_truncates_equal_gymnasiums_time_limit() -> None:
    """Slot by slot, at other times than ALE's own ends."""
    with opened("breakout", 2, noop_max=0) as base:
        actions = random_actions(2, 200, 4)
        rollout = play(TransformedEnv(base, StepCounter(max_steps=160)), actions)
    for slot in range(2):
        reference = reference_play(TimeLimit(reference_env("breakout"), 160), actions[slot])
        assert_equals_reference(rollout[slot], reference, f"slot {slot}")
    assert rollout["next", "truncated"].any() and rollout["next", "terminated"].any()
    assert not torch.equal(rollout["next", "done"][0], rollout["next", "done"][1])


@pytest.mark.parametrize("frame_stack", [1, 4])
def test_a_running_game_can_be_begun_again_while_others_go_on(frame_stack: int) -> None:
    """It starts as at first, with its score at 0; the other slots are as if nothing had happened."""
    actions = random_actions(3, 70, 4)
    with opened("breakout", 3, noop_max=0, frame_stack=frame_stack) as env:
        undisturbed = play(env, actions)
        state = env.reset()
        start = state.clone()
        for step in range(50):
            state = env.step(state.set("action", actions[:, step]))["next"].exclude("reward")
        assert state["episode_reward"][1].item() > 0
        kept = {key: value.clone() for key, value in state.items()}
        begun = env.reset(state.set("_reset", torch.tensor([[False], [True], [False]])))
        assert all(torch.equal(begun[key][1], start[key][1]) for key in start.keys())
        assert all(torch.equal(begun[key][[0, 2]], kept[key][[0, 2]]) for key in start.keys() if key != "is_init")
        if frame_stack == 1:
            assert begun["is_init"].flatten().tolist() == [False, True, False]
        for step in range(20):
            after = env.step(
                begun.set("action", torch.stack([actions[0, 50 + step], actions[1, step], actions[2, 50 + step]]))
            )
            begun = after["next"].exclude("reward")
            for slot, then in ((0, 50 + step), (1, step), (2, 50 + step)):
                for key in ("pixels", "episode_reward", "raw_episode_reward", "end_of_life"):
                    assert torch.equal(begun[key][slot], undisturbed["next", key][slot, then]), (key, slot, step)


# The raw score


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda env: env.append_transform(RewardSum()),
        lambda env: TransformedEnv(
            env, Compose(StepCounter(), RewardSum(in_keys=["reward"], out_keys=["episode_reward"]))
        ),
        lambda env: TransformedEnv(env, RewardSum(reward_spec=True)),
        lambda env: TransformedEnv(env, RenameTransform(["raw_reward"], ["episode_reward"], create_copy=True)),
    ],
    ids=["RewardSum", "in a chain", "among the rewards", "renamed"],
)
def test_a_raw_score_stays_whatever_is_written_over_the_other_one(wrapped: object) -> None:
    """Seaquest gives 20 points a shark, which TorchRL's sum of clipped rewards counts as 1."""
    with opened("seaquest", 2, noop_max=0) as base:
        rollout = play(wrapped(base), random_actions(2, 180, 18))
    raw, after = rollout["next", "raw_reward"], rollout["next"]
    assert not rollout["next", "done"][:, :-1].any()
    assert torch.equal(after["raw_episode_reward"], raw.cumsum(1))
    assert after["raw_episode_reward"].max().item() >= 20
    assert not torch.equal(after["episode_reward"], after["raw_episode_reward"])


def test_the_score_goes_on_when_what_was_returned_is_overwritten() -> None:
    """Neither entry shares memory with the environment or with the other."""
    with opened("seaquest", 2, noop_max=0) as env:
        actions = random_actions(2, 180, 18)
        wanted = play(env, actions)["next", "raw_episode_reward"][:, -1]
        state = env.reset()
        for step in range(180):
            state["episode_reward"].fill_(-1_000)
            state = env.step(state.set("action", actions[:, step]))["next"].exclude("reward")
            assert torch.equal(state["episode_reward"], state["raw_episode_reward"])
    assert wanted.max().item() >= 20
    assert torch.equal(state["raw_episode_reward"], wanted)


# Sizes, colours and actions


@pytest.mark.parametrize(
    ("options", "ales"),
    [
        ({"image_size": (60, 50)}, {"img_height": 60, "img_width": 50}),
        ({"image_size": 42, "frame_stack": 2}, {"img_height": 42, "img_width": 42, "stack_num": 2}),
        ({"grayscale": False}, {"grayscale": False}),
        ({"grayscale": False, "frame_stack": 1}, {"grayscale": False, "stack_num": 1}),
    ],
    ids=str,
)
def test_frames_of_any_size_and_colour_are_ales(options: dict, ales: dict) -> None:
    """Over ends of games; the colours of a frame follow each other, oldest frame first."""
    ale = AtariVectorEnv("breakout", 2, noop_max=0, max_num_frames_per_episode=40, autoreset_mode="SameStep", **ales)
    actions = random_actions(2, 25, 4)
    shown = [ale.reset(seed=0)[0]]
    last = []
    for action in actions.unbind(1):
        observation, _, _, truncated, info = ale.step(action.numpy())
        shown.append(observation)
        last.append(info["final_obs"] if truncated.all() else observation)
    with opened("breakout", 2, noop_max=0, max_frames=40, seed=0, **options) as env:
        rollout = play(env, actions)
        assert env.observation_spec["pixels"].shape == rollout["pixels"][:, 0].shape
    assert rollout["next", "truncated"].sum().item() == 4
    for step in range(25):
        for found, wanted in ((rollout["pixels"], shown), (rollout["next", "pixels"], last)):
            frames = torch.from_numpy(wanted[step])
            if not env.grayscale:
                frames = torch.cat([frames[:, :, :, :, colour][:, :, None] for colour in range(3)], 2).flatten(1, 2)
            assert torch.equal(found[:, step], frames), step


def test_all_actions_of_the_console_can_be_offered() -> None:
    """18 of them; Pong alone offers 6, and action 3 of the console is RIGHT, which is Pong's 2."""
    with opened("pong", 2, noop_max=0, full_action_space=True) as env:
        assert env.num_actions == env.action_spec.n == 18
        every = play(env, torch.full((2, 20), 3))
    with opened("pong", 2, noop_max=0) as env:
        assert env.num_actions == 6
        assert env.action_meanings == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
        few = play(env, torch.full((2, 20), 2))
    assert torch.equal(every["next", "pixels"], few["next", "pixels"])


@pytest.mark.parametrize("frame_stack", [1, 4])
def test_colour_goes_through_the_replay(frame_stack: int) -> None:
    """Equal to TorchRL's own storage of whole stacks, over cut games and turns of the ring."""
    with opened(
        "breakout", 2, noop_max=0, max_frames=40, grayscale=False, image_size=20, frame_stack=frame_stack
    ) as env:
        rollout = play(env, random_actions(2, 30, 4))
    storage = FrameStackStorage(20, num_envs=2, steps_per_write=5, frame_stack=frame_stack, channels=3)
    ours, whole = (TensorDictReplayBuffer(storage=kind, batch_size=4) for kind in (storage, LazyTensorStorage(20)))
    for batch in rollout.split(5, 1):
        ours.extend(batch.reshape(-1))
        whole.extend(batch.reshape(-1))
        assert same(whole[:].exclude("index"), ours[:])
