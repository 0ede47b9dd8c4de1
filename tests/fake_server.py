"""A server that answers as told, so that each header and fault of a request can be seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple


class Seen(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


@dataclass
class Reply:
    """An answer; with `parts`, a chunked one, which waits for `go` after the first part."""

    status: int
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] | None = None
    go: Event = field(default_factory=Event)
    breaks_off: bool = False


class FakeServer(ThreadingHTTPServer):
    """Answers each call with the next of `answers`, the last one again and again."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Answering)
        self.answers: list[Reply] = [Reply(200, b"{}")]
        self.seen: list[Seen] = []
        self.hold: Event | None = None
        self.left = Event()  # a client closed its connection

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fail(self, status: int, kind: str, message: str) -> None:
        content = json.dumps({"code": status, "type": kind, "message": message}).encode()
        self.answers = [Reply(status, content)]


class _Answering(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Seen(self.command, self.path, headers, body))
        if self.server.hold:
            self.server.hold.wait(20)
        answers = self.server.answers
        reply = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.parts is None:
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)
        else:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self._stream(reply, reply.parts)

    def _stream(self, reply: Reply, parts: list[bytes]) -> None:
        for part in parts:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            reply.go.wait(20)
        if reply.breaks_off:
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def finish(self) -> None:
        self.server.left.set()
        super().finish()

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def fake_server(port: int = 0) -> Iterator[FakeServer]:
    server = FakeServer(port)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def keys(path: Path, token: str = "old") -> Path:
    kinds = {"management": "m-" + token, "inference": "i-" + token, "API": "api"}
    path.write_text(json.dumps({kind: {"key": key} for kind, key in kinds.items()}))
    return path
