"""Hosts on loopback: who gets a link and who does not, duplicates, redials, and what a remote can do to a listener."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from libp2p import new_host
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from structlog.testing import capture_logs

from federation.errors import HandshakeFailed, ListenFailed, PeerBanned, PeerCopied, PeerUnavailable, TokenRetired
from federation.net import host as host_module
from federation.net import link_table
from federation.net.admission import gate, quarantine
from federation.net.dial import loop
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import AddressBook
from federation.net.dial.tcp import tcp_connection
from federation.net.host import Host
from federation.net.link import handshake, liveness, seal
from federation.net.link.delivery import SMALL_SEGMENT
from federation.net.link.frames import ANY_LOAD
from federation.net.link.link import WATCH_S
from federation.net.link.mux import Load
from federation.reactor.loop import READ
from federation.units import HostPort
from tests.support.hosts import KEY, PROTOCOL, Peer, assert_serves, echo, linked, new_peer, peers, reactor_running
from tests.support.links import End, tcp_pair, until
from tests.support.sockets import open_descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from libp2p.abc import INetStream

    from federation.net.link.link import Link
    from federation.net.streams import TrioStream

OTHER_KEY = b"o" * 32
STRANGERS = 200


def connect(peer: Peer) -> socket.socket:
    """A stranger at the listener's door."""
    return socket.create_connection((peer.address.host, peer.address.port), timeout=5)


def live_links(peer: Peer) -> int:
    return len([c for c in peer.host.swarm.get_connections() if not c.muxed_conn.is_closed])


async def fails(connect: Callable[[PeerAddress], Awaitable[Link]], address: PeerAddress) -> Link:
    """In the place of a host's `connect`: the other side hangs up in the middle of the negotiation."""
    with trio.move_on_after(0):
        return await connect(address)
    raise HandshakeFailed("hung up on")


def links_of(peer: Peer) -> list[Link]:
    """All that the host gets from now on, also those that it does not keep."""
    found: list[Link] = []
    settle = peer.host._register_link

    def note(link: Link, **how: bool) -> None:
        found.append(link)
        settle(link, **how)

    peer.host._register_link = note  # type: ignore[method-assign]
    return found


class TestConnect:
    @pytest.mark.parametrize("with_id", [True, False])
    async def test_by_address(self, with_id: bool) -> None:
        async with peers(2) as (a, b):
            a.knows(b, with_id=with_id)
            await until(lambda: a.has(b) and b.has(a))
            assert [link.peer_id for link in a.events.up] == [b.id]
            assert [link.peer_id for link in b.events.up] == [a.id]
            assert a.host.links[b.id].is_initiator
            assert not b.host.links[a.id].is_initiator
            await assert_serves(b, a)
            await assert_serves(a, b)

    async def test_an_address_with_somebody_elses_id_is_not_taken(self) -> None:
        async with peers(3) as (a, b, c):
            with capture_logs() as logs:
                a.host.book.add(PeerAddress(b.address.host, b.address.port, c.id), source="peer")
                a.host.look_at_book()
                await until(lambda: any(entry.get("where") == c.id for entry in logs))
            assert a.has()
            assert a.events.up == []

    async def test_a_connected_peer_is_not_dialled_again(self) -> None:
        async with linked() as (a, b):
            a.knows(b)
            a.knows(b, with_id=False)  # nobody knows yet that it is the same one
            await until(lambda: not [*a.host.book.due(trio.current_time(), connected=a.host.links, self_id=a.id)])
            await until(lambda: live_links(a) == live_links(b) == 1)
            assert a.has(b)
            assert b.has(a)

    async def test_our_own_address_is_noted_and_nobody_complains(self) -> None:
        async with peers(1) as (a,):
            with capture_logs() as logs:
                a.host.book.add(PeerAddress(a.address.host, a.address.port), source="mdns")
                assert len(a.host.book) == 1
                a.host.look_at_book()
                await until(lambda: len(a.host.book) == 0, seconds=20)  # hearsay: as late as if nobody were there
                await until(lambda: not a.host._gate)
            assert [entry for entry in logs if entry["log_level"] != "debug"] == []
            assert not a.host.rejected
            assert not a.host.book.add(PeerAddress(a.address.host, a.address.port), source="mdns")

    async def test_the_first_of_several_addresses_that_answers_wins(self) -> None:
        """The others hang (accept and say nothing) or refuse."""
        async with peers(2) as (a, b):
            with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))
                for port in (closed.getsockname()[1], silent.getsockname()[1], b.address.port):
                    a.host.book.add(PeerAddress("127.0.0.1", port, b.id), source="token")
                a.host.look_at_book()
                await until(lambda: a.has(b), seconds=2)
            await until(lambda: str(a.host.book.addresses(b.id)[0]) == str(b.address))  # that one first, from now on

    async def test_nobody_is_dialled_but_from_the_book(self) -> None:
        """Trap I: py-libp2p dials whom it knows an address of, and members tell it addresses (signed peer records)."""
        async with peers(2) as (a, b):
            a.host.libp2p.get_peerstore().add_addrs(ID.from_base58(b.id), [Multiaddr(str(b.address))], 3600)
            with trio.fail_after(20):
                await a.host.swarm.auto_connector.maybe_connect()  # type: ignore[attr-defined]
            assert a.host.swarm.get_connections() == []
            assert not b.host._gate

    async def test_and_nobody_is_pruned(self) -> None:
        async with peers(4) as (a, *others):
            for other in others:
                a.knows(other)
            await until(lambda: a.has(*others))
            await a.host.swarm.connection_pruner.maybe_prune_connections()  # type: ignore[attr-defined]
            assert live_links(a) == 3


async def test_no_stream_is_served_that_this_program_does_not_use() -> None:
    """libp2p's ping, identify and identify-push; the last one reads keys and addresses of all kinds."""
    async with linked() as (a, b):
        assert list(a.host.libp2p.multiselect.handlers) == []
        for protocol in ("/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0"):
            with pytest.raises(PeerUnavailable):
                await a.host.open_stream(b.id, protocol)


class TestToken:
    async def test_another_networks_node_gets_nothing_and_both_are_told(self) -> None:
        async with reactor_running() as reactor:
            ours = await new_peer(1, reactor)
            theirs = await new_peer(2, reactor, keys=[OTHER_KEY])
            async with ours.host.running(), theirs.host.running():
                with capture_logs() as logs:
                    theirs.knows(ours)
                    await until(lambda: len(logs) >= 2)
                said = {entry["where"]: entry["event"] for entry in logs if entry["log_level"] == "warning"}
                assert "another token" in said["127.0.0.1"]
                assert "another network" in said[ours.id]
                assert ours.host.rejected == {"other token": 1}
                for peer in (ours, theirs):
                    assert peer.has()
                    assert peer.events.up == []
                    assert peer.host.swarm.get_connections() == []
                # It will not try again soon, nor will it forget the address that a person gave.
                assert theirs.host.book.next_due(trio.current_time()) > trio.current_time() + 5  # type: ignore[operator]

    async def test_a_second_key_admits_too(self) -> None:
        """While a network changes its token, both are good."""
        async with reactor_running() as reactor:
            old = await new_peer(1, reactor, keys=[OTHER_KEY])
            both = await new_peer(2, reactor, keys=[KEY, OTHER_KEY])
            async with old.host.running(), both.host.running():
                old.knows(both)
                await until(lambda: old.has(both) and both.has(old))


@pytest.mark.parametrize("fast", [(True, True), (True, False), (False, True), (False, False)])
async def test_the_cipher_is_one_that_is_fast_on_both(monkeypatch: pytest.MonkeyPatch, fast: tuple[bool, bool]) -> None:
    async with reactor_running() as reactor, AsyncExitStack() as stack:
        found = []
        for n, aes_is_fast in enumerate(fast, 1):
            everybody = {handshake.PROTOCOL_ID: ChaCha20Poly1305}
            spoken = {handshake.AES_PROTOCOL_ID: AESGCM, **everybody} if aes_is_fast else everybody
            monkeypatch.setattr(handshake, "protocols", lambda spoken=spoken: spoken)
            found.append(await new_peer(n, reactor))
            await stack.enter_async_context(found[-1].host.running())
        a, b = found
        a.knows(b)
        await until(lambda: a.has(b) and b.has(a))
        nonce = seal._NONCES[AESGCM if all(fast) else ChaCha20Poly1305].pack
        assert {peer.host.links[other.id].carrier._unsealer._pack_nonce(1) for peer, other in ((a, b), (b, a))} == {nonce(1)}


class TestLoad:
    """A node speaks of its load where both ends know how."""

    @pytest.mark.parametrize("former", [(False, False), (True, False), (False, True), (True, True)])
    async def test_requests_go_both_ways_whoever_is_of_the_former_version(self, former: tuple[bool, bool]) -> None:
        async with reactor_running() as reactor, AsyncExitStack() as stack:
            found = []
            for n, is_former in enumerate(former, 1):
                found.append(await new_peer(n, reactor, load=Load(10 * n), is_former=is_former))
                await stack.enter_async_context(found[-1].host.running())
            a, b = found
            a.knows(b)
            await until(lambda: a.has(b) and b.has(a))
            ways = (a, b, 20), (b, a, 10)
            speak = not any(former)
            for here, there, _ in ways:
                link = here.host.links[there.id]
                assert link.mux.tells_load is speak
                assert not link.watch(trio.current_time())
                assert link.is_watching(trio.current_time()) is speak
                end, far = End(), End()
                channel = link.open_request("chat", end, end, 3)
                await until(lambda events=there.events: events.opened)
                arrived, service = there.events.opened[0]
                assert service == "chat"
                assert there.events.believed == [3 if speak else ANY_LOAD]
                assert there.events.watched == [(here.id, WATCH_S)] * speak
                arrived.other = far
                arrived.accept()
                await until(lambda end=end: end.heard == ["OPENED"])
                channel.send(b"hello")
                await until(lambda far=far: far.data == b"hello")
            for here, there, load in ways:
                assert here.events.told[-1:] == [(there.id, load)] * speak
                assert not here.events.down

    async def test_only_the_peers_link_counts(self) -> None:
        """A duplicate finishes what it carries; what it says of loads is not what the entry goes by."""
        async with linked() as (a, b):
            link = a.host.links[b.id]
            a.host.load_told(link, 3)
            a.host.load_watched(link, 30)
            assert a.events.told[-1] == (b.id, 3)
            assert a.events.watched == [(b.id, 30)]
            a.host.look_wanted(link, "default")
            link.fail("gone")
            a.host.load_told(link, 4)
            a.host.load_watched(link, 30)
            a.host.look_wanted(link, "default")
            assert a.events.looks == [(b.id, "default")]
            assert a.events.told[-1] == (b.id, 3)
            assert len(a.events.watched) == 1


class TestDuplicates:
    """Trap N."""

    @pytest.mark.parametrize("_again", range(5))
    async def test_simultaneous_dials_settle_on_the_lower_ids(self, _again: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where only one of the dials came to a link (the other's side hung up when it had this one), that one stays."""
        monkeypatch.setattr(link_table, "STALE_S", float("inf"))  # however long this machine was busy elsewhere
        async with peers(2) as (lower, higher):
            links = links_of(lower), links_of(higher)
            lower.knows(higher)
            higher.knows(lower)
            await until(lambda: lower.has(higher) and higher.has(lower))
            await until(lambda: live_links(lower) == live_links(higher) == 1)
            stays = lower.host.links[higher.id]
            assert stays.is_initiator is not higher.host.links[lower.id].is_initiator  # both mean the same one
            if all(len(each) == 2 for each in links):
                assert stays.is_initiator
            assert lower.events.down == higher.events.down == []
            await assert_serves(lower, higher)
            await assert_serves(higher, lower)

    async def test_where_the_dial_of_the_lower_id_fails_the_other_one_stays(self) -> None:
        async with peers(2) as (lower, higher):
            lower.host.connect = partial(fails, lower.host.connect)  # type: ignore[method-assign]
            lower.knows(higher)
            higher.knows(lower)
            await until(lambda: lower.has(higher) and higher.has(lower))
            assert higher.host.links[lower.id].is_initiator
            await assert_serves(lower, higher)
            assert lower.events.down == higher.events.down == []

    async def test_the_one_to_go_first_finishes_what_it_carries(self) -> None:
        async with peers(2) as (lower, higher):
            higher.knows(lower)
            await until(lambda: lower.has(higher) and higher.has(lower))
            old = higher.host.links[lower.id]
            client, server = End(), End()
            client.other = old.open_tunnel("default", client, client)
            await until(lambda: lower.events.opened)
            server.other = channel = lower.events.opened[0][0]
            channel.other = server
            channel.accept()
            await connect_again(lower, higher)
            assert higher.host.links[lower.id] is not old
            await ticks(higher)
            client.other.send(b"still")
            await until(lambda: server.data == b"still")
            assert not old.is_closed
            client.other.send_eof()
            channel.send_eof()
            await until(lambda: old.is_closed)
            await until(lambda: live_links(lower) == live_links(higher) == 1)
            assert lower.events.down == higher.events.down == []

    async def test_a_stream_never_goes_over_the_one_to_go(self) -> None:
        async with peers(2) as (lower, higher):
            higher.knows(lower)
            await until(lambda: lower.has(higher) and higher.has(lower))
            old = higher.host.links[lower.id]
            busy = End()
            busy.other = old.open_tunnel("default", busy, busy)  # keeps it open
            await until(lambda: lower.events.opened)
            lower.events.opened[0][0].other = End()
            (conn,) = higher.host.swarm.get_connections()
            streams = [await conn.new_stream() for _ in range(5)]  # py-libp2p prefers the one with most streams
            await connect_again(lower, higher)
            lower.host.handle_stream(PROTOCOL, echo)
            async with await higher.host.open_stream(lower.id, PROTOCOL) as stream:
                assert stream.link is higher.host.links[lower.id]
            for stream_ in streams:
                await stream_.reset()

    async def test_what_the_other_side_kept_is_taken_when_ours_ends(self) -> None:
        """The two sides may see two links of one dialler in another order, and each retire the other one."""
        async with peers(2) as (lower, higher):
            lower.knows(higher)
            await until(lambda: lower.has(higher) and higher.has(lower))
            first = lower.host.links[higher.id]
            await connect_again(lower, higher)
            second = lower.host.links[higher.id]
            assert first is not second
            assert first.retired
            second.fail("the other side kept the first")
            assert lower.host.links == {higher.id: first}
            assert not first.retired
            assert lower.events.down == []
            assert lower.events.up == [first, second, first]

    async def test_a_silent_link_makes_way_for_a_new_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It may be to a machine that is gone and has come back, so the rule of the lower id must not keep it."""
        monkeypatch.setattr(link_table, "STALE_S", -1.0)
        async with peers(2) as (lower, higher):
            lower.knows(higher)
            await until(lambda: lower.has(higher) and higher.has(lower))
            await connect_again(higher, lower)
            assert higher.host.links[lower.id].is_initiator
            await until(lambda: not lower.host.links[higher.id].is_initiator)

    async def test_who_dials_again_after_long_has_lost_the_old_link(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A laptop that moved: the old link ends at once, though it is not silent and the lower id made it."""
        monkeypatch.setattr(link_table, "LOST_S", 0.0)
        async with peers(2) as (lower, higher):
            lower.knows(higher)
            await until(lambda: lower.has(higher) and higher.has(lower))
            old = lower.host.links[higher.id]
            await higher.host.connect(lower.address)
            await until(lambda: old.is_closed)
            await until(lambda: not lower.host.links[higher.id].is_initiator)
            assert lower.events.down == [(higher.id, "the peer has lost this connection: it made a new one")]

    async def test_who_is_met_beside_a_relayed_link_has_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link_table, "LOST_S", 0.0)
        async with peers(2) as (lower, higher):
            lower.knows(higher)
            await until(lambda: lower.has(higher) and higher.has(lower))
            old = [lower.host.links[higher.id], higher.host.links[lower.id]]
            for link in old:
                link.path = "relayed"
            old[0].open_tunnel("default", End(), End())
            await until(lambda: higher.events.opened)
            higher.events.opened[0][0].other = End()
            here, there = await tcp_pair()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(lower.host.link_from_punch, here, higher.id, is_leader=True, path="punched"))
                nursery.start_soon(partial(higher.host.link_from_punch, there, lower.id, is_leader=False, path="punched"))
            assert lower.host.links[higher.id].path == higher.host.links[lower.id].path == "punched"
            assert [(link.retired, link.is_closed) for link in old] == [(True, False)] * 2


async def connect_again(dialler: Peer, other: Peer) -> Link:
    """One more connection between two hosts that have one."""
    seen = len(other.events.up)
    link = await dialler.host.connect(other.address)
    await until(lambda: len(other.events.up) > seen)
    return link


async def ticks(peer: Peer) -> None:
    """Long enough for the host to have looked at its links."""
    link = peer.host.links[next(iter(peer.host.links))]
    before = link.liveness.last_tick
    await until(lambda: link.liveness.last_tick > before)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liveness in a tenth of the time."""
    monkeypatch.setattr(host_module, "TICK_S", 0.02)
    monkeypatch.setattr(liveness, "PING_AFTER_S", 0.05)
    monkeypatch.setattr(liveness, "PING_EVERY_S", 0.1)
    monkeypatch.setattr(liveness, "SUSPECT_AFTER_S", 0.15)
    monkeypatch.setattr(liveness, "DEAD_AFTER_S", 1.0)


@pytest.mark.usefixtures("hurried")
class TestSilence:
    """A peer that is stopped (SIGSTOP): the kernel takes what we send, and nobody answers."""

    async def test_is_noticed_and_forgiven(self) -> None:
        async with linked() as (a, b):
            wake = stop_reading(b, a)
            await until(lambda: a.events.suspect == [True])
            assert a.host.links[b.id].suspect
            wake()
            await until(lambda: a.events.suspect == [True, False])
            assert a.has(b)
            assert a.events.down == []

    async def test_ends_the_link_at_last(self) -> None:
        async with linked() as (a, b):
            stop_reading(b, a)
            await until(lambda: a.events.down)
            assert a.events.suspect == [True]
            assert "no answer" in a.events.down[0][1]

    async def test_is_noticed_on_a_duplicate_too(self) -> None:
        """What it carries must not hang for ever."""
        async with peers(2) as (lower, higher):
            higher.knows(lower)
            await until(lambda: lower.has(higher) and higher.has(lower))
            old, end = higher.host.links[lower.id], End()
            end.other = old.open_tunnel("default", end, end)
            await until(lambda: lower.events.opened)
            lower.events.opened[0][0].other = End()
            await connect_again(lower, higher)
            theirs = lower.events.opened[0][0].mux._handler
            lower.host._reactor.change(theirs.carrier.sock.fileno(), 0)
            theirs.tick = lambda *_: None
            await until(lambda: old.is_closed)
            assert end.heard[-1].startswith("RST")
            assert higher.events.down == []
            assert higher.events.suspect == [True]  # so that who waits there for an answer hears of it at once


class TestReplacing:
    async def test_a_link_that_was_silent_when_the_peer_made_another_one_is_suspect_at_once(self) -> None:
        """The peer has moved: a client that waited there for an answer waited for the whole of --open-timeout."""
        async with peers(2) as (lower, higher):
            higher.knows(lower)
            await until(lambda: lower.has(higher) and higher.has(lower))
            old, end = higher.host.links[lower.id], End()
            end.other = old.open_tunnel("default", end, end)
            await until(lambda: lower.events.opened)
            lower.events.opened[0][0].other = End()
            stop_reading(lower, higher)
            old.liveness.last_heard -= link_table.STALE_S + 1
            await connect_again(higher, lower)
            assert old.retired
            assert old.suspect
            assert higher.events.suspect == [True]
            assert not higher.host.links[lower.id].suspect

    async def test_a_link_on_which_large_packets_are_lost_gets_one_with_small_ones_beside_it(self) -> None:
        def largest(link: Link) -> int:
            return link.carrier.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)  # type: ignore[attr-defined,no-any-return]

        async with linked() as (a, b):
            old = a.host.links[b.id]
            assert largest(old) > SMALL_SEGMENT
            old.is_stuck = True
            with capture_logs() as logs:
                for _ in range(3):
                    a.host.link_stuck(old)  # told again and again
                await until(lambda: a.host.links.get(b.id) is not old)
                await until(lambda: logs)
            new = a.host.links[b.id]
            assert largest(new) <= SMALL_SEGMENT
            assert old.retired
            assert [entry["event"] for entry in logs] == [
                "large packets to a peer are lost on the way; a new connection sends small ones"
            ]
            await until(lambda: old.is_closed)  # it carries nothing
            assert a.has(b)
            again = await connect_again(a, b)
            assert largest(again) <= SMALL_SEGMENT  # for a while

    async def test_a_stuck_link_stays_where_no_other_one_can_be_made(self) -> None:
        async with linked() as (a, b):
            old = a.host.links[b.id]
            await b.host.stop_listening()
            old.is_stuck = True
            a.host.link_stuck(old)
            await until(lambda: not a.host._small._dialling)  # the dial is over
            assert a.host.links[b.id] is old
            assert not a.host._small.holds(b.id, trio.current_time())


def stop_reading(peer: Peer, other: Peer) -> Any:
    """`peer` no longer reads what `other` sends, nor looks at the time; returns what makes it go on."""
    link = peer.host.links[other.id]
    sock, reactor, tick = link.carrier.sock, peer.host._reactor, link.tick
    assert sock is not None
    reactor.change(sock.fileno(), 0)
    link.tick = lambda *_: None  # type: ignore[method-assign]

    def wake() -> None:
        link.tick = tick  # type: ignore[method-assign]
        reactor.change(sock.fileno(), READ)

    return wake


class TestMembersStreams:
    """Trap A: whatever a member sends on a stream, it must not end the host."""

    @pytest.mark.parametrize(
        "data",
        [
            b"\x05\xff\xfe\xfd\xfc\n",
            b"\x13/multistream/1.0.0\n\x05\xff\xfe\xfd\xfc\n",
            b"\x13/multistream/1.0.0\n\x03ls\n",
            b"\x13/multistream/9.9.9\n",
            b"\x04none",
            b"\xff" * 20,
            b"\x13/multis",
            b"",
        ],
        ids=["not UTF-8", "protocol not UTF-8", "ls", "version", "no newline", "varint", "half", "nothing"],
    )
    @pytest.mark.parametrize("end", ["FIN", "RST"])
    async def test_negotiation_of_nonsense(self, data: bytes, end: str) -> None:
        async with linked() as (victim, evil):
            for _ in range(3):
                stream = await evil.host.links[victim.id].open_stream()
                await stream.write(data)
                await (stream.close() if end == "FIN" else stream.reset())
            await assert_serves(victim, evil)
            assert victim.has(evil)

    @pytest.mark.parametrize(
        "answer", [b"\x05\xff\xfe\xfd\xfc\n", b"\x13/multistream/1.0.0\n\x03na\n", b"\xff" * 20, b"\x13/multis", None]
    )
    async def test_answered_with_nonsense(self, answer: bytes | None) -> None:
        """The same on a stream that we open: gossip hears of a peer that is not available, and of nothing else."""

        async def handle(stream: INetStream) -> None:
            if answer is None:
                await stream.reset()
            else:
                await stream.write(answer)
                await stream.close()

        async with linked() as (victim, evil):
            evil.host.swarm.set_stream_handler(handle)  # type: ignore[attr-defined]
            with pytest.raises(PeerUnavailable), trio.fail_after(20):
                await victim.host.open_stream(evil.id, PROTOCOL)
            await assert_serves(victim, evil)

    async def test_a_handler_that_fails(self) -> None:
        async def fail(_link: Link, stream: TrioStream) -> None:
            assert await stream.receive_some(1)
            raise ValueError("on purpose")

        async with linked() as (a, b):
            b.host.handle_stream(PROTOCOL, fail)
            stream = await a.host.open_stream(b.id, PROTOCOL)
            await stream.send_all(b"x")
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(20):
                await stream.receive_some(1)
            await assert_serves(b, a)

    async def test_to_nobody(self) -> None:
        async with peers(2) as (a, b):
            with pytest.raises(PeerUnavailable):
                await a.host.open_stream(b.id, PROTOCOL)


class TestStrangers:
    """Traps A and B: who is not a member leaves the listener as it was."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gate, "UPGRADE_TIMEOUT_S", 1.0)

    async def assert_unharmed(self, peer: Peer, files_before: int) -> None:
        await until(lambda: not peer.host._gate and open_descriptors() <= files_before)
        assert peer.has()
        assert peer.events.up == []
        async with reactor_running() as reactor:
            member = await new_peer(99, reactor)
            async with member.host.running():
                member.knows(peer)
                await until(lambda: member.has(peer))
                await assert_serves(peer, member)

    async def test_random_bytes(self) -> None:
        async with peers(1) as (a,):
            files = open_descriptors()
            for n in range(STRANGERS):
                with connect(a) as sock:
                    sock.sendall(os.urandom(1 + 17 * n))
                await trio.lowlevel.checkpoint()
            await self.assert_unharmed(a, files)

    async def test_silence(self) -> None:
        async with peers(1) as (a,):
            files = open_descriptors()
            with capture_logs() as logs:
                silent = [connect(a) for _ in range(STRANGERS)]
                await until(lambda: a.host.rejected["too many"] + a.host.rejected["too slow"] == STRANGERS)
                for sock in silent:
                    sock.close()
            assert a.host.rejected["too slow"] >= gate.MAX_HANDSHAKES_PER_ADDRESS
            assert len([entry for entry in logs if entry["log_level"] == "warning"]) < 5
            await self.assert_unharmed(a, files)

    async def test_a_half_handshake(self) -> None:
        async with peers(1) as (a,):
            files = open_descriptors()
            for n in range(40):
                with connect(a) as sock:
                    sock.sendall((b"\x13/multistream/1.0.0\n\x14/federation/noise/1\n" + b"\x00\x20" + bytes(64))[: 2 * n])
                await trio.lowlevel.checkpoint()
            await self.assert_unharmed(a, files)

    async def test_a_stock_libp2p_host(self) -> None:
        async with peers(1) as (a,):
            files = open_descriptors()
            stranger = new_host()
            address = Multiaddr(f"/ip4/127.0.0.1/tcp/{a.address.port}")
            async with stranger.run([]):
                with pytest.raises(SwarmException), trio.fail_after(20):
                    await stranger.get_network().dial_addr(address, ID.from_base58(a.id))  # type: ignore[attr-defined]
            await until(lambda: a.host.rejected["handshake"] > 0)
            await self.assert_unharmed(a, files)

    async def test_no_more_than_so_many_of_one_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gate, "MAX_HANDSHAKES_PER_ADDRESS", 3)
        async with peers(1) as (a,):
            with ExitStack() as stack:
                for _ in range(3):
                    stack.enter_context(connect(a))
                await until(lambda: len(a.host._gate) == 3)
                one_more = stack.enter_context(connect(a))
                assert await trio.to_thread.run_sync(one_more.recv, 1) == b""  # hung up on, without a word
                assert a.host.rejected == {"too many": 1}
            await until(lambda: not a.host._gate)
            with connect(a) as sock:  # and when they are gone, there is room again
                assert await trio.to_thread.run_sync(sock.recv, 1) != b""

    async def test_no_more_than_so_many_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gate, "MAX_HANDSHAKES", 2)
        async with peers(1) as (a,):
            with ExitStack() as stack:
                for _ in range(2):
                    stack.enter_context(connect(a))
                await until(lambda: len(a.host._gate) == 2)
                one_more = stack.enter_context(connect(a))
                assert await trio.to_thread.run_sync(one_more.recv, 1) == b""

    @pytest.mark.parametrize("limit", ["MAX_HANDSHAKES_PER_ADDRESS", "MAX_HANDSHAKES"])
    async def test_a_slow_one_gives_way_to_a_newcomer(self, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
        monkeypatch.setattr(gate, limit, 2)
        monkeypatch.setattr(gate, "UPGRADE_TIMEOUT_S", 30.0)
        monkeypatch.setattr(gate, "EVICT_AFTER_S", 0.1)
        async with peers(2) as (a, b):
            with ExitStack() as stack:
                slow = [stack.enter_context(connect(a)) for _ in range(2)]
                await until(lambda: len(a.host._gate) == 2)
                await trio.sleep(0.15)
                b.knows(a)
                await until(lambda: a.has(b))
                assert a.host.rejected == {"too slow": 1}
                slow[0].settimeout(5)
                while await trio.to_thread.run_sync(slow[0].recv, 100):
                    pass  # the oldest was hung up on
                assert len(a.host._gate) == 1
            await until(lambda: not a.host._gate)
            assert not a.host._gate

    @pytest.mark.parametrize("length", [b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"])
    async def test_no_more_is_read_than_a_handshake_takes(self, length: bytes) -> None:
        """py-libp2p believes a length prefix: 2 GiB, 2^63. It would read them, or ask for that much memory."""
        async with peers(1) as (a,):
            files = open_descriptors()
            with capture_logs() as logs, connect(a) as sock:
                sock.sendall(length + bytes(handshake.MAX_HANDSHAKE_BYTES))
                await until(lambda: a.host.rejected["handshake"] > 0)
            assert [entry["why"] for entry in logs if "why" in entry] == ["it sends more than a handshake takes"]
            await self.assert_unharmed(a, files)

    async def test_no_more_links_than_so_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host_module, "MAX_LINKS", 1)
        async with peers(3) as (a, b, c):
            b.knows(a)
            await until(lambda: a.has(b))
            c.knows(a)
            await until(lambda: a.host.rejected["too many"] > 0)
            assert a.has(b)

    async def test_inbound_slots_come_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Trap B: py-libp2p's own listener takes no connection after 250."""
        monkeypatch.setattr(gate, "ACCEPT_BURST", 1000.0)
        for (
            module,
            deadline,
        ) in (  # a machine that stands still for 5 s in one of 260 handshakes is none of this test's business
            (gate, "UPGRADE_TIMEOUT_S"),
            (handshake, "HANDSHAKE_TIMEOUT_S"),
            (host_module, "DIAL_TIMEOUT_S"),
        ):
            monkeypatch.setattr(module, deadline, 60.0)
        async with peers(2) as (a, b):
            for n in range(260):
                link = await b.host.connect(a.address)
                await until(lambda n=n: len(a.events.up) > n)
                link.fail("next, please")
                await until(lambda n=n: len(a.events.down) > n)
            assert len(a.host._gate) == 0


class TestOffenders:
    """A member that breaks the rules loses its connection, and comes back when it has thought it over."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quarantine, "KEEP_AWAY_S", 0.5)

    async def test_is_cut_off_kept_away_and_taken_back(self) -> None:
        async with peers(2) as (a, b):
            a.knows(b)
            b.knows(a)
            await until(lambda: a.has(b) and b.has(a))
            with capture_logs() as logs:
                offended = trio.current_time()
                b.host.links[a.id].mux.control(63, 0)
                await until(lambda: a.events.down)
                assert not a.has(b)
                await until(lambda: a.has(b), seconds=5)
            assert trio.current_time() - offended >= 0.5
            said = [entry for entry in logs if entry["log_level"] == "warning" and entry.get("peer") == b.id]
            assert [entry["what"] for entry in said] == ["an unknown frame type 63"]


class TestListen:
    async def test_a_port_in_use(self) -> None:
        async with peers(1) as (a,):
            address = HostPort(a.address.host, a.address.port)
            files = open_descriptors()
            with pytest.raises(ListenFailed, match=r"in use.*--p2p-listen"):
                await bare_host().listen(address)
            assert open_descriptors() <= files + 1  # the reactor's

    async def test_an_address_of_another_machine(self) -> None:
        with pytest.raises(ListenFailed, match="does not have that address"):
            await bare_host().listen(HostPort("192.0.2.1", 0))

    async def test_a_wildcard_means_both_families_on_one_port(self) -> None:
        host = bare_host()
        bound = await host.listen(HostPort("0.0.0.0", 0))
        assert bound.port
        families = {listener.socket.family for listener in host._listeners}
        assert socket.AF_INET in families
        assert {listener.socket.getsockname()[1] for listener in host._listeners} == {bound.port}
        if socket.has_ipv6 and ipv6_works():
            assert socket.AF_INET6 in families
        await host.stop_listening()

    @pytest.mark.skipif("not ipv6_works()", reason="no IPv6 here")
    async def test_a_wildcard_whose_second_family_is_taken_leaves_nothing_behind(self) -> None:
        with socket.socket(socket.AF_INET6) as taken:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind(("::", 0))
            taken.listen()
            host = bare_host()
            with pytest.raises(ListenFailed):
                await host.listen(HostPort("0.0.0.0", taken.getsockname()[1]))
            assert host._listeners == []

    async def test_a_machine_without_ipv6(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bind = host_module.bind

        async def without_ipv6(host: str, port: int) -> trio.SocketListener:
            if ":" in host:
                raise OSError(errno.EAFNOSUPPORT, "no such family")
            return await bind(host, port)

        monkeypatch.setattr(host_module, "bind", without_ipv6)
        host = bare_host()
        assert (await host.listen(HostPort("0.0.0.0", 0))).port
        assert len(host._listeners) == 1
        await host.stop_listening()

    @pytest.mark.parametrize(("failure", "is_told"), [(errno.EMFILE, True), (errno.ECONNABORTED, False)])
    async def test_an_accept_that_fails_is_not_the_last(self, failure: int, is_told: bool) -> None:
        async with peers(2) as (a, b):
            (listener,) = a.host._listeners
            accept, failures = listener.accept, [failure]

            async def failing() -> trio.SocketStream:
                stream = await accept()
                if failures:
                    await trio.aclose_forcefully(stream)
                    raise OSError(failures.pop(0), "on purpose")
                return stream

            listener.accept = failing  # type: ignore[method-assign]
            connect(a).close()  # ends the accept that waits already
            with capture_logs() as logs:
                b.knows(a)
                await until(lambda: b.has(a))
            assert failures == []
            assert any("descriptor" in entry["event"] for entry in logs) is is_told


def bare_host() -> Host:
    from federation.reactor.loop import Reactor
    from tests.support.hosts import HostEvents

    return Host(seed=b"9" * 32, reactor=Reactor(), events=HostEvents(), book=AddressBook(), admission_keys=lambda: [KEY])


def ipv6_works() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


class TestStop:
    async def test_leaves_no_socket_and_tells_the_peers(self) -> None:
        """Trap L."""
        files = open_descriptors()
        async with reactor_running() as reactor:
            staying, leaving = await new_peer(1, reactor), await new_peer(2, reactor)
            async with staying.host.running():
                async with leaving.host.running():
                    staying.knows(leaving)
                    leaving.knows(staying)
                    await until(lambda: staying.has(leaving) and leaving.has(staying))
                await until(lambda: staying.has())
                with pytest.raises(ConnectionRefusedError):
                    connect(leaving)
        await until(lambda: open_descriptors() <= files)

    async def test_does_not_take_longer_with_more_peers(self) -> None:
        async with reactor_running() as reactor, trio.open_nursery() as nursery:
            hub = await new_peer(1, reactor)
            others = [await new_peer(n, reactor) for n in range(2, 10)]

            async def run(peer: Peer) -> None:
                async with peer.host.running():
                    peer.knows(hub)
                    await trio.sleep_forever()

            async with hub.host.running():
                for peer in others:
                    nursery.start_soon(run, peer)
                await until(lambda: hub.has(*others))
                start = trio.current_time()
            assert trio.current_time() - start < 0.5
            nursery.cancel_scope.cancel()

    async def test_flushed_waits_for_what_is_queued_and_not_for_ever(self) -> None:
        async with linked() as (a, b):
            wake = stop_reading(b, a)
            stream = await a.host.links[b.id].open_stream()
            with trio.move_on_after(0.2):
                for _ in range(100):
                    await stream.write(bytes(64 * 1024))
            await a.host.flushed(5.0)
            assert a.host.links[b.id].is_flushed
            wake()


@pytest.fixture(autouse=True)
def no_shout(caplog: pytest.LogCaptureFixture) -> None:
    """py-libp2p logs much of this as errors of its own."""
    caplog.set_level("CRITICAL", "libp2p")


def warnings(logs: list[Any], word: str) -> list[Any]:
    return [entry for entry in logs if entry["log_level"] == "warning" and word in entry["event"].lower()]


class TestBanned:
    async def test_its_links_are_cut_and_it_is_neither_let_in_nor_dialled_and_said_once(self) -> None:
        async with peers(2) as (a, b):
            with capture_logs() as logs:
                a.knows(b)
                await until(lambda: a.has(b) and b.has(a))
                a.banned.add(b.id)
                a.host.cut(b.id, "banned")
                await until(lambda: a.has() and b.has())
                assert a.events.down == [(b.id, "banned")]
                b.knows(a)
                await until(lambda: a.host.rejected["banned"] >= 1 and warnings(logs, "has banned this node"))
                for _ in range(3):
                    await b.host.dial_loop._dial(next(b.host.book.due(1e9, connected=(), self_id=b.id)))
            assert a.host.rejected["banned"] == 4
            assert len(warnings(logs, "a banned peer was refused")) == 1
            assert len(warnings(logs, "has banned this node")) == 1
            assert len(b.events.up) == 1
            assert not [*a.host.book.due(1e9, connected=loop._NotToDial(a.host), self_id=a.id)]

    async def test_who_answers_at_an_address_without_an_id_is_let_go(self) -> None:
        async with peers(2) as (a, b):
            a.banned.add(b.id)
            with capture_logs() as logs:
                a.knows(b, with_id=False)
                await until(lambda: warnings(logs, "this node has banned the peer"))
            assert a.has()
            assert b.has()

    async def test_after_the_ban_it_is_dialled_again(self) -> None:
        async with peers(2) as (a, b):
            a.banned.add(b.id)
            a.knows(b)
            await trio.testing.wait_all_tasks_blocked()
            assert a.has()
            a.banned.clear()
            a.host.look_at_book()
            await until(lambda: a.has(b) and b.has(a))

    async def test_cut_takes_the_duplicates_along(self) -> None:
        async with linked() as (a, b):
            second = await a.host.connect(b.address)
            tunnel = second.open_tunnel("x", End(), End())  # type: ignore[arg-type]  # keeps it alive
            await until(lambda: live_links(b) == 2)
            a.host.cut(b.id, "banned")
            assert live_links(a) == 0
            assert tunnel.closed
            assert a.events.down == [(b.id, "banned")]


class TestEveryConnection:
    """None is served, and none outlives its peer's ban, that the host does not know."""

    async def test_on_a_link_that_is_not_in_the_table_nothing_is_served(self) -> None:
        async with linked() as (a, b):
            del b.host.links[a.id]
            asked: list[str] = []

            async def hear(link: Link, stream: TrioStream) -> None:
                asked.append(link.peer_id)

            b.host.handle_stream(PROTOCOL, hear)
            opener = End()
            a.host.links[b.id].open_tunnel("default", opener, opener)
            with pytest.raises(PeerUnavailable):
                await a.host.open_stream(b.id, PROTOCOL)
            await until(lambda: opener.heard)
            assert opener.heard == ["REFUSED this node does not know that service"]
            assert b.events.opened == []
            assert asked == []

    async def test_cut_closes_it_though_the_table_has_lost_it(self) -> None:
        async with linked() as (a, b):
            link = b.host.links.pop(a.id)
            b.host.cut(a.id, "banned")
            assert link.is_closed

    async def test_cut_ends_a_handshake_that_is_on_its_way(self) -> None:
        async with peers(2) as (a, b):
            raw = await proven(a, b)
            assert [upgrade.peer_id for upgrade in b.host._upgrades] == [a.id]
            b.banned.add(a.id)
            b.host.cut(a.id, "banned")
            await hangs_up(raw)
            await until(lambda: not b.host._upgrades)
            assert b.events.up == []

    async def test_so_does_the_end_of_its_token(self) -> None:
        async with reactor_running() as reactor:
            keys = [KEY, OTHER_KEY]
            old = await new_peer(1, reactor, keys=[OTHER_KEY])
            new = await new_peer(2, reactor, keys=keys)
            async with old.host.running(), new.host.running():
                raw = await proven(old, new)
                keys[:] = [KEY]
                await hangs_up(raw)
                await until(lambda: not new.host._upgrades)

    async def test_cut_ends_what_we_dial_ourselves(self) -> None:
        async with peers(2) as (a, b):
            with socket.create_server(("127.0.0.1", 0)) as silent:
                silent.settimeout(5)
                host, port = silent.getsockname()
                async with trio.open_nursery() as nursery:

                    async def dial() -> None:
                        with pytest.raises(HandshakeFailed, match="no longer admitted"):
                            await a.host.connect(PeerAddress(host, port, b.id))

                    nursery.start_soon(dial)
                    await until(lambda: a.host._upgrades)
                    a.host.cut(b.id, "banned")
            with pytest.raises(PeerBanned):
                a.banned.add(b.id)
                await a.host.connect(b.address)

    async def test_a_probe_of_it_ends_too(self) -> None:
        async with peers(2) as (a, b):
            ours, theirs = await tcp_pair()
            async with trio.open_nursery() as nursery:

                async def look() -> None:
                    with pytest.raises(HandshakeFailed, match="no longer admitted"):
                        await a.host.probe(ours, b.id)

                nursery.start_soon(look)
                await until(lambda: a.host._upgrades)
                a.host.cut(b.id, "banned")
            await trio.aclose_forcefully(theirs)

    async def test_a_peer_has_so_many_duplicates(self) -> None:
        async with linked() as (a, b):
            for n in range(link_table.MAX_SPARES + 3):
                link = await a.host.connect(b.address)
                link.open_tunnel("x", End(), End())  # keeps it alive
                await until(lambda n=n: len(b.events.opened) == n + 1)
            assert len(b.host.table.retired) <= link_table.MAX_SPARES
            assert len(a.host.table.retired) <= link_table.MAX_SPARES
            assert a.has(b)

    async def test_a_handler_reads_nothing_that_came_before_the_end(self) -> None:
        async with linked() as (a, b):
            heard: list[object] = []

            async def hear(link: Link, stream: TrioStream) -> None:
                assert b.host.knows(link)
                await until(lambda: link.is_closed)
                assert not b.host.knows(link)
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
                heard.append(link)

            b.host.handle_stream(PROTOCOL, hear)
            stream = await a.host.open_stream(b.id, PROTOCOL)
            await stream.send_all(b"take this")
            await a.host.flushed(1)
            a.host.links[b.id].fail("and I am gone")
            await until(lambda: heard)


async def proven(a: Peer, b: Peer) -> trio.SocketStream:
    """A connection of `a` to `b` that is past the proof of the token; nothing follows."""
    stream = await trio.open_tcp_stream(b.address.host, b.address.port)
    raw = tcp_connection(stream, initiator=True)
    await a.host.swarm.upgrader.security_multistream.secure_outbound(raw, ID.from_base58(b.id))
    await until(lambda: any(upgrade.admission_key for upgrade in b.host._upgrades))
    return stream


async def hangs_up(stream: trio.SocketStream) -> None:
    with trio.fail_after(gate.UPGRADE_TIMEOUT_S / 2), suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass
    await stream.aclose()


class TestRetiredTokenIsSaid:
    """Any member can say so; it makes a person join with another token."""

    def says(self, host: Host, *names: str) -> None:
        for name in names:
            host.report_token_retired(TokenRetired(f"peer {name}"))

    async def test_one_is_not_believed_while_we_are_linked(self) -> None:
        async with linked() as (a, _b):
            self.says(a.host, "x", "x", "x")
            assert a.host.token_retired_at is None
            self.says(a.host, "y")
            assert a.host.token_retired_at is not None

    async def test_alone_one_is_enough_and_the_next_link_takes_it_back(self) -> None:
        async with peers(2) as (a, b):
            self.says(a.host, "x")
            assert a.host.token_retired_at is not None
            a.knows(b)
            await until(lambda: a.has(b))
            assert a.host.token_retired_at is None
            self.says(a.host, "y")  # the former one is forgotten
            assert a.host.token_retired_at is None

    async def test_what_was_said_of_the_former_key_does_not_count_for_the_new_one(self) -> None:
        async with reactor_running() as reactor:
            keys = [KEY]
            a, b = await new_peer(1, reactor, keys=keys), await new_peer(2, reactor, keys=keys)
            async with a.host.running(), b.host.running():
                a.knows(b)
                await until(lambda: a.has(b))
                self.says(a.host, "x")
                keys.insert(0, OTHER_KEY)
                a.host.links[b.id].admission_key = OTHER_KEY
                self.says(a.host, "y")
                assert a.host.token_retired_at is None

    @pytest.mark.parametrize("ours_dials", [True, False])
    async def test_of_a_key_that_is_not_our_newest_it_is_no_news(self, ours_dials: bool) -> None:
        """In a grace the former key is on its way out anyway, and whoever was left out has it."""
        async with reactor_running() as reactor:
            ours = await new_peer(1, reactor, keys=[KEY, OTHER_KEY])
            liar = await new_peer(2, reactor, keys=[b"z" * 32], retired=[OTHER_KEY])
            async with ours.host.running(), liar.host.running():
                with capture_logs() as logs:
                    if ours_dials:
                        ours.knows(liar)
                        await until(lambda: warnings(logs, "belongs to another network"))
                    else:
                        liar.knows(ours)
                        await until(lambda: ours.host.rejected["other token"])
                assert ours.host.token_retired_at is None


class TestRotatedToken:
    async def test_who_missed_it_is_told_and_so_are_people(self) -> None:
        async with reactor_running() as reactor:
            old = await new_peer(1, reactor, keys=[OTHER_KEY])
            new = await new_peer(2, reactor, keys=[KEY], retired=[OTHER_KEY])
            async with old.host.running(), new.host.running():
                with capture_logs() as logs:
                    old.knows(new)
                    await until(lambda: new.host.rejected["old token"] == 1 and old.host.token_retired_at is not None)
                assert len(warnings(logs, "federation invite")) == 1
                assert len(warnings(logs, "from before the rotation")) == 1
                assert new.host.rejected["other token"] == 0
                assert old.has()
                assert new.has()

    async def test_nor_does_it_matter_who_dials(self) -> None:
        async with reactor_running() as reactor:
            old = await new_peer(1, reactor, keys=[OTHER_KEY])
            new = await new_peer(2, reactor, keys=[KEY], retired=[OTHER_KEY])
            async with old.host.running(), new.host.running():
                new.knows(old)
                await until(lambda: old.host.token_retired_at is not None)
                assert old.has()

    async def test_a_key_that_was_retired_during_the_handshake_makes_no_link(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with reactor_running() as reactor:
            keys = [KEY, OTHER_KEY]
            old = await new_peer(1, reactor, keys=[OTHER_KEY])
            new = await new_peer(2, reactor, keys=keys)
            add_conn = new.host.swarm.add_conn  # type: ignore[attr-defined]

            async def add_late(*args: Any, **kwargs: Any) -> None:
                await add_conn(*args, **kwargs)
                keys[:] = [KEY]

            monkeypatch.setattr(new.host.swarm, "add_conn", add_late)
            async with old.host.running(), new.host.running():
                old.knows(new)
                await until(lambda: new.host.rejected["handshake"] == 1)
                assert new.events.up == []
                await until(old.has)


class TestAcceptRate:
    @pytest.mark.skipif("not ipv6_works()", reason="no IPv6 here")
    async def test_all_addresses_of_one_machine_are_one(self) -> None:
        """It has a /64 of IPv6, and would have as many handshakes, and as many lines in the log, as it likes."""
        async with reactor_running() as reactor:
            peer = await new_peer(1, reactor)
            bound = await peer.host.listen(HostPort("::1", 0))
            async with peer.host.running():
                with capture_logs() as logs, socket.create_connection(("::1", bound.port), timeout=5) as stranger:
                    await until(lambda: peer.host._gate.count("::/64") == 1)
                    stranger.sendall(b"\x09nonsense\n")
                    await until(lambda: warnings(logs, "a connection that is not a member's was refused"))
                (said,) = warnings(logs, "a connection that is not a member's was refused")
                assert said["where"] == "::/64"

    async def test_one_address_is_let_in_so_often_and_another_is_none_the_worse(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gate, "ACCEPT_BURST", 3.0)
        monkeypatch.setattr(gate, "ACCEPT_RATE", 0.001)
        async with peers(2) as (a, b):
            with ExitStack() as stack, capture_logs() as logs:
                for _ in range(5):
                    stack.enter_context(connect(a))
                await until(lambda: a.host.rejected["too often"] == 2)
                await until(lambda: a.host._gate.count("127.0.0.1") == 3)
                assert len(warnings(logs, "too many connections from one address")) == 1
                other = socket.create_connection(
                    (a.address.host, a.address.port), timeout=5, source_address=("127.0.0.2", 0)
                )
                stack.enter_context(other)
                await until(lambda: a.host._gate.count("127.0.0.2") == 1)
            b.knows(a)
            await until(lambda: a.host.rejected["too often"] == 3)
            assert a.has()


# One identity on two machines


@asynccontextmanager
async def copied() -> AsyncIterator[tuple[Peer, Peer, Peer]]:
    """A third node, and two with one identity."""
    async with reactor_running() as reactor, AsyncExitStack() as stack:
        found = [await new_peer(n, reactor) for n in (1, 2, 2)]
        for peer in found:
            await stack.enter_async_context(peer.host.running())
        third, first, copy = found
        yield third, first, copy


def refusals_of(peer: Peer) -> int:
    return peer.host.rejected["copied identity"]


async def test_the_first_one_stays_and_all_three_hear_of_it() -> None:
    with capture_logs() as logs:
        async with copied() as (third, first, copy):
            first.knows(third)
            await until(lambda: first.id in third.host.links and third.id in first.host.links)
            link = third.host.links[first.id]
            copy.knows(third)
            await until(lambda: copy.host.is_copied)
            assert third.host.links[first.id] is link
            assert not link.is_closed
            assert copy.host.links == {}
            assert third.host.copies.present(trio.current_time()) == [first.id]
            assert not first.host.is_copied  # it hears of it by gossip
    said = [entry["event"] for entry in logs if entry["log_level"] == "error"]
    assert len(said) == 2
    assert all("copy" in text for text in said)


async def test_the_copy_is_refused_by_a_node_that_dials_it_too() -> None:
    with capture_logs():
        async with copied() as (third, first, copy):
            first.knows(third)
            await until(lambda: first.id in third.host.links)
            with pytest.raises(PeerCopied):
                await third.host.connect(copy.address)
            assert third.host.copies.present(trio.current_time()) == [first.id]


async def test_a_process_that_says_nothing_has_been_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "ANSWER_S", 0.1)
    async with copied() as (third, first, again):
        first.knows(third)
        await until(lambda: first.id in third.host.links)
        old = third.host.links[first.id]

        async def no_answer(_within_s: float) -> bool:
            return False

        monkeypatch.setattr(old, "answers", no_answer, raising=False)
        again.knows(third)
        await until(lambda: third.id in again.host.links)
        assert third.host.copies.present(trio.current_time()) == []
        assert refusals_of(third) == 0


async def test_two_that_meet_know_it() -> None:
    with capture_logs() as logs:
        async with copied() as (_third, first, copy):
            copy.host.book.add(PeerAddress(first.address.host, first.address.port), source="peer")
            copy.host.look_at_book()
            await until(lambda: copy.host.is_copied and first.host.is_copied)
    assert [entry["log_level"] for entry in logs if "copy" in entry["event"]] == ["error", "error"]


async def test_a_node_that_meets_itself_is_no_copy() -> None:
    async with peers(1) as (peer,):
        peer.host.book.add(PeerAddress(peer.address.host, peer.address.port), source="peer")
        peer.host.look_at_book()
        await until(lambda: (peer.address.host, peer.address.port) in peer.host.book._ours)
        assert not peer.host.is_copied
