"""Says what to install if a module needs a package that is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

from tutorial_lib.errors import PackageMissing

DISTRIBUTION = "torchserve-course"


@contextlib.contextmanager
def extra(name: str, what: str, *packages: str) -> Iterator[None]:
    """Wraps the imports of packages that an extra of this distribution installs.

    Args:
        name: the extra, as in `pip install 'torchserve-course[load]'`.
        what: what needs the packages, as the message names it.
        packages: the names of those that are imported later, when they are used.

    Raises:
        PackageMissing: an import in the block failed because a package is not installed, or one of
            `packages` is not.

    >>> with extra("load", "load_test"):
    ...     import no_such_package
    Traceback (most recent call last):
    tutorial_lib.errors.PackageMissing: load_test needs the package no_such_package, which is not installed...
    """
    need(name, what, *packages)
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise PackageMissing(what, package, f"{DISTRIBUTION}[{name}]") from error


def need(name: str, what: str, *packages: str) -> None:
    """Checks that packages that are imported later, or by another process, are installed.

    Args:
        name: the extra that installs them.
        what: what needs them, as the message names it.
        packages: the names to import.

    Raises:
        PackageMissing: one of them is not installed.

    >>> need("serving", "TorchServe", "json", "no_such_package")
    Traceback (most recent call last):
    tutorial_lib.errors.PackageMissing: TorchServe needs the package no_such_package, which is not...
    """
    for package in packages:
        if find_spec(package) is None:
            raise PackageMissing(what, package, f"{DISTRIBUTION}[{name}]")
