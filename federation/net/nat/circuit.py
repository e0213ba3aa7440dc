"""A connection through a relay: one tunnel to the relay, one from there to the peer, and a link inside.

The relay joins two tunnels and sees what crosses them: records sealed end to end. Inside runs all that runs on a
socket: Noise, the proof of the token, the mux. A `CircuitConn` is the tunnel's end as libp2p's negotiation wants it; a
`CircuitLink` takes the tunnel over and then rides it from callback to callback, without a task, like a link on a socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.abc import IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import MuxedStreamError

from federation.errors import HandshakeFailed, PeerUnavailable, ProtocolViolation
from federation.net.link.handshake import MAX_HANDSHAKE_BYTES
from federation.net.link.link import PING_EVERY_S, Link, Path
from federation.net.nat.relay import RELAY
from federation.net.streams import MuxStream
from federation.reactor.duplex import NullDuplex

if TYPE_CHECKING:
    from collections.abc import Callable

    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    from federation.net.link.handshake import SecureConn
    from federation.net.link.link import LinkEvents
    from federation.net.link.mux import Channel
    from federation.reactor.loop import Reactor

SETTLE_S = 3.0  # a circuit that is given up stays so long: what the other side has just opened on it is on its way


class _Stream(MuxStream):
    """Says when the tunnel breaks, even to who does not read."""

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
        """Raises IOException, and HandshakeFailed for more than `left` bytes."""
        if not self.left:
            raise HandshakeFailed("it sends more than a handshake takes")
        try:
            data = await self._stream.read(self.left if n is None else min(n, self.left))
        except MuxedStreamError as error:
            raise IOException(str(error)) from error
        self.left -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Raises IOException."""
        try:
            await self._stream.write(data)
        except MuxedStreamError as error:
            raise IOException(str(error)) from error

    async def close(self) -> None:
        self.channel.abort("the connection inside is over")

    def take_unread(self) -> tuple[bytes, str | None]:
        """What came and was not read, and why nothing more will come, if so. The caller is the channel's peer from here."""
        return self._stream.take_unread()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None  # the relay's would be mistaken for the peer's

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.RELAYED


async def open_circuit(via: Link, peer: str) -> CircuitConn:
    """A circuit to `peer` through the relay behind `via`. Raises PeerUnavailable."""
    answer = _Answer()
    conn = CircuitConn(via, via.open_tunnel(f"{RELAY}/{peer}", answer, NullDuplex()), initiator=True, on_end=answer.refused)
    try:
        await answer.came.wait()
    except BaseException:
        conn.channel.abort("given up")
        raise
    if answer.problem is not None:
        raise PeerUnavailable(answer.problem)
    return conn


class _Answer:
    """The relay's, to the one who opens a circuit."""

    def __init__(self) -> None:
        self.came = trio.Event()
        self.problem: str | None = None

    def opened(self) -> None:
        self.came.set()

    def refused(self, reason: str) -> None:
        if not self.came.is_set():
            self.problem = reason
            self.came.set()


class CircuitLink(Link):
    """A link on a tunnel. It is the tunnel's local end (a Duplex) as soon as it has started."""

    path: Path = "relayed"

    def __init__(self, conn: CircuitConn, secured: SecureConn, peer_id: ID, *, reactor: Reactor, events: LinkEvents) -> None:
        super().__init__(secured, peer_id, reactor=reactor, events=events)
        self.via, self.via_peer = conn.via, conn.via.peer
        self._conn = conn
        self._channel = conn.channel
        self._carries = False
        self._kept_until = 0.0

    async def _run_async(self) -> None:
        unread, ended = self._conn.take_unread()
        self._channel.other = self
        self._carries = True
        try:
            for plaintext in self._secured.pending:  # came right behind the muxer's negotiation
                self.mux.feed(plaintext)
        except ProtocolViolation as error:
            self._violated(error)
        if unread:
            self.send(unread)
        if ended is not None:
            self.abort(ended)
        if self._drained:
            self.via.drain(self._run_drained)
        self._wake()
        await self._closed.wait()

    def retire(self) -> None:
        super().retire()
        self._kept_until = self._last_tick + SETTLE_S

    def tick(self, now: float, ping_every_s: float = PING_EVERY_S) -> None:
        if self.retired and now < self._kept_until:
            return
        super().tick(now, ping_every_s)

    def read(self) -> None:
        """What the relay has sent."""
        self.via.read()

    def drain(self, callback: Callable[[], None]) -> None:
        """When the link to the relay was read empty; what is still on its way at the relay is not known."""
        self.when_drained(callback)
        self.via.drain(self._run_drained)

    # Out

    def _wake(self) -> None:
        if self._carries and not self._flush_queued and self._unsent is None:
            self._flush_queued = True
            self._reactor.flush_soon(self._flush)

    def _wake_late(self) -> None:
        if self._carries and not self._flush_queued and self._unsent is None:
            self._reactor.flush_late(self._flush)

    def _flush(self) -> None:
        self._flush_queued = False
        if self.mux.overrun:
            self._violated(ProtocolViolation("the peer makes us answer and does not read"))
        channel, next_record, seal = self._channel, self.mux.next_record, self._sealer.seal
        while self._unsent is None and not self._closed.is_set() and (room := channel.room()) > 0:
            record = next_record()
            if record is None:
                return
            self._sent_since_heard = True
            sealed = seal(record)
            channel.send(sealed[:room])
            if len(sealed) > room:
                self._unsent = memoryview(sealed)[room:]
                self.resume()

    # Duplex, for the tunnel

    def room(self) -> int:
        return self._channel.window  # what the tunnel grants is all that bounds it

    def send(self, data: bytes | memoryview) -> None:
        """Sealed bytes from the other end."""
        if self._closed.is_set():
            return
        try:
            plaintexts = self._unsealer.feed(bytes(data))
        except ProtocolViolation as error:
            self.fail(f"{error}, or the relay did")  # who changed the bytes cannot be told: nobody is kept away for it
            return
        self._heard()
        try:
            for plaintext in plaintexts:
                self.mux.feed(plaintext)
        except ProtocolViolation as error:
            self._violated(error)
            return
        self._channel.taken(len(data))
        if self._drained and not self._closed.is_set():
            self.via.drain(self._run_drained)

    def send_eof(self) -> None:
        self.fail("the peer closed the connection")

    def abort(self, reason: str) -> None:
        self.fail(f"the circuit broke: {reason}")

    def taken(self, n: int) -> None:
        """The channel's credit is what paces us."""

    def resume(self) -> None:
        """The tunnel has room again."""
        while self._unsent is not None and (room := self._channel.room()) > 0:
            self._channel.send(self._unsent[:room])
            self._unsent = self._unsent[room:] if len(self._unsent) > room else None
        if self._unsent is None:
            self._wake()
