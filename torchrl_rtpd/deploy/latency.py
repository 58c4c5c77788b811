"""Time that a network takes where it is deployed: in onnxruntime, not in eager PyTorch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from torch import nn

from torchrl_rtpd.deploy.chain import chain_of
from torchrl_rtpd.deploy.check import _latency, onnx_session
from torchrl_rtpd.deploy.onnx_file import chain_model, program_model
from torchrl_rtpd.deploy.program import Example, Program, traced

__all__ = ["Latency", "deployed_latency"]


class Latency(NamedTuple):
    """Median time for one observation on one thread.

    Attributes:
        milliseconds: of values and greedy action.
        runtime: "onnxruntime", or "torch" where that is not installed or cannot run the network.
    """

    milliseconds: float
    runtime: str


def deployed_latency(network: nn.Module, example: Example = None) -> Latency:
    """Time a network of any number of parts as it will be deployed.

    Eager PyTorch takes about as long for a tiny network as for a large one, since most of its time is spent between
    the kernels.

    Args:
        network: an actor or a plain module; not changed.
        example: as for :func:`~torchrl_rtpd.deploy.export_student`.

    Raises:
        ValueError: as :func:`~torchrl_rtpd.deploy.export_student`.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> latency = deployed_latency(nn.Linear(4, 2), torch.zeros(1, 4))
        >>> latency.milliseconds > 0, latency.runtime in ("onnxruntime", "torch")
        (True, True)
    """
    program = Program(network, example)
    single = [tensor[:1] for tensor in program.example]
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError:
        return Latency(_latency(lambda *inputs: program.run(*inputs), single), "torch")  # type: ignore[arg-type,return-value]
    graph = traced(program)
    chain = chain_of(graph, program.inputs[0].shape, program.inputs[0].dtype)
    if isinstance(chain, str):
        with tempfile.TemporaryDirectory() as folder:
            model = program_model(program, Path(folder) / "network.onnx")
    else:
        model = chain_model(chain, program)
    session = onnx_session(onnxruntime, model.SerializeToString())
    given = {port.name: tensor.numpy() for port, tensor in zip(program.inputs, single, strict=True)}
    return Latency(_latency(lambda: session.run(None, given), []), "onnxruntime")
