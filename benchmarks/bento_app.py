"""BentoML with its documented batching: bentoml serve bento_app:Sentiment, MODEL_DIR in the environment."""

import os

import bentoml
from plain_model import PlainModel


@bentoml.service(workers=2, traffic={"timeout": 60, "max_concurrency": 1000})
class Sentiment:
    def __init__(self) -> None:
        self.model = PlainModel(os.environ["MODEL_DIR"], threads=1)

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=10_000)
    def predict(self, texts: list[str]) -> list[str]:
        return self.model(texts)
