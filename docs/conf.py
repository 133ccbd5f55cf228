# SPDX-License-Identifier: BSD-3-Clause
"""How the site is built: ``sphinx-build -W --keep-going -b html docs docs/_build/html``; needs no network."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
# What is documented is on one thread, as the figures of benchmarks.md are.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import site_figures  # noqa: E402 - beside this file
import site_sphinx  # noqa: E402

from sklearn_docids import __version__  # noqa: E402
from sklearn_docids._bases import SITE  # noqa: E402

project = "sklearn_docids"
author = "the sklearn_docids developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
nitpicky = True
highlight_language = "none"
# Names in single backticks are links where there is a page, and plain where they name a local thing.
default_role = "py:obj"
nitpick_ignore_regex = [("py:obj", ".*")]

autosummary_generate = True
autosummary_ignore_module_all = False
toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"  # the docstrings say more
numpydoc_show_class_members = False  # the template of a class lists them
numpydoc_class_members_toctree = False

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "within_subsection_order": "FileNameSortKey",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"(^|/)(?!plot_)[^/]*\.py$",
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "plot_gallery": "True",
}

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_docids"
html_baseurl = SITE
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {
    "logo": {"text": "sklearn_docids"},
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "show_toc_level": 2,
    "navigation_depth": 2,
    "header_links_before_dropdown": 6,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_exclude = ".linenos, .gp, .go"


def setup(app):
    """Draw the figures before pages are read, and add what Sphinx has not."""
    app.connect("builder-inited", lambda app: site_figures.draw(HERE / "_static" / "drawn"))
    site_sphinx.setup(app)
