"""What replicas count, as Prometheus reads it."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("ray", reason="pip install '.[ray]'")

from tutorial_lib.ray_app.metrics import Metrics, exposition


def test_counters_add_up_and_gauges_are_set_for_each_replica() -> None:
    replicas = [Metrics({"replica": name}) for name in ("a", "b")]
    for metrics in replicas:
        for value in (2, 3):
            metrics.update("QueueTime", {"Level": "Host"}, value)
            metrics.update("own_total", {"text": 'a "b"\n'}, value, kind="counter")
        metrics.count_answer(200, {})
        metrics.count_answer(302, {})  # TorchServe does not count these
    families = text_string_to_metric_families(exposition(metrics.state() for metrics in replicas))
    samples = [sample for family in families for sample in family.samples]
    assert {(one.name, one.labels["replica"], one.value) for one in samples} == {
        (name, replica, value)
        for replica in ("a", "b")
        for name, value in (("QueueTime", 3), ("own_total", 5), ("Requests2XX_total", 1))
    }
    assert {one.labels.get("text") for one in samples} == {None, 'a "b"\n'}
