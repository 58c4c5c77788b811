"""A chain as an archive of arrays and thirty lines of NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from torchrl_rtpd.deploy.chain import Chain

__all__ = ["numpy_source", "write_arrays"]

_SOURCE = '''"""A student in NumPy, which is all that it needs. Weights are read from the .npz beside this file."""

from pathlib import Path

import numpy as np

_ARRAYS = dict(np.load(Path(__file__).with_name({archive})))
_PARTS = ("weight", "bias", "stride", "relu")
_LAYERS = [[_ARRAYS[f"{{part}}{{place}}"] for part in _PARTS] for place in range({layers})]


def values(observations):
    """Return values [B, {actions}] of observations [B, {shape}] {dtype}."""
    results = np.asarray(observations, np.float32)
    for weight, bias, (down, across), relu in _LAYERS:
        if weight.ndim == 4:
            windows = np.lib.stride_tricks.sliding_window_view(results, weight.shape[2:], (2, 3))
            windows = windows[:, :, ::down, ::across]
            batch, _, rows, columns = windows.shape[:4]
            patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch * rows * columns, -1)
            results = (patches @ weight.reshape(len(weight), -1).T + bias).reshape(batch, rows, columns, -1)
            results = results.transpose(0, 3, 1, 2)
        else:
            results = results.reshape(len(results), -1) @ weight.T + bias
        if relu:
            results = np.maximum(results, 0)
    return results


def action(observations):
    """Return the actions [B] of the largest values."""
    return values(observations).argmax(-1)
'''


def numpy_source(chain: Chain, archive: str) -> str:
    """Return the module that reads ``archive``."""
    return _SOURCE.format(
        archive=json.dumps(archive),
        layers=len(chain.layers),
        actions=len(chain.layers[-1].bias),
        shape=", ".join(map(str, chain.shape)),
        dtype=chain.dtype,
    )


def write_arrays(chain: Chain, path: Path, card: str) -> None:
    """Write the layers and the card as an archive."""
    arrays: dict[str, np.ndarray] = {"card": np.array(card)}
    for place, layer in enumerate(chain.layers):
        arrays[f"weight{place}"], arrays[f"bias{place}"] = layer.weight, layer.bias
        arrays[f"stride{place}"], arrays[f"relu{place}"] = np.array(layer.stride), np.array(layer.relu)
    np.savez(path, **arrays)  # type: ignore[arg-type]
