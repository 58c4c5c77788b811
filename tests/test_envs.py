"""AtariVecEnv against plain emulators: frames, scores, lives, ends; and its errors."""

from __future__ import annotations

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py import roms
from torchrl.envs.utils import check_env_specs

from torchrl_rtpd import AtariVecEnv

STACK, SKIP = 4, 4
gym.register_envs(ale_py)


class PlainGame:
    """One slot as a reader would write it: gymnasium's own ALE, one frame at a time, preprocessed with OpenCV."""

    def __init__(self, game: str, max_frames: int) -> None:
        name = "".join(part.capitalize() for part in game.split("_"))
        self.env = gym.make(
            f"ALE/{name}-v5",
            frameskip=1,
            repeat_action_probability=0.0,
            obs_type="grayscale",
            max_num_frames_per_episode=None,
        ).unwrapped
        self.max_frames = max_frames
        self.fires = "FIRE" in self.env.get_action_meanings()
        self.score = 0.0

    @staticmethod
    def _small(screen: np.ndarray) -> np.ndarray:
        return cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)

    def reset(self) -> np.ndarray:
        """With no null-op start ALE presses FIRE once where the game has it; frames before the first are zero."""
        self.env.reset(seed=0)
        self.frames = 0
        self.score = 0.0
        if self.fires:
            self.env.step(self.env.get_action_meanings().index("FIRE"))
            self.frames += 1
        self.stack = np.zeros((STACK, 84, 84), np.uint8)
        self.stack[-1] = self._small(self.env.ale.getScreenGrayscale())
        self.lives = self.env.ale.lives()
        return self.stack.copy()

    def step(self, action: int) -> dict:
        """One decision: four frames, the last two joined by their maximum, summed rewards."""
        screens, reward = [], 0.0
        for _ in range(SKIP):
            _, gained, _, _, _ = self.env.step(action)
            self.frames += 1
            reward += gained
            screens.append(self.env.ale.getScreenGrayscale())
            if self.env.ale.game_over() or self.frames >= self.max_frames:
                break
        newest = np.maximum(screens[-1], screens[-2]) if len(screens) == SKIP else screens[-1]
        self.stack = np.concatenate([self.stack[1:], self._small(newest)[None]])
        self.score += reward
        over, lives = self.env.ale.game_over(), self.env.ale.lives()
        lost, self.lives = lives < self.lives, lives
        return {
            "pixels": self.stack.copy(),
            "raw_reward": reward,
            "episode_reward": self.score,
            "terminated": over,
            "truncated": not over and self.frames >= self.max_frames,
            "life_lost": lost,
            "whole": len(screens) == SKIP,
        }


@pytest.mark.parametrize(("game", "max_frames"), [("pong", 700), ("breakout", 900), ("seaquest", 1_100)])
def test_equals_plain_gymnasium_games(game: str, max_frames: int) -> None:
    """Frames, scores, life losses, ends and last observations are those of gymnasium's ALE with the same actions."""
    slots, steps = 3, 330
    env = AtariVecEnv(game, slots, noop_max=0, max_frames=max_frames, clip_rewards=False, seed=0)
    plain = [PlainGame(game, max_frames) for _ in range(slots)]
    tensordict = env.reset()
    for slot, one in enumerate(plain):
        assert np.array_equal(tensordict["pixels"][slot].numpy(), one.reset())
    generator = torch.Generator().manual_seed(1)
    ends: list[set[int]] = [set() for _ in range(slots)]
    for step in range(steps):
        actions = torch.randint(env.num_actions, (slots,), generator=generator)
        # Each slot stands still for a while of its own, so that games end at different times where play decides it.
        actions = torch.where(torch.tensor([step % (7 + 5 * slot) < 3 * slot for slot in range(slots)]), 0, actions)
        tensordict["action"] = actions
        tensordict, following = env.step_and_maybe_reset(tensordict)
        for slot, one in enumerate(plain):
            wanted = one.step(int(actions[slot]))
            found = {key: tensordict["next", key][slot].item() for key in ("raw_reward", "reward", "episode_reward")}
            assert found["raw_reward"] == found["reward"] == wanted["raw_reward"]
            assert found["episode_reward"] == wanted["episode_reward"]
            assert tensordict["next", "terminated"][slot].item() == wanted["terminated"]
            assert tensordict["next", "truncated"][slot].item() == wanted["truncated"]
            done = wanted["terminated"] or wanted["truncated"]
            assert tensordict["next", "done"][slot].item() == done
            lost = wanted["terminated"] or (wanted["life_lost"] and not done)
            assert tensordict["next", "end_of_life"][slot].item() == lost
            if wanted["whole"]:
                assert np.array_equal(tensordict["next", "pixels"][slot].numpy(), wanted["pixels"]), (step, slot)
            if done:
                ends[slot].add(step)
                assert np.array_equal(following["pixels"][slot].numpy(), one.reset())
                assert following["episode_reward"][slot] == 0
    assert all(ends), "every slot must have ended at least once"
    env.close()


def test_games_of_one_run_end_at_different_times() -> None:
    """Null-op starts and play make slots end apart, and each keeps its own score and last observation."""
    env = AtariVecEnv("breakout", 4, seed=3)
    rollout = env.rollout(250, break_when_any_done=False)
    done = rollout["next", "done"].squeeze(-1)
    first = [int(row.float().argmax()) for row in done if row.any()]
    assert len(set(first)) > 1
    score = rollout["next", "episode_reward"].squeeze(-1)
    for slot in range(4):
        begin = 0
        for end in done[slot].nonzero().flatten().tolist():
            total = rollout["next", "raw_reward"][slot, begin : end + 1].sum()
            assert score[slot, end] == total
            assert not rollout["next", "pixels"][slot, end, 0].eq(0).all()  # not the zero-padded start of the next game
            begin = end + 1
            if begin < 250:
                assert rollout["pixels"][slot, begin, :3].eq(0).all()
    env.close()


def test_specs_are_sound() -> None:
    """TorchRL's own check passes."""
    env = AtariVecEnv("pong", 2, seed=0)
    check_env_specs(env)
    assert env.batch_size == (2,) and env.action_spec.n == 6
    env.close()


def test_rewards_are_clipped_to_their_sign() -> None:
    """The reward is the sign of raw_reward, and the score stays raw."""
    env = AtariVecEnv("seaquest", 4, seed=0)
    rollout = env.rollout(200, break_when_any_done=False)
    raw = rollout["next", "raw_reward"]
    assert raw.max() > 1
    assert torch.equal(rollout["next", "reward"], raw.sign())
    env.close()


def test_one_seed_gives_one_stream() -> None:
    """Same seed, same games, also after a reset; another seed, another start."""

    def stream(seed: int, env: AtariVecEnv | None = None) -> torch.Tensor:
        env = AtariVecEnv("breakout", 2, seed=seed) if env is None else env
        env.set_seed(seed)
        tensordict, frames = env.reset(), []
        for step in range(40):
            tensordict["action"] = torch.tensor([step % 4, (step + 1) % 4])
            tensordict, following = env.step_and_maybe_reset(tensordict)
            frames.append(tensordict["next", "pixels"])
            tensordict = following
        return torch.stack(frames)

    env = AtariVecEnv("breakout", 2, seed=9)
    first = stream(9, env)
    assert torch.equal(first, stream(9))
    assert torch.equal(first, stream(9, env))
    assert not torch.equal(first, stream(10))


def test_global_random_state_is_left_alone() -> None:
    """Building and stepping an environment draws nothing from torch's generator."""
    state = torch.random.get_rng_state()
    env = AtariVecEnv("pong", 2, seed=0)
    tensordict = env.reset()
    tensordict["action"] = torch.zeros(2, dtype=torch.int64)
    env.step(tensordict)
    env.close()
    assert torch.equal(state, torch.random.get_rng_state())


def test_options_reach_the_emulator() -> None:
    """Frame skip, stack and sticky actions are ALE's."""
    env = AtariVecEnv("pong", 1, frame_skip=2, frame_stack=2, sticky_actions=0.25, noop_max=0, max_frames=41, seed=0)
    rollout = env.rollout(100, break_when_any_done=True)
    assert rollout["pixels"].shape[2:] == (2, 84, 84)
    assert rollout["next", "truncated"][0, -1].item()
    assert rollout.shape[1] in (20, 21)  # 41 frames at 2 a step, one perhaps spent on FIRE
    env.close()


def test_only_ended_slots_can_be_reset_alone() -> None:
    """A partial reset of a running game is an error that says what to do."""
    env = AtariVecEnv("pong", 2, seed=0)
    tensordict = env.reset()
    tensordict["_reset"] = torch.tensor([[True], [False]])
    with pytest.raises(ValueError, match=r"_reset=\[True, False\] and ended=\[False, False\]"):
        env.reset(tensordict)
    env.close()


def test_step_before_reset_is_an_error() -> None:
    """The message names the remedy."""
    env = AtariVecEnv("pong", 1, seed=0)
    tensordict = env.fake_tensordict().select("pixels", "action")
    with pytest.raises(RuntimeError, match=r"call env\.reset"):
        env.step(tensordict)
    env.close()
    env.close(raise_if_closed=False)


@pytest.mark.parametrize(
    ("name", "near"),
    [("Breakot", "breakout"), ("MsPacman", "ms_pacman"), ("PONG", "pong"), ("qwxyz", "get_all_rom_ids")],
)
def test_unknown_game_gets_the_nearest_names(name: str, near: str) -> None:
    """A mistyped name is answered with real ones."""
    with pytest.raises(ValueError, match=f"unknown game '{name}'.*{near}"):
        AtariVecEnv(name, 1)
    assert near in {*roms.get_all_rom_ids(), "get_all_rom_ids"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs must be an integer of at least 1: got 0"),
        ({"num_envs": 2.0}, "num_envs must be an integer of at least 1: got 2.0"),
        ({"frame_skip": 0}, "frame_skip must be an integer of at least 1: got 0"),
        ({"noop_max": -1}, "noop_max must be an integer of at least 0: got -1"),
        ({"sticky_actions": 1.0}, r"sticky_actions is a probability in \[0, 1\): got 1.0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict, message: str) -> None:
    """Each bad argument has its own message."""
    with pytest.raises(ValueError, match=message):
        AtariVecEnv("pong", **{"num_envs": 1, **options})


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (torch.zeros(2), TypeError, "actions must be int64 indices: got torch.float32"),
        (torch.zeros(2, 6, dtype=torch.int64), ValueError, r"actions must have shape \[2\]: got \[2, 6\]"),
        (torch.tensor([0, 6]), ValueError, "pong has actions 0 to 5: got 0 to 6"),
        (torch.tensor([-1, 0]), ValueError, "pong has actions 0 to 5: got -1 to 0"),
    ],
)
def test_bad_actions_are_refused(action: torch.Tensor, error: type[Exception], message: str) -> None:
    """Wrong type, shape or range of actions: told apart, and the game can go on."""
    env = AtariVecEnv("pong", 2, seed=0)
    tensordict = env.reset()
    tensordict["action"] = action
    with pytest.raises(error, match=message):
        env.step(tensordict)
    tensordict["action"] = torch.zeros(2, dtype=torch.int64)
    assert env.step(tensordict)["next", "pixels"].shape == (2, 4, 84, 84)
    env.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_are_placed_on_the_device() -> None:
    """Everything the environment gives lies on its device."""
    env = AtariVecEnv("pong", 2, device="cuda", seed=0)
    rollout = env.rollout(3)
    assert rollout["next", "pixels"].device.type == "cuda"
    env.close()
