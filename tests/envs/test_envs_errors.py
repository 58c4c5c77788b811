"""Errors of AtariVecEnv, and steps that are begun ahead."""

from __future__ import annotations

from functools import partial

import gymnasium
import pytest
import torch
from ale_py import roms
from env_parts import opened, play, random_actions, same
from tensordict import TensorDict
from torchrl.envs import EnvBase

from torchrl_rtpd.envs import AtariVecEnv, check_game


def test_a_reset_that_leaves_out_a_game_that_is_over_is_an_error() -> None:
    """ALE has restarted it already."""
    with opened("pong", 2, noop_max=0, max_frames=8) as env:
        play(env, random_actions(2, 1, 6))
        stepped = env.step(env.reset().set("action", torch.zeros(2, dtype=torch.int64)))
        state = stepped["next"].exclude("reward").set("action", torch.zeros(2, dtype=torch.int64))
        after = env.step(state)["next"].exclude("reward")
        assert after["done"].all()
        with pytest.raises(
            ValueError, match=r"must be reset: got _reset=\[True, False\] and ended=\[True, True\]; reset those as well"
        ):
            env._reset(after.set("_reset", torch.tensor([[True], [False]])))


def test_single_slots_cannot_be_reset_before_the_first_reset_or_within_a_step() -> None:
    chosen = TensorDict({"_reset": torch.tensor([[True], [False]])}, [2])
    with opened("pong", 2) as env:
        with pytest.raises(RuntimeError, match=r"between steps: got _reset=\[True, False\]; call env\.reset\(\)"):
            env._reset(chosen)
        env.reset()
        env.send(torch.zeros(2, dtype=torch.int64))
        with pytest.raises(RuntimeError, match=r"between steps: got _reset=\[True, False\]"):
            env._reset(chosen)


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


def test_games_that_would_end_the_process_are_refused_by_name() -> None:
    """Those that ALE lists and does not register: every one, and none else."""
    listed = set(roms.get_all_rom_ids())
    registered = {spec.kwargs["game"] for spec in gymnasium.registry.values() if spec.namespace == "ALE"}
    assert listed - registered == {"combat", "joust", "maze_craze", "warlords"}
    for game in listed - registered:
        with pytest.raises(ValueError, match=rf"'{game}' has no single-player game, and ALE would end the process"):
            AtariVecEnv(game, 1)
    for game in registered:
        check_game(game)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "ALE/Pong-v5",
            r"'ALE/Pong-v5'; use 'pong', .* adds sticky_actions=0\.25 and frame_skip=4 \(0\.0 and 4 unless",
        ),
        ("ALE/MsPacman-v5", r"use 'ms_pacman', .* sticky_actions=0\.25 and frame_skip=4"),
        ("PongNoFrameskip-v4", r"use 'pong', .* sticky_actions=0\.0 and frame_skip=1"),
        ("PongNoFrameskip-v0", r"use 'pong', .* sticky_actions=0\.25 and frame_skip=1"),
        ("Breakout-v4", r"use 'breakout', .* sticky_actions=0\.0 and a frame skip drawn from \(2, 5\), not offered"),
    ],
)
def test_gymnasiums_names_are_answered_with_the_game_and_what_differs(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"games have ALE's names: got gymnasium's .*{text}"):
        AtariVecEnv(name, 1)


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("PongDeterministic-v4", "pong"),
        ("ALE/Pong-ram-v5", "pong"),
        ("MsPacman-ramNoFrameskip-v4", "ms_pacman"),
        ("MsPacmanDeterministic-v0", "ms_pacman"),
        ("MontezumaRevenge", "montezuma_revenge"),
    ],
)
def test_names_that_gym_had_once_are_answered_with_the_nearest_game_first(name: str, game: str) -> None:
    with pytest.raises(ValueError, match=f"unknown game '{name}': .* did you mean {game}"):
        AtariVecEnv(name, 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_envs": 0}, "num_envs must be an integer of at least 1: got 0"),
        ({"num_envs": 2.0}, r"num_envs must be an integer of at least 1: got 2\.0"),
        ({"num_envs": True}, "num_envs must be an integer of at least 1: got True"),
        ({"frame_skip": 0}, "frame_skip must be an integer of at least 1: got 0"),
        ({"frame_stack": 0}, "frame_stack must be an integer of at least 1: got 0"),
        ({"max_frames": 0}, "max_frames must be an integer of at least 1: got 0"),
        ({"image_size": 0}, "image_height must be an integer of at least 1: got 0"),
        ({"image_size": (84, -1)}, "image_width must be an integer of at least 1: got -1"),
        ({"image_size": (84,)}, r"image_size is a height and a width, or one number for both: got \(84,\)"),
        ({"image_size": 10.5}, r"image_height must be an integer of at least 1: got 10\.5"),
        ({"noop_max": -1}, "noop_max must be an integer of at least 0: got -1"),
        ({"num_threads": -1}, "num_threads must be an integer of at least 0: got -1"),
        ({"sticky_actions": 1.0}, r"probability in \[0, 1\): got 1\.0; ALE's own is 0\.25"),
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
    """Slot by slot, over ends of single slots; entries of others as well."""
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
