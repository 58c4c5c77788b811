"""A reset of all slots that does not depend on what was played before."""

from __future__ import annotations

from tensordict import TensorDictBase
from torchrl.envs import EnvBase, TransformedEnv, VecGymEnvTransform

__all__ = ["reset_all"]


def reset_all(env: EnvBase) -> TensorDictBase:
    """Begin a game in every slot, and return what is seen there.

    It is ``env.reset()`` but for gymnasium's vector environments. These have a transform of TorchRL's that keeps the
    last observations, and writes them over those of the reset, if some games, but not all, ended in the last step.

    Args:
        env: an environment of batch ``[*N]``.

    Returns:
        First steps of batch ``[*N]``.

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
    return env.reset()
