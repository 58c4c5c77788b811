"""The paper's towers: their sizes, and what they do to pixels."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Categorical, OneHot
from torchrl.modules import QValueActor

from torchrl_rtpd.networks.norm import ChannelNorm
from torchrl_rtpd.networks.towers import TOWERS, NatureTower, Tower, make_actor, num_parameters

# Computed by hand from the sizes printed in Sun & Fazli 2019; the counts with 18 actions of the teacher and of net1 to
# net3 are also those of Rusu et al. 2015, Table A1.
PARAMETERS = {  # name: (18 actions, 9, 6, 4, 3)
    "teacher": (1_693_362, 1_688_745, 1_687_206, 1_686_180, 1_685_667),
    "net1": (427_874, 425_561, 424_790, 424_276, 424_019),
    "net2": (113_346, 112_185, 111_798, 111_540, 111_411),
    "net3": (61_954, 61_369, 61_174, 61_044, 60_979),
    "net4": (55_666, 55_081, 54_886, 54_756, 54_691),
    "net5": (31_602, 31_017, 30_822, 30_692, 30_627),
}


def random_pixels(*batch: int, frames: int = 4, seed: int = 0) -> torch.Tensor:
    """Random stacks ``[*batch, frames, 84, 84]`` uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (*batch, frames, 84, 84), dtype=torch.uint8, generator=generator)


def forward_by_hand(tower: NatureTower, pixels: torch.Tensor) -> torch.Tensor:
    """The Nature DQN in float32, ``[B, A]``, from the tower's weights and nothing else of it."""
    weights = list(tower.state_dict().values())
    hidden = pixels.float() / 255
    for layer, stride in enumerate((4, 2, 1)):
        hidden = F.relu(F.conv2d(hidden, weights[2 * layer], weights[2 * layer + 1], stride=stride))
    hidden = F.relu(F.linear(hidden.reshape(len(pixels), -1), weights[6], weights[7]))
    return F.linear(hidden, weights[8], weights[9])


# Sizes


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_network_has_the_papers_number_of_parameters(name: str) -> None:
    counts = tuple(num_parameters(make_actor(name, Categorical(actions))) for actions in (18, 9, 6, 4, 3))
    assert counts == PARAMETERS[name]


@pytest.mark.parametrize("num_actions", [18, 9, 6, 4, 3])
def test_net17_meets_the_1_7_percent_that_net5_misses(num_actions: int) -> None:
    """1.72 to 1.77 %, as the paper's headline says, against 1.82 to 1.87 %."""
    teacher, net5, net17 = (
        num_parameters(make_actor(name, Categorical(num_actions))) for name in ("teacher", "net5", "net17")
    )
    assert 0.0172 < net17 / teacher < 0.0178
    assert 0.0181 < net5 / teacher < 0.0188


def test_net17_has_29214_parameters_with_six_actions() -> None:
    """8 * 4 * 64 + 8, twice 8 * 8 * 16 + 8 and 8 * 8 * 9 + 8, 392 * 64 + 64, 64 * 6 + 6."""
    assert num_parameters(make_actor("net17", Categorical(6))) == 2_056 + 1_032 + 584 + 25_152 + 390 == 29_214


def test_the_table_of_towers_holds_the_papers_names_and_net17() -> None:
    assert list(TOWERS) == [*PARAMETERS, "net17"]


def test_a_tower_of_ones_own_sizes_is_built() -> None:
    """(2 * 64 + 1) + (2 * 16 + 2) + (3 * 2 * 9 + 3) + (147 * 5 + 5) + (5 * 4 + 4), with one frame."""
    actor = make_actor(Tower((1, 2, 3), 5), Categorical(4), in_channels=1)
    assert num_parameters(actor) == (64 + 1) + (2 * 16 + 2) + (3 * 2 * 9 + 3) + (147 * 5 + 5) + (5 * 4 + 4)
    values = actor(TensorDict({"pixels": random_pixels(2, frames=1)}, [2]))
    assert values["action_value"].shape == (2, 4)


def test_parameters_are_counted_as_scalars() -> None:
    assert num_parameters(nn.Conv2d(2, 3, 5)) == 3 * 2 * 25 + 3


# What a tower computes


@pytest.mark.parametrize("name", ["teacher", "net17"])
def test_a_tower_is_the_nature_dqn_on_pixels_scaled_exactly_once(name: str) -> None:
    """Byte 255 becomes 1: the reference divides floats by 255 and calls torch's own convolutions."""
    tower = NatureTower(6, filters=TOWERS[name].filters, units=TOWERS[name].units)
    with torch.no_grad():
        for bias in (parameter for parameter in tower.parameters() if parameter.ndim == 1):
            bias.uniform_(-0.1, 0.1)
        pixels = random_pixels(3)
        torch.testing.assert_close(tower(pixels), forward_by_hand(tower, pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_pixels_that_are_not_bytes_are_a_type_error(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"must be uint8, .* got {dtype}; remove the transform"):
        NatureTower(6)(random_pixels(1).to(dtype))


def test_pixels_are_left_as_they_were() -> None:
    pixels = random_pixels(2)
    NatureTower(6, filters=(8, 8, 8), units=64)(pixels)
    assert torch.equal(pixels, random_pixels(2))


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (2, 1, 2), (0,)])
def test_any_batch_shape_gives_values_of_that_shape(batch: tuple[int, ...]) -> None:
    tower = NatureTower(5, filters=(8, 8, 8), units=64)
    pixels = random_pixels(*batch)
    values = tower(pixels)
    assert values.shape == (*batch, 5)
    flat = tower(pixels.reshape(-1, 4, 84, 84))
    torch.testing.assert_close(values.reshape(-1, 5), flat)


def test_frames_in_another_memory_order_give_the_same_values() -> None:
    """A stack that is a view into a longer row of frames is read right."""
    tower = NatureTower(6, filters=(8, 8, 8), units=64)
    row = random_pixels(2, frames=6)
    torch.testing.assert_close(tower(row[:, 1:5]), tower(row[:, 1:5].contiguous()))


def test_the_head_stays_float32_under_bfloat16() -> None:
    """Its inputs are bfloat16, its own arithmetic is not: most of its values are no bfloat16 numbers."""
    tower = NatureTower(18, filters=(8, 8, 8), units=64, autocast_dtype=torch.bfloat16)
    seen = {}
    tower.trunk.register_forward_hook(lambda _module, _inputs, output: seen.update(trunk=output))
    tower.head.register_forward_hook(lambda _module, inputs, output: seen.update(inputs=inputs[0], head=output))
    values = tower(random_pixels(8))
    assert seen["trunk"].dtype == torch.bfloat16
    assert seen["inputs"].dtype == seen["head"].dtype == values.dtype == torch.float32
    assert (values != values.bfloat16().float()).float().mean() > 0.5
    torch.testing.assert_close(values, F.linear(seen["trunk"].float(), tower.head.weight, tower.head.bias))


def test_bfloat16_changes_values_only_a_little() -> None:
    torch.manual_seed(0)
    tower = NatureTower(6)
    exact = tower(random_pixels(8))
    tower.autocast_dtype = torch.bfloat16
    rounded = tower(random_pixels(8))
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("autocast_dtype", [None, torch.bfloat16])
def test_the_callers_autocast_does_not_reach_the_head(autocast_dtype: torch.dtype | None) -> None:
    """The network alone decides which of its layers are rounded."""
    tower = NatureTower(6, filters=(8, 8, 8), units=64, autocast_dtype=autocast_dtype)
    expected = tower(random_pixels(2))
    with torch.autocast("cpu", torch.bfloat16):
        values = tower(random_pixels(2))
    assert values.dtype == torch.float32
    assert torch.equal(values, expected)


def test_every_parameter_gets_a_gradient_also_under_bfloat16() -> None:
    torch.manual_seed(0)
    tower = NatureTower(6, autocast_dtype=torch.bfloat16)
    tower(random_pixels(4)).pow(2).sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert parameter.grad.abs().sum() > 0, name


def test_weights_are_he_normal_biases_zero_and_the_head_a_tenth() -> None:
    """Standard deviation sqrt(2 / inputs); 3 % is more than four standard errors of the smallest layer."""
    torch.manual_seed(0)
    tower = NatureTower(18)
    inputs = {"trunk.0": 4 * 64, "trunk.2": 32 * 16, "trunk.4": 64 * 9, "trunk.7": 64 * 49, "head": 512}
    for name, count in inputs.items():
        module = tower.get_submodule(name)
        expected = (2 / count) ** 0.5 * (0.1 if name == "head" else 1)
        assert module.weight.std().item() == pytest.approx(expected, rel=0.03), name
        assert not module.bias.any(), name


def test_reset_parameters_draws_all_weights_anew() -> None:
    torch.manual_seed(0)
    tower = NatureTower(6, filters=(8, 8, 8), units=64)
    before = {name: parameter.clone() for name, parameter in tower.named_parameters()}
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 1000
    tower.reset_parameters()
    for name, parameter in tower.named_parameters():
        assert parameter.abs().max() < 10, name
        assert name.endswith("bias") or not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_actions": 0}, r"num_actions must lie in \[1, inf\): got 0; .*TOWERS \(teacher, net1"),
        ({"filters": (8, 8)}, r"filters must be three numbers of channels: got \(8, 8\); .*TOWERS"),
        ({"filters": (8, 0, 8)}, r"filters\[1\] must lie in \[1, inf\): got 0"),
        ({"units": -1}, r"units must lie in \[1, inf\): got -1"),
        ({"in_channels": 0}, r"in_channels must lie in \[1, inf\): got 0"),
        ({"frame_size": (35, 84)}, r"height must lie in \[36, inf\): got 35; smaller frames end before"),
        ({"frame_size": (84, 1)}, r"width must lie in \[36, inf\): got 1"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NatureTower(**{"num_actions": 6, **arguments})


# Other frames and other weights


@pytest.mark.parametrize("frame_size", [(36, 36), (64, 96), (84, 84), (84, 160), (105, 80), (210, 160)])
@pytest.mark.parametrize("in_channels", [1, 3, 12])
def test_a_tower_is_built_for_any_frame(frame_size: tuple[int, int], in_channels: int) -> None:
    """Sizes of ALE's own screen, grey or in colour; the smallest leaves one pixel to the third convolution."""
    actor = make_actor(Tower((2, 2, 2), 4), Categorical(6), in_channels=in_channels, frame_size=frame_size, seed=0)
    pixels = torch.zeros(3, in_channels, *frame_size, dtype=torch.uint8)
    assert actor(TensorDict({"pixels": pixels}, [3]))["action_value"].shape == (3, 6)


def test_the_papers_frames_are_the_default_and_draw_the_same_weights() -> None:
    plain, sized = (make_actor("net17", Categorical(6), seed=0, **k) for k in ({}, {"frame_size": (84, 84)}))
    assert all(torch.equal(one, two) for one, two in zip(plain.parameters(), sized.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(4, 64, 64), (2, 12, 84, 84), (84, 84), (2, 84, 84, 4)])
def test_frames_that_do_not_fit_are_named_with_the_remedy(shape: tuple[int, ...]) -> None:
    """Another size, colour, a single frame, channels last."""
    message = rf"must be \[\*B, 4, 84, 84\]: got {re.escape(str(list(shape)))}; .* in_channels and frame_size"
    with pytest.raises(ValueError, match=message):
        NatureTower(6, filters=(2, 2, 2), units=4)(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("dtype", "result", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-5),
        (torch.bfloat16, torch.float32, 5e-2),
        (torch.float32, torch.float32, 0.0),
    ],
)
def test_weights_may_have_another_precision(dtype: torch.dtype, result: torch.dtype, tolerance: float) -> None:
    """Values come in single precision at least, close to those of single precision; every weight gets a gradient."""
    tower = NatureTower(6, filters=(8, 8, 8), units=64)
    expected = tower(random_pixels(3)).detach()
    found = tower.to(dtype)(random_pixels(3))
    assert found.dtype is result
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance * expected.abs().max().item())
    found.sum().backward()
    assert all(parameter.grad.dtype is dtype for parameter in tower.parameters())


# Actors


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("kind", [Categorical, OneHot])
def test_an_actor_takes_the_greedy_action_of_its_values(kind: type, batch: tuple[int, ...]) -> None:
    """With an environment's spec, batched or not, and in its encoding."""
    spec = kind(6, shape=batch) if kind is Categorical else kind(6, shape=(*batch, 6))
    actor = make_actor("net17", spec, seed=0)
    result = actor(TensorDict({"pixels": random_pixels(3)}, [3]))
    assert isinstance(actor, QValueActor)
    greedy = result["action_value"].argmax(-1)
    expected = greedy if kind is Categorical else F.one_hot(greedy, 6)
    assert torch.equal(result["action"].long(), expected)
    assert torch.equal(result["chosen_action_value"].squeeze(-1), result["action_value"].max(-1).values)
    assert result["action_value"].shape == (3, 6)


def test_an_actor_reads_pixels_where_it_is_told() -> None:
    actor = make_actor("net17", Categorical(3), in_key=("camera", "left"))
    assert actor.in_keys == [("camera", "left")]
    result = actor(TensorDict({"camera": {"left": random_pixels(2)}}, [2]))
    assert result["action_value"].shape == (2, 3)


def test_an_actor_hands_autocast_on() -> None:
    actor = make_actor("net17", Categorical(3), autocast_dtype=torch.bfloat16)
    assert [module.autocast_dtype for module in actor.modules() if isinstance(module, NatureTower)] == [torch.bfloat16]


def test_an_actor_is_built_on_the_device_asked_for() -> None:
    assert {parameter.device.type for parameter in make_actor("net17", Categorical(3), device="meta").parameters()} == {
        "meta"
    }


def test_a_seed_gives_the_same_weights_again_and_another_seed_others() -> None:
    first, again, other = (make_actor("net17", Categorical(6), seed=seed) for seed in (3, 3, 4))
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_a_seed_leaves_the_global_generator_as_it_was() -> None:
    """So that adding a student changes no random number of the teacher's."""
    before = torch.get_rng_state()
    make_actor("net17", Categorical(6), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_weights_come_from_the_global_generator() -> None:
    actors = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        actors.append(make_actor("net17", Categorical(6)))
    first, again, other = (next(actor.parameters()) for actor in actors)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "near"),
    [("net6", "net5"), ("Net3", "net3"), ("teecher", "teacher"), ("resnet50", "net5"), ("zzz", "net17")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown network '{name}'; did you mean .*{near}.* pass .*Tower\("):
        make_actor(name, Categorical(6))


def test_a_spec_without_a_finite_set_of_actions_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"must be Categorical or OneHot: got Bounded"):
        make_actor("net17", Bounded(-1, 1, shape=(6,)))


# Normalised towers


@pytest.mark.parametrize(("name", "added"), [("teacher", 1_344), ("net17", 176)])
def test_a_norm_adds_two_numbers_a_channel_and_the_plain_towers_stay(name: str, added: int) -> None:
    """2 * (32 + 64 + 64 + 512) and 2 * (8 + 8 + 8 + 64). The same seed draws the same weights."""
    plain, normed = (make_actor(name, Categorical(6), norm=norm, seed=0) for norm in (None, "layer"))
    assert num_parameters(normed) - num_parameters(plain) == added
    drawn = [[value for value in actor.parameters() if value.ndim > 1] for actor in (plain, normed)]
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def test_each_pixel_of_a_normed_tower_has_channels_of_one_size() -> None:
    """Before each ReLU: mean 0, variance 1, over channels; and whatever the brightness, the values stay small."""
    tower = NatureTower(6, filters=(8, 8, 8), units=64, norm="layer")
    seen = []
    for module in tower.trunk:
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    tower(random_pixels(3))
    assert [tuple(features.shape[1:]) for features in seen] == [(8, 20, 20), (8, 9, 9), (8, 7, 7), (64,)]
    for features in seen:
        torch.testing.assert_close(features.mean(1), torch.zeros_like(features.mean(1)), atol=1e-5, rtol=0)
        variance = features.var(1, correction=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=2e-2, rtol=0)


def test_a_channel_norm_is_layer_norm_over_channels() -> None:
    """The oracle is a loop over pixels."""
    norm = ChannelNorm(5)
    with torch.no_grad():
        norm.weight.normal_(), norm.bias.normal_()
    features = torch.randn(2, 5, 3, 4)
    found = norm(features)
    for sample, row, column in ((0, 0, 0), (1, 2, 3)):
        pixel = features[sample, :, row, column]
        expected = F.layer_norm(pixel, (5,), norm.weight, norm.bias, 1e-6)
        torch.testing.assert_close(found[sample, :, row, column], expected)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="norm must be layer or None: got 'batch'"):
        make_actor("net17", Categorical(6), norm="batch")
