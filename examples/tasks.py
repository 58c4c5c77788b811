"""A kind of games, as far as the main example must know it: what differs between Atari and classic control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tensordict import TensorDictBase
from torchrl.data import ReplayBuffer, Storage
from torchrl.envs import EnvBase
from torchrl.modules import QValueActor


@dataclass(frozen=True)
class Task:
    """A kind of games, as far as the script must know it.

    Attributes:
        check: refuses names of games and networks in a configuration, before anything is written.
        make_env: environments from the configuration, slots, a seed, and whether they are for evaluation.
        make_actor: a network from the configuration, the name of its size, the environment and a seed.
        make_storage: room for transitions, from the configuration and their number.
        make_replay: a replay buffer of DQN's, from the configuration and its storage.
        make_postproc: what the collector does to each batch, from the configuration; None does nothing.
        terminated: the entry that ends bootstrapping.
        ladder: names of the students that ``students=auto`` stands for.
    """

    check: Callable[[Any], None]
    make_env: Callable[..., EnvBase]
    make_actor: Callable[..., QValueActor]
    make_storage: Callable[[Any, int], Storage]
    make_replay: Callable[[Any, Any], ReplayBuffer]
    make_postproc: Callable[[Any], Callable[[TensorDictBase], TensorDictBase] | None]
    terminated: str
    ladder: tuple[str, ...]


def batch_steps(config: Any) -> int:
    """Agent steps between two rounds of updates."""
    return config.num_envs * config.rollout_steps


def threads_in_all(config: Any) -> int:
    """Threads that networks compute with: those of the teacher, and those of students beside it."""
    return config.threads * (2 if config.concurrent is True else 1)
