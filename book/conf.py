"""Sphinx settings of the book; `book/pages.py` writes its sources."""

project = "TorchServe course"
author = "The authors of this course"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"  # papermill has run the chapters already
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_theme_options: dict[str, list[str]] = {"navbar_persistent": []}  # the sidebar has a search field already
html_title = "A PyTorch model to production with TorchServe"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["book.css"]
suppress_warnings = ["mystnb.unknown_mime_type"]

add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # a default as the source has it: its value may hold a path of this machine
default_role = "py:obj"  # `name` in a docstring links to that name, if the reference has it
napoleon_use_ivar = True  # autodoc lists the fields of a dataclass already
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
