"""Reads, checks and unpacks model archives that others may have made: nothing in one is trusted."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple

import yaml

from tutorial_lib.errors import ArchiveError, explain_os_error

MANIFEST = "MAR-INF/MANIFEST.json"
MAX_METADATA = 1 << 20  # bytes of a manifest, of a config file, and of a tar's header
MAX_SETTINGS = 100_000  # values of a config file, with its aliases expanded
MAX_FILES = 100_000  # files of an archive
MAX_RATIO = 100  # bytes unpacked for each byte of an archive; weights give 2 at most
ANY_RATIO = 64 << 20  # bytes; an archive that unpacks to less may compress as well as it likes
_NAMED_FILES = ("modelFile", "serializedFile", "configFile", "requirementsFile")
# The errors that reading a broken archive raises.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    RecursionError,
    RuntimeError,  # an encrypted .mar, an unknown compression
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
)


class WrongDigest(ArchiveError):
    """An archive is not the one whose SHA-256 was given."""


class _Member(NamedTuple):
    """A file of an archive: its path below the archive's top, its declared size in bytes, its content."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


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
    try:
        if archive.is_dir():
            with _members(archive) as members:
                digests = {name: _digest(member.open) for name, member in members.items()}
            # No name has a backslash, so that this is the only name that is written so.
            written = {name: name.replace("\n", "\\n") for name in sorted(digests)}
            lines = (f"{digests[name]}  {line}\n" for name, line in written.items())
            return hashlib.sha256("".join(lines).encode()).hexdigest()
        _check_is_file(archive)
        return _digest(lambda: archive.open("rb"))
    except _UNREADABLE as error:
        raise ArchiveError(f"{archive} has no SHA-256: {error}. Build it anew with build_archive.") from error


def _digest(open_file: Callable[[], IO[bytes]]) -> str:
    with open_file() as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def check_sha256(archive: str | Path, expected: str) -> None:
    """Checks that an archive has the expected SHA-256.

    Raises:
        ArchiveError: the archive has another SHA-256, or is not there.
    """
    _check_digest(archive_sha256(archive), expected, Path(archive))


def copy_checked(archive: str | Path, copy: str | Path, sha256: str | None) -> str:
    """Copies an archive and checks the copy, since an archive could change between a check and its use.

    Args:
        archive: a .mar, a .tar.gz or a folder.
        copy: the path of the copy.
        sha256: the `archive_sha256` that it must have; None to accept any.

    Returns:
        the copy's `archive_sha256`.

    Raises:
        ArchiveError: the copy has another SHA-256, or the archive is missing or can't be copied.
    """
    archive, copy = Path(archive), Path(copy)
    if not archive.exists():
        raise _missing(archive)
    try:
        if archive.is_dir():
            _extract(archive, copy)
        else:
            _check_is_file(archive)
            shutil.copyfile(archive, copy)
    except _UNREADABLE as error:
        cause = explain_os_error(error) if isinstance(error, OSError) else f"{error}."
        raise ArchiveError(f"{archive} can't be copied: {cause}") from error
    found = archive_sha256(copy)
    if sha256 is not None:
        _check_digest(found, sha256, archive)
    return found


def _check_digest(found: str, expected: str, archive: Path) -> None:
    if found != expected.strip().lower():
        raise WrongDigest(
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
        manifest = json.loads(_read_file(archive, MANIFEST))
        _check_names(manifest["model"])
    except _UNREADABLE as error:
        raise ArchiveError(
            f"{archive} is not a model archive: {_cause(error)}. Build it anew with build_archive, "
            "or fetch it again if it was cut off."
        ) from error
    result: dict[str, Any] = manifest
    return result


def check_files(archive: str | Path) -> None:
    """Checks that an archive has each file that its manifest names.

    Raises:
        ArchiveError: the archive lacks a file, or is no archive.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> from tutorial_lib.archives.building import lay_out
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
    for key in _NAMED_FILES:
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
    >>> from tutorial_lib.archives.building import lay_out
    >>> lay_out(folder, handler="handler.py", config_file="model-config.yaml")
    >>> read_settings(folder)["minWorkers"]
    1
    """
    archive = Path(archive)
    name = read_manifest(archive)["model"].get("configFile")
    if not name:
        return {}
    try:
        settings = _load_yaml(_read_file(archive, name).decode("utf-8"))
    except (*_UNREADABLE, yaml.YAMLError) as error:
        cause = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ArchiveError(f"The config file {name} of {archive} can't be read: {cause}. Fix it.") from error
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
    >>> from tutorial_lib.archives.building import lay_out
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
    """Returns the text of the archive's `python_files`, one after the other.

    Raises:
        ArchiveError: the archive, or one of these files, can't be read.
    """
    names = sorted(python_files(archive))
    try:
        return "\n".join(_read_file(Path(archive), name).decode("utf-8", errors="replace") for name in names)
    except _UNREADABLE as error:
        raise ArchiveError(f"The code of {archive} can't be read: {error}.") from error


def unpack(archive: str | Path, folder: str | Path, *, sha256: str | None = None) -> None:
    """Unpacks an archive as TorchServe does: its files lie directly in `folder`, which appears when complete.

    Args:
        archive: a .mar, a .tar.gz, or a folder, which is copied.
        folder: the folder to unpack into; it may exist already, but must be empty.
        sha256: the `archive_sha256` that it must have; a copy is checked, and that copy is unpacked.

    Raises:
        ArchiveError: the archive is missing or broken, or the folder is not empty or can't be written to.

    >>> unpack("missing.mar", "build/missing")
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: There is no archive missing.mar. Build it with build_archive.
    """
    archive, folder = Path(archive), Path(folder)
    if sha256 is None:
        read_manifest(archive)
    if folder.is_dir() and any(folder.iterdir()):
        raise ArchiveError(f"The folder {folder} is not empty. Name another one, or empty this one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as scratch:
        whole = Path(scratch) / "whole"
        source = archive
        if sha256 is not None:
            source = Path(scratch) / archive.name
            copy_checked(archive, source, sha256)
            read_manifest(source)
        try:
            _extract(source, whole)
        except _UNREADABLE as error:
            raise ArchiveError(
                f"{archive} can't be unpacked: {error}. Build it anew with build_archive."
            ) from error
        whole.rename(folder)


@contextmanager
def _members(archive: Path) -> Iterator[dict[str, _Member]]:
    """Gives the files of an archive by name, checked: plain files, inside the archive, one for each name."""
    if archive.is_dir():
        yield _checked(_in_folder(archive), None)
        return
    _check_is_file(archive)
    limit = max(ANY_RATIO, MAX_RATIO * archive.stat().st_size)
    if archive.name.endswith(".tar.gz"):
        with _Gzip(archive) as content, tarfile.open(fileobj=content, mode="r:") as tar:
            yield _checked(_in_tar(tar), limit)
    else:
        with zipfile.ZipFile(archive) as mar:
            yield _checked(_in_zip(mar), limit)


def _checked(members: Iterator[_Member], limit: int | None) -> dict[str, _Member]:
    found: dict[str, _Member] = {}
    seen: set[str] = set()
    size = 0
    for member in members:
        key = unicodedata.normalize("NFC", check_name(member.name)).casefold()
        if key in seen:
            raise ValueError(f"it has two files {member.name!r}, or two that differ only in upper case")
        size += member.size
        if limit is not None and size > limit:
            raise ValueError(f"it would unpack to more than {MAX_RATIO} times its size")
        seen.add(key)
        found[member.name] = member
        if len(found) > MAX_FILES:
            raise ValueError(f"it has more than {MAX_FILES:,} files")
    return found


def check_name(name: str) -> str:
    """Returns the name of a file in an archive if it is a plain relative path, on Windows too."""
    name.encode("utf-8")  # a name that is not UTF-8 is a UnicodeError
    windows = PureWindowsPath(name)
    plain = PurePosixPath(name)
    outside = plain.is_absolute() or windows.drive or windows.root or ".." in plain.parts
    if outside or "\\" in name or "\0" in name or plain.as_posix() != name or name == ".":
        raise ValueError(f"{name!r} is not the path of a file inside it")
    return name


def _in_folder(archive: Path) -> Iterator[_Member]:
    def failed(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(archive, onerror=failed):
        for path in (Path(folder) / name for name in (*folders, *files)):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                name = path.relative_to(archive).as_posix()
                yield _Member(name, found.st_size, lambda path=path: path.open("rb"))  # type: ignore[misc]
            elif not stat.S_ISDIR(found.st_mode):
                raise ValueError(
                    f"{path.relative_to(archive).as_posix()!r} is not a plain file, but a link or a device"
                )


def _in_tar(tar: tarfile.TarFile) -> Iterator[_Member]:
    """Yields a tar's files; the archiver puts all of them into one folder of the model's name."""
    tops = set()
    for member in tar:
        top, _, name = member.name.removeprefix("./").partition("/")
        tops.add(top)
        if member.name == "." and member.isdir():
            tops.discard(".")
            continue
        if len(tops) > 1:
            raise ValueError(f"it has two top folders, {' and '.join(map(repr, sorted(tops)))}")
        if member.isdir():
            check_name(name or top)
        elif member.isreg() and not member.issparse() and name:
            check_name(top)
            yield _Member(name, member.size, lambda member=member: _content(tar, member))  # type: ignore[misc]
        else:
            raise ValueError(f"{member.name!r} is not a plain file in the archive's folder")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # it is a plain file
    return content


def _in_zip(mar: zipfile.ZipFile) -> Iterator[_Member]:
    for info in mar.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            check_name(info.orig_filename.removesuffix("/"))
        elif kind in (0, stat.S_IFREG):
            yield _Member(info.orig_filename, info.file_size, lambda info=info: mar.open(info))  # type: ignore[misc]
        else:
            raise ValueError(f"{info.filename!r} is not a plain file, but a link or a device")


class _Gzip(gzip.GzipFile):
    """A .gz whose reader can't ask for more than a piece: a tar's header may declare any size for itself."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_METADATA:
            raise ValueError(f"a header of it is longer than {MAX_METADATA:,} bytes")
        return super().read(size)


def _check_is_file(archive: Path) -> None:
    if not archive.is_file():
        raise ValueError("it is neither a file nor a folder")


def _read_file(archive: Path, name: str) -> bytes:
    """Reads a small file of an archive: its manifest or its config file."""
    if archive.is_dir():  # one file, so that an unpacked archive may have links to its weights
        file = archive / check_name(name)
        if not file.resolve().is_relative_to(archive.resolve()):
            raise ValueError(f"{name!r} leads outside")
        if file.exists() and not file.is_file():
            raise ValueError(f"{name!r} is not a plain file")
        with file.open("rb") as content:
            return _read_small(name, file.stat().st_size, content)
    with _members(archive) as members:
        member = members[check_name(name)]
        with member.open() as content:
            return _read_small(name, member.size, content)


def _read_small(name: str, size: int, content: IO[bytes]) -> bytes:
    if size > MAX_METADATA:
        raise ValueError(f"its {name} has {size:,} bytes, and {MAX_METADATA:,} are allowed")
    return content.read(MAX_METADATA)


def _names(archive: Path) -> list[str]:
    """Returns the paths of all files of an archive, relative to its top."""
    try:
        with _members(archive) as members:
            return list(members)
    except _UNREADABLE as error:
        raise ArchiveError(f"{archive} can't be read: {error}. Build it anew with build_archive.") from error


def _extract(archive: Path, folder: Path) -> None:
    with _members(archive) as members:
        needed, free = sum(member.size for member in members.values()), shutil.disk_usage(folder.parent).free
        if needed > free:
            raise ValueError(f"it needs {needed:,} bytes of disk, and {free:,} are free")
        folder.mkdir()
        root = folder.resolve()
        for member in members.values():
            target = (root / member.name).resolve()
            if not target.is_relative_to(root):
                raise ValueError(f"{member.name!r} leads outside")
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as content, target.open("xb") as file:
                shutil.copyfileobj(content, file)


def _load_yaml(text: str) -> Any:
    """Loads YAML whose aliases do not expand to more values than a config file has."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and _count(root, {}) > MAX_SETTINGS:
        raise ValueError(f"it has more than {MAX_SETTINGS:,} values")
    return yaml.safe_load(text)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns how many values a node has when its aliases are expanded; a node in itself has too many."""
    if id(node) not in known:
        known[id(node)] = MAX_SETTINGS + 1
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_count(child, known) for child in flat)
    return known[id(node)]


def _check_names(model: Any) -> None:
    """Checks the manifest's model: its files are names of files inside the archive."""
    if not isinstance(model, dict) or not isinstance(model.get("modelName"), str):
        raise ValueError("it names no model")
    for key in ("handler", *_NAMED_FILES):
        name = model.get(key)
        if name is None or name == "":
            continue
        if not isinstance(name, str):
            raise ValueError(f"its {key} is {name!r:.100}, and not a file's name")
        try:
            check_name(name)
        except ValueError as error:
            raise ValueError(f"its {key}: {error}") from None


def _missing(archive: Path) -> ArchiveError:
    full = archive.with_name(f"{archive.name}.mar")
    advice = f"Did you mean {full}?" if full.is_file() else "Build it with build_archive."
    return ArchiveError(f"There is no archive {archive}. {advice}")


def _cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its manifest is nested too deep"
    if isinstance(error, (KeyError, FileNotFoundError)):
        return f"it has no {MANIFEST}"
    return str(error)
