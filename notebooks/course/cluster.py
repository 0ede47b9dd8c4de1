"""Ray Serve over several hosts on one machine, the costs of a request there, and clients (chapter 15)."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from course import ROOT
from course.clients import Asking
from course.servers import free_port, free_ports, is_answered
from course.waiting import wait_until
from tutorial_lib import InferenceClient, load_test

# HAProxy's configuration: its path tells this course's HAProxy processes from others.
CONFIG = ROOT / "build" / "haproxy" / "haproxy.cfg"


@functools.cache
def environment() -> dict[str, str]:
    """Returns variables for a cluster that lives as long as a chapter. Ray reads them when it is imported.

    They stay the same within a process, so that the chapter can run again in its kernel.

    >>> len(environment()["RAY_AUTH_TOKEN"])
    64
    """
    return {
        "RAY_AUTH_MODE": "token",  # an access token for this cluster alone
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 s are too few on a busy machine
        # A stopped replica stays reachable this long, for load balancers that Ray does not know. HAProxy
        # learns at once that it stopped, so the default of 30 seconds would only be a delay.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(CONFIG),
        "RAY_health_check_initial_delay_ms": "0",
        "RAY_health_check_period_ms": "1000",  # Ray gives up a host that is silent for some seconds
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "4",
        # A lost host's messages would fill a screen of the notebook; Ray's log files have them too.
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
        "OMP_NUM_THREADS": "1",
    }


def set_up(**variables: str) -> None:
    """Sets these environment variables and those of `environment`: Ray reads them when it is imported."""
    os.environ.update(variables | environment())


class Hosts:
    """Ray Serve over several hosts of this machine, each with its own HAProxy.

    Attributes:
        addresses: one for each host, the head first. Each leads to all replicas.
        plain_proxy: the address of Ray's plain proxy, which runs on the head as HAProxy's fallback.
    """

    _running: Hosts | None = None  # a notebook has one cluster at a time

    def __init__(self, count: int) -> None:
        """Stops the hosts that ran before, and starts the hosts and Ray Serve.

        Ray reads its variables from the environment.
        """
        import ray
        from ray import serve

        if Hosts._running:
            Hosts._running.stop()
        _end_orphans()
        atexit.register(lambda: _kill(_named("haproxy")))  # HAProxy would outlive a kernel that ends early
        logging.getLogger("ray").setLevel("ERROR")
        logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.ERROR)
        ports = free_ports(count)
        self.addresses = [f"http://127.0.0.1:{port}" for port in ports]
        self.plain_proxy = f"http://127.0.0.1:{os.environ['RAY_SERVE_FALLBACK_PROXY_HTTP_PORT']}"
        self._cluster, self._nodes = _start_nodes(ports)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        http = {"host": "127.0.0.1", "port": ports[0]}
        Hosts._running = self
        serve.start("EveryNode", http_options=http, logging_config={"log_level": "ERROR"})

    @property
    def alive(self) -> int:
        """How many hosts Ray counts as alive."""
        import ray

        return sum(host["Alive"] for host in ray.nodes())

    def lose(self, number: int) -> None:
        """Kills all processes of a host, and tells Ray nothing. Host 0, the head, has to stay."""
        port = int(self.addresses[number].rpartition(":")[2])
        [proxy] = [process for process in _named("haproxy") if port in _listens(process)]
        processes = proxy.parents()[1].children(recursive=True)  # HAProxy's manager is the raylet's child
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)
        _kill(processes)

    @property
    def processes(self) -> list[psutil.Process]:
        """The processes of all hosts; each has children of its own."""
        return psutil.Process().children()

    def stop(self) -> None:
        """Stops Ray Serve and the hosts. Afterwards none of their processes is left."""
        import ray
        from ray import serve

        if Hosts._running is not self:
            return
        Hosts._running = None
        serve.shutdown()
        processes = psutil.Process().children(recursive=True)
        ray.shutdown()
        self._cluster.shutdown()
        psutil.wait_procs(processes, timeout=10)
        _kill([process for process in processes if process.is_running()])


def replicas(name: str) -> list[psutil.Process]:
    """Returns the processes of an application's replicas. A process's parent is its host's raylet."""
    return _named(f"ServeReplica:{name}:")


class Cost(NamedTuple):
    """The result of a measurement under load; the times are CPU seconds per request.

    Attributes:
        rate: right answers per second.
        handler: the time in the replicas' processes that run the handler.
        replica: the time in the replicas' other processes, which speak HTTP.
        ingress: the time in HAProxy, or in the process that `cost` was given instead.
        total: the time in all processes that this notebook runs, clients included.
        cores: the cores that other programs left.
    """

    rate: float
    handler: float
    replica: float
    ingress: float
    total: float
    cores: float


def cost(
    url: str, texts: Sequence[str], *, clients: int, seconds: float, times: int = 1, ingress: str = "haproxy"
) -> Cost:
    """Puts a URL under load, and returns the cheapest of some measurements after a warm-up.

    The cheapest one counts, because other programs only make a request more expensive.

    Args:
        url: requests are posted here; it answers with a 200.
        texts: one per request.
        clients: how many ask at once.
        seconds: how long each measurement lasts.
        times: how many measurements.
        ingress: the name, or a part of the name, of the process that takes requests.

    Raises:
        AssertionError: an answer was wrong or missing.
    """
    _cost(url, texts, clients, 0.5, ingress)
    found = [_cost(url, texts, clients, seconds, ingress) for _ in range(times)]
    return min(found, key=lambda one: one.total)


def _cost(url: str, texts: Sequence[str], clients: int, seconds: float, ingress: str) -> Cost:
    names = ("tutorial_lib.worker.process", "ServeReplica", ingress, "")
    before, began = _cpu_seconds(names), time.perf_counter()
    row = load_test(url, texts, concurrency=clients, duration=seconds, warmup=0).iloc[0]
    assert row["errors"] == row["wrong"] == 0, row["outcomes"]
    took = time.perf_counter() - began
    *spent, machine = (now - then for now, then in zip(_cpu_seconds(names), before, strict=True))
    cores = psutil.cpu_count() or 1
    # The machine's own CPU time is coarse, and too high on a virtual machine that waits for its host.
    others = min(max(0.0, machine - spent[-1]) / took, cores)
    handler, replica, entry, total = (part / row["requests"] for part in spent)
    return Cost(row["requests_per_s"], handler, replica, entry, total, cores - others)


def _cpu_seconds(names: Sequence[str]) -> list[float]:
    """Returns the CPU time of this notebook's processes, by part of their name, and of the whole machine."""
    parts = [0.0] * len(names)
    for process in [psutil.Process(), *_named("")]:
        with suppress(psutil.NoSuchProcess):
            # Of a program in Python, the name says only "python".
            name, spent = " ".join([process.name(), *process.cmdline()[-1:]]), sum(process.cpu_times()[:2])
            parts = [part + spent * (own in name) for part, own in zip(parts, names, strict=True)]
    machine = psutil.cpu_times()
    return [*parts, sum(machine) - machine.idle - machine.iowait]


class Clients(Asking[tuple[Any, float]]):
    """Threads that ask for predictions, again and again, until the `with` block ends.

    Attributes:
        answers: pairs of an answer and the time.perf_counter() at which it came.

    Raises:
        Exception: at the block's end, the first error that a client met.
    """

    def __init__(self, number: int, address: str, model: str, **options: Any) -> None:
        """`options` are those of `InferenceClient.predict`."""
        self._client = client = InferenceClient(address)
        super().__init__(lambda: (client.predict(model, {}, **options), time.perf_counter()), clients=number)

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._client.close()


def memory(*processes: psutil.Process | int) -> float:
    """Returns the MB of these processes (or process ids) and all their children; shared pages count once.

    Without an argument, it returns those of this process.
    """
    roots = [p if isinstance(p, psutil.Process) else psutil.Process(p) for p in processes]
    tree = {p for root in roots or [psutil.Process()] for p in [root, *root.children(recursive=True)]}
    return sum(p.memory_full_info().pss for p in tree) / 1e6


@contextmanager
def program(arguments: Sequence[object], log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Runs a Python server until the end of the `with` block, which begins when the server listens on a port.

    Args:
        arguments: Python's arguments; a free port is added, where the program has to listen.
        log: the file for what the program prints.

    Yields:
        Its address, and its process.

    Raises:
        TimeoutError: the program ended, or did not listen within two minutes; the message has its log.
    """
    port = free_port()
    command = [sys.executable, *map(str, arguments), str(port)]
    with log.open("wb") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def listens() -> bool:
        if process.poll() is not None:
            raise TimeoutError(f"{command[1]} ended. {log.read_text()[-2000:]}")
        return is_answered(port)

    try:
        wait_until(listens, 120, lambda: log.read_text()[-2000:])
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.is_running():
            _kill([*process.children(recursive=True), process])


def _start_nodes(ports: list[int], attempts: int = 4) -> tuple[Any, list[Any]]:
    """Starts the nodes, again if need be: on a busy machine Ray's half a minute for a start is too short."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    nodes: list[Any] = []
    common: dict[str, Any] = {"num_cpus": 8, "object_store_memory": 10**8, "include_log_monitor": False}
    try:
        for port in ports:  # on one machine each HAProxy needs ports of its own
            names = ("WORKER_PROXY_HTTP", "HAPROXY_METRICS", "HAPROXY_STATS")
            numbers = (port, *free_ports(2))
            variables = {f"RAY_SERVE_{name}_PORT": str(n) for name, n in zip(names, numbers, strict=True)}
            head: dict[str, Any] = {} if nodes else {"include_dashboard": False, "no_monitor": True}
            nodes.append(cluster.add_node(**common, **head, env_vars=variables))
    except Exception:
        cluster.shutdown()
        if attempts == 1:
            raise
        return _start_nodes(ports, attempts - 1)
    return cluster, nodes


def _end_orphans() -> None:
    """Ends this course's HAProxy processes whose Ray was killed: they outlive it."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = "haproxy" in process.name() and str(CONFIG.parent) in " ".join(process.cmdline())
            if ours and not process.parents()[0].name().startswith("ray::"):
                _kill([process])


def _named(part: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if part in process.name():
                found.append(process)
    return found


def _listens(process: psutil.Process) -> set[int]:
    return {c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN}


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
