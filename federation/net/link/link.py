"""One peer connection: a mux, the carrier of its records, and its liveness. py-libp2p's swarm sees it as a `MuxedConn`.

What the remote breaks costs it this connection: `fail` ends the link, every channel hears it, the log says why.
"""

from __future__ import annotations

import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import structlog
import trio
from libp2p.abc import IMuxedConn
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from federation.errors import PeerUnavailable, ProtocolViolation
from federation.net.link.carrier import SocketCarrier
from federation.net.link.delivery import FRAGMENT_RETRIES, HOPELESS_RETRIES, SEE_CLOSELY_EVERY_S, SEE_EVERY_S
from federation.net.link.liveness import DEAD_AFTER_S, PING_EVERY_S, Liveness
from federation.net.link.mux import Mux
from federation.net.streams import MuxStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from libp2p.connection_types import ConnectionType
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    from federation.net.link.carrier import Carrier, Path
    from federation.net.link.channel import Channel
    from federation.net.link.handshake import SecureConn
    from federation.net.link.mux import Load, RequestObserver, TunnelObserver
    from federation.reactor.duplex import Duplex
    from federation.reactor.loop import Reactor

log = structlog.get_logger(__name__)

PROTOCOL_ID = "/federation/mux/3"
PROTOCOL_ID_WITHOUT_KEEPING = "/federation/mux/2"  # of nodes that keep no connection of a backend
PROTOCOL_ID_WITHOUT_LOAD = "/federation/mux/1"  # of nodes that tell their load by gossip alone
LOOK_EVERY_S = 0.5  # as often as it does so
WATCH_S = 30  # an entry that picks renews it; one that has no clients any more costs nothing from then on


class LinkEvents(Protocol):
    """What a link tells the host."""

    def tunnel_opened(self, link: Link, channel: Channel, service: str, believed: int) -> None: ...
    def load_told(self, link: Link, others: int) -> None: ...
    def load_watched(self, link: Link, seconds: int) -> None: ...
    def look_wanted(self, link: Link, service: str) -> None: ...
    def link_closed(self, link: Link, reason: str) -> None: ...
    def link_misused(self, link: Link, what: str) -> None:
        """The remote broke the protocol; `link_closed` follows."""

    def link_suspect(self, link: Link) -> None:
        """`link.suspect` changed."""

    def link_stuck(self, link: Link) -> None:
        """What is sent on the link does not arrive, and the remote lives. Told again and again while it is so."""


class Link:
    """The connection to one peer. `rtt_s` is None until the first PONG. `carrier` makes the carrier of this link."""

    def __init__(
        self,
        secured: SecureConn,
        libp2p_id: ID,
        *,
        reactor: Reactor,
        events: LinkEvents,
        carrier: Callable[[Link, SecureConn, Reactor], Carrier] = SocketCarrier,
        load: Load | None = None,
        keeps: bool = False,
    ) -> None:
        """`load`: this node's, for the remote; None where the remote would not understand. `keeps`: see Mux."""
        self.peer_id = str(libp2p_id)
        self.started = trio.Event()
        self.suspect = False  # it owes us a PONG, or is stuck
        self.is_stuck = False  # our bytes do not arrive there, though it lives
        self._see_at = 0.0  # when to ask the kernel about them
        self.retired = False
        self.rtt_s: float | None = None
        # Of the latest four: a moment of load does not make a path long. None after the first, soon behind which `tick` asks
        # for the second.
        self.least_rtt_s: float | None = None
        self._rtts: deque[float] = deque(maxlen=4)
        self.remote_address: tuple[str, int] | None = secured.get_remote_address()
        self.admission_key = secured.admission_key
        self.run = secured.run
        self.waiting: list[Callable[[], None]] = []  # for all that the remote has sent by now to be read
        self.opened_at = trio.current_time()
        self.liveness = Liveness(self.opened_at)
        self.carrier = carrier(self, secured, reactor)
        self.path: Path = self.carrier.path
        self.via_peer_id = "" if self.carrier.via is None else self.carrier.via.peer_id  # the relay's, if there is one
        wake, wake_late = self.carrier.wake, self.carrier.wake_late
        self.mux = Mux(
            initiator=secured.is_initiator,
            handler=self,
            wake=wake,
            wake_late=wake_late,
            load=load,
            entry_id=self.peer_id,
            keeps=keeps,
        )
        self._looks_from = 0.0  # when it may be asked to look at its models again
        self._watching_until = 0.0  # the remote's load: it tells us of changes until then
        self._kept_until = self.opened_at  # though it is retired
        self._secured = secured
        self._reactor = reactor
        self._events = events
        self._incoming_send, self._incoming = trio.open_memory_channel[MuxStream](64)
        self._closed = trio.Event()
        self.muxed_conn = MuxedConn(self, libp2p_id, secured)

    # Tunnels, and reading for those who wait

    def open_tunnel(self, service: str, opener: TunnelObserver, other: Duplex) -> Channel:
        """Raises PeerUnavailable."""
        self._check_open()
        return self.mux.open_tunnel(service, opener, other)

    def open_request(self, service: str, opener: RequestObserver, other: Duplex, believed: int) -> Channel:
        """For `believed` see Mux.open_request. Raises PeerUnavailable."""
        self._check_open()
        return self.mux.open_request(service, opener, other, believed)

    def open_exchange(
        self, service: str, opener: RequestObserver, other: Duplex, believed: int, *, takes_kept: bool
    ) -> Channel:
        """See Mux.open_exchange. Raises PeerUnavailable."""
        self._check_open()
        return self.mux.open_exchange(service, opener, other, believed, takes_kept=takes_kept)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise PeerUnavailable("the connection is closed")

    def watch(self, now: float) -> bool:
        """Have the remote tell its load now and each change of it for WATCH_S; to be called again and again. Returns
        whether the remote has told every change up to now."""
        was_watching = self.is_watching(now)
        if self.mux.tells_load and self._watching_until - now < WATCH_S / 2:
            self._watching_until = now + WATCH_S
            self.mux.watch(WATCH_S)
        return was_watching

    def unwatch(self) -> None:
        if self._watching_until:
            self._watching_until = 0.0
            self.mux.watch(0)

    def look(self, service: str, now: float) -> None:
        """Have the remote ask its backends for their models soon, where it understands that. Now and then, however often
        this is called."""
        if self.mux.tells_load and now >= self._looks_from:
            self._looks_from = now + LOOK_EVERY_S
            self.mux.look(service)

    def is_watching(self, now: float) -> bool:
        return now < self._watching_until

    def when_read_empty(self, callback: Callable[[], None]) -> None:
        """Run `callback` once all that the remote has sent by now was read: an RST right behind an OPEN is seen first."""
        self.waiting.append(callback)

    def read_until_empty(self, callback: Callable[[], None]) -> None:
        """Read everything received so far, then run `callback`, even if nothing new arrives."""
        self.waiting.append(callback)
        self.carrier.read_until_empty()

    def read(self) -> None:
        """Process bytes already received, before silence is taken for a failure. Not to be called from inside a callback."""
        self.carrier.read()

    def retire(self) -> None:
        """A duplicate: no new tunnels, closed as soon as those it carries are done (`tick` looks)."""
        self.retired = True
        self._kept_until = self.liveness.last_tick + self.carrier.settle_s

    def fail(self, reason: str) -> None:
        """End the link now. Idempotent; never raises."""
        if self._closed.is_set():
            return
        self._closed.set()
        known = self.carrier.delivery() if self.mux.tunnels else None
        if known is not None and known.is_certain:
            self.mux.arrived = self.mux.out_bytes - known.unacknowledged
            self.carrier.close(reset=known.unacknowledged > 0)
        else:
            self.carrier.close()
        self.waiting.clear()
        self._incoming_send.close()
        self._reactor.guard(lambda: self.mux.abort(reason))
        self._reactor.guard(lambda: self._events.link_closed(self, reason))

    def tick_safely(self, now: float, ping_every_s: float) -> None:
        """`tick` outside the reactor's guard: a fault of ours ends this link, and not the task that ticks them all."""
        try:
            self.tick(now, ping_every_s)
        except Exception:  # the reactor's rule 3
            log.exception("a link's tick failed", peer=self.peer_id)
            self.fail("a fault of this node")

    def tick(self, now: float, ping_every_s: float = PING_EVERY_S) -> None:
        """To be called a few times a second. After `ping_every_s` of silence one end pings, and that is news to both."""
        if self.retired and now < self._kept_until:
            return
        self.mux.tick()
        step = self.liveness.step(now, ping_every_s, has_tunnels=bool(self.mux.tunnels))
        if not self.mux.tunnels and (self.retired or self.mux.used_up):
            self.fail("a second connection to the same peer" if self.retired else "the connection is used up")
        elif step == "dead":
            self.fail(f"no answer for {DEAD_AFTER_S:g} s")
        elif step == "suspect" and not self.suspect:
            self.read()  # its answer may lie there, and it is we who got no time
            if self.liveness.pinged_at is not None and not self._closed.is_set():
                self.set_suspect(True)
        elif step == "ping" or self.liveness.is_to_ask_again(now) or self._has_one_round_trip:
            self.ping()
        if (self.mux.tunnels or self.is_stuck) and now >= self._see_at:
            self._see_at = now + SEE_EVERY_S
            self._see_what_arrives(now)

    @property
    def _has_one_round_trip(self) -> bool:
        return len(self._rtts) == 1 and self.liveness.pinged_at is None

    def _see_what_arrives(self, now: float) -> None:
        known = self.carrier.delivery()
        if known is None or self._closed.is_set():
            return
        if known.retries:
            self._see_at = now + SEE_CLOSELY_EVERY_S
        if known.retries >= FRAGMENT_RETRIES:
            self.carrier.let_routers_split()
        if self.is_stuck and not known.retries:
            self.is_stuck = False
            self.set_suspect(False)
        elif known.is_stuck:
            if not self.is_stuck:
                self.is_stuck = True
                self.set_suspect(True)
            if known.retries >= HOPELESS_RETRIES:
                self.fail("the peer lives, and what is sent to it does not arrive")
            else:
                self._events.link_stuck(self)

    def ping(self) -> None:
        now = trio.current_time()
        self.liveness.pinged(now)
        self.mux.ping(struct.pack(">d", now))

    async def answers(self, within_s: float) -> bool:
        """Whether the remote says anything from now on, in so many seconds."""
        asked_at = trio.current_time()
        self.ping()
        with trio.move_on_after(within_s):
            while self.liveness.last_heard <= asked_at and not self._closed.is_set():  # noqa: ASYNC110  # the reactor reads
                await trio.sleep(0.02)
        return self.liveness.last_heard > asked_at

    # Mux's handler

    def tunnel_opened(self, channel: Channel, service: str, believed: int) -> None:
        self._events.tunnel_opened(self, channel, service, believed)

    def load_told(self, others: int) -> None:
        self._events.load_told(self, others)

    def watched(self, seconds: int) -> None:
        self._events.load_watched(self, seconds)

    def look_wanted(self, service: str) -> None:
        self._events.look_wanted(self, service)

    def stream_opened(self, channel: Channel) -> None:
        try:
            self._incoming_send.send_nowait(MuxStream(channel, self))
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            channel.abort("too many at once")

    def pong(self, payload: bytes) -> None:
        rtt_s = self.liveness.ponged(struct.unpack(">d", payload)[0], trio.current_time())
        if rtt_s is not None:
            self.rtt_s = rtt_s
            self._rtts.append(rtt_s)
            if len(self._rtts) > 1:
                self.least_rtt_s = min(self._rtts)

    # For the carrier

    def feed(self, plaintexts: Iterable[bytes]) -> bool:
        """Records that arrived. Returns whether they kept the rules; else the link has ended."""
        try:
            for plaintext in plaintexts:
                self.mux.feed(plaintext)
        except ProtocolViolation as error:
            self.violated(error)
            return False
        return True

    def was_read_empty(self) -> None:
        """All that the remote has sent by now was read. After a silence, that holds only behind its PONG."""
        if self.liveness.is_fenced:
            return
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()

    def set_suspect(self, suspect: bool) -> None:
        if suspect != self.suspect and (suspect or not self.is_stuck):
            self.suspect = suspect
            self._events.link_suspect(self)

    def doubt(self) -> None:
        """The peer made another link, and this one has been silent."""
        self.read()  # its word may lie there
        if self.liveness.last_heard < self.liveness.last_tick and not self._closed.is_set():
            self.set_suspect(True)

    def violated(self, error: ProtocolViolation) -> None:
        """The host keeps such a peer away."""
        if not self._closed.is_set():
            self._events.link_misused(self, error.detail)
            self.fail(str(error))

    # For the swarm

    async def start(self) -> None:
        """Run by the swarm until the link ends. What leaves this task ends the swarm, so nothing does."""
        try:
            await self.carrier.start()
        except Exception:  # the reactor's rule 3
            log.exception("a link failed as it started", peer=self.peer_id)
            self.fail("a fault of this node")
        self.started.set()
        await self._closed.wait()
        with suppress(Exception):  # it is over, whatever its stream says
            await self._secured.close()

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
        return self.carrier.is_flushed and self.mux.is_empty

    @property
    def local_host(self) -> str:
        """Our own address on its socket; empty without one."""
        return self.carrier.local_host

    @property
    def is_initiator(self) -> bool:
        return self._secured.is_initiator

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()


class MuxedConn(IMuxedConn):
    """A link as py-libp2p knows it. Its `peer_id` is py-libp2p's object; everywhere else here a `peer_id` is text."""

    def __init__(self, link: Link, libp2p_id: ID, secured: SecureConn) -> None:
        self.link = link
        self.peer_id = libp2p_id
        self.event_started = link.started
        self._addresses = secured.get_transport_addresses()
        self._type = secured.get_connection_type()

    async def start(self) -> None:
        await self.link.start()

    async def close(self) -> None:
        self.link.fail("closed")

    async def open_stream(self) -> MuxStream:
        return await self.link.open_stream()

    async def accept_stream(self) -> MuxStream:
        return await self.link.accept_stream()

    @property
    def is_initiator(self) -> bool:
        return self.link.is_initiator

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set()

    @property
    def is_closed(self) -> bool:
        return self.link.is_closed

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self._addresses

    def get_connection_type(self) -> ConnectionType:
        return self._type

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.link.remote_address


async def talk(link: Link, say: Callable[[Link], Awaitable[None]]) -> None:
    """`say(link)`, as a task beside others: a fault of ours in it ends the link, and not whoever started the task."""
    try:
        await say(link)
    except Exception:  # the reactor's rule 3
        log.exception("a talk with a peer failed", peer=link.peer_id)
        link.fail("a fault of this node")
