"""Fully connected layers whose products oneDNN makes.

PyTorch gives convolutions on a CPU to oneDNN and products of float32 matrices to MKL, which on processors that are not
Intel's takes up to twice as long for the same product (docs/speed.md). ``B`` is the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.parameter import Parameter

__all__ = ["WideLinear"]

_LEAST_WORK = 2**23  # products of two numbers; MKL is faster below, where oneDNN prepares for longer than it multiplies
_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class WideLinear(nn.Linear):
    """A :class:`torch.nn.Linear` whose products oneDNN makes, forward and backward, where they are large.

    That is on a CPU, in float32, for minibatches ``[B, in_features]`` and outside of :func:`torch.compile`, scripts,
    traces, exports, autocast and :mod:`torch.func`. Elsewhere it is the layer of PyTorch. Names, shapes and results are
    those of :class:`torch.nn.Linear`, the latter but for rounding. Tools that look for that very class, as dynamic
    quantisation does, pass it by.

    Examples:
        >>> layer = WideLinear(3136, 512)
        >>> layer(torch.zeros(32, 3136)).shape
        torch.Size([32, 512])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` times the weight, with the bias added: ``[*B, in_features]`` to ``[*B, out_features]``."""
        weight, bias = self.weight, self.bias  # once, since a parametrisation computes them anew
        if not torch.jit.is_scripting():
            if _is_for_onednn(input, weight, bias):
                return _Product.apply(input, weight, bias)  # type: ignore[no-any-return]
        return nn.functional.linear(input, weight, bias)


def _is_for_onednn(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        _AVAILABLE
        and type(input) is Tensor  # no symbol, as in torch.fx
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and input.ndim == 2
        and input.shape[1] == weight.shape[1]
        and len(input) * weight.numel() >= _LEAST_WORK
        and input.dtype == weight.dtype == torch.float32
        and input.device.type == weight.device.type == "cpu"
        and type(weight) in (Tensor, Parameter)
        and (bias is None or _is_plain(bias, weight))
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _is_plain(bias: Tensor, weight: Tensor) -> bool:
    """Return True for a bias as oneDNN reads it: one number an output, side by side."""
    return bias.shape == weight.shape[:1] and bias.is_contiguous() and bias.dtype == weight.dtype


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left [M, K]`` times ``right [N, K]`` transposed: ``[M, N]``."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    """A linear layer's output and gradients."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``[B, out_features]``."""
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias, None for those that nobody needs."""
        (input, weight), (gradient,) = ctx.saved_tensors, gradients
        needed = ctx.needs_input_grad
        bias = gradient.sum(0) if needed[2] else None
        if torch.is_grad_enabled():  # a second derivative is wanted
            return gradient @ weight if needed[0] else None, gradient.t() @ input if needed[1] else None, bias
        gradient = gradient.contiguous()
        return (
            _product(gradient, weight.t()) if needed[0] else None,
            _product(gradient.t().contiguous(), input.t()) if needed[1] else None,
            bias,
        )
