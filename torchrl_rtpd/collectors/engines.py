"""Collectors in worker processes and on Ray, with the same weights and students, which name a worker that died."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing import connection
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.collectors import BaseCollector, MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import EnvBase
from torchrl.weight_update import SharedMemWeightSyncScheme

from torchrl_rtpd.collectors._torchrl import WholePolicyRayCollector, actor_ids, is_closed
from torchrl_rtpd.collectors.arguments import (
    check_actions,
    check_random_steps,
    check_shared_storage,
    lacks_starts,
    transition_writer,
    workers_env,
)
from torchrl_rtpd.collectors.policy import TeacherStudentPolicy
from torchrl_rtpd.collectors.weights import PolicyWeights

__all__ = ["collector_on"]

_DIRECT_ONLY = {
    "overlap": "workers collect while the caller learns anyway",
    "cudagraph_policy": "workers have environments of their own, on the CPU",
}
_POLICY_ARGUMENTS = ("acting", "exploration", "record", "keep", "frame_stack")


def collector_on(
    create_env_fn: Any,
    teacher: TensorDictModule,
    student: TensorDictModule | Mapping[str, TensorDictModule] | None = None,
    *,
    backend: str,
    options: dict[str, Any],
    num_collectors: int | None,
    sync: bool,
    acting_seed: int | None = None,
    **kwargs: Any,
) -> BaseCollector:
    """Return TorchRL's collector of an engine, with a policy and an environment for each worker.

    Args:
        create_env_fn: a function that makes an environment, or one for each worker.
        teacher: a module that writes ``action``.
        student: a module that writes ``action``, or such modules by name.
        backend: ``"process"`` or ``"ray"``.
        options: arguments of that engine's collector alone.
        num_collectors: workers.
        sync: whether a batch is made of a part from every worker.
        acting_seed: seed of the first worker's draws, and of the environments of all others.
        kwargs: further arguments of :class:`~torchrl_rtpd.collectors.DualNetworkCollector`.

    Raises:
        ValueError: see :class:`~torchrl_rtpd.collectors.DualNetworkCollector`.
        TypeError: an environment instead of a function that makes one.
    """
    if backend not in ("process", "ray"):
        raise ValueError(
            f"backend must be 'direct', 'process' or 'ray': got {backend!r}; on other engines of TorchRL's give "
            "its collector a TeacherStudentPolicy."
        )
    for name, reason in _DIRECT_ONLY.items():
        if kwargs.pop(name, False):
            raise ValueError(
                f"{name}=True is for backend='direct': got backend={backend!r}, whose {reason}; leave it out."
            )
    own = {name: kwargs.pop(name) for name in _POLICY_ARGUMENTS if name in kwargs}
    policy = TeacherStudentPolicy(teacher, student, seed=acting_seed, **own)
    check_random_steps(policy, kwargs)
    check_shared_storage(kwargs.get("replay_buffer"))
    env_fns = _workers_env_fns(create_env_fn, num_collectors, policy, kwargs.get("create_env_kwargs"))
    kwargs["policy_factory"] = [partial(policy.with_seed, policy.seed + worker) for worker in range(len(env_fns))]
    return (_in_processes if backend == "process" else _on_ray)(env_fns, policy, sync, kwargs, options)


def _in_processes(
    env_fns: list, policy: TeacherStudentPolicy, sync: bool, kwargs: dict[str, Any], options: dict[str, Any]
) -> BaseCollector:
    kwargs = {"auto_register_policy_transforms": False, **kwargs, **transition_writer(kwargs)}
    kwargs.setdefault("weight_sync_schemes", {"policy": SharedMemWeightSyncScheme()})
    collector = (_SyncCollector if sync else _AsyncCollector)(env_fns, policy, **kwargs, **options)
    collector.dual_policy = policy
    return collector


def _on_ray(
    env_fns: list, policy: TeacherStudentPolicy, sync: bool, kwargs: dict[str, Any], options: dict[str, Any]
) -> BaseCollector:
    # What its actors' collectors take beside the common arguments goes by an argument of its own: a mapping for each,
    # since TorchRL writes each one's policy into it.
    register = kwargs.pop("auto_register_policy_transforms", False)
    inner = {"auto_register_policy_transforms": register, **transition_writer(kwargs)}
    given = options.get("collector_kwargs") or {}
    given = given if isinstance(given, list) else [given] * len(env_fns)
    options["collector_kwargs"] = [{**inner, **own} for own in given]
    kwargs["policy_factory"] = [partial(_contiguous, make) for make in kwargs["policy_factory"]]
    return _RayCollector(env_fns, policy=policy, sync=sync, **kwargs, **options)


def _contiguous(make_policy: Callable[[], TeacherStudentPolicy]) -> TeacherStudentPolicy:
    """Make a policy with weights in the order of their dimensions: TorchRL receives them into no others."""
    return make_policy().to(memory_format=torch.contiguous_format)


def _workers_env_fns(
    create_env_fn: Any, num_collectors: int | None, policy: TeacherStudentPolicy, env_kwargs: Any
) -> list[Any]:
    """A function for each worker.

    Workers that share one would all play the same games where it seeds its environment. So all but the first are given
    seeds of their own.
    """
    env_fns = list(create_env_fn) if isinstance(create_env_fn, Sequence) else [create_env_fn] * (num_collectors or 1)
    if any(isinstance(env_fn, EnvBase) for env_fn in env_fns):
        raise TypeError("workers make their own environments: got an environment; give a function that makes one.")
    each_kwargs = env_kwargs if isinstance(env_kwargs, (list, tuple)) else [env_kwargs or {}] * len(env_fns)
    env = env_fns[0](**each_kwargs[0])
    check_actions(policy, env)
    tells_starts = lacks_starts(policy, env)
    if not env.is_closed:
        env.close()
    made = []
    for worker, env_fn in enumerate(env_fns):
        twins = any(
            _makes_the_same(other, env_fn) and each_kwargs[before] == each_kwargs[worker]
            for before, other in enumerate(env_fns[:worker])
        )
        seed = _worker_seed(policy.seed, worker) if twins else None
        plain = seed is None and not tells_starts
        made.append(env_fn if plain else partial(workers_env, env_fn, seed, tells_starts))
    return made


def _makes_the_same(one: Any, other: Any) -> bool:
    """True for one function given twice, or bound to equal arguments."""
    if isinstance(one, partial) and isinstance(other, partial):
        return (one.func, one.args, one.keywords) == (other.func, other.args, other.keywords)
    return one is other


def _worker_seed(seed: int, worker: int) -> int:
    """Seed of a worker's environment: far from its neighbours', since slots count up from it."""
    generator = torch.Generator().manual_seed(seed + worker)
    return int(torch.randint(2**31 - 1, (), generator=generator))


class _WatchedWorkers(PolicyWeights):
    """Worker processes. One that dies is named while batches are awaited or weights sent.

    TorchRL looks after those it waits for, but not while they write into a replay buffer on their own. Its report can
    fail itself where it closes a process that has not ended yet.
    """

    procs: list[Any]

    def iterator(self) -> Iterator[TensorDictBase]:
        """TorchRL's batches."""
        try:
            yield from super().iterator()  # type: ignore[misc]
        except Exception as error:
            # A worker's connection breaks a moment before its sentinel, and that a moment before it has an exit code.
            workers = {process.sentinel: process for process in self.procs if not is_closed(process)}
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
            if not is_closed(process) and process.exitcode
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


class _RayCollector(PolicyWeights, WholePolicyRayCollector):
    def __init__(self, *args: Any, policy: TeacherStudentPolicy, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # Untrue here: without a policy of its own it takes the weights that are sent below.
            warnings.filterwarnings("ignore", message="The policy is not an nn.Module", category=UserWarning)
            super().__init__(*args, **kwargs)
        self.requested_frames_per_batch = self.frames_per_batch  # what len() asks for
        self.dual_policy = policy
        self.start_from(policy.weights().data.apply(lambda weight: weight.clone(memory_format=torch.contiguous_format)))

    def update_policy_weights_(
        self, policy_or_weights: Any = None, *, weights_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Update what is given, and leave the rest; without anything, all weights as the policy has them here."""
        if policy_or_weights is None:
            named = dict(weights_dict or {"policy": self.dual_policy.weights()})
            policy_or_weights, weights_dict = named.pop("policy", None), named or None
        super().update_policy_weights_(policy_or_weights, weights_dict=weights_dict, **kwargs)

    def iterator(self) -> Iterator[TensorDictBase]:
        """TorchRL's batches; an actor that dies is named."""
        from ray.exceptions import RayActorError

        ids = actor_ids(self)
        try:
            yield from super().iterator()
        except RayActorError as error:
            number = ids.index(error.actor_id) if error.actor_id in ids else "?"
            raise RuntimeError(f"worker {number} of the {len(ids)} Ray actors that collect died: {error}") from error
