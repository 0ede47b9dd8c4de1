"""Reads a server's metrics."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tutorial_lib.clients.client import Client, not_torchserve
from tutorial_lib.extras import extra

if TYPE_CHECKING:
    import pandas as pd


class Sample(NamedTuple):
    """One sample of a metric.

    >>> Sample("Requests2XX", {"Level": "Host"}, 3.0).value
    3.0
    """

    name: str
    labels: dict[str, str]
    value: float


class MetricsClient(Client):
    """Reads the metrics address, which answers in Prometheus' text format, and asks for no access token.

    >>> MetricsClient("http://127.0.0.1:8082").address
    'http://127.0.0.1:8082'
    """

    def samples(self, name: str | None = None) -> list[Sample]:
        """Returns all samples, or those whose name starts with `name`.

        Raises:
            NoAnswer: nothing answers.
            ApiError: the answer is not metrics.
        """
        from prometheus_client.parser import text_string_to_metric_families  # half of a client's import time

        response = self._request("GET", "/metrics")
        try:
            families = list(text_string_to_metric_families(response.text))
        except (ValueError, KeyError, IndexError) as error:
            raise not_torchserve(response) from error
        # The parser adds _total to counters; in TorchServe, and so in Prometheus, some names lack it.
        names = {re.split(r"[{\s]", line, maxsplit=1)[0] for line in response.text.splitlines()}
        samples = [
            Sample(
                sample.name if sample.name in names else sample.name.removesuffix("_total"),
                dict(sample.labels),
                sample.value,
            )
            for family in families
            for sample in family.samples
        ]
        return [sample for sample in samples if name is None or sample.name.startswith(name)]

    def scrape(self, name: str | None = None) -> pd.DataFrame:
        """Returns the samples as a table with the columns name, labels (a dict) and value.

        Args:
            name: the beginning of a metric's name; None for all.

        Raises:
            NoAnswer, ApiError: as for `samples`.
            PackageMissing: pandas, which the extra "load" installs, is missing.
        """
        with extra("load", "MetricsClient.scrape"):
            import pandas as pd
        return pd.DataFrame(self.samples(name), columns=[*Sample._fields])
