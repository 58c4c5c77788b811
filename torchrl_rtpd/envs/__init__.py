"""Environments: Atari games side by side."""

from torchrl_rtpd.envs.atari import AtariVecEnv
from torchrl_rtpd.envs.names import check_game

__all__ = ["AtariVecEnv", "check_game"]
