"""Replay that keeps every frame once and rebuilds stacks when sampled."""

from torchrl_rtpd.replay.buffer import make_replay_buffer
from torchrl_rtpd.replay.memory import available_bytes, bytes_in_file, check_fits
from torchrl_rtpd.replay.storage import FrameStackStorage

__all__ = ["FrameStackStorage", "available_bytes", "bytes_in_file", "check_fits", "make_replay_buffer"]
