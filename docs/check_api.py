"""Sphinx extension: warn about every public name without an entry on the API page, so that ``-W`` fails the build.

Public is the ``__all__`` of the package and of each of its wings, the modules and packages directly in it. A name of a
module inside of a wing is public if the wing exports it. A name that is exported again elsewhere needs one entry, not
two. autodoc skips names without a docstring: they are found here as well.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

PACKAGE = "torchrl_rtpd"

logger = logging.getLogger(__name__)


def wings(package: str) -> Iterator[str]:
    """Yield the package's name and the full names of the public modules and packages directly in it."""
    yield package
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            yield module.name


def missing_entries(package: str, documented: Iterable[str]) -> list[str]:
    """List the names that the API page lacks.

    Args:
        package: the package to walk.
        documented: full names of the documented Python objects.

    Returns:
        One sentence for each missing name, with its remedy; empty where the page is complete.
    """
    modules_of: dict[str, list[str]] = {}  # last part of a documented name -> modules it is documented under
    for full_name in documented:
        module, _, name = full_name.rpartition(".")
        modules_of.setdefault(name, []).append(module)

    problems = []
    for module_name in wings(package):
        public = importlib.import_module(module_name)
        if not hasattr(public, "__all__"):
            problems.append(f"{module_name} has no __all__; add one, or begin the module's name with an underscore")
        for name in getattr(public, "__all__", ()):
            if name.startswith("__"):  # __version__ and the like
                continue
            exported = getattr(public, name)
            if not any(_resolve(place, name) is exported for place in modules_of.get(name, ())):
                problems.append(
                    f"{module_name}.{name} has no entry on the API page; "
                    "give it a docstring, and its module an automodule directive in docs/api.md"
                )
    return problems


def _resolve(module_name: str, name: str) -> object:
    try:
        return getattr(importlib.import_module(module_name), name, None)
    except ImportError:  # the name of a class: its members are no module's exports
        return None


def _check(app: Sphinx, env: BuildEnvironment) -> None:
    for problem in missing_entries(PACKAGE, env.domains["py"].data["objects"]):
        logger.warning(problem, type="check_api")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the check with Sphinx."""
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
