"""The paper's networks: sizes, scaling, seeds, and the measure of dormant units."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical, OneHot

from torchrl_rtpd import TOWERS, NatureTower, Tower, make_actor
from torchrl_rtpd.networks import dormant_share, num_parameters

ACTIONS = (18, 9, 6, 4, 3)
PARAMETERS = {  # by number of actions, as in ACTIONS
    "teacher": (1_693_362, 1_688_745, 1_687_206, 1_686_180, 1_685_667),
    "net1": (427_874, 425_561, 424_790, 424_276, 424_019),
    "net2": (113_346, 112_185, 111_798, 111_540, 111_411),
    "net3": (61_954, 61_369, 61_174, 61_044, 60_979),
    "net4": (55_666, 55_081, 54_886, 54_756, 54_691),
    "net5": (31_602, 31_017, 30_822, 30_692, 30_627),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_papers(name: str) -> None:
    """Every network has the published size, for every number of actions."""
    counts = tuple(num_parameters(make_actor(name, Categorical(actions))) for actions in ACTIONS)
    assert counts == PARAMETERS[name]


@pytest.mark.parametrize("actions", ACTIONS)
def test_net17_meets_the_headline_and_net5_does_not(actions: int) -> None:
    """{8, 8, 8, 64} has 1.7 % of the teacher's parameters; the printed Net5 has 1.8 to 1.9 %."""
    teacher, net5, net17 = (
        num_parameters(make_actor(name, Categorical(actions))) for name in ("teacher", "net5", "net17")
    )
    assert 0.0170 <= net17 / teacher <= 0.0178
    assert 0.0181 <= net5 / teacher <= 0.0188


def test_custom_sizes_are_towers() -> None:
    """A user's own sizes build like the named ones: 4*2*64+2 + 2*2*16+2 + 2*2*9+2 + 2*49*5+5 + 5*3+3 parameters."""
    actor = make_actor(Tower((2, 2, 2), 5), Categorical(3))
    assert num_parameters(actor) == 514 + 66 + 38 + 495 + 18


def test_pixels_are_scaled_exactly_once() -> None:
    """The network's values are those of the plain layers on pixels / 255."""
    tower = NatureTower(4, filters=(8, 8, 8), units=64)
    pixels = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    features = pixels.float() / 255
    for layer, stride in ((0, 4), (2, 2), (4, 1)):
        features = F.relu(F.conv2d(features, tower.trunk[layer].weight, tower.trunk[layer].bias, stride))
    hidden = F.relu(F.linear(features.flatten(1), tower.trunk[7].weight, tower.trunk[7].bias))
    wanted = F.linear(hidden, tower.head.weight, tower.head.bias)
    assert torch.allclose(tower(pixels), wanted, atol=1e-6)


def test_float_pixels_are_refused() -> None:
    """Pixels that were already converted would be scaled twice: an error that names the remedy."""
    with pytest.raises(TypeError, match=r"pixels must be uint8.*got torch.float32; remove the transform"):
        NatureTower(4)(torch.zeros(1, 4, 84, 84))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_any_batch_shape(batch: tuple[int, ...]) -> None:
    """[*B, 4, 84, 84] in, [*B, A] out."""
    actor = make_actor("net17", Categorical(6))
    tensordict = actor(TensorDict({"pixels": torch.zeros(*batch, 4, 84, 84, dtype=torch.uint8)}, batch))
    assert tensordict["action_value"].shape == (*batch, 6)
    assert tensordict["action"].shape == batch


def test_autocast_keeps_the_head_in_float32() -> None:
    """Below the head bfloat16 rounds; the values are float32 and close to the float32 network's."""
    precise = make_actor("net17", Categorical(6), seed=0)
    mixed = make_actor("net17", Categorical(6), seed=0, autocast_dtype=torch.bfloat16)
    pixels = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    values = [actor(TensorDict({"pixels": pixels}, [2]))["action_value"] for actor in (precise, mixed)]
    assert values[1].dtype == torch.float32
    assert not torch.equal(*values)
    assert torch.allclose(*values, atol=0.02)


@pytest.mark.parametrize(
    ("spec", "shape"), [(Categorical(6), (2,)), (OneHot(6), (2, 6)), (Categorical(6, shape=(8,)), (2,))]
)
def test_categorical_one_hot_and_batched_specs(spec: Categorical | OneHot, shape: tuple[int, ...]) -> None:
    """The action has the form of the spec, whatever the environment's batch."""
    actor = make_actor("net17", spec)
    pixels = torch.zeros(2, 4, 84, 84, dtype=torch.uint8)
    assert actor(TensorDict({"pixels": pixels}, [2]))["action"].shape == shape


def test_seed_repeats_the_weights_and_leaves_the_global_generator_alone() -> None:
    """Adding a seeded network changes nothing for what is drawn afterwards."""
    state = torch.random.get_rng_state()
    first, second = (make_actor("net17", Categorical(6), seed=5) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    make_actor("net17", Categorical(6))
    assert not torch.equal(state, torch.random.get_rng_state())


def test_weights_suit_relu_layers() -> None:
    """He-normal: the variance of a layer's weights is 2 / fan-in, of the head a hundredth of that; biases are zero."""
    tower = NatureTower(18)
    hidden = tower.trunk[7]
    assert hidden.weight.var().item() == pytest.approx(2 / 3136, rel=0.02)
    assert tower.head.weight.var().item() == pytest.approx(0.01 * 2 / 512, rel=0.1)
    assert all(not parameter.any() for name, parameter in tower.named_parameters() if name.endswith("bias"))


def test_unknown_name_gets_the_nearest() -> None:
    """A mistyped network is answered with real names."""
    with pytest.raises(ValueError, match="unknown network 'net6'; did you mean net5"):
        make_actor("net6", Categorical(6))
    assert "net5" in TOWERS


@pytest.mark.parametrize(("filters", "units"), [((8, 8), 64), ((8, 0, 8), 64), ((8, 8, 8), 0)])
def test_impossible_sizes_are_refused(filters: tuple[int, ...], units: int) -> None:
    """Three filters and positive sizes, or an error with the values."""
    with pytest.raises(ValueError, match=r"three filters and positive sizes: got.*units="):
        NatureTower(6, filters=filters, units=units)


def _network(weights: list[list[float]]) -> TensorDictModule:
    """One linear layer for each list, from a single input, each followed by ReLU; shares are known by hand."""
    layers: list[nn.Module] = []
    inputs = 1
    for row in weights:
        layer = nn.Linear(inputs, len(row))
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(row)[:, None].expand(-1, inputs) / inputs)
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
        inputs = len(row)
    return TensorDictModule(nn.Sequential(*layers), in_keys=["observation"], out_keys=["features"])


@pytest.mark.parametrize(
    ("weights", "threshold", "share"),
    [
        ([[1.0, 1.0]], 0.025, 0.0),  # both live
        ([[1.0, -1.0]], 0.025, 0.5),  # one is zero on the positive input
        ([[-1.0, -2.0]], 0.025, 1.0),  # the whole layer is zero
        ([[1.0, 0.01]], 0.025, 0.5),  # 0.01 is below 0.025 * (1 + 0.01) / 2
        ([[1.0, 0.01]], 0.001, 0.0),
        ([[1.0, 1.0, 1.0, -1.0], [1.0, -1.0]], 0.025, 0.5),  # the worse of 1/4 and 1/2
    ],
)
def test_dormant_share_by_hand(weights: list[list[float]], threshold: float, share: float) -> None:
    """Units are dormant relative to their layer's mean, and the worst layer counts."""
    batch = TensorDict({"observation": torch.ones(4, 1)}, [4])
    assert dormant_share(_network(weights), batch, threshold=threshold) == share


def test_measuring_dormant_units_leaves_no_trace() -> None:
    """The batch keeps its entries and the network its hooks."""
    network = make_actor("net17", Categorical(6), seed=0)
    batch = TensorDict({"pixels": torch.randint(256, (4, 4, 84, 84), dtype=torch.uint8)}, [4])
    dormant_share(network, batch)
    assert list(batch.keys()) == ["pixels"]
    assert not any(module._forward_hooks for module in network.modules())


def test_network_without_relu_cannot_be_measured() -> None:
    """The error names the network and what it needs."""
    network = TensorDictModule(nn.Linear(1, 1), in_keys=["observation"], out_keys=["action_value"])
    with pytest.raises(ValueError, match=r"needs a network with torch.nn.ReLU layers: TensorDictModule has none"):
        dormant_share(network, TensorDict({"observation": torch.ones(2, 1)}, [2]))
