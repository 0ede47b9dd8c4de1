"""handler.py without a server, through TorchServe's own loader and Service.predict."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bodies import CASES, GOOD, RIGHT
from tests.conftest import ROOT
from tutorial_lib import worker
from tutorial_lib.testing import HandlerAnswer, run_handler

GOOD_REQUEST = {"body": GOOD}


def ask(requests: list[dict[str, Any]], model_dir: Path) -> list[HandlerAnswer]:
    return run_handler(
        ROOT / "handler.py",
        requests,
        model_dir=model_dir,
        extra_files=[ROOT / "index_to_name.json"],
        config_file=ROOT / "model-config.yaml",
    )


def test_labels_and_scores(model_dir: Path) -> None:
    labels, scores = ask([GOOD_REQUEST, {"body": {**GOOD, "scores": True}}], model_dir)
    assert (labels.status, labels.body) == (200, RIGHT)
    assert [item["label"] for item in scores.body] == labels.body
    assert all(1 / 3 < item["score"] <= 1 for item in scores.body)


def test_each_body_gets_its_answer_or_its_400_and_its_neighbours_theirs(model_dir: Path) -> None:
    types = ["application/json", "text/plain", ""]
    cases = [(case, worker.parameter("body", type_, case.body)["value"]) for case in CASES for type_ in types]
    batch: list[dict[str, Any]] = [GOOD_REQUEST]
    for _, body in cases:
        batch += [{"body": body}, GOOD_REQUEST]
    started = time.monotonic()
    answers = ask(batch, model_dir)
    assert time.monotonic() - started < 100  # one word of 10,000 letters alone took minutes uncut
    assert all(answer == (200, RIGHT) for answer in answers[::2])
    for (case, _), answer in zip(cases, answers[1::2], strict=True):
        if case.labels is None:
            assert answer.status == 400 and answer.body["message"].endswith("."), (case, answer)
        else:
            assert answer.status == 200 and len(answer.body) == case.labels, (case, answer)


@pytest.mark.parametrize(
    ("cuda", "gpu_id", "device"), [(True, 1, "cuda:1"), (True, None, "cpu"), (False, 1, "cpu")]
)
def test_the_gpu_that_torchserve_assigns_is_used(
    cuda: bool, gpu_id: int | None, device: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no GPU here: what would be moved to one stays, and where it should have gone is noted."""
    importlib.import_module("ts.torch_handler.base_handler")  # it asks a GPU for its model when imported
    moved: set[tuple[str, str]] = set()
    move = torch.Tensor.to

    def note(tensor: torch.Tensor, *where: Any, **options: Any) -> torch.Tensor:
        if where and isinstance(where[0], torch.device):
            moved.add((str(where[0]), "weights" if tensor.is_floating_point() else "tokens"))
            return tensor
        return move(tensor, *where, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.Tensor, "to", note)
    answers = run_handler(ROOT / "handler.py", [GOOD_REQUEST], model_dir=model_dir, gpu_id=gpu_id)
    assert answers == [(200, ["POS", "NEG"])]
    gpu = {move for move in moved if move[0] != "cpu"}
    assert gpu == ({(device, "weights"), (device, "tokens")} if device != "cpu" else set())


@pytest.mark.parametrize("name", ["body", "data"])
@pytest.mark.parametrize("wrap", [lambda b: b, json.dumps, lambda b: bytearray(json.dumps(b).encode())])
def test_every_shape_of_a_request(name: str, wrap: Any, model_dir: Path) -> None:
    assert ask([{name: wrap(GOOD)}], model_dir) == [(200, RIGHT)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["input", "scores", "x"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(json_values | st.binary(max_size=30), min_size=1, max_size=20))
def test_no_body_is_a_server_error(model_dir: Path, bodies: list[Any]) -> None:
    answers = ask([*({"body": body} for body in bodies), GOOD_REQUEST], model_dir)
    assert {answer.status for answer in answers} <= {200, 400}
    assert answers[-1].body == RIGHT


def test_users_texts_are_not_logged(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ask([{"body": {"input": ["my secret diary"]}}], model_dir)
    assert "Received 1 texts in 1 requests" in caplog.text
    assert "secret" not in caplog.text


def test_labels_fall_back_to_the_models_own(model_dir: Path) -> None:
    assert run_handler(ROOT / "handler.py", [GOOD_REQUEST], model_dir=model_dir) == [(200, ["POS", "NEG"])]


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.json", None, "Missing config.json"),
        ("model.safetensors", None, "Missing the weights"),
        ("index_to_name.json", '{"0": "Negative"}', "index_to_name.json has labels for"),
    ],
)
def test_a_broken_archive_says_what_is_missing(
    file: str, content: str | None, sentence: str, model_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    (broken / file).unlink(missing_ok=True)
    if content is not None:
        (broken / file).write_text(content)
    with pytest.raises(RuntimeError, match=sentence):
        run_handler(ROOT / "handler.py", [GOOD_REQUEST], model_dir=broken)
