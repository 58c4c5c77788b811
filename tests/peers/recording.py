"""Frames, weights and greedy actions, for scripts that run in the environments of other libraries.

Frames are ``[N, C, H, W]`` uint8: coarse random patterns, so that no two are alike. Weights are He-normal, and no
action is always the greedy one, as in a trained network. A network that reads 0..255 unscaled has a first layer 255
times smaller.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import nn

ACTIONS = 6
SMALL_ACTIONS = 3


class Still(gymnasium.Env):
    """Nothing happens: libraries ask an environment for its spaces."""

    def __init__(self, observations: gymnasium.Space, actions: int) -> None:
        self.observation_space, self.action_space = observations, gymnasium.spaces.Discrete(actions)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


class Recording:
    """Folder with files of one library, the actions that it took, and how all of it was made."""

    def __init__(self, *packages: str) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("out", type=Path)
        parser.add_argument("--small", action="store_true", help="networks whose files are below 20 kB")
        arguments = parser.parse_args()
        self.out, self.small = arguments.out, arguments.small
        self.out.mkdir(parents=True, exist_ok=True)
        self.actions = SMALL_ACTIONS if self.small else ACTIONS
        self.versions = {package: version(package) for package in (*packages, "torch")}
        torch.manual_seed(0)

    @property
    def frames(self) -> np.ndarray:
        """Pixels ``[N, 4, 84, 84]``, or ``[N, 2, 44, 44]`` for small networks."""
        generator = np.random.default_rng(0)
        shape, block = ((64, 2, 4, 4), 11) if self.small else ((256, 4, 12, 12), 7)
        return generator.integers(256, size=shape, dtype=np.uint8).repeat(block, 2).repeat(block, 3)

    @property
    def numbers(self) -> np.ndarray:
        """Observations ``[N, 4]`` float32 of a task without pixels."""
        return np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)

    @property
    def pixels(self) -> gymnasium.Space:
        return gymnasium.spaces.Box(0, 255, self.frames.shape[1:], np.uint8)

    @property
    def vectors(self) -> gymnasium.Space:
        return gymnasium.spaces.Box(-9.0, 9.0, (4,), np.float32)

    def add(
        self,
        name: str,
        file: str,
        actions: np.ndarray | None = None,
        observations: np.ndarray | None = None,
        packages: Sequence[str] = (),
    ) -> None:
        """Write beside a file what its network did in these observations, if actions are given, and who made it."""
        versions = {package: version(package) for package in packages}
        made = {"file": file, "versions": {**versions, **self.versions}}
        (self.out / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n")
        if actions is None:
            return
        actions = np.asarray(actions).reshape(-1).astype(np.int64)
        observations = self.frames if observations is None else observations
        taken = np.unique(actions)
        if len(actions) != len(observations) or len(taken) < 3:
            raise ValueError(f"{name} must take three actions or more: got {taken} in {len(observations)} frames.")
        np.savez_compressed(self.out / f"{name}.npz", frames=observations, actions=actions)


def draw(network: nn.Module, *, reads_bytes: bool = False) -> None:
    """Give a network weights as large as those of a trained one."""
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(layer.bias, std=0.01)
    if reads_bytes:
        with torch.no_grad():
            layers[0].weight.div_(255)


@torch.no_grad()
def balance(head: nn.Linear, outputs: torch.Tensor) -> None:
    """Subtract the mean of what a head gives from its bias, so that no action is always the best."""
    head.bias.sub_(outputs.flatten(1).mean(0))
