"""A function of a tensordict that is replayed as a CUDA graph.

TorchRL's collectors offer tensordict's ``CudaGraphModule`` for this. It waits for the whole device before each replay,
captures one size of batch and warns on a CPU. Here nothing waits, each size has a graph, and a CPU calls the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase

__all__ = ["Captured"]


class Captured:
    """A function of a batch that is called as it is at first, and replayed as a CUDA graph from then on.

    Batches of one size keep their keys, shapes and types; a batch of another size is captured by itself. What the
    function writes into a batch is written there by a replay as well. On a CPU the function is called every time.

    Warning: results of a replay lie where the next one puts its own. Clone what is to be kept.

    Args:
        function: takes a batch and returns tensors in a mapping, a tensordict or alone. It must not read a tensor's
            value on the host, nor allocate what outlives it outside of its results.
        device: of the batches.
        warmup: calls before the first capture, which make what the function needs: states of optimisers, kernels.

    Raises:
        RuntimeError: at a capture, a function that reads a value on the host.

    Examples:
        >>> from tensordict import TensorDict
        >>> double = Captured(lambda batch: batch["x"] * 2, torch.device("cpu"))
        >>> double(TensorDict({"x": torch.arange(3)}, [3]))
        tensor([0, 2, 4])
    """

    def __init__(self, function: Callable[[TensorDictBase], Any], device: torch.device, *, warmup: int = 3) -> None:
        self._function = function
        self._warmup = warmup  # calls before the capture
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._graphs: dict[torch.Size, _Graph] = {}

    @property
    def graphs(self) -> list[Any]:
        """PyTorch's graphs, in the order of their capture; empty on a CPU."""
        return [graph.graph for graph in self._graphs.values()]

    def __call__(self, batch: TensorDictBase) -> Any:
        """Return what the function gives for a batch ``[*B]``."""
        if self._stream is None:  # a CPU
            return self._function(batch)
        if self._warmup:
            self._warmup -= 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                result = self._function(batch)
            torch.cuda.current_stream().wait_stream(self._stream)
            return result
        if batch.batch_size not in self._graphs:
            self._graphs[batch.batch_size] = _Graph(self._function, batch, self._stream)
        return self._graphs[batch.batch_size](batch)


class _Graph:
    """A function captured on batches like this one, on a stream."""

    def __init__(
        self, function: Callable[[TensorDictBase], Any], batch: TensorDictBase, stream: torch.cuda.Stream
    ) -> None:
        self._input = batch.clone()
        self._read = self._input.copy()  # the function may add entries
        self.graph = torch.cuda.CUDAGraph()
        present = torch.cuda.current_stream(stream.device)
        try:
            with torch.cuda.graph(self.graph, stream=stream):
                self._result = function(self._read)
        except RuntimeError as error:
            _recover(stream, present)
            reason = str(error).strip().split("\n")[0]
            raise RuntimeError(
                f"what is captured must not read a value on the host: got {type(error).__name__}: {reason}; leave out "
                "what does, such as the entropy bonus of TorchRL's ClipPPOLoss (entropy_bonus=False)."
            ) from error
        self._written = list(set(self._read.keys(True, True)) - set(self._input.keys(True, True)))

    def __call__(self, batch: TensorDictBase) -> Any:
        self._input.update_(batch, non_blocking=True)
        self.graph.replay()
        for key in self._written:  # such as priorities
            batch.set(key, self._read.get(key).clone())
        return self._result


def _recover(stream: torch.cuda.Stream, present: torch.cuda.Stream) -> None:
    """Undo what a failed capture leaves behind, so that its process can go on.

    PyTorch stays on the stream of the capture, and its generator takes the capture for one under way: it refuses to
    draw. The end of a capture that succeeds tells it otherwise.
    """
    torch.cuda.set_stream(present)
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        torch.zeros(1, device=stream.device)
