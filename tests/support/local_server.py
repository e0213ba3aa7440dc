"""A made-up daemon, as the command line finds one: it has a state directory's lock and answers at the socket there."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from federation.state import StateDir


class Handler(BaseHTTPRequestHandler):
    """Answers GET and POST alike; `reply` is the test's."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, answer = self.reply(json.loads(body or b"null"))
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET

    def reply(self, body: Any) -> tuple[int, Any]:
        raise NotImplementedError

    def log_message(self, *_args: object) -> None: ...


class LocalServer(HTTPServer):
    def __init__(self, listener: socket.socket, handler: type[Handler]) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        return self.socket.accept()[0], ("local", 0)


@contextmanager
def serving(server: HTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def daemon(state: StateDir, handler: type[Handler]) -> Iterator[None]:
    state.lock()
    listener = state.listen_control()
    assert listener is not None
    try:
        with serving(LocalServer(listener, handler)):
            yield
    finally:
        state.remove_daemon()
        state.unlock()
