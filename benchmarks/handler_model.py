"""Makes the archive's handler a function, which LitServe, BentoML and MLServer serve here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutorial_lib.worker import contract as worker


class HandlerModel:
    """Answers request bodies, by the handler and the settings of an unpacked archive."""

    def __init__(self, folder: str | Path) -> None:
        sys.path.insert(0, str(folder))
        self.service = worker.load_service(Path(folder), "my_model", batch_size=64)

    def __call__(self, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        requests = [
            worker.request(str(number), [{"name": "body", "contentType": "", "value": body}])
            for number, body in enumerate(bodies)
        ]
        return [json.loads(reply.body) for reply in worker.predict(self.service, requests)]
