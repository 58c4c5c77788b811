"""Atari as a batched TorchRL environment, straight on ALE's native vector environment.

Stream of one slot, one line a stage::

    grey ALE frame 210x160 -> max of the last two -> 84x84 -> stack of 4, zeros before the first -> pixels [4, 84, 84]
    ALE reward, summed over the frame skip -----------------------------> raw_reward -> its sign -> reward
    lives --------------------------------------------------------------> end_of_life (a life lost, or the game over)

``N`` is the number of slots. A step is one agent decision: ``frame_skip`` emulator frames, or fewer when the game ends
on the way; the frame it ends on is not shown, as in gymnasium's AtariPreprocessing.
"""

from __future__ import annotations

import difflib

import numpy as np
import torch
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

__all__ = ["AtariVecEnv"]

FRAME_SIZE = 84  # pixels a side, Mnih et al. 2015


class AtariVecEnv(EnvBase):
    """ALE's vector environment as a TorchRL environment: ``N`` games in C++ threads, no Python per game.

    ``done`` is the real end of a game, never a lost life; ``end_of_life`` marks a lost life and a lost game (not a
    truncated one) and is the mask a DQN bootstraps with (``loss.set_keys(terminated="end_of_life")``). Games that end
    restart in the same step: their last observation is stored under ``("next", "pixels")`` and the first one of the
    next game under the following root, as TorchRL expects. Slots cannot be reset one by one before their game is over.

    Args:
        game: ALE's snake-case name, for example ``"ms_pacman"``.
        num_envs: slots ``N``.
        device: where the tensors are placed; ALE itself runs on the CPU.
        frame_skip: emulator frames a step (Nature DQN: 4).
        frame_stack: frames in an observation (Nature DQN: 4). With 1 there is ``is_init``, too, so that whoever acts
            can stack them (``DualNetworkCollector(frame_stack=4)``) and nobody else has to copy stacks.
        clip_rewards: whether ``reward`` is the sign of ``raw_reward`` (Nature DQN).
        noop_max: a game starts with fewer emulator frames than this, drawn by ALE's own generator: FIRE once, where the
            game has that action, then no-ops; 0 leaves only the FIRE (Nature DQN: 30).
        sticky_actions: probability that ALE repeats the previous action.
        max_frames: emulator frames after which a game is truncated, its start not counted (30 minutes at 60 Hz).
        num_threads: ALE's threads; 0 lets ALE choose.
        seed: seed of slot 0, used at the next full reset; slot ``i`` uses ``seed + i``. None draws one.

    Keys:
        ``pixels`` uint8 ``[N, 4, 84, 84]``; ``action`` int64 ``[N]``; ``reward`` and ``raw_reward`` float32 ``[N, 1]``;
        ``episode_reward`` float32 ``[N, 1]``, the raw score of the whole game so far; ``end_of_life``, ``done``,
        ``terminated`` and ``truncated`` bool ``[N, 1]``; with ``frame_stack=1`` ``is_init`` bool ``[N, 1]``, whether a
        game begins here.

    Raises:
        ValueError: an unknown game (with the nearest names), no slot, a size or probability out of range; at a step,
            actions of another shape or outside the action set; at a reset, slots whose game is not over.
        TypeError: at a step, actions that are not integers.
        RuntimeError: a step before the first reset, or anything after ``close``.

    Examples:
        >>> env = AtariVecEnv("pong", 2, seed=0)
        >>> rollout = env.rollout(3, break_when_any_done=False)
        >>> rollout["next", "pixels"].shape
        torch.Size([2, 3, 4, 84, 84])
        >>> env.close()
    """

    _has_frame_skip = True  # ALE skips frames itself: keeps EnvBase from wrapping us in a FrameSkipTransform

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        device: torch.device | str | None = None,
        frame_skip: int = 4,
        frame_stack: int = 4,
        clip_rewards: bool = True,
        noop_max: int = 30,
        sticky_actions: float = 0.0,
        max_frames: int = 108_000,
        num_threads: int = 0,
        seed: int | None = None,
    ) -> None:
        _check_game(game)
        _check_at_least(1, num_envs=num_envs, frame_skip=frame_skip, frame_stack=frame_stack, max_frames=max_frames)
        _check_at_least(0, noop_max=noop_max, num_threads=num_threads)
        if not 0.0 <= sticky_actions < 1.0:
            raise ValueError(
                f"sticky_actions is a probability in [0, 1): got {sticky_actions}; ALE's usual value is 0.25."
            )
        super().__init__(device=device, batch_size=[num_envs])
        self.game = game
        self.frame_skip = frame_skip
        self.frame_stack = frame_stack
        self.clip_rewards = clip_rewards
        self._ale = AtariVectorEnv(
            game,
            num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=max_frames,
            repeat_action_probability=sticky_actions,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=FRAME_SIZE,
            img_width=FRAME_SIZE,
            stack_num=frame_stack,
            frameskip=frame_skip,
            noop_max=noop_max,
            reward_clipping=False,  # clipped here, so that the raw reward is there too
        )
        self.num_actions = len(self._ale.ale.get_action_set())
        self._lives = np.zeros(num_envs, dtype=np.int32)
        self._score = np.zeros((num_envs, 1), dtype=np.float32)
        self._ended = np.zeros(num_envs, dtype=bool)  # slots whose game ended in the last step
        self._sent: np.ndarray | None = None  # actions of a step that was begun
        self._next_pixels: torch.Tensor | None = None  # what ALE shows after that step, new games included
        self._make_specs()
        self.set_seed(seed)

    def _make_specs(self) -> None:
        slots = self.batch_size[0]
        size = (slots, self.frame_stack, FRAME_SIZE, FRAME_SIZE)
        number = Unbounded(shape=(slots, 1), device=self.device)
        flag = Binary(shape=(slots, 1), dtype=torch.bool, device=self.device)
        self.observation_spec = Composite(
            # Unbounded over the dtype: Bounded would compare every pixel at every projection.
            pixels=Unbounded(shape=size, dtype=torch.uint8, device=self.device),
            raw_reward=number,
            episode_reward=number.clone(),
            end_of_life=flag,
            **({"is_init": flag.clone()} if self.frame_stack == 1 else {}),
            shape=self.batch_size,
            device=self.device,
        )
        self.action_spec = Categorical(self.num_actions, shape=(slots,), device=self.device)
        self.reward_spec = number.clone()
        self.done_spec = Composite(
            done=flag.clone(),
            terminated=flag.clone(),
            truncated=flag.clone(),
            shape=self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        # ALE takes it at the next full reset; its seeds have 31 bits, those that TorchRL hands on have 32.
        self._seed = None if seed is None else int(seed) % (2**31 - self.batch_size[0])

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        self._check_open()
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if self._next_pixels is not None and mask is not None and mask.view(-1).tolist() == self._ended.tolist():
            pixels = self._next_pixels  # ALE has already restarted these games
        elif mask is None or mask.all():
            pixels = self._reset_all()
        else:
            raise ValueError(
                "only slots whose game ended in the last step can be reset: got _reset="
                f"{mask.view(-1).tolist()} and ended={self._ended.tolist()}; reset all slots with env.reset()."
            )
        entries = self._entries(pixels, self._score, np.zeros_like(self._score, dtype=bool))
        if self.frame_stack == 1:
            entries["is_init"] = self._tensor(np.ones((*self.batch_size, 1), dtype=bool)) if mask is None else mask
        return TensorDict(entries, batch_size=self.batch_size, device=self.device)

    def _reset_all(self) -> torch.Tensor:
        if self._sent is not None:
            self._ale.recv()
            self._sent = None
        pixels, info = self._ale.reset(seed=self._seed)
        self._seed = None  # later resets go on with ALE's own generators
        self._lives = info["lives"]
        self._score = np.zeros_like(self._score)
        self._ended = np.zeros_like(self._ended)
        self._next_pixels = torch.from_numpy(pixels)
        return self._next_pixels

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._check_open()
        if self._next_pixels is None:
            raise RuntimeError("step was called before reset: call env.reset() first.")
        actions = self._checked_actions(tensordict.get("action", None))
        if self._sent is None:
            self._ale.send(actions)
        elif not np.array_equal(self._sent, actions):
            raise RuntimeError(
                f"the step that was begun has other actions, {self._sent.tolist()}: got {actions.tolist()}; step with "
                "those that were sent."
            )
        self._sent = None
        shown, reward, terminated, truncated, info = self._ale.recv()
        raw_reward = reward.astype(np.float32)[:, None]
        score = self._score + raw_reward
        done = terminated | truncated
        # In the step that ends a game ALE already reports the lives of the next one.
        life_lost = (info["lives"] < self._lives) & ~done
        self._lives = info["lives"]
        self._ended = done
        self._score = np.where(done[:, None], np.float32(0), score)
        self._next_pixels = pixels = torch.from_numpy(shown)
        if done.any():  # ALE shows the first observation of the next game, TorchRL stores the last one of this game
            pixels = pixels.clone()
            pixels[torch.from_numpy(done)] = torch.from_numpy(info["final_obs"][done])
        entries = self._entries(pixels, score, (life_lost | terminated)[:, None], raw_reward)
        entries["reward"] = self._tensor(np.sign(raw_reward) if self.clip_rewards else raw_reward)
        for name, flag in (("done", done), ("terminated", terminated), ("truncated", truncated)):
            entries[name] = self._tensor(flag[:, None])
        return TensorDict(entries, batch_size=self.batch_size, device=self.device)

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """What TorchRL's comes to, in a fraction of its time: ALE has restarted the slots whose game ended.

        Args:
            tensordict: the state after the last step, as ``step_mdp`` gives it ``[N]``. Not changed.

        Returns:
            The state the next step starts from; where a game ended all but the pixels is zero, as TorchRL has it.
        """
        pixels = self._next_pixels
        if pixels is None or not self._ended.any() or not tensordict.get("done").any():
            return tensordict
        ended = torch.from_numpy(self._ended).to(tensordict.get("done").device)
        state = tensordict.exclude("pixels").apply(
            lambda value: value.masked_fill(ended.view(-1, *[1] * (value.ndim - 1)), 0)
        )
        if self.frame_stack == 1:
            state.set("is_init", ended.view(-1, 1))
        return state.set("pixels", pixels if self.device is None else pixels.to(self.device))

    def send(self, action: torch.Tensor) -> None:
        """Begin a step; ALE's threads play it while other work is done, and the next ``step`` waits for it.

        Args:
            action: what the next ``step`` will be called with, int64 ``[N]``.

        Raises:
            RuntimeError: a step that was begun and not finished, or before the first reset.
        """
        self._check_open()
        if self._next_pixels is None or self._sent is not None:
            what = "before reset" if self._next_pixels is None else "twice without a step"
            raise RuntimeError(f"a step is begun once, after reset: send was called {what}; call env.step(...) first.")
        self._sent = self._checked_actions(action)
        self._ale.send(self._sent)

    def _entries(
        self, pixels: torch.Tensor, score: np.ndarray, end_of_life: np.ndarray, raw_reward: np.ndarray | None = None
    ) -> dict[str, torch.Tensor]:
        """What a reset and a step have in common."""
        entries = {
            "pixels": pixels if self.device is None else pixels.to(self.device),
            "raw_reward": self._tensor(np.zeros_like(score) if raw_reward is None else raw_reward),
            "episode_reward": self._tensor(score),
            "end_of_life": self._tensor(end_of_life),
        }
        if self.frame_stack == 1:
            entries["is_init"] = self._tensor(np.zeros_like(score, dtype=bool))
        return entries

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device is None else tensor.to(self.device)

    def _checked_actions(self, action: torch.Tensor | None) -> np.ndarray:
        if action is None or action.dtype not in (torch.int64, torch.int32):
            found = None if action is None else action.dtype
            raise TypeError(f"actions must be int64 indices: got {found}; sample them from env.action_spec.")
        if action.shape != self.batch_size:
            raise ValueError(
                f"actions must have shape {list(self.batch_size)}: got {list(action.shape)}; give each slot one index."
            )
        actions = action.cpu().numpy()
        if actions.min() < 0 or actions.max() >= self.num_actions:
            raise ValueError(
                f"{self.game} has actions 0 to {self.num_actions - 1}: got {actions.min()} to {actions.max()}; "
                "build the policy from env.action_spec."
            )
        return actions

    def _check_open(self) -> None:
        if "_ale" not in self.__dict__:
            raise RuntimeError(f"the environment of {self.game} is closed: build a new one.")

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environment and stop ALE's threads. Closing it again does nothing."""
        super().close(raise_if_closed=raise_if_closed)
        self.__dict__.pop("_ale", None)


def _check_game(game: str) -> None:
    names = roms.get_all_rom_ids()
    if game in names:
        return
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in str(game)).lstrip("_")
    near = difflib.get_close_matches(snake, names, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "ale_py.roms.get_all_rom_ids() lists all names."
    raise ValueError(f"unknown game {game!r}: names are ALE's, in snake case, such as ms_pacman; {hint}")


def _check_at_least(lowest: int, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(f"{name} must be an integer of at least {lowest}: got {value!r}.")
