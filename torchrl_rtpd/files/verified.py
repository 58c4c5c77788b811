"""A whole training state on disk: written completely or not at all, verified before it is read, free of code.

It is TorchRL's :class:`~torchrl.checkpoint.Checkpoint` (components, manifest, staging folder, rotation) with what that
leaves open in 0.14.1:

- TorchRL renames a staged folder but flushes nothing, so that a power cut can leave a named folder with empty files;
  here every file and folder reaches the disk before the name does.
- TorchRL keeps no checksums; here ``sealed.json`` holds size and SHA-256 of every file, checked before anything is
  loaded.
- TorchRL's own adapter reads a tensordict folder, whose ``other.pickle`` it would unpickle, and thereby run what a
  crafted file says; here a component is ``state.json`` and ``tensors.safetensors``, which hold data alone.
- TorchRL writes each tensor through a copy of the whole; here they are streamed, since a replay has gigabytes.

A checksum tells damage, not who wrote the file: someone who can write a checkpoint can change what is learned with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torchrl.checkpoint import Checkpoint, CheckpointAdapter, CheckpointError, CheckpointLoadResult

from torchrl_rtpd.files.tensorfile import read_tensor, write_tensors

__all__ = ["FORMAT_VERSION", "StateAdapter", "VerifiedCheckpoint"]

FORMAT_VERSION = 2
"""Version of what a checkpoint holds. Older ones are upgraded when they are read, newer ones refused."""

_SEAL, _MANIFEST = "sealed.json", "manifest.json"
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_MAX_DEPTH = 64  # of nested states; ours have eight


class StateAdapter(CheckpointAdapter):
    """How a component with ``state_dict`` and ``load_state_dict`` becomes two files without code.

    A state may nest mappings, lists and tuples of tensors, numbers, strings, booleans and None.

    Args:
        name: of the component, for upgrades and messages.

    Raises:
        TypeError: at ``save``, a value of another type.
        CheckpointError: at ``load``, files that are not what this class writes.
    """

    adapter_id = "torchrl_rtpd.state"
    format_version = 1

    def __init__(self, name: str) -> None:
        self.name = name
        self.digests: dict[str, tuple[int, str]] = {}  # of the files last written: size, SHA-256

    def save(self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Write the component's state into the folder ``path``."""
        path.mkdir(parents=True, exist_ok=True)
        state = component.state_dict(*args, **kwargs)
        tensors: dict[str, Tensor] = {}
        text = json.dumps({"version": FORMAT_VERSION, "state": _encoded(state, tensors, self.name)})
        self.digests = {
            _TENSORS: write_tensors(tensors, path / _TENSORS),
            _STATE: _write_bytes(path / _STATE, text.encode()),
        }
        return None

    def load(
        self,
        component: Any,
        path: Path,
        *,
        map_location: Any,
        tensor_load_kwargs: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Give the component the state in the folder ``path``, upgraded if it is of an older version."""
        version, state = self.read(path, copy=not getattr(component, "copies_what_it_loads", False))
        for older in range(version, FORMAT_VERSION):
            state = _UPGRADES.get(older, {}).get(self.name, _unchanged)(state)
        component.load_state_dict(state, *args, **kwargs)
        return None

    def read(self, path: Path, *, copy: bool = True) -> tuple[int, Any]:
        """Version and state in the folder ``path``; without ``copy`` the tensors lie in the file."""
        try:
            content = json.loads((path / _STATE).read_text())
            version, state = content["version"], content["state"]
            _check_version(version, path)
            with safe_open(path / _TENSORS, framework="pt") as file:
                return version, _decoded(state, file, copy)
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, RecursionError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"component {self.name!r} of a checkpoint must be state.json and tensors.safetensors as StateAdapter "
                f"writes them: {type(error).__name__}: {error} in {path}; resume from another checkpoint."
            ) from error


class VerifiedCheckpoint(Checkpoint):
    """TorchRL's checkpoint, flushed to disk, sealed with checksums and free of pickle; see the module's docstring.

    Used as TorchRL's, ``Trainer(checkpoint=VerifiedCheckpoint(), ...)`` included. Components need ``state_dict`` and
    ``load_state_dict``.

    Args:
        components: named objects to register.

    Raises:
        CheckpointError: at ``load`` or ``verify``, a checkpoint that is damaged, of a newer version, with files beside
            its own or paths that leave its folder, or whose states do not fit the components.
        OSError: at ``save``, a disk that is full or read-only; an earlier checkpoint of the same name stays.

    Examples:
        >>> import tempfile
        >>> from torch import nn
        >>> folder = tempfile.mkdtemp() + "/step100"
        >>> network, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> _ = VerifiedCheckpoint(network=network).save(folder)
        >>> VerifiedCheckpoint(network=other).load(folder).loaded
        {'network'}
        >>> other.weight.equal(network.weight)
        True
    """

    def __init__(self, **components: Any) -> None:
        super().__init__(format="directory", strict="error", **components)

    def register(
        self, name: str, component: Any, *, adapter: CheckpointAdapter | None = None, **kwargs: Any
    ) -> VerifiedCheckpoint:
        """Register a component with ``state_dict`` and ``load_state_dict``; as TorchRL's, without other adapters."""
        if adapter is not None and not isinstance(adapter, StateAdapter):
            raise TypeError(
                f"a verified checkpoint holds no pickle, so its adapters are StateAdapter: got {type(adapter).__name__}"
                f" for {name!r}; leave it out."
            )
        super().register(name, component, adapter=adapter or StateAdapter(name), **kwargs)
        return self

    def save(self, path: str | os.PathLike, **kwargs: Any) -> Path:
        """Write selected components as TorchRL's does, then flush, seal and name the folder.

        Args:
            path: the folder to write; an earlier one of this name is replaced at the very end.
            kwargs: ``components`` and ``metadata`` as TorchRL's.

        Returns:
            The folder.
        """
        destination = self._local_path(path)  # type: ignore[arg-type]
        partial = destination.parent / f".{destination.name}.partial-{uuid.uuid4().hex}"
        try:
            super().save(partial, **{**kwargs, "format": "directory"})
            self._seal(partial)
            _publish(partial, destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return destination

    def _seal(self, folder: Path) -> None:
        files: dict[str, tuple[int, str]] = {_MANIFEST: _digest(folder / _MANIFEST)}
        for name, record in self.manifest(folder)["components"].items():
            adapter = self._components[name].adapter
            files.update({f"{record['path']}/{file}": found for file, found in adapter.digests.items()})
        content = {name: {"size": size, "sha256": digest} for name, (size, digest) in sorted(files.items())}
        seal = {"format": "torchrl_rtpd.files.verified", "version": FORMAT_VERSION, "files": content}
        _write_bytes(folder / _SEAL, (json.dumps(seal, indent=1) + "\n").encode())
        for place in [folder, *(path for path in folder.rglob("*"))]:
            _flush(place)

    def load(
        self,
        path: str | os.PathLike,
        *,
        components: Collection[str] | None = None,
        verified: bool = False,
        **kwargs: Any,
    ) -> CheckpointLoadResult:
        """Verify everything, then give components their states, as TorchRL's does.

        Args:
            path: a folder written by :meth:`save`.
            components: names to restore. None restores all that are registered.
            verified: whether :meth:`verify` has just been called; a replay takes seconds.
            kwargs: as TorchRL's.

        Returns:
            TorchRL's report.
        """
        if not verified:
            self.verify(path)
        return super().load(path, components=components, **kwargs)  # type: ignore[arg-type]

    @classmethod
    def verify(cls, path: str | os.PathLike) -> dict[str, Any]:
        """Check a checkpoint's files against its seal; nothing is loaded.

        Args:
            path: a folder written by :meth:`save`.

        Returns:
            TorchRL's manifest: ``components``, ``metadata``, ``versions`` and so on.

        Raises:
            CheckpointError: as the class says, with the first file at fault.
        """
        folder = cls._local_path(path)  # type: ignore[arg-type]
        files = _sealed_files(folder)
        found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()} - {_SEAL}
        if found != files.keys():
            names = sorted(found ^ files.keys())
            raise CheckpointError(
                f"a checkpoint holds the files of its seal and no others: {len(names)} missing or foreign, first "
                f"{names[0]!r} in {folder}; resume from another checkpoint."
            )
        for name, (size, digest) in files.items():
            place = folder / name
            if not stat.S_ISREG(place.lstat().st_mode) or not place.resolve().is_relative_to(folder.resolve()):
                raise CheckpointError(
                    f"the files of a checkpoint lie in its folder: {name!r} in {folder} is a link or leads elsewhere; "
                    "resume from another checkpoint."
                )
            actual = place.stat().st_size
            if actual != size or _digest(place)[1] != digest:
                what = f"has {actual:,} bytes instead of {size:,}" if actual != size else "has changed"
                raise CheckpointError(
                    f"{name!r} of the checkpoint {folder} is damaged: it {what} since it was written; resume from "
                    "another checkpoint."
                )
        return cls._checked_manifest(folder)

    @classmethod
    def _checked_manifest(cls, folder: Path) -> dict[str, Any]:
        try:
            return cls.manifest(folder)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"manifest.json of {folder} is not one of TorchRL's: {error}; resume from another checkpoint."
            ) from error


def _sealed_files(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 by file name, from a checkpoint's seal."""
    try:
        seal = json.loads((folder / _SEAL).read_text())
        if seal["format"] != "torchrl_rtpd.files.verified":
            raise ValueError(f"format is {seal['format']!r}")
        _check_version(seal["version"], folder)
        return {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in seal["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder} must be a checkpoint folder with {_SEAL}, as VerifiedCheckpoint writes it: "
            f"{type(error).__name__}: {error}; give a folder named checkpoint-<steps>, or the folder of a run."
        ) from error


def _check_version(version: Any, place: Path) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"version is {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoints up to version {FORMAT_VERSION} can be read: got version {version} in {place}; it was written "
            "by a newer torchrl_rtpd, install that one."
        )


def _encoded(value: Any, tensors: dict[str, Tensor], where: str, depth: int = 0) -> Any:
    """A state as JSON, its tensors put aside by name."""
    if isinstance(value, np.generic):
        value = value.item()
    if depth < _MAX_DEPTH:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            name = f"{len(tensors):06d}"
            tensors[name] = value.detach()
            dense = value.is_contiguous() or not value.numel()
            return {"tensor": name} if dense else {"tensor": name, "stride": list(value.stride())}
        if isinstance(value, Mapping):
            keys = [(_encoded(key, tensors, where, depth + 1), key) for key in value]
            return {"dict": [[key, _encoded(value[own], tensors, f"{where}.{own}", depth + 1)] for key, own in keys]}
        if isinstance(value, (list, tuple)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [_encoded(item, tensors, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]}
    raise TypeError(
        "a checkpoint holds tensors, numbers, strings, booleans, None, and mappings, lists and tuples of them, at most "
        f"{_MAX_DEPTH} deep: got {type(value).__name__} at {where}; let its state_dict return one of these."
    )


def _decoded(value: Any, file: Any, copy: bool, depth: int = 0) -> Any:
    """What :func:`_encoded` was given, tensors on the CPU."""
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a list without its kind")
        return value
    if depth > 2 * _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    kind = next(iter(value), None)
    if kind == "tensor":
        return _with_stride(read_tensor(file, value["tensor"], copy=copy), value.get("stride"))
    if kind == "dict":
        pairs = value["dict"]
        return {_decoded(key, file, copy, depth + 1): _decoded(item, file, copy, depth + 1) for key, item in pairs}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_decoded(item, file, copy, depth + 1) for item in value[kind])
    raise ValueError(f"unknown kind {kind!r}")


def _with_stride(tensor: Tensor, stride: list[int] | None) -> Tensor:
    """Values in the memory order they had: fused optimisers want that of the parameter."""
    if stride is None:
        return tensor
    order = sorted(range(len(stride)), key=lambda dim: -stride[dim])
    if sorted(order) != list(range(tensor.ndim)):
        raise ValueError(f"stride {stride} for a tensor of {tensor.ndim} dimensions")
    back = [order.index(dim) for dim in range(tensor.ndim)]
    return tensor.permute(order).contiguous().permute(back)


def _run_monitor_of_version_1(state: dict[str, Any]) -> dict[str, Any]:
    """The first version kept best networks and scores alone; what it lacks begins anew."""
    scores = {name: {"scores": games, "cut": 0, "steps": 0} for name, games in state["best_scores"].items()}
    return {"best": state["best"], "best_scores": scores}


_UPGRADES: dict[int, dict[str, Callable[[Any], Any]]] = {
    1: {"trainer_module.run_monitor": _run_monitor_of_version_1},
}


def _unchanged(state: Any) -> Any:
    return state


def _write_bytes(path: Path, content: bytes) -> tuple[int, str]:
    path.write_bytes(content)
    return len(content), hashlib.sha256(content).hexdigest()


def _digest(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
        return file.tell(), digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(partial: Path, destination: Path) -> None:
    """Give a folder its name, in one step where none has it."""
    old = destination.parent / f".{destination.name}.old-{uuid.uuid4().hex}"
    replaced = destination.exists()
    if replaced:
        os.replace(destination, old)
    os.replace(partial, destination)
    _flush(destination.parent)
    if replaced:
        shutil.rmtree(old, ignore_errors=True)
