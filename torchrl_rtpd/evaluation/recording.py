"""Games as they looked: pictures, score and agreement with the teacher, of several players on one seed.

A step is one agent decision; a picture is uint8 ``[H, W, 3]``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule

from torchrl_rtpd.envs.pictures import GamePictures, game_pictures
from torchrl_rtpd.envs.streams import streams_kept
from torchrl_rtpd.evaluation.evaluator import Evaluator
from torchrl_rtpd.evaluation.scores import agreement_with_teacher
from torchrl_rtpd.networks.memory import memory_keys

__all__ = ["RecordedGame", "record_games"]

_MOST_PICTURES_PER_SECOND = 30  # more would be memory and bytes that nobody sees


@dataclass(frozen=True)
class RecordedGame:
    """The game of one player, from its start.

    Attributes:
        name: of the player.
        pictures_per_second: at the speed of a person.
        pictures: one a step, or of every second step or fewer where a game is faster than 30 steps a second.
        scores: raw score at each picture.
        agreements: share of the states up to each picture in which player and teacher would choose the same action;
            None for the teacher itself, and where actions cannot be compared.
        over: True if the game ended, False if the recording did.
        score: raw score at the end, also that of steps without a picture.
    """

    name: str
    pictures_per_second: float
    pictures: tuple[np.ndarray, ...] = field(repr=False)
    scores: tuple[float, ...] = field(repr=False)
    agreements: tuple[float, ...] | None = field(repr=False)
    over: bool
    score: float

    @property
    def agreement(self) -> float | None:
        """Share of all states with the teacher's action; None where it cannot be told."""
        return self.agreements[-1] if self.agreements else None


@streams_kept()  # from which environments may draw as they are started and drawn
def record_games(
    networks: Mapping[str, TensorDictModule], evaluator: Evaluator, *, seed: int, seconds: float = 20.0
) -> list[RecordedGame]:
    """Play one game with each network on the same seed, and keep how it looked.

    Each game is the one that ``evaluator(network, seed=seed)`` plays, with its share of random actions: scores are the
    same to the last point. The teacher's choice is asked for in the states that the other player meets; random actions
    that were played instead of choices do not count.

    Args:
        networks: by name, the teacher first; the others are compared with it.
        evaluator: of an environment of one slot that can be drawn, see
            :func:`~torchrl_rtpd.envs.pictures.game_pictures`. Its quota is one game.
        seed: of the game and of random actions.
        seconds: of the game, at the speed of a person, after which a recording ends. Pictures of an Atari game take
            1.5 MB of memory a second and player.

    Returns:
        A game for each network.

    Raises:
        ValueError: no time; several slots or games; an environment that cannot be drawn.
        ImportError: the library that draws the game is not installed.

    Examples:
        >>> from torchrl_rtpd.envs import AtariVecEnv
        >>> from torchrl_rtpd.networks import make_actor
        >>> evaluator = Evaluator(lambda: AtariVecEnv("pong", 1), episodes=1)
        >>> teacher = make_actor("net17", evaluator.env.action_spec, seed=0)
        >>> student = make_actor("net1", evaluator.env.action_spec, seed=1)
        >>> games = record_games({"teacher": teacher, "net1": student}, evaluator, seed=3, seconds=1.0)
        >>> [(game.name, len(game.pictures), game.over) for game in games]
        [('teacher', 15, False), ('net1', 15, False)]
        >>> evaluator.close()
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"a recording takes some time: got seconds={seconds}; give a number above 0.")
    if evaluator.quota != 1:
        raise ValueError(f"a recording is of one game: got an evaluator of {evaluator.quota}; use episodes=1.")
    pictures, (first, *_) = game_pictures(evaluator.env), networks
    try:
        return [
            _recorded(name, network, None if name == first else networks[first], evaluator, pictures, seed, seconds)
            for name, network in networks.items()
        ]
    finally:
        pictures.close()


def _recorded(
    name: str,
    network: TensorDictModule,
    teacher: TensorDictModule | None,
    evaluator: Evaluator,
    pictures: GamePictures,
    seed: int,
    seconds: float,
) -> RecordedGame:
    pictures.begin(seed)
    watcher = _Watcher(network, teacher, evaluator, pictures, round(seconds * pictures.steps_per_second))
    played = evaluator(network, seed=seed, watch=watcher)
    agreements = tuple(watcher.agreements) if watcher.agreements else None
    rate = pictures.steps_per_second / watcher.stride
    shown = (tuple(watcher.pictures), tuple(watcher.scores))
    return RecordedGame(name, rate, *shown, agreements, watcher.over, played.scores[0])


class _Watcher:
    """Looks at each step of a game, and ends it when there was enough to see."""

    def __init__(
        self,
        network: TensorDictModule,
        teacher: TensorDictModule | None,
        evaluator: Evaluator,
        pictures: GamePictures,
        max_steps: int,
    ) -> None:
        self.stride = math.ceil(pictures.steps_per_second / _MOST_PICTURES_PER_SECOND)
        self.pictures: list[np.ndarray] = []
        self.scores: list[float] = []
        self.agreements: list[float] = []
        self.over = False
        self._network, self._teacher = network, teacher if _comparable(network, teacher, evaluator) else None
        self._pictures, self._max_steps = pictures, max_steps
        self._steps = self._agreed = 0

    def __call__(self, step: TensorDictBase, score: float) -> bool:
        """Take in a step ``[1]`` and the score after it; True when this was enough."""
        self._pictures.follow(step)
        self._steps += 1
        self.over = bool(step["next", "done"].any())
        if self._teacher is not None:
            agreement = agreement_with_teacher(self._teacher, {"player": self._network}, step.reshape(-1))
            self._agreed += round(agreement["player"])
        last = self.over or self._steps >= self._max_steps
        if last or self._steps % self.stride == 1 % self.stride:
            self._keep(score)
        return last

    def _keep(self, score: float) -> None:
        picture = self._pictures.picture()
        if picture is None:  # the game is over, and looked like this a step before
            if not self.pictures:
                return
            picture = self.pictures[-1]
        self.pictures.append(picture)
        self.scores.append(score)
        if self._teacher is not None:
            self.agreements.append(self._agreed / self._steps)


def _comparable(network: TensorDictModule, teacher: TensorDictModule | None, evaluator: Evaluator) -> bool:
    """Return True for networks that value the actions of single states of the environment."""
    if teacher is None:
        return False
    seen = set(evaluator.env.full_observation_spec.keys(True, True))
    return all(
        {"action_value", "logits"} & {str(key) for key in policy.out_keys}
        and not memory_keys(policy)
        and seen.issuperset(policy.in_keys)
        for policy in (network, teacher)
    )
