"""Rejects a layer-4 client: an error in HTTP/1 if the client speaks that, else the end of the connection.

client has sent something    the answer and EOF at once
client has only just come    the answer as soon as its first bytes show its protocol, EOF after REJECT_LINGER_S
REJECT_LINGER_S later        it had its time to read: the connection is reset
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.reactor.duplex import NullDuplex

if TYPE_CHECKING:
    from federation.forward.web_pages import Rules
    from federation.reactor.loop import Reactor, Timer
    from federation.reactor.sockets import SocketDuplex
    from federation.reactor.tls import TlsDuplex

REJECT_LINGER_S = 2.0  # for a client to read why it was turned away
ROOM = 65536  # the size of a read; the bytes are dropped


class Rejection(NullDuplex):
    """The other end of a rejected client's socket. Cancel it when the socket closes."""

    __slots__ = ("_client", "_has_responded", "_reactor", "_rules", "_timer", "_why")

    def __init__(self, reactor: Reactor, client: SocketDuplex | TlsDuplex, rules: Rules, why: str) -> None:
        self._reactor = reactor
        self._client = client
        self._rules = rules
        self._why = why
        self._has_responded = False
        self._timer: Timer | None = None

    def begin(self, seen: bytes, *, wait: bool) -> None:
        """`seen`: the client's first bytes. `wait`: it has had no time yet to send any."""
        self._timer = self._reactor.call_later(REJECT_LINGER_S, self._on_linger_over)
        if not wait:
            self._respond(seen)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _respond(self, seen: bytes) -> None:
        if self._has_responded:
            return
        self._has_responded = True
        if reply := self._rules.reply(seen, self._why):
            self._client.send(reply)
        self._client.send_eof()

    def _on_linger_over(self) -> None:
        if self._has_responded:
            self._client.abort("turned away")
            return
        self._timer = self._reactor.call_later(REJECT_LINGER_S, self._on_linger_over)
        self._respond(b"")

    # Duplex, for the client's socket

    def writable(self) -> int:
        return ROOM

    def send(self, data: bytes | memoryview) -> None:
        self._respond(bytes(data))

    def send_eof(self) -> None:
        self._respond(b"")

    def abort(self, reason: str) -> None:
        self.cancel()
