"""Helpers for tests: model servers that answer with fixed pages, as their documentation or source shows them."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def serving(pages: dict[str, Any], headers: dict[str, str] | None = None, asked: list[str] | None = None) -> Iterator[int]:
    """Serves `pages` (path -> text, or what becomes JSON) on a port of 127.0.0.1; a test may change them. `asked`: gets the
    path of each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path)
            if asked is not None:
                asked.append(self.path)
            self.send_response_only(404 if page is None else 200)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write((page if isinstance(page, str) else json.dumps(page)).encode())

        def log_message(self, *_args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
