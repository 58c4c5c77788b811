"""Sphinx configuration: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # check_api

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
exclude_patterns = ["_build", "results/*"]  # results.md and choosing.md include what is in results/
html_theme = "furo"
html_title = "torchrl_rtpd"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2

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
