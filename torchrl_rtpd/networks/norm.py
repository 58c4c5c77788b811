"""Normalisation over channels, which keeps the activations of a tiny network of one size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ChannelNorm"]


class ChannelNorm(nn.Module):
    r"""Normalise the channels of each pixel to mean 0 and variance 1, then scale and shift each channel.

    LayerNorm as PQN has it (Gallici et al. 2024, https://arxiv.org/abs/2407.04811): over channels alone, so that it
    holds ``2 C`` parameters, where one over channels, height and width would hold more than a tiny network itself.

    Args:
        channels: number of channels ``C``, or of units of a dense layer.
        eps: added to the variance. Default: 1e-6, the paper's code.

    Examples:
        >>> norm = ChannelNorm(2)
        >>> [round(value, 3) for value in norm(torch.tensor([[[[1.0]], [[3.0]]]])).flatten().tolist()]  # one pixel
        [-1.0, 1.0]
        >>> sum(parameter.numel() for parameter in norm.parameters())
        4
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        """Set scales to one and shifts to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return features ``[B, C]`` or ``[B, C, H, W]`` normalised over ``C``."""
        if features.ndim == 2:
            return nn.functional.layer_norm(features, self.weight.shape, self.weight, self.bias, self.eps)
        pixels = features.permute(0, 2, 3, 1)  # no copy of features that lie channels last
        normed = nn.functional.layer_norm(pixels, self.weight.shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)
