"""Export, archive, logs and the environment check."""

from __future__ import annotations

import shutil
from pathlib import Path
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
