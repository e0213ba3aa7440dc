"""One peer connection: a Mux on a socket of the reactor, or, where there is no socket of its own (a relayed
connection), on async reads and writes. libp2p's swarm sees it as its muxed connection.

The reactor's callback is the only one that writes to the socket, so nobody's cancellation can cut a record in half.
What the remote breaks costs it this connection: `fail` ends the link, every channel hears it, the log says why.

Liveness: a peer that owes a tunnel an answer for PING_AFTER_S, or was silent for `ping_interval`, gets a PING; one that does
not answer it for SUSPECT_AFTER_S is suspect (nobody is sent there), and for DEAD_AFTER_S the link is closed. Anything that
arrives proves that it lives.

After such a silence what comes first may be old: the network was cut, and TCP brings what was lost bit by bit. An OPEN may
be one that its entry has given up since, with the RST still on its way. So nothing is dialled before the PONG, which the
remote sends behind all of that.

Longer than our other modules: the two ways to drive a mux, and libp2p's names for it, are kept side by side.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Protocol

import structlog
import trio
from libp2p.abc import IMuxedConn
from libp2p.io.exceptions import IOException
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from federation.errors import PeerUnavailable, ProtocolViolation
from federation.net.link.mux import Mux
from federation.net.streams import MuxStream
from federation.reactor.loop import READ, WRITE, Reactor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from libp2p.connection_types import ConnectionType
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    from federation.net.link.handshake import SecureConn
    from federation.net.link.mux import Channel, Opener
    from federation.reactor.duplex import Duplex

log = structlog.get_logger(__name__)

PROTOCOL_ID = "/federation/mux/1"

RECV_BYTES = 256 * 1024
TURN_BYTES = 512 * 1024  # sent, then the other sockets have their turn
SEND_BYTES = 128 * 1024  # sealed for one send: a system call costs as much as sealing 16 KiB
DRAIN_ROUNDS = 16
# What one read may take of the thread; a remote whose bytes are all tiny frames is read in smaller pieces instead.
READ_TURN_S = 0.01
MIN_RECV_BYTES = 16 * 1024
NOTSENT_LOWAT = 128 * 1024  # what waits in the kernel behind what is in flight: a chunk queued now overtakes no more
PING_AFTER_S = 0.5
PING_EVERY_S = 2.0  # of silence: a peer that hangs is mostly found before a client is sent there
PING_S_A_LINK = 0.06  # 33 bytes each way: PINGs take 1.1 kB/s at most, in and out together, however many links there are
RTT_INTERVALS = 8  # the end that is pinged measures its own round trip now and then
SUSPECT_AFTER_S = 1.5
DEAD_AFTER_S = 15.0
LATE_TICK_S = 2.0  # our own process slept: silence until now proves nothing about others


Path = Literal["direct", "punched", "relayed"]


def ping_interval(links: int) -> float:
    """Seconds of silence after which a node with so many links pings one."""
    return max(PING_EVERY_S, PING_S_A_LINK * links)


class LinkEvents(Protocol):
    """What a link tells the host."""

    def tunnel_opened(self, link: Link, channel: Channel, service: str) -> None: ...
    def link_closed(self, link: Link, reason: str) -> None: ...
    def link_misused(self, link: Link, what: str) -> None:
        """The remote broke the protocol; `link_closed` follows."""

    def link_suspect(self, link: Link) -> None:
        """`link.suspect` changed."""


class Link(IMuxedConn):
    """`peer` is the libp2p id as text. `rtt_s` is None until the first PONG. `path`: direct, punched or relayed."""

    path: Path = "direct"
    via_peer = ""  # the relay, if there is one

    def __init__(self, secured: SecureConn, peer_id: ID, *, reactor: Reactor, events: LinkEvents) -> None:
        self.peer_id = peer_id
        self.peer = str(peer_id)
        self.event_started = trio.Event()
        self.mux = Mux(initiator=secured.is_initiator, handler=self, wake=self._wake, wake_late=self._wake_late)
        self.remote_address = secured.get_remote_address()
        self.admission_key = secured.admission_key
        self.suspect = False
        self.retired = False
        self.rtt_s: float | None = None
        self.least_rtt_s: float | None = None  # of the latest: a moment of load does not make a path long
        self._rtts: deque[float] = deque(maxlen=4)
        self.local_host = ""  # our own address on its socket; empty without one
        now = trio.current_time()
        self.opened_at = self.last_heard = self._last_ping = self._last_tick = now
        self._pinged_at: float | None = None
        self._awaited: float | None = None  # the PONG behind which nothing old can come any more
        self._sent_since_heard = False
        self._secured = secured
        self._addresses = secured.get_transport_addresses()
        self._type = secured.get_connection_type()
        self._reactor = reactor
        self._events = events
        self._sealer, self._unsealer = secured.sealer, secured.unsealer
        self._sock: socket.socket | None = None
        self._recv_bytes = MIN_RECV_BYTES
        self._rest = b""
        self._unsent: memoryview | None = None
        self._flush_queued = False
        self._mask = READ
        self._drained: list[Callable[[], None]] = []
        self._incoming_send, self._incoming = trio.open_memory_channel[MuxStream](64)
        self._woken = trio.Event()  # without a socket: the writer task waits on it
        self._closed = trio.Event()

    # What the forwarder uses

    def open_tunnel(self, service: str, opener: Opener, other: Duplex) -> Channel:
        """Raises PeerUnavailable."""
        if self._closed.is_set():
            raise PeerUnavailable("the connection is closed")
        return self.mux.open_tunnel(service, opener, other)

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Run `callback` once all that the remote has sent by now was read: an RST right behind an OPEN is seen first."""
        self._drained.append(callback)

    def drain(self, callback: Callable[[], None]) -> None:
        """The same, and read now: nothing need come for `callback` to run. Without a socket, what was read by now counts."""
        self.when_drained(callback)
        self._reactor.flush_soon(self._read if self._sock is not None else self._run_drained)

    def read(self) -> None:
        """What has arrived, now: for who is about to conclude something from silence. Not from inside a callback."""
        if self._sock is not None:
            self._read()

    def _run_drained(self) -> None:
        if self._awaited is not None:
            return
        drained, self._drained = self._drained, []
        for callback in drained:
            callback()

    def retire(self) -> None:
        """A duplicate: no new tunnels, closed as soon as those it carries are done (`tick` looks)."""
        self.retired = True

    def fail(self, reason: str) -> None:
        """End the link now. Idempotent; never raises."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._sock is not None:
            self._reactor.drop(self._sock.fileno())
            self._sock.close()
        self._drained.clear()
        self._incoming_send.close()
        self._woken.set()
        self._reactor.guard(lambda: self.mux.abort(reason))
        self._reactor.guard(lambda: self._events.link_closed(self, reason))

    def tick_safely(self, now: float, ping_every_s: float) -> None:
        """`tick` outside the reactor's guard: a fault of ours ends this link, and not the task that ticks them all."""
        try:
            self.tick(now, ping_every_s)
        except Exception:  # the reactor's rule 3
            log.exception("a link's tick failed", peer=self.peer)
            self.fail("a fault of this node")

    def tick(self, now: float, ping_every_s: float = PING_EVERY_S) -> None:
        """To be called a few times a second. After `ping_every_s` of silence one end pings, and that is news to both."""
        self.mux.tick()
        late, self._last_tick = now - self._last_tick > LATE_TICK_S, now
        if not self.mux.tunnels and (self.retired or self.mux.used_up):
            self.fail("a second connection to the same peer" if self.retired else "the connection is used up")
        elif self._pinged_at is not None:
            if late:
                self._pinged_at = now
            elif now - self._pinged_at > DEAD_AFTER_S:
                self.fail(f"no answer for {DEAD_AFTER_S:g} s")
            elif now - self._pinged_at > SUSPECT_AFTER_S and not self.suspect:
                self.read()  # its answer may lie there, and it is we who got no time
                if self._pinged_at is not None and not self._closed.is_set():
                    self.suspect = True
                    self._events.link_suspect(self)
        elif (
            (self.mux.tunnels and self._sent_since_heard and now - self.last_heard > PING_AFTER_S)
            or now - max(self.last_heard, self._last_ping) > ping_every_s
            or now - self._last_ping > RTT_INTERVALS * ping_every_s
        ):
            self.ping()

    def ping(self) -> None:
        now = trio.current_time()
        self._last_ping = now
        if self._pinged_at is None:
            self._pinged_at = now
        self.mux.ping(struct.pack(">d", now))

    # Mux's handler

    def tunnel_opened(self, channel: Channel, service: str) -> None:
        self._events.tunnel_opened(self, channel, service)

    def stream_opened(self, channel: Channel) -> None:
        try:
            self._incoming_send.send_nowait(MuxStream(channel, self))
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            channel.abort("too many at once")

    def pong(self, payload: bytes) -> None:
        sent = struct.unpack(">d", payload)[0]
        if sent == self._awaited:
            self._awaited = None
        if sent == self._last_ping:
            self.rtt_s = trio.current_time() - sent
            self._rtts.append(self.rtt_s)
            self.least_rtt_s = min(self._rtts)

    # The socket

    def _wake(self) -> None:
        if self._sock is None:
            self._woken.set()
        elif not self._flush_queued and self._unsent is None:
            self._flush_queued = True
            self._reactor.flush_soon(self._flush)

    def _wake_late(self) -> None:
        if self._sock is None:
            self._woken.set()
        elif not self._flush_queued and self._unsent is None:
            self._reactor.flush_late(self._flush)

    def _on_events(self, mask: int) -> None:
        if mask & WRITE:
            self._continue()
        if mask & ~WRITE and not self._closed.is_set():
            self._read()

    def _read(self) -> None:
        sock, scratch, unsealer, feed = self._sock, self._reactor.scratch, self._unsealer, self.mux.feed
        if sock is None or self._closed.is_set():
            return
        turn_ends = time.perf_counter() + READ_TURN_S
        try:
            for _ in range(DRAIN_ROUNDS):
                rest = len(self._rest)
                scratch[:rest] = self._rest
                n = sock.recv_into(scratch[rest:], self._recv_bytes)
                if not n:
                    self.fail("the peer closed the connection")
                    return
                self._heard()
                plaintexts, used = unsealer.open_records(scratch[: rest + n])
                self._rest = bytes(scratch[used : rest + n])
                for plaintext in plaintexts:
                    feed(plaintext)
                if self._turn_is_over(turn_ends) or not self._drained or self._closed.is_set():
                    break
            if self._drained:  # the others have their turn first; if the socket is empty, no event will tell
                self._reactor.call_later(0.0, self._read)
        except (BlockingIOError, InterruptedError):
            self._run_drained()
        except OSError as error:
            self.fail(error.strerror or "the connection broke")
        except ProtocolViolation as error:
            self._violated(error)

    def _turn_is_over(self, ends: float) -> bool:
        if time.perf_counter() > ends:
            self._recv_bytes = MIN_RECV_BYTES
            return True
        if self._recv_bytes < RECV_BYTES:
            self._recv_bytes *= 2
        return False

    def _heard(self) -> None:
        self.last_heard = self._reactor.now()
        self._sent_since_heard = False
        if self._pinged_at is not None:
            self._pinged_at, self._awaited = None, self._last_ping
        if self.suspect:
            self.suspect = False
            self._events.link_suspect(self)

    def _flush(self) -> None:
        self._flush_queued = False
        sock = self._sock
        if self._unsent is not None or sock is None or self._closed.is_set():
            return
        if self.mux.overrun:
            self._violated(ProtocolViolation("the peer makes us answer and does not read"))
            return
        turn = TURN_BYTES
        try:
            while turn > 0:
                sealed = self._seal_records()
                if not sealed:
                    self._want(READ)
                    return
                self._sent_since_heard = True
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
            self.fail(error.strerror or "the connection broke")

    def _seal_records(self) -> memoryview:
        """What is queued, sealed, about SEND_BYTES of it at most; valid until this callback returns."""
        seal_into, next_record, out = self._sealer.seal_into, self.mux.next_record, self._reactor.sealed
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
            assert self._sock is not None
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                return
            except OSError as error:
                self.fail(error.strerror or "the connection broke")
                return
            if sent < len(self._unsent):
                self._unsent = self._unsent[sent:]
                return
            self._unsent = None
        self._flush()

    def _want(self, mask: int) -> None:
        if mask != self._mask and self._sock is not None:
            self._mask = mask
            self._reactor.change(self._sock.fileno(), mask)

    def _violated(self, error: ProtocolViolation) -> None:
        """The host keeps such a peer away."""
        if not self._closed.is_set():
            self._events.link_misused(self, error.detail)
            self.fail(str(error))

    # Without a socket of our own

    async def _run_async(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_records)
            nursery.start_soon(self._read_records)
            await self._closed.wait()
            nursery.cancel_scope.cancel()

    async def _read_records(self) -> None:
        pending = self._secured.pending
        try:
            while not self._closed.is_set():
                while pending:
                    self.mux.feed(pending.popleft())
                self._run_drained()
                await self._secured.read_records()
                self._heard()
        except ProtocolViolation as error:
            self._violated(error)
        except (IOException, OSError) as error:
            self.fail(str(error) or "the connection broke")

    async def _write_records(self) -> None:
        try:
            while True:
                record = self.mux.next_record()
                if self.mux.overrun:
                    raise ProtocolViolation("the peer makes us answer and does not read")
                if record is None:
                    self._woken = trio.Event()
                    await self._woken.wait()
                else:
                    self._sent_since_heard = True
                    await self._secured.raw.write(self._sealer.seal(record))
        except ProtocolViolation as error:
            self._violated(error)
        except (IOException, OSError) as error:
            self.fail(str(error) or "the connection broke")

    # libp2p's muxed connection

    async def start(self) -> None:
        """Run by the swarm until the link ends. What leaves this task ends the swarm, so nothing does."""
        try:
            await self._start()
        except Exception:  # the reactor's rule 3
            log.exception("a link failed as it started", peer=self.peer)
            self.fail("a fault of this node")
        self.event_started.set()
        await self._closed.wait()
        with suppress(Exception):  # it is over, whatever its stream says
            await self._secured.close()

    async def _start(self) -> None:
        if self._closed.is_set():
            return
        try:
            sock = await _take_socket(self._secured)
        except OSError as error:  # no descriptor left
            self.fail(error.strerror or "the connection broke")
            return
        if self._closed.is_set():  # failed meanwhile
            if sock is not None:
                sock.close()
        elif sock is None:
            self.event_started.set()
            await self._run_async()
        else:
            self._start_on(sock)

    def _start_on(self, sock: socket.socket) -> None:
        self._sock = sock
        self.local_host = sock.getsockname()[0]
        self._rest = self._unsealer.rest
        self._reactor.add(sock.fileno(), READ, self._on_events)
        try:
            for plaintext in self._secured.pending:  # came right behind the muxer's negotiation
                self.mux.feed(plaintext)
        except ProtocolViolation as error:
            self._violated(error)
        if self._drained:
            self._read()  # an OPEN was among it: nothing else may come until it is answered
        self._wake()

    async def close(self) -> None:
        self.fail("closed")

    async def open_stream(self) -> MuxStream:
        try:
            return MuxStream(self.mux.open_stream(), self)
        except PeerUnavailable as error:
            raise MuxedConnUnavailable(str(error)) from error

    async def accept_stream(self) -> MuxStream:
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("the connection is closed") from None

    @property
    def is_flushed(self) -> bool:
        return self._unsent is None and not self._flush_queued and self.mux.is_empty

    @property
    def is_initiator(self) -> bool:
        return self._secured.is_initiator

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self._addresses

    def get_connection_type(self) -> ConnectionType:
        return self._type

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.remote_address


async def talk(link: Link, say: Callable[[Link], Awaitable[None]]) -> None:
    """`say(link)`, as a task beside others: a fault of ours in it ends the link, and not whoever started the task."""
    try:
        await say(link)
    except Exception:  # the reactor's rule 3
        log.exception("a talk with a peer failed", peer=link.peer)
        link.fail("a fault of this node")


async def _take_socket(secured: SecureConn) -> socket.socket | None:
    """The TCP socket under `secured`, as one of our own: a duplicate, so that closing trio's leaves the connection open."""
    raw = secured.raw
    if not isinstance(raw, RawConnection) or not isinstance(raw.stream, TrioTCPStream):
        return None
    trio_socket = raw.stream.stream.socket
    sock = socket.socket(fileno=os.dup(trio_socket.fileno()))
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    option = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)  # in `socket` on macOS only
    if option is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, NOTSENT_LOWAT)
    await raw.close()
    return sock
