"""Gives tests of other projects a real server, by the pytest fixture `torchserve`.

Pytest loads this file in every project whose environment has this package, so it imports the library only
when a test asks for the fixture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tutorial_lib.servers.torchserve import TorchServe


@pytest.fixture
def torchserve() -> Iterator[Callable[..., TorchServe]]:
    """Starts a server: `server = torchserve(models={"m": mar})`. The test's end stops all that were started.

    `torchserve` takes the arguments of `TorchServe`.
    """
    from tutorial_lib.servers.torchserve import TorchServe

    with contextlib.ExitStack() as started:
        yield lambda *args, **options: started.enter_context(TorchServe(*args, **options))
