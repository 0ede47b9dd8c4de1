"""Replaces files of a model on a running server by edited ones: `TorchServe.redeploy`.

The new version is a folder, not a .mar: a copy of the running version's unpacked files, with the edited files
in place of the old ones. The copies are files of their own, so neither version can change the files of the
other, or yours. The old version answers until the new one does, and is unregistered when its last answer is
sent. Several redeploys of one server at once wait for each other.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tutorial_lib.archives.building import new_version
from tutorial_lib.archives.model_files import FileKeywords
from tutorial_lib.clients.management import ManagementClient
from tutorial_lib.clients.shapes import ModelDescription
from tutorial_lib.errors import ApiError, NoAnswer, TutorialError, WorkerFailed
from tutorial_lib.extras import extra
from tutorial_lib.servers.console_log import read_since
from tutorial_lib.servers.logs import wait_for_traceback

_LOG_BYTES = 1_000_000  # read from the log's end; enough for the last batch of each worker
_MARGIN = 0.2  # seconds that a request may take from the HTTP address into the model's queue
_logger = logging.getLogger(__name__)


def redeploy(
    management: ManagementClient,
    log: Path,
    folder: Path,
    model: str,
    edits: FileKeywords,
    timeout: float = 120,
) -> str:
    """Replaces files of a running model; see `TorchServe.redeploy`.

    Args:
        management: the server's management client.
        log: the file that the server prints to.
        folder: the folder for the new version's files.
        model, timeout: as for `TorchServe.redeploy`.
        edits: the edited files.

    Returns:
        the new version.

    Raises:
        ApiError, ArchiveError, NoAnswer, TutorialError, WorkerFailed: as for `TorchServe.redeploy`.
    """
    with extra("serving", "redeploy"):
        from filelock import FileLock
    management.describe(model)  # an unknown model, or no server, is an error before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # held by one redeploy of this server, in whatever thread or process
        return _replace(management, log, folder, model, edits, timeout)


def _replace(
    management: ManagementClient, log: Path, folder: Path, model: str, edits: FileKeywords, timeout: float
) -> str:
    old = management.describe(model)
    taken = {description["modelVersion"] for description in management.describe_all(model)}
    version = next_version(old["modelVersion"], taken)
    source = _unpacked(old)
    keep_settings = edits.get("config_file") is None  # else that file sets the number of workers
    target = Path(tempfile.mkdtemp(prefix=f"{model}-{version}-", dir=folder))
    try:
        new_version(source, target, version=version, **edits)
        try:
            _register(management, log, target, old, version, timeout, keep_settings)
            if keep_settings:
                management.scale(
                    model,
                    version=version,
                    min_worker=old["minWorkers"],
                    max_worker=old["maxWorkers"],
                    timeout=timeout,
                )
            management.set_default(model, version)
        except BaseException as error:
            if not (isinstance(error, ApiError) and error.status == 409):  # else another client's version
                with contextlib.suppress(ApiError, NoAnswer):
                    management.unregister(model, version)
            raise
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    _logger.info("%s %s answers in place of %s", model, version, old["modelVersion"])
    # The new version answers, so the caller need not wait for the old version's last requests. This process
    # does before it ends: else the old version would be left.
    files = source if source.parent == folder else None
    threading.Thread(target=_retire, args=(management, log, old, files, timeout)).start()
    return version


def next_version(version: str, taken: set[str]) -> str:
    """Returns the next free version: the last number is counted up.

    Args:
        version: the version to count from.
        taken: the versions that are there already.

    >>> next_version("1.0", {"1.0", "1.1"})
    '1.2'
    >>> next_version("stable", {"stable"})
    'stable.1'
    """
    if not re.search(r"\d$", version):
        version += ".0"
    while version in taken or version.endswith(".0"):
        version = re.sub(r"\d+$", lambda last: str(int(last[0]) + 1), version)
    return version


def _unpacked(description: ModelDescription) -> Path:
    """Returns the folder that a version runs from: its workers' working directory."""
    for worker in description["workers"]:
        if worker["status"] == "READY":
            with contextlib.suppress(psutil.Error):
                return Path(psutil.Process(worker["pid"]).cwd())
    raise TutorialError(
        f"{description['modelName']} {description['modelVersion']} has no READY worker whose files could "
        "be copied. Scale it to at least one first."
    )


def _register(
    management: ManagementClient,
    log: Path,
    archive: Path,
    old: ModelDescription,
    version: str,
    timeout: float,
    keep_settings: bool,
) -> None:
    seen = log.stat().st_size
    try:
        management.register(
            archive,
            old["modelName"],
            initial_workers=max(1, old["minWorkers"]),
            batch_size=old["batchSize"] if keep_settings else None,
            max_batch_delay=old["maxBatchDelay"] if keep_settings else None,
            response_timeout=old.get("responseTimeout") if keep_settings else None,
            timeout=timeout,
        )
    except ApiError as error:
        if error.status == 405:
            raise TutorialError(
                "redeploy registers a version on the running server, which is off by default. "
                "Start the server with model_api=True."
            ) from error
        if error.status != 500:
            raise
        threads = re.compile(re.escape(f"-{old['modelName']}_{version}") + "[- ]")
        cause = wait_for_traceback(lambda: "\n".join(filter(threads.search, _lines(log, seen))))
        raise WorkerFailed(cause, f"Version {old['modelVersion']} goes on answering.") from error


def _retire(
    management: ManagementClient, log: Path, old: ModelDescription, files: Path | None, timeout: float
) -> None:
    """Unregisters a version when it has nothing left to answer, and removes its files."""
    with contextlib.suppress(TutorialError, OSError):  # the server was stopped, or another client was faster
        _wait_until_idle(management, log, old, time.monotonic() + timeout)
        management.unregister(old["modelName"], old["modelVersion"])
        if files is not None:
            shutil.rmtree(files, ignore_errors=True)


def _wait_until_idle(management: ManagementClient, log: Path, old: ModelDescription, deadline: float) -> None:
    """Waits until no request of a version is in its queue or with a worker.

    Unregistering drops both. New requests go to the new default version, so the wait ends, unless clients
    keep asking for the old version by its number; then the wait ends at the deadline.
    """
    model, version = old["modelName"], old["modelVersion"]
    settled = _MARGIN + old["maxBatchDelay"] / 1000  # a batch that is still filling is in no queue
    start = max(0, log.stat().st_size - _LOG_BYTES)
    idle_since = time.monotonic()
    while time.monotonic() < deadline:
        waiting = management.describe(model, version).get("jobQueueStatus", {}).get("pendingRequests")
        if waiting or _busy(_lines(log, start), f"-{model}_{version} "):
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > settled:
            return
        time.sleep(0.05)


def _busy(log: Sequence[str], name: str) -> set[str]:
    """Returns the workers that have not finished their last batch, by TorchServe's own log lines."""
    busy: set[str] = set()
    for line in log:
        if name not in line:
            continue
        worker = line.split("] ", 1)[-1].split(" ", 1)[0]
        if "Looping backend response" in line:
            busy.add(worker)
        elif "Backend response time" in line or "WORKER_STOPPED" in line:
            busy.discard(worker)
    return busy


def _lines(log: Path, start: int) -> list[str]:
    """Returns the log's lines from this byte on."""
    return read_since(log, start).splitlines()
