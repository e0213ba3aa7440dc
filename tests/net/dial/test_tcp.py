"""Raw connections: bound as asked, and rationed."""

from __future__ import annotations

import socket

import pytest
import trio
from libp2p.network.connection.raw_connection import RawConnection

from federation.errors import HandshakeFailed
from federation.net.dial.tcp import bind, close_now, open_small, ration, tcp_connection
from federation.net.link import handshake
from federation.net.link.delivery import SMALL_SEGMENT, SMALL_SEGMENT_6
from tests.support.links import tcp_pair


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_listener_at_any_port(host: str) -> None:
    listener = await bind(host, 0)
    assert listener.socket.getsockname()[0] == host
    async with await trio.open_tcp_stream(host, listener.socket.getsockname()[1]), await listener.accept():
        pass
    with pytest.raises(OSError, match="in use"):
        await bind(host, listener.socket.getsockname()[1])
    await listener.aclose()


async def test_no_more_is_read_than_allowed() -> None:
    here, there = await tcp_pair()
    conn = tcp_connection(here, initiator=False)
    assert isinstance(conn, RawConnection)
    assert here.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(there.send_all, bytes(handshake.MAX_HANDSHAKE_BYTES + 10))
        got = 0
        while got < handshake.MAX_HANDSHAKE_BYTES:  # whatever a length prefix says
            got += len(await conn.stream.read(2**31))
        assert got == handshake.MAX_HANDSHAKE_BYTES
        with pytest.raises(HandshakeFailed, match="more than a handshake takes"):
            await conn.stream.read(1)
        ration(conn, 4)
        assert len(await conn.stream.read(100)) == 4
    await close_now(conn)
    await close_now(conn)  # whatever state it is in
    await there.aclose()


@pytest.mark.parametrize(("host", "most"), [("127.0.0.1", SMALL_SEGMENT), ("::1", SMALL_SEGMENT_6)])
async def test_a_small_connection_has_small_segments_both_ways(host: str, most: int) -> None:
    listener = await bind(host, 0)
    async with await open_small(host, listener.socket.getsockname()[1]) as here, await listener.accept() as there:
        for end in (here, there):
            assert 0 < end.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= most
    at = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(OSError, match="refused"):
        await open_small(host, at)
