"""Collectors whose policy is a teacher and its students: a thin shell around :class:`TeacherStudentPolicy`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import EnvBase, InitTracker
from torchrl.envs.utils import set_exploration_type

from torchrl_rtpd.collectors._torchrl import policy_chooses_next, seen_next
from torchrl_rtpd.collectors.acting import Acting
from torchrl_rtpd.collectors.arguments import (
    check_actions,
    check_random_steps,
    lacks_starts,
    taken_capture,
    transition_writer,
)
from torchrl_rtpd.collectors.engines import collector_on
from torchrl_rtpd.collectors.policy import TeacherStudentPolicy
from torchrl_rtpd.collectors.weights import PolicyWeights

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
        return collector_on(
            *args,
            backend=backend or "process",
            options=dict(backend_options or {}),
            num_collectors=num_collectors,
            sync=bool(sync),
            **kwargs,
        )


class DualNetworkCollector(PolicyWeights, Collector, metaclass=_EngineDispatch):
    """A TorchRL collector whose policy is a teacher and its students.

    What a step stores is what the environment and ``action`` hold; ``acted_by`` is stored where a student may act, and
    network outputs only when recording is asked for.

    With any of ``backend``, ``num_collectors`` and ``sync``, whose meaning is that of
    :class:`~torchrl.collectors.Collector`, TorchRL's collector of that engine is returned, which takes weights in parts
    like this one: worker processes (``backend="process"``, the default with several collectors) or Ray actors
    (``backend="ray"``), in step with each other (``sync=True``) or not. Every worker draws who acts by a seed of its
    own, ``acting_seed`` plus its number. Workers after the first whose environments are made by the same function with
    the same arguments have them seeded, by numbers that follow from ``acting_seed``, since a seed inside that function
    would otherwise give all workers the same games. Give a list of functions to seed each environment yourself.

    Args:
        create_env_fn: an environment or a function that makes one, as for :class:`~torchrl.collectors.Collector`; for
            several workers a function, or a list of one for each.
        teacher: a module that writes ``action``.
        student: a module that writes ``action``, or such modules by name; may be None while only the teacher acts.

    Keyword Args:
        acting, exploration, record, keep, frame_stack: see :class:`TeacherStudentPolicy`.
        acting_seed: seed of the generator that draws who acts.
        overlap: True plays the first step of a batch while the caller learns from the batch before, by the
            environment's own threads. Its actions are chosen before that learning, all others after: with one step a
            batch every action is one batch older. Draws come in a fixed order, so runs stay repeatable. For
            :class:`~torchrl_rtpd.envs.AtariVecEnv`, ``backend="direct"``. Default: False.
        cudagraph_policy: True replays each step of teacher and exploration as one CUDA graph (see ``cudagraph`` of
            :class:`TeacherStudentPolicy`), and numbers no trajectories, for which TorchRL waits at every step. With
            ``AtariVecEnv(device="cuda")`` a rollout then waits for nothing but the actions. For ``backend="direct"``.
            Default: False.
        replay_buffer: where the collector, or each of its workers, writes what it collects instead of yielding it; as
            single transitions, slot by slot, like TorchRL's trainers, unless ``postproc`` or a storage of more
            dimensions says otherwise.
        backend: ``"direct"``, ``"process"`` or ``"ray"``.
        backend_options: arguments of that engine's collector alone, such as ``ray_init_config``.
        num_collectors: workers.
        sync: whether a batch is made of a part from every worker.
        collector_kwargs: everything else goes to :class:`~torchrl.collectors.Collector`: ``frames_per_batch``,
            ``total_frames``, ``init_random_frames``, ``policy_device``, ``storing_device`` and so on.
            ``auto_register_policy_transforms`` is False unless given. The entry ``is_init`` is added by itself where a
            network remembers; True also puts what it remembers into the data, as TorchRL does.

    Raises:
        ValueError: a network whose number of actions is not the environment's, before the first step; recording
            together with ``init_random_frames``, whose steps run no network; an unknown backend; a ``replay_buffer``
            that several workers cannot write; ``overlap`` with an environment or backend that cannot.
        TypeError: several workers with an environment instead of a function that makes one.
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
        captured = taken_capture(collector_kwargs)
        self.dual_policy = policy = TeacherStudentPolicy(
            teacher,
            student,
            acting=acting,
            exploration=exploration,
            record=record,
            keep=keep,
            frame_stack=frame_stack,
            cudagraph=captured,
            seed=acting_seed,
        )
        self.overlap = overlap
        check_random_steps(policy, collector_kwargs)
        env = _environment(create_env_fn, collector_kwargs, policy, overlap)
        collector_kwargs.setdefault("auto_register_policy_transforms", False)
        super().__init__(env, policy, **{**collector_kwargs, **transition_writer(collector_kwargs)})
        policy.forget_memories()  # of the step by which TorchRL learns what the policy writes

    def iterator(self) -> Iterator[TensorDictBase]:
        """TorchRL's batches; with ``overlap`` the next step is being played when one is yielded."""
        for batch in super().iterator():
            if self.overlap and policy_chooses_next(self):
                self._begin_next_step()
            yield batch

    @torch.no_grad()
    def _begin_next_step(self) -> None:
        with set_exploration_type(self.exploration_type):
            self.env.send(self.policy.decide(seen_next(self)))

    def start(self) -> None:
        """TorchRL's: collect in a thread of this process, which has one exploration type for all, hence a warning."""
        warnings.warn(
            "a collector in a thread explores nothing while a loss of the same process is being computed, since both "
            "share TorchRL's exploration type; collect in a worker process instead (num_collectors=1).",
            stacklevel=2,
        )
        super().start()

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Seed the environments and begin their games again, so that all transitions belong to the seed's games.

        Args:
            seed: of the first environment.
            static_seed: whether all environments get this seed, instead of one each.

        Returns:
            The seed that TorchRL would give the next environment.
        """
        following = super().set_seed(seed, static_seed=static_seed)
        self.reset()
        return following

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Reset the environments; a step that is being played is dropped."""
        self.policy.forget_decision()
        super().reset(*args, **kwargs)


def _environment(
    create_env_fn: EnvBase | Callable[..., EnvBase],
    collector_kwargs: dict[str, Any],
    policy: TeacherStudentPolicy,
    overlap: bool,
) -> EnvBase:
    """The environment given or made, checked and made ready for the networks; its arguments are taken out."""
    if isinstance(create_env_fn, EnvBase):
        env = create_env_fn
    else:
        env = create_env_fn(**(collector_kwargs.pop("create_env_kwargs", None) or {}))
    check_actions(policy, env)
    if overlap and not hasattr(env, "send"):
        raise ValueError(
            "overlap=True needs an environment that steps by itself, with a method send: got "
            f"{type(env).__name__}; use AtariVecEnv, or worker processes (num_collectors=1)."
        )
    return env.append_transform(InitTracker()) if lacks_starts(policy, env) else env
