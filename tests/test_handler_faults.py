"""handler.py with files that are cut or wrong, and with forms of requests that few people send."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT
from tutorial_lib import TorchServe
from tutorial_lib.testing import run_handler

GOOD = {"body": {"input": ["I love this!"]}}


@pytest.mark.parametrize(
    "labels", ["{", "[]", '{"one": "Negative"}', '{"0": "a", "1": "b", "2": "c", "3": "d"}']
)
def test_a_wrong_label_map_is_a_runtime_error_that_names_it(
    labels: str, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "index_to_name.json").write_text(labels)
    with pytest.raises(RuntimeError, match=r"index_to_name\.json"):
        run_handler(
            ROOT / "handler.py",
            [GOOD],
            model_dir=model_dir,
            extra_files=[tmp_path / "index_to_name.json"],
        )


def test_weights_that_are_cut_do_not_load(model_dir: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(model_dir, cut)
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match=r"(?i)incomplete|safetensor|header|deserializ"):
        run_handler(ROOT / "handler.py", [GOOD], model_dir=cut)


def test_weights_as_a_pickle_are_refused(model_dir: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(model_dir, older)
    (older / "model.safetensors").rename(older / "pytorch_model.bin")
    with pytest.raises(RuntimeError, match="Missing the weights"):
        run_handler(ROOT / "handler.py", [GOOD], model_dir=older)


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
