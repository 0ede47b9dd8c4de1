"""Serves an unchanged TorchServe archive on Ray Serve, with the same handler, addresses and answers.

In a program that runs on a node of the cluster::

    ray.init(); serve.run(build_app("model_store/BERTweetSentimentAnalysis.mar"))

A replica has two processes. One does the work of TorchServe's frontend: addresses, batches, error answers.
The other one runs the handler, as TorchServe's worker does. Tests compare the answers with TorchServe 0.12.0.

Features of TorchServe that are missing here:

- access tokens (put a gateway before Ray's proxies), registering and scaling over HTTP (deploy again), gRPC,
  workflows, explanations by OPTIONS, and reason phrases;
- metrics of the host's CPU, memory, disk and GPU (Ray's own metrics have them), a handler's histograms, and a
  metrics.yaml outside the archive: here no metric of a handler is dropped because it has no entry there;
- in a description, the settings of TorchServe's frontend, and jobQueueStatus;
- a queue that outlives a worker. A replica that ends after a fault of its handler answers 503 ("Ask again")
  to requests that the handler has not seen, so clients retry. TorchServe lets them wait;
- a /ping at any time: here a /ping waits behind predictions. Load balancers ask the proxy's own /-/healthz.

TorchServe's service_envelope is a setting of the whole server; here it is a setting of the model config.
With a route prefix ("/team"), an application has all its addresses below the prefix
("/team/predictions/my_model"). With a prefix that is itself an address ("/predictions/my_model"), it has only
that address.

`build_app` refuses or warns about settings of the archive that have no effect here. It also warns about a
cluster without Ray Serve's fast ingress, HAProxy, which passes requests directly to replicas. These variables
turn HAProxy on; Ray reads them when it is imported, on every node::

    RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1

With HAProxy, Ray's HTTP port and the replicas' ports are open on all interfaces of a node: keep the nodes in
a network of their own.

Ray's part is here, in settings.py, node.py (the archive, unpacked once on a node) and replica.py. The rest
knows nothing of Ray: frontend.py (TorchServe's addresses), batches.py, bodies.py and metrics.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutorial_lib.extras import extra
from tutorial_lib.ray_app.settings import (
    MAX_REQUEST_SIZE,
    read_model,
    replica_bounds,
    warn_about_gpus,
    warn_about_ignored,
    warn_about_ingress,
)

with extra("ray", "tutorial_lib.ray_app"):
    from ray import serve

    from tutorial_lib.ray_app.replica import Replica

__all__ = ["MAX_REQUEST_SIZE", "app", "build_app"]


def build_app(
    mar: str | Path,
    *,
    name: str = "my_model",
    replicas: int | tuple[int, int] | None = None,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    max_request_size: int = MAX_REQUEST_SIZE,
    sha256: str | None = None,
) -> serve.Application:
    """Makes a Ray Serve application of an archive, for `serve.run`.

    `serve.run` with a new archive under the same application name is a rolling update: replicas of the new
    archive start beside the old ones, which stop when the new ones are ready. If the new ones can't start,
    `serve.run` raises an error and the old ones stay. The cluster needs room for replicas of both.

    Args:
        mar: the archive: a .mar, a .tar.gz or a folder. Every node has it at this path: in its image,
            or on a volume that all nodes share. Each node unpacks it once.
        name: the model's name in /predictions/<name>.
        replicas: how many, or the minimum and the maximum between which Ray scales by load; None for
            the archive's minWorkers and maxWorkers.
        num_cpus: CPUs that Ray reserves for a replica; torch uses as many threads. The process that speaks
            HTTP takes up to a third of one more under load, the less the longer the model computes.
        num_gpus: GPUs for a replica; None for 1 if the archive's deviceType is "gpu", else 0.
        max_request_size: the maximum size of a body in bytes; larger ones are refused with a 413.
        sha256: the `archive_sha256` that the archive must have, here and on every node; None for that of the
            archive as it is here now.

    Returns:
        the application. It is a blueprint: replicas start with `serve.run`.

    Raises:
        ArchiveError: the archive is missing, broken, or needs what only TorchServe has.
        ValueError: replicas is neither a number nor two numbers, or the name can't be part of an address.

    >>> from tutorial_lib import build_archive
    >>> import tempfile
    >>> mar = build_archive("skeleton", handler="handler.py", export_path=tempfile.mkdtemp())
    >>> application = build_app(mar, name="skeleton", replicas=(1, 4))
    """
    model = read_model(mar, name, max_request_size, sha256)
    warn_about_ignored(model)
    warn_about_gpus(model, num_gpus)
    warn_about_ingress()
    settings = model.settings
    if num_gpus is None:
        num_gpus = 1 if settings["deviceType"] == "gpu" else 0
    batch_size = int(settings["batchSize"])
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        "max_ongoing_requests": 2 * batch_size,  # one batch in the handler, one being gathered
        "max_queued_requests": int(settings["jobQueueSize"]),
        "max_surge_percent": 100,  # new ones start before old ones stop: a broken archive does no harm
        "max_constructor_retry_count": 2,
        "graceful_shutdown_timeout_s": float(settings["responseTimeout"]),
    }
    minimum, maximum = replica_bounds(replicas, settings)
    if minimum == maximum:
        options["num_replicas"] = minimum
    else:
        scaling = {"min_replicas": minimum, "max_replicas": maximum, "target_ongoing_requests": batch_size}
        options["autoscaling_config"] = scaling
    application: serve.Application = serve.deployment(name="Replica", **options)(Replica).bind(model)
    return application


def app(args: dict[str, Any]) -> serve.Application:
    """Calls `build_app` for Ray's own command line and config files: `args` are its arguments.

    serve run tutorial_lib.ray_app:app mar=/models/my_model.mar name=my_model replicas=2

    The command line passes text, so numbers are parsed from text, as in replicas=2,16.

    Raises:
        ArchiveError: as for `build_app`.
        ValueError: an argument that `build_app` does not have, or text where a number is needed.
    """
    known: dict[str, Callable[[Any], Any]] = {"mar": str, "name": str, "replicas": _parse_replicas}
    known |= {"num_cpus": float, "num_gpus": float, "max_request_size": int, "sha256": str}
    if "mar" not in args or not args.keys() <= known.keys():
        raise ValueError(
            f"tutorial_lib.ray_app:app got {', '.join(args) or 'no arguments'}. Give mar=PATH, and any of "
            f"{', '.join(list(known)[1:])}."
        )
    parsed: dict[str, Any] = {}
    for name, value in args.items():
        try:
            parsed |= {} if value is None else {name: known[name](value)}
        except (TypeError, ValueError):
            raise ValueError(f"{name} is {value!r}. Give a number.") from None
    return build_app(**parsed)


def _parse_replicas(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    numbers = [int(number) for number in value.strip("[]").split(",")]
    return numbers[0] if len(numbers) == 1 else numbers
