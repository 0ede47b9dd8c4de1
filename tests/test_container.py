"""Containers with no engine at all: what it would be told, what its complaints become, what linters say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tutorial_lib import (
    Container,
    ContainerExited,
    EngineError,
    EngineNotFound,
    Image,
    ImageError,
    OutOfMemory,
    PortInUse,
    StartTimeout,
    TutorialError,
    find_engine,
)
from tutorial_lib.server import owner_name

BIN = Path(sys.executable).parent
StandIn = Callable[..., Path]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Puts a program on PATH that writes its arguments to `calls`, and does what a shell's `case` says."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CONTAINER_ENGINE", raising=False)

    def put(name: str, cases: str = "") -> Path:
        program = tmp_path / "bin" / name
        program.write_text(
            f'#!/bin/bash\nPATH={os.defpath}\nprintf "%s\\n" "$@" >> {tmp_path}/calls\n'
            f'case "$*" in\n{cases}\n*) ;;\nesac\n'
        )
        program.chmod(0o755)
        return tmp_path / "calls"

    return put


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A folder to build from, with a Dockerfile and an archive that the stand-in will not read."""
    for folder in ("deploy", "model_store"):
        (tmp_path / "course" / folder).mkdir(parents=True)
    (tmp_path / "course" / "model_store" / "m.mar").touch()
    return tmp_path / "course"


def build(course: Path, **options: str) -> Image:
    return Image.build("localhost/m:1", course / "model_store" / "m.mar", folder=course, **options)  # type: ignore[arg-type]


# Which engine


def test_no_engine_says_what_to_install(stand_in: StandIn) -> None:
    with pytest.raises(EngineNotFound, match=r"No podman and no docker .* `apt install podman`"):
        find_engine()


def test_an_engine_that_was_asked_for_is_the_only_one(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("podman")
    monkeypatch.setenv("CONTAINER_ENGINE", "docker")
    with pytest.raises(EngineNotFound, match="CONTAINER_ENGINE is 'docker'"):
        find_engine()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "Client: its version\nCannot connect to the Docker daemon at x. Is the docker daemon running?",
            "says: Cannot connect to the Docker daemon at x. Is the docker daemon running? "
            "Start its daemon (sudo systemctl start docker)",
        ),
        (
            "permission denied while trying to connect to the Docker daemon socket",
            "says: permission denied while trying to connect to the Docker daemon socket. "
            "Your user may not use it: join the group docker",
        ),
    ],
)
def test_an_engine_that_does_not_work_says_why(stand_in: StandIn, said: str, shown: str) -> None:
    stand_in("docker", f"ps*) echo '{said}' >&2; exit 1;;")
    with pytest.raises(EngineNotFound, match=re.escape(shown)):
        find_engine()


def test_docker_steps_in_for_a_broken_podman(stand_in: StandIn) -> None:
    stand_in("podman", "ps*) echo 'cannot set up namespace' >&2; exit 125;;")
    stand_in("docker")
    assert find_engine().name == "docker"


# Building


def test_what_podman_is_told_to_build(
    stand_in: StandIn, course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@pip.example.org/simple")
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "ca.crt"))
    copy = f'cat "${{a##*=}}" > {tmp_path}/conf'
    calls = stand_in(
        "podman",
        f"build*) for a; do case $a in *id=pipconf*) {copy};; esac; done;;",
    )
    image = build(course, model="tweets", base="localhost/base:1")
    told = calls.read_text().splitlines()
    assert {
        "--format=docker",
        "--build-arg=BASE_IMAGE=localhost/base:1",
        "--build-arg=MODEL_NAME=tweets",
    } <= set(told)
    assert "--build-arg=MODEL_ARCHIVE=model_store/m.mar" in told and image.name == "localhost/m:1"
    assert "--build-arg=TORCH_INDEX=" in told  # this pip has sources of its own
    assert (
        f"--build-context=wheels={tmp_path}/wheels" in told
        and f"--secret=id=ca,src={tmp_path}/ca.crt" in told
    )
    assert "secret" not in " ".join(told).replace("--secret", "")  # it goes in a file, and is in no layer
    conf = (tmp_path / "conf").read_text()
    assert (
        "index-url = https://user:secret@pip.example.org/simple\n" in conf and "cert = /run/ca.crt\n" in conf
    )


def test_what_docker_is_told_to_build(
    stand_in: StandIn, course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    calls = stand_in("docker", "'image inspect'*) exit 1;;")
    build(course)
    told = calls.read_text()
    assert "--format" not in told and "TORCH_INDEX" not in told and "--build-context" not in told
    assert "--build-arg=BASE_IMAGE=docker.io/library/debian:bookworm-slim" in told


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (
            "initializing source docker://base:1: pinging container registry",
            "base image .*deploy/base-image.sh",
        ),
        ("OSError: [Errno 28] No space left on device", "The disk is full: `podman system prune`"),
        ("ERROR: No matching distribution found for torch==2.13.0", "pip config list"),
        ("something new", "The build's last lines say why"),
    ],
)
def test_a_build_that_fails_says_why(stand_in: StandIn, course: Path, said: str, advice: str) -> None:
    stand_in("podman", f"build*) echo 'STEP 1'; echo '{said}' >&2; exit 125;;")
    with pytest.raises(ImageError, match=advice) as caught:
        build(course, base="localhost/base:1")
    assert said in str(caught.value)


def test_an_archive_that_the_build_would_not_see(stand_in: StandIn, course: Path, tmp_path: Path) -> None:
    stand_in("podman")
    with pytest.raises(ImageError, match="There is no archive"):
        Image.build("m", course / "model_store" / "other.mar", folder=course)
    (tmp_path / "far.mar").touch()
    with pytest.raises(ImageError, match=r"is not in .*model_store"):
        Image.build("m", tmp_path / "far.mar", folder=course)


# Running

GONE = """'image inspect'*|ps*|stop*|rm*) ;;
run*) exit 0;;
port*) echo 127.0.0.1:1;;
inspect*) echo '{"Running": false, "ExitCode": 137}';;
logs*) echo 'the last line';;"""


def test_a_container_is_closed_to_the_outside_and_to_itself(stand_in: StandIn) -> None:
    stand_in("podman")
    command = Container("localhost/m:1", ports={"inference": 8000}, memory="2g").command()
    assert [part for part in command if part.startswith("--publish")] == [
        "--publish=127.0.0.1:8000:8080",
        "--publish=127.0.0.1::8081",
        "--publish=127.0.0.1::8082",
    ]
    assert {"--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--memory=2g"} <= set(
        command
    )
    assert "--volume=keys:/run/keys:ro,Z" in command and "--env=TOKEN_AUTH=off" not in command
    assert "--env=TOKEN_AUTH=off" in Container("localhost/m:1", token_auth=False).command()


def test_a_container_that_dies_says_its_last_words_and_is_removed(stand_in: StandIn) -> None:
    calls = stand_in("podman", GONE)
    container = Container("localhost/m:1", name="mine")
    with pytest.raises(ContainerExited, match=r"(?s)status 137\..*\nthe last line") as caught:
        container.start()
    assert caught.value.returncode == 137
    assert "rm\n--force\nmine\n" in calls.read_text()
    assert container.logs() == "the last line"


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (GONE.replace("137}", '137, "OOMKilled": true}'), "The kernel killed it"),
        (
            GONE.replace("the last line", "serve: The memory limit was hit: 2 processes were killed."),
            "2 processes",
        ),
    ],
    ids=["its state says so", "its log says so"],
)
def test_a_container_that_ran_out_of_memory(stand_in: StandIn, gone: str, said: str) -> None:
    stand_in("podman", gone)
    with pytest.raises(OutOfMemory, match=rf"limit of 200m is too small\. .*{said}"):
        Container("localhost/m:1", memory="200m").start()


def test_docker_tells_no_ports_of_a_container_that_died_at_once(stand_in: StandIn) -> None:
    stand_in("docker", f"port*) exit 1;;\n{GONE}")
    with pytest.raises(ContainerExited, match="the last line"):
        Container("localhost/m:1").start()


def test_what_ended_it_is_told_even_where_it_cannot_be_removed(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in("podman", f"rm*) echo 'device or resource busy' >&2; exit 1;;\n{GONE}")
    with pytest.raises(ContainerExited, match="the last line") as caught:
        Container("localhost/m:1", name="mine").start()
    assert ["mine could not be removed" in note for note in caught.value.__notes__] == [True]
    assert not list(Path(tempfile.gettempdir()).glob(f"{owner_name()}-*"))  # its keys are


def test_what_it_said_before_a_restart_is_no_news(stand_in: StandIn) -> None:
    running = GONE.replace("false", "true")
    stand_in("podman", running)
    container = Container("localhost/m:1", startup_timeout=1).start()
    stand_in(
        "podman",
        "exec*) echo 'not yet'; exit 1;;\n*--since*) echo 'loading';;\n"
        "logs*) echo 'Backend worker process died.';;\n" + running,
    )
    with pytest.raises(StartTimeout, match=r"(?s)not yet.*\nloading$"):
        container.restart()
    container.remove()


def test_only_what_a_dead_process_of_this_machine_left_is_removed(stand_in: StandIn, tmp_path: Path) -> None:
    def left(owner: str) -> str:
        listed = "ps*--filter*label=torchserve-course.host=*) echo ts-1-1-left;;"
        return f"{listed}\ninspect*index*) echo {owner};;\n"

    calls = stand_in("podman", left(owner_name()) + GONE)
    with pytest.raises(ContainerExited):
        Container("localhost/m:1", name="mine").start()
    assert "ts-1-1-left\n" in calls.read_text() and "--force\nts-1-1-left" not in calls.read_text()
    stand_in("podman", left(f"ts-{os.getpid()}-1") + GONE)  # that process is gone, its number is ours now
    with pytest.raises(ContainerExited):
        Container("localhost/m:1", name="mine").start()
    assert "--force\nts-1-1-left" in calls.read_text()


def test_keys_are_drawn_for_one_container_and_go_with_it(stand_in: StandIn, tmp_path: Path) -> None:
    copy = f'a=${{a#*=}}; cp -r "${{a%%:*}}" {tmp_path}/keys'
    keep = f"run*) for a; do case $a in --volume=*) {copy};; esac; done;;"
    calls = stand_in("podman", keep + "\n" + GONE)
    container = Container("localhost/m:1")
    with pytest.raises(ContainerExited):
        container.start()
    assert container.token("inference") != container.token("management")
    assert (tmp_path / "keys" / "inference").read_text().strip() == container.token("inference")
    assert container.token("inference") not in calls.read_text()  # a command line is for everyone to see
    mounted = next(line for line in calls.read_text().splitlines() if line.startswith("--volume"))
    assert not Path(mounted.removeprefix("--volume=").partition(":")[0]).exists()


def test_a_container_that_never_gets_ready_meets_its_deadline(stand_in: StandIn) -> None:
    running = GONE.replace("false", "true")
    stand_in("podman", f"exec*) echo '0 of 1 workers of m are READY.'; exit 1;;\n{running}")
    with pytest.raises(StartTimeout, match="within 1 s: 0 of 1 workers of m are READY"):
        Container("localhost/m:1", startup_timeout=1).start()


def test_what_can_be_known_before_it_starts(stand_in: StandIn) -> None:
    stand_in("podman", "'image inspect'*) exit 1;;")
    with pytest.raises(ImageError, match=r"no image localhost/m:1 on this machine: Image.build"):
        Container("localhost/m:1").start()
    with pytest.raises(TutorialError, match=r"no port 'grpc'. The ports are inference, management, metrics"):
        Container("localhost/m:1", ports={"grpc": 1})
    with pytest.raises(TutorialError, match="has not been started"):
        _ = Container("localhost/m:1").inference_address


def test_a_taken_port_is_named(stand_in: StandIn) -> None:
    stand_in(
        "podman",
        "run*) echo 'Error: listen tcp4 127.0.0.1:8000: bind: address already in use' >&2; exit 126;;",
    )
    with pytest.raises(PortInUse, match="inference port 8000 is taken"):
        Container("localhost/m:1", ports={"inference": 8000}).start()


def test_a_refusal_of_the_engine_is_quoted(stand_in: StandIn) -> None:
    stand_in("podman", "run*) echo 'Error: unknown flag: --no-such' >&2; exit 125;;")
    with pytest.raises(EngineError, match="`podman run` failed: Error: unknown flag: --no-such"):
        Container("localhost/m:1", options=["--no-such"]).start()


def test_a_full_disk_is_named_wherever_it_is_met(stand_in: StandIn) -> None:
    full = "echo 'Error: writing blob: no space left on device' >&2; exit 125;;"
    stand_in("podman", f"run*|push*) {full}")
    with pytest.raises(EngineError, match="The disk is full: `podman system prune`"):
        Container("localhost/m:1").start()
    with pytest.raises(ImageError, match=r"(?s)push of r/m:1 failed.*The disk is full") as caught:
        Image("localhost/m:1").push("r/m:1")
    assert "logged in" not in str(caught.value)


# The files of deploy/, as linters see them


def test_dockerfile_has_no_lint() -> None:
    done = subprocess.run([BIN / "hadolint", ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_kubernetes_would_take_the_manifest() -> None:
    command: list[str | Path] = [BIN / "kubernetes-validate", "--strict", ROOT / "deploy" / "kubernetes.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [
        document["kind"] for document in yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    ]
    assert kinds == ["Deployment", "Service", "HorizontalPodAutoscaler"]


@pytest.mark.parametrize("script", ["serve.sh", "setup.sh", "base-image.sh"])
def test_scripts_have_no_lint(script: str) -> None:
    done = subprocess.run(
        [BIN / "shellcheck", "--severity=warning", ROOT / "deploy" / script], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_checks_health_as_the_image_does() -> None:
    """podman-compose builds images that lose their HEALTHCHECK."""
    server = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["torchserve"]
    _, _, wanted = (ROOT / "deploy" / "Dockerfile").read_text().partition("HEALTHCHECK ")
    options, _, command = wanted.splitlines()[0].partition(" CMD ")
    check = server["healthcheck"]
    assert check.pop("test") == ["CMD", *json.loads(command)]
    assert check == {
        name.replace("-", "_"): int(value) if value.isdigit() else value
        for name, value in re.findall(r"--(\S+)=(\S+)", options)
    }


def test_monitoring_joins_the_server_and_mounts_files_that_are_there(
    stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in("podman", "*version*) echo podman version 4.3.1;;")  # which podman-compose asks for first
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "inference").touch()
    done = subprocess.run(
        [
            *(BIN / "podman-compose", "-f", "deploy/compose.yaml", "-f", "deploy/monitoring.compose.yaml"),
            "config",
        ],
        cwd=ROOT,
        env=os.environ | {"KEYS": str(keys), "GRAFANA_PASSWORD": "a-password"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services.keys() == {"torchserve", "prometheus", "grafana"}
    mounted = [
        volume.partition(":")[0]
        for service in services.values()
        for volume in service["volumes"]
        if volume.startswith((".", "/"))
    ]
    assert len(mounted) == 5
    assert [path for path in mounted if not (ROOT / "deploy" / path).exists()] == []
