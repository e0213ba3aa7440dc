"""A link in a tunnel through a relay, sans-IO: the tunnel and the reactor are played by hand."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio

from federation.net.link.carrier import CircuitCarrier
from federation.net.link.frames import DATA, FIN, OPEN, OPENED, RST
from federation.net.link.link import Link
from federation.net.link.seal import Sealer, Unsealer
from tests.support.duplex import Caller, End, Rig, check_duplex, ending
from tests.support.frames import frame, frames
from tests.support.links import KEYS, PEERS, Events, secure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass
class Tunnel(End):
    """The tunnel to the relay: what it takes is what the other end of the circuit hears, unsealed."""

    window: int = 64 * 1024
    acknowledged: int = 0
    unsealer: Unsealer = field(default_factory=lambda: Unsealer(KEYS[0]))

    def acknowledge(self, n: int) -> None:
        self.acknowledged += n

    def send(self, data: bytes | memoryview) -> None:
        assert len(data) <= self.space
        self.space -= len(data)
        self.heard.append(bytes(data))

    def frames(self) -> list[Any]:
        data, self.heard = self.data, [item for item in self.heard if isinstance(item, str)]
        return [item for record in self.unsealer.feed(data) for item in frames(record)]


class Via:
    """The link to the relay. `waiting`: what waits for it to be read empty."""

    peer_id = "relay"

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.read_until_empty = self.waiting.append


class HandReactor:
    """Flushes when the test says so; a late flush counts as one."""

    def __init__(self) -> None:
        self.flushes: list[Callable[[], None]] = []
        self.flush_soon = self.flush_late = self.flushes.append

    def now(self) -> float:
        return 1000.0

    def guard(self, callback: Callable[[], None]) -> None:
        callback()

    def flush(self) -> None:
        while self.flushes:
            self.flushes.pop(0)()


@dataclass
class Circuit:
    link: Link
    tunnel: Tunnel
    via: Via
    reactor: HandReactor
    events: Events
    sealer: Sealer = field(default_factory=lambda: Sealer(KEYS[1]))

    @property
    def end(self) -> Any:
        """The carrier, as the tunnel knows it."""
        return self.tunnel.other

    def say(self, *said: bytes) -> None:
        """The other end sends one record."""
        self.end.send(self.sealer.seal(b"".join(said)))

    def hears(self) -> list[Any]:
        self.reactor.flush()
        return self.tunnel.frames()


@asynccontextmanager
async def a_circuit(*, unread: bytes = b"", ended: str | None = None, tunnel: Any = None) -> AsyncIterator[Circuit]:
    via, reactor, events = Via(), HandReactor(), Events(other=End())
    tunnel = tunnel or Tunnel()

    async def close() -> None:
        tunnel.abort("the connection inside is over")

    conn: Any = SimpleNamespace(
        via=via, channel=tunnel, take_unread=lambda: (unread, ended), close=close,
        get_remote_address=dict, get_transport_addresses=list, get_connection_type=dict,
    )  # fmt: skip
    carrier: Any = partial(CircuitCarrier, circuit=conn)
    link = Link(secure(conn, initiator=True), PEERS[1], reactor=reactor, events=events, carrier=carrier)  # type: ignore[arg-type]
    if not isinstance(tunnel, Outside):
        await link.carrier.start()
    yield Circuit(link, tunnel, via, reactor, events)
    link.fail("the test is over")


def opened(circuit: Circuit) -> tuple[Any, End]:
    end = End()
    end.other = circuit.link.open_tunnel("default", end, end)
    return end.other, end


async def test_it_carries_records_and_acknowledges_what_it_has_taken() -> None:
    async with a_circuit() as circuit:
        assert (circuit.link.path, circuit.link.via_peer_id, circuit.link.local_host) == ("relayed", "relay", "")
        channel, end = opened(circuit)
        channel.send(b"request")
        assert not circuit.link.is_flushed
        assert circuit.hears() == [("OPEN", 1, b"default"), ("DATA", 1, b"request")]
        assert circuit.link.is_flushed
        record = circuit.sealer.seal(frame(OPENED, 1) + frame(DATA, 1, b"reply"))
        for at in range(0, len(record), 7):
            circuit.end.send(record[at : at + 7])
        assert end.heard == ["OPENED", b"reply"]
        assert circuit.tunnel.acknowledged == len(record)


async def test_the_fin_that_ends_a_channel_waits_for_nothing_else() -> None:
    async with a_circuit() as circuit:
        channel, _ = opened(circuit)
        circuit.hears()
        circuit.say(frame(OPENED, 1), frame(FIN, 1))
        channel.send_eof()
        assert circuit.hears() == [("FIN", 1, b"")]


async def test_a_tunnel_with_little_room_gets_a_record_in_pieces() -> None:
    async with a_circuit() as circuit:
        circuit.tunnel.space = 10
        opened(circuit)[0].send(b"x" * 30)
        circuit.reactor.flush()
        assert len(circuit.tunnel.data) == 10
        assert not circuit.link.is_flushed
        circuit.tunnel.space = 3
        circuit.end.resume_writing()
        assert len(circuit.tunnel.data) == 13
        circuit.tunnel.space = 1000
        circuit.end.resume_writing()
        assert circuit.hears() == [("OPEN", 1, b"default"), ("DATA", 1, b"x" * 30)]
        assert circuit.link.is_flushed


async def test_an_rst_behind_an_open_is_seen_before_anything_is_dialled() -> None:
    """It may lie in the socket of the link to the relay."""
    gone: list[bool] = []
    async with a_circuit() as circuit:
        circuit.say(frame(OPEN, 2))
        circuit.link.when_read_empty(lambda: gone.append(circuit.events.opened[0][0].closed))
        circuit.say(frame(RST, 2, b"too late"))
        assert gone == []
        circuit.via.waiting.pop()()
        assert gone == [True]
        circuit.link.read_until_empty(lambda: gone.append(False))
        circuit.via.waiting.pop()()
        assert gone == [True, False]


async def test_what_came_before_it_started_is_not_lost() -> None:
    early = Sealer(KEYS[1]).seal(frame(OPEN, 2, b"early"))
    async with a_circuit(unread=early) as circuit:
        assert [service for _, service in circuit.events.opened] == ["early"]
    async with a_circuit(unread=early, ended="gone") as circuit:
        assert circuit.events.closed == ["the circuit broke: gone"]


async def test_its_end_ends_the_link_and_is_answered_with_nothing() -> None:
    for name, reason in (("send_eof", "the peer closed the connection"), ("abort", "the circuit broke: gone")):
        async with a_circuit() as circuit:
            _, end = opened(circuit)
            circuit.hears()
            getattr(circuit.end, name)(*(["gone"] if name == "abort" else []))
            assert circuit.events.closed == [reason]
            assert end.heard == [f"RST {reason}"]
            circuit.end.abort("again")
            circuit.end.resume_writing()
            circuit.end.acknowledge(1)
            circuit.end.send(b"late")
            circuit.reactor.flush()
            assert circuit.tunnel.heard == []
            assert circuit.tunnel.acknowledged == 0
            assert circuit.events.closed == [reason]


async def test_nobody_is_blamed_for_a_record_that_the_relay_may_have_changed() -> None:
    async with a_circuit() as circuit:
        circuit.end.send(b"\x00\x20" + bytes(32))
        assert "or the relay did" in circuit.events.closed[0]
        assert circuit.events.misused == []


async def test_a_breach_inside_a_record_is_its_peers() -> None:
    async with a_circuit() as circuit:
        circuit.say(frame(OPEN, 2), frame(77, 1))
        assert len(circuit.events.misused) == 1
        assert "broke the protocol" in circuit.events.closed[0]


# As a Duplex


@dataclass
class Outside(Caller):
    """The tunnel of a circuit. What it heard is unsealed: the bytes of the channel inside, and the names of other frames."""

    window: int = 64 * 1024
    unsealer: Unsealer = field(default_factory=lambda: Unsealer(KEYS[0]))

    def send(self, data: bytes | memoryview) -> None:
        assert len(data) <= self.space
        for record in self.unsealer.feed(bytes(data)):
            self.heard += [payload if name == "DATA" else (name,) for name, _, payload in frames(record)]


@asynccontextmanager
async def a_channel_inside() -> AsyncIterator[Rig]:
    """The caller is the circuit's tunnel; behind the carrier is the local end of a channel inside the circuit."""
    outside = Outside()
    async with trio.open_nursery() as nursery, a_circuit(tunnel=outside) as circuit:
        nursery.start_soon(circuit.link.start)
        await circuit.link.started.wait()
        channel, end = opened(circuit)
        circuit.say(frame(OPENED, 1))
        circuit.reactor.flush()
        outside.heard.clear()
        end.heard.clear()
        outside.acknowledged = 0
        yield Rig(
            outside, arrived=lambda: end.data, ended=lambda: ending(end), say=channel.send,
            break_off=lambda: circuit.link.fail("broken"), move=circuit.reactor.flush,
            wrap=lambda data: circuit.sealer.seal(frame(DATA, 1, data)),
            has_room=False, holds_back=False, half_closes=False,
        )  # fmt: skip


async def test_it_keeps_the_contract_of_a_duplex() -> None:
    await check_duplex(CircuitCarrier, a_channel_inside)
