"""Files of tianshou: policies that scale pixels and that do not, a whole algorithm, quantiles and atoms.

python tests/peers/make_tianshou.py FOLDER [--small]
"""

from __future__ import annotations

import copy

import gymnasium
import torch
from recording import Recording, balance, draw
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.c51 import C51Policy
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.modelfree.qrdqn import QRDQNPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch
from tianshou.env.atari.atari_network import C51Net, DQNet, QRDQNet, RainbowNet, ScaledObsInputActionReprNet
from tianshou.utils.net.common import Net
from torch import nn

RECORDING = Recording("tianshou", "gymnasium")
SPACE = gymnasium.spaces.Discrete(RECORDING.actions)


def trained(model, kind=DiscreteQLearningPolicy, *, observations, reads_bytes=False):
    """A policy of such a model and its greedy actions."""
    draw(model, reads_bytes=reads_bytes)
    policy = kind(model=model, action_space=SPACE).eval()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    outputs = []
    hook = head.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    policy(Batch(obs=observations, info={}))
    hook.remove()
    balance(head, outputs[0])
    with torch.no_grad():
        return policy, policy(Batch(obs=observations, info={})).act


def save(name, module, actions, observations=None):
    """Save a state dict, as tianshou's examples do."""
    torch.save(module.state_dict(), RECORDING.out / f"tianshou_{name}.pth")
    RECORDING.add(f"tianshou_{name}", f"tianshou_{name}.pth", actions, observations)


def pixels():
    """Networks of the Nature DQN's size; the default reads 0..255."""
    frames = RECORDING.frames
    sizes = {"c": 4, "h": 84, "w": 84, "action_shape": RECORDING.actions}
    policy, actions = trained(DQNet(**sizes), observations=frames, reads_bytes=True)
    save("bytes", policy, actions)
    with torch.no_grad():  # as one that was trained from PyTorch's own start: the scale does not show in the weights
        layers = list(policy.model.net.modules())
        first, last = ([layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))][i] for i in (0, -1))
        first.weight.mul_(100)
        last.bias.mul_(100)
    save("bytes_of_a_usual_size", policy, policy(Batch(obs=frames, info={})).act)
    policy, actions = trained(ScaledObsInputActionReprNet(DQNet(**sizes)), observations=frames)
    save("policy", policy, actions)
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(), target_update_freq=100)
    draw(algorithm.model_old)
    save("algorithm", algorithm, actions)
    for name, net, kind in (("qrdqn", QRDQNet, QRDQNPolicy), ("c51", C51Net, C51Policy)):
        policy, actions = trained(net(**sizes), kind, observations=frames, reads_bytes=True)
        save(name, policy, actions)
    policy = C51Policy(RainbowNet(**sizes), SPACE)
    torch.save(policy.state_dict(), RECORDING.out / "tianshou_rainbow.pth")
    RECORDING.add("tianshou_rainbow", "tianshou_rainbow.pth")


def numbers():
    """A network on four numbers in a whole algorithm, and its policy alone."""
    observations = RECORDING.numbers
    model = Net(state_shape=(4,), action_shape=RECORDING.actions, hidden_sizes=[16])
    policy, actions = trained(model, observations=observations)
    save("policy", policy, actions, observations)
    algorithm = DQN(policy=copy.deepcopy(policy), optim=AdamOptimizerFactory(), target_update_freq=100)
    draw(algorithm.model_old)
    save("algorithm", algorithm, actions, observations)


torch.set_num_threads(1)
numbers() if RECORDING.small else pixels()
