"""Files of scripts and libraries that need none of theirs to be written: CleanRL, safetensors, padded convolutions.

CleanRL is a collection of scripts, and a model is saved by ``torch.save`` of its state dict. Dopamine and RLlib pad
their convolutions (SAME). The layouts are theirs, the modules are ours.

python tests/peers/make_layouts.py FOLDER [--small]
"""

from __future__ import annotations

import torch
from recording import Recording, balance, draw
from safetensors.torch import save_file
from torch import nn

RECORDING = Recording()


class Scaled(nn.Module):
    """A network that divides by 255, its layers under one name."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.network = nn.Sequential(*layers)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixels / 255.0)


@torch.no_grad()
def save(name, network):
    draw(network)
    frames = torch.as_tensor(RECORDING.frames)
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    balance(head, network(frames))
    actions = network(frames).argmax(1).numpy()
    if name == "cleanrl_dqn":  # its scripts name the file so
        torch.save(network.state_dict(), RECORDING.out / f"{name}.cleanrl_model")
        RECORDING.add(name, f"{name}.cleanrl_model", actions)
        save_file(network.state_dict(), RECORDING.out / "any.safetensors")
        RECORDING.add("safetensors", "any.safetensors", actions, packages=("safetensors",))
    else:
        torch.save(network.state_dict(), RECORDING.out / f"{name}.pt")
        RECORDING.add(name, f"{name}.pt", actions)


def convolutions(channels, *sizes, padded=False):
    """Convolutions of the Nature DQN with ReLU between them, padded as TensorFlow does or not at all."""
    layers = []
    padding = ((2, 2, 2, 2), (1, 2, 1, 2), (1, 1, 1, 1))
    for size, kernel, stride, pad in zip(sizes, (8, 4, 3), (4, 2, 1), padding, strict=True):
        layers += [*([nn.ZeroPad2d(pad)] if padded else []), nn.Conv2d(channels, size, kernel, stride), nn.ReLU()]
        channels = size
    return [*layers, nn.Flatten()]


torch.set_num_threads(1)
if RECORDING.small:
    save("cleanrl_dqn", Scaled(*convolutions(2, 4, 4, 4), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, RECORDING.actions)))
else:
    head = [nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, RECORDING.actions)]
    save("cleanrl_dqn", Scaled(*convolutions(4, 32, 64, 64), *head))
    head = [nn.Linear(7744, 512), nn.ReLU(), nn.Linear(512, RECORDING.actions)]
    save("padded", Scaled(*convolutions(4, 32, 64, 64, padded=True), *head))
