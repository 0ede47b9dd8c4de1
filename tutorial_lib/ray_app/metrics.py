"""Counts a replica's metrics: those of TorchServe under TorchServe's names, and those of the handler."""

from __future__ import annotations

import collections
import functools
import json
from collections.abc import Iterable, Mapping

# The metrics of TorchServe's frontend that are measured here too.
_KINDS = {
    "ts_inference_requests_total": "counter",
    "ts_inference_latency_microseconds": "counter",
    "ts_queue_latency_microseconds": "counter",
    "Requests2XX": "counter",
    "Requests4XX": "counter",
    "Requests5XX": "counter",
    "QueueTime": "gauge",  # ms, of the last batch
    "WorkerLoadTime": "gauge",  # ms
    "WorkerThreadTime": "gauge",  # ms around the handler, of the last batch
}

State = tuple[dict[str, str], dict[tuple[str, str], float]]


class Metrics:
    """Counters and gauges of one replica; `common` are labels that every value has.

    >>> metrics = Metrics({"replica": "a"})
    >>> metrics.update("Requests2XX", {"Hostname": "h"})
    >>> [line for line in exposition([metrics.state()]).splitlines() if line.startswith("Requests2XX")]
    ['Requests2XX{Hostname="h",replica="a"} 1.0']
    """

    def __init__(self, common: Mapping[str, str]) -> None:
        self._common = dict(common)
        self._kinds = dict(_KINDS)
        self._values: dict[tuple[str, str], float] = collections.defaultdict(float)

    def update(self, name: str, labels: Mapping[str, str], value: float = 1, kind: str = "gauge") -> None:
        """Adds to a counter, or sets a gauge; `kind` is for a metric that TorchServe does not have."""
        key = name, _exposed(tuple({**labels, **self._common}.items()))
        counts = self._kinds.setdefault(name, kind) == "counter"
        self._values[key] = value + (self._values[key] if counts else 0)

    def count_answer(self, status: int, labels: Mapping[str, str]) -> None:
        """Counts an answer by the first digit of its status; TorchServe counts 2, 4 and 5."""
        if (name := f"Requests{status // 100}XX") in _KINDS:
            self.update(name, labels)

    def state(self) -> State:
        """Returns kinds by name, and values by name and labels."""
        return dict(self._kinds), dict(self._values)


@functools.lru_cache(10_000)  # each request updates several metrics with the same labels
def _exposed(labels: tuple[tuple[str, str], ...]) -> str:
    return ",".join(f"{label}={json.dumps(text)}" for label, text in labels)


def exposition(states: Iterable[State]) -> str:
    """Returns several replicas' metrics in Prometheus' text format, each metric's lines together."""
    states = list(states)
    lines = []
    for metric, kind in {name: kind for kinds, _ in states for name, kind in kinds.items()}.items():
        lines += [f"# HELP {metric} TorchServe's {kind}, by replica.", f"# TYPE {metric} {kind}"]
        lines += [
            f"{metric}{{{labels}}} {value}"
            for _, values in states
            for (name, labels), value in values.items()
            if name == metric
        ]
    return "\n".join(lines) + "\n"
