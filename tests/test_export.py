"""Exports of folders and from a fake hub whose answers break off, and exports that do not survive."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.course_copy import run_chapters
from tutorial_lib import ExportError, export_model
from tutorial_lib.export import EMBEDDED

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 10 * 2**20  # huggingface_hub keeps what arrived in whole chunks of this size


class Hub(ThreadingHTTPServer):
    """A hub with the model owner/model at one commit and the branch main."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubAnswers)
        self.break_off = 0  # how many downloads of the weights still end before their last bytes
        self.starts: list[int] = []  # the byte that each download of the weights began at
        self.revisions: set[str] = set()
        self.names = {file.name: file for file in EMBEDDED.iterdir()}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _HubAnswers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.match(r"/api/models/owner/model(?:/(?:revision|tree)/([^/]+))?$", path):
            self._describe(found[1] or "main", tree="/tree/" in path)
        elif found := re.match(r"/owner/model/resolve/([^/]+)/(.+)$", path):
            self._file(found[1], found[2])
        else:
            self._refuse("RepoNotFound")

    do_HEAD = do_GET

    def _describe(self, revision: str, tree: bool) -> None:
        if revision not in ("main", COMMIT):
            return self._refuse("RevisionNotFound")
        self.server.revisions.add(revision)
        names = self.server.names
        answer: Any = {"id": "owner/model", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        if tree:
            answer = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": COMMIT}
                for name, file in names.items()
            ]
        return self._send(json.dumps(answer).encode(), "")

    def _file(self, revision: str, name: str) -> None:
        if name not in self.server.names:
            return self._refuse("EntryNotFound")
        return self._send(self.server.names[name].read_bytes(), name)

    def _send(self, content: bytes, name: str) -> None:
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{len(content):040x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = content[start:]
        if name == "model.safetensors":
            self.server.starts.append(start)
            if self.server.break_off > 0:
                self.server.break_off -= 1
                rest = rest[:-100_000]
                self.close_connection = True
        self.wfile.write(rest)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def asking(hub: Hub, cache: Path) -> dict[str, str]:
    """Variables of a process that asks this hub; huggingface_hub reads them on import."""
    return {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    }


def export_from(hub: Hub, *exports: tuple[str, Path], before: str = "") -> list[str]:
    """What exports in a process of its own print: each of a model, "name" or "name#revision", to a folder.

    A download must show a bar on stderr.
    """
    code = (
        f"{before}\nimport sys; from tutorial_lib import export_model, ExportError\n"
        "for model, out in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    name, _, revision = model.partition('#')\n"
        "    try: print(export_model(name, out, revision=revision or None))\n"
        "    except ExportError as error: print(error)"
    )
    downloads = len(hub.starts)
    command = [sys.executable, "-c", code, *(str(word) for export in exports for word in export)]
    env = {**os.environ, **asking(hub, exports[0][1].parent / "hub")}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    if len(hub.starts) > downloads:
        assert re.search(r"\d+%\|", run.stderr), "the download showed no progress"
    assert "Loading weights" not in run.stderr
    printed = run.stdout.splitlines()
    assert len(printed) == len(exports), run.stdout
    return printed


def test_a_hub_breaks_off_and_refuses_and_is_gone(hub: Hub, tmp_path: Path) -> None:
    hub.break_off = 2
    out, old = tmp_path / "out", export_model("embedded", tmp_path / "old")
    kept = {file.name: file.read_bytes() for file in old.iterdir()}
    first, other, revision = export_from(
        hub, (f"owner/model#{COMMIT}", out), ("owner/other", tmp_path / "x"), ("owner/model@v9", old)
    )
    assert first == str(out) and hub.starts == [0, CHUNK, CHUNK]  # each went on where the last one ended
    assert (out / "bpe.codes").read_bytes() == (EMBEDDED / "bpe.codes").read_bytes()
    assert hub.revisions == {COMMIT}
    assert "The hub has no model 'owner/other'" in other
    assert "no revision 'v9'" in revision
    assert {file.name: file.read_bytes() for file in old.iterdir()} == kept

    hub.shutdown()
    hub.server_close()
    again, third = export_from(
        hub, (f"owner/model@{COMMIT}", tmp_path / "again"), ("owner/third", tmp_path / "third")
    )
    assert again == str(tmp_path / "again")  # from the cache
    assert "can't be reached" in third and "'embedded'" in third
    assert not (tmp_path / "third").exists() and not (tmp_path / "x").exists()


def test_a_revision_may_stand_in_the_name_and_a_chapter_shows_the_bar_too(hub: Hub, tmp_path: Path) -> None:
    """`import course` silences transformers' bars, whose switch is the hub's too."""
    begin = f"import sys; sys.path.insert(0, {str(ROOT / 'notebooks')!r}); import course"
    said = export_from(hub, (f"owner/model@{COMMIT}", tmp_path / "out"), before=begin)
    assert said == [str(tmp_path / "out")]
    assert hub.revisions == {COMMIT} and hub.starts


def test_a_repository_with_a_pickle_alone_becomes_safetensors(
    hub: Hub, model_dir: Path, tmp_path: Path
) -> None:
    """As the article's own model was when it was written."""
    hub.names["pytorch_model.bin"] = tmp_path / "pytorch_model.bin"
    torch.save(load_file(hub.names.pop("model.safetensors")), hub.names["pytorch_model.bin"])
    out = Path(*export_from(hub, ("owner/model", tmp_path / "out")))
    exported, wanted = (load_file(folder / "model.safetensors") for folder in (out, model_dir))
    assert exported.keys() == wanted.keys()
    assert all(torch.equal(exported[name], wanted[name]) for name in wanted)
    assert not (out / "pytorch_model.bin").exists()


@pytest.mark.models
def test_a_chapter_runs_alone_with_a_model_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    """In a copy of the course with nothing built: what it needs of earlier chapters, it makes."""
    folder = tmp_path / "course"
    run_chapters("01", folder, f"owner/model@{COMMIT}", **asking(hub, tmp_path / "hub"))
    assert hub.revisions == {COMMIT} and hub.starts == [0]
    assert (folder / "build" / "my_model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        (("config.json", "vocab.txt"), "There are no weights"),
        (("adapter_config.json", "adapter_model.safetensors"), "merge_and_unload"),
    ],
)
def test_a_repository_without_a_whole_model_is_said(
    kept: tuple[str, ...], sentence: str, hub: Hub, tmp_path: Path
) -> None:
    hub.names = {name: hub.names.get(name, EMBEDDED / "config.json") for name in kept}
    (said,) = export_from(hub, ("owner/model", tmp_path / "out"))
    assert sentence in said
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_that_does_not_survive_saving_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without export's fix, bpe.codes comes back without its last column, and words are split differently."""

    def only_save(model: Any, tokenizer: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    monkeypatch.setattr("tutorial_lib.export.model.save_model", only_save)
    with pytest.raises(ExportError, match="tokenizer did not survive"):
        export_model("embedded", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_survive_saving_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutorial_lib.export import model as export

    whole = export.save_model

    def and_spoil(model: Any, tokenizer: Any, folder: Path) -> None:
        whole(model, tokenizer, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["classifier.out_proj.bias"] = tensors["classifier.out_proj.bias"] + float("nan")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr("tutorial_lib.export.model.save_model", and_spoil)
    with pytest.raises(ExportError, match="weights did not survive"):
        export_model("embedded", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_is_missing_is_not_made_up(model_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["classifier.dense.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"lack 1 of the model's tensors.*classifier.dense.weight"):
        export_model(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_older_pickle_of_weights_becomes_safetensors(model_dir: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(model_dir, older)
    torch.save(load_file(older / "model.safetensors"), older / "pytorch_model.bin")
    (older / "model.safetensors").unlink()
    out = export_model(older, tmp_path / "out")
    assert (out / "model.safetensors").is_file() and not (out / "pytorch_model.bin").exists()


@pytest.mark.parametrize("model_id", ["", "no/such/folder", "./nowhere", "../a/b", "owner", "owner/model@"])
def test_names_that_are_no_model_are_said_without_asking_the_hub(model_id: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'embedded'|no config.json"):
        export_model(model_id, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_revisions_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Leave one of them out"):
        export_model("owner/model@v1", tmp_path / "out", revision="v2")


def test_out_that_is_a_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ExportError, match="is a file"):
        export_model("embedded", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


# Folders


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


@pytest.mark.parametrize("other", ["is between its renames", "has just finished"])
def test_two_processes_export_to_one_folder(
    other: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chapters do so side by side. The other process is played: its moment lasts for microseconds."""
    out, rename = tmp_path / "out", Path.replace
    met: list[Path] = []
    shutil.copytree(model_dir, out)

    def replace(self: Path, target: Path) -> Path:
        if not met and self == out and other == "is between its renames":
            met.append(rename(out, tmp_path / "elsewhere"))
        if not met and target == out and other == "has just finished":
            met.append(shutil.copytree(model_dir, out))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    export_model(model_dir, out)
    assert met and (out / "model.safetensors").is_file()
    assert not [*tmp_path.glob(".out-*")]


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


# Models of other kinds


def save_tiny(kind: str, folder: Path, **options: Any) -> Path:
    """A classifier of one layer with random weights, without its tokenizer."""
    import transformers

    sizes: dict[str, dict[str, int]] = {
        "Bert": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        "T5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    }
    config = getattr(transformers, f"{kind}Config")(**sizes[kind], **options)
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    return folder


def save_words(folder: Path) -> None:
    """A tokenizer that knows some words, with the special pieces of BERT and T5."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = (
        "[PAD]",
        "[UNK]",
        "</s>",
        "I",
        "love",
        "this",
        "phone",
        "the",
        "meeting",
        "is",
        "at",
        "not",
        "bad",
    )
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>"
    )
    fast.save_pretrained(folder)


def test_a_model_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"its vocabulary is missing.*tokenizer\.save_pretrained"):
        export_model(save_tiny("Bert", tmp_path / "bert", vocab_size=100), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    save_words(save_tiny("Bert", tmp_path / "bert", vocab_size=9))
    with pytest.raises(ExportError, match="do not belong together"):
        export_model(tmp_path / "bert", tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_mount_point_is_filled_and_filled_again(tmp_path: Path) -> None:
    """A volume of a container is one."""
    out = tmp_path / "volume"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(out)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine allows no mounts")
    try:
        names = {file.name for file in export_model("embedded", out).iterdir()}
        export_model("embedded", out)
        assert {file.name for file in out.iterdir()} == names and "model.safetensors" in names
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_a_folder_that_can_not_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="can't be written to"):
        export_model("embedded", tmp_path / "file" / "out")
