"""Finds out whether a server is ready: one's own, or one that somebody else started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tutorial_lib.clients.inference import InferenceClient
from tutorial_lib.clients.management import ManagementClient
from tutorial_lib.errors import ApiError, NoAnswer, TimedOut, TlsError

_ANSWER = 10.0  # seconds that a starting server has to answer a ping, at most
_POLL = 0.1  # seconds between two checks
# Answers that stay the same however long one waits; a 200 here is another program's.
_LASTING = (200, 400, 401, 403, 407)


@dataclass(frozen=True)
class Readiness:
    """What makes a server ready: it answers a ping, and its models have a READY worker.

    Attributes:
        inference: a client of the server.
        management: a client of the server's management address; without one, a ping is enough.
        models: the models to look at; none for all that are registered and should have workers.
    """

    inference: InferenceClient
    management: ManagementClient | None = None
    models: Sequence[str] = ()

    def waiting_for(self, answer: float = _ANSWER) -> str:
        """Returns what is not ready, as the middle of a sentence; "" when all is ready.

        Args:
            answer: seconds to wait for the answer to a ping.

        Raises:
            ApiError, TlsError: the server answers, and will give the same answer again.
        """
        try:
            self.inference.ping(timeout=answer)
        except (ApiError, NoAnswer) as error:
            return f"the server does not answer yet {_passing(error)}"
        if self.management is None:
            return ""
        name = ""
        try:
            for name in self.models or [entry["modelName"] for entry in self.management.list_models()]:
                model = self.management.describe(name)
                states = [worker["status"] for worker in model["workers"]]
                if "READY" not in states and (self.models or model["minWorkers"] > 0):
                    return (
                        f"the model {name} has no READY worker (its workers: {', '.join(states) or 'none'})"
                    )
        except (ApiError, NoAnswer) as error:
            what = f"the model {name} can't be described" if name else "the models can't be listed"
            return f"{what} {_passing(error)}"
        return ""

    def wait(self, timeout: float) -> None:
        """Returns when the server is ready.

        Raises:
            TimedOut: it was not ready in time; the message says what was missing.
            ApiError, TlsError: as for `waiting_for`.
        """
        deadline = time.monotonic() + timeout
        while missing := self.waiting_for(min(_ANSWER, max(0.1, deadline - time.monotonic()))):
            if time.monotonic() > deadline:
                raise TimedOut(f"{self.inference.address} was not ready within {timeout:g} s: {missing}.")
            time.sleep(_POLL)


def _passing(error: ApiError | NoAnswer) -> str:
    """Returns an error that may pass, in brackets; raises it if waiting can't help."""
    if isinstance(error, TlsError) or (isinstance(error, ApiError) and error.status in _LASTING):
        raise error
    return f"({error.kind}: {error.message.rstrip('.')})"
