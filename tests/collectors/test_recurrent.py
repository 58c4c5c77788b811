"""Networks with a memory: each its own, at every step, begun again with each game."""

from __future__ import annotations

import pytest
import torch
from collector_parts import Tape, actor, always
from recurrent_parts import recurrent_actor, values_by_hand
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import Categorical, Unbounded
from torchrl.envs import EnvBase, InitTracker, TensorDictPrimer, TransformedEnv
from torchrl.modules import EGreedyModule

from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.collectors.policy import TeacherStudentPolicy

STEPS = 14


def networks() -> dict[str, TensorDictSequential]:
    """A teacher and two students; the second has the teacher's keys and another size."""
    return {
        "teacher": recurrent_actor("lstm", 4, seed=1),
        "gru": recurrent_actor("gru", 3, seed=2),
        "lstm": recurrent_actor("lstm", 2, seed=3),
    }


def gathered(env: object, teacher: TensorDictModule, students: dict | None, **kwargs: object) -> TensorDictBase:
    """Rows of consecutive steps ``[rows, T]`` that begin with games, in batches of 3 steps and less."""
    workers = kwargs.get("num_collectors", 1)
    kwargs = {"acting_seed": 0, "frames_per_batch": 4 * workers, "total_frames": 2 * STEPS * workers, **kwargs}
    collector = DualNetworkCollector(env, teacher, students, **kwargs)
    batches = [batch.reshape(-1, batch.shape[-1]).clone() for batch in collector]
    collector.shutdown()
    return torch.cat(batches, 1)


def primed(teacher: TensorDictSequential) -> EnvBase:
    """TorchRL's way: the environment holds what the teacher remembers."""
    return TransformedEnv(Tape(), InitTracker()).append_transform(teacher[0].make_tensordict_primer())


@pytest.mark.parametrize("where", ["in the policy", "in the data", "asked of TorchRL"])
@pytest.mark.parametrize("acting", ["teacher", 0.5])
def test_every_network_computes_what_a_loop_by_hand_does(where: str, acting: str | float) -> None:
    """Teacher, and students that act only now and then, remember every step of their game, bit for bit."""
    teacher, *students = networks().values()
    pupils = dict(zip(("gru", "lstm"), students, strict=True))
    if where == "asked of TorchRL":  # its primers of one key need one size
        pupils["lstm"] = recurrent_actor("lstm", 4, seed=3)
    env = primed(teacher) if where == "in the data" else Tape()
    batch = gathered(
        env, teacher, pupils, acting=acting, record=True, auto_register_policy_transforms=where == "asked of TorchRL"
    )
    assert torch.equal(batch["is_init"][:, 1:], batch["next", "done"][:, :-1])
    for name, network in {"teacher": teacher, **pupils}.items():
        assert torch.equal(batch[name, "action_value"], values_by_hand(network, batch)), name
    assert ("recurrent_state_h" in batch.keys()) == (where != "in the policy")


@pytest.mark.parametrize("acting", ["student", "gru", 0.5])
def test_actions_are_those_of_the_remembering_network_that_acts(acting: str | float) -> None:
    """Nothing is recorded here."""
    members = networks()
    teacher = members.pop("teacher")
    batch = gathered(Tape(), teacher, members, acting=acting)
    values = [values_by_hand(network, batch) for network in (teacher, *members.values())]
    expected = torch.stack([value.argmax(-1) for value in values])
    chosen = expected.gather(0, batch["acted_by"].long()[None] - 1)[0]
    assert torch.equal(batch["action"], chosen)
    assert len(batch["acted_by"].unique()) > 1 or acting == "gru"


@pytest.mark.parametrize("sync", [True, False])
def test_workers_networks_remember_too(sync: bool) -> None:
    """In step and out of step; the teacher's memory and the students', in two processes."""
    members = networks()
    teacher = members.pop("teacher")
    workers = 2 if sync else 1  # out of step the batches of two workers come in any order
    batch = gathered(Tape, teacher, members, acting=0.5, record=True, num_collectors=workers, sync=sync)
    assert len(batch) == 2 * workers
    for name, network in {"teacher": teacher, **members}.items():
        torch.testing.assert_close(batch[name, "action_value"], values_by_hand(network, batch), atol=1e-6, rtol=0)


def test_what_the_teacher_remembers_is_in_the_data_where_the_environment_holds_it() -> None:
    """So that a loss may begin a sequence in the middle of a game; TorchRL's own collector stores the same."""
    teacher = recurrent_actor("lstm", 4, seed=1)
    batch = gathered(primed(teacher), teacher, {"lstm": recurrent_actor("lstm", 2)}, acting="teacher")
    stock = Collector(primed(teacher), teacher, frames_per_batch=2 * STEPS, total_frames=2 * STEPS)
    (expected,) = (stored.clone() for stored in stock)
    stock.shutdown()
    for key in ("recurrent_state_h", ("next", "recurrent_state_h"), "recurrent_state_c", "action"):
        assert torch.equal(batch[key], expected[key]), key


def counter(step: int = 1) -> TensorDictModule:
    """Takes as action the number of its calls in this game, modulo 2, and remembers that number."""
    return TensorDictModule(
        lambda count: ((count[..., 0] % 2).long(), count + step),
        in_keys=["count"],
        out_keys=["action", ("next", "count")],
    )


def counted(start: float = 0.0) -> EnvBase:
    primer = TensorDictPrimer(count=Unbounded((1,)), default_value=start, expand_specs=True)
    return TransformedEnv(Tape(), primer)


def test_any_module_may_remember_where_a_primer_begins_its_games() -> None:
    """Of TorchRL's two slots games take 3 and 5 steps; no InitTracker is needed for what the data hold."""
    batch = gathered(counted(), counter(), None)
    assert batch["action"].tolist() == [
        [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1],
        [0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1],
    ]


def test_games_begin_with_what_the_primer_says() -> None:
    """One more from the start: the first action of each game is 1, of the student too."""
    for acting in ("teacher", "student"):
        batch = gathered(counted(1.0), counter(), {"net": counter()}, acting=acting)
        assert batch["action"][0].tolist() == [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0]


def test_networks_of_one_key_do_not_mix_what_they_remember() -> None:
    """The student counts by twos, so it never takes action 1; both begin where the primer says."""
    batch = gathered(counted(), counter(), {"even": counter(2)}, acting=0.5)
    teacher = torch.tensor([[0, 1, 0] * 5, [0, 1, 0, 1, 0] * 3])[:, :STEPS]
    assert torch.equal(batch["action"], torch.where(batch["acted_by"] == 1, teacher, 0))
    assert {1, 2} == set(batch["acted_by"].flatten().tolist())


def test_a_step_that_was_begun_early_is_remembered_once() -> None:
    """Deciding and dropping the decision leaves no trace; deciding and playing it is one step."""
    policy = TeacherStudentPolicy(
        recurrent_actor("lstm", 4), {"net": recurrent_actor("gru", 3)}, record=True, acting=0.5
    )
    twin = policy.with_seed(0)

    def step(value: float, begins: bool = False) -> TensorDict:
        return TensorDict({"observation": torch.full((2, 1), value), "is_init": torch.full((2, 1), begins)}, [2])

    for player in (policy, twin):
        player(step(0.0, True))
    policy.decide(step(9.0))
    policy.forget_decision()
    for value in (1.0, 2.0):
        expected = twin(step(value))
        policy.decide(step(value))
        found = policy(step(-5.0))
        for name in ("teacher", "net"):
            assert torch.equal(found[name, "action_value"], expected[name, "action_value"])


def test_copies_and_sent_policies_remember_for_themselves() -> None:
    policy = TeacherStudentPolicy(recurrent_actor("gru", 3))
    start = TensorDict({"observation": torch.ones(2, 1), "is_init": torch.ones(2, 1, dtype=torch.bool)}, [2])
    policy(start.clone())
    twin = policy.with_seed(1)
    twin.forget_memories()
    later = start.clone().set("is_init", torch.zeros(2, 1, dtype=torch.bool))
    first, second = (player._memories["teacher"] for player in (policy, twin))
    policy(later.clone())
    twin(later.clone())
    key = "recurrent_state"
    assert not torch.equal(first._state[key], second._state[key])


def test_exploring_recurrent_networks_are_collected() -> None:
    exploration = EGreedyModule(Categorical(2), eps_init=1.0, eps_end=1.0)
    teacher = recurrent_actor("gru", 3)
    batch = gathered(Tape(), teacher, {"net": actor(1)}, exploration=exploration, record=True)
    assert torch.equal(batch["teacher", "action_value"], values_by_hand(teacher, batch))
    assert {0, 1} == set(batch["action"].flatten().tolist())


def test_random_steps_are_not_remembered() -> None:
    """After four random steps the memory begins empty, in the middle of slot 0's second game."""
    teacher = recurrent_actor("gru", 3)
    collector = DualNetworkCollector(Tape(), teacher, frames_per_batch=8, total_frames=16, init_random_frames=8)
    _, batch = (batch.clone() for batch in collector)
    collector.shutdown()
    assert batch["observation"][:, 0, 0].tolist() == [11, 104]
    assert torch.equal(batch["action"], values_by_hand(teacher, batch).argmax(-1))


# Errors


def test_a_memory_inside_the_policy_must_be_told_where_games_begin() -> None:
    teacher = recurrent_actor("gru", 3)
    policy = TeacherStudentPolicy(counter(), {"net": counter()}, acting=0.5)
    step = TensorDict({"count": torch.zeros(2, 1), "observation": torch.zeros(2, 1)}, [2])
    with pytest.raises(KeyError, match=r"must know where a game begins: got no 'is_init' for the net; append an InitT"):
        policy(step)
    with pytest.raises(KeyError, match="is_init"):
        TeacherStudentPolicy(teacher)(step)


def test_a_module_without_a_first_memory_is_refused() -> None:
    with pytest.raises(KeyError, match=r"a value to begin a game with: got no 'count'; append a TensorDictPrimer"):
        DualNetworkCollector(Tape(), counter(), frames_per_batch=4, total_frames=8)


def test_a_network_that_drops_what_it_remembers_is_refused() -> None:
    teacher = recurrent_actor("gru", 3).select_out_keys("action")
    with pytest.raises(ValueError, match=r"must write what it remembers: got out_keys=\['action'\], which leave out"):
        TeacherStudentPolicy(teacher)


def test_a_memory_of_another_shape_is_refused() -> None:
    """A primer for one state of four units before a module that writes two."""
    grows = TensorDictModule(
        lambda count: ((count[..., 0] % 2).long(), torch.cat([count, count], -1)),
        in_keys=["count"],
        out_keys=["action", ("next", "count")],
    )
    policy = TeacherStudentPolicy(counter(), {"grows": grows}, acting=0.5)
    start = TensorDict({"count": torch.zeros(2, 1), "is_init": torch.ones(2, 1, dtype=torch.bool)}, [2])
    with pytest.raises(
        ValueError, match=r"must have the shape of 'count': got \[2, 2\] and \[2, 1\]; give the environment"
    ):
        policy(start)


def test_an_environment_that_tells_starts_is_used_as_it_is() -> None:
    env = TransformedEnv(Tape(), InitTracker())
    collector = DualNetworkCollector(env, recurrent_actor("gru", 3), frames_per_batch=4, total_frames=4)
    assert collector.env is env
    assert isinstance(env.transform, InitTracker)
    collector.shutdown()


def test_networks_without_a_memory_need_no_starts() -> None:
    batch = gathered(Tape(), always(0), None)
    assert "is_init" not in batch.keys()
