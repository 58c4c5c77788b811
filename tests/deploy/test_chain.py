"""Networks read as chains: those that are none are written by PyTorch, never as another network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchrl_rtpd.deploy.chain import Chain, chain_of
from torchrl_rtpd.deploy.export import export_student
from torchrl_rtpd.deploy.program import Program, traced


class Before(nn.Module):
    """A function of the observation, then two dense layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, observation: Tensor) -> Tensor:
        return self.layers(self.function(observation))


class Residual(nn.Module):
    """A layer whose input is added to its output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, observation: Tensor) -> Tensor:
        hidden = self.first(observation).relu()
        return self.head(self.second(hidden) + hidden)


FLOATS, BYTES = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20).to(torch.uint8) * 12
NOT_CHAINS = {
    "a number added twice": (Before(lambda x: x + x), FLOATS, "it has branches"),
    "a layer beside another": (Residual(), FLOATS, "it has branches"),
    "a cast to integers": (Before(lambda x: (3 * x).int().float()), FLOATS, "it calculates in integers"),
    "a cast to eight bits": (
        Before(lambda x: x.to(torch.float8_e5m2).float()),
        FLOATS,
        "its layers alone compute other values",
    ),
    "bytes that run over": (Before(lambda x: (x + 200) / 255), BYTES.view(5, 4), "it calculates in integers"),
}


def chain_from(network: nn.Module, example: Tensor) -> Chain | str:
    program = Program(network, example)
    return chain_of(traced(program), program.inputs[0].shape, program.inputs[0].dtype)


@pytest.mark.parametrize("kind", NOT_CHAINS)
def test_what_is_no_chain_is_named(kind: str) -> None:
    network, example, reason = NOT_CHAINS[kind]
    assert chain_from(network, example) == reason


def test_a_student_that_is_no_chain_is_written_all_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the export extra")
    assert "onnx" in export_student(Residual(), tmp_path / "student", example=FLOATS).files
    with pytest.raises(ValueError, match=r"format numpy holds chains of .*: it has branches; export it as onnx or pt2"):
        export_student(Residual(), tmp_path / "student", formats=["numpy"], example=FLOATS)


def test_sums_with_a_factor_are_folded() -> None:
    """``torch.add(x, 3, alpha=2)`` adds six."""
    network = Before(lambda x: torch.sub(torch.add(x, 3.0, alpha=2), 0.5, alpha=4))
    chain = chain_from(network, FLOATS)
    assert isinstance(chain, Chain)
    torch.testing.assert_close(chain.run(FLOATS).float(), network.layers(FLOATS + 4).detach())
