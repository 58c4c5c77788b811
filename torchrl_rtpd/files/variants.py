"""Readings of somebody else's weights that shapes do not tell apart: the scale of pixels and the order of channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from torchrl_rtpd.files.foreign import Contents
from torchrl_rtpd.networks.compiled import plain_name
from torchrl_rtpd.networks.running import eval_mode
from torchrl_rtpd.networks.towers import NatureTower

__all__ = ["Variant", "checked_recording", "first_that_plays", "variants"]

# Mean absolute weights of a first layer: 0.03 as PyTorch draws them and 0.074 of a trained tower on pixels in [0, 1];
# 0.0003 for the same function of 0..255. A network that began with 0.03 and was trained on 0..255 is still near it, so
# that large weights say nothing unless the library scales pixels by itself.
_SURELY_UNSCALED, _SURELY_SCALED = 0.0015, 0.01
_LEAST_AGREEMENT = 0.99


class Variant(NamedTuple):
    """One reading of the weights.

    Attributes:
        name: "channels first, pixels in [0, 1]" and the like.
        state: tensors by the network's own names.
        said: the change that was made, if any.
        doubt: what the file does not tell.
    """

    name: str
    state: dict[str, Tensor]
    said: str
    doubt: str


def variants(
    bare: nn.Module, state: dict[str, Tensor], contents: Contents, reads_bytes: bool | None, ours: bool
) -> list[Variant]:
    """Return the possible readings, the likeliest first.

    Args:
        bare: the network, which is not changed.
        state: weights as the file has them, by the network's names.
        contents: the file's library and what its settings say.
        reads_bytes: True if the file's network read 0..255, False if [0, 1], None if the user does not say.
        ours: True if the names are the network's own, so that its layout is no question.

    Raises:
        ValueError: ``reads_bytes`` of a network that scales no pixels.
    """
    first, dense = _first_layer(bare), _flattened_layer(bare)
    if first not in state:
        first = None
    if first is None and reads_bytes:
        raise ValueError(
            f"reads_bytes must be None or False for a network that scales no pixels: got True for "
            f"{type(bare).__name__}."
        )
    scales, unsure = _scales(state, first, contents, reads_bytes, ours)
    usual = contents.scales_pixels and first is not None and not ours
    assumed = usual and not unsure and reads_bytes is None and contents.reads_bytes is None
    orders = [False] if dense is None or ours else [False, True]
    doubts = [
        *(["if its dense layer reads channels first or last"] if len(orders) > 1 and not contents.library else []),
        *(["if its pixels were in [0, 1] or in 0..255"] if unsure else []),
    ]
    found = []
    for last in orders:
        for unscaled in scales:
            changed, said = dict(state), []
            if unscaled and first is not None:
                changed[first] = state[first] * 255
                said.append("pixels in 0..255 were folded into the first layer (times 255)")
            elif assumed:
                said.append(f"pixels are taken to be in [0, 1], as {contents.library} has them unless told otherwise")
            if last and dense is not None:
                changed[dense[0]] = _channels_first(state[dense[0]], dense[1])
                said.append("its dense layer was turned from channels last to channels first")
            name = f"channels {'last' if last else 'first'}, pixels in {'0..255' if unscaled else '[0, 1]'}"
            found.append(Variant(name, changed, "; ".join(said), " and ".join(doubts)))
    return found


def checked_recording(recording: Any) -> tuple[Tensor, Tensor]:
    """Return observations and actions of a recording as tensors.

    Raises:
        TypeError: something else than two arrays.
        ValueError: another number of actions than observations, or none; actions of another shape than ``[N]``.
    """
    if not isinstance(recording, (tuple, list)) or len(recording) != 2:
        raise TypeError(
            f"check_frames must be two tensors, observations and actions: got {type(recording).__name__}; give "
            "(frames, actions)."
        )
    observations, actions = (torch.as_tensor(array) for array in recording)
    if not len(actions) or actions.shape != observations.shape[:1]:
        raise ValueError(
            f"check_frames must be observations [N, ...] and actions [N]: got {list(observations.shape)} and "
            f"{list(actions.shape)}; record one greedy action for each observation."
        )
    return observations, actions


def first_that_plays(
    path: Path, bare: nn.Module, possible: Sequence[Variant], observations: Tensor, actions: Tensor
) -> Variant:
    """Return the first reading that takes the recorded actions.

    Raises:
        ValueError: none takes 99 % of them; the message says how many each takes.
    """
    shares: dict[str, float] = {}
    for variant in possible:
        shares[variant.name] = _share(bare, variant.state, observations, actions)
        if shares[variant.name] >= _LEAST_AGREEMENT:
            said = [*([variant.said] if variant.said else []), f"{shares[variant.name]:.1%} of check_frames agree"]
            return variant._replace(said="; ".join(said))
    listed = ", ".join(f"{share:.1%} as {name}" for name, share in shares.items())
    raise ValueError(
        f"the network in {path} must take at least 99 % of the actions in check_frames: got {listed}; "
        "record frames as its own preprocessing makes them, or take the library's settings into account."
    )


@torch.no_grad()
def _share(bare: nn.Module, state: dict[str, Tensor], observations: Tensor, actions: Tensor) -> float:
    """Share of observations whose greedy action is the recorded one."""
    own_names = {plain_name(name): name for name in bare.state_dict()}
    like = next(bare.parameters())
    own_state = {own_names[name]: tensor.to(like.device) for name, tensor in state.items()}
    agreeing = 0
    with eval_mode(bare):
        for part, wanted in zip(observations.split(256), actions.split(256), strict=True):
            values = functional_call(bare, own_state, (part.to(like.device),))
            agreeing += int((values.argmax(-1).cpu() == wanted.cpu()).sum())
    return agreeing / len(actions)


def _first_layer(bare: nn.Module) -> str | None:
    """Name of the first weight of a tower that scales pixels itself."""
    towers = [(name, module) for name, module in bare.named_modules() if isinstance(module, NatureTower)]
    return plain_name(f"{towers[0][0]}.trunk.0.weight".removeprefix(".")) if towers else None


def _scales(
    state: dict[str, Tensor], first: str | None, contents: Contents, reads_bytes: bool | None, ours: bool
) -> tuple[list[bool], bool]:
    """Possible answers to "was it trained on 0..255", the likeliest first, and True if that is a guess."""
    if first is None or (ours and reads_bytes is None):
        return [False], False
    if reads_bytes is None:
        reads_bytes = contents.reads_bytes
    if reads_bytes is not None:
        return [reads_bytes], False
    size = state[first].abs().mean().item()
    if size < _SURELY_UNSCALED:
        return [True, False], False
    return [False, True], size < _SURELY_SCALED or not contents.scales_pixels


def _flattened_layer(bare: nn.Module) -> tuple[str, int] | None:
    """Name of the first dense weight after a convolution, and the channels that it reads; None without convolutions."""
    channels = None
    for name, module in bare.named_modules():
        if isinstance(module, nn.Conv2d):
            channels = module.out_channels
        elif isinstance(module, nn.Linear) and channels is not None:
            if module.in_features == channels or module.in_features % channels:
                return None  # pooled to one number a channel: no order
            return plain_name(f"{name}.weight"), channels
    return None


def _channels_first(weight: Tensor, channels: int) -> Tensor:
    """Turn columns ``(H * W, C)`` into ``(C, H * W)``."""
    return weight.unflatten(1, (-1, channels)).transpose(1, 2).flatten(1)
