"""The policy of a teacher and its students: any of them may act, all may be recorded.

It is the core of collection, so that every TorchRL collector can run it. ``N`` is the environment's batch, ``S`` the
number of students. One step::

    observation -> who acts? -> teacher or student -> exploration -> action
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_rtpd.collectors.frames import FrameStacker
from torchrl_rtpd.schedules import RunState

__all__ = ["TeacherStudentPolicy"]

Shares = str | float | Mapping[str, float]
Acting = Shares | Callable[[RunState], Shares]
"""Who acts: a name, the probability of a student, probabilities by student, or what gives one of these."""

TEACHER = 1
"""``acted_by`` of the teacher; 0 is nobody (TorchRL's random steps), 2 the first student."""

_GENERATOR_KEY = "acting_generator"


class TeacherStudentPolicy(TensorDictSequential):
    """A policy in which the teacher or one of its students acts.

    A :class:`~tensordict.nn.TensorDictSequential` of teacher, exploration and students, so that TorchRL's weight
    updates reach the parts they are meant for. Writes ``action`` and, where a student may ever act, ``acted_by`` uint8
    ``[N]``: 1 for the teacher, 2 for the first student and so on; the random steps of ``init_random_frames``, which run
    no policy, hold 0.

    Who acts is drawn for every slot and step, from a generator of its own. Probabilities are a buffer,
    ``acting_probabilities`` ``[S]``, so that they travel to worker processes with the students' weights.

    Args:
        teacher: a module that writes ``action``.
        student: a module that writes ``action``, or such modules by name.

    Keyword Args:
        acting: ``"teacher"`` (the paper); ``"student"``, with several any of them alike; a student's name; the
            probability that a student acts; probabilities by student name, the rest being the teacher's; or a
            function of :class:`~torchrl_rtpd.schedules.RunState` that returns one of these, such as a
            :class:`~torchrl_rtpd.schedules.Schedule`, asked by :meth:`update_acting`.
        exploration: a module such as :class:`~torchrl.modules.EGreedyModule`, applied to whichever acts. A stochastic
            network besides samples on its own, as TorchRL's exploration type says.
        record: write the action values of all networks, ``("teacher", "action_value")`` and ``(<student's name>,
            "action_value")`` ``[N, A]``; a single student without a name is ``"student"``.
        frame_stack: stack so many single frames for the networks, which read ``"pixels"``: for environments that show
            one frame and ``is_init`` (``AtariVecEnv(frame_stack=1)``). What is stored stays a frame. The stacks of
            random steps, which run no policy, are not seen: the first after them have zeros for older frames. None
            takes what the environment shows.
        keep: further outputs of whichever acts, such as ``"action_log_prob"``, which PPO needs.
        seed: seed of the generator that draws who acts; None is torch's default seed. ``state_dict()`` holds its state.

    Raises:
        ValueError: ``acting`` is none of these, or there is no student to act or be recorded.

    Examples:
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> actor = lambda: QValueActor(torch.nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
        >>> policy = TeacherStudentPolicy(actor(), {"a": actor(), "b": actor()}, acting={"a": 0.2, "b": 0.3}, seed=0)
        >>> out = policy(TensorDict({"observation": torch.zeros(8, 4)}, [8]))
        >>> sorted(out.keys()), out["acted_by"].tolist()
        (['acted_by', 'action', 'observation'], [1, 1, 3, 1, 1, 1, 2, 3])
    """

    def __init__(
        self,
        teacher: TensorDictModule,
        student: TensorDictModule | Mapping[str, TensorDictModule] | None = None,
        *,
        acting: Acting = "teacher",
        exploration: TensorDictModule | None = None,
        record: bool = False,
        keep: Sequence[NestedKey] = (),
        frame_stack: int | None = None,
        seed: int | None = None,
    ) -> None:
        students = dict(student) if isinstance(student, Mapping) else {} if student is None else {"student": student}
        probabilities = _probabilities(acting, list(students))
        if not students and (record or callable(acting)):
            raise ValueError(
                f"acting={acting!r} and record={record} need a student: got None; pass one or let the teacher act."
            )
        # Teacher and exploration come first, as in the weights that TorchRL's DQNTrainer sends.
        super().__init__(*(module for module in (teacher, exploration, *students.values()) if module is not None))
        self._has_exploration = exploration is not None
        self.student_names = tuple(students)
        self.acting = acting
        self.record = record
        self.keep = list(keep)
        self._stacker = None if frame_stack is None else FrameStacker(frame_stack)
        self.register_buffer("acting_probabilities", probabilities)
        self._decided: TensorDictBase | None = None  # outputs of the next call, if it was made before its turn
        self._generator = torch.Generator()
        if seed is not None:
            self._generator.manual_seed(seed)
        self.mixed = callable(acting) or bool(probabilities.any())
        """Whether a student may ever act."""
        out_keys: list[NestedKey] = ["action", *self.keep]
        if self.mixed:
            out_keys.append("acted_by")
        if record:
            out_keys += [(name, "action_value") for name in ("teacher", *students)]
        self.out_keys = out_keys

    @property
    def teacher(self) -> TensorDictModule:
        """The teacher's network."""
        return self.module[0]

    @property
    def exploration(self) -> TensorDictModule | None:
        """The exploration module, if any."""
        return self.module[1] if self._has_exploration else None

    @property
    def students(self) -> dict[str, TensorDictModule]:
        """The students' networks by name."""
        return {name: self.module[self._module_index(name)] for name in self.student_names}

    def _module_index(self, name: str) -> int:
        """Where a student stands in the sequence."""
        return 1 + self._has_exploration + self.student_names.index(name)

    def forward(self, tensordict: TensorDictBase, **kwargs: Any) -> TensorDictBase:
        """Choose actions for ``[N]`` slots, in place."""
        if self._decided is not None:
            decided, self._decided = self._decided, None
            return tensordict.update(decided)
        acted_by = self._draw(tensordict.shape) if self.mixed else None
        networks = {"teacher": self.teacher, **self.students}
        seen = tensordict if self._stacker is None else self._stacker(tensordict)
        outputs: dict[str, TensorDictBase] = {}
        chosen: dict[NestedKey, Tensor] = {}
        for number, (name, network) in enumerate(networks.items(), TEACHER):
            rows = None if acted_by is None else acted_by == number
            acts = number == TEACHER if rows is None else bool(rows.any())
            if acts or self.record:
                outputs[name] = network(seen.select(*network.in_keys))
            if acts:
                for key in ("action", *self.keep):
                    chosen[key] = _where(rows, outputs[name].get(key), chosen.get(key))
        for key, value in chosen.items():
            tensordict.set(key, value)
        if acted_by is not None:
            tensordict.set("acted_by", acted_by.to(chosen["action"].device))
        if self.exploration is not None:
            self.exploration(tensordict)
        if self.record:
            for name, output in outputs.items():
                tensordict.set((name, "action_value"), output.get("action_value"))
        return tensordict

    def decide(self, tensordict: TensorDictBase) -> Tensor:
        """Choose the actions of the next call now: it will return them whatever it is given.

        For a step that is begun before its turn comes (``DualNetworkCollector(overlap=True)``).

        Args:
            tensordict: what the next call would read, ``[N]``. Not changed.

        Returns:
            The actions ``[N]``, or one-hot ``[N, A]``.
        """
        self._decided = self(tensordict.copy()).select(*self.out_keys)
        return self._decided.get("action")

    def forget_decision(self) -> None:
        """Choose anew at the next call."""
        if self._decided is not None and self._stacker is not None:
            self._stacker.take_back()
        self._decided = None

    def _draw(self, shape: torch.Size) -> Tensor:
        """Who acts in each slot, uint8."""
        limits = self.acting_probabilities.cpu().cumsum(0)
        draws = torch.rand(shape, generator=self._generator, dtype=torch.float64)
        student = torch.bucketize(draws, limits, right=True)  # S: none of them
        return torch.where(student < len(limits), student + TEACHER + 1, TEACHER).to(torch.uint8)

    def update_acting(self, state: RunState) -> dict[str, float]:
        """Set who acts from now on, if ``acting`` is a schedule or a function.

        Args:
            state: the run now.

        Returns:
            The probability of each student, by name.

        Raises:
            ValueError: what the function returned is no name, probability or mapping of them.
        """
        if callable(self.acting):
            self.acting_probabilities.copy_(_probabilities(self.acting(state), self.student_names))
        return dict(zip(self.student_names, self.acting_probabilities.tolist(), strict=True))

    def weights(self, part: Literal["all", "teacher", "students"] = "all") -> TensorDict:
        """Weights to send with ``collector.update_policy_weights_``; what is not in them stays as it is there.

        Args:
            part: ``"teacher"`` with its exploration, ``"students"`` with the probabilities of who acts, or ``"all"``.

        Returns:
            The parameters and buffers themselves, not copies.

        Raises:
            ValueError: an unknown part.
        """
        if part not in ("all", "teacher", "students"):
            raise ValueError(f"part must be 'all', 'teacher' or 'students': got {part!r}.")
        weights = TensorDict.from_module(self)
        if part == "all":
            return weights
        students = [("module", str(self._module_index(name))) for name in self.student_names]
        if part == "teacher":
            return weights.exclude(*students, "acting_probabilities")
        return weights.select(*students, "acting_probabilities")

    # The generator is neither buffer nor extra state: weight updates would carry it to the workers.

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + _GENERATOR_KEY] = self._generator.get_state()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state = state_dict.pop(prefix + _GENERATOR_KEY, None)
        if state is not None:
            self._generator.set_state(state.cpu())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        # Bytes, since worker processes cannot receive a generator.
        return {**self.__dict__, "_generator": self._generator.get_state().numpy().tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(torch.frombuffer(bytearray(state["_generator"]), dtype=torch.uint8))
        super().__setstate__({**state, "_generator": generator})


def _where(rows: Tensor | None, value: Tensor, otherwise: Tensor | None) -> Tensor:
    """``value`` in these slots ``[N]``."""
    if rows is None or otherwise is None:
        return value
    rows = rows.to(value.device)
    return torch.where(rows.reshape(rows.shape + (1,) * (value.ndim - rows.ndim)), value, otherwise)


def _probabilities(acting: Acting, names: Sequence[str]) -> Tensor:
    """The probability of each student ``[S]``."""
    shares = acting(RunState()) if callable(acting) else acting
    if shares in ("teacher", "student"):
        shares = float(shares == "student")
    if isinstance(shares, str) and shares in names:
        shares = {shares: 1.0}
    if isinstance(shares, (int, float)):
        if shares > 0 and not names:
            raise ValueError(f"acting={acting!r} needs a student: got None; pass one or let the teacher act.")
        shares = {name: float(shares) / len(names) for name in names}
    if isinstance(shares, Mapping) and shares.keys() <= set(names):
        values = torch.tensor([float(shares.get(name, 0.0)) for name in names], dtype=torch.float64)
        if (values >= 0).all() and values.sum() <= 1 + 1e-9:
            return values
    raise ValueError(
        "acting must be 'teacher', 'student', the name of one, a student's probability in [0, 1], probabilities by "
        f"name with a sum of at most 1, or a function that returns one of these: got {acting!r}; "
        f"students are {', '.join(names) or 'none'}."
    )
