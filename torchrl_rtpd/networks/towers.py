"""The paper's networks by name, as TorchRL Q-value actors.

All share the layout of the Nature DQN (Mnih et al. 2015): three convolutions (8x8 stride 4, 4x4 stride 2, 3x3 stride
1), one fully connected layer and a linear head, with ReLU between them. Input is ``pixels``: ``[*B, 4, 84, 84]`` uint8,
scaled to [0, 1] inside the network and nowhere else; output is ``action_value`` ``[*B, A]`` in float32.

Sizes are those printed in Sun & Fazli 2019 (https://arxiv.org/abs/1912.12630). Its Net5 has 1.82-1.87 % of the
teacher's parameters rather than the printed 1.7 %; ``net17`` is the tower that does meet 1.7 %.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Categorical, OneHot, TensorSpec
from torchrl.modules import QValueActor

from torchrl_rtpd.networks.pixels import scaled

__all__ = ["TOWERS", "NatureTower", "Tower", "make_actor", "num_parameters"]


class Tower(NamedTuple):
    """Sizes of one network.

    Attributes:
        filters: channels of the three convolutions.
        units: width of the fully connected layer.
    """

    filters: tuple[int, int, int]
    units: int


TOWERS: dict[str, Tower] = {
    "teacher": Tower((32, 64, 64), 512),
    "net1": Tower((16, 32, 32), 256),
    "net2": Tower((16, 16, 16), 128),
    "net3": Tower((16, 16, 16), 64),
    "net4": Tower((8, 8, 16), 64),
    "net5": Tower((8, 16, 8), 64),
    "net17": Tower((8, 8, 8), 64),
}
"""The paper's networks by name, and ``net17``, the tower with 1.7 % of the teacher's parameters."""


class NatureTower(nn.Module):
    """The Nature-DQN layout with any number of filters and units.

    Weights are drawn He-normal with zero biases and a head a tenth of that size: with PyTorch's own initialisation the
    tiny towers often die within a few thousand updates.

    Args:
        num_actions: number of actions ``A``.
        filters: channels of the three convolutions.
        units: width of the fully connected layer.
        in_channels: stacked frames.
        autocast_dtype: run the layers before the head under :class:`torch.autocast` in this type, for example
            ``torch.bfloat16``; None runs them in float32. The head is always float32, since a bfloat16 step is as large
            as the gaps between action values.

    Raises:
        ValueError: a size that is not positive, or not three filters.

    Examples:
        >>> tower = NatureTower(6, filters=(8, 8, 8), units=64)
        >>> tower(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
        torch.Size([2, 6])
    """

    def __init__(
        self,
        num_actions: int,
        *,
        filters: Sequence[int] = (32, 64, 64),
        units: int = 512,
        in_channels: int = 4,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(filters) != 3 or min(num_actions, units, in_channels, *filters) < 1:
            raise ValueError(
                "a tower needs three filters and positive sizes: got "
                f"num_actions={num_actions}, filters={tuple(filters)}, units={units}, in_channels={in_channels}; "
                f"the paper's sizes are in torchrl_rtpd.networks.TOWERS ({', '.join(TOWERS)})."
            )
        first, second, third = filters
        self.autocast_dtype = autocast_dtype
        self.trunk = nn.Sequential(
            nn.Conv2d(in_channels, first, 8, 4),  # 84 -> 20
            nn.ReLU(),
            nn.Conv2d(first, second, 4, 2),  # 20 -> 9
            nn.ReLU(),
            nn.Conv2d(second, third, 3, 1),  # 9 -> 7
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(third * 7 * 7, units),
            nn.ReLU(),
        )
        self.head = nn.Linear(units, num_actions)
        self.reset_parameters()
        self.to(memory_format=torch.channels_last)

    def reset_parameters(self) -> None:
        """Draw the weights anew: He-normal, zero biases, a head a tenth as large."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Action values of a stack of frames.

        Args:
            pixels: ``[*B, 4, 84, 84]`` uint8.

        Returns:
            ``[*B, A]`` float32.

        Raises:
            TypeError: pixels that are not uint8, which would be scaled twice.
        """
        if pixels.dtype != torch.uint8:
            raise TypeError(
                f"pixels must be uint8, since the network scales them itself: got {pixels.dtype}; "
                "remove the transform that converts or scales them (ToTensorImage, VecNorm)."
            )
        batch = pixels.shape[:-3]
        pixels = scaled(pixels)
        device = pixels.device.type
        with torch.autocast(device, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            features = self.trunk(pixels)
        with torch.autocast(device, enabled=False):  # float32 also under the caller's own autocast
            q_values = self.head(features.float())
        return q_values.reshape(*batch, q_values.shape[-1])


def make_actor(
    tower: str | Tower,
    action_spec: TensorSpec,
    *,
    in_key: NestedKey = "pixels",
    in_channels: int = 4,
    autocast_dtype: torch.dtype | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> QValueActor:
    """Build one of the paper's networks, or your own sizes, as a :class:`~torchrl.modules.QValueActor`.

    Args:
        tower: a name in :data:`TOWERS` or a :class:`Tower`.
        action_spec: the environment's action spec, categorical or one-hot, with or without batch dimensions.
        in_key: where the stacked frames ``[*B, 4, 84, 84]`` uint8 are read.
        in_channels: stacked frames.
        autocast_dtype: see :class:`NatureTower`.
        seed: draw the weights from a generator of this seed and leave the global one untouched, so that adding a
            network changes nothing for the others. None draws from the global generator.
        device: where the parameters live.

    Returns:
        An actor that writes ``action``, ``action_value`` ``[*B, A]`` and ``chosen_action_value``.

    Raises:
        ValueError: an unknown name; the message holds the nearest ones.
        TypeError: an action spec that is neither categorical nor one-hot.

    Examples:
        >>> from torchrl.data import Categorical
        >>> actor = make_actor("net17", Categorical(6), seed=0)
        >>> num_parameters(actor)
        29214
    """
    if isinstance(tower, str):
        if tower not in TOWERS:
            near = difflib.get_close_matches(tower, TOWERS, n=3, cutoff=0.3) or list(TOWERS)
            raise ValueError(
                f"unknown network {tower!r}; did you mean {', '.join(near)}? "
                "For other sizes pass torchrl_rtpd.networks.Tower(filters, units)."
            )
        tower = TOWERS[tower]
    # The actor wants the spec of one decision, whatever the batch of the environment.
    if not isinstance(action_spec, (Categorical, OneHot)):
        raise TypeError(
            f"action_spec must be Categorical or OneHot: got {type(action_spec).__name__}; "
            "the paper's networks value each of a finite set of actions."
        )
    categorical = isinstance(action_spec, Categorical)
    num_actions = action_spec.n if categorical else action_spec.shape[-1]
    spec = Categorical(num_actions) if categorical else OneHot(num_actions)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.random.default_generator.manual_seed(seed)
        network = NatureTower(
            num_actions,
            filters=tower.filters,
            units=tower.units,
            in_channels=in_channels,
            autocast_dtype=autocast_dtype,
        )
    return QValueActor(network, in_keys=[in_key], spec=spec).to(device)


def num_parameters(module: nn.Module) -> int:
    """Number of scalar parameters of a module.

    Examples:
        >>> num_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in module.parameters())
