"""Environments: Atari games side by side."""

from torchrl_rtpd.envs.atari import AtariVecEnv
from torchrl_rtpd.envs.names import check_game
from torchrl_rtpd.envs.resets import reset_all

__all__ = ["AtariVecEnv", "check_game", "reset_all"]
