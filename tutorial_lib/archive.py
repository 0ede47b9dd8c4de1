"""Packs model archives with torch-model-archiver, avoids its traps, and reads, unpacks and copies them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import yaml

from tutorial_lib.archive_files import copy, writing
from tutorial_lib.archive_inputs import (
    Inputs,
    check,
    check_loads,
    check_path,
    gather,
    gather_version,
    is_built_in,
    loads_with_torchserve,
)
from tutorial_lib.errors import ArchiveError
from tutorial_lib.extras import extra

ArchiveFormat = Literal["default", "zip-store", "no-archive", "tgz"]
# The names that archives and served models may have: one word in a log, a path, a URL and a label.
NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
NAME_ADVICE = "Use letters, digits, '_', '-' and '.', and begin with a letter or a digit."
_SUFFIX = {"default": ".mar", "zip-store": ".mar", "no-archive": "", "tgz": ".tar.gz"}
_MANIFEST = "MAR-INF/MANIFEST.json"
# The errors that reading a broken archive raises.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
)


def build_archive(
    name: str,
    *,
    handler: str | Path,
    model_dir: str | Path | None = None,
    model_file: str | Path | None = None,
    serialized_file: str | Path | None = None,
    extra_files: Sequence[str | Path] = (),
    config_file: str | Path | None = None,
    requirements_file: str | Path | None = None,
    export_path: str | Path = "model_store",
    version: str = "1.0",
    archive_format: ArchiveFormat = "zip-store",
) -> Path:
    """Packs a handler, a model and the files around them into one archive.

    A model is a folder from `export_model`, or your own: weights with the Python file that defines their
    class, TorchScript, or any file that the handler loads itself. An earlier archive of that name is replaced
    when the new one is complete. The files are checked first, for what would fail on the server or answer
    wrongly there: labels, settings, a handler's classes and imports, weights that do not fit.

    Args:
        name: the archive's name; the file is `<name>.mar`.
        handler: a Python file, or the name of one of TorchServe's own handlers ("image_classifier").
        model_dir: a folder from `export_model`: model.safetensors becomes the serialized file, all other
            files and folders become extra files. None for another kind of model, or for no model.
        model_file: the Python file that defines the model's class, and no other class. TorchServe's
            BaseHandler calls the class without arguments and loads the serialized file into it.
        serialized_file: with a model file, its state_dict; else TorchScript (.pt), or what the handler's
            own `initialize` loads (.pt2, .onnx, …).
        extra_files: more files to put in, as index_to_name.json. A folder keeps its name in the archive, so
            that the handler can import a package.
        config_file: per-model settings (YAML): workers, batching, the handler's own options.
        requirements_file: pip requirements; TorchServe ignores them unless its config says
            install_py_dep_per_model=true.
        export_path: the model store; made if it is not there.
        version: the version that clients may ask for, as in /predictions/my_model/1.0.
        archive_format: "zip-store" does not compress: compressing 540 MB took 22 s instead of 1 s, and
            trained float32 weights shrink by 7 % (those widened from float16, as the embedded model's,
            by 40 %). "no-archive" writes a folder.

    Raises:
        ArchiveError: a file is missing or wrong, two files have one name, the model does not load, or the
            archiver failed.
        PackageMissing: the archiver is not installed.

    >>> build_archive("skeleton", handler="no_such_handler.py")
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: There is no handler file no_such_handler.py. Check the path.
    """
    _check_arguments(name, version, archive_format)
    inputs = gather(
        handler,
        model_dir=model_dir,
        model_file=model_file,
        serialized_file=serialized_file,
        extra_files=extra_files,
        config_file=config_file,
        requirements_file=requirements_file,
    )
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
            if loads_with_torchserve(inputs.handler):
                _write(scratch / "unpacked", inputs)
                check_loads(scratch / "unpacked", inputs)
                shutil.rmtree(scratch / "unpacked")
            options = ["--model-name", name, "--version", version, "--archive-format", archive_format]
            _run_archiver([*options, *_file_options(inputs, scratch)], scratch)
            _replace(archive, scratch / "out" / archive.name)
    return archive


def archive_sha256(archive: str | Path) -> str:
    """Returns the SHA-256 of an archive, 64 hex digits, as `sha256sum` gives it for a file.

    For an archive that is a folder, it is the SHA-256 of the lines "<SHA-256>  <path>" of its files, sorted
    by path. An archive holds code, and whoever can change it can change any digest in it or beside it. Keep
    this digest where they can't, as in version control.

    Raises:
        ArchiveError: there is no such archive.

    >>> archive_sha256("handler.py") == archive_sha256("handler.py"), len(archive_sha256("handler.py"))
    (True, 64)
    """
    archive = Path(archive)
    if not archive.exists():
        raise _missing(archive)
    if archive.is_dir():
        names = sorted(file.relative_to(archive).as_posix() for file in archive.rglob("*") if file.is_file())
        lines = "".join(f"{archive_sha256(archive / name)}  {name}\n" for name in names)
        return hashlib.sha256(lines.encode()).hexdigest()
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(archive: str | Path, expected: str) -> None:
    """Checks that an archive has the expected SHA-256.

    Raises:
        ArchiveError: the archive has another SHA-256, or is not there.
    """
    found = archive_sha256(archive)
    if found != expected.strip().lower():
        raise ArchiveError(
            f"{archive} is not the archive that is accounted for: its SHA-256 is {found}, and {expected} was "
            "expected. Don't serve it: find out who changed it, or build it anew and note its archive_sha256."
        )


def read_manifest(archive: str | Path, *, sha256: str | None = None) -> dict[str, Any]:
    """Returns the manifest of an archive in any format: a .mar, a folder, or a .tar.gz.

    Args:
        archive: its path.
        sha256: the `archive_sha256` that it must have; None to accept any.

    Returns:
        createdOn, runtime, archiverVersion, and model: modelName, modelVersion, handler, and, if given,
        serializedFile, modelFile, configFile, requirementsFile.

    Raises:
        ArchiveError: there is no such archive, it is not one, or it is not the expected one.

    >>> read_manifest("missing.mar")
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: There is no archive missing.mar. Build it with build_archive.
    """
    archive = Path(archive)
    if not archive.exists():
        raise _missing(archive)
    if sha256 is not None:
        check_sha256(archive, sha256)
    try:
        manifest = json.loads(_read_file(archive, _MANIFEST))
        if not isinstance(manifest, dict) or "modelName" not in manifest["model"]:
            raise ValueError("it names no model")
    except _UNREADABLE as error:
        raise ArchiveError(
            f"{archive} is not a model archive: {_cause(error)}. Build it anew with build_archive, "
            "or fetch it again if it was cut off."
        ) from error
    return manifest


def check_files(archive: str | Path) -> None:
    """Checks that an archive has each file that its manifest names.

    Raises:
        ArchiveError: the archive lacks a file, or is no archive.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> lay_out(folder, handler="handler.py")
    >>> (folder / "handler.py").unlink()
    >>> check_files(folder)
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: ... has no file handler.py, which its manifest names as its handler...
    """
    model = read_manifest(archive)["model"]
    if not model.get("handler"):
        raise ArchiveError(f"The manifest of {archive} names no handler. Build it anew with build_archive.")
    handler = str(model["handler"]).partition(":")[0]  # module.py:function
    named = {"handler": handler if handler.endswith(".py") else None}  # else TorchServe's, or a package's
    for key in ("modelFile", "serializedFile", "configFile", "requirementsFile"):
        named[key] = model.get(key)
    there = set(_names(Path(archive)))
    for key, name in named.items():
        if name and name not in there:
            raise ArchiveError(
                f"{archive} has no file {name}, which its manifest names as its {key}. Build it anew with "
                "build_archive."
            )


def read_settings(archive: str | Path) -> dict[str, Any]:
    """Returns the model config (YAML) of an archive: workers, batching, and the handler's own options.

    Args:
        archive: a .mar, a .tar.gz, or a folder, as an unpacked archive.

    Returns:
        the settings as TorchServe's handlers get them in `context.model_yaml_config`; {} if the archive
        has no config file.

    Raises:
        ArchiveError: the archive or its config file can't be read, or the file has no settings.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> lay_out(folder, handler="handler.py", config_file="model-config.yaml")
    >>> read_settings(folder)["minWorkers"]
    1
    """
    archive = Path(archive)
    name = read_manifest(archive)["model"].get("configFile")
    if not name:
        return {}
    try:
        settings = yaml.safe_load(_read_file(archive, name).decode("utf-8"))
    except (*_UNREADABLE, yaml.YAMLError) as error:
        raise ArchiveError(f"The config file {name} of {archive} can't be read: {error}. Fix it.") from error
    if settings is not None and not isinstance(settings, dict):
        raise ArchiveError(f"The config file {name} of {archive} has no settings (key: value). Fix it.")
    return settings or {}


def python_files(archive: str | Path) -> set[str]:
    """Returns the files that the archive's code can import from the archive itself.

    A worker looks for these names along PYTHONPATH before it looks in the archive.

    Returns:
        the names of the Python files at the archive's top, and "<package>/__init__.py" of each package.

    Raises:
        ArchiveError: there is no such archive, or it is not one.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> lay_out(folder, handler="handler.py", extra_files=["metrics.yaml"])
    >>> python_files(folder)
    {'handler.py'}
    """
    read_manifest(archive)
    names = _names(Path(archive))
    return {
        name
        for name in names
        if (name.endswith(".py") and "/" not in name)
        or (name.count("/") == 1 and name.endswith("/__init__.py"))
    }


def read_code(archive: str | Path) -> str:
    """Returns the text of the archive's `python_files`, one after the other."""
    names = sorted(python_files(archive))
    return "\n".join(_read_file(Path(archive), name).decode("utf-8", errors="replace") for name in names)


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpacks an archive as TorchServe does: its files lie directly in `folder`, which appears when complete.

    Args:
        archive: a .mar, a .tar.gz, or a folder, which is copied.
        folder: the folder to unpack into; it may exist already, but must be empty.

    Raises:
        ArchiveError: the archive is missing or broken, or the folder is not empty or can't be written to.

    >>> unpack("missing.mar", "build/missing")
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: There is no archive missing.mar. Build it with build_archive.
    """
    archive, folder = Path(archive), Path(folder)
    read_manifest(archive)
    if folder.is_dir() and any(folder.iterdir()):
        raise ArchiveError(f"The folder {folder} is not empty. Name another one, or empty this one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as scratch:
        whole = Path(scratch) / "whole"
        try:
            _extract(archive, whole)
        except _UNREADABLE as error:
            raise ArchiveError(
                f"{archive} can't be unpacked: {error}. Build it anew with build_archive."
            ) from error
        whole.rename(folder)


def lay_out(
    folder: str | Path,
    *,
    handler: str | Path,
    model_dir: str | Path | None = None,
    model_file: str | Path | None = None,
    serialized_file: str | Path | None = None,
    extra_files: Sequence[str | Path] = (),
    config_file: str | Path | None = None,
) -> None:
    """Writes the files that an archive of these files would unpack to, without packing an archive.

    The files are copies: what is done to them changes none of yours. Their content is not checked, so that
    tests can see what a handler does with a broken model.

    Args:
        folder: the folder to write into; made if it is not there.
        handler, model_dir, model_file, serialized_file, extra_files, config_file: as for `build_archive`.

    Raises:
        ArchiveError: a file is missing or can't be read, two have one name, or the folder can't be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> lay_out(folder, handler="handler.py", extra_files=["index_to_name.json"])
    >>> sorted(file.name for file in folder.iterdir())
    ['MAR-INF', 'handler.py', 'index_to_name.json']
    """
    inputs = gather(
        handler,
        model_dir=model_dir,
        model_file=model_file,
        serialized_file=serialized_file,
        extra_files=extra_files,
        config_file=config_file,
    )
    with writing("The files", Path(folder)):
        _write(Path(folder), inputs)


def new_version(
    source: str | Path,
    target: str | Path,
    *,
    version: str,
    handler: str | Path | None = None,
    model_file: str | Path | None = None,
    serialized_file: str | Path | None = None,
    config_file: str | Path | None = None,
    extra_files: Sequence[str | Path] = (),
) -> None:
    """Copies an unpacked archive as a new version, with edited files in place of their old ones.

    All files are copied, so that what the new version does with its files changes neither the old version nor
    the edited files. They are checked first, as in `build_archive`.

    Args:
        source: the unpacked archive.
        target: the folder to make; it may exist already, but must be empty.
        version: the new version.
        handler, model_file, serialized_file, config_file, extra_files: the edited files; leave
            out those that stay. New weights replace the old ones, and take their name.

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
    edits = {
        "handler": handler,
        "modelFile": model_file,
        "serializedFile": serialized_file,
        "configFile": config_file,
    }
    inputs = gather_version(Path(source), manifest["model"], edits, extra_files)
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
    file = folder / _MANIFEST
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _read_file(archive: Path, name: str) -> bytes:
    """Reads a file of an archive; a .tar.gz of the archiver has all files in a folder of the model's name."""
    if archive.is_dir():
        return (archive / name).read_bytes()
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            member = next((m for m in tar if _tar_name(m) == name), None)
            content = tar.extractfile(member) if member else None
            if content is None:
                raise KeyError(name)
            return content.read()
    with zipfile.ZipFile(archive) as mar:
        return mar.read(name)


def _names(archive: Path) -> list[str]:
    """Returns the paths of all files of an archive, relative to its top."""
    if archive.is_dir():
        return [file.relative_to(archive).as_posix() for file in archive.rglob("*") if file.is_file()]
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            return [_tar_name(member) for member in tar if member.isfile()]
    with zipfile.ZipFile(archive) as mar:
        return mar.namelist()


def _tar_name(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./").partition("/")[2]


def _extract(archive: Path, folder: Path) -> None:
    if archive.is_dir():
        shutil.copytree(archive, folder)
    elif archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            for member in tar:
                _extract_member(tar, member, folder)
    else:
        with zipfile.ZipFile(archive) as mar:
            mar.extractall(folder)


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Writes plain files only: links and devices, which the archiver never packs, could lead outside."""
    name = _tar_name(member)
    if not name or member.isdir():
        return
    content = tar.extractfile(member) if member.isfile() else None
    if content is None or ".." in name.split("/"):
        raise ValueError(f"{member.name} is not a plain file inside it")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


def _missing(archive: Path) -> ArchiveError:
    full = archive.with_name(f"{archive.name}.mar")
    advice = f"Did you mean {full}?" if full.is_file() else "Build it with build_archive."
    return ArchiveError(f"There is no archive {archive}. {advice}")


def _cause(error: Exception) -> str:
    if isinstance(error, (KeyError, FileNotFoundError)):
        return f"it has no {_MANIFEST}"
    return str(error)


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
