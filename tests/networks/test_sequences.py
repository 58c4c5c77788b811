"""Recurrent networks over rows of steps, beside a loop over single steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recurrent_parts import layer_of, memory_of, recurrent_actor, rows, stepped_values
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.envs import BurnInTransform
from torchrl.modules import set_recurrent_mode

from torchrl_rtpd.networks.running import NetworkPart
from torchrl_rtpd.networks.sequences import SequencePart, later_steps, network_part, remembered_by, single_steps
from torchrl_rtpd.objectives import DistillationLoss, TeacherDQNLoss
from torchrl_rtpd.trainers.teacher_values import CapturedValues

KINDS = [("lstm", 1), ("gru", 1), ("lstm", 2), ("gru", 2)]


@pytest.mark.parametrize("stored", [False, True], ids=["zeros", "stored"])
@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_values_are_those_of_a_loop_over_steps(kind: str, layers: int, stored: bool) -> None:
    """Outside of TorchRL's recurrent mode as well."""
    actor = recurrent_actor(kind, 3, layers=layers).double()
    batch = rows(remembers=(actor,) if stored else ())
    torch.testing.assert_close(network_part(actor)(batch, "action_value", "student"), stepped_values(actor, batch))


@pytest.mark.parametrize("stored", [False, True], ids=["zeros", "stored"])
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_networks_go_on_from_what_they_remember(kind: str, layers: int, steps: int, stored: bool) -> None:
    """After every number of steps, games that begin right there or later included."""
    actor = recurrent_actor(kind, 3, layers=layers).double()
    batch, part = rows(remembers=(actor,) if stored else ()), SequencePart(actor)
    memory = part.warmed(batch, steps, "student")
    assert memory.batch_size == (4, 7 - steps) and set(memory.keys()) == set(memory_of(actor))
    assert not any(value.requires_grad for value in memory.values())
    values = part(later_steps(batch, steps, {"student": memory}), "action_value", "student")
    torch.testing.assert_close(values, stepped_values(actor, batch)[:, steps:])


OPTIONS: dict[str, dict[str, Any]] = {
    "a projection": {"kind": "lstm", "proj_size": 2},
    "a projection of two layers": {"kind": "lstm", "proj_size": 2, "layers": 2},
    "LSTM without biases": {"kind": "lstm", "bias": False},
    "GRU without biases": {"kind": "gru", "bias": False},
    "LSTM in Python": {"kind": "lstm", "python_based": True, "layers": 2},
    "GRU in Python": {"kind": "gru", "python_based": True, "layers": 2},
    "dropout, in eval mode": {"kind": "lstm", "dropout": 0.5, "layers": 2},
}


@pytest.mark.parametrize("stored", [False, True], ids=["zeros", "stored"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_layers_change_nothing_about_that(name: str, stored: bool) -> None:
    """Whole rows, with games that begin within and without, and rows after a burn-in."""
    actor = recurrent_actor(hidden=3, **OPTIONS[name]).double().eval()
    broken = rows(remembers=(actor,) if stored else ())
    unbroken = broken.clone()
    unbroken["is_init"][:, 1:] = False
    part = SequencePart(actor)
    for batch in (broken, unbroken):
        wanted = stepped_values(actor, batch)
        torch.testing.assert_close(part(batch, "action_value", "student"), wanted)
        later = later_steps(batch, 3, {"student": part.warmed(batch, 3, "student")})
        torch.testing.assert_close(part(later, "action_value", "student"), wanted[:, 3:])


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_networks_that_see_the_steps_to_come_are_refused(kind: str, role: str) -> None:
    """A layer in both directions is trained on what it cannot see while it plays."""
    both = recurrent_actor(kind, 3, bidirectional=True)
    networks = (both, recurrent_actor(kind, 3, seed=1)) if role == "student" else (recurrent_actor(kind, 3), both)
    with pytest.raises(ValueError, match=rf"must not see .*: got a {kind.upper()}Module that is bidir"):
        DistillationLoss(*networks)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_live_teacher_that_sees_the_steps_to_come_is_refused(kind: str) -> None:
    both = recurrent_actor(kind, 3, bidirectional=True)
    with pytest.raises(ValueError, match=r"bidirectional; build it without"):
        TeacherDQNLoss(both, action_space="categorical")
    with pytest.raises(ValueError, match=r"bidirectional; build it without"):
        CapturedValues(both)


def test_two_networks_of_one_key_go_on_each_from_its_own_memory() -> None:
    first, second = (recurrent_actor("gru", hidden, seed=hidden).double() for hidden in (3, 5))
    batch, parts = rows(), {"student": SequencePart(first), "teacher": SequencePart(second)}
    later = later_steps(batch, 3, {role: part.warmed(batch, 3, role) for role, part in parts.items()})
    for (role, part), actor in zip(parts.items(), (first, second), strict=True):
        torch.testing.assert_close(part(later, "action_value", role), stepped_values(actor, batch)[:, 3:])


def test_nothing_after_the_memory_is_run_to_warm_it() -> None:
    """A head that fails is not reached."""

    def fails(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    actor = recurrent_actor("gru", 3).double()
    network = TensorDictSequential(actor[0], TensorDictModule(fails, in_keys=["features"], out_keys=["action_value"]))
    assert SequencePart(network).warmed(rows(), 3, "student").shape == (4, 4)


def test_networks_without_a_memory_run_as_ever() -> None:
    network = TensorDictModule(nn.Linear(1, 2), in_keys=["observation"], out_keys=["action_value"])
    assert type(network_part(network)) is NetworkPart
    assert network_part(network).remembered == [] and network_part(network).needed_keys == ["observation"]
    assert remembered_by(None) == {}


def test_a_cell_that_knows_no_rows_is_no_recurrent_network_here() -> None:
    """It reads the memory of each step from the batch, which must hold it."""
    cell = TensorDictModule(nn.GRUCell(4, 8), in_keys=["observation", "h"], out_keys=[("next", "h")])
    assert type(network_part(cell)) is NetworkPart
    assert network_part(cell).needed_keys == ["observation", "h"]


def test_single_steps_give_the_values_of_their_rows() -> None:
    actor = recurrent_actor("lstm", 3).double()
    for batch in (rows(), rows(remembers=(actor,))):
        flat = single_steps(actor, batch)
        assert flat.shape == (28,)
        with set_recurrent_mode(True):
            values = actor(flat)["action_value"]
        torch.testing.assert_close(values.reshape(4, 7, 2), stepped_values(actor, batch))


def test_single_steps_stay_as_they_are() -> None:
    network = TensorDictModule(nn.Linear(1, 2), in_keys=["observation"], out_keys=["action_value"])
    batch = TensorDict({"observation": torch.zeros(5, 1), "reward": torch.zeros(5, 1)}, [5])
    found = single_steps(network, batch)
    assert found["observation"] is batch["observation"] and set(found.keys()) == {"observation"}


def test_torchrls_burn_in_takes_the_memory_of_one_game_into_the_next() -> None:
    """The reason for a burn-in of our own: the second row's game begins at step 3, right behind the burn-in."""
    actor = recurrent_actor("gru", 3).double()
    batch = rows(remembers=(actor,)).select("observation", "is_init", "recurrent_state")
    batch["recurrent_state"].zero_()
    ours = SequencePart(actor).warmed(batch, 3, "student")["recurrent_state"][:, 0]
    with set_recurrent_mode(True):
        theirs = BurnInTransform([actor[0]], burn_in=3)(batch.clone())["recurrent_state"][:, 0]
    assert layer_of(actor).hidden_size == 3
    torch.testing.assert_close(ours[[0, 2, 3]], theirs[[0, 2, 3]])
    assert not ours[1].any() and theirs[1].any()
