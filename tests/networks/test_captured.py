"""A function that is replayed as a CUDA graph gives what it gives when it is called; on a CPU it is called."""

from __future__ import annotations

import pytest
import torch
from device_parts import DEVICES
from tensordict import TensorDict, TensorDictBase

from torchrl_rtpd.networks.captured import Captured


def batch(size: int, value: float, device: str) -> TensorDict:
    return TensorDict({"x": torch.full((size,), value)}, [size], device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_each_call_gives_the_result_of_its_own_batch(device: str) -> None:
    """Batches of two sizes in turns: 2 x + 1, as called, captured and replayed."""
    function = Captured(lambda data: 2 * data["x"] + 1, torch.device(device), warmup=2)
    for value in range(5):
        for size in (3, 2):
            assert function(batch(size, float(value), device)).tolist() == [2.0 * value + 1] * size
    assert len(function.graphs) == (0 if device == "cpu" else 2)


@pytest.mark.parametrize("device", DEVICES)
def test_entries_that_the_function_writes_are_written_into_each_batch(device: str) -> None:
    """They are the batch's own: a later call does not change them."""

    def double(data: TensorDictBase) -> torch.Tensor:
        data.set("double", 2 * data["x"])
        return data["double"].sum()

    function = Captured(double, torch.device(device), warmup=1)
    batches = [batch(2, float(value), device) for value in range(4)]
    for data in batches:
        function(data)
    assert [data["double"].tolist() for data in batches] == [[2.0 * value] * 2 for value in range(4)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_function_draws_the_numbers_that_it_would_draw_uncaptured(device: str) -> None:
    """A graph moves torch's generator on as its kernels do."""
    found = []
    for warmup in (1, 100):
        torch.manual_seed(3)
        function = Captured(lambda data: data["x"] + torch.rand_like(data["x"]), torch.device(device), warmup=warmup)
        found.append([function(batch(4, 0.0, device)).tolist() for _ in range(5)])
    assert found[0] == found[1]
    assert len({tuple(numbers) for numbers in found[0]}) == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_value_read_on_the_host_is_refused_and_the_process_goes_on() -> None:
    """Random numbers, the stream and later captures are as if there had been none."""
    stream = torch.cuda.current_stream()
    torch.manual_seed(0)
    wanted = [torch.rand(3, device="cuda").tolist() for _ in range(2)]
    torch.manual_seed(0)
    drawn = [torch.rand(3, device="cuda").tolist()]
    function = Captured(lambda data: data["x"] * data["x"].sum().item(), torch.device("cuda"), warmup=1)
    function(batch(2, 1.0, "cuda"))
    with pytest.raises(RuntimeError, match=r"must not read a value on the host: got .*\(entropy_bonus=False\)\.$"):
        function(batch(2, 1.0, "cuda"))
    drawn.append(torch.rand(3, device="cuda").tolist())
    assert drawn == wanted and torch.cuda.current_stream() == stream
    other = Captured(lambda data: data["x"] + torch.rand_like(data["x"]), torch.device("cuda"), warmup=1)
    assert len({tuple(other(batch(4, 0.0, "cuda")).tolist()) for _ in range(4)}) == 4
