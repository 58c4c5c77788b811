"""One-step TD target and the values of chosen actions, shared by the DQN losses."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives.value import TD0Estimator

from torchrl_rtpd import functional as RF
from torchrl_rtpd.functional.choices import split_choices

__all__ = ["chosen_values", "td_target"]


def td_target(
    estimator: TD0Estimator, tensordict: TensorDictBase, reward: Tensor, next_value: Tensor, terminated: Tensor
) -> Tensor:
    """Return the target ``[*B]`` of TorchRL's estimator, without its copies where they can be spared.

    Args:
        estimator: of a loss.
        tensordict: the batch ``[*B]``.
        reward: under ``"next"``, ``[*B, 1]``.
        next_value: of the next states, ``[*B]``.
        terminated: under ``"next"``, ``[*B, 1]``.
    """
    next_value = next_value.unsqueeze(-1)
    if estimator.average_rewards or torch.compiler.is_compiling():
        return estimator.value_estimate(tensordict.copy(), next_value=next_value).squeeze(-1)
    num_steps = tensordict.get(estimator.tensor_keys.steps_to_next_obs, None)
    if num_steps is not None:
        num_steps = num_steps.view_as(reward)
    return RF.discounted_target(reward, next_value, terminated, estimator.gamma, num_steps).squeeze(-1)


def chosen_values(q_values: Tensor, action: Tensor, key: NestedKey, var_nums: tuple[int, ...] | None = None) -> Tensor:
    """Return the values of the actions taken.

    Args:
        q_values: ``[*B, A]``.
        action: categorical ``[*B]`` or one-hot ``[*B, A]``; of ``N`` choices ``[*B, N]`` or one-hot side by side.
        key: name of ``action`` in messages.
        var_nums: actions of each choice if there are several, ``N`` numbers.

    Returns:
        ``[*B]``, the sum over the choices.

    Raises:
        ValueError: actions of another shape or type.
    """
    if action.shape == q_values.shape:
        return (q_values * action).sum(-1)
    num_choices = 1 if var_nums is None else len(var_nums)
    index = action if action.ndim == q_values.ndim else action.unsqueeze(-1)
    if index.shape != (*q_values.shape[:-1], num_choices) or index.is_floating_point() or index.dtype is torch.bool:
        integers = [*q_values.shape[:-1], *([] if var_nums is None else [num_choices])]
        raise ValueError(
            f"actions must be categorical integers {integers} or one-hot {list(q_values.shape)}: "
            f"{key!r} is {action.dtype} {list(action.shape)}; store them as the policy wrote them."
        )
    if var_nums is None:
        return q_values.gather(-1, index.long()).squeeze(-1)
    parts = zip(split_choices(var_nums, q_values), index.long().split(1, -1), strict=True)
    return torch.cat([values.gather(-1, chosen) for (values,), chosen in parts], -1).sum(-1)
