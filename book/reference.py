"""Writes the library reference: one page for each module of tutorial_lib, filled by Sphinx's autodoc.

The modules and names are read from the source, so that a new module gets its page without an edit here.
"""

from __future__ import annotations

import ast
import pkgutil
from dataclasses import dataclass
from pathlib import Path

import tutorial_lib

# In the order of a model's path; modules that are not named here follow in alphabetical order.
ORDER = ("export", "onnx_export", "archive", "server", "client", "load", "container", "redeploy", "testing")


@dataclass
class Module:
    """A public module of tutorial_lib; `names` holds the summary of each of its public names."""

    name: str
    summary: str
    names: dict[str, str]


def public_modules() -> list[Module]:
    """Returns the modules of tutorial_lib that define public classes or functions, in reading order."""
    modules = [
        _read(info.name, info.ispkg)
        for info in pkgutil.iter_modules(tutorial_lib.__path__)
        if not info.name.startswith("_")
    ]
    place = {name: index for index, name in enumerate(ORDER)}
    return sorted((m for m in modules if m.names), key=lambda m: (place.get(m.name, len(ORDER)), m.name))


def _read(name: str, is_package: bool) -> Module:
    folder = Path(tutorial_lib.__path__[0])
    tree = ast.parse(
        (folder / name / "__init__.py" if is_package else folder / f"{name}.py").read_text("utf-8")
    )
    names = {
        node.name: _summary(node)
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    }
    if is_package:  # a package shows the names that it exports, from all of its files
        names |= dict.fromkeys(_exported(tree), "")
    return Module(name, _summary(tree), names)


def _exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _summary(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    """Returns the first paragraph of a docstring, on one line."""
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


def write_reference(folder: Path) -> None:
    """Writes index.rst, which lists what `from tutorial_lib import …` gives, and a page for each module."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = public_modules()
    for module in modules:
        title = f"``{module.name}``"
        options = "   :members:\n   :undoc-members:\n   :show-inheritance:\n"
        page = f"{title}\n{'=' * len(title)}\n\n.. automodule:: tutorial_lib.{module.name}\n{options}"
        (folder / f"{module.name}.rst").write_text(page, encoding="utf-8")
    (folder / "index.rst").write_text(_index(modules), encoding="utf-8")


def _index(modules: list[Module]) -> str:
    lines = [
        *("Library reference", "=================", ""),
        "The names that ``from tutorial_lib import …`` gives, by module. Each module's page has the names' "
        "arguments, errors and examples.",
        *("", ".. toctree::", "   :hidden:", ""),
        *(f"   {module.name}" for module in modules),
    ]
    for module in modules:
        lines += ["", f":doc:`{module.name}`", f"   {module.summary}", ""]
        lines += [
            f"   - :py:obj:`~tutorial_lib.{module.name}.{name}`: {summary}"
            for name, summary in module.names.items()
            if name in tutorial_lib.__all__
        ]
    return "\n".join(lines) + "\n"
