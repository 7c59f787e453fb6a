"""How Sphinx builds these pages: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from asdm import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "A-SDM"
author = "the A-SDM authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "cards", "options", "packages", "records"]
default_role = "code"  # `name` in a docstring
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"A-SDM {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
