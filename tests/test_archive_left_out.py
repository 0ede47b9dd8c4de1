"""What lies in a folder but stays out of an archive: keys, tools' own files, links that lead elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_archive import WEIGHTS
from tutorial_lib import build_archive
from tutorial_lib.archives.building import lay_out, new_version, unpack

pytestmark = pytest.mark.faults

HANDLER = "def handle(data, context):\n    return data and [1] * len(data)\n"
LEFT_OUT = [
    *(".env", ".env.local", "prod.env", ".netrc", "_netrc", ".npmrc", ".git-credentials", "credentials.json"),
    *("server.pem", "SERVER.PEM", "tls.key", "id_rsa", "id_ed25519", "id_rsa.pub", "store.jks", "a.p12"),
    *("key_file.json", ".DS_Store", "Thumbs.db", ".words.py.swp", "words.py~", "#words.py#", ".gitignore"),
    *(".git/config", ".svn/entries", ".idea/workspace.xml", ".vscode/settings.json", ".aws/credentials"),
    *(".ipynb_checkpoints/a.ipynb", ".cache/huggingface/token", "CVS/Root"),
]
PACKED = ["words.py", "__init__.py", "environment.py", "keys.json", "dev/tokens.txt", "git/a", "key/monkey"]


def by_build_archive(files: dict[str, Any], tmp_path: Path) -> Path:
    unpack(build_archive("m", **files, export_path=tmp_path / "store"), tmp_path / "unpacked")
    return tmp_path / "unpacked"


def by_lay_out(files: dict[str, Any], tmp_path: Path) -> Path:
    lay_out(tmp_path / "unpacked", **files)
    return tmp_path / "unpacked"


def by_new_version(files: dict[str, Any], tmp_path: Path) -> Path:
    lay_out(tmp_path / "old", handler=files["handler"])
    new_version(tmp_path / "old", tmp_path / "unpacked", version="1.1", extra_files=files["extra_files"])
    return tmp_path / "unpacked"


Pack = Callable[[dict[str, Any], Path], Path]
PACKS = [by_build_archive, by_lay_out, by_new_version]


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def names(folder: Path) -> set[str]:
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    return found - {"MAR-INF/MANIFEST.json", "h.py"}


@pytest.fixture
def handler(tmp_path: Path) -> Path:
    (tmp_path / "h.py").write_text(HANDLER)
    return tmp_path / "h.py"


@pytest.mark.parametrize("pack", PACKS)
def test_private_files_of_a_folder_stay_out_and_are_named(
    pack: Pack, handler: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tools = write(tmp_path / "tools", *PACKED, *LEFT_OUT, "__pycache__/words.pyc")
    write(tools / "deep", "words.py", ".env")
    folder = pack({"handler": handler, "extra_files": [tools]}, tmp_path)
    assert names(folder) == {*(f"tools/{name}" for name in PACKED), "tools/deep/words.py"}
    [warning] = [record.getMessage() for record in caplog.records if "Left out" in record.getMessage()]
    for name in (*LEFT_OUT, "deep/.env"):
        top = name if name.startswith("deep") else name.split("/")[0]
        assert str(tools / top) in warning
    assert "__pycache__" not in warning and str(tools / "words.py,") not in warning


@pytest.mark.parametrize("pack", PACKS)
def test_what_is_named_is_packed_without_a_word(
    pack: Pack, handler: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "source", "model/.env", "cacert.pem")
    (source / "link.json").symlink_to(write(tmp_path, "elsewhere.json") / "elsewhere.json")
    extras = [source / name for name in ("model/.env", "cacert.pem", "link.json")]
    files = {"handler": handler, "extra_files": extras}
    assert names(pack(files, tmp_path)) == {".env", "cacert.pem", "link.json"}
    assert not caplog.records


@pytest.mark.parametrize("pack", PACKS[:2])
def test_a_model_folder(pack: Pack, handler: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = write(
        tmp_path / "model", "config.json", "vocab.txt", ".env", "key.pem", ".git/config", "onnx/.netrc"
    )
    write(model, "named.pem", "onnx/.netrc")
    outside = write(tmp_path / "outside", "id_rsa", "folder/a.txt")
    (outside / "w").write_bytes(WEIGHTS)
    for name, target in {"model.safetensors": "w", "notes.txt": "id_rsa", "folder": "folder"}.items():
        (model / name).symlink_to(outside / target)
    files = {"handler": handler, "model_dir": model, "extra_files": [model / "named.pem"]}
    assert names(pack(files, tmp_path)) == {"config.json", "vocab.txt", "model.safetensors", "named.pem"}
    for name in (".env", "key.pem", ".git", "onnx/.netrc", "notes.txt", "folder"):
        assert str(model / name) in caplog.text
    assert "named.pem" not in caplog.text and "model.safetensors" not in caplog.text


def link_to_file(tools: Path) -> None:
    (tools / "a").symlink_to(write(tools.parent, "elsewhere.txt") / "elsewhere.txt")


def link_to_folder(tools: Path) -> None:
    (tools / "a").symlink_to(write(tools.parent / "other", "x.txt"), target_is_directory=True)


def link_up(tools: Path) -> None:
    (tools / "a").symlink_to("..", target_is_directory=True)


def link_by_another_link(tools: Path) -> None:
    link_to_file(tools)
    (tools / "a").rename(tools / "deep" / ".hop")
    (tools / "a").symlink_to("deep/.hop")


def link_out_and_back_by_a_name_that_begins_alike(tools: Path) -> None:
    (tools / "a").symlink_to(write(tools.parent / "tools2", "x.txt") / "x.txt")


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize(
    "link",
    [
        link_to_file,
        link_to_folder,
        link_up,
        link_by_another_link,
        link_out_and_back_by_a_name_that_begins_alike,
    ],
)
def test_a_link_that_leads_out_of_a_folder_stays_out_and_is_named(
    link: Callable[[Path], None],
    pack: Pack,
    handler: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tools = write(tmp_path / "source" / "tools", "words.py", "deep/words.py")
    (tools / "deep" / "inside.py").symlink_to("../words.py")
    link(tools)
    folder = pack({"handler": handler, "extra_files": [tools]}, tmp_path)
    assert names(folder) == {"tools/words.py", "tools/deep/words.py", "tools/deep/inside.py"}
    assert str(tools / "a") in caplog.text


@pytest.mark.parametrize("place", ["model_dir", "extra_files"])
def test_a_folder_of_the_hugging_face_cache_is_packed_whole(
    place: str, handler: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files are links to blobs: ../../blobs/…, and one more .. for each folder."""
    cache = write(tmp_path / ".cache" / "models--a--b", "blobs/0f", "blobs/1e")
    snapshot = cache / "snapshots" / "c0ffee"
    for name in ("config.json", "pytorch_model.bin", "onnx/model.bin"):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(cache / "blobs" / "0f")
    (snapshot / "onnx" / "out.txt").symlink_to(write(tmp_path, "out.txt") / "out.txt")
    files = {"handler": handler, place: snapshot if place == "model_dir" else [snapshot]}
    below = "" if place == "model_dir" else "c0ffee/"
    expected = {f"{below}{name}" for name in ("config.json", "pytorch_model.bin", "onnx/model.bin")}
    assert names(by_lay_out(files, tmp_path)) == expected
    assert caplog.text.count("Left out") == 1 and str(snapshot / "onnx" / "out.txt") in caplog.text
