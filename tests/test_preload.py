"""Preloaded workers: a fork is what a new process would be, else it is one; nothing is left behind."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import below, eventually, folders, gone
from tutorial_lib import PackageMissing, TorchServe, WorkerFailed, build_archive, preloaded
from tutorial_lib.preload.owner import MODULES, python_for
from tutorial_lib.preload.python import VARIABLE, circumstances

# Answers with what a handler can see of its process.
SEEN = """
import logging, os, random, resource, sys, tempfile, threading

import numpy

def handle(data, context):
    if data is None:
        return None
    main = sys.modules["__main__"]
    return [{
        "arguments": [word for word in sys.argv if not os.path.sep in word],
        "program": sys.executable,
        "main": [main.__name__, main.__file__, main.__package__ or ""],
        "folder": os.getcwd(),
        "path": sys.path,
        "variables": dict(os.environ),
        "temporary": tempfile.gettempdir(),
        "mask": os.umask(os.umask(0o22)),
        "cpus": sorted(os.sched_getaffinity(0)),
        "priority": os.nice(0),
        "limits": [resource.getrlimit(number) for number in range(16)],
        "streams": [[s.encoding, s.errors, s.fileno()] for s in (sys.stdin, sys.stdout, sys.stderr)],
        "log": [logging.root.level, len(logging.root.handlers), logging.root.handlers[0].formatter._fmt],
        "threads": threading.active_count(),
        "signals": [str(signal_of(n)) for n in (1, 2, 13, 15, 17)],
        "session": os.getsid(0) == os.getpid(),
        "flags": str(sys.flags),
        "random": [random.random(), float(numpy.random.rand())],
        "tmp": os.path.exists("/proc/self/fd") and len(os.listdir("/proc/self/fd")) < 64,
    } for _ in data]

from signal import getsignal as signal_of
"""


# Prints whether the worker of a server of its own is a fork.
IS_FORK = """
import sys, psutil
from tutorial_lib import TorchServe

with TorchServe(models={"m": sys.argv[1]}) as server:
    worker = psutil.Process(server.management.describe("m")["workers"][0]["pid"])
    print("preload.process" in " ".join(worker.parent().cmdline()))
"""


def packed(folder: Path, name: str, code: str, **others: str) -> Path:
    for file, text in {name: code, **others}.items():
        (folder / f"{file}.py").write_text(text)
    extra = [folder / f"{file}.py" for file in others]
    return build_archive(name, handler=folder / f"{name}.py", extra_files=extra, export_path=folder / "store")


def worker(server: TorchServe, model: str = "m") -> psutil.Process:
    [one] = server.management.describe(model)["workers"]
    return psutil.Process(one["pid"])


def is_preloading(process: psutil.Process) -> bool:
    return "preload.process" in " ".join(process.cmdline())


def is_fork(process: psutil.Process) -> bool:
    """Whether it is a child of the preloading process, rather than of the JVM."""
    parent = process.parent()
    assert parent is not None
    kinds = [is_preloading(parent), parent.name().startswith("java")]
    assert sum(kinds) == 1
    return kinds[0]


@pytest.fixture(autouse=True)
def not_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests decide themselves what is preloaded."""
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture(scope="module")
def shared() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        with preloaded():
            folder = os.environ[VARIABLE]
            del os.environ[VARIABLE]
            yield folder
            os.environ[VARIABLE] = folder


def test_a_fork_is_what_a_new_process_is(
    shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, seen = packed(tmp_path, "seen", SEEN), {}
    importlib.import_module("transformers.modeling_utils")  # such imports set variables
    monkeypatch.setenv("SOMETHING", "in the server's environment")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "extra"))
    for kind in ("new", "fork", "another fork"):
        with TorchServe(models={"m": archive}) as server:
            assert is_fork(worker(server)) == ("fork" in kind)
            text = json.dumps(server.inference.predict("m", {}))
            model, own = worker(server).cwd(), str(server.log_dir.parent)
            seen[kind] = json.loads(text.replace(model, "MODEL").replace(own, "SERVER"))
            assert server.wait_for_log("Torch worker started.")
        monkeypatch.setenv(VARIABLE, shared)
    assert seen["new"]["variables"]["SOMETHING"] and seen["new"]["path"]
    assert len({one["random"][place] for one in seen.values() for place in (0, 1)}) == 6
    for one in seen.values():
        del one["random"]
        for name in (VARIABLE, "PWD", "_"):  # a shell sets the last two
            one["variables"].pop(name, None)
        assert one.pop("session") is False
    assert seen["fork"] == seen["new"] and seen["another fork"] == seen["new"]


SCRIPT = "import os, sys\nprint(os.getppid(), sys.stdin.read(), flush=True)\n"


def run_script(shared: str, folder: Path, code: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a script with the name of TorchServe's worker; it prints its parent's id and what it reads."""
    script = folder / "model_service_worker.py"
    script.write_text(SCRIPT + code)
    options["env"] = os.environ | {VARIABLE: shared} | options.get("env", {})
    python = python_for(folder, {VARIABLE: shared})
    return subprocess.run([python, script], input="read", capture_output=True, text=True, **options)


def limit_cores() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


DIFFERENT: dict[str, dict[str, Any]] = {
    "OMP_NUM_THREADS": {"env": {"OMP_NUM_THREADS": "3"}},
    "LD_LIBRARY_PATH": {"env": {"LD_LIBRARY_PATH": "/no/such/folder"}},
    "the file mode mask": {"umask": 0o77},
    "RLIMIT_CORE": {"preexec_fn": limit_cores},
    "the CPUs": {"preexec_fn": lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])},
    "a higher priority": {"preexec_fn": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5)},
    "its own sympy": {},
    "its own sitecustomize": {},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_where_a_fork_would_differ_a_new_process_is_started(what: str, shared: str, tmp_path: Path) -> None:
    if what == "a higher priority" and os.geteuid() != 0:
        pytest.skip("only root can raise a priority")
    if what == "the CPUs" and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("this machine has one CPU")
    if what == "RLIMIT_CORE" and resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this limit is 0 already")
    options = dict(DIFFERENT[what])
    if "its own" in what:
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / f"{what.rpartition(' ')[2]}.py").write_text("SAYS = 'my own'")
        options["env"] = {"PYTHONPATH": str(tmp_path / "own")}
    run = run_script(shared, tmp_path, **options)
    told, result = run.stdout.splitlines()
    assert told.startswith("This worker is not preloaded, but a new process: it ") and what in told
    parent, read = result.split()
    assert int(parent) == os.getpid() and read == "read"


def test_an_archive_with_a_preloaded_module_of_its_own(
    shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, shared)
    code = "def handle(data, context):\n    import sympy\n    return data and [sympy.SAYS] * len(data)\n"
    with TorchServe(models={"m": packed(tmp_path, "own", code, sympy="SAYS = 'my own'")}) as server:
        assert not is_fork(worker(server)) and server.inference.predict("m", {}) == "my own"


def test_a_worker_comes_back_whichever_process_dies(echo: Path) -> None:
    before = folders()
    with TorchServe(models={"m": echo}, preload=True) as server:
        first = worker(server)
        assert is_fork(first)
        preloading = first.parent()
        assert preloading is not None
        for victim in (first, preloading):  # after the second one there is nothing to fork from
            before_it = worker(server)
            victim.kill()
            await_another(server, before_it)
            assert is_fork(worker(server)) == (victim is first)
            assert server.inference.predict("m", {}) == "ok"
        running = [*below(server.pid), worker(server)]
    assert gone(running) and folders() == before


def await_another(server: TorchServe, old: psutil.Process) -> None:
    """Waits until another worker is READY in place of this one."""

    def is_replaced() -> bool:
        [one] = server.management.describe("m")["workers"]
        return one["status"] == "READY" and one["pid"] != old.pid

    eventually(is_replaced)


def test_scaling_redeploying_and_stopping_end_the_forks(echo: Path, tmp_path: Path) -> None:
    before = folders()
    (tmp_path / "echo.py").write_text("def handle(data, context):\n    return data and ['new'] * len(data)\n")
    with TorchServe(models={"m": echo}, model_api=True, preload=True) as server:
        preloading = worker(server).parent()
        assert preloading is not None
        server.management.scale("m", min_worker=3, wait=True)
        three = preloading.children()
        assert len(three) == 3
        server.management.scale("m", min_worker=1, wait=True)
        eventually(lambda: len(preloading.children()) == 1)
        server.redeploy("m", handler=tmp_path / "echo.py")
        assert server.inference.predict("m", {}) == "new"
        eventually(lambda: len(preloading.children()) == 1 and not gone(preloading.children()))
        running = [*below(server.pid), preloading, *preloading.children(), *three]
    assert gone(running) and folders() == before


def test_a_killed_jvm_takes_the_forks_with_it(
    shared: str, echo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, shared)
    with TorchServe(models={"m": echo}) as server, TorchServe(models={"m": echo}) as other:
        fork, neighbour = worker(server), worker(other)
        assert is_fork(fork) and is_fork(neighbour)
        java = next(p for p in below(server.pid) if p.name().startswith("java"))
        java.kill()
        server.stop()
        assert gone([fork]) and other.inference.predict("m", {}) == "ok"
    assert gone([neighbour])


def test_all_end_with_a_killed_owner(echo: Path) -> None:
    before = folders()
    code = (
        "import sys; from tutorial_lib import TorchServe, preloaded\n"
        "with preloaded(), TorchServe(models={'m': sys.argv[1]}) as server:\n"
        "    print(server.pid, server.management.describe('m')['workers'][0]['pid'], flush=True); input()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(echo)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    launcher, fork = map(int, owner.stdout.readline().split())
    running = [psutil.Process(fork), *below(owner.pid)]
    assert psutil.Process(launcher) in running and len(folders() - before) == 2
    owner.kill()
    eventually(lambda: gone(running) and folders() == before)
    owner.communicate()


def test_a_request_in_the_moment_of_the_owners_death() -> None:
    before = folders()
    code = (
        "import os; from tutorial_lib import preloaded\n"
        f"with preloaded():\n    print(os.environ['{VARIABLE}'], flush=True); input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    folder = owner.stdout.readline().strip()
    eventually((Path(folder) / "socket").exists)
    [preloading] = psutil.Process(owner.pid).children()
    preloading.suspend()  # so that it learns of both at once
    owner.kill()
    owner.communicate()
    with socket.socket(socket.AF_UNIX) as late:
        late.connect(f"{folder}/socket")
        preloading.resume()
        eventually(lambda: gone([preloading]) and folders() == before)


def test_a_handler_that_fails_is_quoted_as_always(tmp_path: Path) -> None:
    archive = packed(tmp_path, "broken", "import no_such_module\n\n\ndef handle(data, context): ...\n")
    with pytest.raises(WorkerFailed, match="No module named 'no_such_module'"):
        TorchServe(models={"m": archive}, preload=True).start()


@pytest.mark.parametrize("locale", [{}, {"LANG": "C"}, {"LC_ALL": "C.UTF-8"}])
def test_it_works_in_any_locale(locale: dict[str, str], echo: Path) -> None:
    code = f"import tutorial_lib\nwith tutorial_lib.preloaded():\n{textwrap.indent(IS_FORK, '    ')}"
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("LANG", "LC_"))}
    run = subprocess.run(
        [sys.executable, "-c", code, echo], env=variables | locale, capture_output=True, text=True
    )
    assert run.stdout.strip() == "True", run.stderr


def test_child_processes_preload_too_and_a_server_outlives_the_block(echo: Path) -> None:
    with contextlib.ExitStack() as stack:
        with preloaded():
            run = subprocess.run([sys.executable, "-c", IS_FORK, echo], capture_output=True, text=True)
            assert run.stdout.strip() == "True", run.stderr
            server = stack.enter_context(TorchServe(models={"m": echo}))
            fork = worker(server)
            assert is_fork(fork)
        assert VARIABLE not in os.environ
        await_another(server, fork)
        assert not is_fork(worker(server)) and server.inference.predict("m", {}) == "ok"


def test_other_programs_run_as_with_the_real_python(shared: str, tmp_path: Path) -> None:
    """TorchServe also starts pip and its collector of metrics with the Python of workers."""
    python = python_for(tmp_path, {VARIABLE: shared})
    assert python == str(tmp_path / "python")
    code = "import sys; print(sys.executable, sys.argv[1:]); sys.exit(3)"
    run = subprocess.run([python, "-c", code, "an argument", "b"], capture_output=True, text=True)
    assert run.returncode == 3
    assert run.stdout.strip() == f"{sys.executable} ['an argument', 'b']"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(7)", 7),
        ("os.abort()", 134),
        ("raise ValueError('odd')", 1),
    ],
)
def test_the_program_ends_as_its_fork_ends(code: str, status: int, shared: str, tmp_path: Path) -> None:
    run = run_script(shared, tmp_path, code)
    assert run.returncode == status
    parent, read = run.stdout.split()
    assert is_preloading(psutil.Process(int(parent))) and read == "read"
    assert ("ValueError: odd" in run.stderr) == ("odd" in code)


def test_a_folder_in_which_no_program_may_run(
    shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert python_for(tmp_path, {VARIABLE: shared}) == sys.executable


def test_elsewhere_than_on_linux_workers_start_as_always(echo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutorial_lib.preload.owner.POSSIBLE", False)
    with preloaded(), TorchServe(models={"m": echo}, preload=True) as server:
        assert VARIABLE not in os.environ and not is_fork(worker(server))


@pytest.mark.parametrize(
    ("argument", "error", "sentence"),
    [
        ("torch", TypeError, r"preload is 'torch'\. Give True, or a list of packages"),
        ([1], TypeError, r"preload is \[1\]"),
        (None, TypeError, "preload is None"),
        (3, TypeError, "preload is 3"),
        (["no_such_package"], PackageMissing, "preloading needs the package no_such_package"),
    ],
)
def test_wrong_packages_are_told_before_anything_starts(
    argument: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        TorchServe(preload=argument)


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(PackageMissing, match="no_such_package"), preloaded("no_such_package.module"):
        pass
    assert VARIABLE not in os.environ


def test_what_is_preloaded_is_there_and_starts_no_thread() -> None:
    """A module that a new version of transformers no longer has would be left out without a word."""
    code = (
        "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]\n"
        "print('transformers.modeling_utils' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, *MODULES], capture_output=True, text=True)
    assert run.stdout.split() == ["True", "False"], run.stderr


def test_circumstances_do_not_change_by_asking() -> None:
    assert circumstances() == circumstances()
