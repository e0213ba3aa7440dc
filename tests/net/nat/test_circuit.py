"""Links through a relay: hosts on loopback, each circuit two tunnels and a link inside."""

from __future__ import annotations

import hashlib
import random
from contextlib import AsyncExitStack

import pytest
import trio
from structlog.testing import capture_logs

from federation.errors import PeerUnavailable
from federation.net import host as host_module
from federation.net.admission import gate, inbound_circuits
from federation.net.link import mux
from federation.net.link.frames import ANY_LOAD
from federation.net.link.link import Link
from federation.net.link.mux import Load
from federation.net.nat.circuit import open_circuit
from federation.net.nat.relay import CIRCUIT, RELAY, RelayLimits
from federation.reactor.duplex import NullDuplex
from tests.support.circuits import connect_via_relay, reserve, send
from tests.support.hosts import assert_serves, echo, linked, new_peer, reactor_running, star
from tests.support.links import End, until

PROTOCOL = "/test/1"

pytestmark = pytest.mark.usefixtures("tunnels_are_kept")


class TestCircuit:
    async def test_two_who_cannot_dial_each_other_are_linked(self) -> None:
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            link = await connect_via_relay(a, relay, b)
            assert link.path == b.host.links[a.id].path == "relayed"
            assert a.host.links[relay.id].path == "direct"
            assert link.peer_id == b.id
            assert link.remote_address is None
            b.host.handle_stream(PROTOCOL, echo)
            await assert_serves(b, a)
            await assert_serves(a, b)
            assert relay.host.relay.circuits == 1

    async def test_bytes_arrive_exactly_in_both_directions(self) -> None:
        data = random.Random(1).randbytes(5_000_000)
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            link = await connect_via_relay(a, relay, b)
            for source, to in ((link, b), (b.host.links[a.id], a)):
                arrived = await send(source, to, data)
                assert hashlib.sha256(arrived).digest() == hashlib.sha256(data).digest()
            assert relay.host.relay.bytes_relayed > 2 * len(data)

    @pytest.mark.parametrize("former", range(-1, 3), ids=["nobody", "the relay", "the dialler", "the dialled"])
    async def test_loads_go_through_whatever_the_relay_speaks(self, former: int) -> None:
        """Whether the two ends speak of their loads is between them."""
        async with reactor_running() as reactor, AsyncExitStack() as stack:
            loads = [Load(), Load(), Load(5)]
            relay, a, b = found = [
                await new_peer(n + 1, reactor, relay=RelayLimits(), load=loads[n], is_former=n == former) for n in range(3)
            ]
            for peer in found:
                await stack.enter_async_context(peer.host.running())
            for peer in (a, b):
                peer.knows(relay)
            await until(lambda: relay.has(a, b) and a.has(relay) and b.has(relay))
            await reserve(b, relay)
            link = await connect_via_relay(a, relay, b)
            back = b.host.links[a.id]
            assert link.path == "relayed"
            assert link.mux.tells_load is back.mux.tells_load is (former < 1)
            assert relay.host.links[a.id].mux.tells_load is (former not in (0, 1))
            assert await send(link, b, b"hello") == b"hello"
            assert b.events.believed == [ANY_LOAD]
            loads[2].in_flight = 6
            assert back.mux.tell_load() is (former < 1)
            if former < 1:
                await until(lambda: a.events.told and a.events.told[-1] == (b.id, 6))
            assert (b.id, 5) in a.events.told or former > 0
            assert relay.events.believed == []  # a circuit is no request of clients

    async def test_the_second_fin_waits_for_nothing_else_to_be_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A PING of the link would take it along, half a second to two seconds late."""
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            link = await connect_via_relay(a, relay, b)
            monkeypatch.setattr(Link, "tick_safely", lambda *_: None)
            for ends_first in (True, False):
                here, there = End(), End()
                here.other = channel = link.open_tunnel("default", here, here)
                heard = len(b.events.opened)
                await until(lambda: len(b.events.opened) > heard)  # noqa: B023
                arrived = b.events.opened[-1][0]
                arrived.other, there.other = there, arrived
                arrived.accept()
                await until(lambda: here.heard)  # noqa: B023
                first, hears, second = (channel, there, arrived) if ends_first else (arrived, here, channel)
                first.send_eof()
                await until(lambda: hears.heard[-1:] == ["EOF"])  # noqa: B023
                second.send_eof()
                await until(lambda: channel.closed and arrived.closed)  # noqa: B023

    async def test_to_read_it_is_to_read_the_link_to_the_relay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            link = await connect_via_relay(a, relay, b)
            read: list[str] = []
            monkeypatch.setattr(a.host.links[relay.id], "read", lambda: read.append("relay"))
            link.read()
            assert read == ["relay"]

    async def test_without_a_place_there_is_no_circuit(self) -> None:
        async with star(2) as (relay, (a, b)):
            with pytest.raises(PeerUnavailable, match="no place"):
                await a.host.connect_via_relay(relay.id, b.id)
            assert a.has(relay)
            assert relay.host.relay.circuits == 0

    async def test_the_relays_end_ends_the_link_at_once(self) -> None:
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            await connect_via_relay(a, relay, b)
            relay.host.links[a.id].fail("cut")
            await until(lambda: b.id not in a.host.links and a.id not in b.host.links)
            await until(lambda: relay.host.relay.circuits == 0)

    async def test_closing_it_ends_it_at_the_other_end_and_at_the_relay(self) -> None:
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            link = await connect_via_relay(a, relay, b)
            link.fail("closed")
            await until(lambda: a.id not in b.host.links)
            await until(lambda: relay.host.relay.circuits == 0)
            assert not relay.host.links[a.id].mux.tunnels

    async def test_a_direct_link_takes_over_and_open_tunnels_stay(self) -> None:
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            relayed = await connect_via_relay(a, relay, b)
            channel = relayed.open_tunnel("default", End(), End())
            await until(lambda: b.events.opened)
            a.knows(b)
            a.host.links.pop(b.id)  # so that it is dialled
            a.host.look_at_book()
            await until(lambda: a.host.links.get(b.id) is not None and b.host.links[a.id].path == "direct")
            assert a.host.links[b.id].path == "direct"
            assert not channel.closed
            assert b.host.table.retired

    async def test_a_relayed_link_does_not_take_the_place_of_a_direct_one(self) -> None:
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            a.knows(b)
            await until(lambda: a.has(relay, b) and b.has(relay, a))
            direct = a.host.links[b.id]
            await a.host.connect_via_relay(relay.id, b.id)
            assert a.host.links[b.id] is direct
            await until(lambda: relay.host.relay.circuits == 0, seconds=8)  # it is given up

    async def test_one_who_hangs_up_does_not_disturb_the_others(self) -> None:
        data = random.Random(2).randbytes(3_000_000)
        async with star(4) as (relay, (hidden, *others)):
            await reserve(hidden, relay)
            links = [await other.host.connect_via_relay(relay.id, hidden.id) for other in others]
            await until(lambda: hidden.has(relay, *others))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(links[0].muxed_conn.close)
                arrived = await send(links[1], hidden, data)
            assert arrived == data
            await until(lambda: hidden.has(relay, *others[1:]))

    async def test_through_a_relay_there_are_no_reservations_at_others(self) -> None:
        """A circuit on a circuit would cost its relays twice, for a node that has a relay."""
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            await connect_via_relay(a, relay, b)
            place = await reserve(a, b)
            assert place.answers == ["the relay itself is reached through a relay"]


class TestWhoBringsThem:
    async def test_circuits_come_from_no_member_but_a_relay_with_a_place_of_ours(self) -> None:
        """Or each member would be as many as it likes, on one connection."""
        async with linked() as (a, b):
            opener = End()
            a.host.links[b.id].open_tunnel(f"{CIRCUIT}/x", opener, opener)
            await until(lambda: opener.heard)
            assert opener.heard == ["REFUSED this node has no place there"]
            assert not b.host._gate

    async def test_nor_on_a_circuit(self) -> None:
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            link = await connect_via_relay(a, relay, b)
            opener = End()
            link.open_tunnel(f"{CIRCUIT}/x", opener, opener)
            await until(lambda: opener.heard)
            assert opener.heard == ["REFUSED this node has no place there"]

    async def test_one_source_has_so_many_and_others_by_the_same_relay_their_own(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inbound_circuits, "SOURCE_BURST", 2.0)
        monkeypatch.setattr(inbound_circuits, "SOURCE_RATE", 0.001)
        async with star(3) as (relay, (a, b, c)):
            await reserve(b, relay)
            for _ in range(2):
                await (await open_circuit(a.host.links[relay.id], b.id)).close()
            with pytest.raises(PeerUnavailable, match="too often"):
                await open_circuit(a.host.links[relay.id], b.id)
            await connect_via_relay(c, relay, b)
            assert relay.host.links[b.id].is_closed is False

    async def test_members_that_ask_without_end_do_not_have_the_relay_put_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the peer behind it refuses it counts as the relay's doing."""
        monkeypatch.setattr(mux, "ABUSE_REFILL", 0)
        async with star(5) as (relay, (b, *askers)):
            await reserve(b, relay)
            b.host.links[relay.id].mux._abuse_left = 100.0
            ends = [End() for _ in range(60)]
            for asker in askers:
                for end in ends:
                    asker.host.links[relay.id].open_tunnel(f"{RELAY}/{b.id}", end, NullDuplex())
            await until(lambda: all(len(end.heard) >= len(askers) for end in ends), seconds=10)
            assert relay.id not in dict(b.events.down)
            assert relay.has(b, *askers)

    async def test_they_count_as_connections_of_the_relays_machine(self) -> None:
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            pace = b.host._gate._paces.of("127.0.0.1")
            await (await open_circuit(a.host.links[relay.id], b.id)).close()
            pace.spend(trio.current_time(), 2 * gate.ACCEPT_BURST)
            with pytest.raises(PeerUnavailable, match="too often"):
                await open_circuit(a.host.links[relay.id], b.id)

    async def test_after_a_few_bad_ones_nobody_is_let_in_by_that_relay_for_a_while(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The relay keeps its link, and those who are here stay: it cannot see what its members do."""
        monkeypatch.setattr(inbound_circuits, "FREE_OFFENCES", 1.0)
        async with star(5) as (relay, (b, good, late, *bad)):
            await reserve(b, relay)
            await connect_via_relay(good, relay, b)
            with capture_logs() as logs:
                for evil in bad:
                    await evil.host.connect_via_relay(relay.id, b.id)
                    await until(lambda evil=evil: evil.id in b.host.links)
                    b.host.report_violation(evil.id, "on purpose")
            assert len([entry for entry in logs if "for now nobody is let in" in entry["event"]]) == 1
            with pytest.raises(PeerUnavailable, match="too often"):
                await late.host.connect_via_relay(relay.id, b.id)
            assert b.has(relay, good)
            assert relay.has(b, good, late, *bad)

    async def test_a_full_node_takes_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with star(2) as (relay, (a, b)):
            await reserve(b, relay)
            monkeypatch.setattr(host_module, "MAX_LINKS", 1)
            with pytest.raises(PeerUnavailable, match="too many at once"):
                await a.host.connect_via_relay(relay.id, b.id)
