"""TCP connections as py-libp2p takes them, and no more of a stranger's bytes than a handshake needs."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection

from federation.errors import HandshakeFailed
from federation.net.dial.race import share_port
from federation.net.link import handshake

if TYPE_CHECKING:
    from libp2p.abc import IRawConnection

BACKLOG = 256


async def bind(host: str, port: int) -> trio.SocketListener:
    """A listener. Raises OSError."""
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


def tcp_connection(stream: trio.SocketStream, *, initiator: bool) -> RawConnection:
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return RawConnection(_Rationed(stream), initiator)


def ration(raw: IRawConnection, n: int) -> None:
    """So many bytes more until the connection is a link."""
    stream = raw.stream if isinstance(raw, RawConnection) else raw
    stream.left = n  # type: ignore[attr-defined]


async def close_now(raw: IRawConnection) -> None:
    """Whatever the state it is in, and though we be cancelled."""
    with trio.CancelScope(shield=True), suppress(Exception):
        if isinstance(raw, RawConnection):
            await trio.aclose_forcefully(raw.stream.stream)  # type: ignore[attr-defined]
        else:
            await raw.close()


class _Rationed(TrioTCPStream):
    """A stranger's connection: py-libp2p reads as many bytes as a length prefix says, and believes it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.left = handshake.MAX_HANDSHAKE_BYTES

    async def read(self, n: int | None = None) -> bytes:
        if not self.left:
            raise HandshakeFailed("it sends more than a handshake takes")
        data = await super().read(self.left if n is None else min(n, self.left))
        self.left -= len(data)
        return data
