"""Handlers of the kinds that people write for TorchServe, in archives for tests, packed or not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from tutorial_lib.archives.building import lay_out

# A function of the module; answers with what it was given.
ECHO = """
def handle(data, context):
    if data is None:  # TorchServe calls it so, once, in place of `initialize`
        return None
    answers = []
    for index, row in enumerate(data):
        properties = dict(context.system_properties, model_dir=None)
        answers.append({
            "batch": len(data),
            "row": {name: [type(value).__name__, repr(value)] for name, value in row.items()},
            "kind": context.get_request_header(index, "X-Kind"),
            "explain": context.get_request_header(index, "explain"),
            "url_path": context.get_request_header(index, "url_path"),
            "properties": {name: repr(value) for name, value in properties.items()},
            "model": context.model_name,
            "manifest": context.manifest["model"],
            "settings": context.model_yaml_config,
        })
    return answers
"""

# Words in a text, by a class of its own with no base.
TEXT = """
import os


class WordCounter:
    def initialize(self, context):
        with open("words.txt") as words:  # the worker runs in the model's folder
            self.known = set(words.read().split())
        assert os.path.samefile(os.getcwd(), context.system_properties["model_dir"])

    def handle(self, data, context):
        texts = [row.get("data") or row.get("body") for row in data]
        texts = [text.decode() if isinstance(text, (bytes, bytearray)) else text for text in texts]
        return [[word for word in text.split() if word in self.known] for text in texts]
"""

# A picture as raw bytes through a small convolution, all else as BaseHandler does it.
IMAGE = """
import torch
from ts.torch_handler.base_handler import BaseHandler


class ImageHandler(BaseHandler):
    def preprocess(self, data):
        rows = [bytes(row.get("data") or row.get("body")) for row in data]
        pictures = [torch.frombuffer(bytearray(row), dtype=torch.uint8).reshape(1, 8, 8) for row in rows]
        return torch.stack(pictures).float().to(self.device) / 255

    def postprocess(self, output):
        return output.argmax(dim=1).tolist()
"""
IMAGE_MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

    def forward(self, x):
        return self.layers(x)
"""

# What TorchServe's own text_classifier wants of a model.
CLASSIFIER_MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.EmbeddingBag(8, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, tokens, offsets):
        return self.last(self.embedding(tokens, offsets))
"""

# Does what its request says.
ODD = """
import sys
import time

import torch
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException


class Odd(BaseHandler):
    def initialize(self, context):
        self.initialized = True

    def handle(self, data, context):
        return [self.one(row["body"], index, context) for index, row in enumerate(data)][: self.most(data)]

    def most(self, data):
        return 0 if data[0]["body"] == {"do": "too few"} else None

    def one(self, body, index, context):
        match body.get("do") if isinstance(body, dict) else None:
            case "status":
                context.set_response_status(code=body["code"], phrase="As asked", idx=index)
                return {"code": body["code"]}
            case "all":
                context.set_all_response_status(code=429, phrase="Later")
                return "later"
            case "headers":
                context.set_response_content_type(index, "text/csv; charset=utf-8")
                context.set_response_header(index, "X-Answer", "42")
                return "a,b"
            case "raise":
                raise ValueError("a bug")
            case "cuda":
                raise RuntimeError("CUDA error: none here")
            case "memory":
                raise MemoryError
            case "prediction":
                raise PredictionException(body["message"], body["code"])
            case "bytes":
                return bytes(range(256))
            case "text":
                return "שלום 😍"
            case "number":
                return 0.1
            case "nan":
                return [float("nan"), None, True]
            case "tensor":
                return torch.tensor(2)
            case "set":
                return {1, 2}
            case "wrong type":
                return object()
            case "sleep":
                time.sleep(body["seconds"])
                return "slept"
            case "exit":
                sys.exit(3)
        return body if isinstance(body, (dict, list, str)) else repr(body)
"""


# Sends the parts that its request names one by one, with a pause after each.
STREAMING = """
import time

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    bodies = [row["body"] for row in data]
    for part in zip(*[body["parts"] for body in bodies]):
        send_intermediate_predict_response(list(part), context.request_ids, "Intermediate", 200, context)
        time.sleep(max(body.get("seconds", 0) for body in bodies))
    return ["end"] * len(data)
"""

# Answers with the rows that its envelope makes.
ENVELOPED = """
def handle(data, context):
    return None if data is None else [repr(row) for row in data]
"""

# Counts with a metric that only a metrics.yaml of its own declares.
METERED = """
def handle(data, context):
    if data is None:
        return None
    letters = context.metrics.get_metric("own_letters")
    for row in data:
        letters.add_or_update(len(row["body"]), [context.model_name])
    return ["counted"] * len(data)
"""


def laid_out(folder: Path, name: str, source: str, **extra: str) -> Path:
    """An unpacked archive of a handler and other files, each given as its text."""
    files = folder / f"{name} files"
    files.mkdir()
    for file, content in {"handler.py": source, **extra}.items():
        (files / file).write_text(content)
    lay_out(folder / name, handler=files / "handler.py", extra_files=[files / file for file in extra])
    return folder / name


def pack(
    folder: Path,
    name: str,
    source: str,
    *,
    extra: Sequence[Path] = (),
    config: str = "",
    version: str = "1.0",
    arguments: Sequence[str] = (),
) -> Path:
    """An archive of a handler's source, or of one of TorchServe's own, as torch-model-archiver makes it."""
    handler = source
    if not source.isidentifier():
        handler = str(folder / f"{name}_handler.py")
        Path(handler).write_text(source)
    command = [sys.executable, "-m", "model_archiver.model_packaging", "-f", "--model-name", name]
    command += ["--version", version, "--handler", handler, "--export-path", str(folder), *arguments]
    if extra:
        command += ["--extra-files", ",".join(str(file) for file in extra)]
    if config:
        (folder / f"{name}.yaml").write_text(config)
        command += ["--config-file", str(folder / f"{name}.yaml")]
    subprocess.run(command, check=True, capture_output=True)
    [archive] = [file for suffix in (".mar", ".tar.gz") for file in folder.glob(name + suffix)]
    return archive


def pack_image(folder: Path) -> Path:
    return pack(folder, "image", IMAGE, arguments=_options(write_model(folder, "image", IMAGE_MODEL)))


def pack_classifier(folder: Path) -> Path:
    """TorchServe's own text_classifier, by its name."""
    model, extra = write_classifier(folder)
    return pack(folder, "classifier", "text_classifier", extra=extra, arguments=_options(model))


def write_classifier(folder: Path) -> tuple[tuple[Path, Path], list[Path]]:
    """What text_classifier needs: the model's two files, and the extra files."""
    import torch

    words = ("good", "bad", "day", "good day", "bad day", "great", "great day")
    torch.save({word: number for number, word in enumerate(words)}, folder / "source_vocab.pt")
    (folder / "index_to_name.json").write_text('{"0": "Bad", "1": ["n1", "Good"]}')
    model = write_model(folder, "classifier", CLASSIFIER_MODEL)
    return model, [folder / "source_vocab.pt", folder / "index_to_name.json"]


def write_model(folder: Path, name: str, source: str) -> tuple[Path, Path]:
    """A plain torch model: the file of its class, and weights that are always the same."""
    import torch

    (folder / f"{name}_net.py").write_text(source)
    names: dict[str, type[torch.nn.Module]] = {}
    exec(source.replace("super()", "super(Net, self)"), names)
    torch.manual_seed(0)
    torch.save(names["Net"]().state_dict(), folder / f"{name}_net.pt")
    return folder / f"{name}_net.py", folder / f"{name}_net.pt"


def _options(model: tuple[Path, Path]) -> list[str]:
    return ["--model-file", str(model[0]), "--serialized-file", str(model[1])]


def pack_text(folder: Path) -> Path:
    (folder / "words.txt").write_text("good bad great\n")
    return pack(folder, "text", TEXT, extra=[folder / "words.txt"])


def pack_metered(folder: Path, shipped: Path) -> Path:
    """An archive with a metrics.yaml of its own: the shipped one, and a counter more."""
    declared = yaml.safe_load(shipped.read_text())
    own = {"name": "own_letters", "unit": "count", "dimensions": ["ModelName"]}
    declared["model_metrics"]["counter"].append(own)
    (folder / "metrics.yaml").write_text(yaml.safe_dump(declared))
    return pack(folder, "metered", METERED, extra=[folder / "metrics.yaml"])
