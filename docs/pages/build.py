"""Which block and which figure comes from where, and writing them.

A block named after a study with runs of the main example, ``docs/results/<study>/<run>/``, is the table of those runs.
A block ``README: NAME`` is a copy of what stands in README.md between ``<!-- start: NAME -->`` and its end, so that a
page says the same and GitHub, which knows no includes, shows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from docs.pages import (
    causes,
    choosing,
    cluster,
    deploy,
    expert,
    front,
    games,
    glance,
    gpu,
    kickstart,
    memory,
    pqn,
    published,
    runs,
    search,
    speed,
    students,
    studies,
    survival,
    teachers,
    two_games,
)
from docs.pages.figures import FIGURES, drawn

ROOT = Path(__file__).resolve().parents[2]

BLOCK = re.compile(r"(<!-- generated: (?P<name>[^>]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)
IN_README = re.compile(r"<!-- start: (?P<name>[^>]+) -->\n(?P<text>.*?)<!-- end: (?P=name) -->", re.DOTALL)

BENCHMARKS: dict[str, Callable[[dict[str, Any]], str]] = {  # docs/results/<name>.json and what its block says
    "speed": speed.speed_block,
    "profile": speed.profile_block,
    "causes": causes.causes_block,
    "causes_avx2": causes.causes_block,
    "arrangements": causes.arrangements_block,
    "pqn": speed.pqn_block,
    "threads": speed.threads_block,
    "pqn_profile": speed.profile_block,
    "env": speed.env_block,
    "objectives": speed.objectives_block,
    "collector": speed.collector_block,
    "fleet": speed.fleet_block,
    "replay": memory.replay_block,
    "memory": memory.memory_block,
    "kills": survival.kills_block,
    "checkpoint": survival.checkpoint_block,
    "soak": survival.soak_block,
    "gpu": gpu.gpu_block,
    "choosing": choosing.choosing_block,
    "teachers": teachers.teachers_block,
    "search": search.search_block,
    "distributed": cluster.distributed_block,
}
FOLDERS: dict[str, Callable[[Path], str]] = {  # what makes a block of the folder docs/results/
    "expert": expert.expert_block,
    "expert_methods": expert.methods_block,
    "front": front.front_block,
    "games": games.games_block,
    "glance": glance.glance_block,
    "precision": runs.precision_block,
    "drop_in": runs.drop_in_block,
    "recurrent": runs.recurrent_block,
    "kickstart": kickstart.kickstart_block,
    "two_games": two_games.two_games_block,
    "students": students.students_block,
    "students_norm": students.norm_block,
    "pqn_cpu": pqn.pqn_block,
    "gpu_pong": gpu.pong_block,
    "gpu_pqn_pong": gpu.pqn_game_block,
    "published": published.published_block,
    "cluster": cluster.cluster_block,
    **studies.BLOCKS,
    **deploy.BLOCKS,
}


def sections(root: Path) -> dict[str, Callable[[], str]]:
    """Makers of the blocks, by name."""
    results = root / "docs" / "results"
    found: dict[str, Callable[[], str]] = {}
    for study in sorted({path.parents[1] for path in results.glob("*/*/metrics.csv")}):
        found[study.name] = partial(runs.runs_block, study)
    for name, make in BENCHMARKS.items():
        if (results / f"{name}.json").exists():
            found[name] = partial(_from_json, make, results / f"{name}.json")
    found |= {name: partial(make, results) for name, make in FOLDERS.items()}
    for block in IN_README.finditer((root / "README.md").read_text()):
        found[f"README: {block['name']}"] = partial(str, block["text"])
    return found


def _from_json(make: Callable[[dict[str, Any]], str], path: Path) -> str:
    return make(json.loads(path.read_text()))


def pages(root: Path) -> list[Path]:
    """Every page that may hold blocks."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md")), root / "docs" / "results" / "README.md"]


def filled(text: str, known: Mapping[str, Callable[[], str]]) -> str:
    """A page with its blocks renewed.

    Args:
        text: the page.
        known: what makes each block, by its name.

    Returns:
        The page; as it was outside of its blocks.

    Raises:
        KeyError: a block that nothing makes.
    """

    def renew(block: re.Match[str]) -> str:
        if block["name"] not in known:
            raise KeyError(f"no block is called {block['name']!r}; there are {', '.join(sorted(known))}")
        return f"{block[1]}{known[block['name']]().strip()}\n{block[3]}"

    return BLOCK.sub(renew, text)


def write(root: Path) -> list[Path]:
    """Renew every page and figure of a checkout.

    Args:
        root: the checkout.

    Returns:
        The files that changed, empty where all was as it had to be.
    """
    known, changed = sections(root), []
    for path in pages(root):
        text = path.read_text()
        new = filled(text, known)
        if new != text:
            path.write_text(new)
            changed.append(path)
    return [
        *changed,
        *(path for name, draw in FIGURES.items() if drawn(draw, root / "docs", path := root / "docs" / name)),
    ]
