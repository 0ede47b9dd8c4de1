"""Lists the packages that an image needs beside those that every image has."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tutorial_lib.archives.building import read_manifest
from tutorial_lib.errors import ImageError

# A name, extras in brackets, then a version, a URL or a condition. Paths and options begin otherwise.
_REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]* *(\[[\w ,.-]*\])? *([<>=!~;@(].*)?")


def check_packages(packages: Sequence[str]) -> list[str]:
    """Returns the packages as lines of a requirements file.

    Raises:
        TypeError: it is no list of texts.
        ValueError: one of them is no requirement.

    >>> check_packages(["scikit-learn", "onnxruntime==1.32.0"])
    ['scikit-learn', 'onnxruntime==1.32.0']
    >>> check_packages(["-r requirements.txt"])
    Traceback (most recent call last):
    ValueError: packages has '-r requirements.txt'. Give names, with a version or without: "scikit-learn", ...
    """
    advice = 'Give names, with a version or without: "scikit-learn", "onnxruntime==1.32.0".'
    if isinstance(packages, str) or not isinstance(packages, Sequence):
        raise TypeError(f'packages is {packages!r:.100}. Give a list, as ["scikit-learn"].')
    for package in packages:
        if not isinstance(package, str):
            raise TypeError(f"packages has {package!r:.100}. {advice}")
        if not _REQUIREMENT.fullmatch(package):
            raise ValueError(f"packages has {package!r:.100}. {advice}")
    return list(packages)


def requirements(archive: Path, packages: Sequence[str]) -> list[str]:
    """Returns the lines of a requirements file: the packages, and what the archive says that it needs.

    An archive may have a requirements file of its own. A model in ONNX's format needs onnxruntime; a line may
    name another build of it, such as onnxruntime-gpu.

    Args:
        archive: the .mar, of which `read_manifest` can read the manifest.
        packages: as `check_packages` returns them.
    """
    lines = list(packages)
    with zipfile.ZipFile(archive) as mar:
        if own := read_manifest(archive)["model"].get("requirementsFile"):
            lines += mar.read(own).decode("utf-8-sig", errors="replace").splitlines()
        has_onnx = any(name.endswith(".onnx") for name in mar.namelist())
    if has_onnx and not any(line.lower().startswith("onnxruntime") for line in lines):
        lines.append("onnxruntime")
    return lines


def refuse_passwords(values: Mapping[str, str]) -> None:
    """Checks that no URL has a user name or password, since an image shows its files and its history.

    Args:
        values: what goes into the image, by the name that the message gives it.

    Raises:
        ImageError: a URL has one.

    >>> refuse_passwords({"TORCH_INDEX": "https://me:mine@example.org/whl"})
    Traceback (most recent call last):
    tutorial_lib.errors.ImageError: TORCH_INDEX has a URL with a user name or password, which all...
    """
    for name, value in values.items():
        if re.search(r"https?://[^/\s]*@", value):
            raise ImageError(
                f"{name} has a URL with a user name or password, which all who have the image could read. "
                "Put the URL into pip's settings, as PIP_EXTRA_INDEX_URL: only the build reads them."
            )
