"""Runs a real Prometheus beside a chapter's server, with the rules and the dashboard of deploy/monitoring."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from course.servers import free_port
from course.waiting import wait_until
from tutorial_lib import TorchServe

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"


def is_installed() -> bool:
    """Returns whether the program `prometheus` is on PATH (Debian: apt-get install prometheus)."""
    return shutil.which("prometheus") is not None


class Prometheus:
    """Reads a server's metrics every second and evaluates the rules, in a `with` block.

    Args:
        folder: for its files and its data.
        server: the server whose metrics address it reads.
        faster: texts of alerts.yml and their replacements, so that an alert takes seconds.

    Raises:
        TimeoutError: Prometheus did not reach the server within a minute; the message has its log.
    """

    def __init__(self, folder: Path, server: TorchServe, faster: Mapping[str, str]) -> None:
        self._folder = folder / "prometheus"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        key = self._folder / "key"
        key.write_text(server.token("inference"))
        here = {
            "torchserve:8082": server.metrics_address.removeprefix("http://"),
            "/run/keys/inference": str(key.absolute()),
            "15s": "1s",
        }
        self._write("prometheus.yml", here)
        self._write("alerts.yml", faster)

    def _write(self, name: str, changes: Mapping[str, str]) -> None:
        """Writes a file of deploy/monitoring with some texts, which it must have, replaced by others."""
        text = (MONITORING / name).read_text()
        for old, new in changes.items():
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new)
        (self._folder / name).write_text(text)

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Returns what an expression gives now: pairs of labels and a value; none while Prometheus starts."""
        try:
            found = self.get("query", query=expression)["result"]
        except requests.ConnectionError:
            return []
        except requests.HTTPError as error:
            if error.response.status_code != 503:
                raise
            return []
        return [(sample["metric"], float(sample["value"][1])) for sample in found]

    def alert(self, name: str) -> str:
        """Returns an alert's state: "inactive", "pending" (its condition is new) or "firing"."""
        alerts = self.get("alerts")["alerts"]
        states = [alert["state"] for alert in alerts if alert["labels"]["alertname"] == name]
        return states[0] if states else "inactive"

    def draw(self, *titles: str) -> None:
        """Plots panels of the dashboard, by their titles, since the start."""
        import matplotlib.pyplot as plt

        panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
        _, axes = plt.subplots(1, len(titles), figsize=(4.5 * len(titles), 2.8), layout="constrained")
        for axis, title in zip(axes, titles, strict=True):
            (panel,) = [panel for panel in panels if panel["title"] == title]
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "10s")
                for labels, points in self._since_start(expression):
                    name = _legend(target["legendFormat"], labels)
                    axis.plot(*zip(*points, strict=True), label=name)
            axis.set(title=title, xlabel="seconds", ylim=(0, None), xlim=(0, time.time() - self._began))
            axis.legend(fontsize="small")
        plt.show()

    def _since_start(self, expression: str) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        found = self.get("query_range", query=expression, start=self._began, end=time.time(), step=1)
        return [
            (series["metric"], [(at - self._began, float(value)) for at, value in series["values"]])
            for series in found["result"]
        ]

    def get(self, what: str, **parameters: object) -> Any:
        """Returns what Prometheus' HTTP API answers: "query", "rules", "alerts", …

        Raises:
            requests.RequestException: Prometheus does not answer, or answers with an error.
        """
        reply = requests.get(f"{self._address}/api/v1/{what}", params=parameters, timeout=10)  # type: ignore[arg-type]
        reply.raise_for_status()
        return reply.json()["data"]

    def __enter__(self) -> Self:
        port, log = free_port(), self._folder / "log"
        self._address, self._began = f"http://127.0.0.1:{port}", time.time()
        command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        with log.open("w") as output:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=output, stderr=output)
        try:
            wait_until(lambda: self.query("up == 1"), 60, log.read_text)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def _legend(pattern: str, labels: Mapping[str, str]) -> str:
    """Fills in Grafana's pattern for a line's name: "{{label}}, card" → "Neutral, card"."""
    return re.sub(r"{{(\w+)}}", lambda name: labels[name[1]], pattern)
