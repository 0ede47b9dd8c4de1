"""A real image, built and run: `make container`. Each test is one thing that happens to servers."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml
from course.containers import has_registry, registry
from course.servers import free_port

from tests.conftest import ROOT, eventually, orphan
from tutorial_lib import (
    ApiError,
    Container,
    ContainerExited,
    EngineError,
    Image,
    InferenceClient,
    NoAnswer,
    OutOfMemory,
    PortInUse,
    WorkerFailed,
    build_archive,
)
from tutorial_lib.processes import set_engine

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

SAMPLE = json.loads((ROOT / "sample_input.json").read_text())
ANSWER = ["Positive", "Neutral", "Negative"]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def image(mar: Path) -> Image:
    """Its name is the one under which chapter 06, which runs after these tests, finds it."""
    return Image.build("localhost/torchserve-course:latest", mar)


@pytest.fixture(scope="module")
def container(image: Image) -> Iterator[Container]:
    with Container(image, memory="2g") as running:
        yield running


def kill(container: Container, pattern: str) -> None:
    container.exec("pkill", "-KILL", "-f", pattern)


# What is in it


def test_the_image_is_small_and_a_new_model_costs_one_layer(image: Image, tmp_path: Path) -> None:
    layers = image.layers()
    assert image.megabytes < 1400, layers
    assert "model.mar" in layers[-1].instruction and layers[-1].megabytes < 60
    torch, others = (
        next(i for i, layer in enumerate(layers) if word in layer.instruction)
        for word in ("torch numpy", "transformers")
    )
    assert torch < others < len(layers) - 1

    started = time.monotonic()
    again = build_archive("again", handler=ROOT / "handler.py", export_path=tmp_path)
    second = Image.build("localhost/torchserve-course:again", again)
    try:
        assert second.layers()[:-1] == layers[:-1]
        assert time.monotonic() - started < 60
    finally:
        second.remove()


def test_no_secret_of_the_build_stays_in_it(container: Container) -> None:
    found = container.exec(
        "sh", "-c", "ls /etc/pip.conf /run/ca.crt /run/wheels /opt/pip 2>/dev/null | wc -l"
    )
    assert container.exec("sh", "-c", "cat /etc/pip.conf 2>/dev/null | wc -c") == "0"
    assert int(found) <= 3  # empty mount points at most
    with pytest.raises(Exception, match="No module named pip"):
        container.exec("python", "-m", "pip", "--version")


def test_it_has_what_the_handler_imports_and_threads_for_its_workers(image: Image, tmp_path: Path) -> None:
    """One is asked for, one is in the archive's requirements file, one runs the archive's model.onnx."""
    (tmp_path / "needing.py").write_text(
        "import os, onnxruntime, PIL, sklearn\n\ndef handle(data, context):\n"
        "    found = [onnxruntime.__version__, PIL.__version__, sklearn.__version__]\n"
        "    return data and [[*found, os.environ['OMP_NUM_THREADS']]] * len(data)\n"
    )
    (tmp_path / "requirements.txt").write_text("# pictures\npillow\n")
    (tmp_path / "settings.yaml").write_text("minWorkers: 2\n")
    (tmp_path / "model.onnx").touch()
    needing = build_archive(
        "needing",
        handler=tmp_path / "needing.py",
        extra_files=[tmp_path / "model.onnx"],
        config_file=tmp_path / "settings.yaml",
        requirements_file=tmp_path / "requirements.txt",
        export_path=tmp_path,
    )
    pins = dict(
        re.findall(r"(?m)^(onnxruntime|pillow|scikit-learn)==(\S+)$", (ROOT / "constraints.txt").read_text())
    )
    second = Image.build("localhost/torchserve-course:needing", needing, packages=["scikit-learn"])
    try:
        for options, threads in ([], None), (["--cpus=1"], "1"), (["--env=OMP_NUM_THREADS=3"], "3"):
            with Container(second, options=options) as running:
                *found, given = running.inference.predict("my_model", b"")
                assert found == [pins["onnxruntime"], pins["pillow"], pins["scikit-learn"]]
                cores = len(
                    running.exec("python", "-c", "import os; print(*os.sched_getaffinity(0))").split()
                )
                assert given == (threads or str(max(1, cores // 2)))
    finally:
        second.remove()


# What it does


def test_it_answers_those_who_have_the_key(container: Container) -> None:
    assert container.health() == (True, "1 of 1 workers of my_model are READY.")
    assert container.inference.ping() == {"status": "Healthy"}
    assert container.inference.predict("my_model", SAMPLE) == ANSWER
    assert container.management.describe("my_model")["workers"][0]["status"] == "READY"
    assert container.metrics.scrape("ts_inference_requests_total")["value"].sum() >= 1
    # the handler's counters too, which dashboard and drift alerts read
    eventually(lambda: container.metrics.scrape("handler_texts_total")["value"].sum() == 3, seconds=20)


def test_it_answers_nobody_else(container: Container) -> None:
    wrong_case = container.token("inference").swapcase()
    for key in (None, "wrong", wrong_case, container.token("management"), container.token("inference") + "x"):
        with pytest.raises(ApiError, match=r"401 InvalidKey: .*container.token") as caught:
            InferenceClient(container.inference_address, token=key).predict("my_model", SAMPLE)
        assert caught.value.status == 401
    bearer = {"Authorization": f"Bearer {container.token('inference')}"}
    assert (
        requests.get(f"{container.management_address}/models", headers=bearer, timeout=30).status_code == 401
    )
    assert requests.get(f"{container.metrics_address}/metrics", timeout=30).status_code == 401


def test_it_has_no_rights_and_only_tmp_to_write_to(container: Container) -> None:
    assert container.exec("id", "-u") == "1000"
    assert container.exec("sh", "-c", "touch /opt/x /home/server/x 2>/dev/null; echo $?") == "1"
    listening = container.exec("python", "-c", "print(open('/proc/net/tcp').read())")
    ours = {int(port, 16) for port in re.findall(r" 00000000:(\w{4}) 00000000:0000 0A", listening)}
    assert ours == {8080, 8081, 8082}  # TorchServe itself is on loopback
    published = container.engine.run("port", container.name)
    assert all("-> 127.0.0.1:" in line for line in published.splitlines())


def test_what_is_too_large_is_refused_with_a_sentence(container: Container) -> None:
    with pytest.raises(ApiError, match=r"413 RequestEntityTooLarge: .*6553500 bytes"):
        container.inference.predict("my_model", b"x" * 6_600_000)


def test_a_body_without_the_key_is_not_read(container: Container) -> None:
    """A stranger can't make the server hold 60 bodies of 6 MB: each is refused when its headers are there."""
    port = int(container.inference_address.rpartition(":")[2])
    head = b"POST /predictions/my_model HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6000000\r\n\r\n"
    with contextlib.ExitStack() as strangers:
        connections = [
            strangers.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(60)
        ]
        for connection in connections:
            connection.sendall(head)
        for connection in connections:
            assert connection.recv(12) == b"HTTP/1.1 401"  # and not one byte of a body was sent
        assert container.inference.predict("my_model", SAMPLE) == ANSWER


def test_a_taken_port_is_named(container: Container) -> None:
    port = int(container.inference_address.rpartition(":")[2])
    with pytest.raises(PortInUse, match=f"inference port {port} is taken"):
        Container(container.image, ports={"inference": port}).start()


def test_a_killed_worker_comes_back_and_health_says_so(container: Container) -> None:
    def check() -> bool:
        """The image's HEALTHCHECK as the engine runs it."""
        if container.engine.name == "docker":
            return container.health().ok
        return (
            subprocess.run([container.engine.program, "healthcheck", "run", container.name]).returncode == 0
        )

    assert check()
    kill(container, "model_service_worker")
    eventually(lambda: not check(), seconds=10)
    eventually(check)
    assert container.inference.predict("my_model", SAMPLE) == ANSWER


def test_a_restart_loses_nothing(container: Container) -> None:
    key = container.token("inference")
    container.restart()
    assert container.token("inference") == key
    assert container.inference.predict("my_model", SAMPLE) == ANSWER


def test_what_dead_owners_left_goes_and_what_others_left_stays(container: Container) -> None:
    def names() -> set[str]:
        return set(container.engine.run("ps", "--all", "--format", "{{.Names}}").split())

    dead = orphan(Path(tempfile.gettempdir()))
    set_engine(dead, container.engine.name)
    left = f"torchserve-course.owner={dead}"
    for name, owner in {
        "ts-999999999-1-theirs": [],
        "of-another-host": ["--label", "torchserve-course.owner=/no/such/folder/ts-1"],
        "left": ["--label", left],
    }.items():
        container.engine.run("create", "--name", name, *owner, container.image.name)
    try:
        with pytest.raises(EngineError):
            Container(container.image, options=["--no-such"]).start()  # looks for what was left first
        assert {"ts-999999999-1-theirs", "of-another-host", container.name} <= names()
        assert "left" not in names() and not dead.exists()
    finally:
        container.engine.run("rm", "--force", "ts-999999999-1-theirs", "of-another-host")


def test_requests_in_flight_are_answered_when_it_is_told_to_stop(image: Image) -> None:
    long = {"input": [f"{text} {number}" for number in range(40) for text in SAMPLE["input"]]}
    with Container(image) as running, ThreadPoolExecutor(6) as pool:
        address, key = running.inference_address, running.token("inference")
        asked = [
            pool.submit(InferenceClient(address, token=key).predict, "my_model", long, timeout=100)
            for _ in range(6)
        ]
        time.sleep(0.3)  # all are on their way in
        in_flight = sum(not request.done() for request in asked)
        running.stop()
        answers = [request.result() for request in asked]
        assert in_flight >= 2
        assert [len(answer) for answer in answers] == [120] * 6
        assert running.state()["ExitCode"] == 0
        assert requests_refused(address)


def requests_refused(address: str) -> bool:
    try:
        requests.get(f"{address}/ping", timeout=5)
    except requests.ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    ("process", "said"), [("ModelServer", "TorchServe ended"), ("nginx: master", "nginx ended")]
)
def test_without_its_server_it_ends_and_says_so(image: Image, process: str, said: str) -> None:
    with Container(image) as running:
        kill(running, process)
        eventually(lambda: not running.state()["Running"], seconds=20)
        assert running.state()["ExitCode"] == 1
        assert said in running.log_tail(5)


def test_too_little_memory_is_a_sentence(image: Image) -> None:
    with pytest.raises(OutOfMemory, match=r"200m is too small. .* (processes were killed|kernel killed it)"):
        Container(image, memory="200m", options=["--memory-swap=200m"]).start()


def test_too_few_processes_are_a_sentence(image: Image) -> None:
    with pytest.raises(ContainerExited, match=r"limit on processes and threads is too small: .*pids-limit"):
        Container(image, options=["--pids-limit=20"]).start()


def test_behind_a_gateway_it_asks_for_no_keys_and_idle_it_stops_at_once(image: Image) -> None:
    with Container(image, token_auth=False) as running:
        assert (
            requests.post(f"{running.inference_address}/predictions/my_model", json=SAMPLE, timeout=60).json()
            == ANSWER
        )
        assert running.stop() < 5
        assert running.state()["ExitCode"] == 0


def test_a_model_that_does_not_load_shows_its_traceback(image: Image, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import no_such_package\n\ndef handle(data, context):\n    return data\n"
    )
    broken = build_archive("broken", handler=tmp_path / "broken.py", export_path=tmp_path)
    second = Image.build("localhost/torchserve-course:broken", broken)
    try:
        with pytest.raises(WorkerFailed, match="No module named 'no_such_package'"):
            Container(second).start()
    finally:
        second.remove()


# Where it goes from here


def test_it_goes_to_a_registry_and_comes_back(image: Image) -> None:
    if not has_registry():
        pytest.skip("there is no docker-registry on this machine")
    with registry() as (address, _):
        pushed = image.push(f"{address}/torchserve-course:1.0", tls_verify=False)
        tags = requests.get(f"http://{address}/v2/torchserve-course/tags/list", timeout=30).json()
        assert tags["tags"] == ["1.0"]
        pushed.remove()
        assert not image.engine.has_image(pushed.name)
        pushed.pull(tls_verify=False)
        assert pushed.layers() == image.layers()
        pushed.remove()


def test_podman_runs_what_kubernetes_would(image: Image, tmp_path: Path) -> None:
    if image.engine.name != "podman":
        pytest.skip("only podman runs a Kubernetes manifest without a cluster")
    port, key = free_port(), "a-key-of-sixteen-or-more"
    encoded = base64.b64encode(key.encode()).decode()
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "torchserve-keys"},
        "data": {"inference": encoded, "management": encoded},
    }
    deployment, *others = yaml.safe_load_all((ROOT / "deploy" / "image" / "kubernetes.yaml").read_text())
    server = deployment["spec"]["template"]["spec"]["containers"][0]
    server["image"] = image.name
    server["ports"][0] |= {"hostPort": port, "hostIP": "127.0.0.1"}  # podman has no Services
    deployment["spec"]["replicas"] = 1
    manifest = tmp_path / "kubernetes.yaml"
    manifest.write_text(yaml.safe_dump_all([secret, deployment, *others]))
    # podman 4.3 mounts a secret as it stands in the manifest, later ones decode it
    clients = [InferenceClient(f"http://127.0.0.1:{port}", token=token) for token in (key, encoded)]
    try:
        image.engine.run("play", "kube", str(manifest), timeout=120)
        eventually(lambda: any(answers(client) for client in clients), seconds=90)
    finally:
        image.engine.run("play", "kube", "--down", str(manifest), timeout=120)
        for kind in ("volume", "secret"):
            subprocess.run([image.engine.program, kind, "rm", "torchserve-keys"], capture_output=True)
    assert requests_refused(f"http://127.0.0.1:{port}")
    assert "torchserve" not in image.engine.run("pod", "ps", "--format", "{{.Name}}")
    assert "torchserve" not in image.engine.run("ps", "--all", "--format", "{{.Names}}")


def test_compose_runs_it(image: Image, tmp_path: Path) -> None:
    if image.engine.name != "podman":
        pytest.skip("podman-compose drives podman")
    port, key = free_port(), "a-key-of-sixteen-or-more"
    unchecked = "localhost/torchserve-course:unchecked"
    (tmp_path / "keys").mkdir()
    for kind in ("inference", "management"):
        (tmp_path / "keys" / kind).write_text(f"{key}\n")
    tmp_path.chmod(0o755)
    # podman-compose builds in podman's own format, where HEALTHCHECK is lost
    (tmp_path / "Dockerfile").write_text(f"FROM {image.name}\nHEALTHCHECK NONE\n")
    image.engine.run(
        *("build", "--format=docker", "--pull-never", "--tag", unchecked, str(tmp_path)),
        timeout=300,
    )
    settings = {
        "IMAGE": unchecked,
        "KEYS": str(tmp_path / "keys"),
        "INFERENCE_PORT": str(port),
    }
    settings |= {"MANAGEMENT_PORT": str(free_port()), "METRICS_PORT": str(free_port())}
    compose: list[str | Path] = [
        BIN / "podman-compose",
        "-p",
        "course-test",
        "-f",
        ROOT / "deploy" / "image" / "compose.yaml",
    ]
    try:
        up = subprocess.run(
            [*compose, "up", "--detach", "--no-build"],
            env=os.environ | settings,
            capture_output=True,
            text=True,
        )
        assert up.returncode == 0, up.stderr
        client = InferenceClient(f"http://127.0.0.1:{port}", token=key)
        eventually(lambda: answers(client), seconds=90)
        image.engine.run("healthcheck", "run", "course-test_torchserve_1")
    finally:
        subprocess.run([*compose, "down"], env=os.environ | settings, capture_output=True)
        image.engine.run("rmi", unchecked)


def answers(client: InferenceClient) -> bool:
    try:
        return bool(client.predict("my_model", SAMPLE) == ANSWER)
    except (ApiError, NoAnswer):
        return False
