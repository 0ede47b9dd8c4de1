"""Lists and copies the files that go into an archive, and names the cause if one of them can't be copied."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tutorial_lib.errors import ArchiveError

# Inside folders, torch-model-archiver leaves these and folders with a leading dot (.git, .cache) out.
_LEFT_OUT = ("__pycache__", "__MACOSX")


def files_below(path: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Yields each file of a file or a folder, with its place in the archive, where `path` is called `name`.

    Links are followed.

    Raises:
        ArchiveError: a file can't be read, is no plain file, or a link leads nowhere or in a circle.
    """
    try:
        if path.is_dir():
            circle = path.resolve() in [parent.resolve() for parent in path.parents]
            if circle and path.is_symlink():
                raise ArchiveError(f"{path} is a link to a folder that it lies in itself. Remove the link.")
            for child in sorted(path.iterdir()):
                if not (child.is_dir() and is_left_out(child)):
                    yield from files_below(child, f"{name}/{child.name}")
            return
        if path.exists() and not path.is_file():
            raise ArchiveError(f"{path} is neither a file nor a folder. Leave it out of the archive.")
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from error
    yield path, name


def is_left_out(folder: Path) -> bool:
    """Returns whether torch-model-archiver leaves such a folder out."""
    return folder.name in _LEFT_OUT or folder.name.startswith(".")


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
