"""Weights as files: whole, checked, without code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_rtpd.files.weights import load_weights, save_weights
from torchrl_rtpd.networks.running import bare_network
from torchrl_rtpd.networks.towers import make_actor


def pixels(batch: int, seed: int = 0) -> torch.Tensor:
    """Random stacks ``[batch, 4, 84, 84]`` uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, 4, 84, 84), dtype=torch.uint8, generator=generator)


def student(seed: int = 0, num_actions: int = 6, name: str = "net17") -> QValueActor:
    return make_actor(name, Categorical(num_actions), seed=seed)


class Touches:
    """A pickled object that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_saved_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    """Also those in channels-last order, and into folders that do not exist yet."""
    saved, loaded = student(seed=0), student(seed=1)
    path = save_weights(saved, tmp_path / "some" / "where" / "net17.safetensors")
    load_weights(loaded, path)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(bare_network(loaded)(pixels(2)), bare_network(saved)(pixels(2)))
    assert [entry.name for entry in path.parent.iterdir()] == ["net17.safetensors"]


def test_saving_replaces_the_earlier_file(tmp_path: Path) -> None:
    path = save_weights(student(seed=0), tmp_path / "net17.safetensors")
    save_weights(student(seed=1), path)
    loaded = student(seed=2)
    load_weights(loaded, path)
    assert torch.equal(loaded.state_dict()["module.0.module.head.weight"], bare_network(student(seed=1)).head.weight)


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    """Tensors that share memory cannot be written."""
    path = save_weights(nn.Linear(3, 3), tmp_path / "weights.safetensors")
    before = path.read_bytes()
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(RuntimeError, match="share memory"):
        save_weights(tied, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_another_architecture_are_refused_and_change_nothing(tmp_path: Path) -> None:
    path = save_weights(student(), tmp_path / "net17.safetensors")
    other = student(seed=1, name="net5")  # 16 instead of 8 filters in the second convolution
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"net17\.safetensors holds another architecture: 3 tensors differ, "
        r"first module\.0\.module\.trunk\.2\.bias: the file has \[8\], the network \[16\]; "
        r"build the network with the sizes and actions it was saved with\.",
    ):
        load_weights(other, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_weights_for_another_number_of_actions_are_refused(tmp_path: Path) -> None:
    path = save_weights(student(num_actions=6), tmp_path / "net17.safetensors")
    with pytest.raises(ValueError, match=r"head\.bias: the file has \[6\], the network \[18\]"):
        load_weights(student(num_actions=18), path)


def test_a_tensor_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    path = save_weights(nn.Linear(3, 2, bias=False), tmp_path / "linear.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors differ, first bias: the file has None, the network \[2\]"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_under_a_false_name_is_refused_and_executes_nothing(tmp_path: Path, writer: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "net17.safetensors"
    content = {**student().state_dict(), "extra": Touches(marker)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"net17\.safetensors must be a safetensors file written by save_weights"):
        load_weights(student(), path)
    assert not marker.exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_weights(student(), tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("place", ["around the actor", "inside the actor", "around a plain module"])
@pytest.mark.parametrize("compiled", ["saved", "loaded", "both"])
def test_weights_of_compiled_networks_have_the_names_of_plain_ones(tmp_path: Path, compiled: str, place: str) -> None:
    def make(seed: int, compile: bool) -> nn.Module:
        network = student(seed) if place != "around a plain module" else bare_network(student(seed))
        if compile and place == "inside the actor":
            network.module[0].module = torch.compile(network.module[0].module)
            return network
        return torch.compile(network) if compile else network

    saved, loaded = make(0, compiled != "loaded"), make(1, compiled != "saved")
    path = save_weights(saved, tmp_path / "net17.safetensors")
    assert b"_orig_mod" not in path.read_bytes()
    load_weights(loaded, path)
    for mine, other in zip(loaded.parameters(), saved.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_file_with_the_names_of_a_compiled_network_is_read(tmp_path: Path) -> None:
    """As versions before wrote them."""
    saved, loaded = student(0), student(1)
    state = {f"_orig_mod.{name}": tensor.contiguous() for name, tensor in saved.state_dict().items()}
    save_file(state, tmp_path / "old.safetensors")
    load_weights(loaded, tmp_path / "old.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in saved.state_dict().items())
