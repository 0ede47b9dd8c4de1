"""Gives tests of other projects a real server, by the pytest fixture `torchserve`.

Pytest loads this file in every project whose environment has this package, so it imports the library only
when a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tutorial_lib.servers.torchserve import TorchServe


@pytest.fixture
def torchserve() -> Iterator[Callable[..., TorchServe]]:
    """Starts a real server in a test: `server = torchserve(models={"m": mar})`; the test's end stops it.

    `torchserve` takes the arguments of `TorchServe`, and may be called several times.
    """
    from tutorial_lib.servers.torchserve import TorchServe

    started: list[TorchServe] = []

    def start(*args: Any, **options: Any) -> TorchServe:
        server = TorchServe(*args, **options)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()
