"""export_onnx, and the handler's backends, held against plain torch."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import yaml
from course.texts import sample_tweets
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

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
    [
        ({"backend": "onnx"}, 0.1),
        ({"backend": "torch", "dtype": "bfloat16"}, 0.03),
        ({"backend": "torch", "forward_size": 3}, 1e-5),
    ],
    ids=["onnx int8", "bfloat16", "another batch"],
)
def test_every_backend_gives_the_same_labels(
    folder: Path, tmp_path: Path, options: dict[str, Any], farthest: float
) -> None:
    expected, found = ask(folder, tmp_path, backend="torch"), ask(folder, tmp_path, **options)
    pairs = [(a.body[0], b.body[0]) for a, b in zip(expected, found, strict=True)]
    assert sum(a["label"] == b["label"] for a, b in pairs) >= 0.98 * len(pairs)
    assert all(abs(a["score"] - b["score"]) <= farthest for a, b in pairs if a["label"] == b["label"])


def test_an_int8_answer_does_not_depend_on_its_neighbours(folder: Path, tmp_path: Path) -> None:
    """To the last bits, in which sums of another order differ."""
    alone = [answer.body[0] for answer in ask(folder, tmp_path, backend="onnx", forward_size=1)]
    for size in (2, 4, 60):
        together = [answer.body[0] for answer in ask(folder, tmp_path, backend="onnx", forward_size=size)]
        assert [one["label"] for one in together] == [one["label"] for one in alone]
        for one, other in zip(alone, together, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)


@pytest.mark.models
@pytest.mark.parametrize("architecture", ["albert", "deberta-v2"])
def test_int8_of_other_architectures_is_close_and_of_integers(tmp_path: Path, architecture: str) -> None:
    """ALBERT's layers share their weights."""
    model = tiny_model(tmp_path / "model", architecture)
    assert b"MatMulIntegerToFloat" in export_onnx(model).read_bytes()
    expected, found = ask(model, tmp_path, backend="torch"), ask(model, tmp_path, backend="onnx")
    for one, other in zip(expected, found, strict=True):
        assert one.body[0]["score"] == pytest.approx(other.body[0]["score"], abs=0.05)


def test_auto_takes_what_the_archive_and_the_machine_have(
    folder: Path,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def log(folder: Path, **options: Any) -> str:
        caplog.clear()
        with caplog.at_level("INFO"):
            ask(folder, tmp_path, **options)
        return caplog.text

    assert "Using backend onnx" in log(folder)
    assert "Using backend torch" in log(model_dir)
    assert "Using backend torch" in log(folder, backend="torch", dtype="auto")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda *of: None if of[0] == "onnxruntime" else find(*of)
    )
    said = log(folder)
    assert "Using backend torch" in said and "pip install onnxruntime" in said


@pytest.mark.parametrize(("able", "taken"), [(True, "bfloat16"), (False, "float32")])
def test_dtype_auto_is_bfloat16_where_the_processor_computes_in_it(
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    able: bool,
    taken: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": able})
    with caplog.at_level("INFO"):
        ask(model_dir, tmp_path, dtype="auto")
        assert f"Using backend torch in {taken}" in caplog.text
        ask(model_dir, tmp_path, dtype="bfloat16")
    assert ("float32 is faster" in caplog.text) is not able


def test_a_graph_of_full_precision_alone(tmp_path: Path) -> None:
    graph = export_onnx(tiny_model(tmp_path, "bert"), int8=False).read_bytes()
    assert b"MatMul" in graph and b"MatMulInteger" not in graph


def test_a_full_precision_graph_gives_the_same_scores(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "my_model"
    shutil.copytree(folder, own)
    small = (own / "model.onnx").stat().st_size
    shutil.copy(folder.with_name("float32.onnx"), own / "model.onnx")
    assert (own / "model.onnx").stat().st_size > 1.5 * small
    expected, found = ask(folder, tmp_path, backend="torch"), ask(own, tmp_path, backend="onnx")
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
    ("cores", "options", "passes"),
    [
        ("3", {"passes": "auto", "threads": 1}, 3),
        ("5", {"passes": "auto", "threads": 2}, 2),
        ("2", {"passes": "auto", "threads": 4}, 1),
        ("4", {"passes": "auto"}, 1),  # torch takes all cores for one pass then
        ("4", {"passes": 2, "threads": 1}, 2),
        ("4", {}, 1),
    ],
)
def test_passes_auto_are_as_many_as_there_are_cores_for(
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cores: str,
    options: dict[str, Any],
    passes: int,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", cores)
    before = torch.get_num_threads()
    try:
        with caplog.at_level("INFO"):
            ask(model_dir, tmp_path, **options)
    finally:
        torch.set_num_threads(before)
    assert f"Forward passes at once: {passes}\n" in caplog.text


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_passes_at_once_give_the_answers_of_one_after_the_other(
    folder: Path, tmp_path: Path, backend: str
) -> None:
    one, three = (ask(folder, tmp_path, backend=backend, threads=1, passes=passes) for passes in (1, 3))
    assert [answer.body for answer in one] == [answer.body for answer in three]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({"passes": bad}, f"passes is {bad!r}") for bad in (0, -1, 1.5, True, "many", None)),
        ({"backend": "onnx"}, "Missing model.onnx: .*export_onnx"),
        ({"backend": "tensorflow"}, "no backend 'tensorflow': it is auto, torch or onnx"),
        ({"dtype": "int8"}, "no dtype 'int8': it is auto, float32 or bfloat16"),
    ],
)
def test_options_that_can_not_be_had(
    model_dir: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RuntimeError, match=said):
        ask(model_dir, tmp_path, **options)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_worker_too_many_for_the_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=5_000_000))
    with pytest.raises(RuntimeError, match=r"weights need .* and 5 MB are free.*minWorkers"):
        ask(folder, tmp_path, backend=backend)


# Which weights a graph was made of


def change_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"] = tensors["classifier.bias"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.faults
@pytest.mark.parametrize("int8", [True, False])
def test_a_graph_says_which_weights_it_was_made_of(int8: bool, tmp_path: Path) -> None:
    """In its metadata, and readable at its end, without a package that knows ONNX."""
    model = tiny_model(tmp_path / "model", "bert")
    full = tmp_path / "float32.onnx"
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    for graph in (export_onnx(model, int8=int8, keep_float32=full), full):
        metadata = onnxruntime.InferenceSession(graph).get_modelmeta().custom_metadata_map
        assert metadata["weights_sha256"] == digest
        found = re.findall(rb"weights_sha256\W+([0-9a-f]{64})", graph.read_bytes()[-65_536:])
        assert found == [digest.encode()]
        onnx.checker.check_model(onnx.load(graph))


@pytest.mark.faults
@pytest.mark.parametrize("backend", ["auto", "onnx"])
def test_a_graph_of_other_weights_is_refused_and_a_new_one_answers(backend: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "bert")
    export_onnx(model)
    ask(model, tmp_path, backend=backend)
    change_weights(model)
    with pytest.raises(RuntimeError, match=r"model\.onnx was made of other weights than model\.safetensors"):
        ask(model, tmp_path, backend=backend)
    ask(model, tmp_path, backend="torch")
    export_onnx(model)
    ask(model, tmp_path, backend=backend)


@pytest.mark.faults
def test_a_graph_without_a_mark_answers(tmp_path: Path) -> None:
    """As earlier versions wrote it, or the reader."""
    model = tiny_model(tmp_path / "model", "bert")
    graph = onnx.load(export_onnx(model))
    del graph.metadata_props[:]
    onnx.save(graph, model / "model.onnx")
    change_weights(model)
    assert all(answer.status == 200 for answer in ask(model, tmp_path, backend="onnx"))


@pytest.mark.faults
def test_a_graph_of_weights_in_parts(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "bert")
    loaded = AutoModelForSequenceClassification.from_pretrained(model)
    (model / "model.safetensors").unlink()
    loaded.save_pretrained(model, max_shard_size="10KB")
    export_onnx(model)
    ask(model, tmp_path, backend="onnx")
    parts = sorted(model.glob("model-*-of-*.safetensors"))
    parts[0].write_bytes(parts[0].read_bytes()[:-1] + b"\x01")
    with pytest.raises(RuntimeError, match="made of other weights"):
        ask(model, tmp_path, backend="onnx")


@pytest.mark.parametrize("missing", ["torch", "transformers", "onnx", "onnxruntime", "onnxscript"])
def test_without_a_package_it_names_itself_and_its_extra(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from tutorial_lib import export_onnx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1]
    assert f"export_onnx needs the package {missing}," in said
    assert "pip install 'torchserve-course[onnx]'" in said
