"""Teachers by a key in the data: each state gets the values of its own teacher, and teaches no other."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from device_parts import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, ProbabilisticTensorDictModule, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Categorical, OneHot
from torchrl.modules import DistributionalQValueActor, LSTMModule, ProbabilisticActor, QValueActor, TanhNormal

from torchrl_rtpd.networks import TeacherByKey, TeacherMixture
from torchrl_rtpd.networks.choices import declared_actions


def linear(scale: float, actions: int = 2, features: int = 1) -> nn.Linear:
    """Values ``scale * (1, 2, ...)`` times the sum of what is observed."""
    layer = nn.Linear(features, actions, bias=False)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.arange(1.0, actions + 1).unsqueeze(-1).expand(actions, features))
    return layer


def actor(scale: float, actions: int = 2, **kwargs: Any) -> QValueActor:
    return QValueActor(linear(scale, actions), in_keys=["observation"], spec=Categorical(actions), **kwargs)


def batch(ids: Any, *size: int, key: Any = "teacher_id") -> TensorDict:
    """States that observe their own place, 1, 2, 3 and so on."""
    ids = torch.as_tensor(ids)
    size = size or tuple(ids.shape)
    count = int(torch.Size(size).numel())
    return TensorDict({"observation": torch.arange(1.0, count + 1).reshape(*size, 1), key: ids}, size)


# Values


def test_each_state_has_the_values_of_its_own_teacher() -> None:
    """Teachers of scale 1, 10 and 100 at the places 1 to 5: 100, 1, 10, 1 and 10 times the place, and twice that."""
    teachers = TeacherByKey([linear(1.0), linear(10.0), linear(100.0)])
    out = teachers(batch([2, 0, 1, 0, 1]))
    assert out["action_value"].tolist() == [[100.0, 200.0], [2.0, 4.0], [30.0, 60.0], [4.0, 8.0], [50.0, 100.0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_ids_may_have_a_last_dimension_of_one_and_any_integer_type(dtype: torch.dtype) -> None:
    """As transforms of TorchRL write entries."""
    teachers = TeacherByKey([linear(1.0), linear(10.0)])
    out = teachers(batch(torch.tensor([[1], [0]], dtype=dtype), 2))
    assert out["action_value"].tolist() == [[10.0, 20.0], [2.0, 4.0]]


@given(
    ids=st.lists(st.integers(0, 2), max_size=12),
    two_dims=st.booleans(),
    last=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_batch_is_what_a_loop_over_its_states_gives(ids: list[int], two_dims: bool, last: bool) -> None:
    """States of any shape, also none, one by one through a plain layer of their own."""
    layers = [linear(1.0, 3), linear(10.0, 3), linear(100.0, 3)]
    size = (1, len(ids)) if two_dims else (len(ids),)
    chosen = torch.tensor(ids, dtype=torch.long).reshape(*size, *([1] if last else []))
    data = batch(chosen, *size)
    found = TeacherByKey(layers)(data)["action_value"].reshape(-1, 3)
    expected = [layers[i](state) for i, state in zip(ids, data["observation"].reshape(-1, 1), strict=True)]
    assert found.tolist() == [values.tolist() for values in expected]


def test_a_single_state_without_a_batch_has_a_teacher() -> None:
    """As an environment without batch dimensions shows it, with the id as a number or as one entry."""
    teachers = TeacherByKey([linear(1.0), linear(10.0)])
    for ids in (torch.tensor(1), torch.tensor([1])):
        data = TensorDict({"observation": torch.tensor([3.0]), "teacher_id": ids}, [])
        assert teachers(data)["action_value"].tolist() == [30.0, 60.0]


def test_plain_tensors_are_taken_in_the_order_of_the_keys() -> None:
    """Without tensordicts the ids tell the batch."""
    teachers = TeacherByKey([linear(1.0), linear(10.0)])
    values = teachers(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 0]))
    assert values.tolist() == [[10.0, 20.0], [2.0, 4.0]]


def test_ids_are_places_in_a_mapping_and_names_those_of_the_state() -> None:
    teachers = TeacherByKey({"pong": linear(1.0), "breakout": linear(10.0)}, key=("task", "id"))
    assert teachers.names == ["pong", "breakout"]
    assert sorted(teachers.state_dict()) == ["teachers.breakout.module.weight", "teachers.pong.module.weight"]
    assert teachers.in_keys == ["observation", ("task", "id")]
    assert teachers(batch([1], key=("task", "id")))["action_value"].tolist() == [[10.0, 20.0]]


def test_teachers_may_read_different_entries() -> None:
    """The batch holds what all of them read; each sees its own."""
    first = TensorDictModule(linear(1.0), in_keys=["left"], out_keys=["action_value"])
    second = TensorDictModule(linear(1.0), in_keys=["right"], out_keys=["action_value"])
    teachers = TeacherByKey([first, second])
    data = TensorDict({"left": torch.ones(2, 1), "right": torch.full((2, 1), 5.0), "teacher_id": [0, 1]}, [2])
    data["teacher_id"] = torch.tensor([0, 1])
    assert teachers.in_keys == ["left", "right", "teacher_id"]
    assert teachers(data)["action_value"].tolist() == [[1.0, 2.0], [5.0, 10.0]]


def test_each_teacher_runs_on_its_own_states_alone_on_a_cpu() -> None:
    """Rows seen by each: two, one and none, which is not run at all."""
    layers = [linear(1.0), linear(10.0), linear(100.0)]
    seen: list[tuple[int, int]] = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda _, inputs, __, number=number: seen.append((number, len(inputs[0]))))
    TeacherByKey(layers)(batch([1, 0, 1]))
    assert sorted(seen) == [(0, 1), (1, 2)]


def test_a_batch_of_one_game_is_not_copied() -> None:
    """The only teacher that runs is given the very tensor of the batch."""
    layer, data = linear(1.0), batch([0, 0, 0])
    given_tensors: list[Tensor] = []
    layer.register_forward_hook(lambda _, inputs, __: given_tensors.append(inputs[0]))
    TeacherByKey([layer, linear(2.0)])(data)
    assert given_tensors[0] is data["observation"]


def test_compiled_teachers_all_run_and_give_the_same_values() -> None:
    """Shapes must not depend on the data there: one graph for any ids."""
    layers = [linear(1.0), linear(10.0), linear(100.0)]
    teachers = TeacherByKey(layers)
    compiled = torch.compile(lambda states, ids: teachers(states, ids), backend="eager", fullgraph=True)
    for ids in ([2, 0, 1, 0], [1, 1, 1, 1]):
        states = torch.arange(1.0, 5.0).unsqueeze(-1)
        found = compiled(states, torch.tensor(ids))
        assert found.tolist() == [[10.0**i * n, 2 * 10.0**i * n] for n, i in enumerate(ids, 1)]


# Learning


def gradients(teachers: TeacherByKey, ids: list[int]) -> list[Tensor | None]:
    teachers.zero_grad()
    teachers(batch(ids))["action_value"].mean().backward()
    return [parameter.grad for parameter in teachers.parameters()]


def test_gradients_reach_a_teacher_from_its_own_states_alone() -> None:
    """The mean over three states and two actions: places 1 and 3 are the second's, (1 + 3) / 6; place 2 is 2 / 6."""
    found = gradients(TeacherByKey([linear(1.0), linear(10.0), linear(7.0)]), [1, 0, 1])
    assert found[2] is None
    torch.testing.assert_close(found[0], torch.full((2, 1), 2 / 6))
    torch.testing.assert_close(found[1], torch.full((2, 1), 4 / 6))


def test_a_teacher_without_states_is_left_as_it_is_even_by_an_optimiser_with_momentum() -> None:
    teachers = TeacherByKey([linear(1.0), linear(10.0)])
    optimizer = torch.optim.Adam(teachers.parameters(), lr=0.1)
    for ids in ([0, 1], [0, 0], [0, 0]):
        before = [parameter.detach().clone() for parameter in teachers.parameters()]
        optimizer.zero_grad()
        teachers(batch(ids))["action_value"].sum().backward()
        optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, teachers.parameters(), strict=True)]
        assert moved == [True, 1 in ids]


def test_all_rows_give_the_same_gradient_and_zeros_to_a_teacher_without_states() -> None:
    """The path of a GPU, run here: bit for bit the gradient of the teacher's own states."""
    teachers = TeacherByKey([linear(1.0), linear(10.0), linear(7.0)])
    data = batch([1, 0, 1])
    (values,) = teachers._on_all_rows(data["teacher_id"], {"observation": data["observation"]})
    assert torch.equal(values, teachers(data.copy())["action_value"])
    values.mean().backward()
    found = [parameter.grad for parameter in teachers.parameters()]
    torch.testing.assert_close(found, [torch.full((2, 1), share) for share in (2 / 6, 4 / 6, 0.0)])


def test_on_a_gpu_the_host_waits_for_nothing_between_looks_at_the_ids() -> None:
    """In the third call, at which no look is due; own rows would wait for their numbers."""
    teachers, data = TeacherByKey([linear(1.0), linear(10.0)]), batch([1, 0])
    inputs = {"observation": data["observation"]}
    for _ in range(2):
        teachers._on_all_rows(data["teacher_id"], inputs)
    with HostReads() as reads:
        teachers._on_all_rows(data["teacher_id"], inputs)
    assert reads.found == []
    with HostReads() as reads:
        teachers._on_own_rows(data["teacher_id"], inputs)
    assert reads.found


# As part of an actor


def test_an_actor_of_teachers_chooses_by_the_values_of_the_own_one_within_the_mask() -> None:
    """The largest value is that of action 1, or of 0 where 1 is forbidden or the scale is negative."""
    policy = QValueActor(TeacherByKey([actor(1.0), actor(-1.0)]), spec=Categorical(2), action_mask_key="action_mask")
    data = batch([0, 1, 0])
    data["action_mask"] = torch.tensor([[True, True], [True, True], [True, False]])
    assert policy(data)["action"].tolist() == [1, 0, 0]


def gaussian(scale: float, **kwargs: Any) -> ProbabilisticActor:
    kwargs = {"low": -1.0, "high": 1.0, **kwargs}
    network = TensorDictModule(
        nn.Sequential(linear(scale, 2), NormalParamExtractor()), in_keys=["observation"], out_keys=["loc", "scale"]
    )
    return ProbabilisticActor(
        network, in_keys=["loc", "scale"], distribution_class=TanhNormal, distribution_kwargs=kwargs
    )


def test_stochastic_teachers_write_their_distribution_and_draw_nothing() -> None:
    """Neither an action nor the random stream of training."""
    teachers = TeacherByKey([gaussian(1.0), gaussian(2.0)])
    before = torch.get_rng_state()
    out = teachers(batch([0, 1]))
    assert teachers.out_keys == ["loc", "scale"] and "action" not in out
    assert out["loc"].tolist() == [[1.0], [4.0]]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stochastic_actor_of_teachers_has_the_distribution_of_the_own_one() -> None:
    policy = ProbabilisticActor(
        TeacherByKey([gaussian(1.0), gaussian(2.0)]), in_keys=["loc", "scale"], distribution_class=TanhNormal
    )
    for number, own in enumerate([gaussian(1.0), gaussian(2.0)]):
        expected = own.get_dist(batch([number])).log_prob(torch.tensor([[0.3]]))
        torch.testing.assert_close(policy.get_dist(batch([number])).log_prob(torch.tensor([[0.3]])), expected)


def test_teachers_declare_the_actions_that_their_actors_declare() -> None:
    assert declared_actions(TeacherByKey([linear(1.0, 3), actor(1.0, 3)])) == 3
    assert declared_actions(TeacherByKey([linear(1.0, 3)])) is None


# Copies and states


def test_a_copy_shares_nothing_and_runs_its_own_weights() -> None:
    teachers = TeacherByKey([actor(1.0), actor(10.0)])
    other = copy.deepcopy(teachers)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert other(batch([0, 1]))["action_value"].abs().sum() == 0
    assert teachers(batch([0, 1]))["action_value"].tolist() == [[1.0, 2.0], [20.0, 40.0]]


def test_a_state_makes_the_round_trip_and_teachers_are_the_networks_given() -> None:
    first, second = actor(1.0), actor(10.0)
    teachers = TeacherByKey([first, second])
    other = TeacherByKey([actor(0.0), actor(0.0)])
    other.load_state_dict(teachers.state_dict())
    assert other(batch([0, 1]))["action_value"].tolist() == [[1.0, 2.0], [20.0, 40.0]]
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert teachers(batch([0, 1]))["action_value"].tolist() == [[0.0, 0.0], [20.0, 40.0]]


def test_teachers_are_sent_to_another_process_as_one() -> None:
    """Pickled as worker processes get a policy, with weights that go on to be those that are run."""
    teachers = pickle.loads(pickle.dumps(TeacherByKey([actor(1.0), actor(10.0)])))
    with torch.no_grad():
        for parameter in teachers.parameters():
            parameter.mul_(2.0)
    assert teachers(batch([0, 1]))["action_value"].tolist() == [[2.0, 4.0], [40.0, 80.0]]


def test_teachers_move_to_another_type_and_mode_together() -> None:
    teachers = TeacherByKey([actor(1.0), actor(10.0)]).to(torch.float64).eval()
    data = batch([0, 1])
    data["observation"] = data["observation"].double()
    assert teachers(data)["action_value"].dtype is torch.float64
    assert not any(module.training for module in teachers.teachers.modules())


# Refusals


@pytest.mark.parametrize("wrong", [2, -1])
@pytest.mark.parametrize("static", [False, True])
def test_an_id_without_a_teacher_is_refused_with_the_range(wrong: int, static: bool) -> None:
    """On the states of each, and in the first call that runs all."""
    teachers = TeacherByKey({"pong": linear(1.0), "breakout": linear(2.0)})
    data = batch([0, wrong, 1])
    run = teachers._on_all_rows if static else teachers._on_own_rows
    with pytest.raises(ValueError, match=rf"'teacher_id' must be .*, 0 to 1: got {wrong}; .* among pong, breakout\."):
        run(data["teacher_id"], {"observation": data["observation"]})


def test_ids_that_are_no_integers_are_refused() -> None:
    teachers = TeacherByKey([linear(1.0)])
    for ids in (torch.tensor([0.0]), torch.tensor([False]), torch.tensor([0j])):
        with pytest.raises(TypeError, match=f"must be integers: 'teacher_id' is {ids.dtype}"):
            teachers(batch(ids))


@pytest.mark.parametrize("kind", "uint8 int8 uint16 int16 uint32 int32 uint64 int64".split())
def test_ids_may_be_any_integers(kind: str) -> None:
    """On each teacher's own states, and where all run, as on a GPU; an id too many is told from the others."""
    teachers, dtype = TeacherByKey([linear(1.0), linear(10.0)]), getattr(torch, kind)
    data = batch(torch.tensor([1, 0, 1]).to(dtype))
    expected = [[10.0, 20.0], [2.0, 4.0], [30.0, 60.0]]
    assert teachers(data.copy())["action_value"].tolist() == expected
    (found,) = teachers._on_all_rows(teachers._ids(data), {"observation": data["observation"]})
    assert found.tolist() == expected
    with pytest.raises(ValueError, match="0 to 1: got 5"):
        teachers(batch(torch.tensor([1, 5, 1]).to(dtype)))


def test_teachers_of_different_precision_are_refused() -> None:
    """What one of them writes would not have the type of the other's, and neither would read the other's input."""
    for kind in ("float16", "bfloat16", "float64"):
        with pytest.raises(ValueError, match=rf"types of their weights: got .*float32.*torch\.{kind}.*float\(\)"):
            TeacherByKey([linear(1.0), linear(2.0).to(getattr(torch, kind))])
        with pytest.raises(ValueError, match="types of their weights"):
            TeacherMixture([linear(1.0), linear(2.0).to(getattr(torch, kind))], temperature=1.0)


def test_ids_of_another_batch_are_refused() -> None:
    teachers = TeacherByKey([linear(1.0), linear(2.0)])
    with pytest.raises(ValueError, match=r"one id for each state, \[2\] or \[2, 1\]: 'teacher_id' is \[2, 3\]"):
        teachers(batch(torch.zeros(2, 3, dtype=torch.long), 2))
    with pytest.raises(ValueError, match=r"one id for each state: 'teacher_id' is \[3\] and 'observation' is \[2, 1\]"):
        teachers(torch.zeros(2, 1), torch.tensor([0, 1, 0]))


def test_data_without_ids_are_refused_by_name() -> None:
    with pytest.raises(
        KeyError, match=r"\['teacher_id'\], which the batch, or its next, lacks: it has \['observation'"
    ):
        TeacherByKey([linear(1.0)])(batch([0]).exclude("teacher_id"))


def test_teachers_of_different_action_sets_are_refused() -> None:
    """By their specs, or by the values that they write."""
    with pytest.raises(ValueError, match=r"agree on the number of actions: got 2 of '0' and 3 of '1'; .*action_mask"):
        TeacherByKey([actor(1.0, 2), actor(1.0, 3)])
    teachers = TeacherByKey({"a": linear(1.0, 2), "b": linear(1.0, 3)})
    with pytest.raises(ValueError, match=r"'action_value' in one shape: got \[2\] of 'a' and \[3\] of 'b'"):
        teachers(batch([0, 1]))


def test_teachers_of_different_kinds_are_refused() -> None:
    logits = TensorDictModule(linear(1.0), in_keys=["observation"], out_keys=["logits"])
    with pytest.raises(ValueError, match=r"agree on what they write: got \['action_value'\] of '0' and \['logits'\]"):
        TeacherByKey([linear(1.0), logits])
    with pytest.raises(ValueError, match=r"the distribution of actions: .*'high': 1.0.* of '0' and .*'high': 2.0"):
        TeacherByKey([gaussian(1.0), gaussian(1.0, high=2.0)])


def test_distributions_of_returns_must_have_one_support() -> None:
    def atoms(top: float) -> DistributionalQValueActor:
        network = nn.Sequential(nn.Linear(1, 6), nn.Unflatten(-1, (3, 2)))
        return DistributionalQValueActor(
            network, in_keys=["observation"], support=torch.linspace(0.0, top, 3), spec=OneHot(2)
        )

    assert TeacherByKey([atoms(1.0), atoms(1.0)])(batch([0, 1]))["action_value"].shape == (2, 3, 2)
    with pytest.raises(ValueError, match=r"support of returns: got \[0.0, 0.5, 1.0\] of '0' and \[0.0, 1.0, 2.0\]"):
        TeacherByKey([atoms(1.0), atoms(2.0)])


def test_a_teacher_that_remembers_is_refused() -> None:
    memory = LSTMModule(input_size=1, hidden_size=2, in_key="observation", out_key="features")
    head = TensorDictModule(nn.Linear(2, 2), in_keys=["features"], out_keys=["action_value"])
    with pytest.raises(ValueError, match=r"functions of what they see: got 'lstm', which reads \['recurrent_state"):
        TeacherByKey({"lstm": TensorDictSequential(memory, head)})


@pytest.mark.parametrize("name", ["", "ms.pacman", 3, "double"])
def test_a_name_that_no_parameter_can_bear_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"must be a text without '\.', .* uses itself: got {name!r}; the id"):
        TeacherByKey({name: linear(1.0)})


def test_something_to_learn_from_is_needed() -> None:
    with pytest.raises(ValueError, match="there must be a teacher: got none"):
        TeacherByKey([])
    with pytest.raises(TypeError, match="got function"):
        TeacherByKey([lambda seen: seen])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="before it chooses: got ProbabilisticTensorDictModule first"):
        choice = ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=torch.distributions.Normal)
        TeacherByKey([choice])
