"""All of a network that leads to its values is run, whatever it consists of; compiled networks keep their names."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import (
    ActorValueOperator,
    DistributionalQValueActor,
    EGreedyModule,
    LSTMModule,
    NormalParamExtractor,
    QValueActor,
    QValueModule,
    TanhNormal,
)

from torchrl_rtpd.networks import TeacherByKey
from torchrl_rtpd.networks.compiled import load_plain_state_dict, plain_name, plain_state_dict
from torchrl_rtpd.networks.running import BareNetwork, NetworkPart, as_tensordict_module, bare_network, same_in_training


def module(layer: nn.Module, *keys: Any) -> TensorDictModule:
    *in_keys, out_key = keys
    return TensorDictModule(layer, in_keys=in_keys, out_keys=[out_key])


def encoder_and_head() -> TensorDictSequential:
    """The example: 4 observations, 8 hidden units, 3 values."""
    return TensorDictSequential(
        module(nn.Linear(4, 8), "obs", "h"),
        module(nn.Linear(8, 3), "h", "action_value"),
        QValueModule(spec=Categorical(3)),
    )


class Both(nn.Module):
    """A network of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, image: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return self.first(image) + self.second(state)


def nested() -> TensorDictSequential:
    return TensorDictSequential(
        TensorDictSequential(module(nn.LayerNorm(4), "obs", "normal"), module(nn.Linear(4, 8), "normal", "h")),
        QValueActor(nn.Linear(8, 3), in_keys=["h"], spec=Categorical(3)),
        EGreedyModule(Categorical(3)),
    )


def two_inputs() -> QValueActor:
    return QValueActor(Both(), in_keys=["obs", ("robot", "state")], spec=Categorical(3))


def actor_with_critic() -> TensorDictSequential:
    """The policy of an actor-critic network: the critic's head leads to no action."""
    choice = ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=torch.distributions.Categorical)
    policy = ProbabilisticTensorDictSequential(module(nn.Linear(8, 3), "h", "logits"), choice)
    both = ActorValueOperator(module(nn.Linear(4, 8), "obs", "h"), policy, module(nn.Linear(8, 1), "h", "state_value"))
    return both.get_policy_operator()


def distributional() -> DistributionalQValueActor:
    network = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(-1, (2, 3)))
    return DistributionalQValueActor(network, in_keys=["obs"], spec=Categorical(3), support=torch.tensor([0.0, 1.0]))


def observations(seed: int = 0, size: int = 5) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    image, state = (torch.randn(size, width, generator=generator) for width in (4, 2))
    return TensorDict({"obs": image, ("robot", "state"): state}, [size])


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (encoder_and_head, "action_value"),
        (nested, "action_value"),
        (two_inputs, "action_value"),
        (actor_with_critic, "logits"),
        (distributional, "action_value"),
    ],
)
def test_the_bare_network_gives_what_the_whole_actor_writes(build: Any, key: str) -> None:
    actor, batch = build(), observations()
    network = bare_network(actor)
    keys = getattr(network, "in_keys", ["obs", ("robot", "state")] if build is two_inputs else ["obs"])
    torch.testing.assert_close(network(*(batch[name] for name in keys)), actor(batch.clone())[key], rtol=0, atol=0)


def test_all_parts_are_counted_with_the_actors_names() -> None:
    """67 values in four tensors, of which the first part has 40."""
    actor = encoder_and_head()
    network = bare_network(actor)
    state = network.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 67
    assert list(state) == list(actor.state_dict())
    assert [parameter.data_ptr() for parameter in network.parameters()] == [p.data_ptr() for p in actor.parameters()]


def test_parts_that_lead_to_no_value_are_left_out() -> None:
    """A critic's head behind the values, and one between encoder and values."""
    head = module(nn.Linear(8, 1), "h", "state_value")
    encoder, values, choice = encoder_and_head().module
    for actor in (TensorDictSequential(encoder, head, values, choice), TensorDictSequential(encoder, values, head)):
        assert sum(parameter.numel() for parameter in bare_network(actor).parameters()) == 67


def test_a_continuous_policy_gives_all_that_its_distribution_reads() -> None:
    parameters = TensorDictModule(
        nn.Sequential(nn.Linear(8, 4), NormalParamExtractor()), in_keys=["h"], out_keys=["loc", "scale"]
    )
    sampler = ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=TanhNormal)
    actor = ProbabilisticTensorDictSequential(module(nn.Linear(4, 8), "obs", "h"), parameters, sampler)
    network, batch = bare_network(actor), observations()
    written = actor(batch.clone())
    assert network.out_keys == ["loc", "scale"]
    for found, key in zip(network(batch["obs"]), network.out_keys, strict=True):
        assert torch.equal(found, written[key])


def test_a_recurrent_first_part_is_refused_when_run_and_keeps_its_weights() -> None:
    memory = LSTMModule(input_size=4, hidden_size=8, in_key="obs", out_key="h")
    actor = TensorDictSequential(memory, module(nn.Linear(8, 3), "h", "action_value"))
    network = bare_network(actor)
    assert list(network.state_dict()) == list(actor.state_dict())
    with pytest.raises(RuntimeError, match=r"recurrent .* reads \['recurrent_state_h', 'recurrent_state_c'\]"):
        network(torch.zeros(1, 4))


def test_another_number_of_observations_is_named() -> None:
    network = bare_network(encoder_and_head())
    with pytest.raises(TypeError, match=r"reads \['obs'\]: got 2 tensors"):
        network(torch.zeros(1, 4), torch.zeros(1, 4))


def test_an_actor_without_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="got QValueModule first"):
        bare_network(TensorDictSequential(QValueModule(spec=Categorical(3))))


def test_values_that_are_written_again_after_the_choice_are_refused() -> None:
    """The action is that of the first values, and a loss would read the second."""
    actor = TensorDictSequential(*encoder_and_head().module, module(nn.Tanh(), "action_value", "action_value"))
    with pytest.raises(ValueError, match=r"got QValueModule before a part that writes \['action_value'\] again; move"):
        bare_network(actor)


def test_copies_share_nothing_and_can_be_exported() -> None:
    """As ``export_student`` does it: the copy's parts are those that the copy runs."""
    actor = encoder_and_head()
    network, example = copy.deepcopy(bare_network(actor)), torch.ones(2, 4)
    before = network(example)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.zero_()
    assert torch.equal(network(example), before) and before.abs().sum() > 0
    program = torch.export.export(network, (example,), dynamic_shapes=(({0: torch.export.Dim.DYNAMIC},),))
    torch.testing.assert_close(program.module()(torch.ones(7, 4)), network(torch.ones(7, 4)))


@settings(deadline=None, max_examples=40)
@given(
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    groups=st.lists(st.integers(1, 3), min_size=0, max_size=2),
    ends=st.sampled_from(["values", "choice", "exploration"]),
    batch_shape=st.lists(st.integers(1, 3), max_size=2),
    critic=st.booleans(),
)
def test_networks_in_one_to_three_parts_however_they_are_nested(
    widths: list[int], groups: list[int], ends: str, batch_shape: list[int], critic: bool
) -> None:
    """Bare network, part of a loss and whole actor agree, for every way to put parts together."""
    sizes = [2, *widths[:-1], 3]
    keys = ["obs", *(f"h{i}" for i in range(len(sizes) - 2)), "action_value"]
    parts: list[Any] = [
        module(nn.Sequential(nn.Linear(one, two), nn.Tanh()), first, second)
        for one, two, first, second in zip(sizes, sizes[1:], keys, keys[1:], strict=False)
    ]
    if critic:
        parts.insert(1, module(nn.Linear(sizes[1], 1), keys[1], "state_value"))
    for size in groups:  # put the first parts into a sequence of their own
        parts = [TensorDictSequential(*parts[:size]), *parts[size:]]
    if ends != "values":
        parts.append(QValueModule(spec=Categorical(3)))
    if ends == "exploration":
        parts.append(EGreedyModule(Categorical(3), eps_init=0.0, eps_end=0.0))
    actor = TensorDictSequential(*parts)
    batch = TensorDict({"obs": torch.randn(*batch_shape, 2)}, batch_shape)
    expected = TensorDictSequential(*parts[: len(parts) - ("values", "choice", "exploration").index(ends)])(
        batch.clone()
    )["action_value"]
    assert torch.equal(bare_network(actor)(batch["obs"]), expected)
    assert torch.equal(NetworkPart(actor)(batch, "action_value", "student"), expected)


# Ways in which a part may write its outputs


class Heads(nn.Module):
    """Three ways to values, of which ``forward`` is one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, image: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        return gain * self.first(image)

    def other(self, image: torch.Tensor) -> torch.Tensor:
        return -self.second(image)

    def both(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first(image), self.second(image)

    def named(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self.first(image), "action_value": self.second(image)}


class Twice(Heads):
    """Returns both outputs of its forward."""

    def forward(self, image: torch.Tensor, gain: float = 1.0) -> Any:
        return self.both(image)


class Named(Heads):
    """Returns a dictionary."""

    def forward(self, image: torch.Tensor, gain: float = 1.0) -> Any:
        return self.named(image)


def part_of(layer: nn.Module, *out_keys: str, **kwargs: Any) -> TensorDictModule:
    return TensorDictModule(layer, in_keys=["obs"], out_keys=list(out_keys or ["action_value"]), **kwargs)


WAYS: dict[str, Any] = {
    "another method": lambda: part_of(Heads(), method="other"),
    "arguments of a method": lambda: part_of(Heads(), method="forward", method_kwargs={"gain": -2.0}),
    "arguments alone": lambda: part_of(Heads(), method_kwargs={"gain": -2.0}),
    "a named argument": lambda: TensorDictModule(Heads(), in_keys={"image": "obs"}, out_keys=["action_value"]),
    "one output left out": lambda: part_of(Twice(), "_", "action_value"),
    "a method of two outputs": lambda: part_of(Heads(), "_", "action_value", method="both"),
    "the second of two": lambda: part_of(Twice(), "features", "action_value"),
    "one selected": lambda: part_of(Twice(), "features", "action_value").select_out_keys("action_value"),
    "one selected of a sequence": lambda: TensorDictSequential(
        part_of(Twice(), "features", "action_value")
    ).select_out_keys("action_value"),
    "a dictionary": lambda: part_of(Named(), "action_value", "features"),
    "a dictionary in part": lambda: part_of(Named(), "action_value"),
    "a hook that changes": lambda: hooked(part_of(Heads())),
}


def hooked(part: TensorDictModule) -> TensorDictModule:
    """With a hook that negates, as TorchRL's ``SafeModule(safe=True)`` has one that projects."""
    part.register_forward_hook(lambda part, given, written: written.set("action_value", -written["action_value"]))
    return part


@pytest.mark.parametrize("way", WAYS)
def test_values_are_those_that_the_part_itself_writes(way: str) -> None:
    """In a loss, on plain tensors, of one of several teachers, by itself and as an actor."""
    part, batch = WAYS[way](), observations()
    wanted = part(batch.clone())["action_value"]
    for network in (part, QValueActor(part, spec=Categorical(3))):
        assert torch.equal(NetworkPart(network)(batch, "action_value", "student"), wanted)
        found = bare_network(network)(batch["obs"])
        assert torch.equal(found["action_value"] if isinstance(found, dict) else found, wanted)
        several = TeacherByKey([network, network], key="id")
        ids = batch.clone().set("id", torch.tensor([0, 1, 0, 1, 1]))
        torch.testing.assert_close(several(ids)["action_value"], wanted)  # other rows at a time


@pytest.mark.parametrize("way", WAYS)
def test_the_network_of_any_part_can_be_exported(way: str) -> None:
    """A loaded program gives the part's values; the very module inside is none where it returns a dictionary."""
    part, example = WAYS[way](), observations()["obs"]
    program = torch.export.export(BareNetwork.of(part), (example,))
    wanted = part(observations())["action_value"]
    torch.testing.assert_close(program.module()(example), wanted)


@pytest.mark.parametrize("share", [0.5, np.float32(0.5), torch.tensor(0.5)])
def test_layers_that_drop_are_known_by_a_share_of_any_library(share: Any) -> None:
    layers = [nn.LSTM(4, 3, 2, dropout=float(share)), nn.LSTM(4, 3, 2)]
    layers[0].dropout = share
    assert [same_in_training(layer) for layer in layers] == [False, True]


# Compiled networks


@pytest.mark.parametrize("name", ["_orig_mod.weight", "module.0._orig_mod.weight", "a._orig_mod.b._orig_mod.weight"])
def test_names_lose_the_mark_of_the_compiler_wherever_it_is(name: str) -> None:
    assert plain_name(name) == name.replace("_orig_mod.", "")


def test_parameters_of_like_names_keep_theirs() -> None:
    assert plain_name("my_orig_mod.weight") == "my_orig_mod.weight"


@pytest.mark.parametrize("source", ["plain", "inside", "around"])
@pytest.mark.parametrize("target", ["plain", "inside", "around"])
def test_states_load_whichever_side_is_compiled(source: str, target: str) -> None:
    def build(kind: str) -> nn.Module:
        layer = torch.compile(nn.Linear(4, 3)) if kind == "inside" else nn.Linear(4, 3)
        actor = QValueActor(layer, in_keys=["obs"], spec=Categorical(3))
        return torch.compile(actor) if kind == "around" else actor

    first, second = build(source), build(target)
    for saved in (first.state_dict(), plain_state_dict(first)):
        for parameter in second.parameters():
            parameter.data.zero_()
        load_plain_state_dict(second, saved)
        assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))
    assert list(plain_state_dict(first)) == ["module.0.module.weight", "module.0.module.bias"]


def test_the_bare_network_of_a_compiled_actor_is_the_plain_one() -> None:
    inner = nn.Linear(4, 3)
    actor = QValueActor(inner, in_keys=["obs"], spec=Categorical(3))
    inside = QValueActor(torch.compile(inner), in_keys=["obs"], spec=Categorical(3))
    for network in (torch.compile(inner), torch.compile(actor), inside):
        assert bare_network(network) is inner


def test_a_compiled_actor_keeps_its_keys() -> None:
    actor = encoder_and_head()
    assert as_tensordict_module(torch.compile(actor), ["action_value"]) is actor
