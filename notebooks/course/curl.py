"""A request by curl, as a command that can be copied."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess

from tutorial_lib import TorchServe


def curl(server: TorchServe, model: str, body: object) -> None:
    """Prints the curl command that asks a model, with port and access token left out, and its output.

    Without curl on this machine only the command is printed.

    Args:
        server: a running server.
        model: the model's name.
        body: anything that json.dumps takes.
    """
    options = ["--silent", "--header", "Content-Type: application/json", "--data", json.dumps(body)]
    token, path = server.token("inference"), f"/predictions/{model}"
    shown = [*options, "--header", "Authorization: Bearer …", f"http://127.0.0.1:…{path}"]
    print(shlex.join(["curl", *shown]))
    if shutil.which("curl"):
        real = [*options, "--header", f"Authorization: Bearer {token}", f"{server.inference_address}{path}"]
        print(subprocess.run(["curl", *real], capture_output=True, text=True, check=True).stdout)
