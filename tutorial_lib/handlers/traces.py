"""Notes what a handler does beside answering: files, random numbers, autograd graphs."""

from __future__ import annotations

import functools
import gc
import os
import random
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

_SYSTEM = ("/dev/", "/proc/", "/sys/", "/etc/", "/usr/", "/lib", "/bin/", "/opt/", "/System/", "/Library/")


class OpenedFiles:
    """Notes the files that Python code opens outside the archive, and those named by a relative path.

    Installed packages, the system's files, and files made meanwhile do not count. Files that compiled code
    opens are not seen.

    Args:
        sources: folders of the author, whose files are on the server only if they are in the archive.
        own: the folder of this check, with the unpacked archive.
    """

    def __init__(self, sources: Sequence[str], own: Path) -> None:
        self._started = time.time()
        self._read: dict[str, None] = {}
        self._relative: dict[str, None] = {}
        self._written: dict[str, None] = {}
        home = os.path.expanduser("~")  # noqa: PTH111  (Path.home() fails for a user without a name)
        self._sources = tuple(f"{s.rstrip('/')}/" for s in sources if s not in ("/", home))
        library = str(Path(__file__).parents[1])
        packages = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, library} - {"", "/", "/usr"}
        exempt = tuple(f"{path.rstrip('/')}/" for path in packages)
        inside = f"{own}/"

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            if event != "open" or not isinstance(arguments[0], (str, bytes)):
                return
            name = os.fsdecode(arguments[0])
            path = os.path.normpath(os.path.join(os.getcwd(), name))  # noqa: PTH109, PTH118
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if path.startswith(inside):
                if not os.path.isabs(name) and not writes:  # noqa: PTH117
                    self._relative[name] = None
                return
            if path.startswith(exempt) or (path.startswith(_SYSTEM) and not path.startswith(self._sources)):
                return
            (self._written if writes else self._read)[path] = None

        sys.addaudithook(note)

    @property
    def missing(self) -> list[str]:
        """Files of the author's folders that are not in the archive."""
        return [p for p in self._old(self._read) if p.startswith(self._sources) and "/." not in p][:5]

    @property
    def elsewhere(self) -> list[str]:
        """Files of other places, as a cache in the home folder."""
        return [path for path in self._old(self._read) if path not in self.missing][:5]

    @property
    def written(self) -> list[str]:
        """Files outside the archive that were written and are still there."""
        return [path for path in self._written if Path(path).is_file()][:5]

    @property
    def relative(self) -> list[str]:
        """Files of the archive that were opened by a path relative to the working directory."""
        return self._old(self._relative)[:5]

    def _old(self, paths: Iterable[str]) -> list[str]:
        shown = [Path(path) for path in paths if "-packages/" not in path and "__pycache__" not in path]
        return [str(path) for path in shown if path.is_file() and path.stat().st_mtime < self._started]


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns size and time of each file below a folder, except for compiled modules."""
    files = [path for path in folder.rglob("*") if "__pycache__" not in path.parts and path.is_file()]
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


class Seeds:
    """Seeds all generators of random numbers that are found, so that a sampling model repeats itself."""

    def __init__(self) -> None:
        self._own: list[Callable[[], Any]] = []

    def find_own(self, folder: Path) -> None:
        """Looks for generators that the archive's modules and their objects hold."""
        own = f"{folder}/"
        modules = [m for m in [*sys.modules.values()] if str(getattr(m, "__file__", "")).startswith(own)]
        names = {module.__name__ for module in modules}
        held = [value for module in modules for value in vars(module).values()]
        for thing in gc.get_objects():
            if getattr(type(thing), "__module__", None) in names:
                held += [thing, *gc.get_referents(thing)]
                held += vars(thing).values() if hasattr(thing, "__dict__") else ()
        self._own = []
        for generator in held:
            if isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom):
                self._own.append(functools.partial(generator.seed, 0))
            elif type(generator).__name__ == "Generator" and hasattr(generator, "manual_seed"):
                self._own.append(functools.partial(generator.manual_seed, 0))
            elif bits := getattr(generator, "bit_generator", None):
                self._own.append(functools.partial(setattr, bits, "state", bits.state))

    def set(self) -> None:
        random.seed(0)
        if torch := sys.modules.get("torch"):
            torch.manual_seed(0)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(0)
        for seed in self._own:
            seed()

    def scatter(self) -> None:
        """Seeds the shared generators differently at each call."""
        random.seed()
        if torch := sys.modules.get("torch"):
            torch.seed()
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()


def layers_in_training() -> list[str]:
    """Returns the kinds of layers that are in training mode and then answer differently."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    kinds = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm)
    layers = [o for o in gc.get_objects() if issubclass(type(o), kinds) and o.training]
    return sorted({type(layer).__name__ for layer in layers if getattr(layer, "p", 1)})


def autograd_nodes() -> int:
    """Counts the operations that live tensors keep for a backward pass."""
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions if parent is not None]
    return len(seen)
