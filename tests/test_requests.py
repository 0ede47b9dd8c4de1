"""Good, odd and bad requests against the real server, alone and inside dynamic batches."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.bodies import CASES, GOOD, RIGHT, Case
from tutorial_lib import TorchServe


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
