"""Environments: Atari games side by side."""

from torchrl_rtpd.envs.atari import AtariVecEnv
from torchrl_rtpd.envs.names import check_game
from torchrl_rtpd.envs.pictures import GamePictures, game_pictures
from torchrl_rtpd.envs.resets import reset_all

__all__ = ["AtariVecEnv", "GamePictures", "check_game", "game_pictures", "reset_all"]
