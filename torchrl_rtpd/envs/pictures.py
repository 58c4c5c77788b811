"""Pictures of a game that is being played: what a person would see, and not what networks read.

A picture is a uint8 array ``[H, W, 3]`` in red, green and blue. A step is one agent decision.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from gymnasium.error import DependencyNotInstalled
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv

from torchrl_rtpd.envs.atari import AtariVecEnv

__all__ = ["GamePictures", "game_pictures"]

_ATARI_SCREEN = (210, 160)
_ATARI_FRAMES_PER_SECOND = 60
_LARGEST = 320  # pixels; larger pictures are made smaller, since a video keeps hundreds of them
_USUAL_STEPS_PER_SECOND = 30.0  # of environments that do not tell


class GamePictures(Protocol):
    """Pictures of the one game of an environment, a step after the other.

    Attributes:
        steps_per_second: agent decisions in a second of the game, at the speed of a person.
    """

    steps_per_second: float

    def begin(self, seed: int) -> None:
        """Prepare for games that the environment begins with this seed."""

    def follow(self, step: TensorDictBase) -> None:
        """Take in a step ``[1]`` that the environment has made; every step of the game, in its order."""

    def picture(self) -> np.ndarray | None:
        """Return the picture after that step ``[H, W, 3]``; None where the environment already shows the next game."""

    def close(self) -> None:
        """Give back what the pictures took."""


def game_pictures(env: EnvBase) -> GamePictures:
    """Return how the game of an environment looks.

    Games of :class:`~torchrl_rtpd.envs.AtariVecEnv` are shown in ALE's own colours and size: a twin in colour plays the
    same seed with the same actions, and is the same game. Other environments draw themselves, as gymnasium's do with
    ``render_mode="rgb_array"``.

    Args:
        env: an environment of one slot, with transforms or without.

    Raises:
        ValueError: more slots than one; an environment that cannot be drawn.
        ImportError: at a picture, the library that gymnasium draws the game with is not installed.

    Examples:
        >>> env = AtariVecEnv("pong", 1)
        >>> pictures = game_pictures(env)
        >>> pictures.steps_per_second  # 60 frames of the emulator in a second, 4 a step
        15.0
        >>> env.set_seed(0), pictures.begin(0)
        (..., None)
        >>> pictures.follow(env.rand_step(env.reset()))
        >>> pictures.picture().shape
        (210, 160, 3)
        >>> env.close(), pictures.close()
        (None, None)
    """
    slots = env.batch_size.numel()
    if slots != 1:
        raise ValueError(f"pictures are those of one game: got an environment of {slots}; make one of a single slot.")
    base = env
    while isinstance(base, TransformedEnv):
        base = base.base_env
    return _AtariTwin(base) if isinstance(base, AtariVecEnv) else _Rendered(base)


class _AtariTwin:
    """The same game in colour: two emulators that begin with one seed and take the same actions stay the same."""

    def __init__(self, env: AtariVecEnv) -> None:
        self.steps_per_second = _ATARI_FRAMES_PER_SECOND / env.frame_skip
        self._twin = AtariVecEnv(
            env.game,
            1,
            frame_skip=env.frame_skip,
            frame_stack=1,
            image_size=_ATARI_SCREEN,
            grayscale=False,
            full_action_space=env.full_action_space,
            noop_max=env.noop_max,
            sticky_actions=env.sticky_actions,
            max_frames=env.max_frames,
            num_threads=1,
        )

    def begin(self, seed: int) -> None:
        self._twin.set_seed(seed)
        self._state = self._twin.reset()

    def follow(self, step: TensorDictBase) -> None:
        self._state["action"] = step["action"].cpu().reshape(1)
        self._state = self._twin.step(self._state)["next"]
        own, score = self._state["raw_episode_reward"].item(), step["next", "raw_episode_reward"].item()
        if own != score:
            raise RuntimeError(
                f"the pictures must be those of the game that is played: got a score of {own} beside {score}; call "
                "begin with the seed of the game, and follow at every step."
            )

    def picture(self) -> np.ndarray:
        return np.ascontiguousarray(self._state["pixels"][0].permute(1, 2, 0).numpy())

    def close(self) -> None:
        self._twin.close(raise_if_closed=False)


class _Rendered:
    """An environment that draws itself."""

    def __init__(self, env: EnvBase) -> None:
        if isinstance(env, (SerialEnv, ParallelEnv)) and env.is_closed:
            env.start()  # before that nobody can ask the environment inside
        mode = getattr(env, "render_mode", "rgb_array")
        if not hasattr(env, "render") or _only(mode) != "rgb_array":
            raise ValueError(
                f"a game is drawn by its environment's render(), in colours: got {type(env).__name__} with "
                f"render_mode={_only(mode)}; make it with render_mode='rgb_array' where its library offers that."
            )
        self._env = env
        self._over = False
        metadata = _only(getattr(env, "metadata", None)) or {}
        self.steps_per_second = float(metadata.get("render_fps") or _USUAL_STEPS_PER_SECOND)

    def begin(self, seed: int) -> None:
        self._over = False

    def follow(self, step: TensorDictBase) -> None:
        self._over = bool(step["next", "done"].any())

    def picture(self) -> np.ndarray | None:
        if self._over:
            return None
        try:
            with _without_screen():
                drawn = np.asarray(_only(self._env.render()))
        except DependencyNotInstalled as error:
            raise ImportError(f"{error}; pip install 'torchrl_rtpd[video]' brings it as well.") from error
        if np.issubdtype(drawn.dtype, np.floating) and drawn.size and drawn.min() >= 0 and drawn.max() <= 1:
            drawn = (255 * drawn).round().astype(np.uint8)  # MinAtar's are shares of full brightness
        if drawn.dtype != np.uint8 or drawn.ndim != 3 or drawn.shape[-1] != 3:
            raise ValueError(
                f"a picture is uint8 [H, W, 3], or shares in [0, 1]: got {drawn.dtype} {list(drawn.shape)} from "
                f"{type(self._env).__name__}; draw its game in red, green and blue."
            )
        return _smaller(drawn)

    def close(self) -> None:
        pass


def _only(value: Any) -> Any:
    """The entry of a batch of one; what is no batch as it is."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _smaller(picture: np.ndarray) -> np.ndarray:
    """A picture of which squares of pixels are averaged, until its sides are not too large; others are copied."""
    side = math.ceil(max(picture.shape[:2]) / _LARGEST)
    if side == 1:
        return picture.copy()
    height, width = (size // side for size in picture.shape[:2])
    squares = picture[: height * side, : width * side].reshape(height, side, width, side, 3)
    return squares.mean((1, 3)).round().astype(np.uint8)


@contextmanager
def _without_screen() -> Iterator[None]:
    """Let SDL, by which pygame draws, look for no screen: it complains of what it does not find on a server."""
    given = os.environ.get("SDL_VIDEODRIVER")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        yield
    finally:
        if given is None:
            os.environ.pop("SDL_VIDEODRIVER", None)
