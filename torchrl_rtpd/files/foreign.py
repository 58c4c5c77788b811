"""Files of any origin as tensors by dotted name. Nothing in a file is run."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensordict import TensorDict
from torch import Tensor

from torchrl_rtpd.files.verified import StateAdapter, VerifiedCheckpoint
from torchrl_rtpd.networks.compiled import plain_name

__all__ = ["Contents", "read_contents", "words"]

# Names of modules that PyTorch libraries give their own networks, whose dense layers read channels first.
_KNOWN = {
    "value_network_params.": "TorchRL",
    "features_extractor.": "stable-baselines3",
    "_encoder._cnn_layers.": "d3rlpy",
    "_container.": "skrl",
    "model.net.0.0.": "tianshou",
    "module.net.0.0.": "tianshou",
}
_OF_D3RLPY = {
    "none": True,
    "pixel": False,
}  # its scalers of observations: True if the network reads pixels unscaled
_OF_OPTIMIZER = re.compile(
    r"(^|[._])(optim|optimi[sz]ers?|exp_avg|max_exp_avg|exp_avg_sq|square_avg|momentum_buffer)([._]|$)"
)


class Contents(NamedTuple):
    """Tensors of a file and how they came into it.

    Attributes:
        tensors: by dotted name, in the file's order, without those of optimisers.
        registered: True if the order is that in which a module registered them; False if a format sorted them.
        library: the library that made the file, if its names tell; otherwise empty.
        reads_bytes: True if the file says that its network reads 0..255 unscaled; None if it says nothing.
    """

    tensors: dict[str, Tensor]
    registered: bool
    library: str
    reads_bytes: bool | None

    @property
    def scales_pixels(self) -> bool:
        """True if the library divides pixels by 255 unless it is told otherwise."""
        return self.library in ("TorchRL", "stable-baselines3", "CleanRL")


def read_contents(path: Path) -> Contents:
    """Read a file or folder as tensors.

    Raises:
        ValueError: a file that cannot be read as tensors without running it, or holds sparse or quantised ones.
        FileNotFoundError: nothing at that place.
    """
    value, reads_bytes = _read(path)
    tensors = {plain_name(name): tensor for name, tensor in _flat(value) if not _OF_OPTIMIZER.search(name)}
    _refuse_without_numbers(path, tensors)
    library = next((library for part, library in _KNOWN.items() if any(part in name for name in tensors)), "")
    if path.suffix == ".cleanrl_model":
        library = "CleanRL"
    if (path.is_file() and zipfile.is_zipfile(path)) and _is_baselines_zip(path):
        library = "stable-baselines3"
    return Contents(tensors, not (path.suffix == ".npz" or _is_safetensors(path)), library, reads_bytes)


def _refuse_without_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors whose numbers do not simply lie in memory."""
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.is_quantized or tensor.is_nested or tensor.layout is not torch.strided:
            kind = "without data" if tensor.is_meta else "quantised" if tensor.is_quantized else "sparse or nested"
            raise ValueError(
                f"{path} must hold dense tensors of numbers: {name!r} is {kind}; save the state_dict() of "
                "the dense network."
            )


def words(name: str) -> list[str]:
    """Split a name of a tensor into its words, in lower case.

    Examples:
        >>> words("q_net_target.features.0.weight")
        ['q', 'net', 'target', 'features', '0', 'weight']
        >>> words("targetNet.conv1.bias")
        ['target', 'net', 'conv', '1', 'bias']
    """
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]


def _read(path: Path) -> tuple[Any, bool | None]:
    """Tensors in nested mappings, and what the file says of its network's input."""
    if not path.exists():
        raise FileNotFoundError(f"no teacher at {path}: give a safetensors or torch file, or a checkpoint's folder.")
    try:
        if path.is_dir():
            return _read_folder(path), None
        if _is_safetensors(path):
            return load_file(path), None
        if path.suffix == ".npz":
            return _read_arrays(path), None
        if path.suffix == ".d3":
            return _read_d3rlpy(path)
        if zipfile.is_zipfile(path) and _is_baselines_zip(path):
            return _read_baselines(path)
        return _load_torch(path), None
    except (
        SafetensorError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        OSError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} must hold tensors and nothing that runs: {reason}; write it with safetensors.torch.save_file, or "
            "with torch.save of a state_dict()."
        ) from error
    except (EOFError, AttributeError, IndexError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is damaged or no file of tensors: {type(error).__name__}: {error}.") from error


def _is_safetensors(path: Path) -> bool:
    """Return True for the suffix, and for the beginning of such a file: eight bytes of a length, then JSON."""
    if path.suffix.lower() == ".safetensors":
        return path.is_file()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(9)
    return begin[8:] == b"{" and int.from_bytes(begin[:8], "little") < path.stat().st_size


def _load_torch(path: Path | io.BytesIO) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)  # refused anyway
        warnings.filterwarnings("ignore", message="Validating sparse", category=UserWarning)  # refused as well
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _is_baselines_zip(path: Path) -> bool:
    """Return True for a zip that stable-baselines3 or sbx wrote, which a file of torch.save is not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "data" in archive.namelist() and "_stable_baselines3_version" in archive.namelist()
    except zipfile.BadZipFile:
        return False


def _read_baselines(path: Path) -> tuple[Any, bool | None]:
    with zipfile.ZipFile(path) as archive:
        if "policy.pth" not in archive.namelist():
            raise ValueError("a zip of stable-baselines3 without policy.pth, as sbx writes it, holds pickled code")
        data = json.loads(archive.read("data"))
        state = _load_torch(io.BytesIO(archive.read("policy.pth")))
    arguments = data.get("policy_kwargs", {})
    normalised = arguments.get("normalize_images", True) if isinstance(arguments, dict) else True
    return state, not normalised


class _Plain(pickle.Unpickler):
    """Reads strings, numbers and containers of them; whatever names a class or a function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _read_d3rlpy(path: Path) -> tuple[Any, bool | None]:
    """A pickled dictionary of bytes, which are a file of torch.save, and of settings as JSON."""
    with path.open("rb") as file:
        content = _Plain(file).load()
    scaler = json.loads(content["config"])["config"]["params"]["observation_scaler"]["type"]
    if scaler not in _OF_D3RLPY:
        raise ValueError(f"its observation_scaler {scaler!r} is no layer, but a part of what the network computes")
    return _load_torch(io.BytesIO(content["torch"])), _OF_D3RLPY[scaler]


def _read_folder(path: Path) -> Any:
    if (path / "model.pt").exists() and not (path / "manifest.json").exists():  # an agent of pfrl
        return _load_torch(path / "model.pt")
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
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from _flat(item, f"{prefix}{place}.")
