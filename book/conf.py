"""Sphinx settings of the book; `book/run.py` lays out its sources."""

project = "TorchServe course"
author = "The authors of this course"
extensions = ["myst_nb"]
nb_execution_mode = "off"  # papermill has run the chapters already
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_title = "A PyTorch model to production with TorchServe"
html_show_sourcelink = False
suppress_warnings = ["mystnb.unknown_mime_type"]
