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
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Protocol

import structlog
import trio
from libp2p import new_swarm
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service

from federation.errors import (
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
from federation.net.complaints import REMIND_EVERY_S, Complaints
from federation.net.dialler import DIAL_TIMEOUT_S, Ourselves
from federation.net.link import Link, Path
from federation.net.offenders import Offenders
from federation.net.raw import bind, close_now, ration, tcp_connection
from federation.net.redial import Redial
from federation.net.relay import CIRCUIT, RELAY, RESERVE, Relay, RelayLimits
from federation.net.strangers import Strangers
from federation.net.streams import MuxStream, TrioStream
from federation.reactor import Nobody

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from libp2p.abc import INetConn, INetStream, IRawConnection
    from libp2p.custom_types import TProtocol

    from federation.net.addresses import AddressBook, PeerAddress
    from federation.net.mux import Channel
    from federation.reactor import Reactor
    from federation.values import HostPort

log = structlog.get_logger(__name__)

MAX_UPGRADE_BYTES = 256 * 1024  # from a member behind that: a few records may follow the muxer's negotiation at once
MAX_LINKS = 4096
MAX_SEEN = 256
EMFILE_PAUSE_S = 0.1
TICK_S = 0.25
STALE_S = 2.0
# Nobody dials a peer that it has a link to. Who does so when the link is this old, longer than any dial takes, has lost it:
# its machine moved or was cut off, and what we send on the old link nobody hears.
LOST_S = 30.0


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
        self._complaints = Complaints()
        self.complain, self.refusals = self._complaints.say, self._complaints.refusals
        self.relay = Relay(reactor, self.links, relay, self.complain)
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
        self.libp2p.multiselect.handlers.clear()  # ping, identify and identify-push, which reads keys of all kinds (O)
        self.swarm.notifees.clear()  # type: ignore[attr-defined]  # tag store and automatic identify: nothing here reads them
        self.swarm.set_stream_handler(_never_raises(self.swarm.common_stream_handler))  # type: ignore[attr-defined]  # A
        self.peer_id = str(self.swarm.get_peer_id())
        self._listeners: list[trio.SocketListener] = []
        self._strangers = Strangers()
        self._offenders = Offenders()
        self.redial = Redial(self)
        self._nursery: trio.Nursery | None = None

    # Listening

    async def listen(self, address: HostPort) -> HostPort:
        """Bind the p2p port; 0.0.0.0 takes IPv6 along where there is any. Returns what was bound. Raises ListenFailed."""
        port = address.port
        hosts = ["0.0.0.0", "::"] if address.is_wildcard else [address.host]
        for host in hosts:
            try:
                listener = await bind(host, port)
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
            nursery.start_soon(self.redial.run)
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

    def look_at_book(self) -> None:
        """There may be something new to dial."""
        self.redial.look()

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            ping_every_s = mux_link.ping_interval(len(self.links))
            for link in [*self.links.values(), *self._retired]:
                link.tick(now, ping_every_s)
            if self._offenders.any_back(now - TICK_S, now):
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
            now = trio.current_time()
            if not self._strangers.may_connect(host, now):
                self.rejected["too often"] += 1
                self.complain("too many connections from one address; some are refused", host)
                await trio.aclose_forcefully(stream)
                continue
            if len(self.links) >= MAX_LINKS or not self._strangers.make_room(host, now):
                self.rejected["too many"] += 1
                await trio.aclose_forcefully(stream)
                continue
            self._strangers.begin(host)
            self._nursery.start_soon(self._admit, tcp_connection(stream, initiator=False), host)

    def _circuit_opened(self, via: Link, channel: Channel, source: str) -> None:
        """Somebody reaches us through a relay; who it is the handshake tells."""
        conn = CircuitConn(via, channel, initiator=False)
        where = f"relay {via.peer}"
        if self._nursery is None or not self._strangers.make_room(where, trio.current_time()):
            self.rejected["too many"] += 1
            channel.refuse("too many at once")
            return
        channel.accept()
        self._strangers.begin(where)
        self._nursery.start_soon(self._admit, conn, where)

    async def _admit(self, raw: IRawConnection, host: str) -> None:
        """An inbound connection, from anybody."""
        try:
            with self._strangers.handshake(host):
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

    def _note_refusal(self, error: FederationError, host: str) -> None:
        if isinstance(error, TokenRetired):
            self.token_is_retired(error)
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
            if self._offenders.keep_away(str(remote), trio.current_time()):
                raise _KeptAway
            if peer_id is not None and remote != peer_id:
                raise PeerUnavailable("another peer answers there")
            ration(raw, MAX_UPGRADE_BYTES)
            try:
                link: Link = await upgrader.upgrade_connection(secured, remote)
            except Exception as error:
                if not raw.is_initiator and noise.is_end(error):
                    raise _HungUp from None
                raise
        except BaseException:
            await close_now(raw)
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
            await close_now(raw)

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
        if self._offenders.add(peer, trio.current_time()):
            log.warning("a peer broke the rules; its connection is closed and it is kept away", peer=peer, what=what)
        for link in [link for link in (*self.links.values(), *self._retired) if link.peer == peer]:
            link.fail(f"the peer broke the rules: {what}")

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

    def is_to_dial(self, peer: str) -> bool:
        """Whether there is no link to it and nothing against one."""
        return not (peer in self.links or self._is_banned(peer) or self._offenders.keep_away(peer, trio.current_time()))

    async def connect(self, address: PeerAddress) -> Link:
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

    def token_is_retired(self, error: TokenRetired) -> None:
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


class _HungUp(Exception):
    """A member that proved itself and went away: it only looked whether we can be reached."""


def _refuse(_link: Link, channel: Channel, _rest: str) -> None:
    channel.peer = Nobody()
    channel.refuse("this node does not know that service")


class _KeptAway(FederationError):
    """A peer that broke the rules is kept away"""


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
