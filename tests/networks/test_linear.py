"""A linear layer whose products oneDNN makes: PyTorch's but for rounding, wherever it is used."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_rtpd.networks import linear
from torchrl_rtpd.networks.linear import WideLinear
from torchrl_rtpd.networks.towers import NatureTower

pytestmark = pytest.mark.skipif(not linear._AVAILABLE, reason="PyTorch without oneDNN")
WIDE = (32, 1_024, 512)  # batch, inputs, outputs: enough work


class Operations(TorchDispatchMode):
    """Names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def products(self) -> int:
        """Those that oneDNN made."""
        return sum(name.startswith("mkldnn._linear_pointwise") for name in self.names)


def layers(batch: int, inputs: int, outputs: int, *, bias: bool = True) -> tuple[WideLinear, nn.Linear, Tensor]:
    """Ours, PyTorch's with the same weights, and a minibatch."""
    torch.manual_seed(0)
    ours = WideLinear(inputs, outputs, bias=bias)
    theirs = nn.Linear(inputs, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(batch, inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_pytorch_but_for_rounding(bias: bool) -> None:
    ours, theirs, batch = layers(*WIDE, bias=bias)
    found = []
    for layer in (ours, theirs):
        inputs = batch.clone().requires_grad_()
        with Operations() as made:
            outputs = layer(inputs)
            (outputs * outputs.detach().sin()).sum().backward()
        assert made.products == (3 if layer is ours else 0)
        found.append([outputs, inputs.grad, *(parameter.grad for parameter in layer.parameters())])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_a_frozen_input_or_weight_costs_no_product() -> None:
    ours, _, batch = layers(*WIDE)
    with Operations() as made:
        ours(batch).sum().backward()
    assert made.products == 2 and ours.weight.grad is not None
    ours.requires_grad_(False)
    with Operations() as made:
        ours(batch.requires_grad_()).sum().backward()
    assert made.products == 2 and batch.grad is not None


def test_gradients_that_are_not_contiguous_and_a_batch_in_other_memory_are_taken() -> None:
    ours, theirs, batch = layers(*WIDE)
    strided = torch.randn(WIDE[1], WIDE[0]).t()
    for inputs in (batch, strided, batch.expand(WIDE[0], WIDE[1])):
        for layer in (ours, theirs):
            layer.zero_grad()
            layer(inputs).mean(0, keepdim=True).expand(3, -1).sum().backward()
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-5)


def test_second_derivatives_are_those_of_pytorch() -> None:
    ours, theirs, batch = layers(*WIDE)
    found = []
    for layer in (ours, theirs):
        inputs = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(layer(inputs).pow(2).sum(), inputs, create_graph=True)
        slope.pow(2).sum().backward()
        found.append((inputs.grad, layer.weight.grad))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-2)


ELSEWHERE: dict[str, Callable[[WideLinear, Tensor], Any]] = {
    "little work": lambda layer, batch: layer(batch[:4]),
    "three dimensions": lambda layer, batch: layer(batch[None]),
    "double precision": lambda layer, batch: copy.deepcopy(layer).double()(batch.double()),
    "torch.func": lambda layer, batch: torch.func.grad(
        lambda weights: torch.func.functional_call(layer, weights, (batch,)).sum()
    )(dict(layer.named_parameters())),
    "vmap": lambda layer, batch: torch.func.vmap(layer)(batch[None].expand(3, -1, -1)),
    "meta": lambda layer, batch: copy.deepcopy(layer).to("meta")(batch.to("meta")),
}


@pytest.mark.parametrize("place", ELSEWHERE)
def test_it_is_the_layer_of_pytorch_elsewhere(place: str) -> None:
    ours, _, batch = layers(*WIDE)
    with Operations() as made:
        ELSEWHERE[place](ours, batch)
    assert made.products == 0


def test_autocast_computes_in_the_type_asked_for() -> None:
    ours, _, batch = layers(*WIDE)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(batch).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_forward_derivatives_compiled_and_exported_layers_work() -> None:
    ours, theirs, batch = layers(*WIDE)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(ours(forward_ad.make_dual(batch, torch.ones_like(batch)))).tangent
    torch.testing.assert_close(tangent, (ours.weight.sum(1)).expand_as(tangent), rtol=1e-3, atol=1e-3)
    for other in (
        torch.compile(ours, backend="eager", fullgraph=True),
        torch.export.export(ours, (batch,)).module(),
        torch.jit.trace(ours, batch),
    ):
        torch.testing.assert_close(other(batch), theirs(batch), rtol=1e-4, atol=1e-4)


@pytest.fixture
def no_onednn() -> Iterator[None]:
    torch.backends.mkldnn.enabled = False
    yield
    torch.backends.mkldnn.enabled = True


def test_onednn_that_was_switched_off_is_left_off(no_onednn: None) -> None:
    ours, _, batch = layers(*WIDE)
    with Operations() as made:
        ours(batch)
    assert made.products == 0


def test_a_teachers_tower_has_one_and_its_state_is_as_before() -> None:
    tower = NatureTower(6)
    assert isinstance(tower.trunk[7], WideLinear)
    assert list(tower.state_dict())[-4:] == ["trunk.7.weight", "trunk.7.bias", "head.weight", "head.bias"]
    with Operations() as made, torch.no_grad():
        tower(torch.zeros(32, 4, 84, 84, dtype=torch.uint8))
    assert made.products == 1


@pytest.mark.parametrize("bias", ["a column", "expanded", "assigned by a state", "of one number"])
def test_a_bias_that_lies_in_other_memory_is_read_as_it_is(bias: str) -> None:
    """OneDNN takes its numbers for neighbours."""
    ours, theirs, batch = layers(*WIDE)
    columns = torch.randn(WIDE[2], 2)
    for layer in (ours, theirs):
        if bias == "assigned by a state":
            layer.load_state_dict({"weight": ours.weight.detach(), "bias": columns[:, 1]}, assign=True)
            continue
        values = {
            "a column": columns[:, 0],
            "expanded": torch.tensor(3.0).expand(WIDE[2]),
            "of one number": torch.ones(1),
        }
        layer.bias = nn.Parameter(values[bias])
    torch.testing.assert_close(ours(batch), theirs(batch), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_as_by_pytorch() -> None:
    ours, _, batch = layers(*WIDE)
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied \(32x1000 and 1024x512\)"):
        ours(batch[:, :1_000])
    ours.bias = nn.Parameter(torch.zeros(WIDE[2], dtype=torch.float64))
    with pytest.raises(RuntimeError, match="dtype"):
        ours(batch)


class Counted(nn.Module):
    """A parametrisation that counts how often a weight is computed."""

    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        Counted.calls += 1
        return weight * 1.0


def test_a_parametrised_weight_is_computed_once() -> None:
    layer, _, batch = layers(*WIDE)
    nn.utils.parametrize.register_parametrization(layer, "weight", Counted())
    Counted.calls = 0
    layer(batch)
    layer(batch[:1])
    assert Counted.calls == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated", "ignore:.*torch.jit.script")
def test_scripts_and_symbolic_traces_hold_the_layer_of_pytorch() -> None:
    ours, theirs, batch = layers(*WIDE)
    expected = theirs(batch)
    torch.testing.assert_close(torch.jit.script(ours)(batch), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(ours, nn.ReLU()))(batch), expected.relu())
