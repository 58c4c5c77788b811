"""Block on files of other libraries, from ``docs/results/teachers.json``, which the tests marked ``peers`` write."""

from __future__ import annotations

import re
from typing import Any

from docs.pages.tables import made_by, table_block

_SHARED = ("gymnasium", "torch")


def teachers_block(result: dict[str, Any]) -> str:
    """A row a file: who made it, what was done, how often its own greedy action is taken afterwards."""
    rows = [["file", "versions", "done", "own actions", "with `check_frames`", "doubt or reason"]]
    rows += [_row(file) for file in result["files"].values()]
    files = result["files"].values()
    frames = next(file["frames"] for file in files if not file["refused"])
    text = (
        f"{len(files)} files with random weights of the size of trained ones, each saved by its library's own call; "
        "where only torch is named, by torch in the layout of a script or library. *Own actions* is the share of "
        f"{frames} random frames in which the loaded network takes the action that the library took. A doubt is a "
        "warning."
    )
    versions = next(iter(files))["versions"]
    return table_block(text, rows, f"torch {versions['torch']}. {made_by(result['environment'])}")


def _row(file: dict[str, Any]) -> list[str]:
    own = [name for name in file["versions"] if name not in _SHARED] or ["torch"]
    versions = ", ".join(f"{name} {file['versions'][name]}" for name in own)
    named = f"{file['what']} (`{file['file']}`)"
    if file["refused"]:
        reason = re.sub(
            rf"^.*?{re.escape(file['file'])} (must hold tensors and nothing that runs: )?", "", file["said"]
        )
        return [named, versions, "refused", "", "", reason]
    shares = [f"{file[key]:.1%}" for key in ("agreement", "agreement_with_frames")]
    doubt = re.search(r"does not tell (if .*): this file", file["warning"])
    return [named, versions, _done(file), *shares, doubt[1] if doubt else ""]


def _done(file: dict[str, Any]) -> str:
    """Words for a sentence of load_pretrained."""
    if file["agreement"] < file["agreement_with_frames"]:
        return "warned, read wrongly without frames"
    changes = {"folded into the first layer": "scale folded", "were averaged|were added": "head collapsed"}
    return ", ".join(["loaded", *(change for said, change in changes.items() if re.search(said, file["said"]))])
