"""Builds the documentation: `sphinx-build -W -b html docs build/docs`, without network."""

from __future__ import annotations

import sys
from pathlib import Path

import skerch_ooc

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "skerch_ooc"
author = "The skerch_ooc developers"
version = release = skerch_ooc.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "click_commands",
    "public_names",
    "repository_files",
    "spec_keys",
]
exclude_patterns = ["_ext", "_static"]
root_doc = "index"
nitpicky = True
nitpick_ignore_regex = [
    # Types of Python and of other packages; to link them, lists would have to be fetched.
    ("py:class", r"(pathlib|collections|contextlib|torch|numpy)\..*|Path|Tensor|tuple\[int"),
    ("py:class", r"TypeAliasForwardRef"),
    # Types in signatures that nobody needs to know.
    ("py:class", r"Data|skerch_ooc\.(executors\.executor\.Task|planning\.plan\.Plan)"),
    ("py:class", r"skerch_ooc\.results\.(vectors\.Tall|lowrank\.LowRank)"),
]

myst_enable_extensions = ["colon_fence"]
# Links to headings of a page, as code hosts make them.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

# Two hyphens become a dash, as autodoc writes it; quotes stay as they are.
smartquotes_action = "D"

html_theme = "furo"
html_title = f"skerch_ooc {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
