"""handler.py without a server, through TorchServe's own loader and Service.predict."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tutorial_lib.testing import HandlerAnswer, run_handler

GOOD = {"body": {"input": ["I love this!", "this is awful"]}}
BAD_BODIES: list[Any] = [
    b"{",
    b"\xff\xfe\x00",
    "not JSON",
    b"[1]",
    7,
    None,
    {},
    {"inputs": ["a"]},
    {"input": "a text"},
    {"input": 1},
    {"input": None},
    {"input": ["a", 1]},
    {"input": ["a"], "scores": "yes"},
    {"input": ["a"] * 10_000},
    b"[" * 100_000,
]
ODD_TEXTS = ["", " ", "a" * 10_000, "a b " * 2_500, "😍" * 50, "שלום עולם", "a\x00b", "\ud800", "\n\n"]


def ask(requests: list[dict[str, Any]], model_dir: Path) -> list[HandlerAnswer]:
    return run_handler(
        ROOT / "handler.py",
        requests,
        model_dir=model_dir,
        extra_files=[ROOT / "index_to_name.json"],
        config_file=ROOT / "model-config.yaml",
    )


def test_labels_and_scores(model_dir: Path) -> None:
    labels, scores = ask([GOOD, {"body": {**GOOD["body"], "scores": True}}], model_dir)
    assert (labels.status, labels.body) == (200, ["Positive", "Negative"])
    assert [item["label"] for item in scores.body] == labels.body
    assert all(1 / 3 < item["score"] <= 1 for item in scores.body)


def test_each_bad_body_gets_its_400_and_its_neighbours_their_answers(model_dir: Path) -> None:
    batch = [GOOD]
    for body in BAD_BODIES:
        batch += [{"body": body}, GOOD]
    answers = ask(batch, model_dir)
    assert all(answer == (200, ["Positive", "Negative"]) for answer in answers[::2])
    for answer in answers[1::2]:
        assert answer.status == 400
        assert answer.body["message"].endswith(".")


@pytest.mark.parametrize("name", ["body", "data"])
@pytest.mark.parametrize("wrap", [lambda b: b, json.dumps, lambda b: bytearray(json.dumps(b).encode())])
def test_every_shape_of_a_request(name: str, wrap: Any, model_dir: Path) -> None:
    assert ask([{name: wrap(GOOD["body"])}], model_dir) == [(200, ["Positive", "Negative"])]


def test_odd_texts_are_answered_soon(model_dir: Path) -> None:
    started = time.monotonic()
    answers = ask([{"body": {"input": [text]}} for text in ODD_TEXTS], model_dir)
    assert [answer.status for answer in answers] == [200] * len(ODD_TEXTS)
    assert time.monotonic() - started < 60  # one word of 10,000 letters alone took minutes uncut


def test_empty_list_has_no_labels(model_dir: Path) -> None:
    assert ask([{"body": {"input": []}}], model_dir) == [(200, [])]


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
    answers = ask([*({"body": body} for body in bodies), GOOD], model_dir)
    assert {answer.status for answer in answers} <= {200, 400}
    assert answers[-1].body == ["Positive", "Negative"]


def test_users_texts_are_not_logged(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ask([{"body": {"input": ["my secret diary"]}}], model_dir)
    assert "Received 1 texts in 1 requests" in caplog.text
    assert "secret" not in caplog.text


def test_labels_fall_back_to_the_models_own(model_dir: Path) -> None:
    assert run_handler(ROOT / "handler.py", [GOOD], model_dir=model_dir) == [(200, ["POS", "NEG"])]


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
        run_handler(ROOT / "handler.py", [GOOD], model_dir=broken)
