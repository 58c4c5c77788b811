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

import ale_py
import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from tensordict import TensorDict, TensorDictBase

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


def stream(env: AtariVecEnv) -> TensorDictBase:
    return play(env, random_actions(env.batch_size[0], 20, env.num_actions)).exclude("action")


def same(first: TensorDictBase, second: TensorDictBase) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items(True, True))
