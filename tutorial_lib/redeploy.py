"""From an edited handler to its next answer on a running server: `TorchServe.redeploy`.

The new version is a folder, not a .mar: what the running version was unpacked to, with the edited
files in place of theirs. Large files are hard links, so 540 MB of weights are neither packed nor
copied. The old version answers until the new one does, and goes when it has nothing left to answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tutorial_lib.client import ManagementClient, ModelDescription
from tutorial_lib.errors import ApiError, ArchiveError, TutorialError, WorkerFailed
from tutorial_lib.logs import cause_of_death

if TYPE_CHECKING:
    from tutorial_lib.server import TorchServe

_LARGE = 1_000_000  # bytes; what is smaller is copied, so that no edit of the original shows through
_MARGIN = 0.2  # seconds that a request may take from the HTTP address into the model's queue


def redeploy(
    server: TorchServe,
    model: str,
    *,
    handler: str | Path | None,
    config_file: str | Path | None,
    extra_files: Sequence[str | Path],
    folder: Path,
    timeout: float,
) -> str:
    """See `TorchServe.redeploy`; `folder` is where the versions' files may lie."""
    log = server.log_dir / "console.log"
    old = server.management.describe(model)
    taken = {description["modelVersion"] for description in server.management.describe_all(model)}
    version = next_version(old["modelVersion"], taken)
    source = _unpacked(old)
    target = folder / f"{model}-{version}"
    try:
        _lay_out(source, target, version, handler, config_file, extra_files)
        _register(server.management, log, target, old, version, timeout, keep_settings=config_file is None)
        if config_file is None:  # else that file says how many
            server.management.scale(
                model,
                version=version,
                min_worker=old["minWorkers"],
                max_worker=old["maxWorkers"],
                timeout=timeout,
            )
    except BaseException:
        with contextlib.suppress(ApiError):
            server.management.unregister(model, version)
        shutil.rmtree(target, ignore_errors=True)
        raise
    server.management.set_default(model, version)
    # The edit answers: whoever made it need not wait for the old version's last requests.
    files = source if source.parent == folder else None
    threading.Thread(target=_retire, args=(server.management, log, old, files, timeout), daemon=True).start()
    return version


def next_version(version: str, taken: set[str]) -> str:
    """The next one that is free: its last number is counted up.

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
    """The folder that a version runs from: its workers' working directory."""
    for worker in description["workers"]:
        if worker["status"] == "READY":
            with contextlib.suppress(psutil.Error):
                return Path(psutil.Process(worker["pid"]).cwd())
    raise TutorialError(
        f"{description['modelName']} {description['modelVersion']} has no READY worker whose files could "
        "be taken over. Scale it to at least one first."
    )


def _lay_out(
    source: Path,
    target: Path,
    version: str,
    handler: str | Path | None,
    config_file: str | Path | None,
    extra_files: Sequence[str | Path],
) -> None:
    edited = [Path(file) for file in (handler, config_file, *extra_files) if file is not None]
    for file in edited:
        if not file.is_file():
            raise ArchiveError(f"There is no file {file}. Check the path.")
    shutil.copytree(source, target, copy_function=_link, ignore=shutil.ignore_patterns("__pycache__"))
    for file in edited:
        (target / file.name).unlink(missing_ok=True)  # never write into a file that may be a link
        shutil.copyfile(file, target / file.name)
    manifest_file = target / "MAR-INF" / "MANIFEST.json"
    manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
    manifest["model"]["modelVersion"] = version
    if handler is not None:
        manifest["model"]["handler"] = Path(handler).name
    if config_file is not None:
        manifest["model"]["configFile"] = Path(config_file).name
    manifest_file.write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _link(source: str, target: str) -> None:
    if Path(source).stat().st_size < _LARGE:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:  # the folder of a model store on another disk
        Path(target).symlink_to(Path(source).resolve())


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
        thread = f"-{old['modelName']}_{version}-"
        said = cause_of_death(lambda: "\n".join(line for line in _lines(log, seen) if thread in line))
        raise WorkerFailed(said, f"Version {old['modelVersion']} goes on answering.") from error


def _retire(
    management: ManagementClient, log: Path, old: ModelDescription, files: Path | None, timeout: float
) -> None:
    """Unregisters a version when it has nothing left to answer, and removes its files."""
    with contextlib.suppress(ApiError, OSError):  # the server was stopped, or somebody else was faster
        _wait_until_idle(management, log, old, time.monotonic() + timeout)
        management.unregister(old["modelName"], old["modelVersion"])
        if files is not None:
            shutil.rmtree(files, ignore_errors=True)


def _wait_until_idle(management: ManagementClient, log: Path, old: ModelDescription, deadline: float) -> None:
    """Until no request of a version waits in its queue or is with a worker.

    Unregistering drops both. New requests go to the new default version, so this ends, unless clients
    keep asking for the old one by its version; then it ends at the deadline.
    """
    model, version = old["modelName"], old["modelVersion"]
    settled = _MARGIN + old["maxBatchDelay"] / 1000  # a batch that still fills up is in no queue
    start = max(0, log.stat().st_size - _LARGE)
    idle_since = time.monotonic()
    while time.monotonic() < deadline:
        waiting = management.describe(model, version).get("jobQueueStatus", {}).get("pendingRequests")
        if waiting or _busy(_lines(log, start), f"-{model}_{version} "):
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > settled:
            return
        time.sleep(0.05)


def _busy(log: Sequence[str], name: str) -> set[str]:
    """The workers whose last batch has gone in and not come out, by TorchServe's own log lines."""
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
    """The log's lines from this byte on."""
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", errors="replace").splitlines()
