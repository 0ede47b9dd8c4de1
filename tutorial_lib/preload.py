"""Starts workers with their imports done: forks of a process that has imported torch and the like once.

Of the seconds that a worker takes to start, most are imports. A process that has done them and forks gives a
worker in a tenth of a second; Python's multiprocessing calls this a fork server. It is for development and
for tests, where servers start often.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from tutorial_lib.errors import PackageMissing
from tutorial_lib.preload_python import VARIABLE
from tutorial_lib.processes import end_processes, new_folder

# What a worker imports itself, and what a handler with a model of transformers imports. Not
# ts.torch_handler.base_handler: it imports onnxruntime, which starts a thread, and a fork has no such thread.
MODULES = (
    "ts.model_service_worker",
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
# This library may be found along PYTHONPATH alone, which each worker has its own of.
_RUN = (
    "import sys; path = sys.path[1:]; sys.path[0] = sys.argv.pop(1); "
    "from tutorial_lib.preload_process import main; main(path)"
)
POSSIBLE = sys.platform == "linux"  # elsewhere system libraries do not survive a fork


@contextlib.contextmanager
def preloaded(*packages: str) -> Iterator[None]:
    """Within the `with` block, each `TorchServe` starts its workers as forks, also those of child processes.

    Workers are forked from one process, which imports once: TorchServe's worker code, torch, transformers if
    it is installed, and your packages. A worker that a fork can't replace (its archive brings a module of its
    own in place of a loaded one, or variables such as OMP_NUM_THREADS differ) starts as a new process, as do
    all workers elsewhere than on Linux. A server that outlives the block starts its workers anew.

    Args:
        packages: more modules to import, such as "torchvision"; none that starts threads or uses a GPU when
            it is imported.

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
    folder, before = new_folder(), os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder)
    process = start(folder, {**os.environ, "TEMP": str(folder)}, packages)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
        end_processes(folder, grace=0)
        with process:
            shutil.rmtree(folder, ignore_errors=True)


def check_packages(packages: Sequence[str]) -> None:
    """Checks that the packages to preload are installed.

    Raises:
        PackageMissing: one of them is not.

    >>> check_packages(["no_such_package"])
    Traceback (most recent call last):
    tutorial_lib.errors.PackageMissing: preloading needs the package no_such_package, which is not...
    """
    for package in packages:
        if find_spec(package.partition(".")[0]) is None:
            raise PackageMissing("preloading", package, package)


def start(folder: Path, environment: Mapping[str, str], packages: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts a preloading process; does not wait for its imports.

    Args:
        folder: where its socket will be.
        environment: its variables, which workers should have too; TEMP tells whose process it is.
        packages: modules to import beside `MODULES`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name, start(Path(name), os.environ, []) as process:
    ...     process.poll()
    ...     process.kill()
    """
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(Path(__file__).parents[1]), str(folder), *MODULES, *packages],
        cwd=folder,
        env={name: value for name, value in environment.items() if name != "PYTHONPATH"},
        stdin=subprocess.PIPE,  # ends with this process
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def python_for(folder: Path, environment: Mapping[str, str]) -> str:
    """Returns the `python` to give to a server: one that asks for forks, if its variables name a process.

    Args:
        folder: the server's, where the program is written.
        environment: the server's variables.

    >>> python_for(Path("/no/such/folder"), {}) == sys.executable
    True
    """
    if VARIABLE not in environment or not POSSIBLE:
        return sys.executable
    python, script = folder / "python", folder / "preload_python.py"
    script.write_bytes(pkgutil.get_data(__name__, script.name) or b"")  # this library may be in a zip file
    command = [sys.executable, "-ISE", str(script)]  # -S: it needs no packages
    python.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    python.chmod(0o700)
    # A folder for temporary files may be one in which no program may run.
    return str(python) if os.access(python, os.X_OK) else sys.executable
