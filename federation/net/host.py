"""The hardened libp2p host: only our security, only our muxer, our own listener, dialler, limits and redial loop.

py-libp2p's swarm is left what it does well: it negotiates streams and notifies pubsub. It never dials, never listens,
never prunes and never counts; py-libp2p 0.8.1 has a trap in each of these (the letters below are those of
docs/architecture.md).

Two nodes that dial each other at once have two links. Both sides keep the one that the lower peer id dialled, and retire
the other (N). If the one to keep has been silent for STALE_S, the new one wins: the old one is a machine that is gone. And
who dials us though we have had a link for long has lost that link: it is closed at once, with all that hangs on it.

Longer than our other modules: all that stands between us and the swarm is here, and nowhere else.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections import Counter, deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog
import trio
from libp2p import new_swarm
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service

from federation.errors import (
    AnotherPeer,
    BannedByPeer,
    FederationError,
    HandshakeFailed,
    ListenFailed,
    PeerBanned,
    PeerUnavailable,
    TokenOutdated,
    TokenRefused,
    TokenRetired,
    listen_problem,
)
from federation.net import link as mux_link
from federation.net import noise
from federation.net.circuit import CircuitConn, CircuitLink, open_circuit
from federation.net.dialler import Ourselves, Race, share_port
from federation.net.link import Link, Path
from federation.net.relay import CIRCUIT, RELAY, RESERVE, End, Relay, RelayLimits
from federation.net.streams import MuxStream, TrioStream
from federation.pace import Bucket, Buckets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from libp2p.abc import INetConn, INetStream, IRawConnection
    from libp2p.custom_types import TProtocol

    from federation.net.addresses import AddressBook, PeerAddress, Target
    from federation.net.mux import Channel
    from federation.reactor import Reactor
    from federation.values import HostPort

log = structlog.get_logger(__name__)

UPGRADE_TIMEOUT_S = 5.0  # from accept to an admitted, multiplexed connection; a stranger holds a slot no longer
MAX_HANDSHAKES = 128  # at once; strangers beyond that are hung up on
MAX_HANDSHAKES_PER_ADDRESS = 32
MAX_UPGRADE_BYTES = 256 * 1024  # from a member behind that: a few records may follow the muxer's negotiation at once
PATIENCE_S = 1.0  # while handshakes are all taken, one that lasts longer gives way to a newcomer
# Connects from one address: a site whose hundred machines restart behind one NAT is let in at once; who goes on like that
# costs us a tenth of a core at most. IPv6 addresses count by the /64 that one machine has to itself.
ACCEPT_RATE = 20.0  # a second
ACCEPT_BURST = 256.0
MAX_PACED_ADDRESSES = 4096
MAX_LINKS = 4096
MAX_SEEN = 256
BACKLOG = 256
EMFILE_PAUSE_S = 0.1
DIAL_TIMEOUT_S = 5.0  # one address, up to the admitted connection
MAX_DIALS = 16
# Peers of whom we only heard may be inventions, by the thousand: they keep no known one waiting, and no line busy.
HEARSAY_A_SECOND, HEARSAY_AT_ONCE = 20.0, 500.0
HEARSAY_PAUSE_S = 0.25
TICK_S = 0.25
STALE_S = 2.0
# Nobody dials a peer that it has a link to. Who does so when the link is this old, longer than any dial takes, has lost it:
# its machine moved or was cut off, and what we send on the old link nobody hears.
LOST_S = 30.0
# A peer that breaks the rules is kept away this long, twice as long each time again. It forgets after FORGIVE_S, and so
# do we: a fault of ours must not part two nodes for good.
KEEP_AWAY_S = 5.0
KEEP_AWAY_MAX_S = 600.0
FORGIVE_S = 3600.0
MAX_OFFENDERS = 1024
COMPLAIN_EVERY_S = 10.0  # the same complaint about strangers is logged at most so often,
REMIND_EVERY_S = 3600.0  # and that of what a person knows and has to see to: a peer that is banned, a token that is old
REFUSALS_KEPT = 64  # for `federation doctor`
MAX_COMPLAINTS = 1000  # and this many different ones in that time


class HostEvents(Protocol):
    """What the host tells the node."""

    def tunnel_opened(self, link: Link, channel: Channel, service: str) -> None: ...
    def peer_up(self, link: Link) -> None: ...
    def peer_down(self, peer: str, reason: str) -> None: ...
    def peer_suspect(self, link: Link) -> None: ...


class Host:
    """Our end of the peer-to-peer network. `links` has the one live link of each connected peer, by peer id."""

    def __init__(
        self,
        *,
        seed: bytes,
        reactor: Reactor,
        events: HostEvents,
        book: AddressBook,
        admission_keys: Callable[[], Sequence[bytes]],
        retired_keys: Callable[[], Sequence[bytes]] = tuple,
        is_banned: Callable[[str], bool] = lambda _peer: False,
        relay: RelayLimits | None = None,
    ) -> None:
        """Of the last three, see `noise.TokenNoise`. When what they say changes, links that are there stay: see `cut`."""
        self._reactor = reactor
        self._events = events
        self.book = book
        self.links: dict[str, Link] = {}
        self._retired: set[Link] = set()  # duplicates that still carry tunnels
        self.rejected: Counter[str] = Counter()  # connections that did not become links, by reason
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS_KEPT)
        self.not_reached: dict[str, str] = {}  # peer, or address, that was dialled in vain last time: why
        self.relay = Relay(reactor, self.links, relay, self.complain)
        self.routes: Callable[[str], Sequence[str]] = lambda _peer: ()  # the relays through which a peer is reached
        self._routes_changed = trio.Event()
        self.seen_from: dict[bytes, tuple[str, int]] = {}  # where members' latest connections came from, by handshake
        self._services: dict[str, Callable[[Link, Channel, str], None]] = {
            RESERVE: self.relay.reserve,
            RELAY: self.relay.connect,
            CIRCUIT: self._circuit_opened,
        }
        key_pair = create_new_key_pair(seed)
        self._admission_keys, self._is_banned = admission_keys, is_banned
        security = {
            protocol: noise.TokenNoise(key_pair, admission_keys, retired_keys=retired_keys, is_banned=is_banned, aead=aead)
            for protocol, aead in noise.protocols().items()
        }
        self.token_retired_at: float | None = None  # when a member last said that our token is no longer valid
        self.swarm = new_swarm(
            key_pair=key_pair,
            sec_opt=security,  # type: ignore[arg-type]
            muxer_opt={mux_link.PROTOCOL_ID: self._new_link},  # type: ignore[dict-item]
            connection_config=ConnectionConfig(
                max_connections=10**9, min_connections=0, low_watermark=0, high_watermark=1,
                max_connections_per_peer=8, grace_period=1e12, auto_connect_interval=1e9,
            ),  # B, I: it wants half of the high watermark, nothing, and prunes what is older than the grace period
        )  # fmt: skip
        self.swarm.set_resource_manager(None)  # type: ignore[attr-defined]
        self.swarm._select_connection = self._select_connection  # type: ignore[attr-defined]
        self.libp2p = BasicHost(network=self.swarm)
        self.swarm.notifees.clear()  # type: ignore[attr-defined]  # tag store and automatic identify: nothing here reads them
        self.swarm.set_stream_handler(_never_raises(self.swarm.common_stream_handler))  # type: ignore[attr-defined]  # A
        self.peer_id = str(self.swarm.get_peer_id())
        self._listeners: list[trio.SocketListener] = []
        self._handshakes: Counter[str] = Counter()
        self._strangers: dict[str, dict[trio.CancelScope, None]] = {}  # in handshakes, by address, the oldest first
        self._offenders: dict[str, _Offender] = {}
        self._paces: Buckets[str] = Buckets(ACCEPT_RATE, ACCEPT_BURST, max_keys=MAX_PACED_ADDRESSES)
        self._dials = trio.CapacityLimiter(MAX_DIALS)
        self._hearsay_dials = trio.CapacityLimiter(MAX_DIALS)
        self._hearsay = Bucket(HEARSAY_A_SECOND, HEARSAY_AT_ONCE)
        self._look = trio.Event()  # the redial loop should look at the book
        self._complained: dict[tuple[str, str], float] = {}
        self._nursery: trio.Nursery | None = None

    # Listening

    async def listen(self, address: HostPort) -> HostPort:
        """Bind the p2p port; 0.0.0.0 takes IPv6 along where there is any. Returns what was bound. Raises ListenFailed."""
        port = address.port
        hosts = ["0.0.0.0", "::"] if address.is_wildcard else [address.host]
        for host in hosts:
            try:
                listener = await _bind(host, port)
            except OSError as error:
                if host == "::" and self._listeners and error.errno != errno.EADDRINUSE:
                    break  # a machine without IPv6
                await self.stop_listening()
                raise ListenFailed(listen_problem("peers", str(address), "--p2p-listen", error)) from error
            port = listener.socket.getsockname()[1]
            self._listeners.append(listener)
        return type(address)(address.host, port)

    async def stop_listening(self) -> None:
        for listener in self._listeners:
            await listener.aclose()
        self._listeners.clear()

    # Running

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bind first. Serves and redials until left; then every link and every listener is closed."""
        async with background_trio_service(self.swarm), trio.open_nursery() as nursery:
            self._nursery = nursery
            for listener in self._listeners:
                nursery.start_soon(self._accept, listener)
            nursery.start_soon(self._redial)
            nursery.start_soon(self._tick)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                for listener in self._listeners:
                    listener.socket.close()
                for link in [*self._retired, *self.links.values()]:
                    link.fail("this node stops")  # L: the swarm's own end would leak them

    async def flushed(self, timeout_s: float) -> None:
        """Wait until what is queued on the links has gone to the kernel, `timeout_s` at most."""
        with trio.move_on_after(timeout_s):
            while any(not link.is_flushed for link in self.links.values()):  # noqa: ASYNC110  # the reactor sends
                await trio.sleep(0.01)

    def routes_changed(self) -> None:
        """There may be a relay to somebody who is being dialled."""
        self._routes_changed.set()
        self._routes_changed = trio.Event()

    def look_at_book(self) -> None:
        """There may be something new to dial."""
        self._look.set()

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            ping_every_s = mux_link.ping_interval(len(self.links))
            for link in [*self.links.values(), *self._retired]:
                link.tick(now, ping_every_s)
            if any(now - TICK_S <= offender.until < now for offender in self._offenders.values()):
                self.look_at_book()

    # Inbound

    async def _accept(self, listener: trio.SocketListener) -> None:
        assert self._nursery is not None
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.complain("no descriptor left for a peer; accepting pauses", "ulimit -n")
                    await trio.sleep(EMFILE_PAUSE_S)
                continue
            except trio.ClosedResourceError:
                return
            try:
                host = stream.socket.getpeername()[0]
            except OSError:  # gone already
                await trio.aclose_forcefully(stream)
                continue
            if not self._paces.of(_machine_of(host)).take(trio.current_time()):
                self.rejected["too often"] += 1
                self.complain("too many connections from one address; some are refused", host)
                await trio.aclose_forcefully(stream)
                continue
            if len(self.links) >= MAX_LINKS or not self._has_room_for(host):
                self.rejected["too many"] += 1
                await trio.aclose_forcefully(stream)
                continue
            self._handshakes[host] += 1
            self._nursery.start_soon(self._admit, tcp_connection(stream, initiator=False), host)

    def _has_room_for(self, host: str) -> bool:
        """Whether one more handshake may begin; if need be the slowest, of this address or of the busiest one, is ended."""
        if self._handshakes[host] < MAX_HANDSHAKES_PER_ADDRESS:
            if self._handshakes.total() < MAX_HANDSHAKES:
                return True
            host = max(self._strangers, key=lambda address: len(self._strangers[address]), default=host)
        slowest = next(iter(self._strangers.get(host, ())), None)
        if slowest is None or slowest.deadline - trio.current_time() > UPGRADE_TIMEOUT_S - PATIENCE_S:
            return False
        del self._strangers[host][slowest]  # here already, so that the next newcomer does not count on it as well
        slowest.cancel()
        return True

    def _circuit_opened(self, via: Link, channel: Channel, source: str) -> None:
        """Somebody reaches us through a relay; who it is the handshake tells."""
        conn = CircuitConn(via, channel, initiator=False)
        where = f"relay {via.peer}"
        if self._nursery is None or not self._has_room_for(where):
            self.rejected["too many"] += 1
            channel.refuse("too many at once")
            return
        channel.accept()
        self._handshakes[where] += 1
        self._nursery.start_soon(self._admit, conn, where)

    async def _admit(self, raw: IRawConnection, host: str) -> None:
        """An inbound connection, from anybody. Whatever it does costs it this connection and us UPGRADE_TIMEOUT_S."""
        strangers = self._strangers.setdefault(host, {})
        try:
            with trio.fail_after(UPGRADE_TIMEOUT_S) as scope:
                strangers[scope] = None
                await self.upgrade(raw, None)
        except (Ourselves, _KeptAway, _HungUp):
            pass  # the dialling side notes it; we have complained before; a member only wanted to know whether we are here
        except trio.TooSlowError:
            self.rejected["too slow"] += 1
            self.complain("a connection did not finish its handshake in time", host)
        except FederationError as error:
            self._note_refusal(error, host)
        except Exception as error:  # noqa: BLE001  # a stranger's bytes meet all of py-libp2p here: none of it may end us
            self.rejected["handshake"] += 1
            self.complain("a connection that is not a member's was refused", host, why=type(error).__name__)
        finally:
            strangers.pop(scope, None)
            if not strangers and self._strangers.get(host) is strangers:
                del self._strangers[host]
            self._handshakes[host] -= 1
            if not self._handshakes[host]:
                del self._handshakes[host]

    def _note_refusal(self, error: FederationError, host: str) -> None:
        if isinstance(error, TokenRetired):
            self._token_is_retired(error)
        elif isinstance(error, TokenOutdated):
            self.rejected["old token"] += 1
            self.complain("a node was refused: its token is from before the rotation", error.detail, REMIND_EVERY_S)
        elif isinstance(error, TokenRefused):
            self.rejected["other token"] += 1
            self.complain("a node with another token, or none, was refused", host)
        elif isinstance(error, PeerBanned):
            self.rejected["banned"] += 1
            self.complain("a banned peer was refused", error.detail, REMIND_EVERY_S)
        else:
            self.rejected["handshake"] += 1
            self.complain("a connection that is not a member's was refused", host, why=error.detail)

    async def upgrade(self, raw: IRawConnection, peer_id: ID | None, *, path: Path | None = None) -> Link:
        """Handshake, proof of the token, muxer. `raw` is closed if any of it fails. Raises HandshakeFailed and more."""
        upgrader = self.swarm.upgrader  # type: ignore[attr-defined]
        try:
            secured = await self._secure(raw, peer_id)
            remote = secured.get_remote_peer()
            if self._keeps_away(str(remote), trio.current_time()):
                raise _KeptAway
            if peer_id is not None and remote != peer_id:
                raise PeerUnavailable("another peer answers there")
            _ration(raw, MAX_UPGRADE_BYTES)
            try:
                link: Link = await upgrader.upgrade_connection(secured, remote)
            except Exception as error:
                if not raw.is_initiator and noise.is_end(error):
                    raise _HungUp from None
                raise
        except BaseException:
            await _close_now(raw)
            raise
        if path is not None:
            link.path = path
        try:
            await self.swarm.add_conn(link, direction="outbound" if raw.is_initiator else "inbound")  # type: ignore[attr-defined]
        except BaseException:
            link.fail("given up while starting")
            raise
        if self._is_banned(link.peer) or link.admission_key not in self._admission_keys():
            link.fail("no longer admitted")  # banned, or the token retired, while it was starting
            raise HandshakeFailed("no longer admitted")
        self._settle(link, dialled=path is None)
        return link

    async def _secure(self, raw: IRawConnection, peer_id: ID | None) -> noise.SecureConn:
        security = self.swarm.upgrader.security_multistream  # type: ignore[attr-defined]
        if raw.is_initiator:
            secured: noise.SecureConn = await security.secure_outbound(raw, peer_id)
        else:
            secured = await security.secure_inbound(raw)
        remote = str(secured.get_remote_peer())
        if remote == self.peer_id:
            raise Ourselves
        address = raw.get_remote_address()
        if address is not None and not raw.is_initiator:
            self.seen_from[secured.digest] = address
            if len(self.seen_from) > MAX_SEEN:
                del self.seen_from[next(iter(self.seen_from))]
        return secured

    async def probe(self, stream: trio.SocketStream, peer_id: str) -> bytes:
        """Is it this member who answers there? Then hang up; the handshake's hash. Raises as `upgrade` does."""
        raw = tcp_connection(stream, initiator=True)
        try:
            return (await self._secure(raw, ID.from_base58(peer_id))).digest
        finally:
            await _close_now(raw)

    def _new_link(self, secured: noise.SecureConn, peer_id: ID) -> Link:
        if isinstance(secured.raw, CircuitConn):
            return CircuitLink(secured.raw, secured, peer_id, reactor=self._reactor, events=self)
        return Link(secured, peer_id, reactor=self._reactor, events=self)

    # Links

    def _settle(self, link: Link, *, dialled: bool = True) -> None:
        """Take the link as the peer's, unless a better one is there (N). `dialled`: not punched beside a relayed one."""
        if link.is_closed:
            return
        known = self.links.get(link.peer)
        if known is not None and dialled and not link.is_initiator and link.opened_at - known.opened_at > LOST_S:
            known.fail("the peer has lost this connection: it made a new one")
            known = self.links.get(link.peer)
        if known is None or known.is_closed:
            self.links[link.peer] = link
            if not link.is_initiator:
                self.book.dialled_us(link.peer, trio.current_time())
                self.look_at_book()
            self._events.peer_up(link)
            return
        now = trio.current_time()
        if (link.path == "relayed") != (known.path == "relayed"):
            is_better = known.path == "relayed"
        else:
            is_better = link.is_initiator == known.is_initiator or link.is_initiator == (self.peer_id < link.peer)
        if is_better or now - known.last_heard > STALE_S:
            self.links[link.peer] = link
            self._retire(known)
            self._events.peer_up(link)
        else:
            self._retire(link)

    def _retire(self, link: Link) -> None:
        self._retired.add(link)
        link.retire()

    def cut(self, peer: str, reason: str) -> None:
        """Close every link with the peer now. It may come back unless it is banned or its token is not valid."""
        spares = [link for link in self._retired if link.peer == peer]
        for link in [*spares, *filter(None, [self.links.get(peer)])]:
            link.fail(reason)

    def tunnel_opened(self, link: Link, channel: Channel, service: str) -> None:
        if not service.startswith("/"):
            self._events.tunnel_opened(link, channel, service)
            return
        name, _, rest = service[1:].partition("/")
        version, _, rest = rest.partition("/")
        serve = self._services.get(f"/{name}/{version}", _refuse)
        serve(link, channel, rest)

    def link_misused(self, link: Link, what: str) -> None:
        self.offended(link.peer, what)

    def offended(self, peer: str, what: str) -> None:
        """This member did what no honest one does: it is cut off and kept away for a while. Said once an hour a peer."""
        now = trio.current_time()
        offender = self._offenders.pop(peer, None)
        if offender is None or now - offender.until > FORGIVE_S:
            log.warning("a peer broke the rules; its connection is closed and it is kept away", peer=peer, what=what)
            offender = _Offender()
        if len(self._offenders) >= MAX_OFFENDERS:
            del self._offenders[next(iter(self._offenders))]
        offender.times += 1
        offender.until = now + min(KEEP_AWAY_S * 2.0 ** min(offender.times - 1, 16), KEEP_AWAY_MAX_S)
        self._offenders[peer] = offender
        for link in [link for link in (*self.links.values(), *self._retired) if link.peer == peer]:
            link.fail(f"the peer broke the rules: {what}")

    def _keeps_away(self, peer: str, now: float) -> bool:
        offender = self._offenders.get(peer)
        return offender is not None and now < offender.until

    def link_suspect(self, link: Link) -> None:
        if self.links.get(link.peer) is link:
            self._events.peer_suspect(link)

    def link_closed(self, link: Link, reason: str) -> None:
        self._retired.discard(link)
        if self.links.get(link.peer) is not link:
            return
        del self.links[link.peer]
        spare = next((other for other in self._retired if other.peer == link.peer), None)
        if spare is not None:  # the other side kept that one
            self._retired.remove(spare)
            spare.retired = False
            self.links[link.peer] = spare
            self._events.peer_up(spare)
            return
        self._events.peer_down(link.peer, reason)
        self.look_at_book()

    def _select_connection(self, connections: list[INetConn], peer_id: ID) -> INetConn:
        """Where the swarm opens a stream: not on a duplicate, which is about to go."""
        link = self.links.get(str(peer_id))
        return next((conn for conn in connections if conn.muxed_conn is link), connections[-1])

    # Outbound

    async def _redial(self) -> None:
        assert self._nursery is not None
        while True:
            self._look = trio.Event()
            now = trio.current_time()
            look_again = float("inf")
            for target in self.book.due(now, connected=_Those(self._is_not_to_dial), self_id=self.peer_id):
                if not target.proven and not self._hearsay.take(now):
                    look_again = now + HEARSAY_PAUSE_S
                    break
                self.book.started(target)
                self._nursery.start_soon(self._dial, target)
            next_due = self.book.next_due(now)
            with trio.CancelScope(deadline=look_again if next_due is None else min(next_due, look_again)):
                await self._look.wait()

    def _is_not_to_dial(self, peer: str) -> bool:
        return peer in self.links or self._is_banned(peer) or self._keeps_away(peer, trio.current_time())

    async def _dial(self, target: Target) -> None:
        race = Race(
            target, self.routes, news=lambda: self._routes_changed, connect=self._connect, go_round=self.dial_through
        )
        async with self._dials if target.proven else self._hearsay_dials:
            if target.peer_id not in self.links:  # it may have come while this dial waited for its turn
                await race.run()
        now = trio.current_time()
        for address in race.ourselves:
            self.book.ourselves(address)
        for address in race.missed:
            self.book.missed(address, now)
        self.not_reached.pop(target.peer_id or str(target.addresses[0]), None)
        if race.winner is None and target.peer_id in self.links:
            self.book.reached(target, now)
        elif race.winner is None:
            no = next((p for p in race.problems if isinstance(p, TokenRefused | PeerBanned | BannedByPeer)), None)
            self.book.failed(target, now, permanent=no is not None)
            for address in race.taken_over:
                self.book.taken_over(address)
            self._complain_about_dial(target, no, race.problems)
        elif race.winner[0] is None:
            for address in target.addresses:  # those that did not answer until now, too
                self.book.missed(address, now)
            self.book.reached(target, now)
        else:
            self.book.succeeded(race.winner[0], race.winner[1].peer, now)
        self.look_at_book()

    async def _connect(self, address: PeerAddress) -> Link:
        with trio.fail_after(DIAL_TIMEOUT_S):
            stream = await trio.open_tcp_stream(address.host, address.port)
            peer_id = None if address.peer_id is None else ID.from_base58(address.peer_id)
            return await self.upgrade(tcp_connection(stream, initiator=True), peer_id)

    async def met(self, stream: trio.SocketStream, peer: str, *, leads: bool, path: Path) -> Link:
        """A link from a connection that both sides dialled. Raises as `upgrade` does, for another peer too."""
        with trio.fail_after(DIAL_TIMEOUT_S):
            raw = tcp_connection(stream, initiator=leads)
            return await self.upgrade(raw, ID.from_base58(peer), path=path)

    async def dial_through(self, relay: str, peer: str) -> Link:
        """A link to `peer` through a connected relay. Raises PeerUnavailable, HandshakeFailed and more."""
        via = self.links.get(relay)
        if via is None or via.path == "relayed":
            raise PeerUnavailable("no connection to the relay")
        with trio.fail_after(DIAL_TIMEOUT_S):
            conn = await open_circuit(via, peer)
            return await self.upgrade(conn, ID.from_base58(peer))

    def _complain_about_dial(self, target: Target, no: HandshakeFailed | None, problems: list[Exception]) -> None:
        where = target.peer_id or str(target.addresses[0])
        if isinstance(no, TokenRetired):
            self._token_is_retired(no)
        elif isinstance(no, TokenRefused):
            self.complain("the peer belongs to another network: it refused our token, or we its", where)
        elif isinstance(no, PeerBanned | BannedByPeer):
            self.complain(str(no), where, REMIND_EVERY_S)
        elif any(isinstance(problem, AnotherPeer) for problem in problems):
            self.complain("another peer answers at the address of this one", where, REMIND_EVERY_S)
        elif any(isinstance(problem, HandshakeFailed) for problem in problems):
            self.complain("what answers there is not a member of a federation", where)
        else:
            whys = list(dict.fromkeys(map(_in_words, problems)))
            self.not_reached[where] = "; ".join(whys)
            log.debug("peer not reached", peer=where, why=whys)

    def _token_is_retired(self, error: TokenRetired) -> None:
        self.token_retired_at = trio.current_time()
        self.complain(str(TokenRetired()), error.detail, REMIND_EVERY_S)

    # For gossip

    async def open_stream(self, peer: str, protocol: str) -> TrioStream:
        """A libp2p stream to a connected peer. Raises PeerUnavailable."""
        if peer not in self.links:
            raise PeerUnavailable("no connection to it")
        try:
            stream = await self.libp2p.new_stream(ID.from_base58(peer), [protocol])  # type: ignore[list-item]
        except (BaseLibp2pError, ValueError) as error:  # ValueError: the peer answers with what is not UTF-8 (A)
            raise PeerUnavailable(str(error)) from error
        return _plain_stream(stream)

    def handle_stream(self, protocol: str, handler: Callable[[str, TrioStream], Awaitable[None]]) -> None:
        """Call `handler(peer, stream)` for each stream that a peer opens for `protocol`. It must close the stream."""

        async def handle(stream: INetStream) -> None:
            await handler(str(stream.muxed_conn.peer_id), _plain_stream(stream))

        self.libp2p.set_stream_handler(_protocol(protocol), handle)

    def complain(self, event: str, where: str, every_s: float | None = None, **details: object) -> None:
        """A warning, but no stranger can fill the disk with it."""
        now = trio.current_time()
        if now - self._complained.get((event, where), -1e9) < (every_s or COMPLAIN_EVERY_S):
            return
        if len(self._complained) >= MAX_COMPLAINTS:
            self._complained = {key: at for key, at in self._complained.items() if now - at < COMPLAIN_EVERY_S}
            if len(self._complained) >= MAX_COMPLAINTS:  # one stranger has many addresses
                return
        self._complained[event, where] = now
        self.refusals.append(Refusal(now, where, f"{event} ({details['why']})" if "why" in details else event))
        log.warning(event, where=where, **details)


async def _bind(host: str, port: int) -> trio.SocketListener:
    """Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((host, port))
        sock.listen(BACKLOG)
        share_port(sock)
    except OSError:
        sock.close()
        raise
    return trio.SocketListener(sock)


def _machine_of(host: str) -> str:
    """The address, or of an IPv6 address the /64: a machine has that many for the asking."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def _in_words(problem: Exception) -> str:
    if isinstance(problem, trio.TooSlowError):
        return f"no answer within {DIAL_TIMEOUT_S:g} s"
    cause = problem.__cause__ if isinstance(problem, OSError) and not problem.errno else problem  # trio's, of all addresses
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(problem) or type(problem).__name__


class Refusal(NamedTuple):
    """A handshake that failed, at this node or elsewhere: at trio's time `at`, with whom, and why."""

    at: float
    where: str
    what: str


class _Those:
    """The peers of which `test` is true."""

    def __init__(self, test: Callable[[str], bool]) -> None:
        self._test = test

    def __contains__(self, peer: object) -> bool:
        return self._test(str(peer))


class _HungUp(Exception):
    """A member that proved itself and went away: it only looked whether we can be reached."""


def tcp_connection(stream: trio.SocketStream, *, initiator: bool) -> RawConnection:
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return RawConnection(_Rationed(stream), initiator)


def _ration(raw: IRawConnection, n: int) -> None:
    """So many bytes more until the connection is a link."""
    stream = raw.stream if isinstance(raw, RawConnection) else raw
    stream.left = n  # type: ignore[attr-defined]


async def _close_now(raw: IRawConnection) -> None:
    """Whatever the state it is in, and though we be cancelled."""
    with trio.CancelScope(shield=True), suppress(Exception):
        if isinstance(raw, RawConnection):
            await trio.aclose_forcefully(raw.stream.stream)  # type: ignore[attr-defined]
        else:
            await raw.close()


def _refuse(_link: Link, channel: Channel, _rest: str) -> None:
    channel.peer = End()
    channel.refuse("this node does not know that service")


class _KeptAway(FederationError):
    """A peer that broke the rules is kept away"""


@dataclass(slots=True)
class _Offender:
    times: int = 0
    until: float = 0.0  # trio time


class _Rationed(TrioTCPStream):
    """A stranger's connection: py-libp2p reads as many bytes as a length prefix says, and believes it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.left = noise.MAX_HANDSHAKE_BYTES

    async def read(self, n: int | None = None) -> bytes:
        if not self.left:
            raise HandshakeFailed("it sends more than a handshake takes")
        data = await super().read(self.left if n is None else min(n, self.left))
        self.left -= len(data)
        return data


def _plain_stream(stream: INetStream) -> TrioStream:
    muxed = stream.muxed_stream  # type: ignore[attr-defined]
    assert isinstance(muxed, MuxStream)
    return TrioStream(muxed)


def _protocol(name: str) -> TProtocol:
    return name  # type: ignore[return-value]


def _never_raises(handler: Callable[[INetStream], Awaitable[None]]) -> Callable[[INetStream], Awaitable[None]]:
    """An exception that leaves a stream handler ends py-libp2p's whole host, and a remote can cause many (A)."""

    async def guarded(stream: INetStream) -> None:
        try:
            await handler(stream)
        except Exception as error:  # noqa: BLE001  # the one place for what a peer's stream can raise
            log.debug("a peer's stream failed", peer=str(stream.muxed_conn.peer_id), why=type(error).__name__)
            with suppress(Exception):  # it is gone already
                await stream.reset()

    return guarded
