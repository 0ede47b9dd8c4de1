"""Unpacks an archive once on a node for all replicas there, and removes it when none uses it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tutorial_lib.archives.building import unpack
from tutorial_lib.archives.reading import WrongDigest
from tutorial_lib.errors import ArchiveError


@contextlib.contextmanager
def unpacked(archive: Path, digest: str) -> Iterator[Path]:
    """Gives the folder of the unpacked archive: one per node, shared by all users of this context.

    Each user of a folder holds a shared lock on it, which ends with the user's process. Unused folders are
    removed whenever this context is entered or left.

    Raises:
        ArchiveError: the archive is missing on this node, has another digest, or can't be unpacked; or
            another user could change the folder that archives are unpacked into.
    """
    root = _private_folder(Path(tempfile.gettempdir()) / f"ray-archives-{os.getuid()}")
    folder = root / digest
    with contextlib.ExitStack() as held:
        with _locked(root, fcntl.LOCK_EX):
            if not folder.exists():
                _unpack(archive, folder, digest)
            held.enter_context(_locked(folder, fcntl.LOCK_SH))
            _remove_unused(root)
        yield folder
    with _locked(root, fcntl.LOCK_EX):
        _remove_unused(root)


def _private_folder(folder: Path) -> Path:
    """Makes a folder that nobody else may write to, since the code in it is run."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ArchiveError(
            f"{folder} exists and is not a folder of this user alone (mode 0700), so others could change "
            "the code that runs from it. Remove it, or set TMPDIR to a folder of your own."
        )
    return folder


@contextlib.contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _unpack(archive: Path, folder: Path, digest: str) -> None:
    node = socket.gethostname()
    if not archive.exists():
        raise ArchiveError(
            f"There is no archive {archive} on the node {node}. Put it at this path on every node: in the "
            "image, or on a volume that all nodes share."
        )
    try:
        unpack(archive, folder, sha256=digest)
    except WrongDigest as error:
        raise ArchiveError(
            f"{archive} on the node {node} is not the archive that was deployed: it was replaced, or not "
            "copied to this node. Deploy again once every node has the same archive."
        ) from error


def _remove_unused(root: Path) -> None:
    for folder in root.iterdir():
        with contextlib.suppress(BlockingIOError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder, ignore_errors=True)
