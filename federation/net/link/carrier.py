"""What carries a link's records: a TCP socket of the reactor, or a tunnel through a relay. Neither needs a task.

A carrier seals what the link's mux has to say, and feeds the mux what it unseals. The reactor's callback is the only one
that writes, so no cancellation can cut a record in half.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Protocol

from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection

from federation.errors import ProtocolViolation
from federation.net.link.delivery import delivery, let_routers_split
from federation.reactor.loop import READ, WRITE
from federation.reactor.sockets import NO_LINGER

if TYPE_CHECKING:
    from federation.net.link.channel import Channel
    from federation.net.link.delivery import Delivery
    from federation.net.link.handshake import SecureConn
    from federation.net.link.link import Link
    from federation.net.link.mux import Mux
    from federation.reactor.loop import Reactor

RECV_BYTES = 256 * 1024
TURN_BYTES = 512 * 1024  # sent, then the other sockets have their turn
SEND_BYTES = 128 * 1024  # sealed for one send: a system call costs as much as sealing 16 KiB
READS_A_TURN = 16
# What one read may take of the thread; a remote whose bytes are all tiny frames is read in smaller pieces instead.
READ_TURN_S = 0.01
MIN_RECV_BYTES = 16 * 1024
NOTSENT_LOWAT = 128 * 1024  # what waits in the kernel behind what is in flight: a chunk queued now overtakes no more
SETTLE_S = 3.0  # a circuit that is given up stays so long: what the other side has just opened on it is on its way

Path = Literal["direct", "punched", "relayed"]


class Carrier(Protocol):
    """A carrier tells the link's liveness when bytes arrive, and its link `was_read_empty` when none are left, `fail` and
    `violated`."""

    path: Path
    settle_s: float  # a link that is retired is kept so long
    local_host: str  # our own address on its socket; empty without one

    @property
    def via(self) -> Link | None:
        """The link to the relay, if there is one."""

    @property
    def is_flushed(self) -> bool:
        """Nothing sealed is left here, and no flush is due."""

    async def start(self) -> None:
        """Take the connection over from libp2p's negotiation; what came behind that is fed first."""

    def wake(self) -> None:
        """The mux has something to send. Ignored before `start`."""

    def wake_late(self) -> None:
        """The mux has something to send for which nobody waits."""

    def read(self) -> None:
        """Process what has arrived."""

    def read_until_empty(self) -> None:
        """Soon: process what has arrived, then `link.was_read_empty`, even if nothing has."""

    def delivery(self) -> Delivery | None:
        """What has become of the sealed bytes, those that wait here among the unacknowledged; None: nobody knows."""

    def let_routers_split(self) -> None:
        """Large packets seem to be lost."""

    def close(self, *, reset: bool = False) -> None:
        """The link has failed: let go of everything at once. Called once. `reset`: what has not arrived never shall."""


class SocketCarrier:
    """Records on a TCP socket of our own."""

    path: Path = "direct"
    via = None
    settle_s = 0.0
    local_host = ""

    _mux: Mux

    def __init__(self, link: Link, secured: SecureConn, reactor: Reactor) -> None:
        self.sock: socket.socket | None = None
        self._link = link
        self._secured = secured
        self._reactor = reactor
        self._sealer, self._unsealer = secured.sealer, secured.unsealer
        self._recv_bytes = MIN_RECV_BYTES
        self._rest = b""
        self._unsent: memoryview | None = None
        self._flush_queued = False
        self._mask = READ
        self._remote_has_ended = False
        self._closed = False

    @property
    def is_flushed(self) -> bool:
        return self._unsent is None and not self._flush_queued

    def _has_ended(self) -> bool:
        """A call, since a type checker takes the attribute for what it was before an `await`."""
        return self._closed

    async def start(self) -> None:
        if self._closed:
            return
        try:
            sock = await _take_socket(self._secured)
        except OSError as error:  # no descriptor left
            self._broke(error)
            return
        if self._has_ended():  # meanwhile
            sock.close()
            return
        self._mux = self._link.mux
        self.sock = sock
        self.local_host = sock.getsockname()[0]
        self._rest = self._unsealer.rest
        self._reactor.add(sock.fileno(), READ, self._on_events)
        self._link.feed(self._secured.pending)
        if self._link.waiting:
            self._read()  # an OPEN was among it: nothing else may come until it is answered
        self.wake()

    def delivery(self) -> Delivery | None:
        known = None if self.sock is None else delivery(self.sock)
        if known is None:
            return None
        unsent = 0 if self._unsent is None else len(self._unsent)
        return known._replace(
            unacknowledged=known.unacknowledged + unsent, has_ended=known.has_ended or self._remote_has_ended
        )

    def let_routers_split(self) -> None:
        if self.sock is not None:
            let_routers_split(self.sock)

    def close(self, *, reset: bool = False) -> None:
        self._closed = True
        if self.sock is not None:
            self._reactor.drop(self.sock.fileno())
            if reset:
                with suppress(OSError):
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self.sock.close()

    def wake(self) -> None:
        if not self._flush_queued and self._unsent is None and self.sock is not None:
            self._flush_queued = True
            self._reactor.flush_soon(self._flush)

    def wake_late(self) -> None:
        if not self._flush_queued and self._unsent is None and self.sock is not None:
            self._reactor.flush_late(self._flush)

    def read(self) -> None:
        self._read()

    def read_until_empty(self) -> None:
        self._reactor.flush_soon(self._read)

    # In

    def _on_events(self, mask: int) -> None:
        if mask & WRITE:
            self._continue()
        if mask & ~WRITE and not self._closed:
            self._read()

    def _read(self) -> None:
        sock, link = self.sock, self._link
        if sock is None or self._closed:
            return
        scratch, unsealer, feed = self._reactor.scratch, self._unsealer, self._mux.feed
        heard, now = link.liveness.heard, self._reactor.now
        turn_ends = time.perf_counter() + READ_TURN_S
        try:
            for _ in range(READS_A_TURN):
                rest = len(self._rest)
                scratch[:rest] = self._rest
                n = sock.recv_into(scratch[rest:], self._recv_bytes)
                if not n:
                    self._remote_has_ended = True
                    link.fail("the peer closed the connection")
                    return
                heard(now())
                if link.suspect:
                    link.set_suspect(False)
                plaintexts, used = unsealer.open_records(scratch[: rest + n])
                self._rest = bytes(scratch[used : rest + n])
                for plaintext in plaintexts:
                    feed(plaintext)
                if self._turn_is_over(turn_ends) or not link.waiting or self._closed:
                    break
            if link.waiting:  # the others have their turn first; if the socket is empty, no event will tell
                self._reactor.call_later(0.0, self._read)
        except (BlockingIOError, InterruptedError):
            link.was_read_empty()
        except (OSError, ProtocolViolation) as error:
            self._broke(error)

    def _turn_is_over(self, ends: float) -> bool:
        if time.perf_counter() > ends:
            self._recv_bytes = MIN_RECV_BYTES
            return True
        if self._recv_bytes < RECV_BYTES:
            self._recv_bytes *= 2
        return False

    # Out

    def _flush(self) -> None:
        self._flush_queued = False
        sock, link = self.sock, self._link
        if self._unsent is not None or sock is None or self._closed:
            return
        if self._mux.overrun:
            self._broke(ProtocolViolation("the peer makes us answer and does not read"))
            return
        turn = TURN_BYTES
        try:
            while turn > 0:
                sealed = self._seal_records()
                if not sealed:
                    self._want(READ)
                    return
                link.liveness.sent_since_heard = True
                size = len(sealed)
                turn -= size
                try:
                    sent = sock.send(sealed)
                except BlockingIOError:
                    sent = 0
                if sent < size:
                    self._unsent = memoryview(bytes(sealed[sent:]))
                    break
            self._want(READ | WRITE)
        except OSError as error:
            self._broke(error)

    def _seal_records(self) -> memoryview:
        """What is queued, sealed, about SEND_BYTES of it at most; valid until this callback returns."""
        seal_into, next_record, out = self._sealer.seal_into, self._mux.next_record, self._reactor.sealed
        size = 0
        while size < SEND_BYTES:
            record = next_record()
            if record is None:
                break
            size += seal_into(record, out[size:] if size else out)
        return out[:size]

    def _continue(self) -> None:
        """The socket takes more."""
        if self._unsent is not None:
            assert self.sock is not None
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                return
            except OSError as error:
                self._broke(error)
                return
            if sent < len(self._unsent):
                self._unsent = self._unsent[sent:]
                return
            self._unsent = None
        self._flush()

    def _want(self, mask: int) -> None:
        if mask != self._mask and self.sock is not None:
            self._mask = mask
            self._reactor.change(self.sock.fileno(), mask)

    def _broke(self, error: OSError | ProtocolViolation) -> None:
        if isinstance(error, ProtocolViolation):
            self._link.violated(error)
        else:
            if isinstance(error, BrokenPipeError):  # a reset behind the remote's FIN; any other one is ECONNRESET at first
                self._remote_has_ended = True
            self._link.fail(error.strerror or "the connection broke")


class Circuit(Protocol):
    """One end of a circuit: a tunnel on the link to a relay, with what came on it and was not read."""

    via: Link
    channel: Channel

    def take_unread(self) -> tuple[bytes, str | None]:
        """What came and was not read, and why nothing more will come, if so."""


class CircuitCarrier:
    """Records in a tunnel through a relay. It is the tunnel's local end (a Duplex) as soon as it has started."""

    path: Path = "relayed"
    settle_s = SETTLE_S
    local_host = ""

    _mux: Mux

    def __init__(self, link: Link, secured: SecureConn, reactor: Reactor, circuit: Circuit) -> None:
        self.via: Link = circuit.via
        self._circuit = circuit
        self._channel = circuit.channel
        self._link = link
        self._secured = secured
        self._reactor = reactor
        self._sealer, self._unsealer = secured.sealer, secured.unsealer
        self._unsent: memoryview | None = None
        self._flush_queued = False
        self._started = self._closed = False

    @property
    def is_flushed(self) -> bool:
        return self._unsent is None and not self._flush_queued

    async def start(self) -> None:
        if self._closed:
            return
        unread, ended = self._circuit.take_unread()
        self._mux = self._link.mux
        self._channel.other = self
        self._started = True
        self._link.feed(self._secured.pending)
        if unread:
            self.send(unread)
        if ended is not None:
            self.abort(ended)
        if self._link.waiting:
            self.read_until_empty()
        self.wake()

    def delivery(self) -> Delivery | None:
        return None  # the relay's kernel acknowledges

    def let_routers_split(self) -> None:
        """The link to the relay looks after itself."""

    def close(self, *, reset: bool = False) -> None:
        """The link aborts the tunnel when it closes its connection."""
        self._closed = True

    def wake(self) -> None:
        if self._started and not self._flush_queued and self._unsent is None:
            self._flush_queued = True
            self._reactor.flush_soon(self._flush)

    def wake_late(self) -> None:
        if self._started and not self._flush_queued and self._unsent is None:
            self._reactor.flush_late(self._flush)

    def read(self) -> None:
        self.via.read()

    def read_until_empty(self) -> None:
        """When the link to the relay was read empty; what is still on its way at the relay is not known."""
        self.via.read_until_empty(self._link.was_read_empty)

    def _flush(self) -> None:
        self._flush_queued = False
        if self._closed:
            return
        if self._mux.overrun:
            self._link.violated(ProtocolViolation("the peer makes us answer and does not read"))
        channel, next_record, seal = self._channel, self._mux.next_record, self._sealer.seal
        while self._unsent is None and not self._closed and (room := channel.writable()) > 0:
            record = next_record()
            if record is None:
                return
            self._link.liveness.sent_since_heard = True
            sealed = seal(record)
            channel.send(sealed[:room])
            if len(sealed) > room:
                self._unsent = memoryview(sealed)[room:]
                self.resume_writing()

    # Duplex, for the tunnel

    def writable(self) -> int:
        return self._channel.window  # what the tunnel grants is all that bounds it

    def send(self, data: bytes | memoryview) -> None:
        """Sealed bytes from the other end."""
        if self._closed:
            return
        link = self._link
        try:
            plaintexts = self._unsealer.feed(bytes(data))
        except ProtocolViolation as error:
            link.fail(f"{error}, or the relay did")  # who changed the bytes cannot be told: nobody is kept away for it
            return
        link.liveness.heard(self._reactor.now())
        if link.suspect:
            link.set_suspect(False)
        if not link.feed(plaintexts):
            return
        self._channel.acknowledge(len(data))
        if link.waiting and not self._closed:
            self.read_until_empty()

    def send_eof(self) -> None:
        self._link.fail("the peer closed the connection")

    def abort(self, reason: str) -> None:
        self._link.fail(f"the circuit broke: {reason}")

    def acknowledge(self, n: int) -> None:
        """The channel's credit is what paces us."""

    def resume_writing(self) -> None:
        """The tunnel takes bytes again."""
        while self._unsent is not None and (room := self._channel.writable()) > 0:
            self._channel.send(self._unsent[:room])
            self._unsent = self._unsent[room:] if len(self._unsent) > room else None
        if self._unsent is None:
            self.wake()


async def _take_socket(secured: SecureConn) -> socket.socket:
    """The TCP socket under `secured`, as one of our own: a duplicate, so that closing trio's leaves the connection open."""
    raw = secured.raw
    assert isinstance(raw, RawConnection) and isinstance(raw.stream, TrioTCPStream)  # noqa: PT018
    trio_socket = raw.stream.stream.socket
    sock = socket.socket(fileno=os.dup(trio_socket.fileno()))
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    option = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)  # in `socket` on macOS only
    if option is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, NOTSENT_LOWAT)
    await raw.close()
    return sock
