"""A chain in 8-bit integers: raw bytes in, weights by output channel, ranges of whole games, the head in float.

Pixels are the first layer's quantised input as they are, with scale 1. Results of a hidden layer are stored as
``0..255`` of its largest value over the calibration states. The last hidden layer hands floats to the head, whose
weights stay floats, since action values lie closer together than 8 bits tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from torchrl_rtpd.deploy.chain import Chain, ChainLayer

__all__ = ["ONNX_BITS", "QuantisedChain", "QuantisedLayer", "quantise", "reason_against"]

ONNX_BITS = 7  # of the weights, so that processors with AVX2 and without VNNI do not saturate


@dataclass
class QuantisedLayer:
    """One hidden layer.

    Attributes:
        source: the layer in float.
        weight: int8, of the source's shape.
        weight_scale: ``[out]``, so that ``weight * weight_scale`` is about the source's.
        bias: int32, in units of ``in_scale * weight_scale``.
        in_scale: value of a step of the input.
        out_scale: value of a step of the result; None for the last hidden layer, which hands on floats.
    """

    source: ChainLayer
    weight: np.ndarray
    weight_scale: np.ndarray
    bias: np.ndarray
    in_scale: float
    out_scale: float | None


@dataclass
class QuantisedChain:
    """Hidden layers in integers and a head in float."""

    chain: Chain
    hidden: list[QuantisedLayer]

    @property
    def head(self) -> ChainLayer:
        """The last layer."""
        return self.chain.layers[-1]

    def run(self, states: Tensor) -> Tensor:
        """Return the values of states ``[B, ...]`` uint8 as the integers compute them."""
        steps = states.double()
        for layer in self.hidden:
            sums = _layer(steps, layer.weight, layer.bias, layer.source)
            shape = (1, -1) + (1,) * (sums.ndim - 2)
            results = sums * torch.from_numpy(layer.weight_scale).double().reshape(shape) * layer.in_scale
            if layer.out_scale is None:
                steps = results.clamp(min=0)
            else:
                steps = (results / layer.out_scale).round().clamp(0, 255)
        return _layer(steps, self.head.weight, self.head.bias, self.head).float()


def reason_against(chain: Chain) -> str | None:
    """Return why a chain cannot be quantised, or None."""
    if chain.dtype != "uint8":
        return f"its input is {chain.dtype}, and only raw bytes are a quantised input as they are"
    if len(chain.layers) < 2:
        return "it has no hidden layer"
    if not all(layer.relu for layer in chain.layers[:-1]):
        return "a hidden layer has no ReLU behind it"
    return None


def quantise(chain: Chain, states: Tensor, bits: int = 8) -> QuantisedChain:
    """Quantise a chain with the ranges that it has on states.

    Args:
        chain: one that :func:`reason_against` has nothing against.
        states: ``[N, ...]`` uint8.
        bits: of the weights. With 7 the sums of two products fit into 16 bits, without which processors that have AVX2
            but no VNNI saturate.
    """
    largest = _largest(chain, states)
    hidden, in_scale = [], 1.0
    most = 2 ** (bits - 1) - 1
    for place, layer in enumerate(chain.layers[:-1]):
        outputs = len(layer.bias)
        weight_scale = np.abs(layer.weight).reshape(outputs, -1).max(1) / most
        weight_scale = np.where(weight_scale > 0, weight_scale, 1.0).astype(np.float32)
        shape = (outputs,) + (1,) * (layer.weight.ndim - 1)
        weight = np.clip(np.rint(layer.weight / weight_scale.reshape(shape)), -most, most).astype(np.int8)
        limits = np.iinfo(np.int32)
        bias = np.clip(np.rint(layer.bias.astype(np.float64) / (in_scale * weight_scale)), limits.min, limits.max)
        last = place == len(chain.layers) - 2
        out_scale = None if last else max(largest[place] / 255, 1e-8)
        hidden.append(QuantisedLayer(layer, weight, weight_scale, bias.astype(np.int32), in_scale, out_scale))
        in_scale = out_scale or in_scale
    return QuantisedChain(chain, hidden)


def _largest(chain: Chain, states: Tensor) -> list[float]:
    """The largest result of each layer."""
    found = [0.0] * len(chain.layers)
    for part in states.split(256):
        values = part.float()
        for place, layer in enumerate(chain.layers):
            values = _layer(values, layer.weight, layer.bias, layer)
            values = values.clamp(min=0) if layer.relu else values
            found[place] = max(found[place], values.max().item())
    return found


def _layer(values: Tensor, weight: np.ndarray, bias: np.ndarray, layer: ChainLayer) -> Tensor:
    own_weight, own_bias = (torch.from_numpy(array).to(values.dtype) for array in (weight, bias))
    if own_weight.ndim == 4:
        return F.conv2d(values, own_weight, own_bias, layer.stride)
    return F.linear(values.flatten(1), own_weight, own_bias)
