"""Small files that other libraries made themselves, loaded into networks of the same shape: the same greedy actions.

``tests/files/recorded/README.md`` says how they were made; ``tests/files/test_peers.py`` makes large ones.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueModule

from torchrl_rtpd.files.pretrained import load_pretrained
from torchrl_rtpd.networks.towers import Tower, make_actor

RECORDED = Path(__file__).parent / "recorded"
PIXELS = {
    "cleanrl_dqn": "",
    "d3rlpy_dqn": "",
    "d3rlpy_dqn_model": "pixels were in",
    "safetensors": "pixels were in",
    "skrl_agent": "pixels were in",
}
"""Files of networks on pixels, and the doubt that is warned of: skrl and d3rlpy leave the scale to the user."""
NUMBERS = {
    "pfrl_dqn": nn.ReLU,
    "sb3_dqn": nn.ReLU,
    "sb3_ppo": nn.Tanh,
    "sb3_qrdqn": nn.ReLU,
    "tianshou_algorithm": nn.ReLU,
    "tianshou_policy": nn.ReLU,
}
"""Files of networks on four numbers, and what stands between their two layers."""


def about(name: str) -> dict:
    return json.loads((RECORDED / f"{name}.json").read_text())


def recorded(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations and the greedy actions that the library took in them."""
    arrays = np.load(RECORDED / f"{name}.npz")
    frames, actions = (torch.from_numpy(arrays[key]) for key in ("frames", "actions"))
    assert len(actions) == 64 and len(actions.unique()) == 3
    return frames, actions


def taken(actor: nn.Module, key: str, observations: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return actor(TensorDict({key: observations}, [len(observations)]))["action_value"].argmax(-1)


def on_pixels() -> nn.Module:
    return make_actor(Tower((4, 4, 4), 8), Categorical(3), in_channels=2, frame_size=(44, 44), seed=9)


def on_numbers(between: type[nn.Module], parts: int) -> nn.Module:
    """An actor of two layers in so many parts."""
    layers = [nn.Sequential(nn.Linear(4, 16), between()), nn.Linear(16, 3)]
    if parts == 1:
        modules = [TensorDictModule(nn.Sequential(*layers), ["observation"], ["action_value"])]
    else:
        names = ("observation", "hidden", "action_value")
        modules = [TensorDictModule(layer, [names[i]], [names[i + 1]]) for i, layer in enumerate(layers)]
    return TensorDictSequential(*modules, QValueModule(spec=Categorical(3)))


@pytest.mark.parametrize("name", PIXELS)
def test_a_network_on_pixels_plays_as_it_did_in_its_library(name: str) -> None:
    actor, path, (frames, actions) = on_pixels(), RECORDED / about(name)["file"], recorded(name)
    assert (taken(actor, "pixels", frames) == actions).float().mean() < 0.9
    if PIXELS[name]:
        with pytest.warns(UserWarning, match=PIXELS[name]):
            load_pretrained(actor, path)
    else:
        load_pretrained(actor, path)
    assert torch.equal(taken(actor, "pixels", frames), actions)


@pytest.mark.parametrize("name", PIXELS)
def test_recorded_actions_of_a_library_leave_no_doubt(name: str) -> None:
    actor, (frames, actions) = on_pixels(), recorded(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = load_pretrained(actor, RECORDED / about(name)["file"], check_frames=(frames, actions))
    assert "100.0% of check_frames agree" in said


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_network_on_numbers_plays_as_it_did_in_its_library(name: str, parts: int) -> None:
    """Whether its layers lie in one part of the actor or in two."""
    actor, (observations, actions) = on_numbers(NUMBERS[name], parts), recorded(name)
    assert (taken(actor, "observation", observations) == actions).float().mean() < 0.9
    load_pretrained(actor, RECORDED / about(name)["file"])
    assert torch.equal(taken(actor, "observation", observations), actions)


def test_every_recorded_file_is_small_is_loaded_and_is_explained() -> None:
    """Its README names the file and the versions that made it."""
    readme = (RECORDED / "README.md").read_text()
    names = {path.stem for path in RECORDED.glob("*.json")}
    assert names == PIXELS.keys() | NUMBERS.keys()
    for name in names:
        file, versions = about(name)["file"], about(name)["versions"]
        assert (RECORDED / file).stat().st_size <= 20_000
        made = ", ".join(f"{package} {version}" for package, version in versions.items())
        assert any(file in line and line.endswith(f"| {made} |") for line in readme.splitlines()), name
