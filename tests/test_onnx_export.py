"""export_onnx, and the handler's backends, held against plain torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from course.texts import sample_tweets

from tests.conftest import ROOT
from tests.models import tiny_model
from tutorial_lib import export_onnx
from tutorial_lib.testing import HandlerAnswer, run_handler

TEXTS = [tweet.text for tweet in sample_tweets(60)]


@pytest.fixture(scope="module")
def folder(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of its own, with an int8 model.onnx in it."""
    own = tmp_path_factory.mktemp("onnx") / "my_model"
    shutil.copytree(model_dir, own)
    export_onnx(own, keep_float32=own.with_name("float32.onnx"))
    return own


def ask(folder: Path, tmp_path: Path, **options: Any) -> list[HandlerAnswer]:
    config = tmp_path / "model-config.yaml"
    config.write_text(yaml.safe_dump({"handler": options}))
    requests = [{"body": {"input": [text], "scores": True}} for text in TEXTS]
    return run_handler(ROOT / "handler.py", requests, model_dir=folder, config_file=config)


@pytest.mark.parametrize(
    ("options", "farthest"),
    [({"backend": "onnx"}, 0.15), ({"dtype": "bfloat16"}, 0.03), ({"forward_size": 3}, 1e-5)],
    ids=["onnx int8", "bfloat16", "another batch"],
)
def test_every_backend_gives_the_same_labels(
    folder: Path, tmp_path: Path, options: dict[str, Any], farthest: float
) -> None:
    expected, found = ask(folder, tmp_path), ask(folder, tmp_path, **options)
    pairs = [(a.body[0], b.body[0]) for a, b in zip(expected, found, strict=True)]
    assert sum(a["label"] == b["label"] for a, b in pairs) >= 0.98 * len(pairs)
    assert all(abs(a["score"] - b["score"]) <= farthest for a, b in pairs if a["label"] == b["label"])


def test_a_graph_of_full_precision_alone(tmp_path: Path) -> None:
    graph = export_onnx(tiny_model(tmp_path, "bert"), int8=False).read_bytes()
    assert b"MatMul" in graph and b"MatMulInteger" not in graph


def test_a_full_precision_graph_gives_the_same_scores(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "my_model"
    shutil.copytree(folder, own)
    small = (own / "model.onnx").stat().st_size
    shutil.copy(folder.with_name("float32.onnx"), own / "model.onnx")
    assert (own / "model.onnx").stat().st_size > 1.5 * small
    expected, found = ask(folder, tmp_path), ask(own, tmp_path, backend="onnx")
    for a, b in zip(expected, found, strict=True):
        assert a.body[0]["label"] == b.body[0]["label"]
        assert a.body[0]["score"] == pytest.approx(b.body[0]["score"], abs=1e-4)


def test_threads_are_those_asked_for(model_dir: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        ask(model_dir, tmp_path, threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "onnx"}, "Missing model.onnx: .*export_onnx"),
        ({"backend": "tensorflow"}, "no backend 'tensorflow': it is torch or onnx"),
        ({"dtype": "int8"}, "no dtype 'int8': it is float32 or bfloat16"),
    ],
)
def test_options_that_can_not_be_had(
    model_dir: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RuntimeError, match=said):
        ask(model_dir, tmp_path, **options)
