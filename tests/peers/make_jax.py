"""Files of JAX: sbx's own zip, and a flax network whose weights somebody turned into PyTorch's shapes.

python tests/peers/make_jax.py FOLDER
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import sbx
import torch
from recording import Recording, Still

RECORDING = Recording("sbx-rl", "flax", "jax")


class Nature(nn.Module):
    """The Nature DQN; flax flattens channels last."""

    @nn.compact
    def __call__(self, pixels):
        hidden = pixels.transpose(0, 2, 3, 1) / 255.0
        for features, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            hidden = nn.relu(nn.Conv(features, (kernel, kernel), (stride, stride), padding="VALID")(hidden))
        hidden = nn.relu(nn.Dense(512)(hidden.reshape(len(hidden), -1)))
        return nn.Dense(RECORDING.actions)(hidden)


def port():
    """Kernels transposed to PyTorch's order of dimensions, which is what most ports do, and nothing else."""
    frames = jnp.asarray(RECORDING.frames)
    params = Nature().init(jax.random.key(0), frames[:1])["params"]
    values = np.asarray(Nature().apply({"params": params}, frames))
    params["Dense_1"]["bias"] = params["Dense_1"]["bias"] - values.mean(0)
    actions = np.asarray(Nature().apply({"params": params}, frames)).argmax(1)
    state = {}
    for name, layer in params.items():
        kernel = torch.from_numpy(np.array(layer["kernel"]))
        state[f"{name}.weight"] = (kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T).contiguous()
        state[f"{name}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    torch.save(state, RECORDING.out / "flax_port.pt")
    RECORDING.add("flax_port", "flax_port.pt", actions)


def zipped():
    """A model of sbx on four numbers: its networks are pickled."""
    model = sbx.DQN("MlpPolicy", Still(RECORDING.vectors, RECORDING.actions), buffer_size=1, seed=0)
    model.save(RECORDING.out / "sbx_dqn.zip")
    RECORDING.add("sbx_dqn", "sbx_dqn.zip")


port()
zipped()
