"""Files of skrl: an agent's checkpoint with its network, target and optimiser.

python tests/peers/make_skrl.py FOLDER [--small]
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from recording import Recording, balance, draw
from skrl.agents.torch.dqn import DQN
from skrl.utils.model_instantiators.torch import deterministic_model

RECORDING = Recording("skrl", "gymnasium")


def network():
    """The Nature DQN, or a small one, as skrl builds it from a description; it divides by 255 itself."""
    filters, units = ((4, 4, 4), 8) if RECORDING.small else ((32, 64, 64), 512)
    sizes = zip(filters, (8, 4, 3), (4, 2, 1), strict=True)
    layers = [
        *({"conv2d": {"out_channels": c, "kernel_size": k, "stride": s, "padding": 0}} for c, k, s in sizes),
        "flatten",
        {"linear": units},
    ]
    return deterministic_model(
        observation_space=RECORDING.pixels,
        action_space=gymnasium.spaces.Discrete(RECORDING.actions),
        device="cpu",
        network=[{"name": "net", "input": "OBSERVATIONS / 255.0", "layers": layers, "activations": "relu"}],
        output="ACTIONS",
    )


torch.set_num_threads(1)
frames = RECORDING.frames
models = {"q_network": network(), "target_q_network": network()}
flat = torch.as_tensor(frames.reshape(len(frames), -1).astype(np.float32))
for model in models.values():  # sizes are inferred from the first observation
    model.act({"observations": flat[:1]})
agent = DQN(
    models=models,
    observation_space=RECORDING.pixels,
    action_space=gymnasium.spaces.Discrete(RECORDING.actions),
    device="cpu",
)
draw(models["q_network"])
draw(models["target_q_network"])
with torch.no_grad():
    balance(list(models["q_network"].modules())[-1], models["q_network"].act({"observations": flat})[0])
    actions = agent.act(flat, None, timestep=0, timesteps=1)[0].numpy()
agent.save(str(RECORDING.out / "skrl_agent.pt"))
RECORDING.add("skrl_agent", "skrl_agent.pt", actions)
