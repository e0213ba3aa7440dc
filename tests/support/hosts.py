"""Helpers for tests: Hosts in one process, on loopback, with one reactor between them."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unittest.mock import patch

import trio

from federation.net import host as host_module
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import AddressBook
from federation.net.host import Host
from federation.net.link.link import PROTOCOL_ID_WITHOUT_LOAD
from federation.net.nat.relay import RelayLimits
from federation.reactor.duplex import NullDuplex
from federation.reactor.loop import Reactor
from federation.units import HostPort
from tests.support.links import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from federation.net.link.channel import Channel
    from federation.net.link.link import Link
    from federation.net.link.mux import Load
    from federation.net.streams import TrioStream

KEY = b"k" * 32
ANY_PORT = HostPort("127.0.0.1", 0)
PROTOCOL = "/test/1"


@dataclass
class HostEvents:
    """Records what a host tells its node."""

    up: list[Link] = field(default_factory=list)
    down: list[tuple[str, str]] = field(default_factory=list)
    suspect: list[bool] = field(default_factory=list)
    opened: list[tuple[Channel, str]] = field(default_factory=list)
    believed: list[int] = field(default_factory=list)
    told: list[tuple[str, int]] = field(default_factory=list)
    watched: list[tuple[str, int]] = field(default_factory=list)
    looks: list[tuple[str, str]] = field(default_factory=list)

    def tunnel_opened(self, link: Link, channel: Channel, service: str, believed: int) -> None:
        self.opened.append((channel, service))
        self.believed.append(believed)

    def load_told(self, link: Link, others: int) -> None:
        self.told.append((link.peer_id, others))

    def load_watched(self, link: Link, seconds: int) -> None:
        self.watched.append((link.peer_id, seconds))

    def look_wanted(self, link: Link, service: str) -> None:
        self.looks.append((link.peer_id, service))

    def peer_up(self, link: Link) -> None:
        self.up.append(link)

    def peer_down(self, peer_id: str, reason: str) -> None:
        self.down.append((peer_id, reason))

    def peer_suspect(self, link: Link) -> None:
        self.suspect.append(link.suspect)


@dataclass
class Peer:
    """A host that listens, and what it told."""

    host: Host
    events: HostEvents
    address: PeerAddress
    banned: set[str] = field(default_factory=set)  # ids that it keeps away

    @property
    def id(self) -> str:
        return self.host.peer_id

    def knows(self, other: Peer, *, with_id: bool = True) -> None:
        """A person gave this host the other's address."""
        address = other.address if with_id else PeerAddress(other.address.host, other.address.port)
        self.host.book.add(address, source="peer")
        self.host.look_at_book()

    def has(self, *others: Peer) -> bool:
        return set(self.host.links) == {other.id for other in others}


def seed(n: int) -> bytes:
    return bytes([n]) * 32


@asynccontextmanager
async def reactor_running() -> AsyncIterator[Reactor]:
    reactor = Reactor()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        yield reactor
        nursery.cancel_scope.cancel()


async def new_peer(
    n: int,
    reactor: Reactor,
    *,
    keys: Sequence[bytes] = (KEY,),
    retired: Sequence[bytes] = (),
    relay: RelayLimits | None = None,
    load: Load | None = None,
    is_former: bool = False,
) -> Peer:
    """Listens, does not run. `keys` and `retired` are asked for at each handshake. `is_former`: as a version that does not
    speak of loads."""
    events = HostEvents()
    banned: set[str] = set()
    with patch.object(host_module, "PROTOCOL_ID", PROTOCOL_ID_WITHOUT_LOAD) if is_former else nullcontext():
        host = Host(
            seed=seed(n), reactor=reactor, events=events, book=AddressBook(), admission_keys=lambda: keys,
            retired_keys=lambda: retired, is_banned=banned.__contains__, relay=relay, load=load,
        )  # fmt: skip
    bound = await host.listen(ANY_PORT)
    return Peer(host, events, PeerAddress(bound.host, bound.port, host.peer_id), banned)


@asynccontextmanager
async def peers(
    count: int, *, keys: Sequence[bytes] = (KEY,), relay: RelayLimits | None = None
) -> AsyncIterator[list[Peer]]:
    """So many hosts, running, in ascending order of peer id."""
    async with reactor_running() as reactor, AsyncExitStack() as stack:
        found = sorted(
            [await new_peer(n, reactor, keys=keys, relay=relay) for n in range(1, count + 1)], key=lambda peer: peer.id
        )
        for peer in found:
            await stack.enter_async_context(peer.host.running())
        yield found


class Reservation(NullDuplex):
    """A place at a relay, as its holder sees it."""

    def __init__(self, holder: Peer, relay: Peer) -> None:
        self.answers: list[str] = []
        self.channel = holder.host.reserve(holder.host.links[relay.id], self, self)

    def opened(self) -> None:
        self.answers.append("yes")

    def refused(self, reason: str) -> None:
        self.answers.append(reason)

    def abort(self, reason: str) -> None:
        self.answers.append(f"RST {reason}")


@asynccontextmanager
async def star(leaves: int, *, limits: RelayLimits | None = None) -> AsyncIterator[tuple[Peer, list[Peer]]]:
    """A relay, and hosts that are connected to it alone."""
    async with peers(leaves + 1, relay=limits or RelayLimits()) as (relay, *others):
        for other in others:
            other.knows(relay)
        await until(lambda: relay.has(*others) and all(other.has(relay) for other in others))
        yield relay, others


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Peer, Peer]]:
    """Two hosts; the first dialled the second."""
    async with peers(2) as (a, b):
        a.knows(b)
        await until(lambda: a.has(b) and b.has(a))
        yield a, b


async def echo(_link: Link, stream: TrioStream) -> None:
    async with stream:
        await stream.send_all(await stream.receive_some(100))


async def assert_serves(server: Peer, client: Peer) -> None:
    """Still in working order: a stream from the one to the other answers."""
    server.host.handle_stream(PROTOCOL, echo)
    with trio.fail_after(20):
        async with await client.host.open_stream(server.id, PROTOCOL) as stream:
            await stream.send_all(b"there?")
            assert await stream.receive_some(100) == b"there?"
    assert server.host.swarm.manager.is_running  # type: ignore[attr-defined]
    assert client.host.swarm.manager.is_running  # type: ignore[attr-defined]
