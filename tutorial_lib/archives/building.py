"""Packs model archives with torch-model-archiver, avoids its traps, and copies unpacked ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Unpack

from tutorial_lib.archives.copying import copy, writing
from tutorial_lib.archives.model_files import (
    FileKeywords,
    Inputs,
    ModelFiles,
    check,
    check_path,
    edits_of,
    gather,
    gather_version,
    is_built_in,
    loads_with_torchserve,
)
from tutorial_lib.archives.model_files import check_loads as check_that_it_loads
from tutorial_lib.archives.reading import (
    MANIFEST,
    archive_sha256,
    check_files,
    check_sha256,
    copy_checked,
    python_files,
    read_code,
    read_manifest,
    read_settings,
    unpack,
)
from tutorial_lib.errors import ArchiveError
from tutorial_lib.extras import extra

__all__ = [
    "NAME",
    "NAME_ADVICE",
    "ArchiveFormat",
    "archive_sha256",
    "build_archive",
    "check_files",
    "check_sha256",
    "copy_checked",
    "lay_out",
    "new_version",
    "python_files",
    "read_code",
    "read_manifest",
    "read_settings",
    "unpack",
]

ArchiveFormat = Literal["default", "zip-store", "no-archive", "tgz"]
# The names that archives and served models may have: one word in a log, a path, a URL and a label.
NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
NAME_ADVICE = "Use letters, digits, '_', '-' and '.', and begin with a letter or a digit."
_SUFFIX = {"default": ".mar", "zip-store": ".mar", "no-archive": "", "tgz": ".tar.gz"}


def build_archive(
    name: str,
    files: ModelFiles | None = None,
    *,
    export_path: str | Path = "model_store",
    version: str = "1.0",
    archive_format: ArchiveFormat = "zip-store",
    check_loads: bool = True,
    **keywords: Unpack[FileKeywords],
) -> Path:
    """Packs a handler, a model and the files around them into one archive.

    An earlier archive of that name is replaced when the new one is complete. The files are checked first, for
    what would fail on the server or answer wrongly there: labels, settings, a handler's classes and imports,
    weights that do not fit.

    Args:
        name: the archive's name; the file is `<name>.mar`.
        files: what goes in; or its fields as keywords: `build_archive("price", handler="price_handler.py")`.
        export_path: the model store; made if it is not there.
        version: the version that clients may ask for, as in /predictions/my_model/1.0.
        archive_format: "zip-store" does not compress: compressing 540 MB took 22 s instead of 1 s, and
            trained float32 weights shrink by 7 % (those widened from float16, as the embedded model's,
            by 40 %). "no-archive" writes a folder.
        check_loads: run the handler and the model file, to prove that they load. False for files of others
            whose code must not run on this machine.
        keywords: the fields of `ModelFiles`, if `files` is left out.

    Raises:
        ArchiveError: a file is missing or wrong, two files have one name, the model does not load, or the
            archiver failed.
        PackageMissing: the archiver is not installed.

    >>> build_archive("skeleton", handler="handler.py", export_path="build").name
    'skeleton.mar'
    """
    _check_arguments(name, version, archive_format)
    inputs = gather(ModelFiles.of(files, keywords))
    check(inputs)
    store = check_path("export_path", export_path)
    if store is None:
        raise ArchiveError("export_path is None. Give a path.")
    _check_store(store, inputs)
    archive = store / f"{name}{_SUFFIX[archive_format]}"
    with writing("The archive", store):
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".archive-", dir=store) as folder:
            scratch = Path(folder).absolute()
            if check_loads and loads_with_torchserve(inputs.handler):
                _write(scratch / "unpacked", inputs)
                check_that_it_loads(scratch / "unpacked", inputs)
                shutil.rmtree(scratch / "unpacked")
            options = ["--model-name", name, "--version", version, "--archive-format", archive_format]
            _run_archiver([*options, *_file_options(inputs, scratch)], scratch)
            _replace(archive, scratch / "out" / archive.name)
    return archive


def lay_out(folder: str | Path, files: ModelFiles | None = None, **keywords: Unpack[FileKeywords]) -> None:
    """Writes the files that an archive of these files would unpack to, without packing an archive.

    The files are copies: what is done to them changes none of yours. Their content is not checked, so that
    tests can see what a handler does with a broken model.

    Args:
        folder: the folder to write into; made if it is not there.
        files, keywords: as for `build_archive`.

    Raises:
        ArchiveError: a file is missing or can't be read, two have one name, or the folder can't be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> lay_out(folder, handler="handler.py", extra_files=["index_to_name.json"])
    >>> sorted(file.name for file in folder.iterdir())
    ['MAR-INF', 'handler.py', 'index_to_name.json']
    """
    inputs = gather(ModelFiles.of(files, keywords))
    with writing("The files", Path(folder)):
        _write(Path(folder), inputs)


def new_version(
    source: str | Path,
    target: str | Path,
    files: ModelFiles | None = None,
    *,
    version: str,
    **keywords: Unpack[FileKeywords],
) -> None:
    """Copies an unpacked archive as a new version, with edited files in place of their old ones.

    All files are copied, so that what the new version does with its files changes neither the old version nor
    the edited files. They are checked first, as in `build_archive`.

    Args:
        source: the unpacked archive.
        target: the folder to make; it may exist already, but must be empty.
        files: the edited files; or as keywords those that change, without those that stay. New weights
            replace the old ones, and take their name.
        version: the new version.
        keywords: the fields of `ModelFiles`, but for model_dir.

    Raises:
        ArchiveError: a file is missing or wrong, or `source` is no unpacked archive.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> lay_out(folder / "old", handler="handler.py")
    >>> new_version(folder / "old", folder / "new", version="1.1", extra_files=["metrics.yaml"])
    >>> read_manifest(folder / "new")["model"]["modelVersion"]
    '1.1'
    """
    manifest = read_manifest(source)
    inputs = gather_version(Path(source), manifest["model"], edits_of(files, keywords))
    check(inputs)
    with writing("The new version", Path(target)):
        _write(Path(target), inputs)
        manifest["model"] |= read_manifest(target)["model"] | {
            "modelName": manifest["model"]["modelName"],
            "modelVersion": version,
        }
        _write_manifest(Path(target), manifest)


def _write(folder: Path, inputs: Inputs) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in inputs.files:
        copy(file, folder / inputs.name(file))
    single = {
        "modelFile": inputs.model_file,
        "serializedFile": inputs.serialized_file,
        "configFile": inputs.config_file,
        "requirementsFile": inputs.requirements_file,
    }
    model = {"modelName": "model", "modelVersion": "1.0", "handler": Path(inputs.handler).name}
    model |= {key: inputs.name(file) for key, file in single.items() if file is not None}
    _write_manifest(folder, {"runtime": "python", "model": model, "archiverVersion": "0.12.0"})


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    file = folder / MANIFEST
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _check_arguments(name: str, version: str, archive_format: str) -> None:
    if archive_format not in _SUFFIX:
        raise ArchiveError(f"Unknown archive format {archive_format!r}; use one of {[*_SUFFIX]}.")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ArchiveError(f"{name!r} can't be an archive's name. {NAME_ADVICE}")
    if not isinstance(version, str) or not NAME.fullmatch(version) or version == "all":
        raise ArchiveError(
            f"version is {version!r}. Give a text, as '1.0', other than 'all', which asks for every version. "
            f"{NAME_ADVICE}"
        )
    with extra("serving", "build_archive"):
        import_module("model_archiver")


def _check_store(store: Path, inputs: Inputs) -> None:
    """Checks that the archive is not written into a folder that goes into the archive."""
    for folder in (*inputs.extra_files, inputs.model_dir):
        if folder is not None and folder.is_dir() and store.resolve().is_relative_to(folder.resolve()):
            raise ArchiveError(
                f"The archive would hold itself: export_path {store} is in {folder}, which goes into the "
                "archive. Give an export_path outside of that folder."
            )


def _file_options(inputs: Inputs, scratch: Path) -> list[str]:
    """Returns the archiver's options for files.

    The archiver flattens folders among the extra files and splits their paths at commas. So the extra files
    are copied into one folder under their own names, which keeps folders and commas.
    """
    extras = scratch / "extra"
    extras.mkdir()
    for file in inputs.extra_files:
        copy(file, extras / file.name)
    single = {
        "--model-file": inputs.model_file,
        "--serialized-file": inputs.serialized_file,
        "--config-file": inputs.config_file,
        "--requirements-file": inputs.requirements_file,
    }
    handler = inputs.handler if is_built_in(inputs.handler) else str(Path(inputs.handler).absolute())
    options = ["--handler", handler]
    for option, path in single.items():
        options += [option, str(path.absolute())] if path is not None else []
    return [*options, "--extra-files", extras.name] if inputs.extra_files else options


def _run_archiver(options: list[str], scratch: Path) -> None:
    """Runs the archiver with its own temporary folder: it deletes `$TMPDIR/<model-name>` if that is there."""
    temp, out = scratch / "tmp", scratch / "out"
    temp.mkdir()
    out.mkdir()
    run = subprocess.run(
        [sys.executable, "-m", "model_archiver.model_packaging", *options, "--export-path", str(out)],
        cwd=scratch,
        env={**os.environ, "TMPDIR": str(temp), "TEMP": str(temp), "TMP": str(temp)},
        capture_output=True,
        text=True,
    )
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise ArchiveError(
            f"torch-model-archiver failed (exit status {run.returncode}): {last}\n"
            f"Its options: {' '.join(options)}"
        )


def _replace(archive: Path, whole: Path) -> None:
    if archive.is_dir():
        shutil.rmtree(archive)
    whole.replace(archive)
