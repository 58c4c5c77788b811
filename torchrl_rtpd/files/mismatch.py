"""Words for a file whose network is another than the one that is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from torchrl_rtpd.files.foreign import words
from torchrl_rtpd.files.heads import atoms_of_streams
from torchrl_rtpd.files.layers import layers_of

__all__ = ["explained"]

_SHOWN = 4  # differences in a message
_ALL_ACTIONS = 18  # of Atari


def explained(path: Path, wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    """Return the error for a file without the network: the number of actions first, since it is the commonest case."""
    found = _nearest(wanted, saved)
    differences = list(_differences(wanted, found))
    head = _other_head(path, wanted, saved)
    if head:
        return head
    rest = len(differences) - _SHOWN
    more = f", and {rest} more" if rest > 0 else ""
    if not differences:
        extra = [name for name in saved if saved[name].ndim and name not in found.values()][:_SHOWN]
        return f"the network in {path} has more layers than this one, among them {extra}; build the whole network."
    return (
        f"the network in {path} has another architecture, {len(differences)} tensors differ: "
        f"{'; '.join(differences[:_SHOWN])}{more}. {_hint(saved)}{_norms(wanted, found)}"
        "Build the network with the sizes it was saved with."
    )


def _other_head(path: Path, wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    """Words for a file whose head alone is another; empty for any other file."""
    atoms = atoms_of_streams(saved, _rows(wanted))
    if atoms is not None:
        return (
            f"the network in {path} has {atoms} outputs for each action in its streams of value and advantage, as C51 "
            "and Rainbow have them, whose mean is no linear head; take a teacher of plain action values."
        )
    actions = _other_actions(wanted, saved)
    if actions is None:
        return ""
    own, theirs = actions
    if theirs % own == 0 and theirs > _ALL_ACTIONS:
        return (
            f"the network in {path} has {theirs} outputs, {theirs // own} for each of {own} actions, as atoms or "
            "quantiles in an order that the names do not tell, this one one for each; take a teacher of plain "
            "action values, or pass rows= if those are actions."
        )
    return (
        f"the network in {path} chooses among {theirs} actions, this one among {own}; "
        "take a teacher of the same game and action set, or pass rows= to keep some of its actions."
    )


def _rows(wanted: Mapping[str, Tensor]) -> int:
    """Number of outputs of the last layer."""
    return max(len(wanted[name]) for name in layers_of(wanted)[-1].names.values())


def _nearest(wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors under the prefix that has most of the network's names."""
    best: Mapping[str, Tensor] = saved
    most = 0
    for own in wanted:
        for key in saved:
            if key == own or key.endswith(f".{own}"):
                prefix = key.removesuffix(own)
                found = {name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)}
                shared = len(found.keys() & wanted.keys())
                if shared > most:
                    best, most = found, shared
    return best


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(wanted.keys() | found.keys()):
        own, theirs = (list(where[name].shape) if name in where else None for where in (wanted, found))
        if own != theirs:
            yield f"{name} is {theirs} in the file and {own} in the network"


def _other_actions(wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Numbers of actions, own and the file's, if the last layer's rows are all that differs."""
    *own_shapes, own_head = [_shapes(layer.names.values(), wanted) for layer in layers_of(wanted)]
    theirs = [_shapes(layer.names.values(), saved) for layer in layers_of(saved)]
    for shapes in own_shapes:
        if shapes not in theirs:
            return None
        theirs.remove(shapes)
    for head in theirs:
        if [shape[1:] for shape in head] == [shape[1:] for shape in own_head] and head != own_head:
            return own_head[0][0], head[0][0]
    return None


def _shapes(names: Iterable[str], tensors: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    return sorted((tuple(tensors[name].shape) for name in names), key=lambda shape: (-len(shape), shape))


def _norms(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Say that norms stand in one of the two networks alone, if both have the same layers beside them."""
    layers, more = [], []
    for tensors in (wanted, found):
        layers.append(sorted(tuple(tensor.shape) for tensor in tensors.values() if tensor.ndim > 1))
        more.append(sum(tensor.ndim == 1 for tensor in tensors.values()))
    if layers[0] != layers[1] or more[0] == more[1]:
        return ""
    there, here = ("with", "without") if more[1] > more[0] else ("without", "with")
    return f"It was saved {there} norms after its layers (norm='layer') and this one is {here}. "


def _hint(saved: Mapping[str, Tensor]) -> str:
    """Name the other networks of the field by what is theirs alone."""
    if any("sigma" in words(name) for name in saved):
        return "Layers with mu and sigma are noisy ones: save their means as the weight and bias of plain layers. "
    if any(tensor.ndim == 2 and 7744 in tensor.shape for tensor in saved.values()):
        return (
            "7,744 inputs are those of padded (SAME) convolutions, as Dopamine and RLlib have them: another network. "
        )
    if any(name.endswith("kernel") for name in saved):
        return "Layers named kernel are TensorFlow's or JAX's, [in, out]: transpose them first. "
    return ""
