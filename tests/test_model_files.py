"""ModelFiles: one object for the files around a model, wherever the keywords are taken."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import pytest

from tutorial_lib import ModelFiles, TorchServe, build_archive
from tutorial_lib.testing import check_handler, run_handler

HANDLER = """
from pathlib import Path

def handle(data, context):
    folder = Path(context.system_properties["model_dir"])
    return data and [(folder / "words.txt").read_text()] * len(data)
"""


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    (tmp_path / "own.py").write_text(HANDLER)
    (tmp_path / "words.txt").write_text("a few words")
    (tmp_path / "settings.yaml").write_text("minWorkers: 1\nbatchSize: 4\n")
    return ModelFiles(
        tmp_path / "own.py",
        extra_files=[tmp_path / "words.txt"],
        config_file=str(tmp_path / "settings.yaml"),
    )


def content(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as mar:
        return {name: mar.read(name) for name in mar.namelist() if "MANIFEST" not in name}


def test_an_archive_of_model_files_is_that_of_the_keywords(files: ModelFiles, tmp_path: Path) -> None:
    one = build_archive("one", files, export_path=tmp_path / "store")
    two = build_archive(
        "two",
        handler=files.handler,
        extra_files=files.extra_files,
        config_file=files.config_file,
        export_path=tmp_path / "store",
    )
    assert content(one) == content(two)


def test_a_handler_of_model_files_is_run_and_checked(files: ModelFiles) -> None:
    assert [answer.body for answer in run_handler(files, ["a", "b"])] == ["a few words"] * 2
    without = dataclasses.replace(files, extra_files=())
    assert run_handler(without, ["a"])[0].status == 503
    assert not check_handler(without, ["a"]).ok


def test_redeployed_files_replace_all_that_they_name(files: ModelFiles, tmp_path: Path) -> None:
    archive = build_archive("own", files, export_path=tmp_path / "store")
    with TorchServe(models={"own": archive}, model_api=True) as server:
        (tmp_path / "words.txt").write_text("other words")
        assert server.redeploy("own", files) == "1.1"
        assert server.inference.predict("own", "a") == "other words"
        (tmp_path / "words.txt").write_text("a third time")
        assert server.redeploy("own", extra_files=[tmp_path / "words.txt"]) == "1.2"
        assert server.inference.predict("own", "a") == "a third time"


def test_an_exported_model_is_redeployed_as_model_files(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.py").write_text(
        "def handle(data, context):\n    return data and ['new'] * len(data)\n"
    )
    archive = build_archive("exported", handler="handler.py", model_dir=model_dir, export_path=tmp_path)
    with TorchServe(models={"m": archive}, model_api=True) as own:
        own.redeploy("m", ModelFiles(tmp_path / "answers.py", model_dir=model_dir))
        assert own.inference.predict("m", "a") == "new"
        with pytest.raises(TypeError, match="model_dir names a whole model"):
            own.redeploy("m", model_dir=model_dir)


@pytest.mark.parametrize(
    "call", [build_archive, lambda name, files, **more: run_handler(files, ["a"], **more)]
)
def test_files_are_given_once(call: object, files: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Both a ModelFiles and extra_files were given"):
        call("m", files, extra_files=[tmp_path / "words.txt"])  # type: ignore[operator]


def test_no_handler_and_an_unknown_field_are_type_errors() -> None:
    with pytest.raises(TypeError, match="handler"):
        build_archive("m")
    with pytest.raises(TypeError, match="extra_file"):
        build_archive("m", handler="handler.py", extra_file=["a"])  # type: ignore[call-arg]
