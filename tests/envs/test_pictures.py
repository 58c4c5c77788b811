"""Pictures are those of the very game that is played, in its own colours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from ale_py import Action, ALEInterface, roms
from evaluation_parts import FixedLengths
from gymnasium.vector import AutoresetMode
from tensordict import TensorDictBase
from torchrl.envs import GymEnv, GymWrapper, RewardSum, SerialEnv, TransformedEnv

from torchrl_rtpd.envs import AtariVecEnv, game_pictures


class Drawn(FixedLengths):
    """Games of three steps that are drawn as given."""

    def __init__(self, draw: Callable[[], object]) -> None:
        super().__init__([3])
        self.render = draw


def cartpole(mode: str | None) -> GymWrapper:
    options = {"vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}, "render_mode": mode}
    return GymWrapper(gymnasium.make_vec("CartPole-v1", 1, "sync", **options), categorical_action_encoding=True)


def stepped(env: AtariVecEnv, state: TensorDictBase, action: int) -> TensorDictBase:
    return env.step(state.set("action", torch.tensor([action])))


def test_pictures_are_the_emulators_own_screen() -> None:
    """The last two of four frames, at each pixel the brighter one, of an emulator that is driven by hand."""
    env = AtariVecEnv("pong", 1, noop_max=0)
    pictures, emulator = game_pictures(env), ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(roms.get_rom_path("pong"))
    emulator.reset_game()
    emulator.act(Action.FIRE)  # games start with it
    env.set_seed(0)
    pictures.begin(0)
    state, actions = env.reset(), emulator.getMinimalActionSet()
    for number in range(40):
        step = stepped(env, state, number % 6)
        pictures.follow(step)
        screens = []
        for _ in range(4):
            emulator.act(actions[number % 6])
            screens.append(emulator.getScreenRGB())
        np.testing.assert_array_equal(pictures.picture(), np.maximum(screens[-1], screens[-2]))
        state = step["next"]
    assert len(np.unique(pictures.picture().reshape(-1, 3), axis=0)) > 3  # colours, and not grey
    pictures.close()


@pytest.mark.parametrize("options", [{"sticky_actions": 0.25}, {"full_action_space": True}, {"frame_skip": 2}, {}])
def test_pictures_follow_a_game_with_any_option_to_its_end(options: dict[str, object]) -> None:
    """Scores of the twin are compared at each step; this one scores on the way, and a bound ends it in both."""
    env = TransformedEnv(AtariVecEnv("ms_pacman", 1, max_frames=600, **options), RewardSum())
    pictures, generator = game_pictures(env), torch.Generator().manual_seed(0)
    env.set_seed(11)
    pictures.begin(11)
    state, seen = env.reset(), []
    for _ in range(600):
        step = stepped(env, state, int(torch.randint(9, (), generator=generator)))
        pictures.follow(step)
        seen.append(pictures.picture())
        state = step["next"]
        if state["done"].any():
            break
    assert state["truncated"].item() and state["raw_episode_reward"].item() > 0
    assert seen[-1].shape == (210, 160, 3) and (seen[0] != seen[-1]).any()
    pictures.close()


def test_another_game_is_no_picture_of_this_one() -> None:
    env = AtariVecEnv("pong", 1)
    pictures = game_pictures(env)
    pictures.begin(0)
    env.set_seed(0)
    step = stepped(env, env.reset(), 0)
    step["next", "raw_episode_reward"] += 7
    with pytest.raises(RuntimeError, match=r"of the game that is played: got a score of 0\.0 beside 7\.0; call begin"):
        pictures.follow(step)
    pictures.close()


def test_classic_control_draws_itself_until_its_game_is_over() -> None:
    """600 x 400 pixels become half as many a side; after the end the environment shows the next game."""
    pytest.importorskip("pygame", reason="needs the video extra")
    env = cartpole("rgb_array")
    pictures = game_pictures(env)
    assert pictures.steps_per_second == 50
    env.set_seed(0)
    pictures.begin(0)
    state, seen = env.reset(), []
    for _ in range(50):
        step = stepped(env, state, 1)
        pictures.follow(step)
        seen.append(pictures.picture())
        state = step["next"]
        if state["done"].any():
            break
    assert seen[0].shape == (200, 300, 3) and (seen[0] != seen[-2]).any()
    assert seen[-1] is None and not any(picture is None for picture in seen[:-1])


def test_drawing_on_a_server_says_nothing() -> None:
    """In a process of its own, without a screen or the folder that SDL looks for; the setting is left as it was."""
    pytest.importorskip("pygame")
    program = """
import gymnasium, os
from gymnasium.vector import AutoresetMode
from torchrl.envs import GymWrapper
from torchrl_rtpd.envs import game_pictures

options = {"render_mode": "rgb_array", "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}}
env = GymWrapper(gymnasium.make_vec("CartPole-v1", 1, "sync", **options), categorical_action_encoding=True)
env.reset()
assert game_pictures(env).picture().ndim == 3 and "SDL_VIDEODRIVER" not in os.environ
"""
    hidden = ("XDG_RUNTIME_DIR", "DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "XDG_RUNTIME_DIR" not in done.stderr + done.stdout, done.stderr


def test_large_pictures_are_averaged_in_squares() -> None:
    """Of 400 columns, 0, 3, 0, 3 and so on, two become one of 1.5, which is 2; the odd row is left out."""
    large = np.zeros((3, 400, 3), np.uint8)
    large[:, 1::2] = 3
    picture = game_pictures(Drawn(lambda: [large])).picture()
    assert picture.shape == (1, 200, 3) and (picture == 2).all()


def test_small_pictures_are_copied() -> None:
    """An environment may draw into one array again and again."""
    canvas = np.zeros((2, 2, 3), np.uint8)
    picture = game_pictures(Drawn(lambda: canvas)).picture()
    canvas[:] = 9
    assert (picture == 0).all()


def test_shares_of_full_brightness_are_a_picture() -> None:
    """0, a half and 1 are 0, 128 and 255."""
    picture = game_pictures(Drawn(lambda: np.array([[[0.0, 0.5, 1.0]]]))).picture()
    assert picture.tolist() == [[[0, 128, 255]]] and picture.dtype == np.uint8


@pytest.mark.parametrize("batched", [False, True])
def test_minatar_draws_itself(batched: bool) -> None:
    """Alone, and as one of TorchRL's environments side by side, which is asked before it was reset."""
    from minatar import gym as minatar

    if "MinAtar/Breakout-v1" not in gymnasium.registry:
        minatar.register_envs()
    make_env = partial(GymEnv, "MinAtar/Breakout-v1", categorical_action_encoding=True, render_mode="rgb_array")
    env = SerialEnv(1, make_env) if batched else make_env()
    pictures = game_pictures(env)
    pictures.begin(0)
    pictures.follow(env.rand_step(env.reset()))
    assert pictures.picture().shape == (10, 10, 3) and len(np.unique(pictures.picture())) > 2
    env.close()


def test_several_games_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="pictures are those of one game: got an environment of 2; make one"):
        game_pictures(AtariVecEnv("pong", 2))


def test_environments_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="got GymWrapper with render_mode=None; make it with render_mode='rgb_array'"):
        game_pictures(cartpole(None))
    with pytest.raises(ValueError, match=r"a game is drawn by its environment's render.*got FixedLengths"):
        game_pictures(FixedLengths([3]))


@pytest.mark.parametrize(
    ("drawn", "found"),
    [(np.full((4, 4, 3), 7.0), r"float64 \[4, 4, 3\]"), (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]")],
)
def test_other_arrays_are_no_pictures(drawn: np.ndarray, found: str) -> None:
    with pytest.raises(
        ValueError, match=rf"a picture is uint8 \[H, W, 3\], or shares in \[0, 1\]: got {found} from Drawn"
    ):
        game_pictures(Drawn(lambda: drawn)).picture()
