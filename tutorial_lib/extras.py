"""Says what to install if a module needs a package that is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

from tutorial_lib.errors import PackageMissing

DISTRIBUTION = "torchserve-course"


@contextlib.contextmanager
def extra(name: str, what: str, *packages: str) -> Iterator[None]:
    """Wraps imports that need an extra; takes the arguments of `need`.

    Raises:
        PackageMissing: an import in the block failed, or one of `packages` is not installed.

    >>> with extra("load", "load_test", "pandas"):
    ...     import aiohttp
    """
    need(name, what, *packages)
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise PackageMissing(what, package, f"{DISTRIBUTION}[{name}]") from error


def need(name: str, what: str, *packages: str) -> None:
    """Checks that packages which are imported later, or by another process, are installed.

    Args:
        name: the extra that installs them, as in `pip install 'torchserve-course[load]'`.
        what: what needs them, as the message names it.
        packages: the names to import.

    Raises:
        PackageMissing: one of them is not installed.

    >>> need("serving", "TorchServe", "ts")
    """
    for package in packages:
        if find_spec(package) is None:
            raise PackageMissing(what, package, f"{DISTRIBUTION}[{name}]")
