"""Good and bad requests against the real server, alone and inside dynamic batches."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from tutorial_lib import TorchServe

GOOD = {"input": ["I love this!", "this is awful"]}
RIGHT = ["Positive", "Negative"]
JSON = {"Content-Type": "application/json"}
BAD: list[tuple[bytes, dict[str, str]]] = [
    (b"{", JSON),
    (b"", JSON),
    (b'"a"', JSON),
    (b"{}", JSON),
    (b'{"input": "a"}', JSON),
    (b'{"input": null}', JSON),
    (b'{"input": [1]}', JSON),
    (b"\xff\xfe", JSON),
    (b"\xff\xfe", {"Content-Type": "text/plain"}),
    (b"hello", {}),
    (json.dumps({"input": ["a"] * 10_000}).encode(), JSON),
]


def post(server: TorchServe, **request: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {server.token('inference')}", **request.pop("headers", {})}
    url = f"{server.inference_address}/predictions/my_model"
    return requests.post(url, headers=headers, timeout=60, **request)


def test_bad_requests_are_400_and_good_ones_in_the_same_batches_are_right(server: TorchServe) -> None:
    def send(number: int) -> tuple[bool, requests.Response]:
        if number % 2:
            return True, post(server, json=GOOD)
        body, headers = BAD[number // 2 % len(BAD)]
        return False, post(server, data=body, headers=headers)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(4 * len(BAD))))
    for good, response in answers:
        assert response.status_code == (200 if good else 400), response.text
        assert response.json() == RIGHT if good else response.json()["message"].endswith(".")


def test_bytes_with_no_content_type_and_multipart_data(server: TorchServe) -> None:
    body = json.dumps(GOOD).encode()
    assert post(server, data=body).json() == RIGHT
    assert post(server, files={"data": body}).json() == RIGHT
    assert post(server, files={"data": ("x.json", body, "application/json")}).json() == RIGHT


def test_answers_say_that_they_are_json(server: TorchServe) -> None:
    assert post(server, json=GOOD).headers["content-type"] == "application/json"


def test_odd_texts_are_answered(server: TorchServe) -> None:
    texts = ["", "a" * 10_000, "😍👎", "שלום", "a\x00b"]
    assert len(server.inference.predict("my_model", {"input": texts})) == len(texts)
