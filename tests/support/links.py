"""Helpers for tests: two links joined by a real socket pair or by memory streams, without libp2p's negotiation."""

from __future__ import annotations

import socket
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID

from federation.net.link.handshake import SecureConn
from federation.net.link.link import Link
from federation.net.link.seal import Sealer, Unsealer
from federation.reactor.loop import Reactor
from tests.support.duplex import End

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from federation.net.link.channel import Channel
    from federation.net.link.mux import Load

# What takes seconds on a machine with nothing else to do may take this much longer on one with two cores and six test runs.
SLACK = 6.0
MAX_WAIT_S = 90.0  # pytest ends a test that hangs for longer, and the whole run with it
KEYS = (b"a" * 32, b"b" * 32)
PEERS = [ID.from_pubkey(create_new_key_pair(bytes([n]) * 32).public_key) for n in (1, 2)]


@dataclass
class Events:
    """Records what a link tells its host."""

    opened: list[tuple[Channel, str]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    misused: list[str] = field(default_factory=list)
    suspect: list[bool] = field(default_factory=list)
    stuck: int = 0
    other: Any = None  # what tunnels opened by the remote are joined to
    believed: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    watched: list[int] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)

    def tunnel_opened(self, link: Link, channel: Channel, service: str, believed: int) -> None:
        channel.other = self.other
        self.opened.append((channel, service))
        self.believed.append(believed)

    def load_told(self, link: Link, others: int) -> None:
        self.told.append(others)

    def load_watched(self, link: Link, seconds: int) -> None:
        self.watched.append(seconds)

    def look_wanted(self, link: Link, service: str) -> None:
        self.looks.append(service)

    def link_closed(self, link: Link, reason: str) -> None:
        self.closed.append(reason)

    def link_misused(self, link: Link, what: str) -> None:
        self.misused.append(what)

    def link_suspect(self, link: Link) -> None:
        self.suspect.append(link.suspect)

    def link_stuck(self, link: Link) -> None:
        self.stuck += 1


class _Session:
    def __init__(self, *, is_initiator: bool) -> None:
        self.is_initiator = is_initiator


def secure(raw: RawConnection, *, initiator: bool) -> SecureConn:
    ours, theirs = KEYS if initiator else KEYS[::-1]
    return SecureConn(raw, _Session(is_initiator=initiator), Sealer(ours), Unsealer(theirs))  # type: ignore[arg-type]


@asynccontextmanager
async def link_pair(
    *, reactor: Reactor | None = None, loads: tuple[Load, Load] | None = None, keeps: bool = False
) -> AsyncIterator[tuple[Link, Link, Events, Events]]:
    """(initiator, responder, and what each told its host), running. `loads`: of the two nodes; else both are former ones."""
    reactor = Reactor() if reactor is None else reactor  # an empty one is false
    raws = [tcp_raw(end, initiator=n == 0) for n, end in enumerate(await tcp_pair())]
    events = Events(), Events()
    links = [
        Link(
            secure(raw, initiator=n == 0),
            PEERS[1 - n],
            reactor=reactor,
            events=events[n],
            load=loads and loads[n],
            keeps=keeps,
        )
        for n, raw in enumerate(raws)
    ]
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        for link in links:
            nursery.start_soon(link.start)
        for link in links:
            await link.started.wait()
        yield links[0], links[1], *events
        for link in links:
            link.fail("closed")
        nursery.cancel_scope.cancel()


def tcp_raw(stream: trio.SocketStream, *, initiator: bool) -> RawConnection:
    return RawConnection(TrioTCPStream(stream), initiator)


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    server = await listener.accept()
    await listener.aclose()
    return client, server


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets on loopback, non-blocking."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    a.setblocking(False)
    b.setblocking(False)
    return a, b


async def until(condition: Any, *, seconds: float = 5.0) -> None:
    """Wait for `condition()`; trio's scheduler and the reactor run in between. `seconds`: on an idle machine."""
    with trio.fail_after(min(SLACK * seconds, MAX_WAIT_S)):
        while not condition():  # noqa: ASYNC110  # whatever the condition is, it has no event
            await trio.sleep(0.001)


__all__ = ["End", "Events", "deque", "link_pair", "secure", "socket_pair", "tcp_pair", "until"]
