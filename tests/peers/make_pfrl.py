"""Files of pfrl: a folder an agent, of which ``model.pt`` is the network.

python tests/peers/make_pfrl.py FOLDER [--small]
"""

from __future__ import annotations

import shutil

import numpy as np
import pfrl
import torch
from pfrl.agents import DQN, CategoricalDQN
from pfrl.nn.atari_cnn import LargeAtariCNN
from pfrl.q_functions import (
    DiscreteActionValueHead,
    DistributionalDuelingDQN,
    DuelingDQN,
    FCStateQFunctionWithDiscreteAction,
)
from recording import Recording, balance, draw
from torch import nn

RECORDING = Recording("pfrl")


def scaled(observation):
    """What pfrl's examples do with a frame before the network."""
    return np.asarray(observation, dtype=np.float32) / 255


def save(name, network, head, observations, phi, kind=DQN):
    """Save a whole agent, keep its network's file."""
    draw(network)
    outputs = []
    hook = head.register_forward_hook(lambda module, args, output: outputs.append(output.detach().clone()))
    batch = [phi(observation) for observation in observations]
    with torch.no_grad():
        network(torch.as_tensor(np.stack(batch)))
    hook.remove()
    balance(head, outputs[0])
    optimizer = torch.optim.Adam(network.parameters())
    explorer, memory = pfrl.explorers.Greedy(), pfrl.replay_buffers.ReplayBuffer(8)
    sizes = {"minibatch_size": 1, "replay_start_size": 1}
    agent = kind(network, optimizer, memory, gamma=0.99, explorer=explorer, phi=phi, **sizes)
    with agent.eval_mode():
        actions = agent.batch_act(list(observations))
    folder = RECORDING.out / f"pfrl_{name}"
    agent.save(str(folder))
    shutil.move(folder / "model.pt", RECORDING.out / f"pfrl_{name}.pt")
    shutil.rmtree(folder)
    RECORDING.add(f"pfrl_{name}", f"pfrl_{name}.pt", np.asarray(actions), observations)


def pixels():
    """Networks of the Nature DQN's size."""
    frames, actions = RECORDING.frames, RECORDING.actions
    head = nn.Linear(512, actions)
    save("dqn", nn.Sequential(LargeAtariCNN(), head, DiscreteActionValueHead()), head, frames, scaled)
    network = DuelingDQN(actions)
    save("dueling", network, network.a_stream.output, frames, scaled)
    network = DistributionalDuelingDQN(actions, 51, -10, 10)
    save("categorical_dueling", network, network.a_stream, frames, scaled, CategoricalDQN)


def numbers():
    """A network on four numbers."""
    network = FCStateQFunctionWithDiscreteAction(4, RECORDING.actions, n_hidden_channels=16, n_hidden_layers=1)
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    save("dqn", network, head, RECORDING.numbers, lambda observation: observation)


torch.set_num_threads(1)
numbers() if RECORDING.small else pixels()
