"""Export, archive, logs and the environment check."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tutorial_lib import (
    ArchiveError,
    build_archive,
    read_manifest,
)
from tutorial_lib.archive import ArchiveFormat


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
