"""Docstrings and pages are written in whole sentences: the worst patterns are refused, each place is named."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("torchrl_rtpd/**/*.py"), *ROOT.glob("docs/**/*.py"), *ROOT.glob("examples/*.py")])
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/results/*.md")])

HEADLESS = re.compile(r"^(What|Whatever|Whether|Who|Whoever|Whom|Whose|Of|How \w+)\b")
WORST = {
    "if present": re.compile(r"\b[Ii]f (?:it is |one is |they are )?there\b(?=[,.;:)]|$)"),
    "otherwise": re.compile(r"[,;:(] ?else\b"),
    "again, from scratch": re.compile(r"\banew\b"),
    "also, as well, in addition": re.compile(r", too\b(?=[,.;:)]|$)"),
    "it, its": re.compile(r"\b(?:he|his|him|himself|everybody)\b"),
    "captured": re.compile(r"\b(?:overhear\w*|overheard|heard|listen(?:s|ed) to)\b"),
}
"""Words to write, and the pattern that they replace."""

LITERAL = re.compile(r"```.*?```|``[^`]*``|`[^`\n]*`|:\w+:`[^`]*`|^\s*(?:>>>|\.\.\.).*$", re.DOTALL | re.MULTILINE)


def without_code(text: str) -> str:
    """A text whose code is blanked, its lines kept."""
    return LITERAL.sub(lambda found: "\n" * found[0].count("\n") or "~", text)


def public_docstrings(source: str, names: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """Line and text of the docstrings of a module, its classes and functions; private ones are left out."""
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            name = getattr(node, "name", "")
            if name.startswith("_") and not name.startswith("__"):
                continue
            if text := ast.get_docstring(node, clean=False):
                yield node.body[0].lineno, text
        todo.extend(ast.iter_child_nodes(node))


def bad_words(text: str, first_line: int = 1) -> Iterator[tuple[int, str]]:
    """Line and complaint for every pattern found in a text."""
    prose = without_code(text)
    for better, pattern in WORST.items():
        for found in pattern.finditer(prose):
            line = first_line + prose.count("\n", 0, found.start())
            yield line, f"{found[0].strip()!r}: write {better}"


def complaints(source: str) -> list[tuple[int, str]]:
    """Everything that is wrong in the docstrings of a module."""
    found = []
    for line, text in public_docstrings(source):
        summary = text.strip().splitlines()[0]
        if HEADLESS.match(summary):
            found.append((line, f"{summary!r}: name the thing or begin with a verb"))
        found += bad_words(text, line)
    return sorted(found)


def places(path: Path, found: list[tuple[int, str]]) -> list[str]:
    """Complaints with the place they are about."""
    return [f"{path.relative_to(ROOT)}:{line}: {complaint}" for line, complaint in found]


def test_docstrings_are_sentences_with_a_head() -> None:
    found = [place for path in SOURCES for place in places(path, complaints(path.read_text()))]
    assert not found, "\n".join([f"{len(found)} places", *found])


def test_pages_are_written_in_plain_words() -> None:
    found = []
    for path in PAGES:
        text = path.read_text()
        if path.name == "CONTRIBUTING.md":  # its section on language shows what to avoid
            text = text.partition("\n## Language\n")[0]
        found += places(path, sorted(bad_words(text)))
    assert not found, "\n".join([f"{len(found)} places", *found])


@pytest.mark.parametrize(
    "line",
    [
        "What is read from a batch.",
        "Whether it took.",
        "Who acts.",
        "Of the actions.",
        "How many there are.",
        "Values, if there, are read.",
        "The mask if there.",
        "The mask, else none.",
        "Drawn anew.",
        "Saved, too.",
        "The player and his score.",
        "Values that the hook overheard.",
    ],
)
def test_a_bad_line_is_found_where_it_stands(line: str) -> None:
    """On the second line of a module, in the docstring of a public function."""
    if HEADLESS.match(line):
        assert [number for number, _ in complaints(f'\ndef act():\n    """{line}"""\n')] == [3]
    else:
        assert [number for number, _ in complaints(f'\ndef act():\n    """Act.\n\n    {line}\n    """\n')] == [5]


@pytest.mark.parametrize(
    "line",
    [
        "Return what the network gives.",
        "Nothing else.",
        "He-normal weights are drawn again if there is no file.",
        "``x if y else z``, and `anew`.",
        "Too many, too soon.",
    ],
)
def test_a_good_line_passes(line: str) -> None:
    assert complaints(f'def act():\n    """{line}\n\n    >>> 1 if True, else 2\n    """\n') == []


def test_private_names_are_left_out() -> None:
    assert complaints('def _act():\n    """What acts."""\n') == []
