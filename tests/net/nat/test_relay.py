"""What a relay allows: places, circuits, bytes a second; and what a node that does not relay says."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.errors import PeerUnavailable
from federation.net.nat import relay as relay_module
from federation.net.nat.circuit import open_circuit
from federation.net.nat.relay import Relay, RelayLimits, _Reservation
from federation.reactor.loop import Reactor
from tests.support.circuits import connect_via_relay, reserve, send
from tests.support.duplex import FakeChannel, Rig, check_duplex
from tests.support.hosts import star
from tests.support.links import End, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def test_reservations() -> None:
    async with star(2, limits=RelayLimits(reservations=1)) as (relay, (a, b)):
        assert (await reserve(a, relay)).answers == ["yes"]
        assert (await reserve(b, relay)).answers == ["all places are taken"]
        again = await reserve(a, relay)
        assert again.answers == ["yes"]
        again.channel.abort("no longer")
        await until(lambda: not relay.host.relay.reserved)
        assert (await reserve(b, relay)).answers == ["yes"]


async def test_one_member_has_a_quarter_of_the_circuits() -> None:
    async with star(2, limits=RelayLimits(circuits=8)) as (relay, (a, b)):
        await reserve(b, relay)
        async with trio.open_nursery() as nursery:  # raw ones, so that no duplicate is retired
            conns = [await open_circuit(a.host.links[relay.id], b.id) for _ in range(2)]
            with pytest.raises(PeerUnavailable, match="too many circuits"):
                await open_circuit(a.host.links[relay.id], b.id)
            for conn in conns:
                await conn.close()
            nursery.cancel_scope.cancel()
        await until(lambda: relay.host.relay.circuits == 0)


async def test_one_member_asks_for_so_many_and_the_others_are_none_the_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer at the far end blames the relay for what it brings."""
    monkeypatch.setattr(relay_module, "ASKED_AT_ONCE", 3.0)
    monkeypatch.setattr(relay_module, "ASKED_A_SECOND", 0.001)
    async with star(3) as (relay, (a, b, c)):
        await reserve(b, relay)
        for _ in range(3):
            await (await open_circuit(a.host.links[relay.id], b.id)).close()
        with pytest.raises(PeerUnavailable, match="too often"):
            await open_circuit(a.host.links[relay.id], b.id)
        await (await open_circuit(c.host.links[relay.id], b.id)).close()


async def test_bytes_per_second() -> None:
    rate = 2_000_000
    data = random.Random(3).randbytes(2 * rate)
    async with star(2, limits=RelayLimits(rate=rate)) as (relay, (a, b)):
        await reserve(b, relay)
        link = await connect_via_relay(a, relay, b)
        started = trio.current_time()
        assert await send(link, b, data) == data
        took = trio.current_time() - started
        assert 1.5 < took < 5, took  # 2 s, less what may go at once


async def test_a_node_that_does_not_relay() -> None:
    async with star(1) as (relay, (a,)):
        relay.host.relay.close()
        assert (await reserve(a, relay)).answers == ["this node does not relay"]


async def test_unknown_services_are_refused() -> None:
    class Opener(End):
        def refused(self, reason: str) -> None:
            self.heard.append(reason)

    async with star(1) as (relay, (a,)):
        opener = Opener()
        a.host.links[relay.id].open_tunnel("/what/7/x", opener, End())
        await until(lambda: opener.heard == ["this node does not know that service"])
        assert relay.events.opened == []


@asynccontextmanager
async def a_reservation() -> AsyncIterator[Rig]:
    relay, channel = Relay(Reactor(), {}, RelayLimits(), lambda *_, **__: None), FakeChannel()
    link: Any = SimpleNamespace(peer_id="holder", path="direct")
    relay.reserve(link, channel, "")  # type: ignore[arg-type]
    assert relay.reserved == ["holder"]
    channel.heard.clear()
    yield Rig(channel, has_room=False, carries=False)
    assert relay.reserved == []
    relay._reactor._poller.close()


async def test_a_reservation_keeps_the_contract_of_a_duplex() -> None:
    await check_duplex(_Reservation, a_reservation)
