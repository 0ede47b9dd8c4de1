"""handler.py: its answers through TorchServe's own loader without a server, and through a real server."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tutorial_lib import ApiError, TorchServe
from tutorial_lib.testing import HandlerAnswer, run_handler
from tutorial_lib.worker import contract as worker

GOOD = {"input": ["I love this!", "this is awful"]}
RIGHT = ["Positive", "Negative"]
GOOD_REQUEST = {"body": GOOD}


class Case(NamedTuple):
    """A body, and how many labels it gets; None: it is refused with a 400 and a sentence."""

    name: str
    body: bytes
    labels: int | None = None


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


CASES = [
    Case("not JSON", b"{"),
    Case("plain text", b"hello"),
    Case("nested too deep", b"[" * 100_000),
    Case("invalid UTF-8", b"\xff\xfe\x00"),
    Case("invalid UTF-8 in a text", b'{"input": ["\xff"]}'),
    Case("a list", b"[1]"),
    Case("a string", b'"a"'),
    Case("a number", b"7"),
    Case("null", b"null"),
    Case("no input", b"{}"),
    Case("a misspelt input", _json({"inputs": ["a"]})),
    Case("input: a string", _json({"input": "a text"})),
    Case("input: a number", _json({"input": 1})),
    Case("input: null", _json({"input": None})),
    Case("input: a non-string in the list", _json({"input": ["a", 1]})),
    Case("scores: neither true nor false", _json({"input": ["a"], "scores": "yes"})),
    Case("10,000 texts", _json({"input": ["a"] * 10_000})),
    Case("an empty list", _json({"input": []}), 0),
    Case("an empty string", _json({"input": [""]}), 1),
    Case("10,000 characters", _json({"input": ["a" * 10_000, "a b " * 2_500]}), 2),
    Case("emoji, RTL, NUL", _json({"input": ["😍👎" * 25, "שלום עולם", "a\x00b"]}), 3),
    Case("half a surrogate pair", _json({"input": ["fine", "x\ud800"]})),
    Case("nothing but space", _json({"input": [" ", "\n\n"]}), 2),
]


# Without a server


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
    ("file", "renamed", "sentence"),
    [
        ("config.json", "other.json", "Missing config.json"),
        ("model.safetensors", "pytorch_model.bin", "Missing the weights"),  # a pickle, which can run code
    ],
)
def test_an_archive_without_a_file_names_it(
    file: str, renamed: str, sentence: str, model_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    (broken / file).rename(broken / renamed)
    with pytest.raises(RuntimeError, match=sentence):
        run_handler(ROOT / "handler.py", [GOOD_REQUEST], model_dir=broken)


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "bad", "1": "so-so", "2": "good"},
        {
            "0": ["n0", "bad"],
            "1": ["n1", "so-so"],
            "2": ["n2", "good"],
        },  # as TorchServe's own handlers have it
    ],
)
def test_labels_come_from_the_label_map(labels: dict[str, object], model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "index_to_name.json").write_text(json.dumps(labels))
    answers = run_handler(
        ROOT / "handler.py",
        [GOOD_REQUEST],
        model_dir=model_dir,
        extra_files=[tmp_path / "index_to_name.json"],
    )
    assert answers == [(200, ["good", "bad"])]


@pytest.mark.parametrize(
    "labels",
    ["{", "[]", '{"0": "Negative"}', '{"one": "Negative"}', '{"0": "a", "1": "b", "2": "c", "3": "d"}'],
)
def test_a_wrong_label_map_is_a_runtime_error_that_names_it(
    labels: str, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "index_to_name.json").write_text(labels)
    with pytest.raises(RuntimeError, match=r"index_to_name\.json"):
        run_handler(
            ROOT / "handler.py",
            [GOOD_REQUEST],
            model_dir=model_dir,
            extra_files=[tmp_path / "index_to_name.json"],
        )


def test_weights_that_are_cut_do_not_load(model_dir: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(model_dir, cut)
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match=r"(?i)incomplete|safetensor|header|deserializ"):
        run_handler(ROOT / "handler.py", [GOOD_REQUEST], model_dir=cut)


def test_more_texts_than_the_config_allows_are_one_requests_own_400(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("handler:\n  max_texts: 2\n")
    answers = run_handler(
        ROOT / "handler.py",
        [{"body": {"input": ["a"] * count}} for count in (2, 3)],
        model_dir=model_dir,
        config_file=tmp_path / "config.yaml",
    )
    assert [answer.status for answer in answers] == [200, 400]
    assert "Send 2 at most" in answers[1].body["message"]


# A batch's work has a limit: its tokens


def ask_limited(counts: list[int], model_dir: Path, tmp_path: Path, limit: int = 100) -> list[HandlerAnswer]:
    """Asks with a batch of requests of so many texts, each of three tokens, with a limit for the batch."""
    (tmp_path / "config.yaml").write_text(f"handler:\n  max_batch_tokens: {limit}\n")
    requests = [{"body": {"input": ["a"] * count}} for count in counts]
    return run_handler(
        ROOT / "handler.py", requests, model_dir=model_dir, config_file=tmp_path / "config.yaml"
    )


@pytest.mark.parametrize(
    ("counts", "statuses"),
    [
        ([33], [200]),
        ([34], [413]),
        ([34, 1], [413, 200]),
        ([1, 1000, 1000, 32], [200, 413, 413, 200]),
        ([20, 20], [200, 503]),
        ([33, 1], [503, 200]),
        ([1, 33], [200, 503]),
        ([0, 33], [200, 200]),
        ([16, 17, 1, 34], [200, 503, 200, 413]),
        ([18] * 5 + [3] * 5, [503] * 4 + [200] * 6),
    ],
)
def test_a_batch_with_too_many_tokens_answers_its_short_requests(
    counts: list[int], statuses: list[int], model_dir: Path, tmp_path: Path
) -> None:
    answers = ask_limited(counts, model_dir, tmp_path)
    assert sorted(answer.status for answer in answers) == sorted(statuses)
    for count, answer in zip(counts, answers, strict=True):
        if answer.status == 200:
            assert len(answer.body) == count
        else:
            advice = {413: "Send fewer", 503: "Try again"}[answer.status]
            assert advice in answer.body["message"] and answer.body["message"].endswith(".")
    answered = [count for count, answer in zip(counts, answers, strict=True) if answer.status == 200]
    assert sorted(answered) == sorted(counts)[: len(answered)]  # the shortest ones, wherever they stand


def test_the_limit_leaves_half_of_the_response_timeout_at_bertweets_size() -> None:
    """README's slowest figure is 13 tweets a second, of some 22 tokens each."""
    settings = yaml.safe_load((ROOT / "model-config.yaml").read_text())
    seconds = settings["handler"]["max_batch_tokens"] / (13 * 22)
    assert seconds <= settings["responseTimeout"] / 2


# Through a real server


def post(server: TorchServe, **request: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {server.token('inference')}", **request.pop("headers", {})}
    url = f"{server.inference_address}/predictions/my_model"
    return requests.post(url, headers=headers, timeout=60, **request)


def as_sent(body: bytes) -> dict[str, dict[str, Any]]:
    """A body in each way that clients send one."""
    return {
        "as JSON": {"data": body, "headers": {"Content-Type": "application/json"}},
        "as text": {"data": body, "headers": {"Content-Type": "text/plain"}},
        "as bytes with no content type": {"data": body},
        "as multipart data": {"files": {"data": body}},
        "as multipart JSON": {"files": {"data": ("x.json", body, "application/json")}},
    }


def wrong(case: Case, response: requests.Response) -> str:
    """What is wrong with an answer; "" where it is the right one."""
    try:
        answer = response.json()
        if case.labels is None:
            right = response.status_code == 400 and answer["message"].endswith(".")
        else:
            right = response.status_code == 200 and len(answer) == case.labels
    except (ValueError, KeyError, TypeError):
        right = False
    return "" if right else f"{response.status_code} {response.text[:200]}"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_body_alone(case: Case, server: TorchServe) -> None:
    answers = {way: wrong(case, post(server, **request)) for way, request in as_sent(case.body).items()}
    assert answers == dict.fromkeys(answers, "")


def test_each_body_inside_batches_with_good_neighbours(server: TorchServe) -> None:
    """tests/test_faults.py holds that such requests do share batches."""
    sent: list[tuple[Case, dict[str, Any]]] = []
    for case in CASES:
        for request in as_sent(case.body).values():
            sent += [(case, request), (Case("good", b"", len(RIGHT)), {"json": GOOD})]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda item: post(server, **item[1]), sent))
    found = {(case.name, wrong(case, answer)) for (case, _), answer in zip(sent, answers, strict=True)}
    assert found == {(case.name, "") for case, _ in sent}
    assert all(answer.json() == RIGHT for answer in answers[1::2])


def test_no_body_at_all_is_a_400(server: TorchServe) -> None:
    assert post(server).status_code == 400
    assert post(server, data=b"", headers={"Content-Type": "application/json"}).status_code == 400


def test_every_way_gives_the_same_answer(server: TorchServe) -> None:
    for request in as_sent(json.dumps(GOOD).encode()).values():
        answer = post(server, **request)
        assert answer.json() == RIGHT
        assert answer.headers["content-type"] == "application/json"


def test_unusual_forms_of_a_bad_request_are_no_server_errors(server: TorchServe) -> None:
    url = f"{server.inference_address}/predictions/my_model"
    headers = {"Authorization": f"Bearer {server.token('inference')}"}
    answers = [
        requests.get(url, headers=headers, timeout=60),
        requests.get(url, params={"input": "a"}, headers=headers, timeout=60),
        requests.get(url, params={"data": "a"}, headers=headers, timeout=60),
        requests.post(url, headers=headers, timeout=60),
        requests.post(url, data={"input": "a"}, headers=headers, timeout=60),
        requests.post(url, files={"input": b"a"}, headers=headers, timeout=60),
        requests.post(url, files={"data": b"\xff\x00"}, headers=headers, timeout=60),
        requests.post(url, json={"input": "a"}, headers={**headers, "Content-Encoding": "x"}, timeout=60),
    ]
    assert [answer.status_code for answer in answers] == [400] * len(answers)
    over = requests.post(url, data=b"x" * 7_000_000, headers=headers, timeout=60)
    assert over.status_code == 413
    assert server.inference.predict("my_model", {"input": ["I love this!"]}) == ["Positive"]


def test_one_clients_many_long_texts_cost_no_neighbour_an_answer(server: TorchServe) -> None:
    """Alone, such a request takes seconds; a batch of them would take longer than responseTimeout."""
    flood = {"input": ["word " * 120] * 1000}
    with ThreadPoolExecutor(30) as pool:
        floods = [pool.submit(post, server, json=flood) for _ in range(20)]
        neighbours = [pool.submit(post, server, json=GOOD) for _ in range(10)]
        refused = [answer.result() for answer in floods]
        answers = [answer.result() for answer in neighbours]
    assert [answer.json() for answer in answers] == [RIGHT] * 10
    assert {answer.status_code for answer in refused} == {413}
    with pytest.raises(ApiError, match=r"413 .*Send fewer\.$"):
        server.inference.predict("my_model", flood)
