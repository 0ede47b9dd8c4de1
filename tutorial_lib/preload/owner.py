"""Starts workers in tenths of a second: as forks of a process that has imported torch and transformers.

A worker spends most of its start on imports. A process that has finished these imports can fork a worker at
once; Python's multiprocessing calls such a process a fork server. Use it for development and tests, where
servers start often.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from tutorial_lib.errors import PackageMissing
from tutorial_lib.preload import python as preload_python
from tutorial_lib.preload.python import VARIABLE
from tutorial_lib.processes import end_processes, new_folder, remove_folder, start_owned
from tutorial_lib.servers.java import utf8_locale

# What a worker imports, and what a handler with a model of transformers imports. Without
# ts.torch_handler.base_handler: it imports onnxruntime, which starts a thread that a fork would not have.
MODULES = (
    "ts.model_service_worker",
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
# Without PYTHONPATH, because each worker has its own; yet this library may be on it.
_RUN = (
    "import sys; path = sys.path[1:]; sys.path[0] = sys.argv.pop(1); "
    "from tutorial_lib.preload.process import main; main(path)"
)
POSSIBLE = sys.platform == "linux"  # elsewhere a fork may break the system's libraries


@contextlib.contextmanager
def preloaded(*packages: str) -> Iterator[None]:
    """Makes each `TorchServe` in the `with` block start its workers as forks, in child processes too.

    One process imports TorchServe's worker code, torch, transformers if it is installed, and your packages;
    all workers are forks of that process. A worker starts as a new process, and says so in the model log, if
    a fork would differ: if its archive has its own version of an imported module, or if variables such as
    OMP_NUM_THREADS have other values. Elsewhere than on Linux all workers start as new processes. If a
    server outlives the block, its workers are started again, as new processes. Not tested with a GPU.

    Args:
        packages: more modules to import, such as "torchvision". They must not start threads or use a GPU when
            they are imported.

    Raises:
        PackageMissing: a package is not installed.

    >>> with preloaded():
    ...     VARIABLE in os.environ
    True
    """
    check_packages(packages)
    if not POSSIBLE:
        yield
        return
    owner, folder, before = os.getpid(), new_folder(), os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder)
    # With the locale that a server gives its workers.
    process = start(folder, {**os.environ, **utf8_locale(os.environ), "TEMP": str(folder)}, packages)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
        if os.getpid() == owner:  # a fork of the owner leaves the block too
            end_processes(folder, grace=0)
            with process:
                remove_folder(folder)


def check_packages(packages: Sequence[str]) -> None:
    """Raises PackageMissing if one of the packages to preload is not installed."""
    for package in packages:
        if find_spec(package.partition(".")[0]) is None:
            raise PackageMissing("preloading", package, package)


def start(folder: Path, environment: Mapping[str, str], packages: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts a preloading process; does not wait for its imports.

    Args:
        folder: where its socket will be.
        environment: its variables, which workers should have too; `processes_of` finds it by TEMP.
        packages: modules to import beside `MODULES`.
    """
    command = [sys.executable, "-c", _RUN, str(Path(__file__).parents[2]), str(folder), *MODULES, *packages]
    # A fork then prints a traceback at a segmentation fault, as other workers of a server do.
    variables = {"PYTHONFAULTHANDLER": "1", **environment}
    variables.pop("PYTHONPATH", None)
    return start_owned(command, folder, variables, subprocess.DEVNULL)


def python_for(folder: Path, environment: Mapping[str, str]) -> str:
    """Returns the program that starts workers: Python, or one in the server's folder that requests forks."""
    if VARIABLE not in environment or not POSSIBLE:
        return sys.executable
    python = folder / "python"
    command = [sys.executable, "-ISE", preload_python.__file__]  # -S: it needs no packages
    python.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    python.chmod(0o700)
    # A file system may forbid to run programs (noexec).
    return str(python) if os.access(python, os.X_OK) else sys.executable
