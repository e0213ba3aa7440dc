"""py-libp2p's swarm and host as we use them: they make no connection, take none but ours, and say nothing unasked."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from federation.net.link.handshake import SecureConn
from federation.net.link.seal import Sealer, Unsealer
from tests.support.hosts import linked, peers
from tests.support.links import KEYS, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.hosts import Peer

WAYS: dict[str, Callable[[Peer, ID, Multiaddr], Awaitable[object]]] = {
    "connect": lambda a, peer, at: a.host.libp2p.connect(PeerInfo(peer, [at])),
    "new_stream": lambda a, peer, _at: a.host.libp2p.new_stream(peer, ["/x/1"]),  # type: ignore[list-item]
    "dial_peer": lambda a, peer, _at: a.host.swarm.dial_peer(peer),
    "dial_addr": lambda a, peer, at: a.host.swarm.dial_addr(at, peer),
    "dial_addr_as_responder": lambda a, peer, at: a.host.swarm.dial_addr_as_responder(at, peer),
    "dial_peer_replacement": lambda a, peer, _at: a.host.swarm.dial_peer_replacement(peer),
    "listen": lambda a, _peer, at: a.host.swarm.listen(at),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
async def test_it_neither_dials_nor_listens(way: Callable[[Peer, ID, Multiaddr], Awaitable[object]]) -> None:
    """Though it knows where: an address of the peer's is in its store."""
    async with peers(2) as (a, b):
        with socket.create_server(("127.0.0.1", 0)) as target:
            target.setblocking(False)
            at = Multiaddr(f"/ip4/127.0.0.1/tcp/{target.getsockname()[1]}")
            a.host.swarm.peerstore.add_addrs(ID.from_base58(b.id), [at], 3600)
            with pytest.raises(SwarmException), trio.fail_after(5):
                await way(a, ID.from_base58(b.id), at)
            with pytest.raises(BlockingIOError):
                target.accept()
        assert a.has()


async def test_it_has_no_transport() -> None:
    async with peers(1) as (a,):
        assert not a.host.swarm.transport_manager.get_transports()
        assert not a.host.swarm.listeners


async def test_a_connection_of_somebody_else_is_closed_and_not_taken() -> None:
    """Though it is the muxer that upgrades it, and though it belongs to a peer with a link."""

    class Session:
        is_initiator = True

    class Raw:
        closed = False

        async def close(self) -> None:
            self.closed = True

        def __getattr__(self, _name: str) -> Any:
            return lambda *_: None

    async with linked() as (a, b):
        raw = Raw()
        secured = SecureConn(raw, Session(), Sealer(KEYS[0]), Unsealer(KEYS[1]))  # type: ignore[arg-type]
        conn = a.host._new_conn(None, False, secured, ID.from_base58(b.id))
        with pytest.raises(SwarmException, match="did not make"):
            await a.host.swarm.add_conn(conn)
        assert conn.is_closed
        assert a.has(b)
        assert a.host.swarm.links_of(b.id) == [a.host.links[b.id]]


async def test_streams_go_over_the_link_that_counts_or_not_at_all() -> None:
    async with linked() as (a, b):
        a.host.links.clear()  # so that there is none
        with pytest.raises(SwarmException):
            await a.host.swarm.new_stream(ID.from_base58(b.id))


async def test_it_speaks_no_protocol_that_it_was_not_given() -> None:
    """No identify, no ping, and nothing is asked of a peer behind our back."""
    async with linked() as (a, b):
        assert not a.host.libp2p.multiselect.handlers
        for protocol in ("/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"):
            with pytest.raises(StreamFailure):
                await b.host.libp2p.new_stream(ID.from_base58(a.id), [protocol])  # type: ignore[list-item]
        b.host.libp2p._schedule_identify(ID.from_base58(a.id), reason="test")
        assert not b.host.libp2p._identify_inflight
        await until(lambda: a.has(b))


def test_no_link_with_a_text_that_is_no_id() -> None:
    async def run() -> None:
        async with peers(1) as (a,):
            assert a.host.swarm.links_of("no id") == []

    trio.run(run)


async def test_nobody_who_went_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked() as (a, b):
        connector, told = a.host.swarm.auto_connector, trio.Event()
        record = connector.record_disconnect

        def recorded(peer: ID) -> None:
            record(peer)
            told.set()

        monkeypatch.setattr(connector, "record_disconnect", recorded)
        a.host.cut(b.id, "it goes")
        with trio.fail_after(10):
            await told.wait()
        assert not connector._recent_disconnects
