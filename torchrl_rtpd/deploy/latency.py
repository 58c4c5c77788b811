"""Time that a network takes where it is deployed: in onnxruntime instead of eager PyTorch, in floats and integers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchrl_rtpd.deploy.chain import Chain, chain_of
from torchrl_rtpd.deploy.check import _latency, onnx_session
from torchrl_rtpd.deploy.onnx_file import chain_model, program_model, quantised_model
from torchrl_rtpd.deploy.program import Example, Program, traced
from torchrl_rtpd.deploy.quantised import ONNX_BITS, quantise, reason_against
from torchrl_rtpd.deploy.states import LEAST_STATES
from torchrl_rtpd.envs.streams import streams_kept
from torchrl_rtpd.functional.discrete import teacher_regret

__all__ = ["Deployment", "IntegerFile", "Latency", "deployed_latency", "measure_deployment"]


class Latency(NamedTuple):
    """Median time for one observation on one thread.

    Attributes:
        milliseconds: of values and greedy action.
        runtime: "onnxruntime", or "torch" where that is not installed or cannot run the network.
    """

    milliseconds: float
    runtime: str


class IntegerFile(NamedTuple):
    """A network in 8-bit integers beside itself in floats, both run by onnxruntime.

    Attributes:
        milliseconds: median time for one observation on one thread.
        agreement: share of the states in which both choose the same action.
        regret: mean of what the integers' action costs in the float network's values, in their standard deviations over
            actions.
        bytes: of the ONNX file, without the metadata that :func:`~torchrl_rtpd.deploy.export_student` adds.
    """

    milliseconds: float
    agreement: float
    regret: float
    bytes: int


class Deployment(NamedTuple):
    """Measures of a network as it will be deployed.

    Attributes:
        latency: in floats.
        integers: in 8-bit integers; None without onnxruntime or states, and for networks that cannot be quantised.
        bytes: of the ONNX file in floats, likewise without metadata; None without onnxruntime.
    """

    latency: Latency
    integers: IntegerFile | None
    bytes: int | None


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
    return measure_deployment(network, example).latency


@streams_kept()
def measure_deployment(network: nn.Module, example: Example = None, states: Tensor | None = None) -> Deployment:
    """Time a network as :func:`deployed_latency` does, and in 8-bit integers if there are states to take ranges from.

    Warning: agreement and regret are measured on the very states that the ranges come from.

    Args:
        network: an actor or a plain module; not changed.
        example: as for :func:`~torchrl_rtpd.deploy.export_student`.
        states: of whole games, uint8 ``[N, ...]``; fewer than 512, and states of another type, are not used.

    Raises:
        ValueError: as :func:`~torchrl_rtpd.deploy.export_student`.

    Examples:
        >>> from torchrl.data import Categorical
        >>> from torchrl_rtpd.networks import make_actor
        >>> measured = measure_deployment(make_actor("net17", Categorical(6), seed=0))
        >>> measured.latency.milliseconds > 0, measured.integers
        (True, None)
    """
    program = Program(network, example)
    single = [tensor[:1] for tensor in program.example]
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError:
        return Deployment(Latency(_eager_latency(program, single), "torch"), None, None)
    chain = chain_of(traced(program), program.inputs[0].shape, program.inputs[0].dtype)
    if isinstance(chain, str) or not program.chooses_one:
        with tempfile.TemporaryDirectory() as folder:
            model = program_model(program, Path(folder) / "network.onnx")
    else:
        model = chain_model(chain, program)
    file = model.SerializeToString()
    session = onnx_session(onnxruntime, file)
    given = {port.name: tensor.numpy() for port, tensor in zip(program.inputs, single, strict=True)}
    latency = Latency(_latency(lambda: session.run(None, given), []), "onnxruntime")
    if isinstance(chain, str) or states is None or not _can_quantise(chain, program, states):
        return Deployment(latency, None, len(file))
    small = quantised_model(quantise(chain, states.cpu(), ONNX_BITS), program).SerializeToString()
    integers = onnx_session(onnxruntime, small)
    wanted, found = (_values(own, program, states) for own in (session, integers))
    agreement = (wanted.argmax(-1) == found.argmax(-1)).float().mean().item()
    regret = teacher_regret(wanted, found).mean().item()
    milliseconds = _latency(lambda: integers.run(None, given), [])
    return Deployment(latency, IntegerFile(milliseconds, agreement, regret, len(small)), len(file))


def _eager_latency(program: Program, single: list[Tensor]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _latency(lambda: program.run(*single), [])  # type: ignore[arg-type,return-value]
    finally:
        torch.set_num_threads(threads)


def _can_quantise(chain: Chain, program: Program, states: Tensor) -> bool:
    """Return True if :func:`~torchrl_rtpd.deploy.export_student` would write the network in integers."""
    fits = states.dtype == torch.uint8 and states.shape[1:] == program.example[0].shape[1:]
    return fits and program.chooses_one and len(states) >= LEAST_STATES and reason_against(chain) is None


def _values(session: Any, program: Program, states: Tensor) -> Tensor:
    """Values of many states, a few at once."""
    outputs, name = [program.outputs[0].name], program.inputs[0].name
    parts = [session.run(outputs, {name: part.numpy()})[0] for part in states.cpu().split(64)]
    return torch.cat([torch.from_numpy(part) for part in parts])
