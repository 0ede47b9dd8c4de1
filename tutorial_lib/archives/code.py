"""Checks the Python files of an archive without running them, as TorchServe's loader would find them."""

from __future__ import annotations

import ast
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tutorial_lib.errors import ArchiveError

# What a worker imports beside the standard library, before it imports the handler.
_IMPORTED_BY_WORKERS = (
    "numpy",
    "psutil",
    "pynvml",
    "torch",
    "torchgen",
    "tqdm",
    "ts",
    "typing_extensions",
    "yaml",
)
# Calls that make a class.
_MAKE_CLASSES = ("namedtuple", "NamedTuple", "TypedDict", "Enum", "IntEnum", "StrEnum", "make_dataclass")


class _Import(NamedTuple):
    module: str  # the first part of its dotted name; "" for a relative import
    names: tuple[str, ...]  # what is imported from the module itself


def parse(file: Path, what: str) -> ast.Module:
    """Returns the syntax tree of a Python file.

    Args:
        file: the file.
        what: what it is, for the error message.

    Raises:
        ArchiveError: the file is not Python, or its name is no module's.
    """
    if "." in file.stem:
        raise ArchiveError(
            f"{what} {file} can't be imported: its name has a '.' before .py, which Python takes for a "
            f"package. Rename it, as to {file.stem.replace('.', '_')}.py."
        )
    try:
        return ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ArchiveError(f"{what} {file} is not Python: {error}. Fix it first.") from error


def check_handler_file(file: Path) -> None:
    """Checks that a handler defines a function `handle`, or exactly one class that can be a handler.

    TorchServe looks for `handle` first, and then counts the classes that the file itself defines.

    Raises:
        ArchiveError: TorchServe's loader could not use the file.
    """
    tree = parse(file, "The handler")
    names = _names(tree.body)
    if names & {"handle", "*", "__getattr__"}:
        return
    made = [name for node in tree.body for name in _classes_of(node)]
    deleted = {
        ast.unparse(name) for node in tree.body if isinstance(node, ast.Delete) for name in node.targets
    }
    made = [name for name in made if name not in deleted]
    if len(made) > 1:
        raise ArchiveError(
            f"The handler {file} defines {len(made)} classes ({', '.join(made)}), and TorchServe wants "
            "exactly one. Move the others into a file of their own, and add that to extra_files."
        )
    if not any(map(_may_be_class, _statements(tree.body))):
        imported = next((name for name in sorted(names) if name.endswith("Handler")), None)
        raise ArchiveError(
            f"The handler {file} defines no class and no function handle(data, context). Define one of them"
            + (f"; an imported class does not count, but class Own({imported}) does." if imported else ".")
        )
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(classes) == len(made) == 1:
        _check_handler_class(file, classes[0])


def _classes_of(node: ast.stmt) -> list[str]:
    """Returns the classes that a statement of a module defines, under each of their names."""
    if isinstance(node, ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        made = ast.unparse(node.value.func).rpartition(".")[2]
        return [ast.unparse(node.targets[0])] if made in _MAKE_CLASSES else []
    return []


def _may_be_class(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        name = ast.unparse(node.targets[0])
        return name[0].isupper() and not name.isupper()  # as Handler = make_handler(…), not LOGGER = …
    return isinstance(node, ast.ClassDef)


def _check_handler_class(file: Path, node: ast.ClassDef) -> None:
    if needed := _required_arguments(node):
        raise ArchiveError(
            f"TorchServe makes the handler of {file} as {node.name}(), and its __init__ needs "
            f"{', '.join(needed)}. Give each a default, or read it in initialize(self, context)."
        )
    alone = not node.bases and not node.keywords and not node.decorator_list
    names = _names(node.body)
    missing = [name for name in ("initialize", "handle") if name not in names]
    if alone and missing and "__getattr__" not in names:
        raise ArchiveError(
            f"The class {node.name} of the handler {file} has no method {' and no '.join(missing)}. "
            "TorchServe calls initialize(self, context) once, and handle(self, data, context) with each "
            "batch. Define them, or derive the class from ts.torch_handler.base_handler.BaseHandler."
        )


def check_model_file(file: Path) -> None:
    """Checks that a model file defines one class, which TorchServe can call with no arguments.

    Raises:
        ArchiveError: it does not.
    """
    tree = parse(file, "The model file")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(classes) != 1:
        found = ", ".join(node.name for node in classes) or "none"
        raise ArchiveError(
            f"The model file {file} must define exactly one class, the model; it defines {found}. Move the "
            "others into a file of their own and add that to extra_files (all of it, if your handler builds "
            "the model itself)."
        )
    if needed := _required_arguments(classes[0]):
        raise ArchiveError(
            f"TorchServe makes the model as {classes[0].name}(), and its __init__ needs {', '.join(needed)}. "
            "Give each a default."
        )


def check_taken(file: Path) -> None:
    """Checks that a file or a package has not the name of a module that every worker imports.

    Raises:
        ArchiveError: it has.
    """
    module = _module(file)
    if module in sys.stdlib_module_names or module in _IMPORTED_BY_WORKERS:
        raise ArchiveError(
            f"A worker would import {file} in place of the module {module} that Python and "
            "TorchServe need themselves. Give it another name."
        )


def check_imports(files: Sequence[Path]) -> None:
    """Checks that the neighbours which packed files import are packed, and that no file hides a package.

    Args:
        files: all files and folders of the archive.

    Raises:
        ArchiveError: a neighbour is missing, or a file has the name of an installed package that is needed.
    """
    packed = {module: file for file in files if (module := _module(file))}
    trees = {file: parse(file, "The file") for file in files if file.suffix == ".py"}
    imports = {file: [*_imports(tree.body)] for file, tree in trees.items()}
    for file, found in imports.items():
        if any(not one.module for one in found):
            raise ArchiveError(
                f"{file} has a relative import (from . import …), and TorchServe imports the file as a "
                "module of its own. Write the import without the leading dot."
            )
        modules = {one.module for one in found} - {file.name for file in files} - {*packed}
        _check_neighbours(file, modules - sys.stdlib_module_names)
    for file, tree in trees.items():
        if find_spec(file.stem):
            _check_hidden(file, _names(tree.body), imports)


def _check_neighbours(file: Path, modules: Iterable[str]) -> None:
    for module in modules:
        beside = file.parent / f"{module}.py"
        beside = beside if beside.is_file() else file.parent / module
        if (beside.is_file() or any(beside.glob("*.py"))) and not _is_found_by_workers(module):
            raise ArchiveError(f"{file} imports {module}, and {beside} is not packed: add it to extra_files.")


def _is_found_by_workers(module: str) -> bool:
    """Returns whether a Python finds a module, of whatever folder: it is installed, or on PYTHONPATH."""
    code = "import importlib.util, sys; sys.exit(not importlib.util.find_spec(sys.argv[1]))"
    with tempfile.TemporaryDirectory() as empty:
        return subprocess.run([sys.executable, "-c", code, module], cwd=empty).returncode == 0


def _check_hidden(file: Path, names: set[str], imports: dict[Path, list[_Import]]) -> None:
    """Checks that a file with the name of an installed package is not imported in place of that package."""
    module = file.stem
    distributions = metadata.packages_distributions()
    if module not in distributions:
        return
    found = [(other, one) for other, ones in imports.items() for one in ones]
    missing = {name for _, one in found if one.module == module for name in one.names} - names
    needed = _requirements({one.module for _, one in found} - {module}, distributions)
    itself = any(other == file and one.module == module for other, one in found)
    if itself or not needed.isdisjoint(map(_normal, distributions[module])) or missing - {"*"}:
        raise ArchiveError(
            f"A worker would import {file} in place of the installed package {module}, which the archive's "
            "code needs. Give the file another name."
        )


def _requirements(modules: set[str], distributions: Mapping[str, list[str]]) -> set[str]:
    """Returns the names of all distributions that the distributions of these modules require."""
    todo = [name for module in modules for name in distributions.get(module, ())]
    seen: set[str] = set()
    while todo:
        with contextlib.suppress(metadata.PackageNotFoundError):
            for line in metadata.requires(todo.pop()) or ():
                name = _normal(re.split(r"[^\w.-]", line, maxsplit=1)[0])
                if "extra ==" not in line and name not in seen:
                    seen.add(name)
                    todo.append(name)
    return seen


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _module(file: Path) -> str | None:
    """Returns the name that a file or a package is imported by; None for other files."""
    if file.suffix == ".py":
        return file.stem
    return file.name if (file / "__init__.py").is_file() else None


def _imports(body: Sequence[ast.stmt]) -> Iterator[_Import]:
    """Yields the imports that a worker runs: not those in a `try`, for type checkers, or of a script."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (_Import(alias.name.partition(".")[0], ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module, _, rest = ("" if node.level else node.module or "").partition(".")
            yield _Import(module, () if rest else tuple(alias.name for alias in node.names))
        elif isinstance(node, ast.If):
            tested = ast.unparse(node.test)
            if "TYPE_CHECKING" not in tested and "__name__" not in tested:
                yield from _imports(node.body)
            yield from _imports(node.orelse)
        elif isinstance(node, ast.Try):
            caught = " ".join(ast.unparse(handler.type) if handler.type else "" for handler in node.handlers)
            if not re.search(r"^$|Import|ModuleNotFound|Exception", caught):
                yield from _imports(node.body)
            yield from _imports([*node.orelse, *node.finalbody])
        else:
            yield from _imports(getattr(node, "body", ()))


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yields the statements of a module or a class, also those of an `if`, a `try`, a `with` or a loop."""
    for node in body:
        yield node
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ("body", "handlers", "orelse", "finalbody"):
                for part in getattr(node, inner, ()):
                    yield from _statements(part.body if isinstance(part, ast.ExceptHandler) else [part])


def _names(body: Sequence[ast.stmt]) -> set[str]:
    """Returns the names that a module or a class may have."""
    names = set()
    for node in _statements(body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        else:
            parts = ast.walk(node)
            names |= {
                part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
    return names


def _required_arguments(node: ast.ClassDef) -> list[str]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            positional = [argument.arg for argument in (*item.args.posonlyargs, *item.args.args)][1:]
            required = positional[: max(0, len(positional) - len(item.args.defaults))]
            pairs = zip(item.args.kwonlyargs, item.args.kw_defaults, strict=True)
            return [*required, *(argument.arg for argument, default in pairs if default is None)]
    return []
