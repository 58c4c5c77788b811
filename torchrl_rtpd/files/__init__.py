"""Files of a run: verified checkpoints, weights, and teachers from other projects."""

from torchrl_rtpd.files.pretrained import load_pretrained
from torchrl_rtpd.files.tensorfile import read_tensor, write_tensors
from torchrl_rtpd.files.verified import FORMAT_VERSION, StateAdapter, VerifiedCheckpoint
from torchrl_rtpd.files.weights import load_weights, save_weights

__all__ = [
    "FORMAT_VERSION",
    "StateAdapter",
    "VerifiedCheckpoint",
    "load_pretrained",
    "load_weights",
    "read_tensor",
    "save_weights",
    "write_tensors",
]
