"""A connection through a relay: one tunnel to the relay, one from there to the peer, and a link inside.

The relay joins two tunnels and sees only records that are sealed end to end. Inside run all protocols of a socket: Noise,
the proof of the token, the mux. A `CircuitConn` is the tunnel's end as libp2p's negotiation wants it; then a
`CircuitCarrier` (link/carrier.py) takes the tunnel over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.abc import IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import MuxedStreamError

from federation.errors import HandshakeFailed, PeerUnavailable
from federation.net.link.handshake import MAX_HANDSHAKE_BYTES
from federation.net.nat.relay import RELAY
from federation.net.streams import MuxStream
from federation.reactor.duplex import NullDuplex

if TYPE_CHECKING:
    from collections.abc import Callable

    from multiaddr import Multiaddr

    from federation.net.link.channel import Channel
    from federation.net.link.link import Link


class _Stream(MuxStream):
    """Reports a broken tunnel even while no task reads."""

    def __init__(self, channel: Channel, link: Link, on_end: Callable[[str], None] | None) -> None:
        super().__init__(channel, link)
        self._on_end = on_end

    def abort(self, reason: str) -> None:
        super().abort(reason)
        if self._on_end is not None:
            self._on_end(reason)


class CircuitConn(IRawConnection):
    """One end of a circuit. `via` is the link to the relay; `channel` the tunnel on it."""

    def __init__(self, via: Link, channel: Channel, *, initiator: bool, on_end: Callable[[str], None] | None = None) -> None:
        self.via = via
        self.channel = channel
        self.is_initiator = initiator
        self.left = MAX_HANDSHAKE_BYTES
        self._stream = _Stream(channel, via, on_end)

    async def read(self, n: int | None = None) -> bytes:
        """Read at most `n` bytes. Raises IOException, and HandshakeFailed for more than `left` bytes."""
        if not self.left:
            raise HandshakeFailed("it sends more than a handshake takes")
        try:
            data = await self._stream.read(self.left if n is None else min(n, self.left))
        except MuxedStreamError as error:
            raise IOException(str(error)) from error
        self.left -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Write all of `data`. Raises IOException."""
        try:
            await self._stream.write(data)
        except MuxedStreamError as error:
            raise IOException(str(error)) from error

    async def close(self) -> None:
        self.channel.abort("the connection inside is over")

    def take_unread(self) -> tuple[bytes, str | None]:
        """The bytes not read yet, and the reason if no more will come. From now on the caller is the channel's other end."""
        return self._stream.take_unread()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None  # the relay's address would be mistaken for the peer's

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.RELAYED


async def open_circuit(via: Link, peer_id: str) -> CircuitConn:
    """Open a circuit to the peer through the relay behind `via`. Raises PeerUnavailable."""
    answer = _Answer()
    channel = via.open_tunnel(f"{RELAY}/{peer_id}", answer, NullDuplex())
    conn = CircuitConn(via, channel, initiator=True, on_end=answer.refused)
    try:
        await answer.came.wait()
    except BaseException:
        conn.channel.abort("given up")
        raise
    if answer.problem is not None:
        raise PeerUnavailable(answer.problem)
    return conn


class _Answer:
    """The relay's answer to a node that opens a circuit."""

    def __init__(self) -> None:
        self.came = trio.Event()
        self.problem: str | None = None

    def opened(self) -> None:
        self.came.set()

    def refused(self, reason: str) -> None:
        if not self.came.is_set():
            self.problem = reason
            self.came.set()
