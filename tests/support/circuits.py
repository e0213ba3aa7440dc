"""Helpers for tests: links through a relay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.hosts import Reservation
from tests.support.links import End, until

if TYPE_CHECKING:
    from federation.net.link.link import Link
    from tests.support.hosts import Peer


async def reserve(holder: Peer, relay: Peer) -> Reservation:
    place = Reservation(holder, relay)
    await until(lambda: place.answers)
    return place


async def connect_via_relay(a: Peer, relay: Peer, b: Peer) -> Link:
    link = await a.host.connect_via_relay(relay.id, b.id)
    await until(lambda: b.has(a, relay))
    return link


async def send(link: Link, to: Peer, data: bytes) -> bytes:
    """Through a tunnel of `link`; what arrived."""
    far = End()
    heard = len(to.events.opened)
    channel = link.open_tunnel("default", End(), End())
    await until(lambda: len(to.events.opened) > heard)
    arrived = to.events.opened[-1][0]
    far.other = arrived
    arrived.other = far
    arrived.accept()
    view = memoryview(data)
    while view:
        await until(lambda: channel.writable() > 0)
        n = min(len(view), channel.writable())
        channel.send(view[:n])
        view = view[n:]
    channel.send_eof()
    await until(lambda: far.heard and far.heard[-1] == "EOF", seconds=20)
    return far.data
