"""A web server that hands out a folder's files (chapter 12)."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Files:
    """Serves a folder on a free port of loopback, until `stop`.

    Attributes:
        address: such as "http://127.0.0.1:8000".
        fetched: the paths that were asked for, in order.
    """

    def __init__(self, folder: Path) -> None:
        fetched: list[str] = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                fetched.append(self.path)

        self.fetched = fetched
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()
