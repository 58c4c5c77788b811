"""States of whole games, on which ranges are taken and exported networks compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl.data import ReplayBuffer
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule

from torchrl_rtpd.envs.resets import reset_all
from torchrl_rtpd.envs.streams import streams_kept
from torchrl_rtpd.networks.running import eval_mode

__all__ = ["LEAST_STATES", "states_of"]

LEAST_STATES = 512
_DRAWN = 1024
_MOST_STEPS = 5000  # of games that do not end
_EPSILON = 0.05  # random actions, as when networks are evaluated


def states_of(calibration: Any, student: nn.Module, key: Any, metadata: Mapping[str, Any]) -> Tensor:
    """Return states ``[N, ...]`` from whatever holds or makes them.

    Args:
        calibration: states; a replay buffer, from which they are sampled; an environment, in which the student plays
            whole games; None for the game that ``metadata`` names.
        student: an actor that plays.
        key: entry that it reads.
        metadata: may name a "game".

    Raises:
        ValueError: no states, or fewer than 512, from which ranges are taken too narrow.
        TypeError: something else.
    """
    if calibration is None:
        if "game" not in metadata:
            raise ValueError(
                "calibration must give states for 8-bit integers: got None; pass at least 512 states of whole games, a "
                "replay buffer, an environment, or metadata={'game': name}."
            )
        from torchrl_rtpd.envs import AtariVecEnv

        calibration = AtariVecEnv(metadata["game"], 8, seed=0)
        try:
            return _played(calibration, student, key)
        finally:
            calibration.close()
    if isinstance(calibration, EnvBase):
        return _played(calibration, student, key)
    if isinstance(calibration, ReplayBuffer):
        size = calibration.batch_size  # another one than its own makes it warn
        draws = -(-_DRAWN // size) if size else 1
        with streams_kept():
            states = torch.cat([calibration.sample(*([] if size else [_DRAWN])).get(key).cpu() for _ in range(draws)])
    elif isinstance(calibration, Tensor):
        states = calibration.cpu()
    else:
        raise TypeError(
            f"calibration must be states, a replay buffer or an environment: got {type(calibration).__name__}."
        )
    if len(states) < LEAST_STATES:
        raise ValueError(
            f"calibration must hold at least {LEAST_STATES} states of whole games: got {len(states)}; a few states "
            "make ranges that cut what comes later."
        )
    return states


@torch.no_grad()
def _played(env: EnvBase, student: nn.Module, key: Any) -> Tensor:
    """A sample of all states until every slot has ended a game: each state is as likely to be in it."""
    generator = torch.Generator().manual_seed(0)
    spec = env.action_spec_unbatched if hasattr(env, "action_spec_unbatched") else env.action_spec
    policy = TensorDictSequential(student, EGreedyModule(spec, eps_init=_EPSILON, eps_end=_EPSILON))
    kept: list[Tensor] = []
    ended, seen = None, 0
    with streams_kept(seed=0), eval_mode(student), set_exploration_type(ExplorationType.RANDOM):
        state = reset_all(env)
        for _ in range(_MOST_STEPS):
            for observation in (
                state.get(key).flatten(0, max(len(env.batch_size) - 1, 0)) if env.batch_size else [state.get(key)]
            ):
                seen += 1
                if len(kept) < _DRAWN:
                    kept.append(observation.cpu().clone())
                elif (place := int(torch.randint(seen, (), generator=generator))) < _DRAWN:
                    kept[place] = observation.cpu().clone()
            stepped, state = env.step_and_maybe_reset(policy(state))
            done = stepped.get(("next", "done"))
            ended = done if ended is None else ended | done
            if ended.all() and seen >= _DRAWN:
                break
    return torch.stack(kept)
