"""The article's own commands, as README has them, with the repo's files and the default ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from tests.conftest import ROOT
from tutorial_lib import find_java

DEFAULT_PORTS = (8080, 8081, 8082, 7070, 7071)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.skipif(
    not all(map(is_free, DEFAULT_PORTS)), reason="another program has one of TorchServe's default ports"
)
def test_archive_and_serve_as_typed(model_dir: Path, tmp_path: Path) -> None:
    for name in ("handler.py", "index_to_name.json", "sample_input.json"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(model_dir, tmp_path / "my_model")
    (tmp_path / "model_store").mkdir()
    temp = tmp_path / "temp"
    temp.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "JAVA_HOME": str(find_java().home),
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temp)),
    }

    def type_(command: str, output: str = "typed.log") -> None:
        with (tmp_path / output).open("ab") as log:  # the server inherits it; a pipe would never close
            subprocess.run(
                command,
                shell=True,
                check=True,
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=log,
                timeout=60,
            )

    start, ask, stop = readmes_commands()

    files = sorted(path.name for path in model_dir.iterdir() if path.name != "model.safetensors")
    extra = ",".join(["index_to_name.json", *(f"my_model/{name}" for name in files)])
    type_(
        "torch-model-archiver --model-name BERTweetSentimentAnalysis --version 1.0 "
        "--serialized-file my_model/model.safetensors --handler handler.py "
        f"--extra-files {extra} --export-path model_store"
    )
    try:
        type_(start)
        assert answer(tmp_path) == ["Positive", "Neutral", "Negative"]
        if shutil.which("curl"):
            type_(f"{ask} --silent --show-error", output="answer.json")
            assert json.loads((tmp_path / "answer.json").read_text()) == ["Positive", "Neutral", "Negative"]
    finally:
        type_(stop)
        for process in psutil.process_iter():
            if process.is_running() and _temp_of(process) == str(temp):
                process.kill()


def readmes_commands() -> tuple[str, str, str]:
    """How README starts the server, asks it, and stops it."""
    (block,) = re.findall(r"```\n(export OMP_NUM_THREADS.*?)```", (ROOT / "README.md").read_text(), re.S)
    threads, start, *ask, stop = block.strip().splitlines()
    return f"{threads}\n{start}", "\n".join(ask), stop


def answer(folder: Path) -> object:
    """The answer to sample_input.json, asked for until the server has started."""
    deadline = time.monotonic() + 120
    while True:
        try:
            key = json.loads((folder / "key_file.json").read_text())["inference"]["key"]
            response = requests.post(
                "http://127.0.0.1:8080/predictions/my_model",
                data=(folder / "sample_input.json").read_bytes(),
                headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
                timeout=60,
            )
            if response.ok:
                return response.json()
            problem = response.text
        except (OSError, ValueError) as error:
            problem = str(error)
        assert time.monotonic() < deadline, f"{problem}\n{(folder / 'typed.log').read_text()[-3000:]}"
        time.sleep(0.3)


def _temp_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("TEMP")
    except psutil.Error:
        return None
