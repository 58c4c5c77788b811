"""What TorchRL's own states leave out, or hold as objects that are no data.

Each class shows a part of a trainer as ``state_dict`` and ``load_state_dict`` of tensors and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import PrioritizedSampler, ReplayBuffer
from torchrl.record.loggers import Logger

from torchrl_rtpd.replay.storage import FrameStackStorage

__all__ = ["CollectorState", "LoggerState", "ReplayState"]


class CollectorState:
    """A collector in this process, with its environment if that can be saved, and the step it is about to take.

    TorchRL saves counters and policy. An environment can be saved if its class has a ``state_dict`` of its own; then
    what it showed last is saved, too, and the restored collector goes on in the middle of a game.

    Attributes:
        continued: whether the last :meth:`load_state_dict` restored the environment.
    """

    def __init__(self, collector: Any) -> None:
        self.collector = collector
        self.continued = False

    def _environment(self) -> Any:
        """The environment itself, below transforms, if it can be saved."""
        env = getattr(self.collector, "env", None)
        env = getattr(env, "base_env", env)
        return None if env is None or type(env).state_dict is nn.Module.state_dict else env

    def state_dict(self) -> dict[str, Any]:
        """TorchRL's state; environment and carried observation, where the former can be saved."""
        state = dict(self.collector.state_dict())
        environment = self._environment()
        if environment is not None:
            state["environment"] = environment.state_dict()
            state["carrier"] = self.collector._carrier.to_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; an environment that was not saved stays as it is."""
        state = dict(state_dict)
        saved, carrier = state.pop("environment", None), state.pop("carrier", None)
        environment = self._environment()
        self.continued = saved is not None and environment is not None
        if not hasattr(self.collector, "_carrier"):  # workers elsewhere
            self.collector.load_state_dict(state)
            return
        self.collector.env.load_state_dict(state.pop("env_state_dict"), strict=False)
        policy = state.pop("policy_state_dict", None)
        if policy is not None:
            self.collector._policy_w_state_dict.load_state_dict(policy)
        self.collector.load_state_dict(state, strict=False)
        if self.continued:
            environment.load_state_dict(saved)
            shown = TensorDict(carrier, self.collector._carrier.batch_size)
            self.collector._carrier.update(shown.to(self.collector._carrier.device))
            if "traj_pool" in state:  # TorchRL has counted the games that a reset would begin
                self.collector._traj_pool.load_state_dict(state["traj_pool"])


class ReplayState:
    """A replay buffer whose priorities are tensors: TorchRL's state holds the trees themselves."""

    _TREES = ("_sum_tree", "_min_tree")

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        # Then a file is read as it is copied into place.
        self.copies_what_it_loads = isinstance(buffer.storage, FrameStackStorage)

    def state_dict(self) -> dict[str, Any]:
        """TorchRL's, with leaves instead of trees."""
        state = dict(self.buffer.state_dict())
        if isinstance(self.buffer.sampler, PrioritizedSampler):
            sampler = dict(state["_sampler"])
            for name in self._TREES:
                sampler[name] = sampler[name][torch.arange(self.buffer.sampler._max_capacity)]
            state["_sampler"] = sampler
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; on another kind of device the generator stays as it is."""
        state = dict(state_dict)
        own, saved_rng = self.buffer._rng, state.get("_rng")
        if own is not None and saved_rng is not None and torch.device(saved_rng[1]).type != own.device.type:
            state["_rng"] = None  # TorchRL would sample with one of the device there
        if isinstance(self.buffer.sampler, PrioritizedSampler):
            own, saved = self.buffer.sampler.state_dict(), dict(state["_sampler"])
            for name in self._TREES:
                own[name][torch.arange(len(saved[name]))] = saved[name].clone()
            saved.update({name: own[name] for name in self._TREES})
            state["_sampler"] = saved
        self.buffer.load_state_dict(state)


class LoggerState:
    """How far a logger is: what it wrote after the checkpoint is hidden when the run is resumed."""

    def __init__(self, trainer: Any, logger: Logger) -> None:
        self.trainer, self.logger = trainer, logger

    def state_dict(self) -> dict[str, Any]:
        """The step it has logged up to."""
        return {"steps": self.trainer.collected_frames}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Tell TensorBoard that steps beyond this one are void; other services are told by their own resume options."""
        writer = getattr(getattr(self.logger, "experiment", None), "file_writer", None)
        if writer is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        steps = int(state_dict["steps"])
        writer.add_event(Event(step=steps + 1, file_version="brain.Event:2"))
        writer.add_event(Event(step=steps + 1, session_log=SessionLog(status=SessionLog.START)))
