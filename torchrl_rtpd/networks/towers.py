"""The paper's networks by name, as TorchRL Q-value actors.

All share the layout of the Nature DQN (Mnih et al. 2015): three convolutions (8x8 stride 4, 4x4 stride 2, 3x3 stride
1), one fully connected layer and a linear head, with ReLU between them. Input is ``pixels``: ``[*B, C, H, W]`` uint8,
``[*B, 4, 84, 84]`` in the paper, scaled to [0, 1] inside the network and nowhere else. Output is ``action_value``
``[*B, A]`` in float32.

Sizes are those printed in Sun & Fazli 2019 (https://arxiv.org/abs/1912.12630). Its Net5 has 1.82-1.87 % of the
teacher's parameters rather than the printed 1.7 %; ``net17`` is the tower that does meet 1.7 %.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Categorical, OneHot, TensorSpec
from torchrl.modules import QValueActor

from torchrl_rtpd.functional.checks import at_least_single, check_within
from torchrl_rtpd.networks.linear import WideLinear
from torchrl_rtpd.networks.norm import ChannelNorm
from torchrl_rtpd.networks.pixels import scaled

__all__ = ["LADDER", "TOWERS", "NatureTower", "Tower", "make_actor", "num_parameters", "tower_of"]


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

_PAPER_SIZES = f"the paper's sizes are in torchrl_rtpd.networks.TOWERS ({', '.join(TOWERS)})"


class NatureTower(nn.Module):
    """The Nature-DQN layout with any number of filters and units.

    Weights are drawn He-normal with zero biases and a head a tenth of that size: with PyTorch's own initialisation the
    tiny towers often die within a few thousand updates.

    Args:
        num_actions: number of actions ``A``.
        filters: channels of the three convolutions.
        units: width of the fully connected layer.
        in_channels: channels ``C``: stacked frames, three times as many in colour.
        frame_size: height and width of a frame, ``(H, W)``, at least 36 pixels each. Default: 84, the paper's.
        autocast_dtype: run the layers before the head under :class:`torch.autocast` in this type, for example
            ``torch.bfloat16``; None runs them in the type of the weights. The head is never run in it, since a bfloat16
            step is as large as the gaps between action values.
        norm: ``"layer"`` puts a :class:`~torchrl_rtpd.networks.norm.ChannelNorm` before each ReLU, as PQN has it; None
            is the paper's layout.

    Raises:
        ValueError: a size out of range, or not three filters.

    Examples:
        >>> tower = NatureTower(6, filters=(8, 8, 8), units=64)
        >>> tower(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
        torch.Size([2, 6])
        >>> colour = NatureTower(6, in_channels=12, frame_size=(64, 96))
        >>> colour(torch.zeros(2, 12, 64, 96, dtype=torch.uint8)).shape
        torch.Size([2, 6])
    """

    def __init__(
        self,
        num_actions: int,
        *,
        filters: Sequence[int] = (32, 64, 64),
        units: int = 512,
        in_channels: int = 4,
        frame_size: tuple[int, int] = (84, 84),
        autocast_dtype: torch.dtype | None = None,
        norm: Literal["layer"] | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(num_actions, filters, units, in_channels, frame_size)
        if norm not in (None, "layer"):
            raise ValueError(f"norm must be layer or None: got {norm!r}.")
        first, second, third = filters
        height, width = map(_size_after_convolutions, frame_size)
        self.input_size = (in_channels, *frame_size)
        self.autocast_dtype = autocast_dtype

        def relu(channels: int) -> list[nn.Module]:
            return [nn.ReLU()] if norm is None else [ChannelNorm(channels), nn.ReLU()]

        self.trunk = nn.Sequential(
            nn.Conv2d(in_channels, first, 8, 4),  # 84 -> 20
            *relu(first),
            nn.Conv2d(first, second, 4, 2),  # 20 -> 9
            *relu(second),
            nn.Conv2d(second, third, 3, 1),  # 9 -> 7
            *relu(third),
            nn.Flatten(),
            WideLinear(third * height * width, units),
            *relu(units),
        )
        self.head = nn.Linear(units, num_actions)
        self.reset_parameters()
        self.to(memory_format=torch.channels_last)

    def reset_parameters(self) -> None:
        """Draw the weights from scratch: He-normal, zero biases, a head a tenth as large."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.head.weight.mul_(0.1)
        for module in self.modules():
            if isinstance(module, ChannelNorm):
                module.reset_parameters()

    def forward(self, pixels: Tensor) -> Tensor:
        """Action values of a stack of frames.

        Args:
            pixels: ``[*B, C, H, W]`` uint8.

        Returns:
            ``[*B, A]`` float32, or float64 from weights in float64.

        Raises:
            TypeError: pixels that are not uint8, which would be scaled twice.
            ValueError: frames of another size or number of channels than the tower was built for.
        """
        if pixels.dtype != torch.uint8:
            raise TypeError(
                f"pixels must be uint8, since the network scales them itself: got {pixels.dtype}; "
                "remove the transform that converts or scales them (ToTensorImage, VecNorm)."
            )
        if pixels.shape[-3:] != self.input_size:
            channels, *frame_size = self.input_size
            raise ValueError(
                f"pixels must be [*B, {channels}, {', '.join(map(str, frame_size))}]: got {list(pixels.shape)}; "
                "resize the frames, or build the network with in_channels and frame_size of its frames."
            )
        batch, dtype = pixels.shape[:-3], self.head.weight.dtype
        pixels = scaled(pixels).to(dtype)
        device = pixels.device.type
        with torch.autocast(device, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            features = self.trunk(pixels)
        with torch.autocast(device, enabled=False):  # the head's own type also under the caller's autocast
            q_values = self.head(features.to(dtype))
        return q_values.reshape(*batch, q_values.shape[-1]).to(at_least_single(dtype))


def _check_sizes(
    num_actions: int, filters: Sequence[int], units: int, in_channels: int, frame_size: tuple[int, int]
) -> None:
    if len(filters) != 3:
        raise ValueError(f"filters must be three numbers of channels: got {tuple(filters)}; {_PAPER_SIZES}.")
    named = {f"filters[{place}]": number for place, number in enumerate(filters)}
    check_within("[1, inf)", _PAPER_SIZES, num_actions=num_actions, units=units, in_channels=in_channels, **named)
    height, width = frame_size
    check_within("[36, inf)", "smaller frames end before the third convolution", height=height, width=width)


def _size_after_convolutions(size: int) -> int:
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        size = (size - kernel) // stride + 1
    return size


def make_actor(
    tower: str | Tower,
    action_spec: TensorSpec,
    *,
    in_key: NestedKey = "pixels",
    in_channels: int = 4,
    frame_size: tuple[int, int] = (84, 84),
    autocast_dtype: torch.dtype | None = None,
    norm: Literal["layer"] | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> QValueActor:
    """Build one of the paper's networks, or your own sizes, as a :class:`~torchrl.modules.QValueActor`.

    Args:
        tower: a name in :data:`TOWERS` or a :class:`Tower`.
        action_spec: the environment's action spec, categorical or one-hot, with or without batch dimensions.
        in_key: where the stacked frames ``[*B, C, H, W]`` uint8 are read.
        in_channels: channels, see :class:`NatureTower`.
        frame_size: height and width of a frame.
        autocast_dtype: see :class:`NatureTower`.
        norm: see :class:`NatureTower`.
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
        tower = tower_of(tower)
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
            frame_size=frame_size,
            autocast_dtype=autocast_dtype,
            norm=norm,
        )
    return QValueActor(network, in_keys=[in_key], spec=spec).to(device)


def num_parameters(module: nn.Module) -> int:
    """Number of scalar parameters of a module.

    Examples:
        >>> num_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in module.parameters())


def tower_of(name: str) -> Tower:
    """Return the tower of a name: one of :data:`TOWERS`, or its three numbers of filters and its units, ``"8-8-8-64"``.

    Raises:
        ValueError: another name; the message holds the nearest ones.

    Examples:
        >>> tower_of("net17") == tower_of("8-8-8-64")
        True
        >>> tower_of("net18")
        Traceback (most recent call last):
        ValueError: unknown network 'net18'; did you mean net1, net17, net5? ...
    """
    if name in TOWERS:
        return TOWERS[name]
    sizes = name.split("-")
    if len(sizes) == 4 and all(size.isascii() and size.isdigit() and int(size) for size in sizes):
        first, second, third, units = map(int, sizes)
        return Tower((first, second, third), units)
    near = difflib.get_close_matches(name, TOWERS, n=3, cutoff=0.3) or list(TOWERS)
    raise ValueError(
        f"unknown network {name!r}; did you mean {', '.join(near)}? "
        "For other sizes write filters and units, 8-8-8-64, or pass torchrl_rtpd.networks.Tower(filters, units)."
    )


LADDER = tuple(
    f"{filters}-{units}" for filters in ("4-4-4", "8-8-8", "16-16-16", "16-32-32") for units in (16, 32, 64, 128)
)
"""Names of sixteen towers for a search of the smallest that will do; the largest has the filters of the paper's net1
and half of its units, the smallest a fiftieth of its parameters."""
