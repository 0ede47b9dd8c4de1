"""Defines a replica, which is what Ray Serve starts: the frontend of one process, and its fellows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from typing import Any

from tutorial_lib.extras import extra
from tutorial_lib.ray_app.frontend import Frontend
from tutorial_lib.ray_app.node import unpacked
from tutorial_lib.ray_app.settings import Model

with extra("ray", "tutorial_lib.ray_app"):
    import ray
    from ray import serve

_SECONDS_TO_SEND = 0.5  # for the last answers of a replica that ends


class Replica(Frontend):
    """The class of the Ray Serve deployment that `build_app` makes."""

    def __init__(self, model: Model) -> None:
        # Not sys.stdout: Ray looks through the whole call stack for each line that is written there.
        logging.basicConfig(stream=sys.__stdout__, format="%(message)s", level=logging.INFO)
        self.has_gpu = bool(ray.get_gpu_ids())  # Ray shows a replica only its own GPUs
        self._held = contextlib.ExitStack()
        folder = self._held.enter_context(unpacked(model.archive, model.digest))
        super().__init__(model, folder, serve.get_replica_context().replica_id.unique_id)

    def __del__(self) -> None:
        self._held.close()

    def end(self) -> None:
        """Ends the replica; Ray starts a new one."""
        asyncio.get_running_loop().call_later(_SECONDS_TO_SEND, os._exit, 1)

    async def all_states(self) -> list[dict[str, Any]]:
        """Asks all replicas for their `state`."""
        own = serve.get_replica_context()
        handle = serve.get_deployment_handle(own.deployment, own.app_name)
        states = await handle.broadcast("state").results_async(timeout_s=10, return_exceptions=True)
        return [state for state in states if isinstance(state, dict)]
