"""Policy of a teacher and its students: any of them may act, all may be recorded.

It is the core of collection, so that every TorchRL collector can run it. ``N`` is the environment's batch, ``S`` the
number of students. One step::

    observation -> who acts? -> teacher or student -> exploration -> action
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from tensordict.utils import NestedKey, unravel_key_list
from torch import Tensor

from torchrl_rtpd.collectors.acting import TEACHER, Acting, drawn, probabilities
from torchrl_rtpd.collectors.captured import CapturedTeacher, check_capturable
from torchrl_rtpd.collectors.frames import FrameStacker
from torchrl_rtpd.networks.keys import last_part
from torchrl_rtpd.networks.memory import START_KEY, Memory, next_key
from torchrl_rtpd.schedules import RunState

__all__ = ["TeacherStudentPolicy"]

_GENERATOR_KEY = "acting_generator"
_RECORDED = ({"action_value"}, {"logits"}, {"loc", "scale"})  # by which a policy is known; the first it writes counts


class TeacherStudentPolicy(TensorDictSequential):
    """A policy in which the teacher or one of its students acts.

    A :class:`~tensordict.nn.TensorDictSequential` of teacher, exploration and students, so that TorchRL's weight
    updates reach the parts they are meant for. Writes ``action`` and, where a student may ever act, ``acted_by`` uint8
    ``[N]``: 1 for the teacher, 2 for the first student and so on; the random steps of ``init_random_frames``, which run
    no policy, hold 0.

    The network that acts is drawn for every slot and step, from a generator of its own. Probabilities are a buffer,
    ``acting_probabilities`` ``[S]``, so that they travel to worker processes with the students' weights.

    A recurrent network is handed at each step what it wrote under ``"next"`` at the step before, whichever acted then,
    and begins again with each game. Where the environment has the entry, from its
    :class:`~torchrl.envs.TensorDictPrimer`, the first network of that key writes it into the data, as in TorchRL. What
    other networks remember, of the same key too, stays inside the policy. They need ``"is_init"``, which
    :class:`~torchrl.envs.InitTracker` writes and a :class:`DualNetworkCollector` adds by itself. The random steps of
    ``init_random_frames``, which run no network, are not remembered.

    Args:
        teacher: a module that writes ``action``.
        student: a module that writes ``action``, or such modules by name.

    Keyword Args:
        acting: ``"teacher"`` (the paper); ``"student"``, with several any of them alike; a student's name; the
            probability that a student acts; probabilities by student name, the rest being the teacher's; or a
            function of :class:`~torchrl_rtpd.schedules.RunState` that returns one of these, such as a
            :class:`~torchrl_rtpd.schedules.Schedule`, asked by :meth:`update_acting`.
        exploration: a module such as :class:`~torchrl.modules.EGreedyModule`, applied to the chosen action. A
            stochastic network also samples on its own, as TorchRL's exploration type says.
        record: write the action values of all networks, ``("teacher", "action_value")`` and ``(<student's name>,
            "action_value")`` ``[N, A]``; a single student without a name is ``"student"``. Of a network without action
            values its ``"logits"``, or its ``"loc"`` and ``"scale"``, are written.
        frame_stack: stack so many single frames for the networks, which read ``"pixels"``: for environments that show
            one frame and ``is_init`` (``AtariVecEnv(frame_stack=1)``). What is stored stays a frame. The stacks of
            random steps, which run no policy, are not seen: the first after them have zeros for older frames. None
            takes what the environment shows.
        keep: further outputs of the network that acts, such as ``"action_log_prob"``, which PPO needs.
        cudagraph: replay the step of teacher and exploration as one CUDA graph, after a few steps; on a CPU nothing
            changes. For a teacher without memory that acts alone.
        seed: seed of the generator that draws who acts; None is torch's default seed. ``state_dict()`` holds its state.

    Raises:
        ValueError: ``acting`` is none of these; there is no student to act or be recorded; a network that does not
            write ``"action"``, or nothing that could be recorded, or not what it remembers; a step that cannot be
            captured.
        KeyError: at a call, no ``"is_init"`` for what stays inside the policy.

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
        cudagraph: bool = False,
        seed: int | None = None,
    ) -> None:
        students = dict(student) if isinstance(student, Mapping) else {} if student is None else {"student": student}
        shares = probabilities(acting, list(students))
        if not students and (record or callable(acting)):
            raise ValueError(
                f"acting={acting!r} and record={record} need a student: got None; pass one or let the teacher act."
            )
        networks = {"teacher": teacher, **students}
        _check_writes_action(networks)
        # Teacher and exploration come first, as in the weights that TorchRL's DQNTrainer sends.
        super().__init__(*(module for module in (teacher, exploration, *students.values()) if module is not None))
        self._has_exploration = exploration is not None
        self.student_names = tuple(students)
        self.acting = acting
        self.record = record
        self.keep = list(keep)
        self._stacker = None if frame_stack is None else FrameStacker(frame_stack)
        self.register_buffer("acting_probabilities", shares)
        self._decided: TensorDictBase | None = None  # outputs of the next call, if it was made before its turn
        self._generator = torch.Generator()
        if seed is not None:
            self._generator.manual_seed(seed)
        self.mixed = callable(acting) or bool(shares.any())
        """True if a student may ever act."""
        self._recorded = {name: _recorded_keys(name, network) for name, network in networks.items()} if record else {}
        self._memories = {
            name: Memory(network) for name, network in networks.items() if name == "teacher" or self.mixed or record
        }
        self._set_keys()
        self.cudagraph = cudagraph
        self._captured = self._capture() if cudagraph else None

    def _capture(self) -> CapturedTeacher:
        """Make the step that is captured, of a policy that has such a step."""
        check_capturable(
            {
                f"acting={self.acting!r}": self.mixed,
                f"record={self.record}": self.record,
                "a teacher that remembers": any(self._memories.values()),
                "exploration with a mask": getattr(self.exploration, "action_mask_key", None) is not None,
            }
        )
        return CapturedTeacher(self.teacher, self.exploration, keep=self.keep)

    def _set_keys(self) -> None:
        """Name what is read and written, and which network of each key of a memory writes it into the data."""
        owners: dict[NestedKey, str] = {}
        for name, memory in self._memories.items():
            for key in memory.keys:
                owners.setdefault(key, name)
        self._owners = owners
        out_keys: list[NestedKey] = ["action", *self.keep]
        if self.mixed:
            out_keys.append("acted_by")
        out_keys += [(name, *_parts(key)) for name, keys in self._recorded.items() for key in keys]
        self.out_keys = out_keys + [next_key(key) for key in owners]
        start_keys = [START_KEY] if owners else []
        start_keys += [] if self._stacker is None else [self._stacker.start_key]
        self.in_keys: list[NestedKey] = list(dict.fromkeys([*self.in_keys, *start_keys]))

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
        acted_by = drawn(self.acting_probabilities, tensordict.shape, self._generator) if self.mixed else None
        seen = tensordict if self._stacker is None else self._stacker(tensordict)
        if self._captured is not None:
            return tensordict.update(self._captured(seen))
        outputs: dict[str, TensorDictBase] = {}
        chosen: dict[NestedKey, Tensor] = {}
        for number, (name, network) in enumerate({"teacher": self.teacher, **self.students}.items(), TEACHER):
            rows = None if acted_by is None else acted_by == number
            acts = number == TEACHER if rows is None else bool(rows.any())
            if acts or self.record or self._memories.get(name):  # a memory must not miss a step
                outputs[name] = self._run(name, network, seen)
            if acts:
                for key in ("action", *self.keep):
                    chosen[key] = _where(rows, outputs[name].get(key), chosen.get(key))
        for key, value in chosen.items():
            tensordict.set(key, value)
        if acted_by is not None:
            tensordict.set("acted_by", acted_by.to(chosen["action"].device))
        if self.exploration is not None:
            self.exploration(tensordict)
        self._write(outputs, tensordict)
        return tensordict

    def _run(self, name: str, network: TensorDictModule, seen: TensorDictBase) -> TensorDictBase:
        """Run a network on what it reads, with what it remembers."""
        memory = self._memories.get(name)
        if not memory or self._in_data(name, seen):
            return network(seen.select(*network.in_keys))
        starts = seen.get(START_KEY, None)
        if starts is None:
            raise KeyError(
                f"a network that remembers must know where a game begins: got no {START_KEY!r} for the {name}; append "
                "an InitTracker to the environment."
            )
        outputs = network(memory.recall(seen.select(*network.in_keys, strict=False), starts.reshape(seen.shape)))
        memory.remember(outputs)
        return outputs

    def _in_data(self, name: str, data: TensorDictBase) -> bool:
        """True where the data hold what this network remembers, and not another's of the same key."""
        return self._held(name, {key for key in self._owners if data.get(key, None) is not None})

    def _held(self, name: str, entries: Collection[NestedKey]) -> bool:
        return all(self._owners[key] == name and key in entries for key in self._memories[name].keys)

    def needs_starts(self, entries: Collection[NestedKey]) -> bool:
        """Return True if ``"is_init"`` is read in an environment with these entries.

        Args:
            entries: keys of the environment's observations and states.
        """
        networks = {"teacher": self.teacher, **self.students}
        return any(START_KEY in networks[name].in_keys or not self._held(name, entries) for name in self._memories)

    def _write(self, outputs: Mapping[str, TensorDictBase], tensordict: TensorDictBase) -> None:
        """Put into the data what is recorded, and what goes on to the next step there."""
        for name, keys in self._recorded.items():
            for key in keys:
                tensordict.set((name, *_parts(key)), outputs[name].get(key))
        for name in outputs.keys() & self._memories.keys():
            if self._in_data(name, tensordict):
                for key in self._memories[name].keys:
                    tensordict.set(next_key(key), outputs[name].get(next_key(key)))

    def decide(self, tensordict: TensorDictBase) -> Tensor:
        """Choose the actions of the next call now: it will return them whatever it is given.

        For a step that is begun before its turn comes (``DualNetworkCollector(overlap=True)``).

        Args:
            tensordict: what the next call would read, ``[N]``. Not changed.

        Returns:
            The actions ``[N]``, or one-hot ``[N, A]``.
        """
        self._decided = self(tensordict.copy()).select(*self.out_keys, strict=False)
        return self._decided.get("action")

    def forget_decision(self) -> None:
        """Choose again at the next call."""
        if self._decided is not None:
            for memory in self._memories.values():
                memory.take_back()
            if self._stacker is not None:
                self._stacker.take_back()
        self._decided = None

    def forget_memories(self) -> None:
        """Forget what recurrent networks remember, as before the first step."""
        for memory in self._memories.values():
            memory.forget()

    def with_seed(self, seed: int) -> TeacherStudentPolicy:
        """Return a copy, with copies of the networks, that draws who acts by a seed of its own.

        Args:
            seed: of the copy's generator.
        """
        policy = copy.deepcopy(self)
        policy._generator.manual_seed(seed)
        return policy

    @property
    def seed(self) -> int:
        """Seed by which it is drawn who acts."""
        return self._generator.initial_seed()

    def update_acting(self, state: RunState, *, dropped: Collection[str] = ()) -> dict[str, float]:
        """Set who acts from now on, if ``acting`` is a schedule or a function.

        Args:
            state: the run now.
            dropped: students that learn no more; the teacher acts in their place.

        Returns:
            The probability of each student, by name.

        Raises:
            ValueError: what the function returned is no name, probability or mapping of them.
        """
        if callable(self.acting):
            self.acting_probabilities.copy_(probabilities(self.acting(state), self.student_names))
        for place, name in enumerate(self.student_names):
            if name in dropped:
                self.acting_probabilities[place] = 0.0
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
        # Bytes, since worker processes cannot receive a generator. Copies capture their own networks.
        return {**self.__dict__, "_generator": self._generator.get_state().numpy().tobytes(), "_captured": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(torch.frombuffer(bytearray(state["_generator"]), dtype=torch.uint8))
        super().__setstate__({**state, "_generator": generator})
        self._captured = self._capture() if self.cudagraph else None


def _where(rows: Tensor | None, value: Tensor, otherwise: Tensor | None) -> Tensor:
    """``value`` in these slots ``[N]``."""
    if rows is None or otherwise is None:
        return value
    rows = rows.to(value.device)
    return torch.where(rows.reshape(rows.shape + (1,) * (value.ndim - rows.ndim)), value, otherwise)


def _parts(key: NestedKey) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def _check_writes_action(networks: Mapping[str, TensorDictModule]) -> None:
    for name, network in networks.items():
        if "action" not in network.out_keys:
            raise ValueError(
                f"a network must write 'action': got {list(network.out_keys)} from the {name}; name its output so."
            )


def _recorded_keys(name: str, network: TensorDictModule) -> list[NestedKey]:
    """Entries by which a network's policy is known."""
    written = unravel_key_list(list(network.out_keys))
    for names in _RECORDED:
        keys = [key for key in written if last_part(key) in names]
        if {last_part(key) for key in keys} == names:
            return keys
    raise ValueError(
        f"record=True stores action values, logits, or loc and scale: got {written} from the {name}; name its outputs "
        "so, or collect with record=False."
    )
