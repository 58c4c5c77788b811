"""Recycling of dormant units: which weights change, which do not, and what the optimiser forgets."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.networks.dormancy import dormant_share
from torchrl_rtpd.networks.recycling import UnitRecycler, recycle_dormant
from torchrl_rtpd.networks.towers import NatureTower, make_actor
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss

PREFIX = "module.0.module."  # of a tower within its actor
LAYERS = [f"{PREFIX}trunk.{index}" for index in (0, 2, 4, 7)]


def random_pixels(*batch: int, seed: int = 0) -> TensorDict:
    """Random stacks with a bright and a dark half, so that units differ."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDict(
        {"pixels": torch.randint(256, (*batch, 4, 84, 84), dtype=torch.uint8, generator=generator)}, batch
    )


def tower_of(actor: nn.Module) -> NatureTower:
    return next(module for module in actor.modules() if isinstance(module, NatureTower))


def tower_with_dead(*dead: tuple[int, int]) -> QValueActor:
    """A net17 whose biases keep the given units (index in the trunk, unit) from ever firing, and all others firing."""
    actor = make_actor("net17", Categorical(6), seed=0)
    with torch.no_grad():
        for index in (0, 2, 4, 7):
            tower_of(actor).trunk[index].bias.fill_(2.0)
            tower_of(actor).trunk[index].weight.mul_(0.1)
        for index, unit in dead:
            tower_of(actor).trunk[index].bias[unit] = -1e3
    return actor


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): value.clone() for name, value in network.state_dict().items()}


def recycled(network: TensorDictModule, batch: TensorDict, *args, seed: int = 0, **kwargs) -> dict[str, int]:
    return recycle_dormant(network, batch, *args, generator=torch.Generator().manual_seed(seed), **kwargs)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where tensors differ, by name, those that do."""
    return {name: before[name] != after[name] for name in before if not torch.equal(before[name], after[name])}


def sequential(*layers: nn.Module) -> TensorDictModule:
    return TensorDictModule(nn.Sequential(*layers), in_keys=["obs"], out_keys=["action_value"])


def observations(*shape: int, batch_dims: int = 1) -> TensorDict:
    return TensorDict({"obs": torch.rand(*shape, generator=torch.Generator().manual_seed(0))}, shape[:batch_dims])


# What is written


def test_a_channel_before_a_convolution_is_recycled_with_its_slice_of_the_next() -> None:
    actor = tower_with_dead((0, 3))
    before = weights_of(actor)
    assert recycled(actor, random_pixels(4)) == dict(zip(LAYERS, (1, 0, 0, 0), strict=True))
    after = weights_of(actor)
    where = changed(before, after)
    assert where.keys() == {"trunk.0.weight", "trunk.0.bias", "trunk.2.weight"}
    assert where["trunk.0.weight"][3].all() and where["trunk.0.weight"].sum() == 4 * 8 * 8
    assert after["trunk.0.bias"][3] == 0 and where["trunk.0.bias"].sum() == 1
    assert (after["trunk.2.weight"][:, 3] == 0).all() and where["trunk.2.weight"].sum() == 8 * 4 * 4


def test_a_channel_before_a_linear_layer_owns_a_block_of_49_columns() -> None:
    actor = tower_with_dead((4, 5))
    before = weights_of(actor)
    assert recycled(actor, random_pixels(4)) == dict(zip(LAYERS, (0, 0, 1, 0), strict=True))
    after = weights_of(actor)
    where = changed(before, after)
    assert where.keys() == {"trunk.4.weight", "trunk.4.bias", "trunk.7.weight"}
    assert (after["trunk.7.weight"][:, 5 * 49 : 6 * 49] == 0).all()
    assert where["trunk.7.weight"].sum() == 64 * 49


def test_a_neuron_before_the_head_owns_a_column_of_it() -> None:
    actor = tower_with_dead((7, 10), (7, 63))
    before = weights_of(actor)
    assert recycled(actor, random_pixels(4)) == dict(zip(LAYERS, (0, 0, 0, 2), strict=True))
    after = weights_of(actor)
    where = changed(before, after)
    assert where.keys() == {"trunk.7.weight", "trunk.7.bias", "head.weight"}
    assert (after["head.weight"][:, [10, 63]] == 0).all()
    assert where["head.weight"].sum() == 2 * 6


def test_new_weights_are_of_the_towers_own_initialisation() -> None:
    """He-normal: a standard deviation of (2 / 392) ** 0.5 in the linear layer, whose 64 units are all dead here."""
    actor = tower_with_dead(*((7, unit) for unit in range(64)))
    recycled(actor, random_pixels(4))
    weight = weights_of(actor)["trunk.7.weight"]
    assert weight.std().item() == pytest.approx((2 / 392) ** 0.5, rel=0.02)
    assert abs(weight.mean().item()) < 0.002


def test_another_initialisation_can_be_asked_for() -> None:
    """PyTorch's own for linear layers is uniform within 392 ** -0.5."""
    actor = tower_with_dead(*((7, unit) for unit in range(64)))
    recycled(actor, random_pixels(4), initialise=partial(nn.init.kaiming_uniform_, a=5**0.5))
    bound = 392**-0.5
    assert 0.99 * bound < weights_of(actor)["trunk.7.weight"].abs().max() <= bound * (1 + 1e-6)


def test_weights_between_two_recycled_units_are_drawn_not_zeroed() -> None:
    """Else a unit fed by dead units only would stay dead."""
    actor = tower_with_dead(*((2, unit) for unit in range(8)), (4, 1))
    recycled(actor, random_pixels(4))
    weight = weights_of(actor)["trunk.4.weight"]
    assert weight[1].abs().min() > 0
    assert (weight[[0, 2, 3, 4, 5, 6, 7]] == 0).all()


def test_nothing_is_written_where_nothing_is_dormant() -> None:
    actor = tower_with_dead()
    before = weights_of(actor)
    assert recycled(actor, random_pixels(4)) == dict.fromkeys(LAYERS, 0)
    assert not changed(before, weights_of(actor))


def test_a_unit_is_dormant_at_or_below_the_threshold_of_its_layers_mean() -> None:
    """Activations 1, 0.5 and 0 have the mean 0.5."""
    layer = nn.Linear(1, 3, bias=False)
    layer.weight.data = torch.tensor([[1.0], [0.5], [0.0]])
    batch = TensorDict({"obs": torch.ones(2, 1)}, [2])
    for threshold, count in ((0.0, 1), (0.9, 1), (1.0, 2), (2.0, 3)):
        network = sequential(copy.deepcopy(layer), nn.ReLU(), nn.Linear(3, 2))
        assert recycled(network, batch, threshold=threshold) == {"module.0": count}


def test_recycling_and_dormant_share_agree() -> None:
    actor = make_actor("net17", Categorical(6), seed=1)
    batch = random_pixels(8)
    share = dormant_share(actor, batch)
    counts = recycled(actor, batch)
    assert max(count / units for count, units in zip(counts.values(), (8, 8, 8, 64), strict=True)) == share


# What it is for


@pytest.mark.parametrize("dead", [(0, 3), (2, 0), (4, 5), (7, 10)])
def test_outputs_do_not_change_when_dead_units_are_recycled(dead: tuple[int, int]) -> None:
    actor, batch = tower_with_dead(dead), random_pixels(4)
    before = actor(batch.clone())["action_value"]
    assert sum(recycled(actor, batch).values()) == 1
    torch.testing.assert_close(actor(batch.clone())["action_value"], before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dead", [(0, 3), (2, 0), (4, 5), (7, 10)])
def test_recycled_units_fire_and_learn_again(dead: tuple[int, int]) -> None:
    """A dead unit has no gradient; a recycled one has it in its outgoing weights, and after a step in its own."""
    actor, batch = tower_with_dead(dead), random_pixels(16)
    layer = tower_of(actor).trunk[dead[0]]
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)

    def own_gradient() -> float:
        optimizer.zero_grad()
        actor(batch.clone())["action_value"].square().sum().backward()
        return layer.weight.grad[dead[1]].abs().max().item()

    assert own_gradient() == 0
    recycled(actor, batch, optimizer, seed=2)  # one whose draws fire on these pixels
    own_gradient()
    optimizer.step()
    assert own_gradient() > 0
    assert recycled(actor, batch)[f"{PREFIX}trunk.{dead[0]}"] == 0


def test_a_student_that_is_wholly_dead_comes_back_to_life() -> None:
    """The death of shared/findings.md: the last convolution is silent, and outputs do not depend on the state."""
    actor = make_actor("net17", Categorical(6), seed=0)
    tower = tower_of(actor)
    with torch.no_grad():
        tower.trunk[2].bias.fill_(-1e3)
        tower.trunk[4].bias.fill_(-1e3)
    batch = random_pixels(32)
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
    wanted = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))

    def train(updates: int) -> Tensor:
        for _ in range(updates):
            optimizer.zero_grad()
            values = actor(batch.clone())["action_value"]
            F.mse_loss(values, wanted).backward()
            optimizer.step()
        return values.detach()

    assert train(20).std(0).max() == 0
    counts = recycled(actor, batch, optimizer)
    assert counts[LAYERS[1]] == counts[LAYERS[2]] == 8
    assert train(60).std(0).max() > 0.05
    assert dormant_share(actor, batch) < 1


@pytest.mark.parametrize("recycles", [False, True])
def test_a_dead_student_on_a_real_game_lives_again_with_recycling_only(recycles: bool) -> None:
    """Frames of Road Runner, 60 updates towards a fixed teacher, units recycled every 20."""
    env = AtariVecEnv("road_runner", 4, seed=0)
    env.set_seed(0)
    actions = torch.Generator().manual_seed(0)
    tensordict, frames = env.reset(), []
    for step in range(320):
        tensordict["action"] = torch.randint(env.action_spec_unbatched.n, (4,), generator=actions)
        _, tensordict = env.step_and_maybe_reset(tensordict)
        if step % 20 == 0:
            frames.append(tensordict.select("pixels").clone())
    env.close()
    batch = torch.cat(frames)
    teacher = make_actor("net3", env.action_spec_unbatched, seed=1)
    with torch.no_grad():
        values = teacher(batch.clone())["action_value"]
        batch["teacher", "action_value"] = (values - values.mean(0)) / values.std()
    student = make_actor("net17", env.action_spec_unbatched, seed=0)
    with torch.no_grad():
        tower_of(student).trunk[4].bias.fill_(-1e3)
    loss = DistillationLoss(student, teacher_temperature=1.0, student_temperature=1.0)
    optimizer, recycler = torch.optim.Adam(loss.parameters(), lr=1e-3, eps=1e-5), UnitRecycler(every_updates=20)
    for updates in range(1, 61):
        loss(batch)["loss_distill"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if recycles and recycler.due(updates):
            recycler(loss.student_network, batch, optimizer, updates=updates)
    with torch.no_grad():
        spread = student(batch.select("pixels"))["action_value"].std(0).max().item()
    if recycles:
        assert dormant_share(student, batch) < 1
        assert spread > 1e-2
    else:
        assert dormant_share(student, batch) == 1
        assert spread < 1e-5


# The optimiser


@pytest.mark.parametrize(
    "factory",
    [
        partial(torch.optim.Adam, lr=1e-3),
        partial(torch.optim.Adam, lr=1e-3, amsgrad=True),
        partial(torch.optim.Adam, lr=1e-3, fused=True),
        partial(torch.optim.RMSprop, lr=1e-5, momentum=0.9, centered=True),
    ],
)
def test_the_optimiser_forgets_exactly_the_entries_that_were_rewritten(factory: partial) -> None:
    actor, batch = tower_with_dead((0, 3), (4, 5), (7, 10)), random_pixels(4)
    optimizer = factory(actor.parameters())
    actor(batch.clone())["action_value"].square().sum().backward()
    optimizer.step()
    for state in optimizer.state.values():  # no entry is 0 by chance
        for value in state.values():
            if value.ndim:
                value.fill_(0.5)
    before = weights_of(actor)
    recycled(actor, batch, optimizer)
    where = changed(before, weights_of(actor))
    assert where.keys() == {f"{layer}.weight" for layer in ("trunk.0", "trunk.2", "trunk.4", "trunk.7", "head")} | {
        f"{layer}.bias" for layer in ("trunk.0", "trunk.4", "trunk.7")
    }
    for name, parameter in actor.named_parameters():
        rewritten = where.get(name.removeprefix(PREFIX), torch.zeros_like(parameter, dtype=torch.bool))
        for key, value in optimizer.state[parameter].items():
            if value.ndim:
                assert torch.equal(value == 0, rewritten), (name, key)
            else:
                assert value == 1  # steps


def test_the_count_of_steps_begins_again_when_asked_and_only_where_weights_were_rewritten() -> None:
    actor, batch = tower_with_dead((7, 10)), random_pixels(4)
    optimizer = torch.optim.Adam(actor.parameters())
    actor(batch.clone())["action_value"].square().sum().backward()
    optimizer.step()
    recycled(actor, batch, optimizer, reset_step=True)
    steps = {
        name.removeprefix(PREFIX): optimizer.state[value]["step"].item() for name, value in actor.named_parameters()
    }
    assert {name for name, step in steps.items() if step == 0} == {"trunk.7.weight", "trunk.7.bias", "head.weight"}


def test_an_optimiser_that_has_not_stepped_keeps_no_state() -> None:
    actor = tower_with_dead((7, 10))
    optimizer = torch.optim.Adam(actor.parameters())
    recycled(actor, random_pixels(4), optimizer)
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("kind", [DistillationLoss, StudentDQNLoss])
def test_a_losss_own_parameters_are_recycled_and_its_targets_are_not(kind: type[DistillationLoss]) -> None:
    loss = kind(tower_with_dead((4, 5)))
    targets = {name: value.clone() for name, value in loss.state_dict().items() if name.startswith("target")}
    parameters = list(loss.parameters())
    optimizer = torch.optim.Adam(parameters)
    recycled(loss.student_network, random_pixels(4), optimizer)
    assert all(now is then for now, then in zip(loss.parameters(), parameters, strict=True))
    weight = loss.student_network_params["module", "0", "module", "trunk", "7", "weight"]
    assert (weight[:, 245:294] == 0).all()
    assert all(torch.equal(loss.state_dict()[name], value) for name, value in targets.items())


# What stays as it is


def test_batch_mode_hooks_gradients_and_the_global_generator_stay_as_they_were() -> None:
    actor = tower_with_dead((4, 5)).train()
    tower_of(actor).head.eval()
    batch = random_pixels(4)
    batch["other"] = torch.zeros(4)
    pixels, state = batch["pixels"].clone(), torch.get_rng_state()
    recycled(actor, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(batch.keys()) == {"pixels", "other"} and torch.equal(batch["pixels"], pixels)
    assert tower_of(actor).trunk.training and not tower_of(actor).head.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in actor.parameters())
    hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in actor.modules()]
    assert not any(after or before for after, before in hooks)


def test_dropout_neither_hides_a_layer_nor_draws() -> None:
    network = sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    state = torch.get_rng_state()
    assert recycled(network, observations(5, 3)).keys() == {"module.0"}
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_generators_recycle_equally() -> None:
    first, second, third = (tower_with_dead((4, 5)) for _ in range(3))
    for actor, seed in ((first, 3), (second, 3), (third, 4)):
        recycled(actor, random_pixels(4), seed=seed)
    assert not changed(weights_of(first), weights_of(second))
    assert changed(weights_of(first), weights_of(third)).keys() == {"trunk.4.weight"}


@pytest.mark.parametrize("batch", [(1,), (6,), (2, 3), (1, 6, 1)])
def test_any_batch_shape_is_scored_alike(batch: tuple[int, ...]) -> None:
    assert recycled(tower_with_dead((0, 3), (7, 10)), random_pixels(*batch)) == dict(
        zip(LAYERS, (1, 0, 0, 1), strict=True)
    )


def test_neurons_are_the_last_dimension_of_linear_layers_whatever_the_batch() -> None:
    network = sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        network.module[0].weight.fill_(1.0)
        network.module[0].bias.copy_(torch.tensor([0.0, -99.0, 0.0, -99.0]))
    assert recycled(network, observations(5, 7, 3, batch_dims=2)) == {"module.0": 2}


def test_layers_without_bias_in_place_relus_and_autocast_are_served() -> None:
    plain = sequential(nn.Linear(3, 4, bias=False), nn.ReLU(inplace=True), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        plain.module[0].weight[2] = -1.0
    assert recycled(plain, observations(5, 3))["module.0"] >= 1
    actor = tower_with_dead((4, 5), (7, 10))
    tower_of(actor).autocast_dtype = torch.bfloat16
    assert recycled(actor, random_pixels(4)) == dict(zip(LAYERS, (0, 0, 1, 1), strict=True))


# Other networks


class Branched(nn.Module):
    """Layers put together in a way given by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.head, self.other = (nn.Linear(4, 4) for _ in range(4))
        self.relu = nn.ReLU()

    def forward(self, obs: Tensor) -> Tensor:
        hidden = self.relu(self.first(obs))
        if self.kind == "residual":
            return self.head(self.relu(hidden + self.second(hidden)))
        if self.kind == "leaky":  # the layer is read beside its ReLU
            before = self.first(obs)
            return self.head(self.relu(before)) + before
        if self.kind == "output":
            return self.head(hidden) + hidden
        if self.kind == "shared":
            return self.head(self.relu(self.second(self.relu(self.second(hidden)))))
        if self.kind == "scaled":
            return self.head(2 * hidden)
        return self.head(hidden) + self.other(hidden)  # "dueling"


@pytest.mark.parametrize("kind", ["residual", "output", "scaled", "leaky"])
def test_a_network_whose_units_are_read_in_other_ways_is_refused(kind: str) -> None:
    network = TensorDictModule(Branched(kind), in_keys=["obs"], out_keys=["action_value"])
    before = weights_of(network)
    with pytest.raises(ValueError, match=r"read by such layers only: TensorDictModule has none among \d ReLU calls"):
        recycled(network, observations(5, 4), threshold=10.0)
    assert not changed(before, weights_of(network))


def test_both_readers_of_a_dueling_network_are_zeroed() -> None:
    network = TensorDictModule(Branched("dueling"), in_keys=["obs"], out_keys=["action_value"])
    assert recycled(network, observations(5, 4), threshold=10.0) == {"module.first": 4}
    assert network.module.head.weight.abs().max() == network.module.other.weight.abs().max() == 0


def test_a_layer_used_twice_is_left_alone() -> None:
    network = TensorDictModule(Branched("shared"), in_keys=["obs"], out_keys=["action_value"])
    before = weights_of(network)
    with pytest.raises(ValueError, match="has none among 3 ReLU calls"):
        recycled(network, observations(5, 4), threshold=10.0)
    assert not changed(before, weights_of(network))


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)),
        (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)),
        (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        (nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3)),
        (nn.Conv2d(1, 4, 3), nn.ReLU()),
    ],
)
def test_pooled_grouped_normalised_and_last_layers_are_left_alone(layers: tuple[nn.Module, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs Conv2d or Linear layers .* train this network without recycling"):
        recycled(sequential(*layers), observations(2, 1, 12, 12), threshold=10.0)


def test_sound_layers_beside_others_are_recycled() -> None:
    network = sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    assert recycled(network, observations(2, 1, 12, 12), threshold=10.0) == {"module.4": 8}


def test_a_negative_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, inf\): got -0\.1; 0 recycles units that"):
        recycled(tower_with_dead(), random_pixels(2), threshold=-0.1)


# When


def test_units_are_recycled_on_schedule_and_never_before_the_first_update() -> None:
    recycler = UnitRecycler(every_updates=10, until_updates=35)
    assert [updates for updates in range(60) if recycler.due(updates)] == [10, 20, 30]
    assert UnitRecycler(every_updates=10).due(10**6)


def test_a_recycler_draws_by_its_seed_and_the_number_of_updates_alone() -> None:
    """So a resumed run goes on identically, with no state to save."""
    actors = [tower_with_dead((4, 5)) for _ in range(4)]
    batch = random_pixels(4)
    for actor, seed, updates in zip(actors, (0, 0, 1, 0), (10, 10, 10, 20), strict=True):
        recycler = UnitRecycler(seed=seed)
        counts = recycler(actor, batch, torch.optim.Adam(actor.parameters()), updates=updates)
        assert counts == dict(zip(LAYERS, (0, 0, 1, 0), strict=True))
    first, *others = map(weights_of, actors)
    assert [bool(changed(first, other)) for other in others] == [False, True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_updates": 0}, r"every_updates must lie in \[1, inf\): got 0"),
        ({"threshold": -1.0}, r"threshold must lie in \[0, inf\): got -1.0; 0 recycles units that never fire"),
        ({"until_updates": -1}, r"until_updates must lie in \[0, inf\): got -1; None recycles to the end"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnitRecycler(**arguments)
