"""Atari as a batched TorchRL environment, straight on ALE's native vector environment.

Stream of one slot, one line a stage::

    grey ALE frame 210x160 -> max of the last two -> 84x84 -> stack of 4, zeros before the first -> pixels [4, 84, 84]
    ALE reward, summed over the frame skip -----------------------------> raw_reward -> its sign -> reward
    lives --------------------------------------------------------------> end_of_life (a life lost, or the game over)

``N`` is the number of slots, ``S`` of frames in a stack, ``H`` and ``W`` are height and width. A step is one agent
decision: ``frame_skip`` emulator frames, or fewer when the game ends on the way. The frame a game ends on is not shown,
as in gymnasium's AtariPreprocessing.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_rtpd.envs.names import check_game
from torchrl_rtpd.envs.transfer import all_to_device, to_device, to_host
from torchrl_rtpd.functional.checks import check_integers

__all__ = ["AtariVecEnv"]


class AtariVecEnv(EnvBase):
    """ALE's vector environment as a TorchRL environment: ``N`` games in C++ threads, no Python per game.

    ``done`` is the real end of a game, never a lost life; ``end_of_life`` marks a lost life and a lost game (not a
    truncated one) and is the mask a DQN bootstraps with (``loss.set_keys(terminated="end_of_life")``). Games that end
    restart in the same step: their last observation is stored under ``("next", "pixels")`` and the first one of the
    next game under the following root, as TorchRL expects. Games that ``StepCounter(max_steps)`` or another transform
    truncates are begun again slot by slot.

    ``set_seed`` right after a reset begins the games again at once and overwrites the pixels that the reset returned.
    A collector of TorchRL's, which resets when it is built, so collects the seed's games from the first transition on.
    Among games that are running a seed takes effect at the next full reset, and a step before that is an error.

    Args:
        game: ALE's snake-case name, for example ``"ms_pacman"``.
        num_envs: slots ``N``.
        device: of the tensors; ALE itself runs on the CPU. To a CUDA device frames travel once a step, through pinned
            memory, and the host waits for the actions alone.
        frame_skip: emulator frames a step (Nature DQN: 4).
        frame_stack: frames in an observation (Nature DQN: 4). With 1 an entry ``is_init`` is written in addition, so
            that a policy can stack them (``DualNetworkCollector(frame_stack=4)``) and nothing else has to copy stacks.
        image_size: height and width of a frame in pixels, or one number for both (Nature DQN: 84).
        grayscale: show grey frames (Nature DQN). False shows three colours a frame.
        clip_rewards: write the sign of ``raw_reward`` under ``reward`` (Nature DQN).
        full_action_space: offer all 18 actions instead of those that do something in this game.
        noop_max: a game starts with fewer emulator frames than this, drawn by ALE's own generator: FIRE once, where the
            game has that action, then no-ops; 0 leaves only the FIRE (Nature DQN: 30).
        sticky_actions: probability that ALE plays the action before instead of the one given. It is drawn for every
            emulator frame, so that a whole step repeats with probability ``sticky_actions ** frame_skip``. The FIRE at
            the start of a game is subject to it as well: at 0.25 a quarter of Breakout's games start without the ball.
        max_frames: emulator frames after which a game is truncated, its start not counted (30 minutes at 60 Hz).
        num_threads: ALE's threads; 0 takes one for every processor of the machine, and never more than slots. ALE
            counts processors that this process may not use as well, so give the number on a shared machine.
        seed: seed of slot 0, used at the next full reset; slot ``i`` uses ``seed + i``. None draws one from the
            system, for every environment its own.

    Keys:
        ``pixels`` uint8 ``[N, S, H, W]``, in colour ``[N, 3 * S, H, W]`` with red, green and blue of the oldest frame
        first; ``action`` int64 ``[N]``; ``reward`` and ``raw_reward`` float32 ``[N, 1]``; ``episode_reward`` float32
        ``[N, 1]``, the raw score of the whole game so far; ``raw_episode_reward``, the same number under a name that
        TorchRL's ``RewardSum`` does not overwrite; ``end_of_life``, ``done``, ``terminated`` and ``truncated`` bool
        ``[N, 1]``; with ``frame_stack=1`` ``is_init`` bool ``[N, 1]``, True where a game begins.

    Attributes:
        action_meanings: ALE's name of each action, such as "FIRE", by its number.
        num_actions: number of them.

    Raises:
        ValueError: an unknown game (with the nearest names), one that has no single-player game, no slot, a size or
            probability out of range; at a step, actions of another shape or outside the action set; at a reset that
            leaves out a slot whose game is over.
        TypeError: at a step, actions that are not integers.
        RuntimeError: a step before the first reset, or between ``set_seed`` and the reset that it needs; anything after
            ``close``.

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
        image_size: int | Sequence[int] = 84,
        grayscale: bool = True,
        clip_rewards: bool = True,
        full_action_space: bool = False,
        noop_max: int = 30,
        sticky_actions: float = 0.0,
        max_frames: int = 108_000,
        num_threads: int = 0,
        seed: int | None = None,
    ) -> None:
        check_game(game)
        check_integers(1, num_envs=num_envs, frame_skip=frame_skip, frame_stack=frame_stack, max_frames=max_frames)
        check_integers(0, noop_max=noop_max, num_threads=num_threads)
        if not 0.0 <= sticky_actions < 1.0:
            raise ValueError(f"sticky_actions is a probability in [0, 1): got {sticky_actions}; ALE's own is 0.25.")
        super().__init__(device=device, batch_size=[int(num_envs)])
        self.game = game
        self.frame_skip = int(frame_skip)
        self.frame_stack = int(frame_stack)
        self.image_size = _height_and_width(image_size)
        self.grayscale = grayscale
        self.clip_rewards = clip_rewards
        self.full_action_space, self.noop_max = full_action_space, int(noop_max)
        self.sticky_actions, self.max_frames = sticky_actions, int(max_frames)
        self._ale = self._make_ale(int(num_threads))
        self.action_meanings = [action.name for action in self._ale.ale.get_action_set()]
        self.num_actions = len(self.action_meanings)
        self._full_strength = [1.0] * self.batch_size[0]  # how far a paddle is turned
        self._make_specs()
        self._make_state()
        self.set_seed(seed)

    def _make_ale(self, num_threads: int) -> AtariVectorEnv:
        return AtariVectorEnv(
            self.game,
            self.batch_size[0],
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=self.image_size[0],
            img_width=self.image_size[1],
            grayscale=self.grayscale,
            stack_num=self.frame_stack,
            frameskip=self.frame_skip,
            reward_clipping=False,  # clipped here, so that the raw reward is there too
            num_threads=num_threads,
            max_num_frames_per_episode=self.max_frames,
            repeat_action_probability=self.sticky_actions,
            full_action_space=self.full_action_space,
            noop_max=self.noop_max,
        )

    def _make_specs(self) -> None:
        slots = self.batch_size[0]
        size = (slots, self.frame_stack * (1 if self.grayscale else 3), *self.image_size)
        number = Unbounded(shape=(slots, 1), device=self.device)
        flag = Binary(shape=(slots, 1), dtype=torch.bool, device=self.device)
        self.observation_spec = Composite(
            # Unbounded over the dtype: Bounded would compare every pixel at every projection.
            pixels=Unbounded(shape=size, dtype=torch.uint8, device=self.device),
            raw_reward=number,
            episode_reward=number.clone(),
            raw_episode_reward=number.clone(),
            end_of_life=flag,
            **({"is_init": flag.clone()} if self.frame_stack == 1 else {}),
            shape=self.batch_size,
            device=self.device,
        )
        self.action_spec = Categorical(self.num_actions, shape=(slots,), device=self.device)
        self.reward_spec = number.clone()
        ends = {name: flag.clone() for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(ends, shape=self.batch_size, device=self.device)

    def _make_state(self) -> None:
        slots = self.batch_size[0]
        self._lives = np.zeros(slots, dtype=np.int32)
        self._score = np.zeros((slots, 1), dtype=np.float32)
        self._ended = np.zeros(slots, dtype=bool)  # slots whose game ended in the last step
        self._sent: list[int] | None = None  # actions of a step that was begun
        self._next_pixels: torch.Tensor | None = None  # frames that ALE shows after that step, new games included
        self._done: torch.Tensor | None = None  # the flag that the last step returned
        self._first_pixels: torch.Tensor | None = None  # frames that the last full reset returned, until a step begins
        self._seeded_late = False  # set_seed was called after a reset

    def _set_seed(self, seed: int | None) -> None:
        # ALE's seeds have 31 bits, those that TorchRL hands on have 32. Without one ALE would take the clock's second.
        seed = secrets.randbelow(2**31) if seed is None else int(seed)
        self._seed: int | None = seed % (2**31 - self.batch_size[0])
        self._seeded_late = self._next_pixels is not None
        if self._first_pixels is not None:
            self._first_pixels.copy_(self._reset_all())

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        self._check_open()
        mask = None if tensordict is None else tensordict.get("_reset", None)
        chosen = np.ones(self.batch_size, dtype=bool) if mask is None else mask.view(-1).cpu().numpy()
        seeded = self._seeded_late and chosen.all()
        if self._next_pixels is not None and mask is not None and np.array_equal(chosen, self._ended) and not seeded:
            pixels = self._next_pixels  # ALE has already restarted these games
        elif chosen.all():
            pixels = self._reset_all()
            self._seed = None  # later resets go on with ALE's own generators
            self._seeded_late = False
        else:
            pixels = self._reset_some(chosen)
        begins = chosen[:, None].copy()
        entries = self._entries(pixels, self._score.copy(), np.zeros_like(begins), np.zeros_like(self._score), begins)
        self._done = None
        self._first_pixels = entries["pixels"] if chosen.all() else None
        return TensorDict(entries, batch_size=self.batch_size, device=self.device)

    def _reset_all(self) -> torch.Tensor:
        if self._sent is not None:
            self._ale.recv()
        self._sent = None
        pixels, info = self._ale.reset(seed=self._seed)
        self._lives = info["lives"]
        self._score = np.zeros_like(self._score)
        self._ended = np.zeros_like(self._ended)
        self._next_pixels = self._frames(pixels)
        return self._next_pixels

    def _reset_some(self, chosen: np.ndarray) -> torch.Tensor:
        """Begin new games in these slots, some of which ALE may have restarted already."""
        if self._next_pixels is None or self._sent is not None:
            raise RuntimeError(f"single slots are reset between steps: got _reset={chosen.tolist()}; call env.reset().")
        if (self._ended & ~chosen).any():
            raise ValueError(
                f"slots whose game is over must be reset: got _reset={chosen.tolist()} and ended="
                f"{self._ended.tolist()}; reset those as well, or all slots with env.reset()."
            )
        pixels, info = self._ale.reset(options={"reset_mask": chosen & ~self._ended})
        self._lives = info["lives"]
        self._score = np.where(chosen[:, None], np.float32(0), self._score)
        self._next_pixels = self._frames(pixels)
        return self._next_pixels

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = self._begin(tensordict.get("action", None), tensordict.get("pixels", None))
        if self._sent is None:
            self._send(actions)
        elif self._sent != actions:
            raise RuntimeError(
                f"the step that was begun has other actions, {self._sent}: got {actions}; step with "
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
        self._next_pixels = pixels = self._frames(shown)
        if done.any():  # ALE shows the first observation of the next game, TorchRL stores the last one of this game
            shown = shown.copy()
            shown[done] = info["final_obs"][done]
            pixels = self._frames(shown)
        ends = {"done": done[:, None], "terminated": terminated[:, None], "truncated": truncated[:, None]}
        end_of_life = (life_lost | terminated)[:, None]
        reward = np.sign(raw_reward) if self.clip_rewards else raw_reward
        entries = self._entries(pixels, score, end_of_life, raw_reward, reward=reward, **ends)
        self._done = entries["done"]
        return TensorDict(entries, batch_size=self.batch_size, device=self.device)

    def _begin(self, action: torch.Tensor | None, pixels: torch.Tensor | None) -> list[int]:
        """Return the checked actions of a step, after which no seed begins the games again."""
        self._check_open()
        if self._next_pixels is None:
            raise RuntimeError("step was called before reset: call env.reset() first.")
        actions = self._checked_actions(action)
        if self._seeded_late:
            self._check_shown(pixels)
        self._seed, self._seeded_late, self._first_pixels = None, False, None
        return actions

    def _check_shown(self, pixels: torch.Tensor | None) -> None:
        """Refuse a step between a seed and the reset that it needs, which would mix two games in one transition."""
        first = self._first_pixels
        if first is None or pixels is None or pixels.dtype != first.dtype or not torch.equal(pixels.to(first), first):
            where = "among running games" if first is None else "after a reset whose pixels were copied or transformed"
            raise RuntimeError(
                f"a seed takes effect when games begin: got set_seed {where} and a step; call env.reset(), or the "
                "collector's reset(), in between."
            )

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same state as TorchRL's own method, in a fraction of its time: ALE has restarted the ended games.

        Args:
            tensordict: the state after the last step, as ``step_mdp`` gives it ``[N]``. Not changed.

        Returns:
            The state the next step starts from; where a game ended all but the pixels is zero, as TorchRL has it.
        """
        pixels, done = self._next_pixels, tensordict.get("done")
        if pixels is not None and not self._knows(done):
            return super().maybe_reset(tensordict) if done.any() else tensordict
        if pixels is None or not self._ended.any():
            return tensordict
        state = tensordict.exclude("pixels").apply(
            lambda value: value.masked_fill(done.view(-1, *[1] * (value.ndim - 1)), 0)
        )
        if self.frame_stack == 1:
            state.set("is_init", done.clone())
        return state.set("pixels", pixels)

    def _knows(self, done: torch.Tensor) -> bool:
        """True if these are the ends of the last step; on a GPU, where a look would wait, the very tensor is known."""
        if done.is_cuda and done is self._done:
            return True
        return np.array_equal(done.view(-1).cpu().numpy(), self._ended)

    def send(self, action: torch.Tensor) -> None:
        """Begin a step; ALE's threads play it while other work is done, and the next ``step`` waits for it.

        Args:
            action: actions that the next ``step`` will be called with, int64 ``[N]``.

        Raises:
            RuntimeError: a step that was begun and not finished, or before the first reset.
        """
        self._check_open()
        if self._next_pixels is None or self._sent is not None:
            what = "before reset" if self._next_pixels is None else "twice without a step"
            raise RuntimeError(f"a step is begun once, after reset: send was called {what}; call env.step(...) first.")
        self._sent = self._begin(action, self._first_pixels)
        self._send(self._sent)

    def _send(self, actions: list[int]) -> None:
        """Hand a step to ALE's threads, as lists: numbers of an array would be taken out of it one by one."""
        self._ale.ale.send(actions, self._full_strength)  # type: ignore[arg-type]  # its stub allows arrays only

    def _entries(
        self,
        pixels: torch.Tensor,
        score: np.ndarray,
        end_of_life: np.ndarray,
        raw_reward: np.ndarray,
        begins: np.ndarray | None = None,
        **more: np.ndarray,
    ) -> dict[str, torch.Tensor]:
        """Entries of a reset or a step on the environment's device."""
        entries = {
            "raw_reward": raw_reward,
            "episode_reward": score,
            "raw_episode_reward": score.copy(),
            "end_of_life": end_of_life,
        }
        if self.frame_stack == 1:
            entries["is_init"] = np.zeros_like(end_of_life) if begins is None else begins
        return {"pixels": pixels, **all_to_device({**entries, **more}, self.device)}

    def _frames(self, shown: np.ndarray) -> torch.Tensor:
        """ALE's frames ``[..., S, H, W]`` or ``[..., S, H, W, 3]`` as pixels on the environment's device."""
        pixels = to_device(shown, self.device)
        return pixels if self.grayscale else pixels.movedim(-1, -3).flatten(-4, -3)

    def _checked_actions(self, action: torch.Tensor | None) -> list[int]:
        if action is None or action.dtype not in (torch.int64, torch.int32):
            found = None if action is None else action.dtype
            raise TypeError(f"actions must be int64 indices: got {found}; sample them from env.action_spec.")
        if action.shape != self.batch_size:
            raise ValueError(
                f"actions must have shape {list(self.batch_size)}: got {list(action.shape)}; give each slot one index."
            )
        actions: list[int] = to_host(action).tolist()
        if min(actions) < 0 or max(actions) >= self.num_actions:
            raise ValueError(
                f"{self.game} has actions 0 to {self.num_actions - 1}: got {min(actions)} to {max(actions)}; "
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


def _height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    sizes = list(image_size) if isinstance(image_size, Sequence) else [image_size] * 2
    if len(sizes) != 2:
        raise ValueError(f"image_size is a height and a width, or one number for both: got {image_size}.")
    check_integers(1, image_height=sizes[0], image_width=sizes[1])
    return int(sizes[0]), int(sizes[1])
