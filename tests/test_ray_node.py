"""The archive on a node: one folder for all its users, which no other user can change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import handlers
from tutorial_lib import ArchiveError, archive_sha256

pytest.importorskip("ray", reason="pip install '.[ray]'")

from tutorial_lib.ray_app.node import unpacked

HANDLER = "def handle(data, context):\n    return data\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this node."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def mar(tmp_path: Path) -> Path:
    return handlers.pack(tmp_path, "own", HANDLER)


def test_users_share_a_folder_that_goes_with_the_last(mar: Path, root: Path) -> None:
    digest = archive_sha256(mar)
    with unpacked(mar, digest) as first:
        with unpacked(mar, digest) as second:
            assert first == second
        assert (first / "own_handler.py").read_text() == HANDLER
    assert not first.exists() and first.is_relative_to(root)


def test_a_folder_that_others_could_change_is_refused(mar: Path, root: Path) -> None:
    digest = archive_sha256(mar)
    with unpacked(mar, digest) as folder:
        private = folder.parent
    assert private.stat().st_mode & 0o777 == 0o700
    private.chmod(0o777)
    with pytest.raises(ArchiveError, match="not a folder of this user alone"), unpacked(mar, digest):
        pass
    private.rename(root / "elsewhere").chmod(0o700)
    private.symlink_to(root / "elsewhere")
    with pytest.raises(ArchiveError, match="not a folder of this user alone"), unpacked(mar, digest):
        pass


def test_an_archive_that_is_missing_or_another_one_is_refused(mar: Path, root: Path) -> None:
    with pytest.raises(ArchiveError, match="is not the archive that was deployed"), unpacked(mar, "0" * 64):
        pass
    with (
        pytest.raises(ArchiveError, match=r"no archive .* on the node .* at this path on every node"),
        unpacked(mar.with_name("missing.mar"), "0" * 64),
    ):
        pass
