"""Lets a handler ask another model of the TorchServe server that runs the handler.

>>> from tutorial_lib import client_of_this_server
"""

from __future__ import annotations

import os
from pathlib import Path

from tutorial_lib.clients.inference import InferenceClient
from tutorial_lib.clients.tokens import KeyFile
from tutorial_lib.clients.transport import DEFAULT_TIMEOUT
from tutorial_lib.errors import TutorialError
from tutorial_lib.servers.config import ServerConfig


def client_of_this_server(timeout: float = 60) -> InferenceClient:
    """Returns a client of the server whose worker this process is, with that server's access tokens.

    It works in a server that `TorchServe(…)` started: the worker finds the server's addresses, key file and
    certificate in the server's folder. The client renews an expired access token. Make it once, in
    `initialize`, and use it in `handle`:

        def initialize(self, context):
            self.server = client_of_this_server()

        def handle(self, data, context):
            return [self.server.predict("translate", row["body"], retries=3) for row in data]

    While a worker waits for the other model, it answers nothing else. So a model must not ask itself, nor a
    model that asks it: with one worker each, both wait until responseTimeout ends them. Give the asked model
    enough workers, its queue (jobQueueSize) room for all that may ask, and `timeout` less than the asking
    model's responseTimeout (120 s by default), so that the handler, and not TorchServe, ends the wait.

    Args:
        timeout: seconds to wait for an answer.

    Raises:
        TutorialError: this process is no worker of such a server.

    >>> client_of_this_server()
    Traceback (most recent call last):
    tutorial_lib.errors.TutorialError: This process is no worker of a server that TorchServe(…) started: ...
    """
    folder = Path(os.environ.get("TEMP", ""))  # the server's own: it is in the environment of its workers
    try:
        lines = (folder / "config.properties").read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise TutorialError(
            "This process is no worker of a server that TorchServe(…) started: give the client an address "
            "and an access token."
        ) from error
    config = ServerConfig(dict(_unescape(line).split("=", 1) for line in lines))
    ports = {name: config.port(name) or 0 for name in ("inference", "management")}  # both are in the file
    verify = config.settings.get("certificate_file", True)
    keys = KeyFile(folder / "key_file.json", config.url("management", ports["management"]), verify)
    return InferenceClient(
        config.url("inference", ports["inference"]),
        token=keys if keys.path.exists() else None,
        timeout=(DEFAULT_TIMEOUT[0], timeout),
        verify=verify,
    )


def _unescape(line: str) -> str:
    """Undoes the escapes of `to_properties`."""
    units = line.encode("ascii").decode("unicode_escape")
    return units.encode("utf-16", "surrogatepass").decode("utf-16")
