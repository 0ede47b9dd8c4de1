"""A cell magic for chapters whose cells need what not every machine has."""

from __future__ import annotations

from typing import Any


def register_magic(name: str, notebook: str, *, live: bool) -> None:
    """Defines the cell magic `%%name`: it runs the cell, or shows the outputs that are committed.

    Args:
        name: the magic's name.
        notebook: the path of the chapter.
        live: cells run; False shows the committed outputs.
    """
    import IPython.display
    import nbformat
    from IPython.core.getipython import get_ipython

    chapter = nbformat.read(notebook, as_version=4)
    committed = {cell.source.strip(): cell.get("outputs", []) for cell in chapter.cells}

    shell: Any = get_ipython()
    display: Any = IPython.display.display

    def magic(line: str, cell: str) -> None:
        if live:
            shell.run_cell(cell).raise_error()
            return
        for output in committed.get(f"%%{name}\n{cell}".strip(), []):
            if output.output_type == "stream":
                print(output.text, end="")
            else:
                display(output.data, raw=True)

    shell.register_magic_function(magic, "cell", name)
