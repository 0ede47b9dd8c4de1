"""Containers with no engine at all: what it would be told, what its complaints become, what linters say."""

from __future__ import annotations

import copy
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.conftest import ROOT, folders, orphan
from tutorial_lib import (
    ArchiveError,
    Container,
    ContainerExited,
    Engine,
    EngineError,
    EngineNotFound,
    Image,
    ImageError,
    OutOfMemory,
    PortInUse,
    StartTimeout,
    TutorialError,
    WorkerFailed,
    build_archive,
    find_engine,
)
from tutorial_lib.processes import new_folder, remove_folder, set_engine

BIN = Path(sys.executable).parent
IMAGE_FILES = ROOT / "deploy" / "image"
FakeEngine = Callable[..., Path]


@pytest.fixture
def fake_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
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


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small archive, which the fake engine will not read."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "h.py").write_text("def handle(data, context):\n    return data\n")
    return build_archive("m", handler=folder / "h.py", export_path=folder)


# Which engine


def test_no_engine_says_what_to_install(fake_engine: FakeEngine) -> None:
    with pytest.raises(EngineNotFound, match=r"No podman and no docker .* `apt install podman`"):
        find_engine()


def test_an_engine_that_was_asked_for_is_the_only_one(
    fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine("podman")
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
def test_an_engine_that_does_not_work_says_why(fake_engine: FakeEngine, said: str, shown: str) -> None:
    fake_engine("docker", f"ps*) echo '{said}' >&2; exit 1;;")
    with pytest.raises(EngineNotFound, match=re.escape(shown)):
        find_engine()


@pytest.mark.parametrize("path", ["nerdctl", "/no/podman/nerdctl"])
def test_an_unknown_engine_is_refused_and_not_called_podman(
    path: str, fake_engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_engine("nerdctl")
    monkeypatch.setenv("CONTAINER_ENGINE", path.replace("/no/podman", str(tmp_path / "bin")))
    with pytest.raises(EngineNotFound, match=r"CONTAINER_ENGINE is '.*nerdctl', neither podman nor docker"):
        find_engine()
    assert not calls.exists()
    with pytest.raises(ValueError, match=r"no engine 'nerdctl'\. The engines are podman, docker"):
        Engine("/usr/bin/nerdctl", "nerdctl")


@pytest.mark.parametrize(("name", "engine"), [("podman", "Podman"), ("docker", "Docker")])
def test_each_engine_has_a_class(name: str, engine: str, fake_engine: FakeEngine) -> None:
    program = fake_engine(name).parent / "bin" / name
    assert repr(find_engine()) == f"{engine}(program={str(program)!r}, name={name!r})"
    assert find_engine() == Engine(str(program), name) == copy.copy(find_engine())


def test_docker_steps_in_for_a_broken_podman(fake_engine: FakeEngine) -> None:
    fake_engine("podman", "ps*) echo 'cannot set up namespace' >&2; exit 125;;")
    fake_engine("docker")
    assert find_engine().name == "docker"


@pytest.mark.skipif(not Path("/usr/sbin").is_dir(), reason="this system has no /usr/sbin")
def test_an_engine_finds_the_systems_programs_that_the_users_path_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Debian's `su` leaves it: podman then finds no iptables."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    shell = Engine("/bin/sh", "podman")
    for shown in (shell.run("-c", "echo $PATH"), shell.stream("-c", "echo $PATH").strip()):
        assert shown.startswith("/usr/bin:/bin:") and "/usr/sbin" in shown.split(":")
    assert "/usr/sbin" in capsys.readouterr().out
    monkeypatch.delenv("PATH")
    assert "/usr/sbin" in shell.run("-c", "echo $PATH").split(":")


# Building


@pytest.fixture
def podman_build(
    fake_engine: FakeEngine, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], str]:
    """What podman is told to build where pip has settings of its own, and the pip.conf that it is given."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@pip.example.org/simple")
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "ca.crt"))
    copy = f'cat "${{a##*=}}" > {tmp_path}/conf'
    calls = fake_engine("podman", f"build*) for a; do case $a in *id=pipconf*) {copy};; esac; done;;")
    image = Image.build("localhost/m:1", archive, model="tweets", base="localhost/base:1")
    assert image.name == "localhost/m:1"
    return calls.read_text().splitlines(), (tmp_path / "conf").read_text()


def test_what_podman_is_told_to_build(podman_build: tuple[list[str], str]) -> None:
    told, _ = podman_build
    assert {
        "--format=docker",
        "--build-arg=BASE_IMAGE=localhost/base:1",
        "--build-arg=MODEL_NAME=tweets",
        "--build-arg=MODEL_ARCHIVE=model_store/model.mar",
    } <= set(told)


def test_a_build_has_the_sources_of_this_machines_pip(
    podman_build: tuple[list[str], str], tmp_path: Path
) -> None:
    told, conf = podman_build
    assert "--build-arg=TORCH_INDEX=" in told  # torch comes from this pip's sources too
    assert f"--build-context=wheels={tmp_path}/wheels" in told
    assert "index-url = https://user:secret@pip.example.org/simple\n" in conf


def test_a_build_has_the_certificates_of_this_machines_pip(
    podman_build: tuple[list[str], str], tmp_path: Path
) -> None:
    told, conf = podman_build
    assert f"--secret=id=ca,src={tmp_path}/ca.crt" in told and "cert = /run/ca.crt\n" in conf


def test_pips_password_goes_in_a_file_and_is_in_no_layer(podman_build: tuple[list[str], str]) -> None:
    told, _ = podman_build
    assert "secret" not in " ".join(told).replace("--secret", "")


def test_what_docker_is_told_to_build(
    fake_engine: FakeEngine, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    calls = fake_engine("docker", "'image inspect'*) exit 1;;")
    Image.build("localhost/m:1", archive)
    told = calls.read_text()
    assert [part for part in ("--format", "TORCH_INDEX", "--build-context") if part in told] == []
    assert "--build-arg=BASE_IMAGE=docker.io/library/debian:bookworm-slim" in told


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (
            "initializing source docker://base:1: pinging container registry",
            "base image .*deploy/image/base-image.sh",
        ),
        ("OSError: [Errno 28] No space left on device", "The disk is full: `podman system prune`"),
        ("ERROR: No matching distribution found for torch==2.13.0", "pip config list"),
        ("The user requested scipy<1 ... these package versions have conflicting dependencies.", "packages="),
        ("something new", "The build's last lines say why"),
    ],
)
def test_a_build_that_fails_says_why(fake_engine: FakeEngine, archive: Path, said: str, advice: str) -> None:
    fake_engine("podman", f"build*) echo 'STEP 1'; echo '{said}' >&2; exit 125;;")
    with pytest.raises(ImageError, match=advice) as caught:
        Image.build("localhost/m:1", archive, base="localhost/base:1")
    assert said in str(caught.value)


def copied_by_the_dockerfile() -> set[str]:
    copied = re.findall(r"(?m)^COPY (?!--from)((?:.*\\\n)*.*)", (IMAGE_FILES / "Dockerfile").read_text())
    sources = {word for line in copied for word in line.split()[:-1] if word[0] not in "-\\$"}
    assert {"constraints.txt", "deploy/image/serve.sh", "metrics.yaml"} <= sources
    return sources


def test_a_build_sees_its_own_files_alone_wherever_it_is_started(
    fake_engine: FakeEngine, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an empty folder: the layout is the course's own, so that one Dockerfile fits both."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    fake_engine("podman", f'build*) cd "${{@: -1}}"; find . -type f > {tmp_path}/seen;;')
    Image.build("localhost/m:1", archive)
    seen = {line.removeprefix("./") for line in (tmp_path / "seen").read_text().splitlines()}
    assert copied_by_the_dockerfile() - seen == set()
    own = {f"deploy/image/{file.name}" for file in IMAGE_FILES.iterdir()}
    assert seen - own == {"constraints.txt", "metrics.yaml", "model_store/model.mar"}


def test_a_build_in_the_course_folder_sees_what_the_dockerfile_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    folder = re.compile(r"^deploy/image/.*")
    assert {folder.sub("deploy/image", path) for path in copied_by_the_dockerfile()} - allowed == set()


@pytest.mark.parametrize(
    ("packages", "own", "files", "wanted"),
    [
        ([], None, [], []),
        (["scikit-learn", "pillow>=11"], None, [], ["scikit-learn", "pillow>=11"]),
        (("ray[serve] == 2.6",), None, [], ["ray[serve] == 2.6"]),
        (["x @ https://example.org/x.whl"], None, [], ["x @ https://example.org/x.whl"]),
        ([], "# mine\nscipy ; python_version < '4'\n", [], ["# mine", "scipy ; python_version < '4'"]),
        ([], "\ufeffscipy", [], ["scipy"]),
        (["scikit-learn"], "scipy\n", ["model.onnx"], ["scikit-learn", "scipy", "onnxruntime"]),
        ([], None, ["price.onnx"], ["onnxruntime"]),
        (["onnxruntime-gpu"], None, ["model.onnx"], ["onnxruntime-gpu"]),
        ([], "onnxruntime==1.20.0", ["model.onnx"], ["onnxruntime==1.20.0"]),
    ],
)
def test_an_image_gets_the_packages_that_are_asked_for_and_those_of_its_archive(
    packages: Sequence[str],
    own: str | None,
    files: list[str],
    wanted: list[str],
    fake_engine: FakeEngine,
    archive: Path,
    tmp_path: Path,
) -> None:
    extra_files = [tmp_path / name for name in files]
    for file in extra_files:
        file.touch()
    requirements = tmp_path / "my_requirements.txt"
    if own is not None:
        requirements.write_text(own, encoding="utf-8")
    needing = build_archive(
        "needing",
        handler=archive.with_name("h.py"),
        extra_files=extra_files,
        requirements_file=requirements if own is not None else None,
        export_path=tmp_path,
    )
    fake_engine("podman", f'build*) cp "${{@: -1}}/deploy/image/requirements.txt" {tmp_path}/seen;;')
    Image.build("localhost/m:1", needing, packages=packages)
    shipped = (IMAGE_FILES / "requirements.txt").read_text()
    assert all(line.startswith("#") for line in shipped.splitlines())
    assert (tmp_path / "seen").read_text().removeprefix(shipped).splitlines() == wanted
    assert (IMAGE_FILES / "requirements.txt").read_text() == shipped


@pytest.mark.parametrize(
    ("packages", "sentence"),
    [
        ("scikit-learn", r"packages is 'scikit-learn'\. Give a list"),
        ({"scikit-learn": "1.0"}, "Give a list"),
        (None, r"packages is None\. Give a list"),
        ([""], "packages has ''"),
        (["scikit-learn scipy"], "packages has 'scikit-learn scipy'"),
        (["scikit-learn,scipy"], "packages has"),
        (["-r requirements.txt"], "packages has '-r requirements.txt'"),
        (["--index-url=https://example.org"], "packages has"),
        (["./my.whl"], "packages has './my.whl'"),
        (["/work/my"], "packages has"),
        (["scipy\n--pre"], "packages has"),
        (["scipy>=1\n--pre"], "packages has"),
        (["scipy; rm -rf $HOME\n"], "packages has"),
    ],
)
def test_what_is_no_package_is_refused_before_anything_is_built(
    packages: Any, sentence: str, fake_engine: FakeEngine, archive: Path
) -> None:
    calls = fake_engine("podman")
    with pytest.raises((TypeError, ValueError), match=sentence):
        Image.build("localhost/m:1", archive, packages=packages)
    assert not calls.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"packages": ["mine @ https://user:secret@example.org/mine.whl"]},
        {"packages": ["mine @ git+https://secret@example.org/mine"]},
        {"build_args": {"TORCH_INDEX": "https://user:secret@example.org/whl"}},
        {"build_args": {"PACKAGES": "--extra-index-url http://secret@example.org/simple mine"}},
        {"requirements": "--index-url https://user:secret@example.org/simple\nmine\n"},
    ],
)
def test_no_password_goes_into_an_image(
    options: dict[str, Any], fake_engine: FakeEngine, archive: Path, tmp_path: Path
) -> None:
    calls = fake_engine("podman")
    if "requirements" in options:
        (tmp_path / "r.txt").write_text(options["requirements"])
        archive = build_archive(
            "m", handler=archive.with_name("h.py"), requirements_file=tmp_path / "r.txt", export_path=tmp_path
        )
        options = {}
    with pytest.raises(
        ImageError, match=r"has a URL with a user name or password.* PIP_EXTRA_INDEX_URL"
    ) as caught:
        Image.build("localhost/m:1", archive, **options)
    assert "secret" not in str(caught.value) and "build" not in calls.read_text().splitlines()


def test_only_a_whole_mar_is_built_into_an_image(
    fake_engine: FakeEngine, archive: Path, tmp_path: Path
) -> None:
    fake_engine("podman")
    with pytest.raises(ArchiveError, match="There is no archive"):
        Image.build("m", tmp_path / "other.mar")
    folder = build_archive(
        "f", handler=archive.with_name("h.py"), export_path=tmp_path, archive_format="no-archive"
    )
    with pytest.raises(ImageError, match=r"An image holds a \.mar"):
        Image.build("m", folder)


# Running

GONE = """'image inspect'*|ps*|stop*|rm*) ;;
run*) exit 0;;
port*) echo 127.0.0.1:1;;
inspect*) echo '{"Running": false, "ExitCode": 137}';;
logs*) echo 'the last line';;"""


def test_a_container_is_closed_to_the_outside_and_to_itself(fake_engine: FakeEngine) -> None:
    fake_engine("podman")
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


def test_a_container_that_dies_says_its_last_words_and_is_removed(fake_engine: FakeEngine) -> None:
    calls = fake_engine("podman", GONE)
    container = Container("localhost/m:1", name="mine")
    with pytest.raises(ContainerExited, match=r"(?s)status 137\..*\nthe last line") as caught:
        container.start()
    assert caught.value.returncode == 137
    assert "rm\n--force\nmine\n" in calls.read_text()
    assert container.log_tail() == "the last line"


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
def test_a_container_that_ran_out_of_memory(fake_engine: FakeEngine, gone: str, said: str) -> None:
    fake_engine("podman", gone)
    with pytest.raises(OutOfMemory, match=rf"limit of 200m is too small\. .*{said}"):
        Container("localhost/m:1", memory="200m").start()


NO_THREADS = (
    "java.lang.OutOfMemoryError: unable to create native thread: possibly out of memory or process/resource "
    "limits reached"
)
ADVICE = r"The limit on processes and threads is too small: .*--pids-limit=2048"


@pytest.mark.parametrize(
    "printed",
    [NO_THREADS, "[FATAL tini (1)] fork failed: Resource temporarily unavailable"],
    ids=["of the JVM", "of the start script"],
)
def test_a_pids_limit_that_is_too_small_is_a_sentence(fake_engine: FakeEngine, printed: str) -> None:
    fake_engine("podman", GONE.replace("the last line", printed))
    with pytest.raises(ContainerExited, match=rf"status 137\. {ADVICE}"):
        Container("localhost/m:1", options=["--pids-limit=20"]).start()


def test_a_pids_limit_that_stops_a_worker_is_not_waited_for(fake_engine: FakeEngine) -> None:
    line = "2026-12-01T05:54:23,591 [ERROR] W-9000-m_1.0 org.pytorch.serve.wlm.WorkerThread - {}"
    log = line.format("Out of memory error when creating workers") + f"\\n{NO_THREADS}"
    running = GONE.replace("false", "true").replace("echo 'the last line'", f"echo -e '{log}'")
    fake_engine("podman", f"exec*) echo '0 of 1 workers of m are READY.'; exit 1;;\n{running}")
    with pytest.raises(WorkerFailed, match=rf"(?s){ADVICE}.*unable to create native thread"):
        Container("localhost/m:1", options=["--pids-limit=40"], startup_timeout=60).start()


def test_docker_tells_no_ports_of_a_container_that_died_at_once(fake_engine: FakeEngine) -> None:
    fake_engine("docker", f"port*) exit 1;;\n{GONE}")
    with pytest.raises(ContainerExited, match="the last line"):
        Container("localhost/m:1").start()


def test_its_end_is_told_even_where_it_cannot_be_removed(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine("podman", f"rm*) echo 'device or resource busy' >&2; exit 1;;\n{GONE}")
    before = folders()
    with pytest.raises(ContainerExited, match="the last line") as caught:
        Container("localhost/m:1", name="mine").start()
    assert ["mine could not be removed" in note for note in caught.value.__notes__] == [True]
    assert folders() == before  # its keys are removed


def test_what_it_said_before_a_restart_is_no_news(fake_engine: FakeEngine) -> None:
    running = GONE.replace("false", "true")
    fake_engine("podman", running)
    container = Container("localhost/m:1", startup_timeout=1).start()
    fake_engine(
        "podman",
        "exec*) echo 'not yet'; exit 1;;\n*--since*) echo 'loading';;\n"
        "logs*) echo 'Backend worker process died.';;\n" + running,
    )
    with pytest.raises(StartTimeout, match=r"(?s)not yet.*\nloading$"):
        container.restart()
    container.remove()


class Left(NamedTuple):
    """Folders that podman's containers belong to: the owner of one lives and has it locked."""

    living: Path
    dead: Path
    cases: str


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Left]:
    """A container's label names the folder of its start."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    living, dead = new_folder(), orphan(tmp_path)
    for folder in (living, dead):
        set_engine(folder, "podman")
    listed = "ps*--filter*label=torchserve-course.owner={}) echo {};;\n"
    yield Left(living, dead, listed.format(living, "its") + listed.format(dead, "left") + GONE)
    remove_folder(living)


def start_and_exit() -> None:
    with pytest.raises(ContainerExited):
        Container("localhost/m:1", name="mine").start()


def test_what_a_dead_owner_left_is_removed(fake_engine: FakeEngine, left: Left) -> None:
    calls = fake_engine("podman", left.cases)
    start_and_exit()
    assert "--force\nleft\n" in calls.read_text() and not left.dead.exists()
    assert "label\ntorchserve-course.owner=" in calls.read_text()


def test_what_a_living_owner_has_stays(fake_engine: FakeEngine, left: Left) -> None:
    calls = fake_engine("podman", left.cases)
    start_and_exit()
    assert left.living.is_dir() and "--force\nits\n" not in calls.read_text()


def test_what_another_engine_runs_stays(fake_engine: FakeEngine, left: Left) -> None:
    calls = fake_engine("docker", left.cases)
    start_and_exit()
    assert left.living.is_dir() and left.dead.is_dir()
    assert "--force\nleft\n" not in calls.read_text()


def test_what_cannot_be_removed_now_is_left_for_another_try(fake_engine: FakeEngine, left: Left) -> None:
    calls = fake_engine("podman", "rm*left) exit 1;;\n" + left.cases)
    start_and_exit()
    assert "--force\nleft\n" in calls.read_text() and left.dead.is_dir()


def test_keys_are_drawn_for_one_container_and_go_with_it(fake_engine: FakeEngine, tmp_path: Path) -> None:
    copy = f'a=${{a#*=}}; cp -r "${{a%%:*}}" {tmp_path}/keys'
    keep = f"run*) for a; do case $a in --volume=*) {copy};; esac; done;;"
    calls = fake_engine("podman", keep + "\n" + GONE)
    container = Container("localhost/m:1")
    with pytest.raises(ContainerExited):
        container.start()
    assert container.token("inference") != container.token("management")
    assert (tmp_path / "keys" / "inference").read_text().strip() == container.token("inference")
    assert container.token("inference") not in calls.read_text()  # a command line is for everyone to see
    mounted = next(line for line in calls.read_text().splitlines() if line.startswith("--volume"))
    assert not Path(mounted.removeprefix("--volume=").partition(":")[0]).exists()


def test_a_container_that_never_gets_ready_meets_its_deadline(fake_engine: FakeEngine) -> None:
    running = GONE.replace("false", "true")
    fake_engine("podman", f"exec*) echo '0 of 1 workers of m are READY.'; exit 1;;\n{running}")
    with pytest.raises(StartTimeout, match="within 1 s: 0 of 1 workers of m are READY"):
        Container("localhost/m:1", startup_timeout=1).start()


def test_an_image_that_is_not_there_is_named(fake_engine: FakeEngine) -> None:
    fake_engine("podman", "'image inspect'*) exit 1;;")
    with pytest.raises(ImageError, match=r"no image localhost/m:1 on this machine: Image.build"):
        Container("localhost/m:1").start()


def test_an_unknown_port_is_refused(fake_engine: FakeEngine) -> None:
    fake_engine("podman")
    with pytest.raises(ValueError, match=r"no port 'grpc'. The ports are inference, management, metrics"):
        Container("localhost/m:1", ports={"grpc": 1})


def test_before_its_start_a_container_has_no_address(fake_engine: FakeEngine) -> None:
    fake_engine("podman")
    with pytest.raises(TutorialError, match="has not been started"):
        _ = Container("localhost/m:1").inference_address


def test_a_taken_port_is_named(fake_engine: FakeEngine) -> None:
    fake_engine(
        "podman",
        "run*) echo 'Error: listen tcp4 127.0.0.1:8000: bind: address already in use' >&2; exit 126;;",
    )
    with pytest.raises(PortInUse, match="inference port 8000 is taken"):
        Container("localhost/m:1", ports={"inference": 8000}).start()


def test_a_refusal_of_the_engine_is_quoted(fake_engine: FakeEngine) -> None:
    fake_engine("podman", "run*) echo 'Error: unknown flag: --no-such' >&2; exit 125;;")
    with pytest.raises(EngineError, match="`podman run` failed: Error: unknown flag: --no-such"):
        Container("localhost/m:1", options=["--no-such"]).start()


def test_a_full_disk_is_named_wherever_it_is_met(fake_engine: FakeEngine) -> None:
    full = "echo 'Error: writing blob: no space left on device' >&2; exit 125;;"
    fake_engine("podman", f"run*|push*) {full}")
    with pytest.raises(EngineError, match="The disk is full: `podman system prune`"):
        Container("localhost/m:1").start()
    with pytest.raises(ImageError, match=r"(?s)push of r/m:1 failed.*The disk is full") as caught:
        Image("localhost/m:1").push("r/m:1")
    assert "logged in" not in str(caught.value)


# How many threads torch gets in a worker


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="containers run on Linux")
@pytest.mark.parametrize(
    ("files", "settings", "threads"),
    [
        ({}, None, 8),
        ({}, "batchSize: 8", 8),
        ({}, "minWorkers: 2", 4),
        ({}, "minWorkers: 3", 2),
        ({}, "minWorkers: 16", 1),
        ({}, "minWorkers: 0", 8),
        ({"cpu.max": "max 100000"}, None, 8),
        ({"cpu.max": "400000 100000"}, None, 4),
        ({"cpu.max": "400000 100000"}, "minWorkers: 2", 2),
        ({"cpu.max": "150000 100000"}, None, 1),
        ({"cpu.max": "50000 100000"}, None, 1),
        ({"cpu.max": "6400000 100000"}, None, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, None, 3),
    ],
)
def test_workers_share_the_cores_of_their_container(
    files: dict[str, str],
    settings: str | None,
    threads: int,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    (tmp_path / "settings.yaml").write_text(settings or "")
    mar = build_archive(
        "m",
        handler=archive.with_name("h.py"),
        config_file=tmp_path / "settings.yaml" if settings else None,
        export_path=tmp_path,
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    script = runpy.run_path(str(IMAGE_FILES / "threads.py"))
    assert script["threads"](tmp_path, mar) == threads


def test_kubernetes_gives_the_threads_that_its_cpu_request_pays_for() -> None:
    deployment = next(yaml.safe_load_all((IMAGE_FILES / "kubernetes.yaml").read_text()))
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    assert server["env"] == [
        {"name": "OMP_NUM_THREADS", "value": server["resources"]["requests"]["cpu"]}
    ]  # one worker


# The files of deploy/, as linters see them


def test_dockerfile_has_no_lint() -> None:
    done = subprocess.run([BIN / "hadolint", IMAGE_FILES / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_kubernetes_would_take_the_manifest() -> None:
    command: list[str | Path] = [BIN / "kubernetes-validate", "--strict", IMAGE_FILES / "kubernetes.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [
        document["kind"] for document in yaml.safe_load_all((IMAGE_FILES / "kubernetes.yaml").read_text())
    ]
    assert kinds == ["Deployment", "Service", "HorizontalPodAutoscaler"]


@pytest.mark.parametrize(
    "script", [*IMAGE_FILES.glob("*.sh"), *(ROOT / ".ci").iterdir()], ids=lambda file: file.name
)
def test_scripts_have_no_lint(script: Path) -> None:
    command: list[str | Path] = [BIN / "shellcheck", "--severity=warning", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_checks_health_as_the_image_does() -> None:
    """podman-compose builds images that lose their HEALTHCHECK."""
    server = yaml.safe_load((IMAGE_FILES / "compose.yaml").read_text())["services"]["torchserve"]
    _, _, wanted = (IMAGE_FILES / "Dockerfile").read_text().partition("HEALTHCHECK ")
    options, _, command = wanted.splitlines()[0].partition(" CMD ")
    check = server["healthcheck"]
    assert check.pop("test") == ["CMD", *json.loads(command)]
    assert check == {
        name.replace("-", "_"): int(value) if value.isdigit() else value
        for name, value in re.findall(r"--(\S+)=(\S+)", options)
    }


def test_monitoring_joins_the_server_and_mounts_files_that_are_there(
    fake_engine: FakeEngine, tmp_path: Path
) -> None:
    fake_engine("podman", "*version*) echo podman version 4.3.1;;")  # which podman-compose asks for first
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "inference").touch()
    done = subprocess.run(
        [
            *(
                BIN / "podman-compose",
                "-f",
                "deploy/image/compose.yaml",
                "-f",
                "deploy/monitoring/compose.yaml",
            ),
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
    assert [path for path in mounted if not (IMAGE_FILES / path).exists()] == []
