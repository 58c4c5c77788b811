"""A network from somebody else's file: a teacher to begin with, which is another thing than resuming a run.

Nothing but tensors is read. Files that would need to run code to be understood are refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from torchrl_rtpd.files.foreign import Contents, read_contents, words
from torchrl_rtpd.files.heads import collapsed, with_rows
from torchrl_rtpd.files.layers import Candidate, candidates, layers_of, named_candidates, same_tensors, stands_alone
from torchrl_rtpd.files.mismatch import explained
from torchrl_rtpd.files.variants import checked_recording, first_that_plays, variants
from torchrl_rtpd.networks.compiled import load_plain_state_dict, plain_state_dict
from torchrl_rtpd.networks.running import bare_network

__all__ = ["load_pretrained"]

_COPY = {"target", "targ", "tgt", "old", "frozen", "previous", "prev", "lagged", "lagging"}
_ONLINE = {"online", "new", "current", "local", "main"}
_CRITIC = {"critic", "vf"}
_LOSS = "value_network_params."  # of a TorchRL DQN loss


def load_pretrained(
    network: nn.Module,
    path: str | os.PathLike,
    *,
    check_frames: tuple[Tensor, Tensor] | None = None,
    reads_bytes: bool | None = None,
    rows: Sequence[int] | None = None,
) -> str:
    """Give a network the weights of a file, whatever wrote it, if they are all of its layers and no others.

    Read are files of safetensors, of ``torch.save`` (state dicts, also within larger ones) and of ``numpy.savez``; zips
    of stable-baselines3 and ``.d3`` files of d3rlpy; folders of pfrl's agents; and folders written by TorchRL's
    :class:`~torchrl.checkpoint.Checkpoint`, by its older memory-mapped backend and by
    :class:`~torchrl_rtpd.files.verified.VerifiedCheckpoint`. Tensors are found by name under any prefix, otherwise
    layer by layer by the shapes of weight and bias together. Of an online network and its target or old copy the online
    one is taken; moments of optimisers are passed over. Quantile heads of sb3-contrib and dueling heads become one
    linear head of the same action values.

    Warning: shapes do not tell if a dense layer reads its frames channels first or channels last (TensorFlow, JAX), nor
    do weights always tell if a network was trained on pixels in [0, 1] or in 0..255. A ``UserWarning`` says which of
    these the file leaves open. Give ``check_frames`` if in doubt.

    Args:
        network: an actor of any number of parts or a plain module; changed in place, or not at all.
        path: the file or folder.
        check_frames: observations ``[N, ...]`` and the greedy actions ``[N]`` that the file's own network took in them.
            The network must take 99 % of them; layouts and scales of the input are tried until it does.
        reads_bytes: True if the file's network reads pixels in 0..255, which is then folded into the first layer; False
            if it reads [0, 1]. None lets the file tell: its settings, or a first layer of weights near zero, for
            networks that scale pixels themselves.
        rows: the file's action for each action of the network, to take the minimal action set from a teacher of all 18.

    Returns:
        What was loaded, one sentence.

    Raises:
        ValueError: a network without layers; a file that cannot be read as tensors; several networks that may be meant;
            another architecture; another number of actions; values that are not finite; other greedy actions than in
            ``check_frames``.
        FileNotFoundError: nothing at that place.

    Examples:
        >>> import tempfile, torch
        >>> path = tempfile.mkdtemp() + "/dqn.pt"
        >>> torch.save({"target": {"weight": torch.zeros(2, 3)}, "online": {"weight": torch.ones(2, 3)}}, path)
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> load_pretrained(nn.Sequential(layer), path)[:72]
        "1 tensors of 6 values, by layers; 'online.' was taken, not 'target.', fr"
        >>> layer.weight.sum().item()
        6.0
    """
    path = Path(path)
    bare = bare_network(network)
    wanted = plain_state_dict(bare)
    if not layers_of(wanted):
        raise ValueError(f"network must have layers to fill: got {type(bare).__name__} without a parameter.")
    contents = read_contents(path)
    if check_frames is not None:
        check_frames = checked_recording(check_frames)
    if rows is not None:
        contents = contents._replace(tensors=with_rows(contents.tensors, _head(wanted), rows))
    choice = _choose(path, wanted, contents)
    _refuse_integers(path, choice, wanted)
    found = {own: choice.tensors[name].to(wanted[own].dtype) for own, name in choice.candidate.names.items()}
    broken = next((choice.candidate.names[own] for own, tensor in found.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise ValueError(f"the weights in {path} must be finite: {broken!r} is not; take an earlier file.")
    state, said = _in_our_layout(path, bare, {**wanted, **found}, choice, contents, check_frames, reads_bytes)
    load_plain_state_dict(bare, state)
    count = sum(tensor.numel() for tensor in found.values())
    said = [f"{len(found)} tensors of {count:,} values, by {choice.candidate.how}", *choice.said, *said]
    return f"{'; '.join(said)}, from {path}"


class _Choice(NamedTuple):
    """The network of a file that is meant, and sentences about the choice."""

    candidate: Candidate
    tensors: Mapping[str, Tensor]
    said: list[str]


def _refuse_integers(path: Path, choice: _Choice, wanted: Mapping[str, Tensor]) -> None:
    """Refuse integers for weights: their scales are not known."""
    for own, name in choice.candidate.names.items():
        kind = choice.tensors[name].dtype
        if wanted[own].is_floating_point() and not kind.is_floating_point:
            raise ValueError(
                f"the weights in {path} must be floats: {name!r} is {str(kind).removeprefix('torch.')}; save them "
                "before they are quantised."
            )


def _head(wanted: Mapping[str, Tensor]) -> Tensor:
    """Weights ``[A, ...]`` of the last layer, or its only tensor."""
    return max((wanted[name] for name in layers_of(wanted)[-1].names.values()), key=lambda tensor: tensor.ndim)


def _choose(path: Path, wanted: Mapping[str, Tensor], contents: Contents) -> _Choice:
    """Find the one network that is meant.

    Raises:
        ValueError: none, or several that may be.
    """
    copies = {name: tensor for name, tensor in contents.tensors.items() if _COPY.intersection(words(name))}
    own = {name: tensor for name, tensor in contents.tensors.items() if name not in copies}
    actor = _without_critic(own)
    for tensors, others in ((own, copies), (actor, copies), (_once(actor), copies), (copies, {})):
        for state, said in ((tensors, ""), *collapsed(tensors, len(_head(wanted)))):
            found = _all_candidates(wanted, state, contents.registered)
            if found:
                choice = _one_of(path, found, state)
                rest = _all_candidates(wanted, others, contents.registered) if others else []
                if rest:
                    choice.said.append(_taken(choice.candidate, rest))
                return choice._replace(said=[*choice.said, *([said] if said else [])])
    raise ValueError(explained(path, wanted, own or contents.tensors))


def _without_critic(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A policy's tensors without those that value states."""
    critic = _CRITIC | ({"value"} if any("action_net" in name for name in tensors) else set())
    return {name: tensor for name, tensor in tensors.items() if not critic.intersection(words(name))}


def _once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without those that are another one by a second name, as in a module that two others share."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    once = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen or not tensor.numel():
            once[name] = tensor
        seen.add(place)
    return once


def _all_candidates(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], registered: bool) -> list[Candidate]:
    found = named_candidates(wanted, tensors) or candidates(wanted, tensors, registered)
    together = {name: None for candidate in found for name in candidate.names.values()}
    rest = {name: tensor for name, tensor in tensors.items() if name not in together}
    return [candidate for candidate in found if stands_alone(candidate, wanted, rest)]


def _one_of(path: Path, found: list[Candidate], tensors: Mapping[str, Tensor]) -> _Choice:
    """The only candidate, the one that is called online, or the first of equal ones."""
    if len(found) == 1:
        return _Choice(found[0], tensors, [])
    for online in (
        [candidate for candidate in found if _LOSS in candidate.prefix],
        [candidate for candidate in found if _ONLINE.intersection(words(candidate.prefix))],
    ):
        if len(online) == 1:
            others = [candidate for candidate in found if candidate is not online[0]]
            return _Choice(online[0], tensors, [_taken(online[0], others)])
    if all(same_tensors(found[0], candidate, tensors) for candidate in found[1:]):
        return _Choice(found[0], tensors, [f"{len(found)} equal copies were found"])
    raise ValueError(
        f"{path} holds {len(found)} networks of these shapes, under {_listed(found)}; "
        "save the state_dict() of the one that is meant."
    )


def _taken(chosen: Candidate, others: Sequence[Candidate]) -> str:
    return f"{chosen.prefix!r} was taken, not {_listed(others)}"


def _listed(found: Sequence[Candidate]) -> str:
    return ", ".join(repr(candidate.prefix) for candidate in found)


def _in_our_layout(
    path: Path,
    bare: nn.Module,
    state: dict[str, Tensor],
    choice: _Choice,
    contents: Contents,
    check_frames: tuple[Tensor, Tensor] | None,
    reads_bytes: bool | None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state as the network reads its input, and sentences about it."""
    possible = variants(bare, state, contents, reads_bytes, ours=choice.candidate.how == "name")
    if check_frames is not None:
        chosen = first_that_plays(path, bare, possible, *check_frames)
    else:
        chosen = possible[0]
        if possible[0].doubt:
            warnings.warn(
                f"{path} does not tell {possible[0].doubt}: this file is read as {possible[0].name}; "
                "pass check_frames=(frames, actions) with greedy actions that its own network took.",
                stacklevel=3,
            )
    return chosen.state, [chosen.said] if chosen.said else []
