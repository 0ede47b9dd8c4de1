"""Sphinx settings of the book; `book/pages.py` writes the book's sources."""

from __future__ import annotations

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger
from sphinx.writers.html5 import HTML5Translator

project = "TorchServe course"
author = "The authors of this course"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"  # papermill has run the chapters already
nb_ipywidgets_js: dict[str, str] = {}  # no page shows a widget, and its scripts would come from the network
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_theme_options = {
    "navbar_persistent": [],  # the sidebar has a search field already
    "logo": {"text": "A PyTorch model to production"},
}
html_logo = html_favicon = "static/logo.svg"
html_context = {"default_mode": "auto"}  # light or dark, like the reader's system
html_title = "A PyTorch model to production with TorchServe"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["book.css"]
html_js_files = ["copy.js"]
html_math_renderer = "mathml"
suppress_warnings = ["mystnb.unknown_mime_type"]

add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # shows defaults as in the source: a value may hold a path of this machine
default_role = "py:obj"  # `name` in a docstring links to that name, if the reference has it
napoleon_use_ivar = True  # autodoc lists the fields of a dataclass already
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"  # TorchServe.wait_for_log() is too long for the column beside a page


def write_mathml(page: HTML5Translator, formula: nodes.math | nodes.math_block) -> None:
    """Writes a formula as MathML, which browsers show without a script from the network."""
    try:
        page.body.append(tex2mathml(formula.astext(), as_block=isinstance(formula, nodes.math_block)))
    except MathError as error:
        getLogger(__name__).warning("This formula can't be shown: %s", error, location=formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
