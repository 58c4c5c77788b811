"""Raw full-game scores of policies.

``N`` slots play side by side and every slot plays the same number of games. Averaging the first games to finish would
favour short ones. A step is one agent decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_rtpd.envs.resets import reset_all
from torchrl_rtpd.envs.streams import streams_kept
from torchrl_rtpd.evaluation.actions import RandomActions
from torchrl_rtpd.evaluation.games import Games, KeptObservations, score_key_of
from torchrl_rtpd.evaluation.scores import Scores
from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.networks.keys import names_in, selected
from torchrl_rtpd.networks.memory import START_KEY, Memory
from torchrl_rtpd.networks.running import eval_mode

__all__ = ["EvaluationStopped", "Evaluator"]


class EvaluationStopped(RuntimeError):
    """An evaluation was given up before its games were over: it took too long, or the run is to end."""


class Evaluator:
    """Plays games with given policies in environments of its own, so that evaluating changes nothing in training.

    Actions are the policy's own. With probability ``epsilon`` a slot plays random ones instead, in all its choices and
    of all its agents. All random numbers come from one seed: random actions from a generator of the evaluator, the
    games from the environment, and what policy or environment draw from the global generators of torch, NumPy and
    Python, also while the environment is made, is seeded before and put back afterwards. Two calls with one seed play
    the same games.

    ======================  ===========================================================================================
    Supported               How
    ======================  ===========================================================================================
    Discrete actions        categorical or one-hot, one choice or several (multi-discrete, binary)
    Continuous actions      random ones between finite bounds; without bounds only with ``epsilon=0``
    Action masks            in the data or in the spec (:class:`~torchrl.envs.ActionMask`): random actions keep to them
    Several agents          in one batch, under nested or several action keys, that share ``"done"``; the score of a
                            slot is the mean over its agents
    Recurrent policies      what a policy reads and writes under ``"next"`` goes on to the next step and begins again
                            with each game; ``"is_init"`` is supplied where the environment lacks it
    Stochastic policies     play their most likely action, or sample (``exploration_type``)
    Any scale of rewards    scores are read from an entry that no transform overwrites, or summed up from rewards
    ======================  ===========================================================================================

    Everything else is refused: at construction an environment without a common ``"done"``, with random actions that
    nothing can draw, or with a score that a transform overwrites; at a call a policy whose keys or shapes do not fit.

    Args:
        make_env: makes an environment of batch ``[N]``, such as :class:`~torchrl_rtpd.envs.AtariVecEnv`, whose
            ``max_frames`` bounds a game.
        episodes: games a policy plays, a multiple of ``N``.
        epsilon: probability of a random action (Sun & Fazli 2019 follow Nature DQN: 0.05).
        max_steps: bound on the steps of a slot, over all its games, for environments without a bound of their own.
        seed: base of the seeds, also of what ``make_env`` draws.
        max_seconds: bound on the time of one call, looked at after each step. None has no bound.
        score_key: entry with the score of the running game. None takes ``"raw_episode_reward"``, which ``AtariVecEnv``
            writes, or ``"episode_reward"``, which :class:`~torchrl.envs.RewardSum` writes; without either rewards are
            summed up. Transforms that clip or scale rewards change such sums, unless ``RewardSum`` comes before them.
        action_mask_key: name of the mask beside an action, see :class:`~torchrl_rtpd.evaluation.actions.RandomActions`.
            None takes ``"action_mask"`` if the environment has it.
        exploration_type: how a stochastic policy acts, deterministically by default.

    Raises:
        ValueError: an argument out of range, an environment that is refused.
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
        score_key: NestedKey | None = None,
        action_mask_key: NestedKey | None = None,
        exploration_type: ExplorationType = ExplorationType.DETERMINISTIC,
    ) -> None:
        _check_probability(epsilon)
        check_integers(1, max_steps=max_steps)
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"max_seconds must be positive: got {max_seconds}; None sets no bound.")
        with streams_kept(seed):  # TorchRL plays a step in some environments when it makes them
            self.env = make_env()
        if "done" not in self.env.done_keys:
            raise ValueError(
                f"a game must end for all agents of a slot at once: got the done keys {self.env.done_keys}; add a "
                "common 'done' to the environment."
            )
        self.score_key = score_key_of(self.env, score_key)
        self._random = RandomActions(self.env, action_mask_key)
        self._check_random(epsilon)
        self.quota = _quota(self.env.batch_size.numel(), episodes)
        self.epsilon = epsilon
        self.max_steps = max_steps
        self.seed = seed
        self.max_seconds = max_seconds
        self.exploration_type = exploration_type

    def __call__(
        self,
        policy: TensorDictModule,
        *,
        seed: int | None = None,
        epsilon: float | None = None,
        keep_observations: int = 0,
        should_stop: Callable[[], bool] | None = None,
        watch: Callable[[TensorDictBase, float], bool] | None = None,
    ) -> Scores:
        """Play every slot's quota of games.

        Args:
            policy: writes the environment's actions from its observations.
            seed: of the games and random actions; None uses the evaluator's.
            epsilon: another probability of random actions; 1 measures the random player, and the policy is not run.
            keep_observations: observations to keep, spread evenly over the play. Of a recurrent policy they hold what
                it remembered.
            should_stop: asked after each step; True gives up, as when a run is to end.
            watch: told each step ``[*batch]``, with what follows under ``"next"``, and the score of the first slot's
                game after it, as :func:`~torchrl_rtpd.evaluation.record_games` is. True ends the play as ``max_steps``
                does.

        Returns:
            The scores of ``N * quota`` games, fewer if ``max_steps`` ended the play before.

        Raises:
            TypeError: a policy that is no tensordict module.
            KeyError: a policy that reads what the environment lacks, or does not write its actions.
            ValueError: an ``epsilon`` that is no probability, or that the environment's actions do not allow; a mask
                that allows nothing; actions of another shape than the environment's.
        """
        seed = self.seed if seed is None else seed
        epsilon = self.epsilon if epsilon is None else epsilon
        _check_probability(epsilon)
        self._check_random(epsilon)
        if not (hasattr(policy, "in_keys") and hasattr(policy, "out_keys")):  # compiled modules have them as well
            raise TypeError(
                f"a policy must be a tensordict module: got {type(policy).__name__}; wrap it in a TensorDictModule "
                f"that writes {self.env.action_keys}."
            )
        kept = KeptObservations(keep_observations, self.env.device)
        with streams_kept(seed), torch.no_grad(), set_exploration_type(self.exploration_type), eval_mode(policy):
            self.env.set_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            return self._play(_Player(policy, self.env), generator, epsilon, kept, should_stop, watch)

    def _play(
        self,
        player: _Player,
        generator: torch.Generator,
        epsilon: float,
        kept: KeptObservations,
        should_stop: Callable[[], bool] | None,
        watch: Callable[[TensorDictBase, float], bool] | None,
    ) -> Scores:
        games = Games(self.env, self.quota, self.score_key)
        start = time.monotonic()
        tensordict = reset_all(self.env)
        for number in range(self.max_steps):
            self._check_time(start, number, should_stop)
            seen = player.sees(tensordict, games.starts, strict=epsilon < 1)
            kept.add(number, seen, games.playing)
            explores = torch.rand(self.env.batch_size, generator=generator) < epsilon
            drawn = self._random(tensordict, explores, generator) if epsilon > 0 else {}
            actions = player.actions(seen) if epsilon < 1 else drawn
            for key, action in actions.items():
                tensordict.set(key, _where(explores, drawn[key], action) if epsilon > 0 else action)
            tensordict, following = self.env.step_and_maybe_reset(tensordict)
            games.count(tensordict)
            enough = watch is not None and watch(tensordict, games.running[0])
            if enough or not any(games.playing):
                break
            tensordict = following
        games.stop()
        return Scores(games.scores, games.cut, games.steps, kept.thinned())

    def _check_time(self, start: float, step: int, should_stop: Callable[[], bool] | None) -> None:
        seconds = time.monotonic() - start
        late = self.max_seconds is not None and seconds > self.max_seconds
        if late or (should_stop is not None and should_stop()):
            why = f"its bound is max_seconds={self.max_seconds}" if late else "the run is to end"
            raise EvaluationStopped(
                f"an evaluation was given up after {step} steps and {seconds:.0f} s: {why}; it gives no scores."
            )

    def _check_random(self, epsilon: float) -> None:
        if epsilon > 0 and self._random.refusal is not None:
            raise ValueError(
                f"random actions need a spec to be drawn from uniformly: got epsilon={epsilon}, and "
                f"{self._random.refusal}; evaluate with epsilon=0."
            )

    def close(self) -> None:
        """Close the environments."""
        if not self.env.is_closed:
            self.env.close()


class _Player:
    """A policy in an environment: what it reads at each step, and the actions it chooses."""

    def __init__(self, policy: TensorDictModule, env: EnvBase) -> None:
        self._policy = policy
        self._env = env
        self._memory = Memory(policy)
        self._keys = [key for key in policy.in_keys if key != START_KEY and key not in self._memory.keys]
        parameter = next(policy.parameters(), None)
        self._device = None if parameter is None else parameter.device

    def sees(self, tensordict: TensorDictBase, starts: Tensor, *, strict: bool) -> TensorDictBase:
        """Return what the policy reads ``[*batch]``, on its device; unless ``strict`` only what there is of it."""
        if strict:
            selected(tensordict, self._keys, "policy", "environment")
        seen = tensordict.select(*self._policy.in_keys, strict=False)
        if START_KEY in self._policy.in_keys and seen.get(START_KEY, None) is None:
            seen.set(START_KEY, starts[..., None])
        seen = seen if self._device is None else seen.to(self._device)
        return self._memory.recall(seen, starts) if self._memory and strict else seen

    def actions(self, seen: TensorDictBase) -> dict[NestedKey, Tensor]:
        """Run the policy on what it reads and return the environment's actions by key."""
        outputs = self._policy(seen.copy())
        self._memory.remember(outputs)
        actions = {}
        for key in self._env.action_keys:
            action, spec = outputs.get(key, None), self._env.full_action_spec[key]
            if action is None:
                raise KeyError(
                    f"a policy must write the environment's action {key!r}: got {names_in(outputs)}; name its output "
                    "so."
                )
            if action.shape != spec.shape:
                raise ValueError(
                    f"a policy must write {key!r} in the shape of the environment's spec, {list(spec.shape)}: got "
                    f"{list(action.shape)}; build it from env.action_spec."
                )
            actions[key] = action.to(spec.device)
        return actions


def _where(explores: Tensor, drawn: Tensor, action: Tensor) -> Tensor:
    """Random actions in the slots that explore ``[*batch]``, the policy's in others; the policy's type and device."""
    rows = explores.reshape(explores.shape + (1,) * (action.ndim - explores.ndim)).to(action.device)
    return torch.where(rows, drawn.to(action), action)


def _quota(slots: int, episodes: int) -> int:
    """Games of each slot."""
    if episodes < 1 or episodes % slots:
        raise ValueError(
            f"episodes must be a multiple of the {slots} slots, so that each plays as many games: got {episodes}; "
            f"use {max(1, round(episodes / slots)) * slots}."
        )
    return episodes // slots


def _check_probability(epsilon: float) -> None:
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon is a probability in [0, 1]: got {epsilon}.")
