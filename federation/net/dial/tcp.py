"""TCP sockets of the p2p port, and connections for py-libp2p that read no more bytes than a handshake needs.

Outgoing connections may leave from the port where this node listens: a NAT that maps a port to one outside address then
shows the listener's address to all remotes.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection

from federation.errors import HandshakeFailed
from federation.net.link import handshake
from federation.net.link.delivery import SMALL_SEGMENT, SMALL_SEGMENT_6, let_routers_split
from federation.reactor.keepalive import keep_alive

if TYPE_CHECKING:
    from libp2p.abc import IRawConnection

    from federation.units import HostPort

BACKLOG = 256
BESIDE_BACKLOG = 8


async def bind(host: str, port: int) -> trio.SocketListener:
    """Listen on `host` and `port`. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((host, port))
        sock.listen(BACKLOG)
        share_port(sock)
    except OSError:
        sock.close()
        raise
    return trio.SocketListener(sock)


async def open_from_port(listen: HostPort, host: str, port: int, *, within_s: float) -> trio.SocketStream:
    """Connect from the very port where `listen` listens. Raises OSError, TimeoutError among them."""
    sock = await _bound(listen, host)
    try:
        with trio.move_on_after(within_s) as scope:
            await sock.connect((host, port))
        if scope.cancelled_caught:
            raise TimeoutError(f"no answer within {within_s:g} s")
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def open_small(host: str, port: int) -> trio.SocketStream:
    """Connect, with packets of both sides so small that they pass everywhere. Raises OSError."""
    answers = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, *_, at = answers[0]
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        size = SMALL_SEGMENT_6 if family == socket.AF_INET6 else SMALL_SEGMENT
        with suppress(OSError):  # the kernel has no such option, or a smaller most
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, size)
        let_routers_split(sock)
        await sock.connect(at)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def listen_beside(listen: HostPort) -> tuple[HostPort, list[trio.SocketListener]]:
    """Listen on a new port that outgoing connections can use too, in IPv4 and, if there is any, IPv6. Raises OSError."""
    first = await _bound(replace(listen, port=0), "::" if ":" in listen.host else "0.0.0.0")
    at = replace(listen, port=first.getsockname()[1])
    sockets = [first]
    if listen.is_wildcard:
        with suppress(OSError):  # a machine without IPv6, or the port is taken there
            sockets.append(await _bound(at, "::" if first.family == socket.AF_INET else "0.0.0.0"))
    for sock in sockets:
        sock.listen(BESIDE_BACKLOG)
    return at, [trio.SocketListener(sock) for sock in sockets]


async def _bound(listen: HostPort, towards: str) -> trio.socket.SocketType:
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    wildcard = "::" if family == socket.AF_INET6 else "0.0.0.0"
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        share_port(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((wildcard if listen.is_wildcard else listen.host, listen.port))
    except BaseException:
        sock.close()
        raise
    return sock


def share_port(sock: trio.socket.SocketType) -> None:
    """Let outgoing connections use the listener's port. For a listener only after its bind: a second daemon's must fail."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def tcp_connection(stream: trio.SocketStream, *, initiator: bool) -> RawConnection:
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(stream.socket)
    return RawConnection(_Rationed(stream), initiator)


def ration(raw: IRawConnection, n: int) -> None:
    """Let the connection read `n` more bytes until it is a link."""
    stream = raw.stream if isinstance(raw, RawConnection) else raw
    stream.left = n  # type: ignore[attr-defined]


async def close_now(raw: IRawConnection) -> None:
    """Close the connection at once, in any state, even if the caller is cancelled."""
    with trio.CancelScope(shield=True), suppress(Exception):
        if isinstance(raw, RawConnection):
            await trio.aclose_forcefully(raw.stream.stream)  # type: ignore[attr-defined]
        else:
            await raw.close()


class _Rationed(TrioTCPStream):
    """Bounds the bytes of an outsider: py-libp2p reads as many as a length prefix says, and believes any."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.left = handshake.MAX_HANDSHAKE_BYTES

    async def read(self, n: int | None = None) -> bytes:
        if not self.left:
            raise HandshakeFailed("it sends more than a handshake takes")
        data = await super().read(self.left if n is None else min(n, self.left))
        self.left -= len(data)
        return data
