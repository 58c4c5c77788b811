"""Parts of a trainer as plain states: what TorchRL's own states leave out, or hold as objects that are no data.

Each class shows a part of a trainer as ``state_dict`` and ``load_state_dict`` of tensors and plain values.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.checkpoint import GlobalRNGState
from torchrl.data import (
    CompressedListStorage,
    ImmutableDatasetWriter,
    PrioritizedSampler,
    ReplayBuffer,
    StorageEnsemble,
    TensorDictMaxValueWriter,
    TensorStorage,
)
from torchrl.data.replay_buffers import SamplerEnsemble, WriterEnsemble
from torchrl.objectives import LossModule
from torchrl.record.loggers import Logger

from torchrl_rtpd.files.states import refuse_non_tensors, with_batch_sizes
from torchrl_rtpd.replay.storage import FrameStackStorage

__all__ = ["CollectorState", "LoggerState", "LossState", "RandomState", "ReplayState"]


class CollectorState:
    """A collector in this process, with its environment if that can be saved, and the step it is about to take.

    TorchRL saves counters and policy. An environment can be saved if its class has a ``state_dict`` of its own; then
    its last observation is saved as well, and the restored collector goes on in the middle of a game.

    Attributes:
        continued: True if the last :meth:`load_state_dict` restored the environment.
    """

    def __init__(self, collector: Any) -> None:
        self.collector = collector
        self.continued = False

    def _environment(self) -> Any:
        """Return the environment itself, below transforms, if it can be saved."""
        env = getattr(self.collector, "env", None)
        env = getattr(env, "base_env", env)
        return None if env is None or type(env).state_dict is nn.Module.state_dict else env

    def state_dict(self) -> dict[str, Any]:
        """Return TorchRL's state; environment and carried observation, if the former can be saved."""
        found = self.collector.state_dict()
        if not isinstance(found, Mapping):  # a state for each Ray actor
            return {"actors": list(found)}
        state = dict(found)
        environment = self._environment()
        if environment is not None and hasattr(self.collector, "_carrier"):
            state["environment"] = environment.state_dict()
            state["carrier"] = self.collector._carrier.to_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; an environment that was not saved stays as it is.

        So does one of another number of games.
        """
        state = dict(state_dict)
        if "actors" in state:
            self.continued = False
            self.collector.load_state_dict(state["actors"])
            return
        saved, carrier = state.pop("environment", None), state.pop("carrier", None)
        environment = self._environment()
        self.continued = False
        if not hasattr(self.collector, "_carrier"):  # workers elsewhere
            self.collector.load_state_dict(state)
            return
        own = self.collector._carrier
        if saved is not None and environment is not None:
            self.continued = len(carrier["done"]) == len(own["done"])
        _load_fitting(self.collector.env, state.pop("env_state_dict"))
        policy = state.pop("policy_state_dict", None)
        if policy is not None:
            self.collector._policy_w_state_dict.load_state_dict(policy)
        self.collector.load_state_dict(state, strict=False)
        if self.continued:
            environment.load_state_dict(saved)
            own.update(TensorDict(carrier, own.batch_size).to(own.device))
            if "traj_pool" in state:  # TorchRL has counted the games that a reset would begin
                self.collector._traj_pool.load_state_dict(state["traj_pool"])


def _load_fitting(env: Any, saved: Mapping[str, Any]) -> None:
    """Restore transforms; entries of another shape, such as one place a game, stay as they are."""
    own = env.state_dict()
    fitting = {
        key: value
        for key, value in saved.items()
        if not (isinstance(value, Tensor) and isinstance(own.get(key), Tensor)) or own[key].shape == value.shape
    }
    env.load_state_dict(fitting, strict=False)


_LAZY = {"_value_estimator": "value_estimator", "target_entropy_buffer": "target_entropy"}
"""Parts of TorchRL's losses that are made when they are first asked for, and the properties that ask."""


class LossState:
    """A teacher's loss, with or without the parts that TorchRL's losses make at their first batch.

    These are value estimators and target entropies. A state with such a part fits a loss that has none yet, and one
    without fits a loss that has one.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss

    def state_dict(self) -> dict[str, Any]:
        """Return the loss's own state."""
        return self.loss.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        state: Any = copy.copy(state_dict)
        for key in state.keys() - self.loss.state_dict().keys():
            *path, name = key.split(".")
            while path and name not in _LAZY:
                name = path.pop()
            part = self.loss.get_submodule(".".join(path)) if name in _LAZY else None
            if isinstance(part, LossModule):
                getattr(part, _LAZY[name])  # made now, as at a first batch
        for key, value in self.loss.state_dict().items():
            if not _LAZY.keys().isdisjoint(key.split(".")):
                state.setdefault(key, value)
        self.loss.load_state_dict(state)


class RandomState(GlobalRNGState):
    """The random generators of Python, numpy and torch, those of devices where there are such devices."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; generators of devices that this process lacks are left out."""
        state, counts = dict(state_dict), {"cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count()}
        for kind, count in counts.items():
            if f"torch_{kind}" in state:
                state[f"torch_{kind}"] = state[f"torch_{kind}"][:count]
                if not count:
                    del state[f"torch_{kind}"]
        if not torch.backends.mps.is_available():
            state.pop("torch_mps", None)
        super().load_state_dict(state)


class ReplayState:
    """A replay buffer as data: nesting and batch sizes of its entries kept, priorities as tensors.

    TorchRL's state holds segment trees and compressed items as objects, and none of a ``TensorDictMaxValueWriter``.

    Attributes:
        restored: False where the last :meth:`load_state_dict` was given a replay of another size or for other
            environments; then the buffer stays as it is, and a warning says so.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        self.restored = True
        # Then a file is read as it is copied into place.
        self.copies_what_it_loads = isinstance(buffer.storage, FrameStackStorage)

    def state_dict(self) -> dict[str, Any]:
        """Return TorchRL's state, as data."""
        refuse_non_tensors(self.buffer.storage)
        with _without_writer(self.buffer):
            state = dict(self.buffer.state_dict())
        state["_writer"] = _writer_state(self.buffer.writer)
        state["_storage"] = _storage_state(self.buffer.storage, state["_storage"])
        state["_sampler"] = _sampler_state(self.buffer.sampler, state["_sampler"])
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; on another kind of device the generator stays as it is."""
        state = dict(state_dict)
        reason = _misfit(self.buffer.storage, state["_storage"])
        self.restored = reason is None
        if reason is not None:
            warnings.warn(f"the saved replay is not used: {reason}.", stacklevel=2)
            return
        own, saved_rng = self.buffer._rng, state.get("_rng")
        if own is not None and saved_rng is not None and torch.device(saved_rng[1]).type != own.device.type:
            state["_rng"] = None  # TorchRL would sample with one of the device there
        state["_storage"] = _storage_to_load(self.buffer.storage, state["_storage"])
        state["_sampler"] = _sampler_to_load(self.buffer.sampler, state["_sampler"])
        writer = state["_writer"]
        with _without_writer(self.buffer), warnings.catch_warnings():
            # The storage is allocated by what it loads.
            warnings.filterwarnings("ignore", message="Loading the storage on an uninitialized TensorDict")
            self.buffer.load_state_dict(state)
        _load_writer(self.buffer.writer, writer)
        _to_own_device(self.buffer.storage)

    def mend_priorities(self) -> None:
        """Give entries whose priority is not finite that of a new entry: one of them makes every draw fail."""
        sampler = self.buffer.sampler
        if not isinstance(sampler, PrioritizedSampler):
            return
        leaves = sampler._sum_tree[torch.arange(sampler._max_capacity)]
        bad = (~leaves.isfinite()).nonzero().view(-1)
        largest = sampler._max_priority[0]
        if largest is not None and not math.isfinite(largest):
            sampler._max_priority = (None, None)
        if len(bad):
            sampler.mark_update(bad, storage=self.buffer.storage)


@contextmanager
def _without_writer(buffer: ReplayBuffer) -> Iterator[None]:
    """Leave the writer out of a buffer's state: one class of writers refuses to give its own."""
    writer, buffer._writer = buffer._writer, ImmutableDatasetWriter()
    try:
        yield
    finally:
        buffer._writer = writer


def _storage_state(storage: Any, state: Any) -> Any:
    if isinstance(storage, StorageEnsemble):
        return {str(i): _storage_state(part, state[str(i)]) for i, part in enumerate(storage._storages)}
    if isinstance(storage, CompressedListStorage):
        return {"items": [None if item is None else storage.get(i) for i, item in enumerate(storage._storage)]}
    return state


def _storage_to_load(storage: Any, state: Any) -> Any:
    if isinstance(storage, StorageEnsemble):
        return {str(i): _storage_to_load(part, state[str(i)]) for i, part in enumerate(storage._storages)}
    if isinstance(storage, CompressedListStorage):
        items = [item.to(storage.device) if isinstance(item, TensorDictBase) else item for item in state["items"]]
        compressed = [(None, None) if item is None else storage._compress_item(item) for item in items]
        return {"_storage": [data for data, _ in compressed], "_metadata": [about for _, about in compressed]}
    held = state.get("_storage")
    if isinstance(storage, TensorStorage) and isinstance(held, Mapping) and held and not hasattr(held, "_metadata"):
        return {**state, "_storage": _nested_again(held, storage.ndim)}
    return state


def _nested_again(state: Mapping[str, Any], ndim: int) -> Any:
    """Return a storage's entries with the batch sizes that checkpoints before version 3 left out."""
    size = next(iter(state.values())).shape[:ndim]
    levels = {"", *(key[:at] for key in state for at, letter in enumerate(key) if letter == ".")}
    return with_batch_sizes(state, dict.fromkeys(sorted(levels), size))


def _misfit(storage: Any, state: Any) -> str | None:
    """Say why a saved storage cannot be used in this one, None if it can."""
    if isinstance(storage, StorageEnsemble):
        reasons = (_misfit(part, state[str(i)]) for i, part in enumerate(storage._storages))
        return next((reason for reason in reasons if reason is not None), None)
    if isinstance(storage, FrameStackStorage):
        own, saved = storage.state_dict()["sizes"], state["sizes"]
        return None if own == saved else f"its sizes are {saved}, those of this one {own}"
    if not isinstance(storage, TensorStorage):
        return None
    held = state["_storage"]
    tensor = held if isinstance(held, Tensor) else next(iter(held.values()), None)
    if tensor is None:
        return None
    size = tensor.shape[: storage.ndim]
    fits = abs(size.numel() - storage.max_size) < size[1:].numel()
    return None if fits else f"it has {size.numel()} places, this one {storage.max_size}"


def _to_own_device(storage: Any) -> None:
    """Move what a storage has loaded: it takes a device from its file."""
    held = getattr(storage, "_storage", None)
    device = getattr(storage, "device", None)
    if isinstance(storage, TensorStorage) and isinstance(device, torch.device) and isinstance(held, TensorDictBase):
        if any(leaf.device != torch.empty(0, device=device).device for leaf in held.values(True, True)):
            storage._storage = held.to(device)


_TREES = ("_sum_tree", "_min_tree")


def _sampler_state(sampler: Any, state: Any) -> Any:
    if isinstance(sampler, SamplerEnsemble):
        return {str(i): _sampler_state(part, state[str(i)]) for i, part in enumerate(sampler._samplers)}
    if isinstance(sampler, PrioritizedSampler):
        places = torch.arange(sampler._max_capacity)
        return {**state, **{name: state[name][places] for name in _TREES}}
    return state


def _sampler_to_load(sampler: Any, state: Any) -> Any:
    if isinstance(sampler, SamplerEnsemble):
        return {str(i): _sampler_to_load(part, state[str(i)]) for i, part in enumerate(sampler._samplers)}
    if isinstance(sampler, PrioritizedSampler):
        own = sampler.state_dict()
        for name in _TREES:
            own[name][torch.arange(len(state[name]))] = state[name].clone()
        return {**state, **{name: own[name] for name in _TREES}}
    return state


def _writer_state(writer: Any) -> Any:
    if isinstance(writer, WriterEnsemble):
        return {str(i): _writer_state(part) for i, part in enumerate(writer._writers)}
    if isinstance(writer, TensorDictMaxValueWriter):
        ranks = [[float(rank), int(place)] for rank, place in writer._current_top_values]
        return {"cursor": writer._cursor, "write_count": writer._write_count, "ranks": ranks}
    return writer.state_dict()


def _load_writer(writer: Any, state: Any) -> None:
    if isinstance(writer, WriterEnsemble):
        for i, part in enumerate(writer._writers):
            _load_writer(part, state[str(i)])
    elif isinstance(writer, TensorDictMaxValueWriter):
        writer._cursor, writer._write_count = state["cursor"], state["write_count"]
        writer._current_top_values = [(rank, place) for rank, place in state["ranks"]]
    else:
        writer.load_state_dict(state)


class LoggerState:
    """Position of a logger: entries that it wrote after the checkpoint are hidden when the run is resumed."""

    def __init__(self, trainer: Any, logger: Logger) -> None:
        self.trainer, self.logger = trainer, logger

    def state_dict(self) -> dict[str, Any]:
        """Return the step up to which the run has logged."""
        return {"steps": self.trainer.collected_frames}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Tell TensorBoard that later steps are void; other services are told by their own resume options."""
        writer = getattr(getattr(self.logger, "experiment", None), "file_writer", None)
        if writer is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        steps = int(state_dict["steps"])
        writer.add_event(Event(step=steps + 1, file_version="brain.Event:2"))
        writer.add_event(Event(step=steps + 1, session_log=SessionLog(status=SessionLog.START)))
