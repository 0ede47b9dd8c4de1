"""Removes what an earlier run of a cell started or registered, so that the cell can run again."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from tutorial_lib import ApiError
from tutorial_lib.servers.base import ModelServer


def forget(server: ModelServer, model: str, version: str | None = None) -> None:
    """Unregisters a model, or one version, if it is registered, so that a cell can register it again."""
    try:
        server.management.unregister(model, version)
    except ApiError as error:
        if error.status != 404:
            raise


def stop_replaced(code: str, variables: Mapping[str, Any]) -> None:
    """Ends the servers whose variables the code assigns anew, because nothing could end them later.

    Args:
        code: a cell, as plain Python. Code with a syntax error changes nothing.
        variables: the notebook's variables.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    targets = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
    for target in targets:
        if isinstance(target, ast.Name) and isinstance(server := variables.get(target.id), ModelServer):
            server.__exit__(None, None, None)


def watch_cells() -> None:
    """Makes IPython call `stop_replaced` before each cell of this notebook."""
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    if shell is not None:
        shell.events.register(
            "pre_run_cell", lambda cell: stop_replaced(shell.transform_cell(cell.raw_cell), shell.user_ns)
        )
