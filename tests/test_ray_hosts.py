"""Ray Serve over three hosts, one of which is lost under load.

A host is a network namespace with an address of its own on a bridge; Ray knows it as a node. Losing it is
pulling its cable and killing its processes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import ROOT, eventually
from tutorial_lib import ApiError, InferenceClient, ManagementClient, NoAnswer

pytest.importorskip("ray", reason="pip install .[ray]")
pytestmark = [pytest.mark.timeout(600), pytest.mark.cluster]

HOSTS = 3
DEPLOY = """
import sys

import ray
from ray import serve

from tutorial_lib.ray_app import build_app

address, mar = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
serve.start(proxy_location="EveryNode", http_options={"host": "0.0.0.0", "port": 8000})
serve.run(build_app(mar, replicas=3))
print(len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}), "hosts")
"""


def ip(*arguments: str) -> str:
    run = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if run.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {run.stderr.strip()}")
    return run.stdout


class Network:
    """Namespaces on a bridge, each with a cable (a veth pair) and an address; this process has one too."""

    def __init__(self) -> None:
        self._id = f"{os.getpid() % 100_000}"
        self.bridge = f"br{self._id}"
        self._subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() % 250}"

    def namespace(self, host: int) -> str:
        return f"host{host}-{self._id}"

    def address(self, host: int) -> str:
        return f"{self._subnet}.{host}"

    def up(self) -> None:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self._subnet}.254/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for host in range(1, HOSTS + 1):
            namespace, cable = self.namespace(host), f"v{host}-{self._id}"
            ip("netns", "add", namespace)
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            ip("link", "set", cable, "master", self.bridge, "up")
            ip("-n", namespace, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", namespace, "link", "set", "eth0", "up")
            ip("-n", namespace, "link", "set", "lo", "up")

    def down(self) -> None:
        for host in range(1, HOSTS + 1):
            subprocess.run(["ip", "link", "del", f"v{host}-{self._id}"], capture_output=True)
            self.kill(host)
            subprocess.run(["ip", "netns", "del", self.namespace(host)], capture_output=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)

    def lose(self, host: int) -> None:
        ip("link", "set", f"v{host}-{self._id}", "down")
        self.kill(host)

    def pids(self, host: int) -> set[int]:
        try:
            return {int(pid) for pid in ip("netns", "pids", self.namespace(host)).split()}
        except OSError:
            return set()

    def kill(self, host: int) -> None:
        while pids := self.pids(host):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("hosts are network namespaces: they need Linux and iproute2 (apt install iproute2)")
    made = Network()
    try:
        try:
            made.up()
        except OSError as error:
            pytest.skip(f"network namespaces can't be made here: {error}")
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def cluster(network: Network, mar: Path) -> Iterator[list[str]]:
    """A Ray cluster with the course's archive served on each host; yields the hosts' HTTP addresses."""
    sessions = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: Unix sockets live in it
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_health_check_period_ms": "1000",  # a host that is silent for some 15 s is given up
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "4",
    }
    head = f"{network.address(1)}:6379"

    def on(host: int, *command: str) -> None:
        inside = ["ip", "netns", "exec", network.namespace(host), *command]
        for _ in range(4):  # on a busy machine Ray may give up starting
            run = subprocess.run(
                inside, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
            )
            if "timed out during startup" not in run.stdout + run.stderr:
                break
            network.kill(host)
        assert run.returncode == 0, run.stdout + run.stderr

    ray = str(Path(sys.executable).parent / "ray")
    common = ("--num-cpus=4", "--disable-usage-stats", f"--object-store-memory={10**8}")
    try:
        on(1, ray, "start", "--head", f"--node-ip-address={network.address(1)}", "--port=6379", *common,
           "--include-dashboard=false", f"--temp-dir={sessions}")  # fmt: skip
        for host in range(2, HOSTS + 1):
            on(host, ray, "start", f"--address={head}", f"--node-ip-address={network.address(host)}", *common)
        on(1, sys.executable, "-c", DEPLOY, head, str(mar))
        yield [f"http://{network.address(host)}:8000" for host in range(1, HOSTS + 1)]
    finally:
        for host in range(1, HOSTS + 1):
            network.kill(host)
        shutil.rmtree(sessions, ignore_errors=True)


def hosts_of_replicas(network: Network, address: str) -> list[int]:
    with closing(ManagementClient(address)) as management:
        pids = [worker["pid"] for worker in management.describe("my_model")["workers"]]
    return sorted(host for host in range(1, HOSTS + 1) for pid in pids if pid in network.pids(host))


TEXTS = ("I love this!", "this is awful", "the meeting is at ten", "great day", "it broke again")


class FallingOver:
    """A client that knows all hosts: where the one that it asks does not answer, it asks the next.

    This is what a load balancer before the hosts does for clients that know one address.
    """

    def __init__(self, addresses: list[str], first: int) -> None:
        self._clients = deque(map(InferenceClient, addresses))
        self._clients.rotate(-first)

    def predict(self, texts: list[str]) -> list[str]:
        for _ in range(10):
            try:
                labels: list[str] = self._clients[0].predict(
                    "my_model", {"input": texts}, timeout=5, retries=2
                )
                return labels
            except (ApiError, NoAnswer):
                self._clients.rotate(-1)
        raise AssertionError("no host answers")


def test_a_lost_host_loses_no_answer(network: Network, cluster: list[str]) -> None:
    """Clients of each host, also of the lost one, get all answers; the replica comes back elsewhere."""
    assert hosts_of_replicas(network, cluster[0]) == [1, 2, 3]
    right = []
    for address in cluster:  # each host takes requests
        with closing(InferenceClient(address)) as client:
            right.append(client.predict("my_model", {"input": TEXTS}))
    assert right[0] == right[1] == right[2] and len(set(right[0])) == 3
    done = threading.Event()
    answered = [0] * 2 * HOSTS

    def load(number: int) -> None:
        client = FallingOver(cluster, first=number % HOSTS)
        while not done.wait(0.01):
            here = [(answered[number] + number + more) % len(TEXTS) for more in range(number % 2 + 1)]
            assert client.predict([TEXTS[i] for i in here]) == [right[0][i] for i in here]
            answered[number] += 1

    def wait_for(hosts: list[int]) -> None:
        deadline = time.monotonic() + 180
        while True:
            try:
                found = hosts_of_replicas(network, cluster[0])
            except (ApiError, NoAnswer):
                found = []
            if len(found) == HOSTS and set(found) <= set(hosts):
                return
            assert time.monotonic() < deadline, f"replicas are on {found}"
            time.sleep(0.5)

    def wait_for_more(than: list[int]) -> None:
        def answered_more() -> bool:
            return all(now > before for now, before in zip(answered, than, strict=True))

        eventually(lambda: answered_more() or any(running.done() for running in loads), seconds=120)

    with ThreadPoolExecutor(len(answered)) as clients:
        loads = [clients.submit(load, number) for number in range(len(answered))]
        try:
            wait_for_more(than=[5] * len(answered))
            network.lose(3)
            wait_for([1, 2])
            wait_for_more(than=[*answered])
        finally:
            done.set()
        for running in loads:
            running.result()  # raises what a client met: a wrong answer, or none
