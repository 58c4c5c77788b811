"""Loan of other parameters to a network, such as those of its target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import nn

__all__ = ["ParameterSwap"]


class ParameterSwap:
    """Loan of other parameters to a network for a while.

    ``params.to_module(network)`` in a fraction of its time, which is most of a tiny student's: nothing happens where
    the network holds the parameters already, and elsewhere they are put in place one by one.
    """

    def __init__(self, network: TensorDictModuleBase) -> None:
        self._network = network
        self._slots: list[tuple[dict[str, Any], str, str]] | None = None  # where each one lies; None: not looked yet
        # PyTorch's recurrent layers keep their weights in a list in addition, which to_module renews.
        self._has_lists = any(isinstance(module, nn.RNNBase) for module in network.modules())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slots": None}  # a copy has slots of its own

    @contextmanager
    def __call__(self, params: TensorDictParams) -> Iterator[TensorDictModuleBase]:
        """The network with ``params``, to be run inside the context."""
        network = self._network
        slots = [] if torch.compiler.is_compiling() else self._slots_of(params)
        if slots:
            parameters, buffers = params._parameters, params._buffers
            tensors = [parameters[name] if name in parameters else buffers[name] for *_, name in slots]
            own = [store[leaf] for store, leaf, _ in slots]
            if all(tensor is mine for tensor, mine in zip(tensors, own, strict=True)):
                yield network
                return
        if not slots or self._has_lists:
            with params.to_module(network, preserve_module_state=False):
                yield network
            return
        try:
            for (store, leaf, _), tensor in zip(slots, tensors, strict=True):
                store[leaf] = tensor
            yield network
        finally:
            for (store, leaf, _), tensor in zip(slots, own, strict=True):
                store[leaf] = tensor

    def _slots_of(self, params: TensorDictParams) -> list[tuple[dict[str, Any], str, str]]:
        if not isinstance(params, TensorDictParams):
            return []
        if self._slots is None:
            self._slots = _slots(self._network, params)
        return self._slots


def _slots(network: nn.Module, params: TensorDictParams) -> list[tuple[dict[str, Any], str, str]]:
    """The dictionary that holds each parameter or buffer, its key there and its name; none where that is not simple."""
    slots = []
    for prefix, module in network.named_modules(remove_duplicate=False):
        for store in (module._parameters, module._buffers):
            slots += [
                (store, leaf, f"{prefix}.{leaf}".lstrip(".")) for leaf, value in store.items() if value is not None
            ]
    names = {*params._parameters, *params._buffers}
    return slots if {name for *_, name in slots} == names else []
