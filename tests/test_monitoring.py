"""The files of deploy/monitoring, tried with promtool, Prometheus and TorchServe."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml
from course.prometheus import Prometheus

from tests.conftest import ROOT, eventually
from tutorial_lib import ApiError, TorchServe
from tutorial_lib.export import EMBEDDED

MONITORING = ROOT / "deploy" / "monitoring"
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed (Debian: apt-get install --no-install-recommends prometheus)",
)


def expressions() -> dict[str, str]:
    """Every PromQL expression of the rules and the dashboard, by its title."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    rules = {
        r.get("alert") or f"{r['record']} {r.get('labels')}": r["expr"] for g in groups for r in g["rules"]
    }
    panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
    shown = {f"{p['title']} {t['refId']}": t["expr"] for p in panels for t in p["targets"]}
    return rules | {title: expr.replace("$__rate_interval", "1m") for title, expr in shown.items()}


@pytest.fixture(scope="module")
def server(mar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A server whose metrics file and JSON logs are the ones of this repository."""
    config = {
        "metrics_config": ROOT / "metrics.yaml",
        "vmargs": f"-Dlog4j.configurationFile={(MONITORING / 'log4j2-json.xml').as_uri()}",
    }
    with TorchServe(models={"my_model": mar}, config=config) as running:
        yield running


def counters(server: TorchServe) -> dict[str, float]:
    """The handler's counters, once the worker's lines have come through; labels apart."""
    found = server.metrics.scrape("handler_")
    return {
        row["labels"].get("label", row["name"].removeprefix("handler_").removesuffix("_total")): row["value"]
        for row in found.to_dict("records")
    }


def test_the_handler_counts_what_it_was_sent(server: TorchServe) -> None:
    before = counters(server)
    server.inference.predict("my_model", {"input": ["I love this!", "awful", "a b c d e f g h"]})
    with pytest.raises(ApiError):
        server.inference.predict("my_model", b"not JSON")

    def growth() -> dict[str, float]:
        return {name: value - before.get(name, 0) for name, value in counters(server).items()}

    eventually(lambda: growth().get("requests") == 2 and growth().get("refused") == 1)
    grown = growth()
    assert grown["texts"] == 3
    assert grown["tokens"] > 3 * 3 and grown["padding"] > 0
    assert 1 < grown["confidence"] <= 3
    assert sum(grown.get(label, 0) for label in ("Positive", "Neutral", "Negative")) == 3
    row = server.metrics.scrape("handler_texts_total").iloc[0]
    assert row["labels"].items() >= {"model_version": "1.0", "ModelName": "my_model"}.items()


def test_the_handler_describes_itself(server: TorchServe) -> None:
    described = server.management.describe("my_model", customized=True)["customizedMetadata"]
    assert described["labels"] == ["Negative", "Neutral", "Positive"] and described["max_tokens"] == 128


def test_logs_are_json_and_a_request_is_found_by_its_id(server: TorchServe) -> None:
    answer = requests.post(
        f"{server.inference_address}/predictions/my_model",
        json={"input": ['quotes " and\nlines']},
        headers={"Authorization": f"Bearer {server.token('inference')}"},
        timeout=60,
    )
    log = server.log_dir / "model_log.log"
    eventually(lambda: answer.headers["x-request-id"] in log.read_text())
    for name in ("access_log.log", "model_log.log", "ts_log.log"):
        lines = (server.log_dir / name).read_text().splitlines()
        assert lines
        for line in lines:
            assert {"time", "level", "thread", "logger", "message"} <= json.loads(line).keys()


def test_metrics_yaml_has_all_that_torchserve_has_by_itself() -> None:
    import ts

    own = yaml.safe_load((Path(ts.__file__).parent / "configs" / "metrics.yaml").read_text())
    ours = yaml.safe_load((ROOT / "metrics.yaml").read_text())
    assert ours["ts_metrics"] == own["ts_metrics"]
    assert ours["model_metrics"]["gauge"] == own["model_metrics"]["gauge"]


def test_rules_and_dashboard_ask_only_for_metrics_that_are_declared() -> None:
    declared = re.findall(r"name: (\w+)", (ROOT / "metrics.yaml").read_text())
    asked = {
        name for e in expressions().values() for name in re.findall(r"\b(?:[A-Z]\w+|(?:ts|handler)_\w+)", e)
    }
    labels = {"ModelName", "WorkerName", "ALERTS"}
    assert asked - labels <= set(declared)
    assert {name for name in declared if name.startswith("handler_")} <= asked


def test_the_drift_rules_have_the_cards_numbers() -> None:
    card = json.loads((EMBEDDED / "metrics.json").read_text())["test"]
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][-1]["rules"]
    said = {
        rule["labels"]["label"]: rule["expr"] for rule in rules if rule.get("record") == "card:label:share"
    }
    labels = json.loads((ROOT / "index_to_name.json").read_text())
    assert said == {labels[str(i)]: f"vector({share})" for i, share in enumerate(card["label_mix"])}
    assert f"vector({card['mean_confidence']})" in [rule["expr"] for rule in rules if "record" in rule]


@needs_prometheus
def test_the_rules_fire_when_they_should(tmp_path: Path) -> None:
    for file in (MONITORING / "alerts.yml", ROOT / "tests" / "alerts_test.yml"):
        shutil.copy(file, tmp_path)
    run = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture
def prometheus(server: TorchServe, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus of its own, with this repository's configuration, on a free port and for this server."""
    running = Prometheus(tmp_path, server, faster={})
    config = tmp_path / "prometheus" / "prometheus.yml"
    check = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
    with running:
        yield running


@needs_prometheus
def test_a_real_prometheus_scrapes_and_evaluates_all_rules(
    server: TorchServe, prometheus: Prometheus
) -> None:
    ask = prometheus.query
    eventually(lambda: ask('up{job="torchserve"} == 1'))
    server.inference.predict("my_model", {"input": ["good"]})
    eventually(lambda: ask("handler_texts_total"))  # a counter's rate is known from its second scrape on

    for _ in range(3):
        server.inference.predict("my_model", {"input": ["good", "bad"]})
    eventually(lambda: [value for _, value in ask("handler_texts_total")] == [counters(server)["texts"]])
    assert eventually(lambda: ask("rate(handler_texts_total[1m]) / rate(handler_requests_total[1m]) > 0"))
    for expression in expressions().values():
        ask(expression)
    eventually(lambda: ask("handler:label:share1h") and ask("card:label:share"))

    rules = prometheus.get("rules")["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} == {"ok"}
    assert not [labels for labels, _ in ask('ALERTS{alertstate="firing"}') if labels["severity"] == "page"]
