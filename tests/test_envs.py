"""Atari as a batched environment, step by step against gymnasium's own ALE environments and wrappers.

What ALE's vector environment does, as far as these tests pin it: at a reset it presses FIRE once, where the game has
that action, and plays fewer than ``noop_max`` emulator frames altogether; frames before the first are zero; a step
shows the maximum of its last two grey frames, shrunk by area to 84 x 84; a game that ends within a step is not played
on, and the frame it ends on is not shown. gymnasium's ``AtariPreprocessing`` does all of that but the FIRE: it is the
reference here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs

from torchrl_rtpd.envs import AtariVecEnv

gymnasium.register_envs(ale_py)

NAMES = {"pong": "Pong", "breakout": "Breakout", "seaquest": "Seaquest", "freeway": "Freeway"}


@contextmanager
def opened(game: str, num_envs: int, **options: object) -> Iterator[AtariVecEnv]:
    env = AtariVecEnv(game, num_envs, **options)
    try:
        yield env
    finally:
        env.close()


def random_actions(num_envs: int, steps: int, num_actions: int, seed: int = 0) -> torch.Tensor:
    """Actions ``[N, T]``, those of a shorter play first."""
    return torch.randint(num_actions, (steps, num_envs), generator=torch.Generator().manual_seed(seed)).T


def play(env: AtariVecEnv, actions: torch.Tensor) -> TensorDictBase:
    """The transitions ``[N, T]`` of these actions ``[N, T]``, from a full reset on."""
    step = iter(actions.unbind(1))

    def policy(tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("action", next(step))

    return env.rollout(actions.shape[1], policy, break_when_any_done=False)


class FireFirst(gymnasium.Wrapper):
    """Presses FIRE after each reset, where the game has it, then does nothing for some frames."""

    def __init__(self, env: gymnasium.Env, noop_frames: int) -> None:
        super().__init__(env)
        meanings = env.unwrapped.get_action_meanings()
        fire = [meanings.index("FIRE")] if "FIRE" in meanings else []
        self.first_actions = fire + [meanings.index("NOOP")] * noop_frames

    def reset(self, **kwargs: object) -> tuple[np.ndarray, dict]:
        observation, info = self.env.reset()
        for action in self.first_actions:
            observation, _, _, _, info = self.env.step(action)
        return observation, info


def reference_env(
    game: str,
    *,
    frame_skip: int = 4,
    frame_stack: int = 4,
    max_frames: int = 108_000,
    noop_frames: int = 0,
    sticky_actions: float = 0.0,
    ale_seed: int | None = None,
) -> gymnasium.Env:
    """One game of gymnasium's ALE with gymnasium's preprocessing."""
    raw = gymnasium.make(f"ALE/{NAMES[game]}-v5", frameskip=1, repeat_action_probability=sticky_actions)
    env = FireFirst(raw, noop_frames)
    # ALE itself counts the frames before the first observation, its vector environment does not.
    raw.unwrapped.ale.setInt("max_num_frames_per_episode", max_frames + len(env.first_actions))
    if ale_seed is not None:  # gymnasium would derive another seed from it
        raw.unwrapped.ale.setInt("random_seed", ale_seed)
    raw.unwrapped.load_game()
    env = AtariPreprocessing(env, noop_max=0, frame_skip=frame_skip)
    return FrameStackObservation(env, frame_stack, padding_type="zero")


def reference_play(env: gymnasium.Env, actions: torch.Tensor) -> TensorDict:
    """The same keys as our environment's for one slot's actions ``[T]``, by a plain loop over a plain environment."""
    rows = []
    pixels, info = env.reset()
    score = 0.0
    for action in actions.tolist():
        lives = info["lives"]
        next_pixels, reward, terminated, truncated, info = env.step(action)
        score += reward
        after = {
            "pixels": torch.from_numpy(next_pixels.copy()),
            "reward": torch.tensor([np.sign(reward)], dtype=torch.float32),
            "raw_reward": torch.tensor([reward], dtype=torch.float32),
            "episode_reward": torch.tensor([score], dtype=torch.float32),
            "terminated": torch.tensor([terminated]),
            "truncated": torch.tensor([truncated]),
            "done": torch.tensor([terminated or truncated]),
            "end_of_life": torch.tensor([terminated or (info["lives"] < lives and not truncated)]),
        }
        rows.append(TensorDict({"pixels": torch.from_numpy(pixels.copy()), "next": after}))
        if terminated or truncated:
            next_pixels, info = env.reset()
            score = 0.0
        pixels = next_pixels
    env.close()
    return torch.stack(rows)


def assert_equals_reference(rollout: TensorDictBase, reference: TensorDict, label: str = "") -> None:
    """Bit by bit, and says where not."""
    for key in reference.keys(True, True):
        different = (rollout[key] != reference[key]).flatten(1).any(1)
        assert rollout[key].dtype == reference[key].dtype, (label, key)
        assert not different.any(), f"{label} {key} differs first at step {different.nonzero()[0].item()}"


# Against gymnasium


@pytest.mark.parametrize(
    ("game", "num_envs", "steps", "options", "terminated", "truncated"),
    [
        ("breakout", 3, 280, {}, 4, 0),
        ("seaquest", 2, 350, {}, 1, 0),
        ("pong", 2, 150, {"max_frames": 401}, 0, 2),
        ("pong", 1, 110, {"max_frames": 402}, 0, 1),
        ("breakout", 2, 190, {"max_frames": 642}, 1, 1),
        ("breakout", 2, 110, {"frame_skip": 3, "frame_stack": 2, "max_frames": 303}, 0, 2),
        ("seaquest", 2, 60, {"frame_skip": 1, "frame_stack": 1, "max_frames": 25}, 0, 4),
        ("freeway", 2, 40, {"frame_stack": 5}, 0, 0),
    ],
)
def test_frames_scores_and_ends_equal_gymnasiums(
    game: str, num_envs: int, steps: int, options: dict, terminated: int, truncated: int
) -> None:
    """Every key of every step of every slot, over as many lost and cut games as the case says."""
    with opened(game, num_envs, noop_max=0, **options) as env:
        actions = random_actions(num_envs, steps, env.num_actions)
        rollout = play(env, actions)
    for slot in range(num_envs):
        reference = reference_play(reference_env(game, **options), actions[slot])
        assert_equals_reference(rollout[slot], reference, f"slot {slot}")
    assert rollout["next", "terminated"].sum().item() == terminated
    assert rollout["next", "truncated"].sum().item() == truncated


def test_sticky_actions_are_ales_own_drawn_from_the_slots_seed() -> None:
    """Slot ``i`` is ALE with ``random_seed = seed + i``, frame by frame."""
    with opened("breakout", 2, noop_max=0, sticky_actions=0.25, seed=7) as env:
        actions = random_actions(2, 150, env.num_actions)
        rollout = play(env, actions)
    for slot in range(2):
        reference = reference_play(reference_env("breakout", sticky_actions=0.25, ale_seed=7 + slot), actions[slot])
        assert_equals_reference(rollout[slot], reference, f"slot {slot}")
    plain = reference_play(reference_env("breakout"), actions[0])
    assert (rollout[0]["next", "pixels"] != plain["next", "pixels"]).any()


def test_games_start_with_fewer_than_noop_max_frames() -> None:
    """FIRE and 0 to 8 no-ops when ``noop_max`` is 10: each slot goes on as gymnasium does after one of these starts."""
    with opened("seaquest", 6, noop_max=10, seed=0) as env:
        actions = random_actions(1, 30, env.num_actions).expand(6, -1)
        rollout = play(env, actions)
    starts = [
        reference_play(reference_env("seaquest", noop_frames=noops), actions[0])["next", "pixels"] for noops in range(9)
    ]
    found = [
        [noops for noops, start in enumerate(starts) if torch.equal(start, row["next", "pixels"])] for row in rollout
    ]
    assert all(found)
    assert len({tuple(noops) for noops in found}) > 2


def test_a_lost_pong_game_scores_minus_21() -> None:
    """Whoever does nothing loses every point; no life is lost on the way, and the next game starts at 0."""
    with opened("pong", 2, noop_max=0) as env:
        rollout = play(env, torch.zeros(2, 900, dtype=torch.int64))
    for row in rollout:
        end = row["next", "done"].flatten().nonzero()[0].item()
        assert row["next", "episode_reward"][end].item() == -21
        assert row["next", "raw_reward"][: end + 1].sum().item() == -21
        assert row["next", "end_of_life"][: end + 1].sum().item() == 1
        assert row["episode_reward"][end + 1].item() == 0
        assert row["next", "episode_reward"][-1].item() > -21


# Lives, ends and rewards


def test_done_is_only_the_real_end_while_end_of_life_marks_all_five_lives() -> None:
    """Breakout has five lives: five marks up to the end of the first game, one of them with ``done``."""
    with opened("breakout", 2, noop_max=0) as env:
        rollout = play(env, random_actions(2, 200, 4))
    for row in rollout:
        done, end_of_life = row["next", "done"].flatten(), row["next", "end_of_life"].flatten()
        end = done.nonzero()[0].item()
        assert end_of_life[: end + 1].sum().item() == 5
        assert done[: end + 1].sum().item() == 1
        assert end_of_life[end]


def test_a_truncated_game_is_not_the_end_of_a_life() -> None:
    """Its last value can be bootstrapped; the next game begins with zeros before its first frame."""
    with opened("pong", 2, noop_max=0, max_frames=40) as env:
        rollout = play(env, random_actions(2, 25, 6))
    expected = torch.tensor([False] * 9 + [True]).repeat(3)[:25].expand(2, 25)
    assert torch.equal(rollout["next", "truncated"].squeeze(-1), expected)
    assert torch.equal(rollout["next", "done"], rollout["next", "truncated"])
    assert not rollout["next", "terminated"].any()
    assert not rollout["next", "end_of_life"].any()
    assert not rollout["pixels"][:, [10, 20], :3].any()
    assert rollout["next", "pixels"][:, [9, 19]].flatten(3).any(-1).all()


def test_reward_is_the_sign_of_the_raw_reward_unless_clipping_is_off() -> None:
    """Seaquest gives 20 points for its first shark."""
    rollouts = []
    for clip_rewards in (True, False):
        with opened("seaquest", 2, noop_max=0, clip_rewards=clip_rewards) as env:
            rollouts.append(play(env, random_actions(2, 180, 18)))
    clipped, raw = rollouts
    assert set(clipped["next", "reward"].unique().tolist()) == {0.0, 1.0}
    assert set(raw["next", "reward"].unique().tolist()) == {0.0, 20.0}
    assert torch.equal(raw["next", "reward"], raw["next", "raw_reward"])
    assert torch.equal(clipped["next", "raw_reward"], raw["next", "raw_reward"])
    assert torch.equal(clipped["next", "episode_reward"], raw["next", "episode_reward"])


# Seeds


def stream(env: AtariVecEnv) -> TensorDictBase:
    return play(env, random_actions(env.batch_size[0], 20, env.num_actions)).exclude("action")


def same(first: TensorDictBase, second: TensorDictBase) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items(True, True))


def test_one_seed_gives_one_stream_and_another_seed_another() -> None:
    streams = []
    for seed in (3, 3, 1_000):
        with opened("breakout", 2, seed=seed, sticky_actions=0.25) as env:
            streams.append(stream(env))
    assert same(streams[0], streams[1])
    assert not same(streams[0], streams[2])


def test_a_slot_is_seeded_with_the_seed_plus_its_number() -> None:
    """And plays the same whatever its neighbours and the threads."""
    actions = random_actions(1, 40, 4)
    with opened("breakout", 3, seed=5, sticky_actions=0.25) as env:
        last = play(env, actions.expand(3, -1))[2]
    with opened("breakout", 1, seed=7, sticky_actions=0.25, num_threads=1) as env:
        alone = play(env, actions)[0]
    assert same(last, alone)


def test_set_seed_and_reset_reproduce_a_stream() -> None:
    with opened("breakout", 2, seed=0, sticky_actions=0.25) as env:
        env.set_seed(11)
        first = stream(env)
        later = stream(env)
        env.set_seed(11)
        assert same(stream(env), first)
        assert not same(later, first)


@pytest.mark.parametrize("seed", [2**31 - 1, 2**31 + 5, 2**40, np.int64(3)])
def test_seeds_that_torchrl_hands_on_are_taken(seed: int) -> None:
    """``set_seed`` returns a seed of 32 bits for the next environment; ALE's have 31."""
    streams = []
    for _ in range(2):
        with opened("breakout", 2, seed=seed, sticky_actions=0.25) as env:
            streams.append(stream(env))
    assert same(*streams)


def test_without_a_seed_two_environments_differ() -> None:
    """Games start with up to 29 frames and have a sticky action in four: equal streams are out of the question."""
    streams = []
    for _ in range(2):
        with opened("breakout", 4, sticky_actions=0.25) as env:
            streams.append(stream(env))
    assert not same(*streams)


def test_building_and_running_leave_the_global_generators_as_they_were() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    actions = random_actions(2, 5, 4)
    with opened("breakout", 2, seed=0) as env:
        play(env, actions)
        env.set_seed(1)
        env.reset()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


# TorchRL's contracts


@pytest.mark.parametrize(
    ("game", "num_envs", "options"),
    [
        ("pong", 1, {}),
        ("seaquest", 3, {"device": "cpu", "frame_stack": 2, "clip_rewards": False}),
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


def test_a_full_reset_in_the_middle_starts_all_games_anew() -> None:
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


# Errors


def test_slots_cannot_be_reset_in_the_middle_of_their_game() -> None:
    with opened("pong", 2, noop_max=0) as env:
        tensordict = env.reset().set("_reset", torch.tensor([[True], [False]]))
        with pytest.raises(
            ValueError,
            match=r"got _reset=\[True, False\] and ended=\[False, False\]; reset all slots with env\.reset\(\)",
        ):
            env.reset(tensordict)


def test_a_step_before_the_first_reset_is_an_error() -> None:
    with opened("pong", 2) as env:
        tensordict = TensorDict({"action": torch.zeros(2, dtype=torch.int64)}, [2])
        with pytest.raises(RuntimeError, match=r"step was called before reset: call env\.reset\(\) first"):
            env.step(tensordict)


@pytest.mark.parametrize(
    ("game", "near"),
    [
        ("pongg", "pong"),
        ("Breakout", "breakout"),
        ("MsPacman", "ms_pacman"),
        ("space-invaders", "space_invaders"),
        ("2600", r"ale_py\.roms\.get_all_rom_ids\(\) lists all names"),
    ],
)
def test_an_unknown_game_is_answered_with_the_nearest_names(game: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown game '{game}': names are ALE's, in snake case, .*{near}"):
        AtariVecEnv(game, 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_envs": 0}, "num_envs must be an integer of at least 1: got 0"),
        ({"num_envs": 2.0}, r"num_envs must be an integer of at least 1: got 2\.0"),
        ({"num_envs": True}, "num_envs must be an integer of at least 1: got True"),
        ({"frame_skip": 0}, "frame_skip must be an integer of at least 1: got 0"),
        ({"frame_stack": 0}, "frame_stack must be an integer of at least 1: got 0"),
        ({"max_frames": 0}, "max_frames must be an integer of at least 1: got 0"),
        ({"noop_max": -1}, "noop_max must be an integer of at least 0: got -1"),
        ({"num_threads": -1}, "num_threads must be an integer of at least 0: got -1"),
        ({"sticky_actions": 1.0}, r"probability in \[0, 1\): got 1\.0; ALE's usual value is 0\.25"),
        ({"sticky_actions": -0.1}, r"probability in \[0, 1\): got -0\.1"),
    ],
)
def test_sizes_and_probabilities_out_of_range_are_refused(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AtariVecEnv("pong", **{"num_envs": 1, **options})


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (torch.zeros(2), TypeError, r"must be int64 indices: got torch\.float32; sample them from env\.action_spec"),
        (None, TypeError, "must be int64 indices: got None"),
        (torch.zeros(2, 6, dtype=torch.int64), ValueError, r"must have shape \[2\]: got \[2, 6\]; give each slot one"),
        (torch.zeros(2, 1, dtype=torch.int64), ValueError, r"must have shape \[2\]: got \[2, 1\]"),
        (
            torch.tensor([0, 6]),
            ValueError,
            "pong has actions 0 to 5: got 0 to 6; build the policy from env.action_spec",
        ),
        (torch.tensor([-1, 0]), ValueError, "pong has actions 0 to 5: got -1 to 0"),
    ],
)
def test_wrong_actions_are_errors_and_the_games_go_on(action: torch.Tensor | None, error: type, text: str) -> None:
    """A refused step plays no frame."""
    with opened("pong", 2, noop_max=0) as env:
        expected = play(env, torch.ones(2, 3, dtype=torch.int64))
        tensordict = env.reset()
        with pytest.raises(error, match=text):
            env.step(tensordict.clone() if action is None else tensordict.clone().set("action", action))
        for step in range(3):
            tensordict = env.step(tensordict.set("action", torch.ones(2, dtype=torch.int64)))["next"].exclude("reward")
            assert torch.equal(tensordict["pixels"], expected[:, step]["next", "pixels"])


def test_int32_actions_are_taken() -> None:
    with opened("pong", 2, noop_max=0) as env:
        expected = play(env, torch.ones(2, 1, dtype=torch.int64))["next", "pixels"][:, 0]
        stepped = env.step(env.reset().set("action", torch.ones(2, dtype=torch.int32)))
    assert torch.equal(stepped["next", "pixels"], expected)


def test_closing_twice_does_nothing_and_a_closed_environment_says_so() -> None:
    env = AtariVecEnv("pong", 1)
    tensordict = env.reset().set("action", torch.zeros(1, dtype=torch.int64))
    env.close()
    env.close()
    env.close(raise_if_closed=False)
    assert env.is_closed
    for call in (env.reset, partial(env.step, tensordict)):
        with pytest.raises(RuntimeError, match="the environment of pong is closed: build a new one"):
            call()


def test_specs_lie_on_the_environments_device() -> None:
    """All of them, whatever the device."""
    with opened("pong", 2, device="meta") as env:
        specs = (env.full_observation_spec, env.full_action_spec, env.full_reward_spec, env.full_done_spec)
        assert {str(leaf.device) for spec in specs for leaf in spec.values(True, True)} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_are_placed_on_a_cuda_device() -> None:
    with opened("breakout", 2, noop_max=0, max_frames=20) as env:
        expected = play(env, random_actions(2, 12, 4))
    with opened("breakout", 2, noop_max=0, max_frames=20, device="cuda") as env:
        rollout = play(env, random_actions(2, 12, 4).cuda())
    assert {value.device.type for value in rollout.values(True, True)} == {"cuda"}
    assert same(rollout.cpu(), expected)


def test_a_step_that_was_begun_is_finished_with_the_same_actions_only() -> None:
    env = AtariVecEnv("pong", 2, seed=0)
    actions = torch.tensor([2, 3])
    with pytest.raises(RuntimeError, match=r"a step is begun once, after reset: send was called before reset; call"):
        env.send(actions)
    state = env.reset()
    env.send(actions)
    with pytest.raises(RuntimeError, match=r"send was called twice without a step; call env.step"):
        env.send(actions)
    with pytest.raises(
        RuntimeError, match=r"has other actions, \[2, 3\]: got \[0, 0\]; step with those that were sent"
    ):
        env.step(state.clone().set("action", torch.tensor([0, 0])))
    begun = env.step(state.clone().set("action", actions))
    other = AtariVecEnv("pong", 2, seed=0)
    plain = other.step(other.reset().set("action", actions))
    assert torch.equal(begun["next", "pixels"], plain["next", "pixels"])
    env.send(actions)
    env.reset()  # drops it
    env.send(actions)
    env.close()
    other.close()


def test_the_state_after_a_game_is_what_torchrls_own_reset_gives() -> None:
    """Slot by slot, over ends of single slots; entries of others, too."""
    envs = [AtariVecEnv("breakout", 3, seed=0) for _ in range(2)]
    states = [env.reset().set(("of", "others"), torch.arange(3) + 5) for env in envs]
    ends = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        action = torch.randint(4, (3,), generator=generator)
        following = [
            env._step_mdp(env.step(state.set("action", action))) for env, state in zip(envs, states, strict=True)
        ]
        ends.append(int(following[0]["done"].sum()))
        states = [envs[0].maybe_reset(following[0]), EnvBase.maybe_reset(envs[1], following[1])]
        assert (states[0] == states[1]).all() and set(states[0].keys(True)) == set(states[1].keys(True))
    assert sum(ends) >= 3 and 1 in ends
    for env in envs:
        env.close()
