"""Ray Serve with its documented batching: python ray_app.py MODEL_DIR PORT REPLICAS"""

import os
import signal
import sys
import tempfile

from plain_model import PlainModel
from ray import init, serve
from starlette.requests import Request


@serve.deployment(num_replicas=int(sys.argv[3]), max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class Sentiment:
    def __init__(self, folder: str) -> None:
        self.model = PlainModel(folder, threads=1)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)
    async def labels(self, texts: list[str]) -> list[str]:
        return self.model(texts)

    async def __call__(self, request: Request) -> list[str]:
        return [await self.labels((await request.json())["input"][0])]


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        init(num_cpus=int(sys.argv[3]), include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
        serve.run(Sentiment.bind(sys.argv[1]), route_prefix="/predict")
        signal.sigwait([signal.SIGTERM, signal.SIGINT])
        serve.shutdown()
