"""Hostile archives: each is refused with an ArchiveError, and nothing is written outside the folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tutorial_lib import ArchiveError, archive_sha256, build_archive, read_manifest
from tutorial_lib.archives.building import check_files, copy_checked, read_settings, unpack

pytestmark = pytest.mark.faults

HANDLER = "def handle(data, context):\n    return data\n"
MANIFEST = {"model": {"modelName": "m", "handler": "h.py"}}
KINDS = ("m.mar", "m.tar.gz", "m")


def good(**model: object) -> dict[str, bytes]:
    """The files of an archive; the keywords go into its manifest."""
    manifest = {"model": MANIFEST["model"] | model}
    return {"MAR-INF/MANIFEST.json": json.dumps(manifest).encode(), "h.py": HANDLER.encode()}


def write(path: Path, files: dict[str, bytes]) -> Path:
    """Writes an archive of the kind that its name says, with these files."""
    if path.suffix == ".mar":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as mar:
            for name, content in files.items():
                mar.writestr(name, content)
    elif path.name.endswith(".tar.gz"):
        write_tar(path, [(f"m/{name}", content) for name, content in files.items()])
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


def write_tar(path: Path, files: list[tuple[str, bytes]], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for member in more:
            tar.addfile(member)
    return path


def in_tar(*more: tarfile.TarInfo) -> Callable[[Path], None]:
    def made(path: Path) -> None:
        write_tar(path, [(f"m/{name}", content) for name, content in good().items()], *more)

    return made


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("kind", KINDS)
def test_an_ordinary_archive_is_read(kind: str, tmp_path: Path) -> None:
    archive = write(tmp_path / kind, good(configFile="c.yaml") | {"c.yaml": b"a: &x [1]\nb: *x\n"})
    assert read_settings(archive) == {"a": [1], "b": [1]}
    check_files(archive)
    unpack(archive, tmp_path / "out", sha256=archive_sha256(archive))
    assert (tmp_path / "out" / "h.py").read_text() == HANDLER


NAMES = ("/abs.py", "//abs.py", "../up.py", "a/../../up.py", "a//b.py", "./a.py", "C:/x.py", "a\\..\\b.py")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["m.mar", "m.tar.gz"])
def test_a_name_that_leads_outside(kind: str, name: str, tmp_path: Path) -> None:
    refused(write(tmp_path / kind, good() | {name: b"x"}))


@pytest.mark.parametrize("prefix", ["m/", "./m/", "m//", "/", ""])
def test_a_tar_whose_member_is_absolute_below_its_top(prefix: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim.py"
    victim.write_text("mine")
    archive = tmp_path / "m.tar.gz"
    in_tar(member(f"{prefix}{victim}"))(archive)
    refused(archive)
    assert victim.read_text() == "mine"


TARS = {
    "link": [member("m/a", tarfile.SYMTYPE, "/etc")],
    "link and file below": [member("m/a", tarfile.SYMTYPE, "/tmp"), member("m/a/b")],
    "hard link": [member("m/a", tarfile.LNKTYPE, "/etc/passwd")],
    "fifo": [member("m/a", tarfile.FIFOTYPE)],
    "device": [member("m/a", tarfile.CHRTYPE)],
    "two tops": [member("other/a")],
    "no top": [member("a")],
    "two manifests": [member("m/MAR-INF/MANIFEST.json")],
    "case": [member("m/H.py")],
    "file as folder": [member("m/h.py/x")],
    "not UTF-8": [member("m/\udcff")],
}


@pytest.mark.parametrize("case", TARS)
def test_a_tar_with(case: str, tmp_path: Path) -> None:
    archive = tmp_path / "m.tar.gz"
    in_tar(*TARS[case])(archive)
    refused(archive)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_zip_with_a_link_or_a_device(mode: int, tmp_path: Path) -> None:
    archive = write(tmp_path / "m.mar", good())
    info = zipfile.ZipInfo("a")
    info.external_attr = (mode | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as mar:
        mar.writestr(info, "/etc/passwd")
    refused(archive)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["h.py", "H.PY", "MAR-INF/MANIFEST.json", "h.py/x"])
def test_a_zip_with_two_files_of_one_name(name: str, tmp_path: Path) -> None:
    archive = write(tmp_path / "m.mar", good())
    with zipfile.ZipFile(archive, "a") as mar:
        mar.writestr(name, "other")
    refused(archive)


def test_a_folder_with_links_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    added: list[Callable[[Path], None]] = [
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to(tmp_path / "secret", target_is_directory=True),
        lambda path: path.symlink_to("h.py"),
        os.mkfifo,
    ]
    for number, add in enumerate(added):
        archive = write(tmp_path / f"m{number}", good())
        add(archive / "added")
        refused(archive)
        with pytest.raises(ArchiveError, match="a link or a device"):
            archive_sha256(archive)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "model",
    [
        {"handler": ["h.py"]},
        {"handler": "../h.py"},
        {"modelName": 7},
        {"modelFile": "/etc/passwd"},
        {"serializedFile": {"a": 1}},
        {"requirementsFile": "..\\r.txt"},
        {"configFile": "../secret.txt"},
    ],
)
def test_a_manifest_that_names_what_is_no_file_inside(
    kind: str, model: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text("password: [hunter2")
    archive = write(tmp_path / kind, good(**model))
    for read in (read_manifest, read_settings, check_files):
        with pytest.raises(ArchiveError) as raised:
            read(archive)
        assert "hunter2" not in str(raised.value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "config", [BOMB, "a: &a [*a]", "a: " + "[" * 100_000, "a: " + "x" * 2_000_000, "a: \xff"]
)
def test_a_config_file_that_asks_for_too_much(kind: str, config: str, tmp_path: Path) -> None:
    archive = write(tmp_path / kind, good(configFile="c.yaml") | {"c.yaml": config.encode("latin-1")})
    with pytest.raises(ArchiveError, match="config file"):
        read_settings(archive)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("manifest", [b" " * 2_000_000, b"[" * 100_000, b"\xff", b"[]", b'{"model": []}'])
def test_a_manifest_that_asks_for_too_much(kind: str, manifest: bytes, tmp_path: Path) -> None:
    refused(write(tmp_path / kind, good() | {"MAR-INF/MANIFEST.json": manifest}))


@pytest.mark.parametrize("kind", ["m.mar", "m.tar.gz"])
def test_a_bomb(kind: str, tmp_path: Path) -> None:
    refused(write(tmp_path / kind, good() | {"weights": bytes(70 << 20)}))


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.mar")
    refused(tmp_path / "m.mar")
    with pytest.raises(ArchiveError):
        archive_sha256(tmp_path / "m.mar")


def test_the_disk_must_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path / "m.mar", good())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(ArchiveError, match="bytes of disk, and 10 are free"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_the_copy_is_what_is_checked_and_unpacked(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write(tmp_path / kind, good())
    digest = archive_sha256(archive)
    shutil.rmtree(archive) if archive.is_dir() else archive.unlink()
    write(archive, good() | {"h.py": b"bad"})
    for use in (unpack, copy_checked):
        with pytest.raises(ArchiveError, match="is not the archive that is accounted for"):
            use(archive, tmp_path / "out", sha256=digest)
        assert use is copy_checked or not (tmp_path / "out").exists()


def test_the_digest_of_a_folder_stays_and_no_name_stands_for_two_files(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a": b"1", "b": b"2"})
    assert archive_sha256(one) == "68c2919f4305e50800082ab7f11eb17d96c7832f59154e97b1d373a5179a63ea"
    forged = write(tmp_path / "forged", {f"a\n{archive_sha256(one / 'b')}  b": b"1"})
    assert archive_sha256(forged) != archive_sha256(one)


def test_code_is_not_run_where_that_is_not_wanted(tmp_path: Path) -> None:
    handler, model, weights = tmp_path / "h.py", tmp_path / "model.py", tmp_path / "w.pt"
    handler.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{HANDLER}")
    model.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net:\n    pass\n")
    weights.write_bytes(b"")
    build_archive(
        "m",
        handler=handler,
        model_file=model,
        serialized_file=weights,
        export_path=tmp_path / "store",
        check_loads=False,
    )
    assert not (tmp_path / "ran").exists()


def refused(archive: Path) -> None:
    """Checks that the archive is not unpacked, and that nothing is left beside it."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(ArchiveError):
        unpack(archive, archive.parent / "out")
    assert sorted(archive.parent.rglob("*")) == before
