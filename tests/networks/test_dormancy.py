"""How a network's dormant units are counted."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical

from torchrl_rtpd.networks.dormancy import dormant_share
from torchrl_rtpd.networks.towers import NatureTower, make_actor


def random_pixels(*batch: int, frames: int = 4, seed: int = 0) -> torch.Tensor:
    """Random stacks ``[*batch, frames, 84, 84]`` uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (*batch, frames, 84, 84), dtype=torch.uint8, generator=generator)


def relu_network(weight: list[list[float]], *more: list[list[float]]) -> TensorDictModule:
    """Linear layers without biases, each followed by a ReLU, from "obs" to "features"."""
    layers: list[nn.Module] = []
    for matrix in (weight, *more):
        layer = nn.Linear(len(matrix[0]), len(matrix), bias=False)
        layer.weight.data = torch.tensor(matrix)
        layers += [layer, nn.ReLU()]
    return TensorDictModule(nn.Sequential(*layers), in_keys=["obs"], out_keys=["features"])


@pytest.mark.parametrize(
    ("weights", "threshold", "share"),
    [
        ([[1.0], [1.0], [1.0], [1.0]], 0.025, 0.0),  # all alive
        ([[1.0], [-1.0], [1.0], [1.0]], 0.025, 0.25),  # one of four never fires
        ([[-1.0], [-1.0]], 0.025, 1.0),  # a dead layer
        ([[1.0], [0.01]], 0.025, 0.5),  # 0.01 is at most 0.025 of the mean 0.505
        ([[1.0], [0.01]], 0.01, 0.0),  # but more than 0.01 of it
        ([[1.0], [3.0]], 0.5, 0.5),  # exactly half the mean counts
    ],
)
def test_a_unit_is_dormant_at_or_below_the_threshold_of_its_layers_mean(
    weights: list[list[float]], threshold: float, share: float
) -> None:
    batch = TensorDict({"obs": torch.ones(4, 1)}, [4])
    assert dormant_share(relu_network(weights), batch, threshold=threshold) == share


def test_the_worst_layer_is_reported() -> None:
    """None, two of four and one of two units are dormant in three layers."""
    first = [[1.0], [1.0]]
    second = [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]
    third = [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]
    batch = TensorDict({"obs": torch.ones(4, 1)}, [4])
    assert dormant_share(relu_network(first, second, third), batch) == 0.5


def test_activity_on_any_sample_keeps_a_unit_awake() -> None:
    """Unit 0 fires on one sample, unit 1 on the other: means 0.5 and 0.5."""
    batch = TensorDict({"obs": torch.tensor([[1.0], [-1.0]])}, [2])
    assert dormant_share(relu_network([[1.0], [-1.0]]), batch) == 0.0


def test_a_channel_of_a_convolution_is_one_unit() -> None:
    """Two channels of a 1x1 convolution, one of them negative everywhere."""
    convolution = nn.Conv2d(1, 2, 1, bias=False)
    convolution.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
    network = TensorDictModule(nn.Sequential(convolution, nn.ReLU()), in_keys=["obs"], out_keys=["features"])
    assert dormant_share(network, TensorDict({"obs": torch.ones(3, 1, 4, 4)}, [3])) == 0.5


def test_a_tower_whose_last_convolution_is_dead_is_wholly_dormant() -> None:
    actor = make_actor("net17", Categorical(6), seed=0)
    batch = TensorDict({"pixels": random_pixels(8)}, [8])
    assert dormant_share(actor, batch) < 0.8
    tower = next(module for module in actor.modules() if isinstance(module, NatureTower))
    with torch.no_grad():
        tower.trunk[4].bias.fill_(-1e6)
    assert dormant_share(actor, batch) == 1.0


def test_counting_leaves_batch_network_and_hooks_as_they_were() -> None:
    actor = make_actor("net17", Categorical(6), seed=0).train()
    batch = TensorDict({"pixels": random_pixels(4), "other": torch.zeros(4)}, [4])
    weights = {name: tensor.clone() for name, tensor in actor.state_dict().items()}
    dormant_share(actor, batch)
    assert set(batch.keys()) == {"pixels", "other"}
    assert torch.equal(batch["pixels"], random_pixels(4))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in actor.state_dict().items())
    assert all(parameter.grad is None for parameter in actor.parameters())
    assert not any(module._forward_hooks for module in actor.modules())
    assert actor.training


def test_hooks_are_removed_when_the_network_fails() -> None:
    actor = make_actor("net17", Categorical(6), seed=0)
    with pytest.raises(TypeError, match="must be uint8"):
        dormant_share(actor, TensorDict({"pixels": random_pixels(4).float()}, [4]))
    assert not any(module._forward_hooks for module in actor.modules())


def test_a_network_without_relu_is_refused() -> None:
    network = TensorDictModule(nn.Linear(1, 2), in_keys=["obs"], out_keys=["features"])
    with pytest.raises(
        ValueError, match=r"torch\.nn\.ReLU layers: TensorDictModule has none; build one with make_actor"
    ):
        dormant_share(network, TensorDict({"obs": torch.ones(4, 1)}, [4]))


def test_a_compiled_network_gives_the_same_values_gradients_and_dormant_units() -> None:
    """To 1e-4 of the largest; hooks that measure run the network eagerly, since compiled code would pass them by."""
    actors = [make_actor("net17", Categorical(6), seed=0) for _ in range(2)]
    towers = [actor.module[0].module for actor in actors]
    towers[1].compile()
    pixels = random_pixels(4)
    values = [tower(pixels) for tower in towers]
    for value in values:
        value.square().sum().backward()
    pairs = [values, *zip(*(tower.parameters() for tower in towers), strict=True)]
    for eager, compiled in [*pairs, *((one.grad, two.grad) for one, two in pairs[1:])]:
        torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-4 * eager.abs().max().item())
    batch = TensorDict({"pixels": pixels}, [4])
    assert dormant_share(actors[1], batch) == dormant_share(actors[0], batch)
