"""Lists and copies the files that go into an archive, and names the cause if one of them can't be copied."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from tutorial_lib.errors import ArchiveError

_logger = logging.getLogger(__name__)

_MADE_BY_TOOLS = ("__pycache__", "__MACOSX")  # torch-model-archiver leaves them out of folders, too
# In lower case: what begins with a dot (.env, .netrc, .git, .idea, .DS_Store), editors' copies, and keys.
_PRIVATE = (
    *(".*", "*.swp", "*.swo", "*~", "#*#", "cvs", "thumbs.db", "desktop.ini"),
    *("*.env", "_netrc", "credentials.json", "key_file.json"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *("*.pem", "*.key", "*.ppk", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx"),
)


def files_below(
    path: Path, name: str, left_out: list[Path] | None = None, *, top: Path | None = None
) -> Iterator[tuple[Path, str]]:
    """Yields each file of a file or a folder, with its place in the archive, where `path` is called `name`.

    Links are followed, but none that leads out of the folder.

    Args:
        path: the file or folder. It goes into the archive, whatever its own name is.
        name: its name in the archive.
        left_out: what does not go into the archive, though it lies in the folder, is added to this list.
        top: the folder that links may not lead out of; None for `path`.

    Raises:
        ArchiveError: a file can't be read, is no plain file, or a link leads nowhere or in a circle.
    """
    try:
        if path.is_dir():
            circle = path.resolve() in [parent.resolve() for parent in path.parents]
            if circle and path.is_symlink():
                raise ArchiveError(f"{path} is a link to a folder that it lies in itself. Remove the link.")
            for child in sorted(path.iterdir()):
                if not is_left_out(child, top or path):
                    yield from files_below(child, f"{name}/{child.name}", left_out, top=top or path)
                elif left_out is not None:
                    left_out.append(child)
            return
        if path.exists() and not path.is_file():
            raise ArchiveError(f"{path} is neither a file nor a folder. Leave it out of the archive.")
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from error
    yield path, name


def is_left_out(path: Path, top: Path | None) -> bool:
    """Returns whether a file or folder stays out of an archive that the folder around it goes into.

    These stay out: what a tool has made for itself (.git, __pycache__), files that may hold keys or passwords
    (.env, key.pem), and links to such files, or out of `top`. In the Hugging Face cache, a folder below
    "snapshots" is full of links to "blobs" beside it: they are followed.

    Args:
        path: the file or folder.
        top: the folder that links may not lead out of; None if they may lead anywhere.

    >>> [is_left_out(Path("tools", name), None) for name in (".env", "id_rsa", "words.py")]
    [True, True, False]
    """
    target = Path(os.path.realpath(path))  # Path.resolve fails on a circle
    names = (path.name.lower(), target.name.lower())
    if any(fnmatchcase(name, pattern) for name in names for pattern in (*_MADE_BY_TOOLS, *_PRIVATE)):
        return True
    if top is None or not path.is_symlink() or not target.exists():
        return False
    top = top.resolve()
    snapshots = next((folder for folder in top.parents if folder.name == "snapshots"), None)
    homes = [top, *([snapshots.parent / "blobs"] if snapshots else [])]
    return not any(target.is_relative_to(home) for home in homes)


def warn_about_left_out(left_out: Iterable[Path]) -> None:
    """Logs a warning that names what was left out of an archive, but for __pycache__ and its like."""
    shown = [str(path) for path in sorted(left_out) if path.name not in _MADE_BY_TOOLS]
    if shown:
        _logger.warning(
            "Left out of the archive: %s. A file with keys, a tool's own file or a link out of its folder is "
            "packed only if extra_files names it.",
            ", ".join(shown),
        )


def copy(path: Path, target: Path) -> None:
    """Copies a file or a folder: content and permission bits. The copy holds no link to the original.

    Where the file system can, the copy shares the original's blocks until one of the two is written to.

    Raises:
        ArchiveError: a file can't be read.
        OSError: the target can't be written to.
    """
    if path.is_dir():
        target.mkdir(exist_ok=True)
    for file, name in [*files_below(path, target.name)]:  # all, before one is written
        place = target.parent / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not _clone(file, place):
            shutil.copyfile(file, place)
        shutil.copymode(file, place)


def _clone(file: Path, target: Path) -> bool:
    """Copies inside the kernel, if this system and the file systems of both can."""
    with contextlib.suppress(AttributeError, OSError), file.open("rb") as old, target.open("wb") as new:
        left = file.stat().st_size
        while left > 0 and (copied := os.copy_file_range(old.fileno(), new.fileno(), left)):
            left -= copied
        return left == 0
    return False


def unreadable(path: Path, error: OSError) -> ArchiveError:
    """Returns the error for a file that can't be read, or for a path that leads to no file.

    >>> print(unreadable(Path("weights.pt"), PermissionError(errno.EACCES, "Permission denied")))
    weights.pt can't be read: Permission denied. Give yourself the right to read it.
    """
    if path.is_symlink() and not path.exists():
        return ArchiveError(f"{path} is a link to {path.readlink()}, which is not there. Remove or fix it.")
    if isinstance(error, FileNotFoundError):
        return ArchiveError(f"There is no file {path}. Check the path.")
    advice = (
        "Give yourself the right to read it." if isinstance(error, PermissionError) else "Check its disk."
    )
    return ArchiveError(f"{path} can't be read: {error.strerror or error}. {advice}")


# What to do about a folder that can't be written to.
_ADVICE = {
    errno.ENOSPC: "Free some space, or name a folder on another disk.",
    errno.EDQUOT: "Free some space, or name a folder on another disk.",
    errno.EROFS: "Name a folder on a disk that can be written to.",
    errno.EACCES: "Name a folder that you may write to.",
    errno.EPERM: "Name a folder that you may write to.",
    errno.ENOTDIR: "Name a folder.",
    errno.EEXIST: "Name a folder.",
    errno.ENAMETOOLONG: "Choose a shorter name, or a folder with a shorter path.",
    errno.EMFILE: "Close files, or raise the limit of open files (ulimit -n).",
}


@contextlib.contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Turns an OSError of the block into an ArchiveError that says why `what` can't be written.

    >>> with writing("The archive", Path("store")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: The archive can't be written to store: No space left on device. Free...
    """
    try:
        yield
    except OSError as error:
        at = f" ({error.filename})" if error.filename and str(error.filename) != str(folder) else ""
        advice = _ADVICE.get(error.errno or 0, "Check the disk, or name another folder.")
        raise ArchiveError(
            f"{what} can't be written to {folder}: {error.strerror or error}{at}. {advice}"
        ) from error
