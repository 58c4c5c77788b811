"""The folder of a run: claimed before anything is written, and written by the run that holds it alone.

``run.lock`` in the folder names the holder: host, process and run. It is made in one step, so that of two runs one gets
the folder, and it goes with the process. A lock that was left behind is recognised by three signs: its process is gone
on this host, it was copied together with its folder, or it belongs to an earlier run of this very process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

__all__ = ["RunFolder"]

_LOCK = "run.lock"
_RESULTS = ("checkpoints/checkpoint-*", "checkpoint-*", "results.json", "metrics.csv", "weights/*")

_IDENTITY = {"run", "host", "process", "process_started", "folder"}  # entries that every lock has


class RunFolder:
    """A folder that one run writes, from :meth:`claim` to :meth:`release`.

    A refused claim changes no byte of the folder. A claim is released by :meth:`release`, at the end of a ``with``
    block, and at the end of the process; after a kill -9 the next claim on this host sees that its holder is gone.

    Args:
        path: the folder; it is made when it is claimed.

    Attributes:
        path: the folder.
        resumed: True if the run goes on from a checkpoint of this folder.
        begun: True once the run has completed a batch. From then on it may replace files of an earlier process.

    Raises:
        RuntimeError: at :meth:`claim`, a folder that another run holds or that holds the results of another run; at
            :meth:`check`, a folder that was lost to another run.

    Examples:
        >>> import tempfile
        >>> place = tempfile.mkdtemp() + "/run"
        >>> with RunFolder(place).claim() as folder:
        ...     _ = (folder.path / "metrics.csv").write_text("steps")
        >>> RunFolder(place).claim()
        Traceback (most recent call last):
        RuntimeError: ...run holds another run, of which metrics.csv is left: resume it, choose another folder ...
        >>> RunFolder(place).claim(resume=True).resumed
        True
        >>> with RunFolder.fresh(place) as folder:  # the name is taken
        ...     folder.path.name
        'run-2'
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.resumed = False
        self.begun = False
        self._run = uuid.uuid4().hex
        self._deferred: list[Callable[[], Any]] = []
        self._unlock: Any = None  # set while the folder is held

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @classmethod
    def fresh(cls, path: str | os.PathLike) -> RunFolder:
        """Make and claim a folder that did not exist, ``path`` or the first free of ``path-2``, ``path-3``, ...

        Two processes that ask for the same name at the same moment get two folders.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            place = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with contextlib.suppress(FileExistsError):
                place.mkdir()
                return cls(place).claim()
        raise AssertionError("unreachable")

    @property
    def held(self) -> bool:
        """True after :meth:`claim`, until :meth:`release`."""
        return self._unlock is not None

    def claim(self, *, resume: bool = False) -> RunFolder:
        """Take the folder for this run. Claiming a folder that is held already does nothing.

        Args:
            resume: go on from a checkpoint in the folder if True; otherwise a folder with results is refused.

        Returns:
            This object, so that ``with RunFolder(path).claim() as folder`` works.
        """
        if self.held:
            self.check()
            return self
        if self.path.exists() and not self.path.is_dir():
            raise RuntimeError(f"a run's folder must be a folder: got a file, {self.path}; choose another name.")
        if not resume:
            self._refuse_results()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        self._unlock = weakref.finalize(self, _unlock, self.path, self._run, os.getpid())
        if not resume:
            try:
                self._refuse_results()  # those of a run that has ended meanwhile
            except RuntimeError:
                self.release()
                raise
        self.resumed = resume
        return self

    def check(self) -> None:
        """Refuse to go on in a folder that is not held, or is another run's by now; call it before each writing."""
        if not self.held:
            raise RuntimeError(f"a run writes the folder it has claimed: {self.path} is not; call claim() before.")
        if not self.path.is_dir():
            raise RuntimeError(f"{self.path} was moved or deleted: this run writes nothing more; put it back.")
        holder = _holder(self.path)
        if holder is None:  # deleted by hand
            self._lock()
        elif holder.get("run") != self._run:
            raise RuntimeError(
                f"{self.path} was lost to another run, {_described(holder)}; this one writes nothing more there. End "
                "one of them."
            )

    def once_begun(self, write: Callable[[], Any]) -> None:
        """Call ``write`` now in a new folder; in one that is resumed, after the first batch.

        So a resumed run that fails, or is killed, before it has done anything leaves the folder as it was.
        """
        if self.begun or not self.resumed:
            self.check()
            write()
        else:
            self._deferred.append(write)

    def begin(self) -> None:
        """Note that the run has completed a batch, and make up for what :meth:`once_begun` has put off."""
        self.check()
        self.begun = True
        while self._deferred:
            self._deferred.pop(0)()

    def release(self) -> None:
        """Let others have the folder. Doing it again does nothing."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def _refuse_results(self) -> None:
        found = next((file for pattern in _RESULTS for file in sorted(self.path.glob(pattern))[-1:]), None)
        if found is not None:
            left = f"up to {found.name}" if "checkpoint" in found.name else f"of which {found.name} is left"
            raise RuntimeError(
                f"{self.path} holds another run, {left}: resume it, choose another folder or delete this one."
            )

    def _lock(self) -> None:
        """Make the lock, in place of one that was left behind."""
        identity = {
            "run": self._run,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "process_started": _started(os.getpid()),
            "folder": self.path.stat().st_ino,
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with _alone_in(self.path):
            holder = _holder(self.path)
            if holder is not None and _left_behind(holder, self.path):
                (self.path / _LOCK).unlink(missing_ok=True)
            if not _made(self.path / _LOCK, json.dumps(identity) + "\n"):
                raise RuntimeError(
                    f"{self.path} is held by another run, {_described(_holder(self.path))}: wait for its end or choose "
                    f"another folder; if that process is gone for sure, delete {self.path / _LOCK}."
                )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep others from judging a lock at the same time, where the file system can; the system ends this with us."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _made(lock: Path, text: str) -> bool:
    """Make a file with its content in one step, unless it is there."""
    partial = lock.with_name(f".{lock.name}.{uuid.uuid4().hex}")
    partial.write_text(text)
    try:
        os.link(partial, lock)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with lock.open("x") as file:
                file.write(text)
            return True
        except FileExistsError:
            return False
    finally:
        partial.unlink()


def _holder(folder: Path) -> dict[str, Any] | None:
    """Content of a folder's lock, None without one."""
    try:
        holder = json.loads((folder / _LOCK).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) and holder.keys() >= _IDENTITY else {}


def _left_behind(holder: dict[str, Any], folder: Path) -> bool:
    """Tell a lock whose run writes this folder no more."""
    if not holder:  # unreadable: a person has to look
        return False
    if holder["folder"] != folder.stat().st_ino:  # copied with its folder
        return True
    if holder["host"] != socket.gethostname():  # out of sight
        return False
    return holder["process"] == os.getpid() or _started(holder["process"]) != holder["process_started"]


def _started(process: int) -> str | None:
    """Boot and moment at which a process of this host was started, None if it is gone: numbers come again."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else f"{boot}:{after_name[19]}"
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:  # a system without /proc, such as macOS
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "running"


def _unlock(folder: Path, run: str, process: int) -> None:
    """Remove a lock at the end of its run; a forked child ends nothing."""
    holder = _holder(folder)
    if os.getpid() == process and holder is not None and holder.get("run") == run:
        with contextlib.suppress(OSError):
            (folder / _LOCK).unlink()


def _described(holder: dict[str, Any] | None) -> str:
    if not holder:
        return f"one whose {_LOCK} cannot be read"
    return f"process {holder['process']} on host {holder['host']} since {holder['since']}"
