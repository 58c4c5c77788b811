"""Networks as they will be deployed, for a run's report: latency by onnxruntime, in floats and in 8-bit integers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_rtpd.deploy.latency import measure_deployment
from torchrl_rtpd.envs.resets import reset_all
from torchrl_rtpd.envs.streams import streams_kept
from torchrl_rtpd.evaluation.scores import latency_ms
from torchrl_rtpd.networks.memory import START_KEY, Memory

__all__ = ["deployed_row", "first_step", "states_for"]


@streams_kept()  # from which an environment may draw at a reset
def first_step(network: TensorDictModule, env: EnvBase) -> TensorDictBase:
    """Return what a network reads at the first step of a game, batch ``[1]`` on the CPU; the environment is reset.

    Args:
        network: a policy; of a recurrent one the memory that it begins with is added.
        env: an environment that it plays in.

    Raises:
        KeyError: a network that remembers, and nothing says what it begins with.
    """
    step, starts = reset_all(env).reshape(-1)[:1].cpu(), torch.ones(1, dtype=torch.bool)
    if START_KEY in network.in_keys and step.get(START_KEY, None) is None:
        step.set(START_KEY, starts[:, None])
    memory = Memory(network)
    return memory.recall(step, starts) if memory else step


def states_for(network: TensorDictModule, states: TensorDictBase | None) -> Tensor | None:
    """Return the entry of kept states ``[K]`` that a network of one input reads; None if there is none.

    Args:
        network: a policy.
        states: those that the first network of a run has met in its final games; they hold what that one reads.
    """
    if states is None or len(network.in_keys) != 1:
        return None
    return states.get(network.in_keys[0], None)


@streams_kept()
def deployed_row(
    name: str, network: TensorDictModule, env: EnvBase, states: TensorDictBase | None = None
) -> dict[str, Any]:
    """Entries of ``results.json`` on the time of a decision, for one observation on one thread.

    Args:
        name: of the network, for the warnings.
        network: a policy; not changed.
        env: an environment that it plays in; it is reset.
        states: ``[K]`` of whole games, from which 8-bit integers take their ranges.

    Returns:
        ``latency_ms`` and ``latency_runtime``, "onnxruntime", or "torch" where that is not installed or cannot run the
        network; both None without any. By onnxruntime also ``file_bytes``. For networks of bytes also
        ``latency_int8_ms``, ``file_bytes_int8``, and ``agreement_int8`` and ``regret_int8``, in 8-bit integers against
        the network's own floats.

    Warns:
        UserWarning: a network that cannot be exported, whose latency is that of eager PyTorch; or one without any.
    """
    try:
        measured = measure_deployment(network, first_step(network, env), states_for(network, states))
    except Exception as error:  # of many libraries; a report of a run of days must not end here
        warnings.warn(
            f"{name!r} has the latency of eager PyTorch, since it cannot be exported: {_line(error)}", stacklevel=2
        )
        return _eager_row(name, network, env)
    row: dict[str, Any] = {"latency_ms": measured.latency.milliseconds, "latency_runtime": measured.latency.runtime}
    if measured.bytes is not None:
        row["file_bytes"] = measured.bytes
    if (found := measured.integers) is not None:
        row |= {"latency_int8_ms": found.milliseconds, "agreement_int8": found.agreement, "regret_int8": found.regret}
        row["file_bytes_int8"] = found.bytes
    return row


def _eager_row(name: str, network: TensorDictModule, env: EnvBase) -> dict[str, Any]:
    try:
        step = reset_all(env).reshape(-1)[:1]
        return {"latency_ms": latency_ms(network, step), "latency_runtime": "torch"}
    except Exception as error:  # as above
        warnings.warn(f"the report has no latency of {name!r}: {_line(error)}", stacklevel=3)
        return {"latency_ms": None, "latency_runtime": None}


def _line(error: Exception) -> str:
    """First line of what an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)
