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

Warning: a checksum shows damage, not an author. Somebody who can write a checkpoint can change what is learned with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torchrl.checkpoint import Checkpoint, CheckpointAdapter, CheckpointError, CheckpointLoadResult

from torchrl_rtpd.files.states import decoded, encoded, refuse_non_tensors
from torchrl_rtpd.files.tensorfile import write_tensors

__all__ = ["FORMAT_VERSION", "StateAdapter", "VerifiedCheckpoint"]

FORMAT_VERSION = 3
"""Version of a checkpoint's content. Older ones are upgraded when they are read, newer ones refused.

Version 2 added the whole state of a run's monitor to its best networks and scores. Version 3 added nesting and batch
sizes of tensordicts, and TensorDicts as values.
"""

_FORMAT = "torchrl_rtpd.checkpoint"  # a name in files, whatever this module is called
_SEAL, _MANIFEST = "sealed.json", "manifest.json"
_TENSORS, _STATE = "tensors.safetensors", "state.json"


class StateAdapter(CheckpointAdapter):
    """Writes a component with ``state_dict`` and ``load_state_dict`` as two files without code.

    A state may nest mappings, lists and tuples of tensors, tensordicts, numbers, strings, booleans and None. Batch
    sizes that a tensordict's own state carries beside its entries (``_metadata``) are kept. Devices are not, since a
    state is restored on the device of the component.

    A component with a method ``upgraded_state(state, version)`` is asked for the state of today in place of an older
    one.

    Args:
        name: of the component, for upgrades and messages.

    Raises:
        TypeError: at ``save``, a value of another type.
        ValueError: at ``save``, a replay with entries that are no tensors.
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
        refuse_non_tensors(getattr(component, "storage", None))
        state = component.state_dict(*args, **kwargs)
        tensors: dict[str, Tensor] = {}
        text = json.dumps({"version": FORMAT_VERSION, "state": encoded(state, tensors, self.name)})
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
        upgrade = getattr(component, "upgraded_state", None)
        if version < FORMAT_VERSION and upgrade is not None:
            state = upgrade(state, version)
        component.load_state_dict(state, *args, **kwargs)
        return None

    def read(self, path: Path, *, copy: bool = True) -> tuple[int, Any]:
        """Return version and state in the folder ``path``; without ``copy`` the tensors lie in the file."""
        try:
            content = json.loads((path / _STATE).read_text())
            version, state = content["version"], content["state"]
            _check_version(version, path)
            with safe_open(path / _TENSORS, framework="pt") as file:
                return version, decoded(state, file, copy)
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
        seal = {"format": _FORMAT, "version": FORMAT_VERSION, "files": content}
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
            verified: True if :meth:`verify` has just been called; a replay takes seconds.
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
    """Return size and SHA-256 by file name, from a checkpoint's seal."""
    try:
        seal = json.loads((folder / _SEAL).read_text())
        if seal["format"] != _FORMAT:
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
