"""Dormant units: ReLU units that (almost) never fire.

A unit is dormant where its mean activation over a minibatch is a small share of its layer's mean (Sokar et al. 2023,
https://arxiv.org/abs/2302.12902).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import set_recurrent_mode

from torchrl_rtpd.networks.sequences import single_steps

__all__ = ["dormant_share", "dormant_units", "recorded_activations"]


@torch.no_grad()
def dormant_share(network: TensorDictModule, tensordict: TensorDictBase, *, threshold: float = 0.025) -> float:
    """Share of dormant ReLU units in the layer of a network that has most of them.

    A unit (a channel of a convolution, a neuron of a linear layer) is dormant when its mean activation over the batch
    is at most ``threshold`` times the mean over its layer; Sokar et al., "The Dormant Neuron Phenomenon in Deep
    Reinforcement Learning", 2023 (https://arxiv.org/abs/2302.12902), Definition 3.1. The worst
    layer is reported, since one dead layer is enough to cut the outputs off from the state: 1 means that nothing
    passes. About a third is usual in the fully connected layer of a network that has not learned yet.

    Args:
        network: a module holding :class:`torch.nn.ReLU` layers, units in dimension 1, such as :class:`NatureTower`.
        tensordict: a batch ``[B]``, or rows ``[*B, T]``, with the network's ``in_keys``. Not changed.
        threshold: relative activation below which a unit is dormant, without unit. Default: 0.025, with 0.1 one of the
            two the paper compares.

    Returns:
        A number in [0, 1]. It costs one forward pass and one device synchronisation, so call it now and then
        rather than at every update.

    Raises:
        ValueError: the network has no ReLU layer.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule as Mod
        >>> layer = nn.Linear(1, 2)
        >>> _ = layer.load_state_dict({"weight": torch.tensor([[1.0], [-1.0]]), "bias": torch.zeros(2)})
        >>> network = Mod(nn.Sequential(layer, nn.ReLU()), in_keys=["obs"], out_keys=["features"])
        >>> dormant_share(network, TensorDict({"obs": torch.ones(4, 1)}, [4]))
        0.5
    """
    with recorded_activations(network) as activations, set_recurrent_mode(True):
        network(single_steps(network, tensordict))
    if not activations:
        raise ValueError(
            "dormant_share needs a network with torch.nn.ReLU layers: "
            f"{type(network).__name__} has none; build one with make_actor or log another measure."
        )
    shares = []
    for activation in activations:
        shares.append(dormant_units(activation, 1, threshold).float().mean())
    return torch.stack(shares).max().item()


def dormant_units(activation: Tensor, unit_dim: int, threshold: float) -> Tensor:
    """Return True for each dormant unit of a layer, boolean ``[units]``; see :func:`dormant_share`."""
    scores = activation.float().abs().movedim(unit_dim, 0).flatten(1).mean(1)
    return scores <= threshold * scores.mean()


@contextmanager
def recorded_activations(network: nn.Module) -> Iterator[list[Tensor]]:
    """Record the outputs of a network's ReLU layers inside the context, in order of call; nothing runs compiled."""
    activations: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: activations.append(output))
        for module in network.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not see hooks that came later
            yield activations
    finally:
        for handle in handles:
            handle.remove()
