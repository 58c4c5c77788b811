"""Windows of several steps over a ring of transitions.

Letters: ``N`` slots, ``C`` capacity in transitions, ``B`` windows. Numbers and places of transitions are those of
:mod:`torchrl_rtpd.replay.ring`: the next step of a slot is ``N`` further, and a transition lies at ``number % C``.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["n_step_windows"]


def n_step_windows(
    first: Tensor,
    rewards: Tensor,
    stop: Tensor,
    *,
    n_step: int,
    gamma: float,
    num_envs: int,
    num_written: int,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Sum the rewards of up to ``n_step`` steps from each transition on.

    The sum is :math:`\sum_{k=0}^{m-1} \gamma^k r_{t+k}` (Sutton 1988). Its length :math:`m` is ``n_step``, or less: the
    sum ends with the first step at which ``stop`` holds, and with the newest step of the slot.

    Args:
        first: numbers of the transitions that the windows begin with, int64 ``[B]``.
        rewards: rewards by place, ``[C, 1]``.
        stop: flag of each place, True where a sum ends with its transition, bool ``[C]``.
        n_step: longest window, in steps.
        gamma: discount factor a step.
        num_envs: slots ``N``.
        num_written: transitions written so far; the last ``N`` of them are the newest steps.

    Returns:
        The number of the last transition of each window ``[B]``, its sum of rewards ``[B, 1]``, and its length in
        steps, int64 ``[B, 1]``.

    Examples:
        >>> rewards, stop = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([False, True, False])
        >>> last, total, steps = n_step_windows(
        ...     torch.tensor([0, 1, 2]), rewards, stop, n_step=3, gamma=0.5, num_envs=1, num_written=3
        ... )
        >>> last.tolist(), total.flatten().tolist(), steps.flatten().tolist()
        ([1, 1, 2], [2.0, 2.0, 4.0], [2, 1, 1])
    """
    offsets = torch.arange(n_step, device=first.device)
    numbers = first[:, None] + offsets * num_envs
    places = numbers % len(stop)
    go_on = ~stop[places] & (numbers + num_envs < num_written)
    within = torch.cat([torch.ones_like(go_on[:, :1]), go_on[:, :-1]], -1).cumprod(-1)
    total = (rewards[places].squeeze(-1) * within * gamma**offsets).sum(-1, keepdim=True)
    steps = within.sum(-1, keepdim=True)
    return first + (steps.squeeze(-1) - 1) * num_envs, total, steps
