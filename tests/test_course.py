"""What chapters share: notebooks/course. Its raw server runs in chapters 10 and 12."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import course
import pytest
from course import containers
from course.clients import Asking
from course.defaults import plain_server
from course.logs import News, batches, batches_given
from course.reruns import forget, stop_replaced
from course.scripts import run_script
from course.servers import free_ports, holder, is_answered, run_raw, taken_port, write_config
from course.texts import sample_tweets
from course.workers import memory, memory_of_file

from tests.conftest import ROOT
from tests.course_copy import run_chapters
from tutorial_lib import TorchServe, export_model
from tutorial_lib.export import EMBEDDED

CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "nothing": lambda source, export: None,
    "a file of the model": lambda source, export: (source / "vocab.txt").touch(),
    "a file less in the export": lambda source, export: (export / "vocab.txt").unlink(),
    "another export there": lambda source, export: export_model(source, export),
    "the note of what was exported": lambda source, export: export.with_suffix(".json").write_text("{"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_model_is_exported_again_where_something_has_changed(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = shutil.copytree(EMBEDDED, "source")
    export = course.exported_model(str(source))
    CHANGES[what](Path(source), export)
    before = export.stat().st_ino
    assert course.exported_model(str(source)) == export
    assert (export.stat().st_ino == before) == (what == "nothing")
    assert (export / "vocab.txt").is_file()
    same = export.stat().st_ino
    assert course.exported_model(str(source)).stat().st_ino == same
    assert course.exported_model("embedded").stat().st_ino != same


def run_python(code: str, folder: Path, **environment: str) -> str:
    """What a Python that can import `course` prints."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "notebooks"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def test_an_import_is_light_and_outside_a_kernel_keeps_the_folder(tmp_path: Path) -> None:
    code = (
        "import course, course.servers, course.logs, course.texts, os, sys; "
        "print(os.getcwd(), sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert run_python(code, tmp_path) == f"{tmp_path} []"


def test_in_a_kernel_it_brings_folder_programs_and_the_path_to_itself(tmp_path: Path) -> None:
    code = (
        "import os, shutil, sys, types; sys.modules['ipykernel'] = types.ModuleType('x'); import course; "
        "print(os.getcwd(), shutil.which('torch-model-archiver'), str(course.ROOT / 'notebooks') in sys.path)"
    )
    program = Path(sys.executable).parent / "torch-model-archiver"
    assert run_python(code, tmp_path) == f"{ROOT} {program} True"


def test_the_course_runs_in_a_folder_of_any_name(tmp_path: Path) -> None:
    """Shell cells pack an archive there, and TorchServe serves it, also with its temporary files."""
    folder = tmp_path / "Ann's course, copy (1)"
    folder.mkdir()
    (folder / "tutorial_lib").symlink_to(ROOT / "tutorial_lib")  # so that the course's files are found there
    with tempfile.TemporaryDirectory(prefix="Ann's & Bob's (1)") as temp:  # shorter than tmp_path
        variables = {"PYTHONPATH": str(folder), "TMPDIR": temp, "COURSE_QUICK": "1"}
        chapter = run_chapters("02", folder, "embedded", **variables)
    outputs = [output for cell in chapter.cells for output in cell.get("outputs", [])]
    assert any("build/chapter_02/skeleton.mar" in output.get("text", "") for output in outputs)


def test_torchserve_by_hand_runs_in_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "Ann's course, copy (1)"
    (folder / "store").mkdir(parents=True)
    with taken_port() as port, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        done = run_raw(folder, folder / "store", port)
    assert "Address already in use" in done.stdout + done.stderr, done


@pytest.mark.parametrize(
    ("quick", "has_image", "build", "runs"),
    [
        (False, True, False, True),
        (False, False, False, False),
        (False, False, True, True),
        (True, True, False, False),
        (True, True, True, True),
    ],
)
def test_chapter_06_uses_an_engine_only_where_it_may_build(
    quick: bool, has_image: bool, build: bool, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FakeEngine:  # a real one takes minutes to build an image
        def has_image(self, name: str) -> bool:
            return has_image

    monkeypatch.setattr(containers, "find_engine", FakeEngine)
    monkeypatch.setattr(containers, "quick", quick)
    assert (containers.engine_with("some-image", build=build) is not None) == runs


@pytest.mark.parametrize(
    ("switch", "printed"),
    [("", "False 3 2.5"), ("0", "False 3 2.5"), ("1", "True 1 0.8333333333333334")],
)
def test_one_switch_shortens_measurements(switch: str, printed: str, tmp_path: Path) -> None:
    code = "import course; print(course.quick, course.times(3), course.seconds(2.5))"
    assert run_python(code, tmp_path, COURSE_QUICK=switch) == printed


def test_no_measurement_is_shorter_than_a_few_requests(tmp_path: Path) -> None:
    assert run_python("import course; print(course.seconds(0.5))", tmp_path, COURSE_QUICK="1") == "0.4"


def test_waiting_ends_at_its_limit_with_a_reason() -> None:
    with pytest.raises(TimeoutError, match=r"within 0.2 seconds. the log's end"):
        course.wait_until(lambda: None, 0.2, lambda: "the log's end")


def test_ports_are_free_and_differ() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20 and not any(is_answered(port) for port in ports)
    with socket.create_server(("127.0.0.1", ports[0])):
        assert is_answered(ports[0])


def test_the_config_has_the_addresses_that_are_returned(tmp_path: Path) -> None:
    addresses = write_config(tmp_path)
    lines = (tmp_path / "config.properties").read_text().splitlines()
    assert lines[:3] == [f"{name}_address={address}" for name, address in addresses.items()]
    assert list(addresses) == ["inference", "management", "metrics"]
    assert [line.partition("=")[0] for line in lines[3:]] == ["grpc_inference_port", "grpc_management_port"]


LOG = """\
W-9000-slow_1.0 org.pytorch.serve.wlm.WorkerThread - Flushing req.cmd PREDICT repeats 1 to backend at: 1000
W-9000-slow_1.0 org.pytorch.serve.wlm.WorkerThread - Flushing req.cmd PREDICT repeats 1 to backend at: 1000
W-9000-slow_1.0 org.pytorch.serve.job.RestJob - Sending response for jobId a
W-9000-slow_1.0 org.pytorch.serve.job.RestJob - Sending response for jobId b
W-9000-slow_1.0 org.pytorch.serve.wlm.WorkerThread - Backend response time: 500
W-9001-other_1.0 org.pytorch.serve.wlm.WorkerThread - Flushing req.cmd PREDICT repeats 1 to backend at: 2000
"""


def test_batches_are_read_from_a_log(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text(LOG)
    assert batches(log) == [(2, 1.0, 1.5)] and batches(log, since=1.0009) == [(2, 1.0, 1.5)]
    assert batches(log, since=1.002) == []
    assert batches_given(log, since=1.0009) == 2 and batches_given(log, since=99) == 0
    assert batches_given(log) == 2 and batches_given(log, worker="-slow_1.0 ") == 1


def test_tweets_are_the_same_for_a_seed_and_differ_from_each_other() -> None:
    tweets = sample_tweets(500)
    assert tweets == sample_tweets(500) != sample_tweets(500, seed=1)
    assert len({tweet.text for tweet in tweets}) == 500
    assert {tweet.label for tweet in tweets} == {"Negative", "Neutral", "Positive"}


def test_a_cell_that_starts_a_server_anew_ends_the_first_one(echo: Path) -> None:
    first = TorchServe(models={"echo": echo}, model_api=True).start()
    try:
        for code in ("other = 1", "print(server)", "server = ", "def f():\n    return 1"):
            stop_replaced(code, {"server": first})
        forget(first, "echo")
        forget(first, "echo")  # and where it is not registered
        assert first.inference.ping() == {"status": "Healthy"}
        stop_replaced("x = 1\nif x:\n    server = TorchServe().start()", {"server": first})
        assert "not running" in repr(first)
        stop_replaced("server = 1", {"server": first})
    finally:
        first.stop()


def test_several_clients_ask_and_the_first_error_is_raised() -> None:
    with Asking(threading.get_ident, clients=3) as client:
        course.wait_until(lambda: len(set(client.answers)) == 3)
    with pytest.raises(ZeroDivisionError), Asking(lambda: 1 / 0, clients=2) as failing:
        failing.wait_for(1)


def test_news_are_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ts_log.log").write_text("x - Load model failed\nx - something else\n")
    (tmp_path / "model_log.log").write_text("")
    news = News(tmp_path)
    news.show("failed")
    assert capsys.readouterr().out == "ts_log.log: Load model failed\nmodel_log.log: (no traceback)\n"
    news.show("failed")
    assert capsys.readouterr().out == "model_log.log: (no traceback)\n"
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(news.show, "failed", until="mismatch")
        with pytest.raises(TimeoutError):
            shown.result(timeout=1)
        (tmp_path / "model_log.log").write_text("x - number mismatch\n")
        shown.result(timeout=30)


def test_a_script_that_fails_shows_why(tmp_path: Path) -> None:
    (tmp_path / "works.py").write_text("import os, sys; print(sys.argv[1], os.environ['WORD'])")
    (tmp_path / "fails.py").write_text("raise SystemExit('no such model')")
    assert run_script(tmp_path / "works.py", 3, WORD="yes") == "3 yes\n"
    with pytest.raises(RuntimeError, match=r"fails\.py failed with exit status 1: no such model"):
        run_script(tmp_path / "fails.py")


def test_a_taken_port_has_a_holder() -> None:
    with taken_port() as port:
        assert holder(port) == os.getpid()
    assert holder(port) is None


def test_memory_of_a_process_and_of_its_files() -> None:
    used = memory(os.getpid())
    assert 0 < used["USS"] <= used["PSS"] <= used["RSS"]
    with pytest.raises(LookupError, match=r"no file no\.such"):
        memory_of_file(os.getpid(), "no.such")


def test_a_plain_server_runs_as_you_where_nobody_can_t_reach_the_temporary_folder(
    echo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This run's temporary folder is such a one: its mode is 700, as on machines with one for each user."""
    assert Path(tempfile.gettempdir()).stat().st_mode & 0o077 == 0
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    with plain_server(echo, "Torch worker started") as plain:
        assert not plain.is_nobodys and plain.users == {os.getuid()}
