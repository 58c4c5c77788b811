"""Collectors in worker processes and on Ray, with the same weights and students, which name a worker that died."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import MultiAsyncCollector, MultiSyncCollector
from torchrl.collectors.distributed import RayCollector

from torchrl_rtpd.collectors.policy import TeacherStudentPolicy
from torchrl_rtpd.schedules import RunState

__all__ = []


class _PolicyWeights:
    """What our collectors add to TorchRL's: weights may be sent in parts, and students are sent by the trainer's hook.

    Attributes:
        dual_policy: the policy as it was built here, of the very networks that were given; workers have copies.
    """

    dual_policy: TeacherStudentPolicy

    def update_policy_weights_(self, policy_or_weights: Any = None, **kwargs: Any) -> None:
        """Update what is given, and leave the rest.

        That may be a whole policy or its weights, parts of them (:meth:`TeacherStudentPolicy.weights`), or the teacher
        alone by its network or weights, which is what TorchRL's ``DQNTrainer`` sends without exploration. Everything
        else is as in TorchRL's collectors.
        """
        weights = policy_or_weights
        if isinstance(weights, TensorDictModuleBase):
            weights = TensorDict.from_module(weights)
        if isinstance(weights, TensorDictBase):
            own = TensorDict.from_module(self.dual_policy.teacher)
            if set(weights.keys(True, True)) == set(own.keys(True, True)):
                weights = TensorDict({"module": TensorDict({"0": weights})})
        super().update_policy_weights_(weights, **kwargs)  # type: ignore[misc]

    def update_students(self, state: RunState) -> dict[str, float]:
        """Set who acts from now on and send the students' weights to whoever collects.

        TorchRL's trainers send the teacher's. Called by :class:`~torchrl_rtpd.trainers.RealTimeDistillTrainer` once a
        batch. Where no student may act or be recorded it does nothing.

        Args:
            state: the run now, for an ``acting`` that depends on it.

        Returns:
            The probability of each student that may act, by name.
        """
        policy = self.dual_policy
        probabilities = policy.update_acting(state) if policy.mixed else {}
        if policy.mixed or policy.record:
            self.update_policy_weights_(policy.weights("students"))
        return probabilities


class _WatchedWorkers(_PolicyWeights):
    """Worker processes. If one dies, that is said while batches are awaited or weights sent.

    TorchRL looks after those it waits for, but not while they write into a replay buffer on their own, and its report
    can fail itself where it closes a process that has not ended yet.
    """

    procs: list[Any]

    def iterator(self) -> Iterator[TensorDictBase]:
        """TorchRL's batches."""
        try:
            yield from super().iterator()  # type: ignore[misc]
        except Exception as error:
            # A worker's connection breaks a moment before its sentinel, and that a moment before it has an exit code.
            workers = {process.sentinel: process for process in self.procs if not process._closed}
            for sentinel in connection.wait(workers, timeout=1.0):
                workers[sentinel].join(timeout=1.0)
            self._check_workers(error)
            raise

    def update_policy_weights_(self, policy_or_weights: Any = None, **kwargs: Any) -> None:
        """Update what is given, and leave the rest."""
        self._check_workers()
        super().update_policy_weights_(policy_or_weights, **kwargs)

    def _check_workers(self, error: Exception | None = None) -> None:
        dead = [
            (process.exitcode == -signal.SIGTERM, number, process.exitcode)  # TorchRL ends the others by this signal
            for number, process in enumerate(getattr(self, "procs", ()))
            if not process._closed and process.exitcode
        ]
        if dead:
            _, number, exit_code = min(dead)
            raise RuntimeError(
                f"a collector's workers must live as long as its run: worker {number} died (exit code {exit_code}); "
                "its own error, if any, is printed above, and what was stored is kept."
            ) from error


class _SyncCollector(_WatchedWorkers, MultiSyncCollector):
    pass


class _AsyncCollector(_WatchedWorkers, MultiAsyncCollector):
    pass


class _RayCollector(_PolicyWeights, RayCollector):
    """Ray's weight transport knows whole policies only: what is not given is sent as it was sent last."""

    def __init__(self, *args: Any, policy: TeacherStudentPolicy, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # Untrue here: without a policy of its own it takes the weights that are sent below.
            warnings.filterwarnings("ignore", message="The policy is not an nn.Module", category=UserWarning)
            super().__init__(*args, **kwargs)
        self.requested_frames_per_batch = self.frames_per_batch  # what len() asks for
        self.dual_policy = policy
        self._sent = policy.weights().data.clone()
        RayCollector.update_policy_weights_(self, self._sent)

    def iterator(self) -> Iterator[TensorDictBase]:
        """TorchRL's batches; an actor that dies is named."""
        from ray.exceptions import RayActorError

        ids = [collector._actor_id for collector in self.remote_collectors]
        try:
            yield from super().iterator()
        except RayActorError as error:
            number = next((str(number) for number, own in enumerate(ids) if own.hex() == error.actor_id), "?")
            raise RuntimeError(f"worker {number} of the {len(ids)} Ray actors that collect died: {error}") from error

    def _weight_update_impl(self, policy_or_weights: Any = None, **kwargs: Any) -> None:
        if isinstance(policy_or_weights, TensorDictBase):
            self._sent.update_(policy_or_weights.data)
        super()._weight_update_impl(self._sent, **kwargs)
