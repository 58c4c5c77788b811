"""Students as ONNX files: one file each, free batch size, names of inputs and outputs, no paths of this machine.

Chains of layers are written in operators of opset 13 and file format 7, which runtimes read since 2020. Other networks
are written by :func:`torch.onnx.export` in opset 18.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrl_rtpd.deploy.chain import Chain, ChainLayer
from torchrl_rtpd.deploy.program import TRACING, Port, Program
from torchrl_rtpd.deploy.quantised import QuantisedChain, QuantisedLayer

__all__ = ["chain_model", "program_model", "quantised_model", "write"]

_OPSET, _FORMAT = 13, 7


def require_onnx() -> Any:
    """Import onnx.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "formats onnx and onnx_int8 need the onnx package; install the export extra: pip install "
            "'torchrl_rtpd[export]'."
        ) from error
    return onnx


def write(model: Any, path: Path, card: str) -> None:
    """Write a model with its card inside."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = "card", card
    model.producer_name = "torchrl_rtpd"
    path.write_bytes(model.SerializeToString())


class _Graph:
    """Nodes and constants of a model as they are added."""

    def __init__(self, dimensions: int, inputs: Sequence[Port]) -> None:
        self.onnx = require_onnx()
        self.taken = {port.name for port in inputs}
        self.dimensions = dimensions  # of what the next layer reads
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def free(self, name: str) -> str:
        """A name that no input has."""
        while name in self.taken:
            name += "_"
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        name = self.free(name)
        self.constants[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def add(self, operator: str, inputs: list[str], result: str, **attributes: Any) -> str:
        result = self.free(result)
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [result], name=result, **attributes))
        return result

    def layer(self, place: int, layer: ChainLayer, source: str, weight: str, bias: str, result: str = "") -> str:
        """A convolution or dense layer on ``source``."""
        result = result or f"layer{place}"
        if layer.weight.ndim == 4:
            return self.add("Conv", [source, weight, bias], result, strides=list(layer.stride))
        if self.dimensions > 2:
            source, self.dimensions = self.add("Flatten", [source], f"flat{place}", axis=1), 2
        return self.add("Gemm", [source, weight, bias], result, transB=1)

    def model(self, inputs: list[Port], outputs: list[Port]) -> Any:
        helper = self.onnx.helper
        graph = helper.make_graph(
            self.nodes,
            "student",
            [_info(self.onnx, port) for port in inputs],
            [_info(self.onnx, port) for port in outputs],
            list(self.constants.values()),
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_FORMAT)


def _info(onnx: Any, port: Port) -> Any:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype))
    return onnx.helper.make_tensor_value_info(port.name, kind, ["batch", *port.shape])


def chain_model(chain: Chain, program: Program) -> Any:
    """Return a chain in float32."""
    graph = _Graph(len(chain.shape) + 1, program.inputs)
    values = graph.add("Cast", [program.inputs[0].name], "pixels_float", to=graph.onnx.TensorProto.FLOAT)
    last = len(chain.layers) - 1
    for place, layer in enumerate(chain.layers):
        weight = graph.constant(f"weight{place}", layer.weight)
        bias = graph.constant(f"bias{place}", layer.bias)
        result = program.outputs[0].name if place == last and not layer.relu else ""
        values = graph.layer(place, layer, values, weight, bias, result)
        if layer.relu:
            values = graph.add("Relu", [values], f"relu{place}" if place < last else program.outputs[0].name)
    graph.add("ArgMax", [values], "action", axis=-1, keepdims=0)
    return graph.model(program.inputs, program.outputs)


def quantised_model(quantised: QuantisedChain, program: Program) -> Any:
    """Return a chain in 8-bit integers, each layer between operators that say its scales."""
    graph = _Graph(len(quantised.chain.shape) + 1, program.inputs)
    zero = graph.constant("zero", np.zeros((), np.uint8))
    steps = program.inputs[0].name
    for place, layer in enumerate(quantised.hidden):
        in_scale = graph.constant(f"in_scale{place}", np.array(layer.in_scale, np.float32))
        source = graph.add("DequantizeLinear", [steps, in_scale, zero], f"in{place}")
        weight, bias = _dequantised(graph, place, layer)
        values = graph.layer(place, layer.source, source, weight, bias)
        if layer.out_scale is None:
            values = graph.add("Relu", [values], f"relu{place}")
        else:  # which cuts at zero as well
            out_scale = graph.constant(f"out_scale{place}", np.array(layer.out_scale, np.float32))
            steps = graph.add("QuantizeLinear", [values, out_scale, zero], f"steps{place}")
    head = len(quantised.hidden)
    weight = graph.constant("head_weight", quantised.head.weight)
    bias = graph.constant("head_bias", quantised.head.bias)
    values = graph.layer(head, quantised.head, values, weight, bias, program.outputs[0].name)
    graph.add("ArgMax", [values], "action", axis=-1, keepdims=0)
    return graph.model(program.inputs, program.outputs)


def _dequantised(graph: _Graph, place: int, layer: QuantisedLayer) -> tuple[str, str]:
    scale = graph.constant(f"weight_scale{place}", layer.weight_scale)
    zeros = graph.constant(f"weight_zero{place}", np.zeros(len(layer.bias), np.int8))
    weight = graph.constant(f"weight{place}", layer.weight)
    weight_float = graph.add("DequantizeLinear", [weight, scale, zeros], f"weight_float{place}", axis=0)
    bias_scale = layer.weight_scale * np.array(layer.in_scale, np.float32)
    if layer.out_scale is None:  # runtimes compute this one in floats: one operator fewer, the same numbers
        return weight_float, graph.constant(f"bias{place}", layer.bias.astype(np.float32) * bias_scale)
    named = [
        graph.constant(f"bias{place}", layer.bias),
        graph.constant(f"bias_scale{place}", bias_scale),
        graph.constant(f"bias_zero{place}", np.zeros(len(layer.bias), np.int32)),
    ]
    return weight_float, graph.add("DequantizeLinear", named, f"bias_float{place}", axis=0)


def program_model(program: Program, path: Path) -> Any:
    """Return any program, written by PyTorch; ``path`` is for a file in between.

    Raises:
        ValueError: an operator that ONNX has not.
        ImportError: onnxscript is not installed.
    """
    onnx = require_onnx()
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "networks other than chains of layers need onnxscript for format onnx; install the export extra: "
            "pip install 'torchrl_rtpd[export]'."
        ) from error
    sizes = ({0: torch.export.Dim.DYNAMIC},) * len(program.inputs)
    try:
        with TRACING, _quiet(), torch.no_grad():
            torch.onnx.export(
                program,
                tuple(program.example),
                path,
                input_names=[port.name for port in program.inputs],
                output_names=[port.name for port in program.outputs],
                dynamic_shapes=(sizes,),
                opset_version=18,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        model = onnx.load(path)
    except Exception as error:  # torch.onnx raises of many kinds
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"the student cannot be written as ONNX: {reason}; export it as pt2.") from error
    finally:
        path.unlink(missing_ok=True)
    _strip(model, program)
    return model


def _strip(model: Any, program: Program) -> None:
    """Remove traces with paths, and say the batch dimension by its name."""
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in getattr(graph, "value_info", ()):
            del value.metadata_props[:]
    del model.graph.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    named: Mapping[str, Port] = {port.name: port for port in (*program.inputs, *program.outputs)}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in named and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter says of torchvision and of the order of batch dimensions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
