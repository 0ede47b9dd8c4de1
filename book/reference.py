"""Writes the library reference: one page for each public module of tutorial_lib, filled by Sphinx's autodoc.

The modules and names are read from the library, so that a new module gets its page without an edit here.
"""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import tutorial_lib

# In the order of a model's path; modules that are not named here follow in alphabetical order.
ORDER = ("export", "archives", "servers", "clients", "load", "containers", "testing", "ray_app")


@dataclass
class Module:
    """A public module or package of tutorial_lib; `names` holds the summary of each of its public names."""

    name: str
    summary: str
    names: dict[str, str]


def public_modules() -> list[Module]:
    """Returns the modules of tutorial_lib that hand on public classes or functions, in reading order."""
    found = [_read(info.name) for info in pkgutil.iter_modules(tutorial_lib.__path__) if info.name[0] != "_"]
    place = {name: index for index, name in enumerate(ORDER)}
    return sorted((m for m in found if m.names), key=lambda m: (place.get(m.name, len(ORDER)), m.name))


def _read(name: str) -> Module:
    module = import_module(f"tutorial_lib.{name}")
    names = getattr(module, "__all__", None) or _defined(module)
    return Module(name, _summary(module), {name: _summary(getattr(module, name)) for name in names})


def _defined(module: ModuleType) -> list[str]:
    """Returns the public classes and functions that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    ]


def _summary(value: object) -> str:
    """Returns the first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())


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
