"""Layers found by the shapes of weight and bias together, in any order, or refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from torchrl_rtpd.files.layers import layers_of
from torchrl_rtpd.files.pretrained import load_pretrained


def network() -> nn.Sequential:
    """Twelve layers, ten of one shape."""
    hidden = [nn.Linear(5, 5) for _ in range(10)]
    return nn.Sequential(nn.Linear(4, 5), *hidden, nn.Linear(5, 3))


def test_layers_of_equal_shapes_are_taken_by_their_numbers_from_a_sorted_file(tmp_path: Path) -> None:
    """As strings, "10" comes before "2"."""
    saved, loaded = network(), network()
    save_file({f"mlp.fc{name}": tensor for name, tensor in saved.state_dict().items()}, tmp_path / "mlp.safetensors")
    assert "by layers" in load_pretrained(loaded, tmp_path / "mlp.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in saved.state_dict().items())


def test_layers_of_equal_shapes_are_taken_in_the_order_of_registration_from_others(tmp_path: Path) -> None:
    saved, loaded = network(), network()
    letters = iter("zyxwvutsrqpo")
    names = {str(place): next(letters) for place in range(12)}
    state = {f"{names[name.split('.')[0]]}.{name.split('.')[1]}": t for name, t in saved.state_dict().items()}
    torch.save(state, tmp_path / "mlp.pt")
    load_pretrained(loaded, tmp_path / "mlp.pt")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in saved.state_dict().items())


def test_layers_of_equal_shapes_and_names_without_numbers_are_refused_from_a_sorted_file(tmp_path: Path) -> None:
    saved = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    state = {name.replace("0.", "input.").replace("1.", "hidden."): t for name, t in saved.state_dict().items()}
    save_file(state, tmp_path / "mlp.safetensors")
    with pytest.raises(ValueError, match="another architecture"):
        load_pretrained(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), tmp_path / "mlp.safetensors")


@pytest.mark.parametrize("separator", [".", "_", "/"])
@pytest.mark.parametrize("leaves", [("weight", "bias"), ("w", "b")])
def test_any_order_and_usual_names_of_tensors_are_read(tmp_path: Path, separator: str, leaves: tuple[str, str]) -> None:
    saved = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    loaded = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    items = [
        (f"dense{name.split('.')[0]}{separator}{leaves['bias' in name]}", tensor.numpy())
        for name, tensor in saved.state_dict().items()
    ]
    random.Random(0).shuffle(items)
    np.savez(tmp_path / "arrays.npz", **dict(items))
    assert "by layers" in load_pretrained(loaded, tmp_path / "arrays.npz")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in saved.state_dict().items())


def test_a_bias_is_never_taken_for_another_layers(tmp_path: Path) -> None:
    """Biases of one size belong to weights of several shapes."""
    make = lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3))  # noqa: E731
    saved, loaded = make(), make()
    state = {f"part{name}": tensor for name, tensor in reversed(saved.state_dict().items())}
    save_file(state, tmp_path / "mlp.safetensors")
    load_pretrained(loaded, tmp_path / "mlp.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in saved.state_dict().items())


def test_a_normalisation_is_one_layer_of_four_tensors() -> None:
    (layer,) = layers_of(nn.BatchNorm1d(3).state_dict())
    assert list(layer.names) == ["weight", "bias", "running_mean", "running_var"]
