"""Collectors whose policy is a teacher and its students: a thin shell around :class:`TeacherStudentPolicy`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torchrl.collectors import BaseCollector, Collector
from torchrl.data import TensorStorage
from torchrl.envs import EnvBase
from torchrl.envs.utils import set_exploration_type
from torchrl.weight_update import SharedMemWeightSyncScheme

from torchrl_rtpd.collectors.engines import _AsyncCollector, _PolicyWeights, _RayCollector, _SyncCollector
from torchrl_rtpd.collectors.policy import Acting, TeacherStudentPolicy
from torchrl_rtpd.replay.storage import FrameStackStorage

__all__ = ["DualNetworkCollector"]


class _EngineDispatch(type(Collector)):  # type: ignore[misc]
    """Lets the constructor choose TorchRL's engine, as that of :class:`~torchrl.collectors.Collector` does."""

    def __call__(
        cls,
        *args: Any,
        backend: str | None = None,
        backend_options: Mapping[str, Any] | None = None,
        num_collectors: int | None = None,
        sync: bool | None = None,
        **kwargs: Any,
    ) -> BaseCollector:
        if backend in (None, "direct") and num_collectors is None and sync is None:
            return super().__call__(*args, **kwargs)
        return _on_engine(
            *args,
            backend=backend or "process",
            options=dict(backend_options or {}),
            num_collectors=num_collectors,
            sync=bool(sync),
            **kwargs,
        )


class DualNetworkCollector(_PolicyWeights, Collector, metaclass=_EngineDispatch):
    """A TorchRL collector whose policy is a teacher and its students.

    What a step stores is what the environment and ``action`` hold; ``acted_by`` is stored where a student may act, and
    network outputs only when recording is asked for.

    With any of ``backend``, ``num_collectors`` and ``sync``, whose meaning is that of
    :class:`~torchrl.collectors.Collector`, TorchRL's collector of that engine is returned, which takes weights in parts
    like this one: worker processes (``backend="process"``, the default with several collectors) or Ray actors
    (``backend="ray"``), in step with each other (``sync=True``) or not. Every worker draws who acts by a seed of its
    own, ``acting_seed`` plus its number.

    Args:
        create_env_fn: an environment or a function that makes one, as for :class:`~torchrl.collectors.Collector`; for
            several workers a function, or a list of one for each.
        teacher: a module that writes ``action``.
        student: a module that writes ``action``, or such modules by name; may be None while only the teacher acts.

    Keyword Args:
        acting, exploration, record, keep, frame_stack: see :class:`TeacherStudentPolicy`.
        acting_seed: seed of the generator that draws who acts.
        overlap: whether the first step of a batch is played while the caller learns from the batch before, by the
            environment's own threads. Its actions are chosen before that learning, all others after: with one step a
            batch every action is one batch older. Draws come in a fixed order, so runs stay repeatable. For
            :class:`~torchrl_rtpd.envs.AtariVecEnv`, ``backend="direct"``. Default: False.
        replay_buffer: where the collector, or each of its workers, writes what it collects instead of yielding it; as
            single transitions, slot by slot, like TorchRL's trainers, unless ``postproc`` or a storage of more
            dimensions says otherwise.
        backend: ``"direct"``, ``"process"`` or ``"ray"``.
        backend_options: arguments of that engine's collector alone, such as ``ray_init_config``.
        num_collectors: workers.
        sync: whether a batch is made of a part from every worker.
        collector_kwargs: everything else goes to :class:`~torchrl.collectors.Collector`: ``frames_per_batch``,
            ``total_frames``, ``init_random_frames``, ``policy_device``, ``storing_device`` and so on.
            ``auto_register_policy_transforms`` is False unless given: TorchRL would add an ``is_init`` entry to every
            step, which only recurrent networks read.

    Raises:
        ValueError: a network whose number of actions is not the environment's, before the first step; recording
            together with ``init_random_frames``, whose steps run no network; an unknown backend; a ``replay_buffer``
            that several workers cannot write; ``overlap`` with an environment or backend that cannot.
        RuntimeError: while collecting or when weights are sent, a worker that died.

    Examples:
        >>> from torchrl_rtpd.envs import AtariVecEnv
        >>> from torchrl_rtpd.networks import make_actor
        >>> env = AtariVecEnv("pong", 2, seed=0)
        >>> actors = [make_actor(name, env.action_spec, seed=0) for name in ("teacher", "net17")]
        >>> collector = DualNetworkCollector(env, *actors, frames_per_batch=8, total_frames=8)
        >>> [batch.shape for batch in collector]
        [torch.Size([2, 4])]
        >>> collector.shutdown()
    """

    def __init__(
        self,
        create_env_fn: EnvBase | Callable[[], EnvBase],
        teacher: TensorDictModule,
        student: TensorDictModule | Mapping[str, TensorDictModule] | None = None,
        *,
        acting: Acting = "teacher",
        exploration: TensorDictModule | None = None,
        record: bool = False,
        keep: Sequence[NestedKey] = (),
        frame_stack: int | None = None,
        acting_seed: int | None = None,
        overlap: bool = False,
        **collector_kwargs: Any,
    ) -> None:
        self.dual_policy = policy = TeacherStudentPolicy(
            teacher,
            student,
            acting=acting,
            exploration=exploration,
            record=record,
            keep=keep,
            frame_stack=frame_stack,
            seed=acting_seed,
        )
        self.overlap = overlap
        _check_random_steps(policy, collector_kwargs)
        if isinstance(create_env_fn, EnvBase):
            env = create_env_fn
        else:
            env = create_env_fn(**(collector_kwargs.pop("create_env_kwargs", None) or {}))
        _check_actions(policy, env)
        collector_kwargs.setdefault("auto_register_policy_transforms", False)
        if overlap and not hasattr(env, "send"):
            raise ValueError(
                "overlap=True needs an environment that steps by itself, with a method send: got "
                f"{type(env).__name__}; use AtariVecEnv, or worker processes (num_collectors=1)."
            )
        super().__init__(env, policy, **{**collector_kwargs, **_transition_writer(collector_kwargs)})

    def iterator(self) -> Iterator[TensorDictBase]:
        """TorchRL's batches; with ``overlap`` the next step is being played when one is yielded."""
        for batch in super().iterator():
            if self.overlap and self._frames < self.total_frames and not self._should_use_random_frames():
                self._begin_next_step()
            yield batch

    @torch.no_grad()
    def _begin_next_step(self) -> None:
        with set_exploration_type(self.exploration_type):
            seen = self._carrier.to(self.policy_device) if self._cast_to_policy_device else self._carrier
            self.env.send(self.policy.decide(seen))

    def start(self) -> None:
        """TorchRL's: collect in a thread of this process, which has one exploration type for all, hence a warning."""
        warnings.warn(
            "a collector in a thread explores nothing while a loss of the same process is being computed, since both "
            "share TorchRL's exploration type; collect in a worker process instead (num_collectors=1).",
            stacklevel=2,
        )
        super().start()

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Reset the environments; a step that is being played is dropped."""
        self.policy.forget_decision()
        super().reset(*args, **kwargs)


def _on_engine(
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
    """TorchRL's collector of an engine, with a policy for each worker."""
    if kwargs.pop("overlap", False):
        raise ValueError(
            f"overlap=True is for backend='direct': got backend={backend!r}, whose workers collect while the caller "
            "learns anyway; leave it out."
        )
    own = {
        name: kwargs.pop(name) for name in ("acting", "exploration", "record", "keep", "frame_stack") if name in kwargs
    }
    policy = TeacherStudentPolicy(teacher, student, seed=acting_seed, **own)
    _check_random_steps(policy, kwargs)
    env_fns = list(create_env_fn) if isinstance(create_env_fn, Sequence) else [create_env_fn] * (num_collectors or 1)
    env = env_fns[0](**(kwargs.get("create_env_kwargs") or {}))
    _check_actions(policy, env)
    if not env.is_closed:
        env.close()
    _check_shared_storage(kwargs.get("replay_buffer"))
    writer = _transition_writer(kwargs)
    seed = policy._generator.initial_seed()
    kwargs["policy_factory"] = [partial(_with_seed, policy, seed + worker) for worker in range(len(env_fns))]
    if backend == "process":
        kwargs.setdefault("auto_register_policy_transforms", False)
        kwargs.setdefault("weight_sync_schemes", {"policy": SharedMemWeightSyncScheme()})
        collector = (_SyncCollector if sync else _AsyncCollector)(env_fns, policy, **{**kwargs, **writer}, **options)
        collector.dual_policy = policy
        return collector
    if backend == "ray":
        # What its actors' collectors take beside the common arguments goes by an argument of its own: a mapping for
        # each, since TorchRL writes each one's policy into it.
        inner = {"auto_register_policy_transforms": kwargs.pop("auto_register_policy_transforms", False), **writer}
        given = options.get("collector_kwargs") or {}
        given = given if isinstance(given, list) else [given] * len(env_fns)
        options["collector_kwargs"] = [{**inner, **own} for own in given]
        return _RayCollector(env_fns, policy=policy, sync=sync, **kwargs, **options)
    raise ValueError(
        f"backend must be 'direct', 'process' or 'ray': got {backend!r}; on other engines of TorchRL's give "
        "its collector a TeacherStudentPolicy."
    )


def _with_seed(policy: TeacherStudentPolicy, seed: int) -> TeacherStudentPolicy:
    """A copy that draws who acts by a seed of its own."""
    policy = copy.deepcopy(policy)
    policy._generator.manual_seed(seed)
    return policy


def _transition_writer(collector_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The argument that makes a collector write transitions, where TorchRL's default are rows of a batch's steps."""
    replay_buffer = collector_kwargs.get("replay_buffer")
    one_dimension = getattr(getattr(replay_buffer, "storage", None), "ndim", 1) == 1
    whole_games = collector_kwargs.get("trajs_per_batch") is not None
    if replay_buffer is None or whole_games or not one_dimension or collector_kwargs.get("postproc") is not None:
        return {}
    return {"postproc": _transitions}


def _transitions(batch: TensorDictBase) -> TensorDictBase:
    """``[N, T]`` to ``[N * T]``, slot by slot."""
    return batch.reshape(-1)


def _check_shared_storage(replay_buffer: Any) -> None:
    """That worker processes can write into this buffer."""
    storage = getattr(replay_buffer, "storage", None)
    if isinstance(storage, FrameStackStorage):
        raise ValueError(
            "a FrameStackStorage is written in order, by one writer: got workers that write on their own; let the "
            "trainer write what the collector yields, or collect with backend='direct'."
        )
    if isinstance(storage, TensorStorage) and not storage.initialized and not getattr(storage, "shared_init", False):
        raise ValueError(
            "a storage that workers write must be known to all of them before its first entry: got "
            f"{type(storage).__name__} without shared_init; build it with shared_init=True."
        )


def _check_random_steps(policy: TeacherStudentPolicy, collector_kwargs: Mapping[str, Any]) -> None:
    random_frames = collector_kwargs.get("init_random_frames") or 0
    if policy.record and random_frames > 0:
        raise ValueError(
            "record=True needs the networks at every step, and random steps would be recorded as zeros: got "
            f"init_random_frames={random_frames}; warm up with an exploration of probability 1 instead."
        )


def _check_actions(policy: TeacherStudentPolicy, env: EnvBase) -> None:
    wanted = getattr(env.action_spec, "n", None) or env.action_spec.shape[-1]
    for role, network in {"teacher": policy.teacher, **policy.students}.items():
        spec = getattr(network, "spec", None)
        action_spec = None if spec is None else spec.get("action", None)
        if action_spec is not None and hasattr(action_spec, "n") and action_spec.n != wanted:
            raise ValueError(
                f"the {role} has {action_spec.n} actions, the environment {wanted}; build it from env.action_spec."
            )
