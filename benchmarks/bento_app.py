"""Serves the handler by BentoML with its documented batching: `bentoml serve bento_app:Served`.

$ARCHIVE names the unpacked archive, $WORKERS the number of workers.
"""

import os

import bentoml
from handler_model import HandlerModel


@bentoml.service(workers=int(os.environ["WORKERS"]), traffic={"timeout": 60, "max_concurrency": 1000})
class Served:
    def __init__(self) -> None:
        self.model = HandlerModel(os.environ["ARCHIVE"])

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=10_000)
    def predict(self, texts: list[str]) -> list[str]:
        return [answer[0] for answer in self.model([{"input": [text]} for text in texts])]
