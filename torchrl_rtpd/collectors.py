"""Collection with two networks: one acts, the other may be recorded.

The composite policy is the core, so that every TorchRL collector can run it; the collector is a thin shell around it.
``N`` is the environment's batch. One step::

    observation -> teacher (and student, if it may act) -> who acts -> exploration -> action
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

__all__ = ["DualNetworkCollector", "TeacherStudentPolicy"]

Acting = Literal["teacher", "student"] | float


class TeacherStudentPolicy(TensorDictSequential):
    """A policy in which the teacher, the student, or each with some probability acts.

    A :class:`~tensordict.nn.TensorDictSequential` of teacher, exploration and student, so that TorchRL's weight updates
    reach the parts they are meant for. Writes ``action`` and, unless the teacher always acts, ``student_acted`` bool
    ``[N]``.

    Args:
        teacher: a module that writes ``action``.
        student: a module that writes ``action``.
        acting: ``"teacher"`` (the paper), ``"student"``, or the probability that the student acts, drawn for every slot
            and step.
        exploration: a module such as :class:`~torchrl.modules.EGreedyModule`, applied to whichever acts.
        record: write both networks' values, ``("teacher", "action_value")`` and ``("student", "action_value")``
            ``[N, A]``.
        seed: seed of the generator that draws who acts; None is torch's default seed. ``state_dict()`` holds its state.

    Raises:
        ValueError: ``acting`` is neither name nor a probability in [0, 1].

    Examples:
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> actor = lambda: QValueActor(torch.nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
        >>> policy = TeacherStudentPolicy(actor(), actor(), acting=0.5, seed=0)
        >>> sorted(policy(TensorDict({"observation": torch.zeros(8, 4)}, [8])).keys())
        ['action', 'observation', 'student_acted']
    """

    def __init__(
        self,
        teacher: TensorDictModule,
        student: TensorDictModule | None = None,
        *,
        acting: Acting = "teacher",
        exploration: TensorDictModule | None = None,
        record: bool = False,
        seed: int | None = None,
    ) -> None:
        probability = _probability(acting)
        if student is None and (probability > 0 or record):
            raise ValueError(
                f"acting={acting!r} and record={record} need a student: got None; pass one or let the teacher act."
            )
        # Teacher and exploration come first, as in the weights that TorchRL's DQNTrainer sends.
        super().__init__(*(module for module in (teacher, exploration, student) if module is not None))
        self._exploration_at = None if exploration is None else 1
        self._student_at = None if student is None else len(self.module) - 1
        self.student_probability = probability
        self.record = record
        self._generator = torch.Generator()
        if seed is not None:
            self._generator.manual_seed(seed)
        out_keys: list[NestedKey] = ["action"]
        if probability > 0:
            out_keys.append("student_acted")
        if record:
            out_keys += [("teacher", "action_value"), ("student", "action_value")]
        self.out_keys = out_keys

    @property
    def teacher(self) -> TensorDictModule:
        """The teacher's network."""
        return self.module[0]

    @property
    def exploration(self) -> TensorDictModule | None:
        """The exploration module, if any."""
        return None if self._exploration_at is None else self.module[self._exploration_at]

    @property
    def student(self) -> TensorDictModule | None:
        """The student's network, if any."""
        return None if self._student_at is None else self.module[self._student_at]

    def forward(self, tensordict: TensorDictBase, **kwargs: Any) -> TensorDictBase:
        """Choose actions for ``[N]`` slots, in place."""
        probability = self.student_probability
        teacher_out = self._run(self.teacher, tensordict, probability < 1)
        student_out = self._run(self.student, tensordict, probability > 0)
        action = (student_out if probability >= 1 else teacher_out)["action"]
        if 0 < probability < 1:
            draws = torch.rand(tensordict.shape, generator=self._generator)
            acted = (draws < probability).to(action.device)
            where = acted.reshape(acted.shape + (1,) * (action.ndim - acted.ndim))
            action = torch.where(where, student_out["action"], action)
        elif probability >= 1:
            acted = torch.ones(tensordict.shape, dtype=torch.bool, device=action.device)
        if probability > 0:
            tensordict.set("student_acted", acted)
        tensordict.set("action", action)
        if self.exploration is not None:
            self.exploration(tensordict)
        if self.record:
            tensordict.set(("teacher", "action_value"), teacher_out["action_value"])
            tensordict.set(("student", "action_value"), student_out["action_value"])
        return tensordict

    def __getstate__(self) -> dict[str, Any]:
        # Bytes, since worker processes cannot receive a generator.
        return {**self.__dict__, "_generator": self._generator.get_state().numpy().tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(torch.frombuffer(bytearray(state["_generator"]), dtype=torch.uint8))
        super().__setstate__({**state, "_generator": generator})

    def _run(self, network: TensorDictModule | None, tensordict: TensorDictBase, acts: bool) -> Mapping[str, Tensor]:
        if network is None or not (acts or self.record):
            return {}
        return network(tensordict.select(*network.in_keys))

    def get_extra_state(self) -> Tensor:
        """State of the generator that draws who acts, so that a resumed run goes on with the same draws."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self._generator.set_state(state.cpu())


class DualNetworkCollector(Collector):
    """A TorchRL collector whose policy is a teacher and a student.

    What a step stores is what the environment and ``action`` hold; network outputs are stored only when recording is
    asked for.

    Args:
        create_env_fn: an environment or a function that makes one, as for :class:`~torchrl.collectors.Collector`.
        teacher: a module that writes ``action``.
        student: a module that writes ``action``; may be None while only the teacher acts.

    Keyword Args:
        acting, exploration, record: see :class:`TeacherStudentPolicy`.
        acting_seed: seed of the generator that draws who acts.
        collector_kwargs: everything else goes to :class:`~torchrl.collectors.Collector`: ``frames_per_batch``,
            ``total_frames``, ``init_random_frames``, ``policy_device``, ``storing_device`` and so on.
            ``auto_register_policy_transforms`` is False unless given: TorchRL would add an ``is_init`` entry to every
            step, which only recurrent networks read.

    Raises:
        ValueError: a network whose number of actions is not the environment's, before the first step; recording
            together with ``init_random_frames``, whose steps run no network.

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
        student: TensorDictModule | None = None,
        *,
        acting: Acting = "teacher",
        exploration: TensorDictModule | None = None,
        record: bool = False,
        acting_seed: int | None = None,
        **collector_kwargs: Any,
    ) -> None:
        random_frames = collector_kwargs.get("init_random_frames") or 0
        if record and random_frames > 0:
            raise ValueError(
                "record=True needs the networks at every step, and random steps would be recorded as zeros: got "
                f"init_random_frames={random_frames}; warm up with an exploration of probability 1 instead."
            )
        collector_kwargs.setdefault("auto_register_policy_transforms", False)
        if isinstance(create_env_fn, EnvBase):
            env = create_env_fn
        else:
            env = create_env_fn(**(collector_kwargs.pop("create_env_kwargs", None) or {}))
        for role, network in (("teacher", teacher), ("student", student)):
            _check_actions(role, network, env)
        policy = TeacherStudentPolicy(
            teacher, student, acting=acting, exploration=exploration, record=record, seed=acting_seed
        )
        super().__init__(env, policy, **collector_kwargs)

    def update_policy_weights_(self, policy_or_weights: Any = None, **kwargs: Any) -> None:
        """Update the whole policy, or the teacher alone if given a network or weights of its structure.

        The latter is what TorchRL's ``DQNTrainer`` sends without exploration. Everything else is as for
        :class:`~torchrl.collectors.Collector`.
        """
        weights = policy_or_weights
        if isinstance(weights, TensorDictModuleBase):
            weights = TensorDict.from_module(weights)
        if isinstance(weights, TensorDictBase):
            own = TensorDict.from_module(self.policy.teacher)
            if set(weights.keys(True, True)) == set(own.keys(True, True)):
                weights = TensorDict({"module": TensorDict({"0": weights})})
        super().update_policy_weights_(weights, **kwargs)


def _probability(acting: Acting) -> float:
    if acting in ("teacher", "student"):
        return float(acting == "student")
    if isinstance(acting, (int, float)) and 0 <= acting <= 1:
        return float(acting)
    raise ValueError(f"acting must be 'teacher', 'student' or the student's probability in [0, 1]: got {acting!r}.")


def _check_actions(role: str, network: TensorDictModule | None, env: EnvBase) -> None:
    spec = getattr(network, "spec", None)
    action_spec = None if spec is None else spec.get("action", None)
    if action_spec is None or not hasattr(action_spec, "n"):
        return
    wanted = getattr(env.action_spec, "n", None) or env.action_spec.shape[-1]
    if action_spec.n != wanted:
        raise ValueError(
            f"the {role} has {action_spec.n} actions, the environment {wanted}; build it from env.action_spec."
        )
