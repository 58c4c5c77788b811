"""Heads of other methods as one linear head: the same action values to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from torchrl_rtpd.files.pretrained import load_pretrained


class Quantiles(nn.Module):
    """As in sb3-contrib: rows are quantile-major."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(4, 8)
        self.quantile_net = nn.Linear(8, 5 * 3)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.quantile_net(self.features(observation).relu()).view(-1, 5, 3).mean(1)


class Dueling(nn.Module):
    """Value and advantages, with or without hidden units of their own."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.features = nn.Linear(4, 8)
        units = 6 if deep else 8
        self.advantage = nn.Sequential(*([nn.Linear(8, 6), nn.ReLU()] if deep else []), nn.Linear(units, 3))
        self.value = nn.Sequential(*([nn.Linear(8, 6), nn.ReLU()] if deep else []), nn.Linear(units, 1))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        features = self.features(observation).relu()
        advantage = self.advantage(features)
        return self.value(features) + advantage - advantage.mean(-1, keepdim=True)


def plain(*units: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out in zip((4, *units), (*units, 3), strict=True):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("prefix", ["", "agent.", "value_network."])
@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (Quantiles(), plain(8), "quantiles were averaged"),
        (Dueling(deep=False), plain(8), "value and advantage streams were added"),
        (Dueling(deep=True), plain(8, 12), "value and advantage streams were added"),
    ],
    ids=["quantiles", "dueling", "dueling with hidden units"],
)
def test_other_heads_become_one_of_the_same_values(
    tmp_path: Path, theirs: nn.Module, ours: nn.Sequential, said: str, prefix: str
) -> None:
    path = tmp_path / "teacher.pt"
    torch.save({f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}, path)
    assert said in load_pretrained(ours, path)
    observations = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(observations), theirs(observations))


def test_atoms_of_a_categorical_network_are_no_quantiles(tmp_path: Path) -> None:
    """C51's values are no linear function of its head."""
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 153)).state_dict(), tmp_path / "c51.pt")
    with pytest.raises(ValueError, match="has 153 outputs, 51 for each of 3 actions, as atoms or quantiles"):
        load_pretrained(plain(8), tmp_path / "c51.pt")


def test_streams_of_atoms_are_refused_as_such(tmp_path: Path) -> None:
    layers = {"body": (8, 4), "advantage": (51 * 3, 8), "value": (51, 8)}
    state = {f"{name}.weight": torch.zeros(shape) for name, shape in layers.items()}
    torch.save(
        {**state, **{f"{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()}}, tmp_path / "c51.pt"
    )
    with pytest.raises(
        ValueError, match="has 51 outputs for each action in its streams of value and advantage, as C51"
    ):
        load_pretrained(plain(8), tmp_path / "c51.pt")


def test_noisy_layers_are_refused_as_such(tmp_path: Path) -> None:
    state = {f"head.{part}.{leaf}": torch.zeros(3, 4)[:, 0] for part in ("mu", "sigma") for leaf in ("weight", "bias")}
    torch.save(state, tmp_path / "noisy.pt")
    with pytest.raises(
        ValueError, match="Layers with mu and sigma are noisy ones: save their means as the weight and bias"
    ):
        load_pretrained(plain(8), tmp_path / "noisy.pt")


def test_rows_pick_the_minimal_actions_of_a_full_head(tmp_path: Path) -> None:
    full = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 18))
    torch.save(full.state_dict(), tmp_path / "full.pt")
    network = plain(8)
    load_pretrained(network, tmp_path / "full.pt", rows=[0, 1, 11])
    observations = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(observations), full(observations)[:, [0, 1, 11]])


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([0, 1], "one action of the file for each of 3: got 2"),
        ([0, 1, 18], "must be actions of the file: got 18"),
        ([0, 1, -1], "count the file's actions from 0: got -1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, rows: list[int], match: str) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 18)).state_dict(), tmp_path / "full.pt")
    with pytest.raises(ValueError, match=match):
        load_pretrained(plain(8), tmp_path / "full.pt", rows=rows)
