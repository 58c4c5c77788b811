"""The house keeps its floors: imports inside the package point down, never up and never in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "torchrl_rtpd"
FLOORS = (
    ("functional", "networks", "envs", "replay"),
    ("objectives", "schedules", "files", "evaluation", "deploy"),
    ("collectors",),
    ("trainers", "configs"),
    ("runs",),
)
FLOOR = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}
OPTIONAL = (
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "ray",
    "tensorboard",
    "wandb",
    "envpool",
    "PIL",
    "av",
    "pygame",
    "cv2",
)


def module_name(path: Path, package: Path) -> str:
    """Dotted name of a file, the package's own name first."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: Path) -> dict[str, Path]:
    """Files of a package by the names of their modules."""
    return {module_name(path, package): path for path in sorted(package.rglob("*.py"))}


def imports(tree: ast.AST, *, outside_functions: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports; of ``from a import b`` it is ``a.b``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import; write the whole name"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif not (outside_functions and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
                yield from imports(node, outside_functions=outside_functions)


def arrows(package: Path) -> dict[tuple[str, str], str]:
    """Pairs of a module and another of the same package that it imports, each with a place where it does."""
    files, found = modules(package), {}
    for name, path in files.items():
        for line, target in imports(ast.parse(path.read_text())):
            while target and target not in files:  # the last parts are names in a module
                target = target.rpartition(".")[0]
            if target and target != name:
                found.setdefault((name, target), f"{path.relative_to(package.parent)}:{line}")
    return found


def wing(name: str) -> str:
    """Wing of a module; of the package itself, its name."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def circles(pairs: set[tuple[str, str]]) -> list[list[str]]:
    """Circles of arrows, each once, as the names along it."""
    following: dict[str, list[str]] = {}
    for source, target in sorted(pairs):
        following.setdefault(source, []).append(target)
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in following.get(name, ()):
                walk(other, [*path, name])
            done.add(name)

    for name in list(following):
        walk(name, [])
    return found


def upward(package: Path) -> list[str]:
    """Arrows that point up, a sentence each."""
    top = package.name
    return [
        f"{place}: {source} (floor {FLOOR[wing(source)]}) imports {target} (floor {FLOOR[wing(target)]})"
        for (source, target), place in arrows(package).items()
        if top not in (source, target) and FLOOR[wing(target)] > FLOOR[wing(source)]
    ]


def eager(package: Path) -> list[str]:
    """Imports of optional libraries outside of functions."""
    return [
        f"{path.relative_to(package.parent)}:{line} imports {target}; import it inside of the function that needs it"
        for path in modules(package).values()
        for line, target in imports(ast.parse(path.read_text()), outside_functions=True)
        if target.split(".")[0] in OPTIONAL
    ]


def test_every_wing_has_a_floor() -> None:
    wings = {wing(name) for name in modules(PACKAGE)} - {PACKAGE.name}
    assert wings <= FLOOR.keys()


def test_no_arrow_points_up() -> None:
    assert upward(PACKAGE) == []


def test_no_wing_of_the_package_imports_the_package_itself() -> None:
    """Its ``__init__`` gathers names for scripts and imports every wing."""
    name = PACKAGE.name
    assert [place for (source, target), place in arrows(PACKAGE).items() if target == name] == []


@pytest.mark.parametrize("of", ["modules", "wings"])
def test_no_circle(of: str) -> None:
    """A package's ``__init__`` gathers its modules, which may import each other: as modules they are told apart."""
    pairs = {pair for pair in arrows(PACKAGE) if PACKAGE.name not in pair}
    if of == "wings":
        pairs = {(wing(source), wing(target)) for source, target in pairs if wing(source) != wing(target)}
    assert circles(pairs) == []


def test_optional_libraries_are_imported_where_they_are_used() -> None:
    assert eager(PACKAGE) == []


def test_pure_maths_knows_no_torchrl() -> None:
    """No module of ``functional`` imports TorchRL or tensordict."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((PACKAGE / "functional").glob("*.py"))
        for line, target in imports(ast.parse(path.read_text()))
        if target.split(".")[0] in ("torchrl", "tensordict")
    ]
    assert found == []


def test_contributors_read_the_same_floors() -> None:
    """The table of CONTRIBUTING.md lists the wings of each floor in this order."""
    rows = re.findall(r"^\| (?:ground|\d) \| ([^|]+) \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    assert tuple(tuple(re.findall(r"`(\w+)`", row)) for row in rows) == FLOORS


def test_arrows_up_circles_and_eager_imports_are_found(tmp_path: Path) -> None:
    """A small house with one of each fault; what only types need is no import."""
    package = tmp_path / "house"
    for name, text in {
        "__init__": "from house.runs import report",
        "functional/__init__": "",
        "functional/discrete": "from house.runs.report import table\nimport matplotlib.pyplot",
        "functional/checks": "from house.functional import scores",
        "functional/scores": "def late():\n    import ray\n    from house.functional.checks import guard",
        "runs/__init__": "from house.runs.report import table",
        "runs/report": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import onnx",
    }.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert upward(package) == [
        "house/functional/discrete.py:1: house.functional.discrete (floor 0) imports house.runs.report (floor 4)"
    ]
    inside = {pair for pair in arrows(package) if "house" not in pair}
    assert circles(inside) == [["house.functional.checks", "house.functional.scores", "house.functional.checks"]]
    assert [line.partition(";")[0] for line in eager(package)] == [
        "house/functional/discrete.py:2 imports matplotlib.pyplot"
    ]
