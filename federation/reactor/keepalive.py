"""Whether the machine at the other end of a TCP connection is still there: one that loses its network says no good-bye.

A connection on which nothing is on its way is the kernel's to test: keepalive (`keep_alive`). Bytes that nobody
acknowledges the kernel sends again for a quarter of an hour. TCP_USER_TIMEOUT would bound that, but it also ends a reader
that is there and takes nothing, for which nothing here times out. So `has_vanished` looks now and then: a slow reader
acknowledges.
"""

from __future__ import annotations

import socket
from typing import NamedTuple, Protocol

from federation.reactor.tcp_info import tcp_info

IDLE_S, PROBE_EVERY_S, PROBES = 60, 15, 6  # gone after IDLE_S + PROBES * PROBE_EVERY_S = 150 s
GONE_S = 150.0  # longer than the kernel's longest pause between two questions to a reader that takes nothing: 120 s
LOOK_EVERY_S = 15.0

_SET = [
    (getattr(socket, name), value)
    for name, value in (
        *(("TCP_KEEPIDLE", IDLE_S), ("TCP_KEEPALIVE", IDLE_S)),  # Linux, macOS
        *(("TCP_KEEPINTVL", PROBE_EVERY_S), ("TCP_KEEPCNT", PROBES)),
    )
    if hasattr(socket, name)
]


class HasOptions(Protocol):
    """A socket of the standard library or of trio."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def keep_alive(sock: HasOptions) -> None:
    """Have the kernel test the connection. Connections that a listener accepts inherit it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _SET:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class Sent(NamedTuple):
    """What the kernel knows of bytes that are on their way: how often it asked in vain, and when it last heard anything."""

    asked_again: int
    heard_s: float

    @property
    def is_lost(self) -> bool:
        return self.asked_again > 1 and self.heard_s > GONE_S


def sent(sock: socket.SocketType) -> Sent | None:
    """None where the kernel does not say."""
    known = tcp_info(sock)
    return None if known is None else Sent(known.retries + known.probes, known.acknowledged_ms / 1000)


class Silence(NamedTuple):
    """How long ago the last bytes went each way."""

    sent_s: float
    received_s: float


def silence(sock: socket.SocketType) -> Silence | None:
    """None where the kernel does not say. The data path keeps no such times, which would cost each of its reads."""
    known = tcp_info(sock)
    return None if known is None else Silence(known.data_sent_ms / 1000, known.data_received_ms / 1000)


def has_vanished(sock: socket.SocketType) -> bool:
    """Whether nobody has acknowledged for GONE_S what was sent again and again."""
    known = sent(sock)
    return known is not None and known.is_lost
