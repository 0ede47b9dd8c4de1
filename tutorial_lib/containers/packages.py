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
        TypeError: it is no list: of a text, each letter would be a package.
        ValueError: one of them is no requirement.

    >>> check_packages(["scikit-learn", "onnxruntime==1.32.0"])
    ['scikit-learn', 'onnxruntime==1.32.0']
    """
    if isinstance(packages, str) or not isinstance(packages, Sequence):
        raise TypeError(f'packages is {packages!r:.100}. Give a list, as ["scikit-learn"].')
    for package in packages:
        if not _REQUIREMENT.fullmatch(package):
            raise ValueError(
                f"packages has {package!r:.100}. "
                'Give names, with a version or without: "scikit-learn", "onnxruntime==1.32.0".'
            )
    return list(packages)


def requirements(archive: Path, packages: Sequence[str]) -> list[str]:
    """Returns the lines of a requirements file: the packages, and what the archive says that it needs.

    A model in ONNX's format needs onnxruntime, unless a line names another build, such as onnxruntime-gpu.
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
    """Raises ImageError if a URL has a user name or password: an image shows its files and its history.

    Args:
        values: what goes into the image, by the name that the message gives it.

    >>> refuse_passwords({"TORCH_INDEX": "https://example.org/whl"})
    """
    for name, value in values.items():
        if re.search(r"https?://[^/\s]*@", value):
            raise ImageError(
                f"{name} has a URL with a user name or password, which all who have the image could read. "
                "Put the URL into pip's settings, as PIP_EXTRA_INDEX_URL: only the build reads them."
            )
