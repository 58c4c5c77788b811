"""Sphinx configuration: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # check_api
shutil.copy(HERE.parent / "CHANGELOG.md", HERE / "changelog.md")  # one file, two places; git ignores the copy

project = "torchrl_rtpd"
author = "torchrl_rtpd contributors"
copyright = author
release = importlib.metadata.version("torchrl_rtpd")

extensions = [
    "check_api",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "pages", "results/*/**"]
html_theme = "furo"
html_title = "torchrl_rtpd"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

myst_enable_extensions = ["alert", "dollarmath"]  # warnings as GitHub writes them: > [!WARNING]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"  # public things top-down, as the source has them
autodoc_inherit_docstrings = False  # a method without its own docstring must not borrow one from TorchRL
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # autodoc lists the attributes of a NamedTuple already
napoleon_custom_sections = ["Keys"]

# Sphinx runs the examples of these pages; pytest those of the docstrings, each on its own with its module's names.
doctest_test_doctest_blocks = ""
doctest_global_setup = """
import torch
torch.manual_seed(0)
"""


def add_toctree(app, docname, source):
    """Make the sidebar of the links that a page lists under *Pages*, so that GitHub shows the same list."""
    source[0] = source[0].replace("(../CHANGELOG.md)", "(changelog.md)")  # the copy made above
    _, found, listed = source[0].partition("\n## Pages\n")
    if found:
        links = re.findall(r"^- \[[^]]+\]\(([\w/]+)\.md\)", listed, flags=re.MULTILINE)
        source[0] += "\n```{toctree}\n:hidden:\n:maxdepth: 1\n\n" + "\n".join(links) + "\n```\n"


def keep_names_together(app, what, name, obj, options, lines):
    """Show ``a, b, c: as in ...`` under all three names: a field's words before the last would be read as its type."""
    for place, line in enumerate(lines):
        lines[place] = re.sub(
            r"^:(param|keyword|ivar) ((?:\w+, )+\w+):",
            lambda found: f":{found[1]} {found[2].replace(', ', ',')}:",
            line,
        )


def setup(app):
    """Register the above with Sphinx."""
    app.connect("source-read", add_toctree)
    app.connect("autodoc-process-docstring", keep_names_together, priority=900)  # after napoleon
