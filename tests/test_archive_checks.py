"""What is said about code, settings and weights before a worker fails on them, or answers wrongly."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import handlers
from tests.conftest import ROOT
from tutorial_lib import ArchiveError, build_archive
from tutorial_lib.archives.building import lay_out, new_version
from tutorial_lib.archives.model_files import ModelFiles, check, gather
from tutorial_lib.testing import run_handler

pytestmark = pytest.mark.faults

HANDLER = "def handle(data, context):\n    return data and [1] * len(data)\n"
CLASS = """
class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [1] * len(data)
"""


def write(folder: Path, **files: str) -> None:
    """Writes text files; "__" stands for "/", and "_py" at the end for ".py"."""
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_py", ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


# The handler: each source, and what is said about it; None where TorchServe can use it.
SOURCES: list[tuple[str, str | None]] = [
    (HANDLER, None),
    (CLASS, None),
    ("def handle(:\n", "is not Python"),
    ("def handle(data, context):\n\treturn 1\n        return 2\n", "is not Python"),
    ("\0", "is not Python"),
    ("def predict(data):\n    return data\n", "defines no class and no function handle"),
    ("import logging\nlogger = logging.getLogger()\n", "defines no class and no function handle"),
    (
        "from ts.torch_handler.image_classifier import ImageClassifier as ImageHandler\n",
        r"an imported class does not count, but class Own\(ImageHandler\) does",
    ),
    (CLASS + "\n\nclass Settings:\n    pass\n", r"defines 2 classes \(Handler, Settings\)"),
    (
        "from collections import namedtuple\nRow = namedtuple('Row', 'a b')\n" + CLASS,
        r"2 classes \(Row, Handler\)",
    ),
    ("from enum import Enum\nColor = Enum('Color', 'RED')\n" + CLASS, r"2 classes \(Color, Handler\)"),
    ("from dataclasses import dataclass\n@dataclass\nclass Row:\n    a: int\n" + CLASS, "2 classes"),
    (CLASS + "\n\nclass Settings:\n    pass\n" + HANDLER, None),  # `handle` comes first
    (CLASS + "\n\nclass Once:\n    pass\n\ndel Once\n", None),
    ("from pathlib import Path\nfrom ts.torch_handler.base_handler import BaseHandler\n" + CLASS, None),
    ("def make():\n    class Inner:\n        pass\n    return Inner\n" + CLASS, None),
    ("if True:\n" + "".join(f"    {line}\n" for line in CLASS.splitlines()), None),
    (
        CLASS
        + "\n_service = Handler()\nhandle = lambda data, context: data and _service.handle(data, context)\n",
        None,
    ),
    ("from own import handle\n", None),
    ("from own import *\n", None),
    (CLASS.replace("class Handler:", "class Handler:\n    class Row:\n        pass\n"), None),
    (CLASS.replace("initialize", "setup"), "has no method initialize, which|has no method initialize"),
    (CLASS.replace("def handle", "def predict"), "has no method handle"),
    (
        CLASS.replace("class Handler:", "class Handler:\n    def __init__(self, size):\n        pass\n"),
        "its __init__ needs size",
    ),
    ("from .own import handle\n", "has a relative import"),
    ("from own import Base\n\nclass Handler(Base):\n    pass\n", None),
]


@pytest.mark.parametrize(("source", "sentence"), SOURCES)
def test_a_handler_is_refused_if_and_only_if_torchserve_can_not_load_it(
    source: str, sentence: str | None, tmp_path: Path
) -> None:
    write(tmp_path, handler_py=source, own_py=HANDLER + CLASS.replace("Handler", "Base"))
    files: dict[str, Any] = {"handler": tmp_path / "handler.py", "extra_files": [tmp_path / "own.py"]}
    if sentence is None:
        check(gather(ModelFiles(**files)))
        assert run_handler(requests=[{"body": "a"}], **files)[0].body == 1
        return
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", **files, export_path=tmp_path / "store")
    with pytest.raises((Exception, SystemExit)):  # of any kind, as the worker would raise it
        run_handler(requests=[{"body": "a"}], **files)


@pytest.mark.parametrize("name", ["my-handler.py", "my handler.py", "class.py", "2nd.py", "my.handler.py"])
def test_a_file_name_that_python_can_not_import_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(HANDLER)
    if "." not in Path(name).stem:
        check(gather(ModelFiles(tmp_path / name)))
        assert run_handler(tmp_path / name, [{"body": "a"}])[0].body == 1
        return
    with pytest.raises(ArchiveError, match=r"its name has a '\.' before \.py.*Rename it"):
        build_archive("m", handler=tmp_path / name, export_path=tmp_path / "store")
    with pytest.raises(ImportError):
        run_handler(tmp_path / name, [{"body": "a"}])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "import helper\n",
            "handler.py imports helper, and .*helper.py is not packed: add it to extra_files",
        ),
        ("from helper import a\n", "helper.py is not packed"),
        ("import tools.words\n", "tools is not packed"),
        ("def handle(data, context):\n    import helper\n", "helper.py is not packed"),
        ("try:\n    import helper\nexcept ValueError:\n    pass\n", "helper.py is not packed"),
        ("try:\n    import helper\nexcept ImportError:\n    helper = None\n", None),
        ("try:\n    import helper\nexcept (ModuleNotFoundError, OSError):\n    helper = None\n", None),
        ("try:\n    import helper\nexcept Exception:\n    helper = None\n", None),
        ("try:\n    import helper\nexcept:\n    helper = None\n", None),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from helper import a\n", None),
        ("import typing\nif typing.TYPE_CHECKING:\n    import helper\n", None),
        ("if __name__ == '__main__':\n    import helper\n", None),
        ("import packed\n", None),
        ("import tutorial_lib, yaml, json\n", None),  # installed
        ("import no_such_package_anywhere\n", None),  # the server may have it
    ],
)
def test_a_neighbour_that_is_imported_and_not_packed(
    source: str, sentence: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        helper_py="a = 1",
        tools____init___py="",
        packed_py="",
        yaml_py="",
        tutorial_lib____init___py="",
    )
    (tmp_path / "tools").mkdir(exist_ok=True)
    (tmp_path / "tools" / "words.py").write_text("")
    (tmp_path / "tutorial_lib").mkdir(exist_ok=True)
    (tmp_path / "tutorial_lib" / "x.py").write_text("")
    (tmp_path / "handler.py").write_text(source + HANDLER)
    monkeypatch.chdir(tmp_path)
    arguments: dict[str, Any] = {
        "handler": "handler.py",
        "extra_files": ["packed.py"],
        "export_path": "store",
    }
    if sentence is None:
        build_archive("m", **arguments)
        return
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", **arguments)


@pytest.mark.parametrize(
    ("source", "extra", "text", "sentence"),
    [
        ("import transformers\n", "tokenizers.py", "", "in place of the installed package tokenizers"),
        ("from transformers import pipeline\n", "transformers.py", "", "installed package transformers"),
        ("from transformers import pipeline\n", "transformers.py", "pipeline = 1", None),
        ("", "requests.py", "import requests\n", "installed package requests"),
        ("from requests import own\n", "requests.py", "own = 1", None),
        ("import json\n", "requests.py", "own = 1", None),
        ("import utilities\n", "utilities.py", "", None),
    ],
)
def test_a_file_with_the_name_of_an_installed_package(
    source: str, extra: str, text: str, sentence: str | None, tmp_path: Path
) -> None:
    (tmp_path / "handler.py").write_text(source + HANDLER)
    (tmp_path / extra).write_text(text)
    arguments: dict[str, Any] = {"handler": tmp_path / "handler.py", "extra_files": [tmp_path / extra]}
    if sentence is None:
        check(gather(ModelFiles(**arguments)))
        return
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", **arguments, export_path=tmp_path / "store")


# Settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("batch_size: 8", "has batch_size, which TorchServe ignores. Write batchSize"),
        ("BatchSize: 8", "Write batchSize"),
        ("min_workers: 1", "Write minWorkers"),
        ("maxWorker: 1", "Write maxWorkers"),
        ("maxBatchDealy: 1", "Write maxBatchDelay"),
        ("job-queue-size: 9", "Write jobQueueSize"),
        ("response_timeout: 9", "Write responseTimeout"),
        ("jobQueueSize: many", "jobQueueSize: 'many'. Give a whole number of at least 1"),
        ("batchSize: '8'", "batchSize: '8'. Give a whole number"),
        ("batchSize: [8]", r"batchSize: \[8\]"),
        ("batchSize:", "batchSize: None"),
        ("batchSize: 0", "at least 1"),
        ("maxBatchDelay: 0.5", "maxBatchDelay: 0.5. Give a whole number of at least 0"),
        ("deviceType: gpux", "deviceType: 'gpux'. Give one of cpu, gpu"),
        ("deviceType: 0", "deviceType: 0"),
        ("deviceIds: 0", "deviceIds: 0. Give a list of whole numbers"),
        ("deviceIds: ['0']", "Give a list of whole numbers"),
        ("useJobTicket: 'yes'", "useJobTicket: 'yes'. Give true or false"),
        ("torchrun: 2", "torchrun: 2. Give a section"),
        ("parallelType: both", "parallelType: 'both'"),
        ("service_envelope: jsn", "Give one of body, json"),
        ("handler: {batchSize: 8}", "has batchSize in the section handler, where TorchServe does not look"),
        ("model: {minWorkers: 2, maxWorkers: 4}", "minWorkers, maxWorkers in the section model"),
        ("minWorkers: 1\nhandler: {max_texts: 8, batch_size: 4}", None),
        ("micro_batching: {micro_batch_size: 4}\npt2: {compile: {enable: true}}", None),
        ("torchrun: {nproc-per-node: 4}\nparallelType: tp\nckpt: a\ndeepspeed: {config: a.json}", None),
        ("deviceType: gpu\ndeviceIds: [0, 1]\nuseJobTicket: true\nmaxRetryTimeoutInSec: 60", None),
        ("max_length: 8\nthreshold: 0.5\nworkers: 2\ntimeout: 3\nmodel_name: a\nlabels: [a]\n1: one", None),
        ("own_batch: 3\nmin_worker: 2", None),  # read by the handler
    ],
)
def test_settings_that_are_nearly_right(settings: str, sentence: str | None, tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(HANDLER + "MINE = 'min_worker'\n")
    (tmp_path / "settings.yaml").write_text(settings)
    arguments: dict[str, Any] = {
        "handler": tmp_path / "handler.py",
        "config_file": tmp_path / "settings.yaml",
    }
    if sentence is None:
        check(gather(ModelFiles(**arguments)))
        return
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", **arguments, export_path=tmp_path / "store")


# Weights: two sets, older ones, other types


def onnx(weights: Path | None = None) -> bytes:
    """The end of an ONNX file, with the mark that `export_onnx` writes."""
    import hashlib

    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else "0" * 64
    return b"graph" * 99 + b"\x72\x54\x0a\x0eweights_sha256\x12\x40" + digest.encode()


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    write(folder, **{"config.json": '{"model_type": "bert"}'})
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    (tmp_path / "handler.py").write_text(HANDLER)
    return folder


def build(folder: Path, **arguments: Any) -> Path:
    files = {"handler": folder.parent / "handler.py", "model_dir": folder}
    return build_archive("m", **{**files, **arguments}, export_path=folder.parent / "store")


def test_an_onnx_file_of_earlier_weights_is_refused(model_dir: Path) -> None:
    weights, graph = model_dir / "model.safetensors", model_dir / "model.onnx"
    graph.write_bytes(onnx(weights))
    os.utime(graph, (10**9, 10**9))  # the mark counts, not the time
    build(model_dir)
    save_file({"w": torch.ones(2)}, weights)
    os.utime(weights, (10**8, 10**8))
    with pytest.raises(
        ArchiveError, match=r"model\.onnx was made of earlier weights.*export_onnx\(model_dir\)"
    ):
        build(model_dir)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "other.onnx"])
def test_a_file_without_a_mark_is_compared_by_its_time(name: str, model_dir: Path) -> None:
    (model_dir / name).write_bytes(b"a graph")
    build(model_dir)
    os.utime(model_dir / name, (10**9, 10**9))
    if name == "other.onnx":  # may be another model
        build(model_dir)
        return
    with pytest.raises(ArchiveError, match="was made of earlier weights"):
        build(model_dir)


def test_new_weights_of_a_version_replace_the_old_ones(model_dir: Path, tmp_path: Path) -> None:
    """Weights in one file or in shards; what was made of the old ones is refused until it is replaced too."""
    tuned = tmp_path / "tuned.safetensors"
    save_file({"w": torch.ones(2)}, tuned)
    lay_out(tmp_path / "old", handler=tmp_path / "handler.py", model_dir=model_dir)
    new_version(tmp_path / "old", tmp_path / "new", version="1.1", serialized_file=tuned)
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == tuned.read_bytes()
    assert not (tmp_path / "new" / "tuned.safetensors").exists()
    for graph in (b"a graph", onnx(tmp_path / "old" / "model.safetensors")):
        (tmp_path / "old" / "model.onnx").write_bytes(graph)
        with pytest.raises(ArchiveError, match=r"model\.onnx was made of earlier weights"):
            new_version(tmp_path / "old", tmp_path / "no", version="1.1", serialized_file=tuned)
    (tmp_path / "model.onnx").write_bytes(onnx(tuned))
    edited = {"serialized_file": tuned, "extra_files": [tmp_path / "model.onnx"]}
    new_version(tmp_path / "old", tmp_path / "both", version="1.1", **edited)  # type: ignore[arg-type]
    (tmp_path / "old" / "model.onnx").unlink()
    for name in (SHARD.format(1), SHARD.format(2)):
        save_file({"w": torch.zeros(1)}, tmp_path / "old" / name)
    (tmp_path / "old" / "model.safetensors.index.json").write_text(INDEX)
    new_version(tmp_path / "old", tmp_path / "whole", version="1.1", serialized_file=tuned)
    assert [file.name for file in (tmp_path / "whole").glob("*.safetensors*")] == ["model.safetensors"]


SHARD = "model-0000{}-of-00002.safetensors"
INDEX = json.dumps({"weight_map": {"a": SHARD.format(1), "b": SHARD.format(2)}})


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([SHARD.format(1), SHARD.format(2), "model.safetensors.index.json"], None),
        (
            [SHARD.format(1), "model.safetensors.index.json"],
            "have not the same weights: model-00002-of-00002",
        ),
        ([SHARD.format(1), SHARD.format(2)], "their index .* can't be read"),
        (
            ["model.safetensors", "pytorch_model.bin"],
            "more than one set of weights: model.safetensors, pytorch_m",
        ),
        (["model.safetensors", "tuned.safetensors"], "more than one set of weights"),
        (["model.safetensors", SHARD.format(1)], "more than one set of weights"),
        (["model.safetensors", "training_args.bin"], None),
        (["pytorch_model.bin"], "no safetensors weights"),
    ],
)
def test_a_model_folder_has_its_weights_once(files: list[str], sentence: str | None, model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    for name in files:
        if name.endswith(".safetensors"):
            save_file({"w": torch.zeros(2)}, model_dir / name)
        else:
            (model_dir / name).write_text(INDEX)
    if sentence is None:
        build(model_dir)
        return
    with pytest.raises(ArchiveError, match=sentence):
        build(model_dir)


def test_weights_of_a_name_that_the_handler_does_not_load(model_dir: Path) -> None:
    by_default_name = model_dir.parent / "by_default_name.py"
    by_default_name.write_text(
        "from transformers import AutoModel\n\n\n"
        "def handle(data, context):\n    AutoModel.from_pretrained('.')\n"
    )
    (model_dir / "model.safetensors").rename(model_dir / "tuned.safetensors")
    tuned, config = model_dir / "tuned.safetensors", model_dir / "config.json"
    arguments = {"model_dir": None, "serialized_file": tuned, "extra_files": [config]}
    with pytest.raises(ArchiveError, match=r"looks for model\.safetensors, not for tuned\.safetensors"):
        build(model_dir, handler=by_default_name, **arguments)
    build(model_dir, handler=ROOT / "handler.py", **arguments)  # it loads what the manifest names


def test_an_adapter_and_a_model_with_code_of_its_own_get_a_sentence_of_their_own(model_dir: Path) -> None:
    own = {"model_type": "own", "auto_map": {"AutoModel": "modeling_own.OwnModel"}}
    (model_dir / "config.json").write_text(json.dumps(own))
    with pytest.raises(ArchiveError, match=r"Python code of its own .*trust_remote_code.*model_file="):
        build(model_dir)
    (model_dir / "config.json").write_text(json.dumps({**own, "model_type": "bert"}))
    build(model_dir)  # transformers has its own class for it
    (model_dir / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    for say in (build, lambda folder: run_handler(ROOT / "handler.py", ["a text"], model_dir=folder)):
        with pytest.raises(ArchiveError, match=r"LoRA adapter .* the weights of org/base.*merge_and_unload"):
            say(model_dir)


@pytest.fixture
def net(tmp_path: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A plain torch model in float32, and the arguments for an archive of it."""
    (tmp_path / "image.py").write_text(handlers.IMAGE)
    model_file, weights = handlers.write_model(tmp_path, "image", handlers.IMAGE_MODEL)
    namespace: dict[str, Any] = {}
    exec(handlers.IMAGE_MODEL.replace("super()", "super(Net, self)"), namespace)
    model = namespace["Net"]()
    model.load_state_dict(torch.load(weights))
    return model, {"handler": tmp_path / "image.py", "model_file": model_file, "serialized_file": weights}


STATES: list[tuple[Any, str | None]] = [
    (
        lambda state: {key: value.bfloat16() for key, value in state.items()},
        None,
    ),  # the class makes it float32
    (lambda state: {f"module.{key}": value for key, value in state.items()}, r"model\.module\.state_dict"),
    (
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        r"model\._orig_mod\.state_dict",
    ),
    (lambda state: {"state_dict": state, "epoch": 3}, "training checkpoint"),
    (lambda state: torch.nn.Linear(2, 2), "more than tensors, as a whole pickled model"),
    (
        lambda state: {key: (value * 9).to(torch.int8) for key, value in state.items()},
        "no floating-point numbers",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), STATES)
def test_weights_that_do_not_fit_the_class(
    change: Any, sentence: str | None, net: Any, tmp_path: Path
) -> None:
    model, arguments = net
    torch.save(change(model.state_dict()), arguments["serialized_file"])
    if sentence is None:
        build_archive("m", **arguments, export_path=tmp_path / "store")
        assert run_handler(requests=[{"body": bytes(64)}], **arguments)[0].status == 200
        return
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", **arguments, export_path=tmp_path / "store")


@pytest.mark.parametrize(
    ("dtype", "convert", "served"),
    [
        (torch.bfloat16, ".float()", False),
        (torch.bfloat16, ".bfloat16()", True),
    ],
)
def test_torchscript_of_another_type_than_its_input(
    dtype: torch.dtype, convert: str, served: bool, net: Any, tmp_path: Path
) -> None:
    model, arguments = net
    arguments["model_file"], arguments["serialized_file"] = None, tmp_path / "script.pt"
    arguments["handler"].write_text(handlers.IMAGE.replace(".float()", convert))
    traced: Any = torch.jit.trace(model.to(dtype), torch.zeros(1, 1, 8, 8, dtype=dtype))  # type: ignore[no-untyped-call]
    traced.save(tmp_path / "script.pt")
    status = run_handler(requests=[{"body": bytes(64)}], **arguments)[0].status
    assert status == (200 if served else 503)
    if served:
        build_archive("m", **arguments, export_path=tmp_path / "store")
        return
    with pytest.raises(ArchiveError, match=f"are {str(dtype)[6:]}, and the handler never converts its input"):
        build_archive("m", **arguments, export_path=tmp_path / "store")
