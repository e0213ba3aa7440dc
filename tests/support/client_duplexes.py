"""Helpers for the conformance tests of clients: a caller in the place of a client's socket, and one in a tunnel's place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.duplex import Caller
from tests.support.entries import FakeLink

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from federation.forward.attempts import Attempts


class ClientSocket(Caller):
    """In the place of a client's SocketDuplex."""

    def __init__(self, _reactor: Any, sock: socket.socket, on_close: Callable[[Any], None]) -> None:
        super().__init__()
        self.sock = sock
        self.error: str | None = None
        self.was_aborted = self.closed = False
        self.received = self.delivered = 0
        self._on_close = on_close

    def start(self) -> None: ...

    def abort(self, reason: str) -> None:
        super().abort(reason)
        self.was_aborted = True
        self.close(reason)

    def close(self, error: str) -> None:
        if not self.closed:
            self.closed = True
            self.error = error or None
            self.sock.close()
            self._on_close(self)


class CallersLink(FakeLink):
    """Its tunnel is the caller."""

    def __init__(self, caller: Caller) -> None:
        super().__init__("peer", [])
        self.caller = caller
        self.attempts: Attempts | None = None

    def open_request(self, service: str, opener: Any, other: Any, believed: int) -> Any:
        self.attempts, self.caller.other = opener, other
        return self.caller
