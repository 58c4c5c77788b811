"""README, packaging and CI agree with each other."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import torchrl_rtpd

ROOT = Path(__file__).resolve().parent.parent
README_PATH = ROOT / "README.md"
README = README_PATH.read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = PYPROJECT["project"], PYPROJECT["tool"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)


def readme_blocks(name: str) -> list[str]:
    """Content of each fenced block right under the marker comment ``name``."""
    return re.findall(rf"^<!-- {name} -->\n```bash\n(.*?)\n```$", README, flags=re.MULTILINE | re.DOTALL)


def run_ci(checkout: Path, readme: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a copy of .ci/run in ``checkout``, with that README and, if given, a folder that comes first in PATH."""
    (checkout / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", checkout / ".ci" / "run")
    (checkout / "README.md").write_text(readme)
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        [str(checkout / ".ci" / "run")],
        cwd="/",  # from anywhere
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", ["main-command", "test-command"])
def test_readme_gives_each_command_once_on_one_line_and_it_makes_its_own_environment(name: str) -> None:
    """A reader can paste it into a fresh checkout."""
    (command,) = readme_blocks(name)
    assert "\n" not in command
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert "-c constraints.txt" in command


def test_ci_starts_the_readme_test_command_and_passes_its_status_on(tmp_path: Path) -> None:
    """A fake python3 stands in for the first word of the command."""
    (command,) = readme_blocks("test-command")
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "fake python3 $*"\nexit 3\n')
    fake.chmod(0o755)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    done = run_ci(checkout, README, path=str(fake.parent))
    assert done.stdout.splitlines() == [f"+ {command}", "fake python3 -m venv .venv"]
    assert done.returncode == 3


def test_ci_runs_what_the_readme_says_at_the_root_of_the_checkout(tmp_path: Path) -> None:
    """Another README, another command: nothing is written twice."""
    done = run_ci(tmp_path, "# x\n\n<!-- test-command -->\n```bash\necho one > evidence && echo two\n```\n")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "evidence").read_text() == "one\n"
    assert done.stdout.splitlines() == ["+ echo one > evidence && echo two", "two"]


def test_ci_says_so_when_the_readme_has_no_test_command(tmp_path: Path) -> None:
    """An empty command would pass silently."""
    done = run_ci(tmp_path, "# x\n")
    assert done.returncode == 1
    assert "README.md has no command under <!-- test-command -->" in done.stderr


def test_declared_ranges_admit_the_tested_pins() -> None:
    """Every dependency is pinned, and the pin is within its range; so is each extra that the tested set covers."""
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    extras = PROJECT["optional-dependencies"]
    covered = set(extras) - {"export", "ray"}
    lines = [*PROJECT["dependencies"], *(line for name in covered for line in extras[name])]
    requirements = [Requirement(line) for line in lines]
    outside = [
        f"{requirement} but {pins.get(canonicalize_name(requirement.name))} is pinned"
        for requirement in requirements
        if (pin := pins.get(canonicalize_name(requirement.name))) is None or pin not in requirement.specifier
    ]
    assert len(requirements) > 10
    assert outside == []


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"]))
def test_the_quickstart_documents_the_extra(extra: str) -> None:
    """One row of the table each."""
    page = (ROOT / "docs" / "quickstart.md").read_text()
    assert re.search(rf"^\| `{extra}` \| \S", page, flags=re.MULTILINE)


def test_readme_and_packaging_name_the_same_python_versions() -> None:
    """The lowest is in the README, the requirement, the classifiers and the linter's target; CI's note says it."""
    (lowest,) = re.findall(r"Python (3\.\d+) or later", README)
    versions = [line.rpartition(" :: ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    assert PROJECT["requires-python"] == f">={lowest}"
    assert min(versions, key=lambda version: int(version[2:])) == lowest
    assert TOOLS["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    assert f"Needs Python {lowest} or later" in (ROOT / ".ci" / "run").read_text()


def test_readme_lists_every_wing_in_at_most_ten_rows() -> None:
    """Each wing once, and nothing that is no wing."""
    table = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", README, flags=re.MULTILINE)
    named = [name for row in table for name in re.findall(r"`(\w+)`", row)]
    package = Path(torchrl_rtpd.__file__).parent
    wings = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert len(table) <= 10
    assert sorted(named) == sorted(name for name in wings if not name.startswith("_"))


def test_readme_opens_with_the_claim_the_flow_and_a_chart() -> None:
    """In this order: first line, drawing, chart, video, generated sentences, drop-in, commands, parts."""
    marks = (
        "**A student that is ready the moment the teacher is.**",
        "](docs/images/flow.svg)",
        "](docs/images/front.png)",
        "](docs/results/atari_expert/play.gif)",
        "<!-- generated: front -->",
        "<!-- start: drop-in -->",
        "<!-- main-command -->",
        "<!-- test-command -->",
        "## The parts",
        "](docs/results.md)",
    )
    found = [README.find(mark) for mark in marks[:-1]]
    assert found == sorted(found) and found[0] > 0 and marks[-1] in README
    block = README.partition("<!-- generated: front -->\n")[2].partition("<!-- end: front -->")[0]
    assert len(block.strip().splitlines()) == 5


def test_the_drop_in_is_eight_lines() -> None:
    """Imports, hook and registration around the trainer that a reader has."""
    block = README.partition("<!-- start: drop-in -->")[2].partition("<!-- end: drop-in -->")[0]
    (code,) = re.findall(r"```python\n(.*?)```", block, flags=re.DOTALL)
    assert len(code.splitlines()) <= 8


def test_readme_names_no_extra_that_does_not_exist() -> None:
    """What stands in the brackets of the commands can be installed."""
    named = {extra for extras in re.findall(r"\.\[([\w,]+)\]", README) for extra in extras.split(",")}
    assert named
    assert named <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("name", sorted(torchrl_rtpd.__all__))
def test_public_name_has_a_docstring_of_its_own(name: str) -> None:
    """Numbers and strings cannot have one; an inherited one says nothing about ours."""
    public = getattr(torchrl_rtpd, name)
    if inspect.isclass(public):
        assert (vars(public).get("__doc__") or "").strip()
    elif inspect.isroutine(public) or inspect.ismodule(public):
        assert (public.__doc__ or "").strip()


def test_every_file_that_a_page_names_is_there() -> None:
    """Tests by their names, scripts and folders by their paths from the root; names with a placeholder are left out."""
    tests = {path.name for path in ROOT.glob("tests/**/*.py")}
    missing = []
    pages = {README_PATH, ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/results/*.md")}
    for page in sorted(pages - {ROOT / "docs" / "changelog.md"}):  # the past may name what is gone
        text = re.sub(r"<!-- generated: .*?<!-- end: ", "", page.read_text(), flags=re.DOTALL)  # commands of the past
        for name in re.findall(r"\btest_\w+\.py\b", text):
            missing += [f"{page.name}: {name}"] * (name not in tests)
        for path in re.findall(r"\b((?:examples|tests|docs)/[\w/.]*\w)(?![\w<*])", text):
            missing += [f"{page.name}: {path}"] * ("NAME" not in path and not (ROOT / path).exists())
    assert missing == []


def test_no_file_names_a_registry_host() -> None:
    """Where packages come from is the reader's configuration. The names are put together: this file must not match."""
    hosts = [
        f"{name}.{domain}".encode()
        for name, domain in [
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("npmjs", "org"),
            ("npmjs", "com"),
            ("deb.debian", "org"),
            ("anaconda", "org"),
            ("download.pytorch", "org"),
        ]
    ]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    files = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    assert ROOT / "README.md" in files
    naming = [f"{path}: {host.decode()}" for path in files for host in hosts if host in path.read_bytes()]
    assert naming == []


def test_each_test_file_has_a_name_of_its_own() -> None:
    """Folders of tests are no packages, so pytest knows a file by its last name alone."""
    names = [path.stem for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) > 50
    assert sorted(names) == sorted(set(names))


def test_readme_names_the_releases_that_are_required() -> None:
    """One minor release of TorchRL, and torch from some release on."""
    required = {Requirement(line).name: Requirement(line).specifier for line in PROJECT["dependencies"]}
    torchrl, torch = re.search(r"It takes TorchRL\s+([\d.]+) and torch ([\d.]+) or later", README).groups()
    assert f"{torchrl}.1" in required["torchrl"] and f"{torchrl}.0" not in required["torchrl"]
    assert f"{torch}.0" in required["torch"] and "2.10.0" not in required["torch"]


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_files_that_an_examples_header_names_exist(script: Path) -> None:
    header = ast.get_docstring(ast.parse(script.read_text())) or ""
    named = re.findall(r"(?<![\w/.])(?:docs|examples|tests|findings)/[\w/]+\.(?:py|md|sh|json)", header)
    assert [path for path in named if not (ROOT / path).exists()] == []
