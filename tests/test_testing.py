"""run_handler: the arguments of build_archive and a batch of requests, answered as the server would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import handlers
from tutorial_lib import ArchiveError, build_archive, read_manifest
from tutorial_lib.testing import Request, run_handler

WORD = "import helper\n\n\ndef handle(data, context):\n    return data and [helper.WORD] * len(data)\n"


def test_an_edited_module_of_the_archive_is_used_at_once(tmp_path: Path) -> None:
    (tmp_path / "word.py").write_text(WORD)
    helper = tmp_path / "helper.py"
    for word in ("one", "two"):
        helper.write_text(f"WORD = {word!r}\n")
        assert run_handler(tmp_path / "word.py", [{"body": 1}], extra_files=[helper]) == [(200, word)]


def test_relative_paths_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {"h.py": handlers.TEXT, "words.txt": "good", "s.yaml": "a: 1"}.items():
        Path(name).write_text(content)
    answers = run_handler("h.py", [{"body": "good"}], extra_files=["words.txt"], config_file="s.yaml")
    assert answers == [(200, ["good"])]
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("batch", [1, 3])
def test_a_plain_model(batch: int, tmp_path: Path) -> None:
    (tmp_path / "image.py").write_text(handlers.IMAGE)
    model_file, weights = handlers.write_model(tmp_path, "image", handlers.IMAGE_MODEL)
    requests = [{"data": bytes(range(i, i + 64))} for i in range(batch)]
    answers = run_handler(tmp_path / "image.py", requests, model_file=model_file, serialized_file=weights)
    assert [answer.status for answer in answers] == [200] * batch
    assert all(answer.body in range(5) for answer in answers)


EXPORTED = """
import torch


class Doubler:
    def initialize(self, context):
        name = context.manifest["model"]["serializedFile"]
        load = torch.export.load if name.endswith(".pt2") else torch.jit.load
        model = load(context.system_properties["model_dir"] + "/" + name)
        self.model = model.module() if name.endswith(".pt2") else model

    def handle(self, data, context):
        return self.model(torch.tensor([row["body"] for row in data])).tolist()
"""


@pytest.mark.parametrize("name", ["model.pt", "model.pt2"])
def test_a_handler_that_loads_a_compiled_model_itself(name: str, tmp_path: Path) -> None:
    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    (tmp_path / "doubler.py").write_text(EXPORTED)
    weights = tmp_path / name
    if name.endswith(".pt2"):
        torch.export.save(torch.export.export(Double(), (torch.zeros(2, 3),)), weights)
    else:
        traced: Any = torch.jit.trace(Double(), torch.zeros(2, 3))  # type: ignore[no-untyped-call]
        traced.save(weights)
    requests = [{"body": [1.0, 2.0, 3.0]}, {"body": [0.0, 0.0, 1.0]}]
    archive = build_archive(
        "m", handler=tmp_path / "doubler.py", serialized_file=weights, export_path=tmp_path / "store"
    )
    assert read_manifest(archive)["model"]["serializedFile"] == name
    answers = run_handler(tmp_path / "doubler.py", requests, serialized_file=weights)
    assert answers == [(200, [2.0, 4.0, 6.0]), (200, [0.0, 0.0, 2.0])]


def test_a_handler_of_torchserve_by_its_name(tmp_path: Path) -> None:
    (model_file, weights), extra = handlers.write_classifier(tmp_path)
    arguments: dict[str, Any] = {"model_file": model_file, "serialized_file": weights, "extra_files": extra}
    [answer] = run_handler("text_classifier", [{"body": "good day"}], **arguments)
    assert answer.status == 200 and set(answer.body) == {"Bad", "Good"}


def test_an_envelope_and_answers_that_are_not_json(tmp_path: Path) -> None:
    (tmp_path / "h.py").write_text("def handle(data, context):\n    return data\n")
    rows = {"instances": ["a", "b"]}
    assert run_handler(tmp_path / "h.py", [{"body": rows}], envelope="json") == [
        (200, {"predictions": ["a", "b"]})
    ]
    (tmp_path / "h.py").write_text("def handle(data, context):\n    return data and ['plain', b'\\xff']\n")
    assert run_handler(tmp_path / "h.py", [{"body": 1}, {"body": 2}]) == [(200, "plain"), (200, b"\xff")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"handler": "gone.py"}, "no handler file"),
        ({"handler": "no_such_handler"}, "one of TorchServe's own"),
        ({"handler": "h.py", "extra_files": ["gone"]}, "no file gone"),
        ({"handler": "h.py", "model_dir": "gone"}, "no model folder"),
    ],
)
def test_missing_files_are_refused_with_a_sentence(
    arguments: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("h.py").write_text("def handle(data, context):\n    return data\n")
    with pytest.raises(ArchiveError, match=sentence):
        run_handler(requests=[{"body": 1}], **arguments)


def test_what_initialize_raises_comes_through(tmp_path: Path) -> None:
    (tmp_path / "h.py").write_text("def handle(data, context):\n    raise OSError('no such weights')\n")
    with pytest.raises(OSError, match="no such weights"):
        run_handler(tmp_path / "h.py", [{"body": 1}])


SHOWS = (
    "def handle(data, context):\n    return data and [{k: repr(v) for k, v in row.items()} for row in data]\n"
)


@pytest.mark.parametrize(
    ("request_", "seen"),
    [
        ({"x": [1, 2]}, {"body": "{'x': [1, 2]}"}),
        ([1, 2], {"body": "[1, 2]"}),
        (7, {"body": "7"}),
        (None, {"body": "None"}),
        ("a text", {"body": "'a text'"}),
        (b"\x89PNG", {"body": "bytearray(b'\\x89PNG')"}),
        ({"body": {"x": 1}}, {"body": "{'x': 1}"}),
        ({"data": "text"}, {"data": "'text'"}),
        ({"body": 1, "x": 2}, {"body": "{'body': 1, 'x': 2}"}),
        ({"image": b"1", "caption": "a"}, {"image": "b'1'", "caption": "'a'"}),
        (Request("text"), {"body": "'text'"}),
        (Request({"n": 1}, {"image": b"1"}), {"n": "bytearray(b'1')", "image": "bytearray(b'1')"}),
    ],
)
def test_a_request_is_a_body_or_what_a_handler_gets(request_: Any, seen: object, tmp_path: Path) -> None:
    (tmp_path / "h.py").write_text(SHOWS)
    assert run_handler(tmp_path / "h.py", [request_]) == [(200, seen)]


def test_headers_reach_the_handler(tmp_path: Path) -> None:
    source = "def handle(data, context):\n    return data and [context.get_request_header(0, 'X-Kind')]\n"
    (tmp_path / "h.py").write_text(source)
    assert run_handler(tmp_path / "h.py", [Request(1, headers={"x-kind": "a"})]) == [(200, "a")]


@pytest.mark.parametrize("requests", [{"x": 1}, "a text", b"1", 7, None, [], Request(1)])
def test_what_is_no_list_of_requests(requests: Any) -> None:
    with pytest.raises(ValueError, match=r'Give a list .*\[\{"x": \[1, 2\]\}\]'):
        run_handler("handler.py", requests)


@pytest.mark.parametrize("name", ["price_handler", "vision_handler", "base_handler"])
def test_the_package_that_a_handler_misses_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        run_handler(tmp_path / f"{name}.py", [1])
