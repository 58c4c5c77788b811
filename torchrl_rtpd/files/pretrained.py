"""A network from somebody else's file: a teacher to begin with, which is another thing than resuming a run.

Nothing but tensors is read. Files that would need to run code to be understood are refused.
"""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_rtpd.files.verified import StateAdapter, VerifiedCheckpoint
from torchrl_rtpd.networks.running import bare_network

__all__ = ["load_pretrained"]

_ONLINE = "value_network_params."  # of a TorchRL DQN loss, beside target_value_network_params
_SHOWN = 4  # differences in a message


def load_pretrained(network: nn.Module, path: str | os.PathLike) -> str:
    """Give a network the weights of a file, whatever wrote it, if they are those of its architecture and actions.

    Read are files of safetensors and of ``torch.save`` (state dicts, also within larger ones such as those of TorchRL's
    trainers), and folders written by TorchRL's :class:`~torchrl.checkpoint.Checkpoint`, by its older memory-mapped
    backend and by :class:`~torchrl_rtpd.files.verified.VerifiedCheckpoint`. Of a DQN loss the online network is
    taken, not the target. Tensors are found by name under any prefix; where names differ altogether but the shapes
    agree one by one in their order, as for the same layers written otherwise, by order.

    Args:
        network: an actor or a plain module; changed in place, or not at all.
        path: the file or folder.

    Returns:
        What was loaded, one sentence.

    Raises:
        ValueError: a file that cannot be read as tensors, another architecture, another number of actions or values
            that are not finite; the message says what differs.
        FileNotFoundError: nothing there.

    Examples:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/dqn.pt"
        >>> torch.save({"loss_module": {"value_network_params.module.0.weight": torch.ones(2, 3)}}, path)
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> load_pretrained(nn.Sequential(layer), path)[:26]
        '1 tensors of 6 values, by '
        >>> layer.weight.sum().item()
        6.0
    """
    path = Path(path)
    bare = bare_network(network)
    wanted = bare.state_dict()
    saved = dict(_flat(_read(path)))
    found, how = _matched(wanted, saved)
    differences = list(_differences(wanted, found))
    if differences:
        raise ValueError(_explained(path, wanted, found, differences))
    broken = next((name for name, tensor in found.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise ValueError(f"the weights in {path} must be finite: {broken!r} is not; take an earlier file.")
    bare.load_state_dict(found)
    count = sum(tensor.numel() for tensor in found.values())
    return f"{len(found)} tensors of {count:,} values, by {how}, from {path}"


def _read(path: Path) -> Any:
    """Tensors in nested mappings."""
    if not path.exists():
        raise FileNotFoundError(f"no teacher at {path}: give a safetensors or torch file, or a checkpoint's folder.")
    try:
        if path.is_dir():
            return _read_folder(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        return _load_torch(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} must hold tensors and nothing that runs: {reason}; write it with safetensors.torch.save_file, or "
            "with torch.save of a state_dict()."
        ) from error
    except (EOFError, AttributeError, IndexError, UnicodeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is damaged or no file of tensors: {type(error).__name__}: {error}.") from error


def _load_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)  # refused anyway
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_folder(path: Path) -> Any:
    if (path / "sealed.json").exists():
        record = VerifiedCheckpoint.verify(path)["components"].get("loss_module")
        if record is None:
            raise ValueError("the checkpoint has no loss_module")
        return StateAdapter("loss_module").read(path / record["path"])[1]
    if not (path / "manifest.json").exists():  # CKPT_BACKEND=memmap
        return TensorDict.load_memmap(path / "loss_module", allow_pickle=False).to_dict()
    components = VerifiedCheckpoint.manifest(path)["components"]
    name = next((name for name in ("loss_module", "policy") if name in components), None)
    if name is None:
        raise ValueError(f"the checkpoint has neither loss_module nor policy, but {sorted(components)}")
    folder = path / components[name]["path"]
    if (folder / "state.pt").exists():
        return _load_torch(folder / "state.pt")
    if not (folder / "state").is_dir():
        raise ValueError("its state must be a folder or a torch file; save it with StateDictCheckpointAdapter()")
    tensors = TensorDict.load_memmap(folder / "state", allow_pickle=False)
    schema = json.loads((folder / "state.json").read_text())
    named = [(key["value"], item) for key, item in schema["items"]]
    return {key: tensors[item["key"]] for key, item in named if item["kind"] == "tensor"}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors by dotted name."""
    if isinstance(value, Tensor):
        yield prefix.removesuffix("."), value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}{key}.")


def _matched(wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """What may be the network's tensors, by its own names; and how they were found."""
    online = {name: tensor for name, tensor in saved.items() if "target_" not in name}
    best: dict[str, Tensor] = {}
    for name in wanted:
        for key in online:
            if key == name or key.endswith(f".{name}"):
                prefix = key.removesuffix(name)
                found = {own: online[prefix + own] for own in wanted if prefix + own in online}
                if len(found) > len(best):
                    best = found
        if best:
            return best, "name"
    of_loss = {name: tensor for name, tensor in online.items() if _ONLINE in name} or online
    if [tensor.shape for tensor in of_loss.values()] == [tensor.shape for tensor in wanted.values()]:
        return dict(zip(wanted, of_loss.values(), strict=True)), "order"
    return of_loss, "nothing"


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(wanted.keys() | found.keys()):
        own, theirs = (list(where[name].shape) if name in where else None for where in (wanted, found))
        if own != theirs:
            yield f"{name} is {theirs} in the file and {own} in the network"


def _explained(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], differences: list[str]) -> str:
    """What does not match, the number of actions first: it is the commonest case."""
    last = list(wanted)[-1]
    if wanted.keys() == found.keys() and len(found[last]) != len(wanted[last]):
        others = [text for text in differences if text.split()[0].rpartition(".")[0] != last.rpartition(".")[0]]
        if not others:
            return (
                f"the network in {path} chooses among {len(found[last])} actions, this one among {len(wanted[last])}; "
                "take a teacher of the same game and action set."
            )
    rest = len(differences) - _SHOWN
    more = f", and {rest} more" if rest > 0 else ""
    return (
        f"the network in {path} has another architecture, {len(differences)} tensors differ: "
        f"{'; '.join(differences[:_SHOWN])}{more}. Build the network with the sizes it was saved with."
    )
