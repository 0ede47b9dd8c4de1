"""A Ray cluster as deploy/ray/Dockerfile starts it: without its access token, nobody gets in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from course.servers import free_ports

from tests.conftest import ROOT, eventually

pytest.importorskip("ray", reason="pip install '.[ray]'")

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]  # under load, Ray gives its client up

DOCKERFILE = (ROOT / "deploy" / "ray" / "Dockerfile").read_text()
_, *COMMAND = json.loads(DOCKERFILE.rpartition("\nCMD ")[2])  # without "ray"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
CLIENT = """
import ray, sys
ray.init(sys.argv[1])
print(ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The variables of Ray in the image, with a home that has no token, and these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    image = dict(
        re.findall(r"(RAY_\w+)=(\S+)", "\n".join(re.findall(r"^ENV (.*)", DOCKERFILE, re.MULTILINE)))
    )
    return kept | image | {"HOME": str(home)} | variables


class Head(NamedTuple):
    """A running head: where clients and jobs are taken, and the token."""

    client: str
    jobs: str
    home: Path
    token: str


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home, token = tmp_path_factory.mktemp("home"), secrets.token_hex(32)
    short = Path(
        tempfile.mkdtemp(prefix="r-", dir="/tmp")
    )  # the paths of sockets have at most 107 characters
    gcs, client, dashboard, *rest = free_ports(6)
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    numbers = {"port": gcs, "ray-client-server-port": client, "dashboard-port": dashboard}
    numbers |= dict(zip(names, rest, strict=True))
    options = [f"--{name}={number}" for name, number in numbers.items()]
    options += [f"--temp-dir={short}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    options += ["--object-store-memory=100000000"]
    with (home / "log").open("wb") as log:
        process = psutil.Popen(
            [*RAY, *COMMAND, *options],
            env=environment(home, RAY_AUTH_TOKEN=token),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        found = Head(f"ray://127.0.0.1:{client}", f"http://127.0.0.1:{dashboard}/api/jobs/", home, token)
        eventually(lambda: submit(found, token) == 200, 240)
        yield found
    finally:
        tree = [*process.children(recursive=True), process]
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(tree, timeout=20)
        shutil.rmtree(short, ignore_errors=True)


def submit(head: Head, token: str | None) -> int:
    """Returns the status of a job's submission; 0 if nobody listens."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        return requests.post(head.jobs, json={"entrypoint": "true"}, headers=headers, timeout=60).status_code
    except requests.ConnectionError:
        return 0


def run(command: list[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("token", [None, "", "0" * 64])
def test_a_job_without_the_token_is_refused(token: str | None, head: Head) -> None:
    assert submit(head, token) in (401, 403)
    assert submit(head, head.token) == 200


def test_a_client_without_a_token_is_refused(head: Head) -> None:
    refused = run([sys.executable, "-c", CLIENT, head.client], environment(head.home))
    assert refused.returncode != 0 and "42" not in refused.stdout
    assert "oken authentication is enabled" in refused.stderr


@pytest.mark.parametrize("variables", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}])
def test_a_client_with_another_token_is_refused(variables: dict[str, str], head: Head) -> None:
    refused = run([sys.executable, "-c", CLIENT, head.client], environment(head.home, **variables))
    assert refused.returncode != 0 and "42" not in refused.stdout
    assert "ConnectionError" in refused.stderr


def test_a_client_with_the_token_is_accepted(head: Head) -> None:
    client = [sys.executable, "-c", CLIENT, head.client]
    accepted = run(client, environment(head.home, RAY_AUTH_TOKEN=head.token))
    assert accepted.stdout.split() == ["42"], accepted.stderr


def test_the_dashboard_listens_on_loopback(head: Head) -> None:
    port = urlsplit(head.jobs).port
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]


def test_the_image_does_not_start_without_a_token(tmp_path: Path) -> None:
    started = run([*RAY, *COMMAND], environment(tmp_path))
    assert started.returncode != 0 and "no authentication token was found" in started.stderr
    assert [*tmp_path.iterdir()] == []  # none was made
