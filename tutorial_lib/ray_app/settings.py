"""Reads and checks an archive's settings: those that Ray Serve takes, ignores, or can't do."""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutorial_lib.archives.building import copy_checked, read_code, read_manifest, read_settings
from tutorial_lib.archives.model_files import missing_packages
from tutorial_lib.archives.settings import DEFAULTS, check_settings
from tutorial_lib.errors import ArchiveError
from tutorial_lib.extras import extra

with extra("ray", "tutorial_lib.ray_app"):
    import ray

MAX_REQUEST_SIZE = 6_553_500  # bytes; TorchServe's default

# Settings that change how TorchServe's frontend talks to a worker.
_ONLY_TORCHSERVE = (
    "continuousBatching",
    "sequenceBatching",
    "asyncCommunication",
    "parallelType",
    "torchrun",
)
# Settings that have no effect here; the model is served anyway.
_IGNORED = {
    "deviceIds": "Ray chooses the GPUs",
    "useVenv": "replicas use the packages of their node",
    "useJobTicket": "Ray's proxies hold back what replicas can't take",
    "clientTimeoutInMills": "set request_timeout_s in Ray Serve's HTTP options",
    "maxRetryTimeoutInSec": "Ray restarts a failed replica without a limit",
}
# With both, HAProxy passes each request to a replica; without, a Python proxy handles each request first.
FAST_INGRESS = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")


# What any server of an archive must know


@dataclass(frozen=True)
class Model:
    """The archive, and the values of its manifest and model config that a server needs."""

    archive: Path  # the same path on every node
    digest: str  # its `archive_sha256`, so that every replica of a version serves the same bytes
    name: str  # in /predictions/<name>
    handler: str
    version: str
    requirements: str | None  # the manifest's requirementsFile
    envelope: str | None  # the model config's service_envelope
    settings: dict[str, Any]  # the model config, with TorchServe's defaults: batchSize, maxBatchDelay (ms), …
    max_request_size: int = MAX_REQUEST_SIZE  # bytes


def read_model(
    mar: str | Path, name: str, max_request_size: int = MAX_REQUEST_SIZE, sha256: str | None = None
) -> Model:
    """Reads what an archive asks for, and checks that Ray Serve can do it.

    All is read from one copy, so that the digest is that of what was read. The arguments are `build_app`'s.

    Raises:
        ArchiveError: the archive is missing, broken or not the expected one, or a setting is wrong or
            works only with TorchServe.
        ValueError: the name has a "/", or is "", "." or "..".
    """
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"The model's name is {name!r}. Give a name that can stand in /predictions/<name>.")
    archive = Path(mar).absolute()
    with tempfile.TemporaryDirectory(prefix="archive-") as folder:
        copy = Path(folder) / archive.name
        digest = copy_checked(mar, copy, sha256)
        try:
            manifest, settings, code = read_manifest(copy)["model"], read_settings(copy), read_code(copy)
        except ArchiveError as error:
            raise ArchiveError(str(error).replace(str(copy), str(mar))) from error
    check_settings(settings, archive.name, code)
    if unsupported := [key for key in _ONLY_TORCHSERVE if settings.get(key)]:
        raise ArchiveError(
            f"{archive.name} sets {', '.join(unsupported)}, which only TorchServe's frontend supports. "
            "Remove it from the model config if the handler works without it; otherwise stay with TorchServe."
        )
    return Model(
        archive=archive,
        digest=digest,
        name=name,
        handler=manifest["handler"],
        version=str(manifest.get("modelVersion", "1.0")),
        requirements=manifest.get("requirementsFile"),
        envelope=settings.get("service_envelope"),
        settings=DEFAULTS | settings,
        max_request_size=max_request_size,
    )


# What is Ray's


def warn_about_ignored(model: Model) -> None:
    """Warns about each thing that the archive asks for and that has no effect on Ray Serve."""
    archive = model.archive.name
    for key, instead in _IGNORED.items():
        if key in model.settings:
            warnings.warn(f"{archive} sets {key}, which has no effect here: {instead}.", stacklevel=3)
    if model.requirements:
        warnings.warn(
            f"{archive} has a {model.requirements}, which is not installed (TorchServe does not install it "
            "by default either): install it on every node, or in the cluster's image.",
            stacklevel=3,
        )
    if missing := missing_packages(model.handler):
        warnings.warn(
            f"{archive} has TorchServe's handler {model.handler}, which imports {' and '.join(missing)}, not "
            "installed here. Install it on every node: replicas can't start without it.",
            stacklevel=3,
        )


def warn_about_gpus(model: Model, num_gpus: float | None) -> None:
    """Warns if the cluster's GPUs and the archive's deviceType, or `build_app`'s num_gpus, don't match."""
    if not ray.is_initialized():  # there is no cluster to check yet
        return
    gpus = ray.cluster_resources().get("GPU", 0)
    device, archive = model.settings["deviceType"], model.archive.name
    if gpus and num_gpus is None and not device:
        warnings.warn(
            f"The cluster has GPUs, and {archive} asks for none, so it is served on CPUs. (TorchServe would "
            "use the GPUs.) Pass num_gpus=1, or set deviceType: gpu in the model config; or pass num_gpus=0.",
            stacklevel=3,
        )
    if not gpus and (num_gpus or (num_gpus is None and device == "gpu")):
        warnings.warn(
            f"{archive} asks for a GPU, and the cluster has none: replicas wait until a node with a GPU "
            "joins. Pass num_gpus=0 to serve it on CPUs.",
            stacklevel=3,
        )


def warn_about_ingress() -> None:
    """Warns if the cluster, or before `ray.init` this process, lacks a variable of Ray's fast ingress."""

    def find_missing() -> list[str]:
        return [name for name in FAST_INGRESS if os.environ.get(name) != "1"]

    is_there = ray.is_initialized()  # else the cluster will inherit this process's variables
    missing = ray.get(ray.remote(num_cpus=0)(find_missing).remote()) if is_there else find_missing()
    if missing:
        warnings.warn(
            "Ray Serve runs without its fast ingress, at a fraction of its speed. Set "
            f"{'=1 and '.join(missing)}=1 in the environment of every node before Ray starts.",
            stacklevel=3,
        )


def replica_bounds(replicas: int | tuple[int, int] | None, settings: dict[str, Any]) -> tuple[int, int]:
    """Returns the minimum and the maximum number of replicas, from `build_app`'s argument or the settings.

    Raises:
        ArchiveError: the minimum is 0, or larger than the maximum.
        ValueError: replicas is neither a number nor two numbers.
    """
    if replicas is None:
        minimum = int(settings["minWorkers"])
        replicas = minimum, int(settings.get("maxWorkers", minimum))
    bounds = list(replicas) if isinstance(replicas, (tuple, list)) else [replicas, replicas]
    if [type(bound) for bound in bounds] != [int, int]:
        raise ValueError(
            f"replicas is {replicas!r}. Give a number, or the minimum and the maximum, as in (2, 16)."
        )
    minimum, maximum = bounds
    if not 0 < minimum <= maximum:
        raise ArchiveError(
            f"{minimum} to {maximum} replicas (minWorkers to maxWorkers) is no range. Give a minimum of at "
            "least 1, and a maximum of at least the minimum."
        )
    return minimum, maximum
