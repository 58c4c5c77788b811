"""A part's findings: saved as they come, cut off in time, taken up again by the next call."""

from __future__ import annotations

import fcntl
import json
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json

__all__ = ["Found", "OutOfTime", "add_to", "limited", "read"]


class OutOfTime(Exception):
    """A part's limit, or the call's."""


class Found(dict[str, Any]):
    """What a part has found so far; each entry is passed on as soon as it is there."""

    def __init__(self, before: Mapping[str, Any], save: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(before)
        self._save = save

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._save({**self, "error": "not finished"})


def limited(
    part: Callable[[dict[str, Any]], dict[str, Any] | None],
    limit: float,
    before: Mapping[str, Any],
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """What a part finds in so many seconds, on top of what it found before; with ``error`` if it fails or is cut."""

    def cut(*_: object) -> None:
        raise OutOfTime(f"cut off after {limit:.0f} s")

    found = Found({key: value for key, value in before.items() if key != "error"}, save)
    handler = signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        found.update(part(found) or {})
    except Exception as error:  # a lent machine is gone before a second try: the other parts are still worth having
        traceback.print_exc()
        found.update(error=f"{type(error).__name__}: {str(error)[-2_000:]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    return dict(found)


def add_to(out: Path | None, name: str, device: str, start: float, found: dict[str, Any]) -> None:
    """Put a part, begun at ``start``, into the file if there is one; other processes may be writing it."""
    if out is None:
        return
    environment = run_environment(device)
    made = {key: environment[key] for key in ("command", "commit", "device")}
    made.update(date=str(date.today()), seconds=time.perf_counter() - start)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{out}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = read(out)
        result["made"] = {**result.get("made", {}), name: made}
        write_json(out, {**result, name: found, "environment": environment})


def read(out: Path) -> dict[str, Any]:
    """What the file holds so far."""
    return json.loads(out.read_text()) if out.exists() else {}
