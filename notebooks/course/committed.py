"""A cell magic that runs a cell, or shows the outputs of a reference run if this machine can't run it.

The outputs of the reference run are in a file. After a live run, write this file from the notebook's outputs:

    cd notebooks && python -m course.committed engine 06_containerize.ipynb
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def reference_file(notebook: Path) -> Path:
    """Returns the path of the file with the reference run of a notebook's cells.

    >>> reference_file(Path("notebooks/06_containerize.ipynb")).name
    '06_containerize.run.json'
    """
    return notebook.with_suffix(".run.json")


def register_magic(magic: str, notebook: str, *, live: bool) -> None:
    """Defines the cell magic `%%magic name`: it runs the cell, or shows the outputs of the reference run.

    Args:
        magic: the magic's name.
        notebook: the path of the chapter.
        live: True runs the cells; False shows the outputs of the reference run.
    """
    from IPython.core.getipython import get_ipython

    runs = json.loads(reference_file(Path(notebook)).read_text())
    shell: Any = get_ipython()

    def run(name: str, code: str) -> None:
        if live:
            shell.run_cell(code).raise_error()
        else:
            replay(runs, name.strip(), code)

    shell.register_magic_function(run, "cell", magic)


def replay(runs: dict[str, Any], name: str, code: str) -> None:
    """Shows what a cell printed in the reference run, and a note if the cell was changed since.

    >>> replay({"hello": {"source": "print('hi')", "outputs": []}}, "hello", "print('ho')")
    This cell was changed, and can't run here. The unchanged one printed:
    """
    import IPython.display

    if name not in runs:
        print(f"The reference run has no cell {name!r}, and the cell can't run here.")
        return
    if runs[name]["source"].strip() != code.strip():
        print("This cell was changed, and can't run here. The unchanged one printed:")
    for output in runs[name]["outputs"]:
        if output["output_type"] == "stream":
            print(output["text"], end="")
        else:
            IPython.display.display(output["data"], raw=True)


def outputs_of(magic: str, notebook: Path) -> dict[str, Any]:
    """Returns, by name, the source and the outputs of a notebook's cells under a magic."""
    import nbformat

    found = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        first, _, code = cell.source.partition("\n")
        if first.startswith(f"%%{magic} "):
            outputs = [
                {
                    key: value
                    for key, value in output.items()
                    if key in ("output_type", "name", "text", "data")
                }
                for output in cell.outputs
            ]
            found[first.split()[1]] = {"source": code, "outputs": outputs}
    return found


if __name__ == "__main__":
    chapter = Path(sys.argv[2])
    text = json.dumps(outputs_of(sys.argv[1], chapter), indent=1, ensure_ascii=False)
    reference_file(chapter).write_text(f"{text}\n")
