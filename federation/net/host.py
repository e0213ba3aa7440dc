"""The hardened libp2p host: only our security, only our muxer, our own listener, dialler, limits and dial loop.

py-libp2p's swarm does its best part only: it negotiates streams and notifies pubsub. It cannot dial, never listens,
never prunes and never counts (net/swarm.py); py-libp2p 0.8.1 has a trap in each of these (the letters below are those of
docs/architecture.md).

This host knows every connection: one that is being made is among `_upgrades`, from the moment its peer
is known or meant; then it is in the table of links (net/link_table.py) until it ends. `cut` goes through all of them, and
nothing that comes on any other connection is served. All that stands between us and the swarm is here.
"""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.security_multistream import SecurityMultistream
from libp2p.tools.anyio_service import background_trio_service

from federation.errors import (
    FederationError,
    HandshakeFailed,
    IdentityCopied,
    InviteUnknown,
    ListenFailed,
    PeerBanned,
    PeerCopied,
    PeerUnavailable,
    TokenOutdated,
    TokenRefused,
    TokenRetired,
    listen_problem,
)
from federation.net.admission.copies import TOLD_S, Copies
from federation.net.admission.gate import HandshakeGate
from federation.net.admission.guesses import Guesses
from federation.net.admission.inbound_circuits import InboundCircuits
from federation.net.admission.quarantine import Quarantine
from federation.net.admission.warnings import REMIND_EVERY_S, Warnings
from federation.net.dial.address import PeerAddress
from federation.net.dial.loop import DialLoop
from federation.net.dial.race import DIAL_TIMEOUT_S, Ourselves
from federation.net.dial.small import SmallPaths
from federation.net.dial.tcp import bind, close_now, open_small, ration, tcp_connection
from federation.net.link import handshake, newcomer
from federation.net.link.carrier import CircuitCarrier, Path, SocketCarrier
from federation.net.link.link import (
    PROTOCOL_ID,
    PROTOCOL_ID_WITHOUT_KEEPING,
    PROTOCOL_ID_WITHOUT_LOAD,
    Link,
    MuxedConn,
)
from federation.net.link.liveness import ping_interval
from federation.net.link.mux import SERVICE_COSTS, Load
from federation.net.link_table import STALE_S, LinkTable
from federation.net.nat.circuit import CircuitConn, open_circuit
from federation.net.nat.relay import CIRCUIT, RELAY, RESERVE, Relay, RelayLimits
from federation.net.streams import MuxStream, TrioStream
from federation.net.swarm import HostSwarm, StreamHost
from federation.reactor.accepting import Accepting
from federation.reactor.duplex import NullDuplex
from federation.units import machine_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from libp2p.abc import INetStream, IRawConnection
    from libp2p.custom_types import TProtocol

    from federation.net.dial.book import AddressBook
    from federation.net.link.channel import Channel
    from federation.net.link.mux import TunnelObserver
    from federation.reactor.duplex import Duplex
    from federation.reactor.loop import Reactor
    from federation.units import HostPort

log = structlog.get_logger(__name__)

MAX_UPGRADE_BYTES = 256 * 1024  # from a member behind that: a few records may follow the muxer's negotiation at once
MAX_LINKS = 4096
MAX_SEEN = 256
TICK_S = 0.25
DIALS_AROUND = 3  # of the peer's addresses, when the link to it is stuck
ANSWER_S = 1.5  # for a peer's present process to say that it lives, before a second one is taken for a restart


class HostEvents(Protocol):
    """The host's events, for the node."""

    def tunnel_opened(self, link: Link, channel: Channel, service: str, believed: int) -> None:
        """A remote entry asks for a service of this node, whose load it believes to be `believed`."""

    def load_told(self, link: Link, others: int) -> None:
        """The peer's load, but for what it serves for this node."""

    def look_wanted(self, link: Link, service: str) -> None:
        """The peer heard from a backend here that it lacks a model."""

    def load_watched(self, link: Link, seconds: int) -> None:
        """The peer wants to hear of each change of this node's load for so long."""

    def peer_up(self, link: Link) -> None: ...
    def peer_down(self, peer_id: str, reason: str) -> None: ...
    def peer_suspect(self, link: Link) -> None: ...


@dataclass(eq=False)
class _Upgrade:
    """A connection on its way to become a link. `peer_id`: the id that was dialled, or proved; "": not known yet."""

    peer_id: str
    admission_key: bytes = b""  # when it has proved that it is a member
    link: Link | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


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
        load: Load | None = None,
    ) -> None:
        """`load`: this node's, for its peers; nothing unless given.

        For keys and `is_banned` see `handshake.TokenNoise`. A change of their answers cuts no link: see `cut`."""
        self._reactor = reactor
        self._events = events
        self.book = book
        key_pair = create_new_key_pair(seed)
        static = create_new_x25519_key_pair()  # of this process, for all its handshakes
        self.run = static.public_key.to_bytes()
        self.peer_id = str(ID.from_pubkey(key_pair.public_key))
        self.table = LinkTable(self.peer_id)
        self.links = self.table.current
        self._upgrades: set[_Upgrade] = set()
        self.rejected: Counter[str] = Counter()  # connections that did not become links, by reason
        self._accepting = Accepting("a peer")
        self._warnings = Warnings()
        self.warn, self.refusals = self._warnings.warn, self._warnings.refusals
        self.relay = Relay(reactor, self.links, relay, self.warn)
        self.seen_from: dict[bytes, tuple[str, int]] = {}  # where members' latest connections came from, by handshake
        self._services: dict[str, Callable[[Link, Channel, str], None]] = {
            RESERVE: self.relay.reserve,
            RELAY: self.relay.connect,
            CIRCUIT: self._circuit_opened,
        }
        self._admission_keys, self._is_banned = admission_keys, is_banned
        security = {
            protocol: handshake.TokenNoise(
                key_pair,
                admission_keys,
                retired_keys=retired_keys,
                is_banned=is_banned,
                is_copy=self._is_copy,
                static=static,
                aead=aead,
            )
            for protocol, aead in handshake.protocols().items()
        }
        # A newcomer's protocol is answered and never offered, so it is not among the swarm's.
        self._key_of_invite: Callable[[bytes], bytes | None] = lambda _invite: None
        self._serve_newcomer: Callable[[handshake.SecureConn], Awaitable[None]] | None = None
        self._guesses = Guesses()
        invited = newcomer.InviteNoise(
            key_pair, key_of=lambda invite: self._key_of_invite(invite), may_try=self._may_try_code, static=static
        )
        self._inbound_security = SecurityMultistream({**security, newcomer.PROTOCOL_ID: invited})  # type: ignore[dict-item]
        told = load or Load()
        muxers = {
            PROTOCOL_ID: partial(self._new_conn, told, True),
            PROTOCOL_ID_WITHOUT_KEEPING: partial(self._new_conn, told, False),
            PROTOCOL_ID_WITHOUT_LOAD: partial(self._new_conn, None, False),
        }
        self.token_retired_at: float | None = None  # since when we believe that our token is no longer valid
        self._retired_by: tuple[bytes, set[str]] = b"", set()  # our newest key, and which members say that it is retired
        self.swarm = HostSwarm(key_pair, security, muxers, knows=self.knows, preferred=self._preferred)
        self.libp2p = StreamHost(self.swarm)
        self.swarm.set_stream_handler(self._stream_opened(self.swarm.common_stream_handler))  # A
        self._listeners: list[trio.SocketListener] = []
        self._gate = HandshakeGate()
        self._quarantine = Quarantine()
        self.copies = Copies()
        self.copied_at: float | None = None  # when this node met, or heard of, another process with its identity
        self.on_copy: Callable[[], None] = lambda: None
        self._inbound_circuits = InboundCircuits()
        self.dial_loop = DialLoop(self)
        self._small = SmallPaths()
        self._nursery: trio.Nursery | None = None

    # Listening

    async def listen(self, address: HostPort) -> HostPort:
        """Bind the p2p port; 0.0.0.0 takes IPv6 along where there is any. Returns the bound address. Raises ListenFailed."""
        port = address.port
        hosts = ("0.0.0.0", "::") if address.is_wildcard else address.hosts
        for host in hosts:
            try:
                listener = await bind(host, port)
            except OSError as error:
                if host in ("::", "::1") and self._listeners and error.errno != errno.EADDRINUSE:
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
            nursery.start_soon(self.dial_loop.run)
            nursery.start_soon(self._tick)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                for listener in self._listeners:
                    listener.socket.close()
                for link in self._all_links():
                    link.fail("this node stops")  # L: the swarm's own end would leak them

    async def flushed(self, timeout_s: float) -> None:
        """Wait until all bytes queued on the links have gone to the kernel, `timeout_s` at most."""
        with trio.move_on_after(timeout_s):
            while any(not link.is_flushed for link in self.links.values()):  # noqa: ASYNC110  # the reactor sends
                await trio.sleep(0.01)

    def look_at_book(self) -> None:
        """Look for targets to dial: the book may have news."""
        self.dial_loop.look()

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            ping_every_s = ping_interval(len(self.links))
            for link in list(self.table):
                link.tick_safely(now, ping_every_s)
            for upgrade in [upgrade for upgrade in self._upgrades if upgrade.admission_key]:
                if not self._admits(upgrade.peer_id, upgrade.admission_key):
                    upgrade.scope.cancel()
            if self._quarantine.any_back(now - TICK_S, now):
                self.look_at_book()

    # Inbound

    async def _accept(self, listener: trio.SocketListener) -> None:
        assert self._nursery is not None
        while True:
            try:
                stream = await self._accepting.next(listener)
            except trio.ClosedResourceError:
                return
            try:
                host = machine_of(stream.socket.getpeername()[0])
            except OSError:  # gone already
                await trio.aclose_forcefully(stream)
                continue
            now = trio.current_time()
            if not self._gate.may_connect(host, now):
                self.rejected["too often"] += 1
                self.warn("too many connections from one address; some are refused", host)
                await trio.aclose_forcefully(stream)
                continue
            if self._is_full or not self._gate.evict_slowest(host, now):
                self.rejected["too many"] += 1
                await trio.aclose_forcefully(stream)
                continue
            try:
                raw = tcp_connection(stream, initiator=False)
            except OSError:  # gone meanwhile
                await trio.aclose_forcefully(stream)
                continue
            self._gate.reserve(host)
            self._nursery.start_soon(self._admit, raw, host)

    def _circuit_opened(self, via: Link, channel: Channel, source: str) -> None:
        """An inbound circuit. The handshake identifies the peer."""
        conn = CircuitConn(via, channel, initiator=False)
        where = f"relay {via.peer_id}"
        now = trio.current_time()
        if not self._inbound_circuits.has_reservation(via):
            channel.mux.charge(SERVICE_COSTS)  # an honest relay does so only while our notice is on its way
            channel.refuse("this node has no place there")
            return
        host = where if via.remote_address is None else machine_of(via.remote_address[0])
        if not self._inbound_circuits.may_bring(via.peer_id, source, now) or not self._gate.may_connect(host, now):
            self.rejected["too often"] += 1
            self.warn("too many connections by way of one relay; some are refused", via.peer_id)
            channel.refuse("too often")
            return
        if self._nursery is None or self._is_full or not self._gate.evict_slowest(where, now):
            self.rejected["too many"] += 1
            channel.refuse("too many at once")
            return
        channel.accept()
        self._gate.reserve(where)
        self._nursery.start_soon(self._admit, conn, where)

    async def _admit(self, raw: IRawConnection, host: str) -> None:
        """Admit an inbound connection, which may be an outsider's."""
        try:
            with self._gate.slot(host):
                await self.upgrade(raw, None)
        except _Newcomer as came:
            await self._receive(came.conn)
        except (Ourselves, _KeptAway, _HungUp):
            pass  # the dialling side notes it; the log has it already; a member only wanted to know whether we are here
        except trio.TooSlowError:
            self.rejected["too slow"] += 1
            self.warn("a connection did not finish its handshake in time", host)
        except FederationError as error:
            self._note_refusal(error, host)
        except Exception as error:  # noqa: BLE001  # an outsider's bytes can raise anything in py-libp2p: none may end us
            self.rejected["handshake"] += 1
            self.warn("a connection that is not a member's was refused", host, why=type(error).__name__)

    def handle_newcomers(
        self, key_of: Callable[[bytes], bytes | None], serve: Callable[[handshake.SecureConn], Awaitable[None]]
    ) -> None:
        """Call `serve(conn)` for each newcomer that proved an invite, whose key `key_of` gives. No link comes of it."""
        self._key_of_invite, self._serve_newcomer = key_of, serve

    async def _receive(self, conn: handshake.SecureConn) -> None:
        """Serve a newcomer in a task of its own, outside the gate's places: it may wait for a person."""
        try:
            ration(conn.raw, newcomer.MAX_NEWCOMER_BYTES)
            if self._serve_newcomer is not None:
                await self._serve_newcomer(conn)
        except Exception as error:  # noqa: BLE001  # as in _admit: none of its bytes may end us
            self.warn("a newcomer's exchange failed", str(conn.get_remote_peer()), why=type(error).__name__)
        finally:
            await close_now(conn.raw)

    def _may_try_code(self, raw: IRawConnection) -> bool:
        return self._guesses.may_try(_machine(raw), trio.current_time())

    def _note_refusal(self, error: FederationError, host: str) -> None:
        if isinstance(error, TokenRetired):
            self.report_token_retired(error)
        elif isinstance(error, TokenOutdated):
            self.rejected["old token"] += 1
            self.warn("a node was refused: its token is from before the rotation", error.detail, REMIND_EVERY_S)
        elif isinstance(error, TokenRefused):
            self.rejected["other token"] += 1
            self.warn("a node with another token, or none, was refused", host)
        elif isinstance(error, InviteUnknown):
            self.rejected["wrong invite"] += 1
            self._guesses.was_wrong(host, trio.current_time())
            self.warn("an invite code that this node does not know was refused", host)
        elif isinstance(error, PeerCopied):
            self.rejected["copied identity"] += 1
        elif isinstance(error, PeerBanned):
            self.rejected["banned"] += 1
            self.warn("a banned peer was refused", error.detail, REMIND_EVERY_S)
        else:
            self.rejected["handshake"] += 1
            self.warn("a connection that is not a member's was refused", host, why=error.detail)

    async def upgrade(self, raw: IRawConnection, libp2p_id: ID | None, *, path: Path | None = None) -> Link:
        """Handshake, proof of the token, muxer. `raw` is closed if any of it fails. Raises HandshakeFailed and more."""
        with self._upgrading(libp2p_id) as upgrade:
            try:
                secured = await self._secure(raw, libp2p_id, upgrade)
                remote = secured.get_remote_peer()
                if self._quarantine.holds(upgrade.peer_id, trio.current_time()):
                    raise _KeptAway
                if libp2p_id is not None and remote != libp2p_id:
                    raise PeerUnavailable("another peer answers there")
                ration(raw, MAX_UPGRADE_BYTES)
                try:
                    muxed_conn: MuxedConn = await self.swarm.upgrader.upgrade_connection(secured, remote)  # type: ignore[assignment]
                except Exception as error:
                    if not raw.is_initiator and handshake.is_end(error):
                        raise _HungUp from None
                    raise
            except _Newcomer:
                raise
            except BaseException:
                await close_now(raw)
                raise
            link = upgrade.link = muxed_conn.link
            if path is not None:
                link.path = path
            try:
                await self.swarm.add_conn(muxed_conn, direction="outbound" if raw.is_initiator else "inbound")
                if not self._admits(link.peer_id, link.admission_key):
                    raise _no_longer_admitted()
            except BaseException:
                link.fail("given up while starting")
                raise
            self._register_link(link, dialled=path is None)
        return link

    @contextmanager
    def _upgrading(self, libp2p_id: ID | None) -> Iterator[_Upgrade]:
        """Note the upgrade meanwhile. Raises HandshakeFailed if `cut`, or a retired token, ended it."""
        upgrade = _Upgrade("" if libp2p_id is None else str(libp2p_id))
        self._upgrades.add(upgrade)
        try:
            with upgrade.scope:
                yield upgrade
        finally:
            self._upgrades.discard(upgrade)
        if upgrade.scope.cancelled_caught:
            raise _no_longer_admitted()

    def _admits(self, peer_id: str, admission_key: bytes) -> bool:
        return not self._is_banned(peer_id) and admission_key in self._admission_keys()

    async def _secure(self, raw: IRawConnection, libp2p_id: ID | None, upgrade: _Upgrade) -> handshake.SecureConn:
        if upgrade.peer_id and self._is_banned(upgrade.peer_id):
            raise PeerBanned(f"peer {upgrade.peer_id}")
        security = self.swarm.upgrader.security_multistream
        if raw.is_initiator:
            secured: handshake.SecureConn = await security.secure_outbound(raw, libp2p_id)  # type: ignore[arg-type,assignment]
        else:
            secured = await self._inbound_security.secure_inbound(raw)  # type: ignore[assignment]
            if secured.invite:
                raise _Newcomer(secured)
        upgrade.peer_id, upgrade.admission_key = str(secured.get_remote_peer()), secured.admission_key
        if upgrade.peer_id == self.peer_id:
            if secured.run != self.run:
                self.report_copied()
            raise Ourselves
        if raw.is_initiator and await self._is_copy(upgrade.peer_id, secured.run):
            raise PeerCopied(f"peer {upgrade.peer_id}")
        if not self._admits(upgrade.peer_id, upgrade.admission_key):  # it was, when it proved itself
            raise _no_longer_admitted()
        address = raw.get_remote_address()
        if address is not None and not raw.is_initiator:
            self.seen_from[secured.digest] = address
            if len(self.seen_from) > MAX_SEEN:
                del self.seen_from[next(iter(self.seen_from))]
        return secured

    async def _is_copy(self, peer_id: str, run: bytes) -> bool:
        """Whether another process of this peer is here and answers. One that does not has gone: the peer restarted."""
        if peer_id == self.peer_id:
            return False
        now = trio.current_time()
        if self.copies.is_refused(peer_id, run, now):
            return True
        known = self.links.get(peer_id)
        if known is None or known.run == run or not await known.answers(ANSWER_S):
            return False
        if self.copies.refuse(peer_id, run, trio.current_time()):
            log.error("a peer runs on two machines: one is a copy of the other. The first one stays", peer=peer_id)
            self.on_copy()
        return True

    def report_copied(self) -> None:
        """Another process has this node's identity: it answered here, or a member says so."""
        now = trio.current_time()
        is_news = self.copied_at is None or now - self.copied_at > TOLD_S
        self.copied_at = now
        if is_news:
            log.error(str(IdentityCopied()))
            self.on_copy()

    @property
    def is_copied(self) -> bool:
        return self.copied_at is not None and trio.current_time() - self.copied_at <= TOLD_S

    async def probe(self, stream: trio.SocketStream, peer_id: str) -> bytes:
        """Check that this member answers there, then hang up. Returns the handshake's hash. Raises as `upgrade` does."""
        raw = tcp_connection(stream, initiator=True)
        remote = ID.from_base58(peer_id)
        with self._upgrading(remote) as upgrade:
            try:
                return (await self._secure(raw, remote, upgrade)).digest
            finally:
                await close_now(raw)

    def _new_conn(self, load: Load | None, keeps: bool, secured: handshake.SecureConn, libp2p_id: ID) -> MuxedConn:
        carrier = SocketCarrier
        if isinstance(secured.raw, CircuitConn):
            carrier = partial(CircuitCarrier, circuit=secured.raw)  # type: ignore[assignment]
        link = Link(
            secured, libp2p_id, reactor=self._reactor, events=self, carrier=carrier, load=load, keeps=keeps
        )  # fmt: skip
        return link.muxed_conn

    # Links

    def _register_link(self, link: Link, *, dialled: bool = True) -> None:
        """Take the link as the peer's, unless a better one is there (N). `dialled`: not punched beside a relayed one."""
        if link.is_closed:
            return
        if link.admission_key == self._admission_keys()[0]:  # so it is valid
            self.token_retired_at, self._retired_by = None, (b"", set())
        now = trio.current_time()
        if dialled and (lost := self.table.lost_to(link)) is not None:
            lost.fail("the peer has lost this connection: it made a new one")
        settled = self.table.settle(link, now)
        if settled.spare is not None:
            self._retire(settled.spare)
            if settled.spare is not link and now - settled.spare.liveness.last_heard > STALE_S:
                settled.spare.doubt()
        elif not link.is_initiator:
            self.book.dialled_us(link.peer_id, now)
            self.look_at_book()
        if settled.is_peers:
            self.copies.came(link.peer_id)
            self._events.peer_up(link)

    def knows(self, link: Link) -> bool:
        """Whether the link is open and counts: the peer's, a duplicate that finishes what it carries, or one that starts."""
        return link in self.table or any(upgrade.link is link for upgrade in self._upgrades)

    def _all_links(self, peer_id: str | None = None) -> list[Link]:
        """All links, or those with `peer_id`; duplicates first: the end of the peer's link would put one in its place."""
        links = [
            *self.table.retired,
            *[upgrade.link for upgrade in self._upgrades if upgrade.link is not None],
            *self.links.values(),
        ]
        if peer_id is None:
            return links
        return list(dict.fromkeys(link for link in (*links, *self.swarm.links_of(peer_id)) if link.peer_id == peer_id))

    @property
    def _is_full(self) -> bool:
        return len(self.table) >= MAX_LINKS

    def _retire(self, link: Link) -> None:
        link.retire()
        if (surplus := self.table.retire(link)) is not None:
            surplus.fail("the peer has too many connections")

    def cut(self, peer_id: str, reason: str) -> None:
        """Close every connection with the peer now, those that are being made too. It may come back unless it is banned or
        its token is not valid."""
        for upgrade in [upgrade for upgrade in self._upgrades if upgrade.peer_id == peer_id]:
            upgrade.scope.cancel()
        for link in self._all_links(peer_id):
            link.fail(reason)

    def tunnel_opened(self, link: Link, channel: Channel, service: str, believed: int) -> None:
        if not self.knows(link):
            _refuse(link, channel, "")
            return
        if not service.startswith("/"):
            self._events.tunnel_opened(link, channel, service, believed)
            return
        name, _, rest = service[1:].partition("/")
        version, _, rest = rest.partition("/")
        kind = f"/{name}/{version}"
        if kind != CIRCUIT:  # a circuit is another member's wish, not the relay's
            channel.mux.charge(SERVICE_COSTS)
        self._services.get(kind, _refuse)(link, channel, rest)

    def _stream_opened(self, handler: Callable[[INetStream], Awaitable[None]]) -> Callable[[INetStream], Awaitable[None]]:
        """An exception that leaves a stream handler ends py-libp2p's whole host, and a remote can cause many (A)."""

        async def guarded(stream: INetStream) -> None:
            try:
                if not isinstance(stream.muxed_conn, MuxedConn) or not self.knows(stream.muxed_conn.link):
                    raise SwarmException("it came on a connection that has ended, or that is not ours")
                await handler(stream)
            except Exception as error:  # noqa: BLE001  # the one place for what a peer's stream can raise
                log.debug("a peer's stream failed", peer=str(stream.muxed_conn.peer_id), why=type(error).__name__)
                with suppress(Exception):  # it is gone already
                    await stream.reset()

        return guarded

    def link_misused(self, link: Link, what: str) -> None:
        self.report_violation(link.peer_id, what)

    def report_violation(self, peer_id: str, what: str) -> None:
        """Cut off a member that broke a rule as no honest one does, and quarantine it. Logged once an hour a peer."""
        now = trio.current_time()
        if self._quarantine.add(peer_id, now):
            log.warning("a peer broke the rules; its connection is closed and it is kept away", peer=peer_id, what=what)
        links = self._all_links(peer_id)
        for relay_id in {link.via_peer_id for link in links if link.via_peer_id}:
            if self._inbound_circuits.brought_offender(relay_id, now):
                self.warn("many that come by way of one relay break the rules; for now nobody is let in by it", relay_id)
        self.cut(peer_id, f"the peer broke the rules: {what}")

    def load_told(self, link: Link, others: int) -> None:
        if self.links.get(link.peer_id) is link:
            self._events.load_told(link, others)

    def load_watched(self, link: Link, seconds: int) -> None:
        if self.knows(link):
            self._events.load_watched(link, seconds)

    def look_wanted(self, link: Link, service: str) -> None:
        if self.knows(link):
            self._events.look_wanted(link, service)

    def link_suspect(self, link: Link) -> None:
        if link in self.table:
            self._events.peer_suspect(link)

    def link_stuck(self, link: Link) -> None:
        """Make another link, whose packets are small, beside one on which large packets are lost."""
        if self.links.get(link.peer_id) is not link or self._nursery is None:
            return
        if self._small.begin(link.peer_id, trio.current_time()):
            self._nursery.start_soon(self._dial_around, link)

    async def _dial_around(self, link: Link) -> None:
        peer_id, where = link.peer_id, link.remote_address
        addresses = self.book.addresses(peer_id)[:DIALS_AROUND]
        if link.is_initiator and where is not None:
            addresses = [PeerAddress(where[0], where[1], peer_id)]
        try:
            for address in addresses:
                with suppress(Exception):  # as in Race: a remote's bytes can raise anything
                    new = await self._connect(address, is_small=True)
                    break
            else:
                return
        finally:
            self._small.ended(peer_id)
        if self.links.get(peer_id) is new:
            self._small.add(peer_id, trio.current_time())
            self.warn("large packets to a peer are lost on the way; a new connection sends small ones", peer_id)

    def link_closed(self, link: Link, reason: str) -> None:
        self._inbound_circuits.forget(link)
        was_peers, spare = self.table.ended(link)
        if spare is not None:
            self._events.peer_up(spare)
        elif was_peers:
            self.copies.left(link.peer_id, trio.current_time())
            self._events.peer_down(link.peer_id, reason)
            self.look_at_book()

    def _preferred(self, peer_id: str) -> Link | None:
        """The link on which the swarm opens a stream: not a duplicate, which is about to go."""
        starting = (upgrade.link for upgrade in self._upgrades if upgrade.link is not None and upgrade.peer_id == peer_id)
        return self.links.get(peer_id) or next(starting, None)

    # Outbound

    def is_to_dial(self, peer_id: str) -> bool:
        """Whether the peer may be dialled: it has no link, and no rule is against one."""
        if peer_id in self.links or self._is_banned(peer_id):
            return False
        return not self._quarantine.holds(peer_id, trio.current_time())

    async def connect(self, address: PeerAddress) -> Link:
        is_small = address.peer_id is not None and self._small.holds(address.peer_id, trio.current_time())
        return await self._connect(address, is_small=is_small)

    async def _connect(self, address: PeerAddress, *, is_small: bool) -> Link:
        with trio.fail_after(DIAL_TIMEOUT_S):
            if is_small:
                stream = await open_small(address.host, address.port)
            else:
                stream = await trio.open_tcp_stream(address.host, address.port)
            libp2p_id = None if address.peer_id is None else ID.from_base58(address.peer_id)
            return await self.upgrade(tcp_connection(stream, initiator=True), libp2p_id)

    async def link_from_punch(self, stream: trio.SocketStream, peer_id: str, *, is_leader: bool, path: Path) -> Link:
        """A link from a connection that both sides dialled. Raises as `upgrade` does, for another peer too."""
        with trio.fail_after(DIAL_TIMEOUT_S):
            raw = tcp_connection(stream, initiator=is_leader)
            return await self.upgrade(raw, ID.from_base58(peer_id), path=path)

    async def connect_via_relay(self, relay_id: str, peer_id: str) -> Link:
        """A link to this peer through a connected relay. Raises PeerUnavailable, HandshakeFailed and more."""
        via = self.links.get(relay_id)
        if via is None or via.path == "relayed":
            raise PeerUnavailable("no connection to the relay")
        with trio.fail_after(DIAL_TIMEOUT_S):
            conn = await open_circuit(via, peer_id)
            return await self.upgrade(conn, ID.from_base58(peer_id))

    def reserve(self, link: Link, opener: TunnelObserver, other: Duplex) -> Channel:
        """Ask that relay for a reservation: only relays that gave one may bring circuits. Raises PeerUnavailable."""
        channel = link.open_tunnel(RESERVE, opener, other)
        self._inbound_circuits.reserved(link, channel)
        return channel

    def report_token_retired(self, error: TokenRetired) -> None:
        """A member says that our newest key is retired. Two are believed, or one while this node has no link: any member can
        say so, and a person who believes it joins with another token."""
        newest = self._admission_keys()[0]
        if self._retired_by[0] != newest:
            self._retired_by = newest, set()
        say_so = self._retired_by[1]
        if len(say_so) < 2:
            say_so.add(error.detail)
            log.info("a member said that this node's token is retired", by=error.detail)
        if len(say_so) < 2 and self.links:
            return
        self.token_retired_at = trio.current_time()
        self.warn(str(TokenRetired()), error.detail, REMIND_EVERY_S)

    # Streams of our own protocols

    async def open_stream(self, peer_id: str, protocol: str) -> TrioStream:
        """A libp2p stream to a connected peer. Raises PeerUnavailable."""
        if peer_id not in self.links:
            raise PeerUnavailable("no connection to it")
        try:
            stream = await self.libp2p.new_stream(ID.from_base58(peer_id), [protocol])  # type: ignore[list-item]
        except Exception as error:  # the peer's answer can raise anything in py-libp2p (A); callers are tasks
            raise PeerUnavailable(str(error) or type(error).__name__) from error
        return _plain_stream(stream)

    def handle_stream(self, protocol: str, handler: Callable[[Link, TrioStream], Awaitable[None]]) -> None:
        """Call `handler(link, stream)` for each stream that a peer opens for `protocol`. It must close the stream.

        The handler reads no byte of a link that has ended. `knows(link)` says whether it counts at any later moment.
        """

        async def handle(stream: INetStream) -> None:
            plain = _plain_stream(stream)
            await handler(plain.link, plain)

        self.libp2p.set_stream_handler(_protocol(protocol), handle)


class _Newcomer(Exception):
    """Not a member, but a holder of an invite: it gets no link."""

    def __init__(self, conn: handshake.SecureConn) -> None:
        super().__init__()
        self.conn = conn


class _HungUp(Exception):
    """A member that proved itself and went away: it only looked whether we can be reached."""


def _machine(raw: IRawConnection) -> str:
    address = raw.get_remote_address()
    return "" if address is None else machine_of(address[0])


def _no_longer_admitted() -> HandshakeFailed:
    return HandshakeFailed("no longer admitted")  # banned, or the token retired, while it was starting


def _refuse(_link: Link, channel: Channel, _rest: str) -> None:
    channel.other = NullDuplex()
    channel.refuse("this node does not know that service")


class _KeptAway(FederationError):
    """A peer that broke the rules is kept away"""


def _plain_stream(stream: INetStream) -> TrioStream:
    muxed = stream.muxed_stream  # type: ignore[attr-defined]
    assert isinstance(muxed, MuxStream)
    return TrioStream(muxed)


def _protocol(name: str) -> TProtocol:
    return name  # type: ignore[return-value]
