"""Export, archive, logs and the environment check."""

from __future__ import annotations

import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.conftest import ROOT
from tutorial_lib import (
    ArchiveError,
    ExportError,
    build_archive,
    check_environment,
    export_model,
    read_manifest,
)
from tutorial_lib.archive import ArchiveFormat
from tutorial_lib.export import EMBEDDED


def test_an_export_looks_like_the_articles(model_dir: Path) -> None:
    names = {file.name for file in model_dir.iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "vocab.txt", "bpe.codes"),
        *("added_tokens.json", "tokenizer_config.json"),
    }


def test_a_local_folder_exports_again_and_again(model_dir: Path, tmp_path: Path) -> None:
    first = export_model(model_dir, tmp_path / "out")
    assert export_model(first, tmp_path / "out") == first
    assert (first / "bpe.codes").read_bytes() == (EMBEDDED / "bpe.codes").read_bytes()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_model_leaves_the_old_export(
    file: str, damage: str, model_dir: Path, tmp_path: Path
) -> None:
    old = export_model(model_dir, tmp_path / "out")
    kept = {f.name: f.stat().st_size for f in old.iterdir()}
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    content = (broken / file).read_bytes()
    (broken / file).unlink()
    if damage == "cut":
        (broken / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError):
        export_model(broken, tmp_path / "out")
    assert {f.name: f.stat().st_size for f in old.iterdir()} == kept
    assert {path.name for path in tmp_path.iterdir()} == {"out", "broken"}


def test_wrong_names_and_places(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'embedded'"):
        export_model("no_such_folder", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("keep me")
    with pytest.raises(ExportError, match="not a model export"):
        export_model("embedded", tmp_path / "mine")
    assert (tmp_path / "mine" / "diary.txt").exists()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP API as a download asks for: a model's files, and each file."""

    def _answer(self, body: bool) -> None:
        names = [file.name for file in sorted(EMBEDDED.iterdir())]
        if self.path.startswith("/api/models/owner/model/tree/"):
            tree = [
                {"type": "file", "path": n, "size": (EMBEDDED / n).stat().st_size, "oid": COMMIT}
                for n in names
            ]
            self._send(json.dumps(tree).encode(), body)
        elif self.path.startswith("/api/models/owner/model"):
            info = {"id": "owner/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self._send(json.dumps(info).encode(), body)
        elif "/resolve/" in self.path and "owner/model" in self.path:
            self._send((EMBEDDED / self.path.rpartition("/")[2]).read_bytes(), body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, content: bytes, body: bool) -> None:
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{len(content):040x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            self.wfile.write(content[start:])

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None: ...


def export_in_a_process(model_id: str, out: Path, endpoint: str, revision: str | None = None) -> str:
    """huggingface_hub reads its settings when it is imported, so each case has a process of its own."""
    import os
    import subprocess
    import sys

    code = (
        "import sys; from tutorial_lib import export_model, TutorialError\n"
        "try: print(export_model(sys.argv[1], sys.argv[2], revision=sys.argv[3] or None))\n"
        "except TutorialError as error: print(type(error).__name__, error)"
    )
    env = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(out.parent / "hub"),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-c", code, model_id, str(out), revision or ""]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_hub_path_against_a_stand_in(tmp_path: Path) -> None:
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=hub.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    try:
        assert export_in_a_process("owner/model", tmp_path / "out", endpoint, COMMIT) == str(tmp_path / "out")
        assert (tmp_path / "out" / "bpe.codes").read_bytes() == (EMBEDDED / "bpe.codes").read_bytes()
        said = export_in_a_process("owner/other", tmp_path / "other", endpoint)
        assert said.startswith("ExportError The hub has no model 'owner/other'")
    finally:
        hub.shutdown()
        hub.server_close()
    # The hub is gone: the cache still has the model, and another one gets a sentence.
    assert export_in_a_process("owner/model", tmp_path / "again", endpoint, COMMIT) == str(tmp_path / "again")
    said = export_in_a_process("owner/third", tmp_path / "third", endpoint)
    assert "can't be reached" in said and "'embedded'" in said
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("kind", ["default", "zip-store", "no-archive", "tgz"])
def test_manifest_of_every_format(kind: ArchiveFormat, model_dir: Path, tmp_path: Path) -> None:
    made = build_archive(
        "m",
        handler=ROOT / "handler.py",
        model_dir=model_dir,
        export_path=tmp_path / "new",
        archive_format=kind,
    )
    model = read_manifest(made)["model"]
    assert (model["modelName"], model["serializedFile"]) == ("m", "model.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [made.name]


def test_what_build_archive_refuses(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "index_to_name.json").write_text('{"0": "Negative"}')
    (tmp_path / "bad.yaml").write_text("a: [")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"handler": "nowhere.py"}, "no handler file"),
        ({"model_dir": tmp_path / "no"}, "no model folder"),
        ({"model_dir": tmp_path}, "no config.json"),
        ({"extra_files": [tmp_path / "gone"]}, "no file"),
        ({"extra_files": [model_dir / "config.json"]}, "same name"),
        ({"extra_files": [tmp_path / "index_to_name.json"]}, "one label"),
        ({"config_file": tmp_path / "bad.yaml"}, "is not YAML"),
        ({"archive_format": "rar"}, "Unknown archive format"),
        ({"handler": f"{ROOT / 'handler.py'}:go"}, "not a function of it"),
    ]
    for changes, sentence in cases:
        arguments = {"handler": ROOT / "handler.py", "model_dir": model_dir, "export_path": tmp_path / "s"}
        with pytest.raises(ArchiveError, match=sentence):
            build_archive("m", **{**arguments, **changes})
    cut = tmp_path / "cut"
    shutil.copytree(model_dir, cut)
    (cut / "model.safetensors").write_bytes(b"1234")
    with pytest.raises(ArchiveError, match="cut off"):
        build_archive("m", handler=ROOT / "handler.py", model_dir=cut, export_path=tmp_path / "s")


def test_this_machine_passes_its_check() -> None:
    report = check_environment()
    assert report.ok, str(report)
    assert "[OK]" in str(report) and "<table>" in report._repr_html_()
