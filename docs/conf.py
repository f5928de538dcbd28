"""Sphinx's configuration. ``sphinx-build -W -b html docs docs/_build/html`` builds the pages, without a network."""

import sys
from pathlib import Path

import chrootfw

sys.path.insert(0, str(Path(__file__).parent))  # for "generated" below

project = "chrootfw"
author = "the chrootfw authors"
version = release = chrootfw.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

add_module_names = False
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
python_maximum_signature_line_length = 120

html_theme = "furo"
html_title = f"chrootfw {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["examples.js"]
html_search_scorer = str(Path(__file__).with_name("scorer.js"))
html_favicon = "_static/favicon.svg"
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e5f", "color-brand-content": "#0b6e5f"},
    "dark_css_variables": {"color-brand-primary": "#5fd3bf", "color-brand-content": "#5fd3bf"},
}
# The table is included in reference/ganeti-comparison.md.
exclude_patterns = ["_build", "reference/ganeti-table.md"]
