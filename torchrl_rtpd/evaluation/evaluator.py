"""Raw full-game scores of policies, and how a student compares with its teacher.

``N`` slots play side by side and every slot plays the same number of games. Averaging the first games to finish would
favour short ones. A step is one agent decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_rtpd.evaluation.scores import Scores
from torchrl_rtpd.networks.keys import policy_inputs
from torchrl_rtpd.networks.running import eval_mode

__all__ = ["EvaluationStopped", "Evaluator"]


class EvaluationStopped(RuntimeError):
    """An evaluation was given up before its games were over: it took too long, or the run is to end."""


class Evaluator:
    """Plays games with given policies in environments of its own, so that evaluating changes nothing in training.

    Actions are the policy's own, replaced by random ones with probability ``epsilon``. All random numbers come from one
    generator and the environments' own; two calls with one seed play the same games.

    Args:
        make_env: makes an environment of batch ``[N]`` with ``episode_reward``, such as
            :class:`~torchrl_rtpd.envs.AtariVecEnv`, whose ``max_frames`` bounds a game. Other environments get that
            entry from :class:`~torchrl.envs.RewardSum`.
        episodes: games a policy plays, a multiple of ``N``.
        epsilon: probability of a random action (Sun & Fazli 2019 follow Nature DQN: 0.05).
        max_steps: bound on the steps of a slot, over all its games, for environments without a bound of their own.
        seed: base of the seeds.
        max_seconds: bound on the time of one call, looked at after each step. None has no bound.

    Raises:
        ValueError: numbers out of range, or an environment without ``episode_reward``.
        EvaluationStopped: at a call, time is up or ``should_stop`` says so. There are no scores then, since games that
            ended early would favour the short ones.

    Examples:
        >>> from torchrl_rtpd.envs import AtariVecEnv
        >>> from torchrl_rtpd.networks import make_actor
        >>> evaluator = Evaluator(lambda: AtariVecEnv("pong", 2, max_frames=400), episodes=2)
        >>> scores = evaluator(make_actor("net17", evaluator.env.action_spec, seed=0))
        >>> scores.episodes, scores.cut
        (2, 2)
        >>> evaluator.close()
    """

    def __init__(
        self,
        make_env: Callable[[], EnvBase],
        *,
        episodes: int,
        epsilon: float = 0.05,
        max_steps: int = 1_000_000,
        seed: int = 0,
        max_seconds: float | None = None,
    ) -> None:
        _check_probability(epsilon)
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1: got {max_steps}.")
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"max_seconds must be positive: got {max_seconds}; None sets no bound.")
        self.env = make_env()
        if "episode_reward" not in {*self.env.full_observation_spec.keys(), *self.env.full_reward_spec.keys()}:
            raise ValueError(
                f"scores are read from 'episode_reward', which {self.env} lacks; append RewardSum(in_keys=['reward'], "
                "out_keys=['episode_reward']) to it."
            )
        slots = self.env.batch_size.numel()
        if episodes < 1 or episodes % slots:
            raise ValueError(
                f"episodes must be a multiple of the {slots} slots, so that each plays as many games: got {episodes}; "
                f"use {max(1, round(episodes / slots)) * slots}."
            )
        self.quota = episodes // slots
        self.epsilon = epsilon
        self.max_steps = max_steps
        self.seed = seed
        self.max_seconds = max_seconds
        self._should_stop: Callable[[], bool] | None = None

    def __call__(
        self,
        policy: TensorDictModule,
        *,
        seed: int | None = None,
        epsilon: float | None = None,
        keep_observations: int = 0,
        should_stop: Callable[[], bool] | None = None,
    ) -> Scores:
        """Play every slot's quota of games.

        Args:
            policy: writes ``action`` from the environment's observations.
            seed: of the games and random actions; None uses the evaluator's.
            epsilon: another probability of random actions; 1 measures the random player, and the policy is not run.
            keep_observations: observations to keep, spread evenly over the play.
            should_stop: asked after each step; True gives up, as when a run is to end.

        Returns:
            The scores of ``N * quota`` games, fewer if ``max_steps`` ended the play before.

        Raises:
            ValueError: an ``epsilon`` that is no probability.
        """
        seed = self.seed if seed is None else seed
        epsilon = self.epsilon if epsilon is None else epsilon
        _check_probability(epsilon)
        generator = torch.Generator().manual_seed(seed)
        self.env.set_seed(seed)
        self._should_stop = should_stop
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC), eval_mode(policy):
            return self._play(policy, generator, epsilon, keep_observations)

    def _play(self, policy: TensorDictModule, generator: torch.Generator, epsilon: float, keep: int) -> Scores:
        slots = self.env.batch_size.numel()
        scores: list[list[float]] = [[] for _ in range(slots)]
        running = [0.0] * slots
        done = [True] * slots
        cut = steps = 0
        kept: list[TensorDictBase] = []
        stride = 4  # neighbours are nearly alike
        start = time.monotonic()
        tensordict = self.env.reset()
        for step in range(self.max_steps):
            self._check_time(start, step)
            playing = [len(games) < self.quota for games in scores]
            if keep and step % stride == 0:
                kept.append(tensordict.select(*policy.in_keys).reshape(-1)[torch.tensor(playing)])
                if len(kept) > 1 and len(kept) * slots > 4 * keep:  # a long play: keep every other one, to bound memory
                    kept, stride = kept[::2], 2 * stride
            self._act(policy, tensordict, generator, epsilon)
            tensordict, following = self.env.step_and_maybe_reset(tensordict)
            done, truncated, running = (self._after(tensordict, key) for key in ("done", "truncated", "episode_reward"))
            steps += sum(playing)
            for slot in range(slots):
                if done[slot] and playing[slot]:
                    scores[slot].append(running[slot])
                    cut += truncated[slot]
            if all(len(games) == self.quota for games in scores):
                break
            tensordict = following
        for slot, games in enumerate(scores):  # the step bound was reached: a game being played counts as it stands
            if len(games) < self.quota and not done[slot]:
                games.append(running[slot])
                cut += 1
        flat = tuple(score for games in scores for score in games)
        return Scores(flat, cut, steps, _thinned(kept, keep))

    def _check_time(self, start: float, step: int) -> None:
        seconds = time.monotonic() - start
        late = self.max_seconds is not None and seconds > self.max_seconds
        if late or (self._should_stop is not None and self._should_stop()):
            why = f"its bound is max_seconds={self.max_seconds}" if late else "the run is to end"
            raise EvaluationStopped(
                f"an evaluation was given up after {step} steps and {seconds:.0f} s: {why}; it gives no scores."
            )

    def _after(self, tensordict: TensorDictBase, key: str) -> list:
        """An entry of each slot after the step; environments that never truncate need no ``truncated``."""
        entry = tensordict.get(("next", key), None)
        return [False] * self.env.batch_size.numel() if entry is None else entry.view(-1).tolist()

    def _act(
        self, policy: TensorDictModule, tensordict: TensorDictBase, generator: torch.Generator, epsilon: float
    ) -> None:
        spec = self.env.action_spec
        shape = self.env.batch_size
        explore = torch.rand(shape, generator=generator) < epsilon
        num_actions = spec.n if isinstance(spec, Categorical) else spec.shape[-1]
        index = torch.randint(num_actions, shape, generator=generator)
        action = (
            spec.zero() if epsilon >= 1 else policy(policy_inputs(policy, tensordict)).get("action").to(spec.device)
        )
        one_hot = not isinstance(spec, Categorical)
        random_action = nn.functional.one_hot(index, num_actions).to(action) if one_hot else index.to(action)
        where = explore.to(action.device)
        tensordict.set("action", torch.where(where[..., None] if one_hot else where, random_action, action))

    def close(self) -> None:
        """Close the environments."""
        if not self.env.is_closed:
            self.env.close()


def _check_probability(epsilon: float) -> None:
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon is a probability in [0, 1]: got {epsilon}.")


def _thinned(kept: list[TensorDictBase], count: int) -> TensorDictBase | None:
    if not kept or not count:
        return None
    together = torch.cat(kept)
    return together[torch.linspace(0, len(together) - 1, min(count, len(together))).round().long()].clone()
