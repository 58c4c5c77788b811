"""A reset of all slots that does not depend on what was played before."""

from __future__ import annotations

import warnings

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv, VecGymEnvTransform

__all__ = ["reset_all"]


def reset_all(env: EnvBase) -> TensorDictBase:
    """Begin a game in every slot, and return what is seen there.

    It is ``env.reset()`` but for gymnasium's vector environments. These have a transform of TorchRL's that keeps the
    last observations, and writes them over those of the reset, if some games, but not all, ended in the last step.
    Where they lie in a :class:`~torchrl.envs.SerialEnv` or :class:`~torchrl.envs.ParallelEnv`, all slots are reset by
    a mask, at which it does not.

    Args:
        env: an environment of batch ``[*N]``.

    Returns:
        First steps of batch ``[*N]``.

    Warns:
        UserWarning: vector environments in a batch without buffers (``use_buffers=False``), where nothing tells if a
            mask is needed.

    Examples:
        >>> from torchrl.envs import GymEnv
        >>> reset_all(GymEnv("CartPole-v1"))["observation"].shape
        torch.Size([4])
    """
    inner = env
    while isinstance(inner, TransformedEnv):
        for transform in inner.transform.modules():
            if isinstance(transform, VecGymEnvTransform):
                transform._memo.clear()  # TorchRL 0.14 has no other way
        inner = inner.base_env
    if isinstance(inner, (SerialEnv, ParallelEnv)) and len(inner.batch_size) > 1 and _some_ended(inner):
        masks = zip(env.reset_keys, env.done_keys_groups, strict=True)
        ones = {mask: torch.ones_like(env.full_done_spec[keys[0]].zero()) for mask, keys in masks}
        return env.reset(TensorDict(ones, env.batch_size, device=env.device))
    return env.reset()


def _some_ended(env: SerialEnv | ParallelEnv) -> bool:
    """Return True if games ended in the last step; a mask is refused before the first one."""
    if env.is_closed:  # or not started yet
        return False
    steps = getattr(env, "shared_tensordict_parent", None)
    if steps is None:
        warnings.warn(
            "vector environments within a batch are reset through its buffers: got use_buffers=False; the first steps "
            "of games may be those of games before.",
            stacklevel=3,
        )
        return False
    return any(bool(steps.get(("next", key)).any()) for key in env.done_keys)
