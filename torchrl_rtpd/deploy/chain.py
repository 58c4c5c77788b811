"""A network as a chain of convolutions and dense layers in numbers, for formats whose kernels are our own.

Scaling, normalisers and batch normalisation are folded into the layers, so that the first reads raw pixels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from torchrl_rtpd.deploy.selfcheck import make_inputs

__all__ = ["Chain", "ChainLayer", "chain_of"]

_ATEN = torch.ops.aten
_SAME = {  # operators that change no number
    _ATEN.to.dtype,
    _ATEN._to_copy.default,
    _ATEN.contiguous.default,
    _ATEN.clone.default,
    _ATEN.alias.default,
    _ATEN.detach.default,
    _ATEN.dropout.default,
    _ATEN.feature_dropout.default,
}
_FLATTENING = {_ATEN.flatten.using_ints, _ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default}
_RELUS = {_ATEN.relu.default, _ATEN.relu_.default}
_STEPS: dict[Any, Callable[[float, float], float]] = {
    _ATEN.mul.Tensor: operator.mul,
    _ATEN.mul_.Tensor: operator.mul,
    _ATEN.div.Tensor: operator.truediv,
    _ATEN.div_.Tensor: operator.truediv,
    _ATEN.add.Tensor: operator.add,
    _ATEN.add_.Tensor: operator.add,
    _ATEN.sub.Tensor: operator.sub,
    _ATEN.sub_.Tensor: operator.sub,
}


@dataclass
class ChainLayer:
    """One layer: multiply, add, and cut at zero if ``relu``.

    Attributes:
        weight: ``[out, in, kernel, kernel]`` of a convolution without padding, ``[out, in]`` of a dense layer, float32.
        bias: ``[out]``.
        stride: of a convolution, down and across.
        relu: True where negative results become 0.
        size: height and width of a convolution's result, (1, 1) of a dense layer's.
    """

    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int] = (1, 1)
    relu: bool = False
    size: tuple[int, int] = (1, 1)


@dataclass
class Chain:
    """Layers in turn on one input.

    Attributes:
        shape: of one observation, ``(C, H, W)`` or ``(N,)``.
        dtype: "uint8" or "float32".
        layers: in order; the last one's results are the values.
    """

    shape: tuple[int, ...]
    dtype: str
    layers: list[ChainLayer]

    def run(self, observations: Tensor) -> Tensor:
        """Return the values of observations ``[B, ...]`` in double precision."""
        values = observations.double()
        for layer in self.layers:
            weight, bias = (torch.from_numpy(array).double() for array in (layer.weight, layer.bias))
            if weight.ndim == 4:
                values = F.conv2d(values, weight, bias, layer.stride)
            else:
                values = F.linear(values.flatten(1), weight, bias)
            values = values.relu() if layer.relu else values
        return values


class _Other(ValueError):
    """A network that is no such chain."""


def chain_of(graph: torch.export.ExportedProgram, shape: tuple[int, ...], dtype: str) -> Chain | str:
    """Return a traced program's values as a chain, otherwise the reason why they are none.

    Args:
        graph: of a :class:`~torchrl_rtpd.deploy.program.Program` with one input.
        shape: of one observation.
        dtype: its type.
    """
    if len(graph.graph_signature.user_inputs) != 1:
        return f"it has {len(graph.graph_signature.user_inputs)} inputs"
    if dtype not in ("uint8", "float32"):
        return f"its input is {dtype}"
    try:
        chain = Chain(shape, dtype, _Reader(graph).layers)
    except _Other as reason:
        return str(reason)
    return chain if _computes_the_same(chain, graph) else "its layers alone compute other values"


@torch.no_grad()
def _computes_the_same(chain: Chain, graph: torch.export.ExportedProgram) -> bool:
    """Compare a chain with the program that it was read from on a few observations."""
    (drawn,) = make_inputs([{"shape": chain.shape, "dtype": chain.dtype}])
    observations = torch.from_numpy(drawn)
    wanted, found = graph.module()(observations)[0].double(), chain.run(observations)
    if wanted.shape != found.shape:
        return False
    return bool((wanted - found).abs().max() <= 1e-3 * max(float(wanted.max() - wanted.min()), 1e-6))


class _Reader:
    """Walk along a graph from the observations to the values."""

    def __init__(self, graph: torch.export.ExportedProgram) -> None:
        signature = graph.graph_signature
        held = {**graph.state_dict, **graph.constants}
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        names |= dict(signature.inputs_to_lifted_tensor_constants)
        self.values: dict[Node, Any] = {}
        self.layers: list[ChainLayer] = []
        self.scale: Any = 1.0  # of what the next layer reads: scale * x + shift
        self.shift: Any = 0.0
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                if node.name in names:
                    self.values[node] = held[names[node.name]]
                else:
                    self.stream = node
            elif node.op == "output":
                if not any(argument is self.stream for argument in node.args[0]):
                    raise _Other("its values are not the last layer's")
            elif node.op == "call_function" and not self._finished(graph):
                self._step(node)
        if not self.layers:
            raise _Other("it has no layer")
        self._fold_behind()

    def _finished(self, graph: torch.export.ExportedProgram) -> bool:
        """Return True if the stream is what the graph returns first: the choice that follows is no layer."""
        return graph.graph_signature.user_outputs[0] == self.stream.name

    def _step(self, node: Node) -> None:
        if node.target is _ATEN._assert_tensor_metadata.default or node.target is _ATEN.sym_size.int:
            return
        if not any(argument is self.stream for argument in node.all_input_nodes):
            self.values[node] = self._constant(node)
            return
        target: Any = node.target
        value = node.meta["val"]
        if target not in _FLATTENING and isinstance(value, Tensor) and not value.is_floating_point():
            raise _Other("it calculates in integers")
        if target in _FLATTENING:
            self._flatten(node)
        elif target is _ATEN.conv2d.default:
            self._convolve(node)
        elif target is _ATEN.linear.default:
            self._multiply(node)
        elif target in _RELUS:
            self._fold_behind()
            self.layers[-1].relu = True
        elif target is _ATEN.batch_norm.default:
            self._normalise(node)
        elif target in _STEPS and node.args[0] is self.stream:
            self._affine(node)
        elif target not in _SAME:
            raise _Other(f"{target} is neither a convolution, a dense layer nor ReLU")
        self.stream = node

    def _constant(self, node: Node) -> Any:
        def known(argument: Any) -> Any:
            if isinstance(argument, Node) and argument not in self.values:
                raise _Other("it has branches")
            return self.values[argument] if isinstance(argument, Node) else argument

        arguments = [known(argument) for argument in node.args]
        target: Any = node.target
        return target(*arguments, **{name: known(value) for name, value in node.kwargs.items()})

    def _argument(self, node: Node, place: int, default: Any = None) -> Any:
        value = node.args[place] if len(node.args) > place else default
        if isinstance(value, Node) and value not in self.values:
            raise _Other("it has branches")
        return self.values[value] if isinstance(value, Node) else value

    def _flatten(self, node: Node) -> None:
        if node.meta["val"].ndim != 2:
            raise _Other("it changes shapes other than by flattening all of them")

    def _convolve(self, node: Node) -> None:
        stride, padding, dilation = (
            self._argument(node, place, [default]) for place, default in ((3, 1), (4, 0), (5, 1))
        )
        if any(padding) or any(step != 1 for step in dilation) or self._argument(node, 6, 1) != 1:
            raise _Other("it has a convolution with padding, dilation or groups")
        rows, columns = node.meta["val"].shape[-2:]
        stride = (stride[0], stride[-1])
        self._add(node, stride, (int(rows), int(columns)))

    def _multiply(self, node: Node) -> None:
        if node.meta["val"].ndim != 2:
            raise _Other("it has a dense layer on more than one dimension")
        self._add(node, (1, 1), (1, 1))

    def _add(self, node: Node, stride: tuple[int, int], size: tuple[int, int]) -> None:
        """Append a layer with what is pending before it folded in."""
        weight = self._argument(node, 1).double()
        bias = self._argument(node, 2)
        bias = weight.new_zeros(len(weight)) if bias is None else bias.double()
        scale, shift = (_per_input(value, weight) for value in (self.scale, self.shift))
        bias = bias + (weight * shift).flatten(1).sum(1)
        self.layers.append(ChainLayer(_numbers(weight * scale), _numbers(bias), stride, False, size))
        self.scale, self.shift = 1.0, 0.0

    def _affine(self, node: Node) -> None:
        other = self._argument(node, 1)
        if isinstance(other, Tensor) and other.ndim > node.meta["val"].ndim:
            raise _Other("it has branches")
        if isinstance(other, Tensor):
            other = other.double()
            if other.ndim == node.meta["val"].ndim:
                other = other[0]
        step = _STEPS[node.target]
        if step in (operator.mul, operator.truediv):
            self.scale, self.shift = step(self.scale, other), step(self.shift, other)
        else:
            self.shift = step(self.shift, other * node.kwargs.get("alpha", 1))

    def _normalise(self, node: Node) -> None:
        """Batch normalisation by its running statistics."""
        weight, bias, mean, variance = (self._argument(node, place) for place in (1, 2, 3, 4))
        if self._argument(node, 5, False):
            raise _Other("it normalises by the batch")
        spread = (variance.double() + self._argument(node, 7, 1e-5)).rsqrt()
        scale = spread if weight is None else spread * weight.double()
        shift = -mean.double() * scale + (0.0 if bias is None else bias.double())
        if node.meta["val"].ndim == 4:
            scale, shift = scale[:, None, None], shift[:, None, None]
        self.scale, self.shift = self.scale * scale, self.shift * scale + shift

    def _fold_behind(self) -> None:
        """Fold what is pending into the layer before."""
        if not self.layers:
            raise _Other("it begins with ReLU")
        layer = self.layers[-1]
        if isinstance(self.scale, float) and isinstance(self.shift, float) and (self.scale, self.shift) == (1.0, 0.0):
            return
        if layer.relu:
            raise _Other("it scales what ReLU has cut, without a layer behind")
        outputs = len(layer.bias)
        scale, shift = (_per_output(value, outputs) for value in (self.scale, self.shift))
        shape = (outputs,) + (1,) * (layer.weight.ndim - 1)
        weight = (layer.weight * scale.reshape(shape)).astype(np.float32)
        bias = (layer.bias * scale + shift).astype(np.float32)
        self.layers[-1] = replace(layer, weight=weight, bias=bias)
        self.scale, self.shift = 1.0, 0.0


def _per_input(value: Any, weight: Tensor) -> Any:
    """A factor for each input of a layer, as its weights lie."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if weight.ndim == 4:
        if value.ndim != 3 or value.shape[1:] != (1, 1):
            raise _Other("it scales pixels by their place")
        return value
    if value.ndim != 1 or len(value) not in (1, weight.shape[1]):
        raise _Other("it scales features by their place")
    return value


def _per_output(value: Any, outputs: int) -> np.ndarray:
    flat = torch.as_tensor(value, dtype=torch.float64).flatten()
    if len(flat) not in (1, outputs):
        raise _Other("it scales features by their place")
    return flat.expand(outputs).numpy()


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.to(torch.float32).contiguous().numpy()
