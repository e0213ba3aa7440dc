"""The composition root: builds every part, runs them in one nursery, and stops them in order.

Start: reactor, clients' ports, p2p port, control API; then the network, gossip, health checks, GPU probe, mDNS.
Stop: clients' ports closed and good-bye said at once; open connections get `drain_timeout_s`; then everything is cut.

Longer than our other modules: everything that knows more than one part of the daemon is here.
"""

from __future__ import annotations

import gc
import os
import random
import socket
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import structlog
import trio

from federation import __version__
from federation.config import NAMES, RELOADABLE
from federation.errors import FederationError, NotFound, UsageError
from federation.forward.backends import Backends
from federation.forward.frontend import Forwarder
from federation.forward.roster import Roster
from federation.forward.selection import Policy, Selector
from federation.mesh.bans import Bans, find_peer
from federation.mesh.connectivity import Paths, relay_limits
from federation.mesh.discovery import Finding, parsed
from federation.mesh.gossip import Gossip
from federation.mesh.gpu import GpuProbe, GpuReading
from federation.mesh.keyring import Keyring
from federation.mesh.ledger import Change, Ledger
from federation.mesh.probe import Probe
from federation.mesh.records import NodeData
from federation.mesh.rotation import Rotation
from federation.mesh.token_store import owner_key
from federation.metrics import Metrics
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import AddressBook
from federation.net.host import Host
from federation.net.link.link import talk
from federation.ops import diagnose, doctor, ownership, status
from federation.ops.access_log import Journal
from federation.ops.rates import SAMPLE_EVERY_S, Rates
from federation.ratelimit import Bucket
from federation.reactor.loop import Reactor
from federation.units import HostPort

if TYPE_CHECKING:
    from federation.config import Settings
    from federation.mesh.tokens import Token
    from federation.net.link.link import Link
    from federation.net.link.mux import Channel
    from federation.ops import schemas
    from federation.state import StateDir

log = structlog.get_logger(__name__)

GPU_EVERY_S = 5.0
# A member may invent nodes, and come and go itself, without end: it shall not fill the disk with lines about that.
NEWS_A_SECOND, JOINS_AT_ONCE, LINKS_AT_ONCE = 1.0, 64.0, 256.0
GC_THRESHOLD = (10_000, 20, 20)  # a connection allocates some hundred objects, and leaves no cycles behind
GOODBYE_S = 0.5  # for the tombstone to leave this machine
INVITE_ADDRESSES = 6  # of this node; a token stays short enough to paste
INVITE_OTHERS = 4  # members that let a newcomer in while this node is off


# control.serve_node, which is above us: `nursery.start` it with the node and the address; it starts with the bound one.
ControlServer = Callable[..., Awaitable[None]]


class Clock:
    """UTC that no step of the wall clock touches: the start's UTC plus the monotonic time since."""

    def __init__(self) -> None:
        self._start = datetime.now(timezone.utc)
        self._start_s = trio.current_time()

    def utc_now(self) -> datetime:
        return self.utc_of(trio.current_time())

    def utc_of(self, seconds: float) -> datetime:
        """What time it was, or will be, when trio's clock says `seconds`."""
        return self._start + timedelta(seconds=seconds - self._start_s)


class Node:
    """One daemon. Build it inside trio; `run` serves until `stop` was called and everything has ended."""

    def __init__(self, settings: Settings, state: StateDir, token: Token, serve_control: ControlServer) -> None:
        self.settings = settings
        self._serve_control = serve_control
        self.state = state
        self.clock = Clock()
        self.started_at = trio.current_time()
        self._incarnation = state.next_incarnation()
        self._stop = trio.Event()
        self._forget_network = False
        self._joins_said = Bucket(NEWS_A_SECOND, JOINS_AT_ONCE)
        self._links_said = Bucket(NEWS_A_SECOND, LINKS_AT_ONCE)
        self.has_owner_key = False
        self.pending_rotation: ownership.Pending | None = None
        self.draining = False
        self.gpu = GpuReading((), "none", "not read yet")
        self.listens: dict[str, HostPort] = {}
        self.p2p = settings.p2p_listen
        self.control = settings.control

        self.rates = Rates()
        self.metrics = Metrics()
        self.metrics.now = lambda: status.metrics(self)
        self.reactor = Reactor()
        self.ledger = Ledger(is_linked=lambda peer: peer in self.host.links or peer == self.host.peer_id)
        self.book = AddressBook()
        self.bans = Bans(state)
        self.host = Host(
            seed=state.identity(), reactor=self.reactor, events=self, book=self.book,
            admission_keys=lambda: self.rotation.valid_keys(), retired_keys=lambda: self.rotation.retired_keys(),
            is_banned=self.bans.__contains__, relay=relay_limits(settings),
        )  # fmt: skip
        self.rotation = Rotation(
            host=self.host, keyring=Keyring.from_saved(token, state.load_rotation()), state=state,
            utc_now=self.clock.utc_now, on_change=self._token_changed,
        )  # fmt: skip
        self.paths = Paths(
            self.host, self.ledger, settings, on_change=self._own_change,
            own_ports=lambda: (self.control, *self.listens.values(), *(listen.address for listen in settings.listens)),
        )  # fmt: skip
        self.selector = Selector(Policy(settings.policy), entry_id=self.host.peer_id, rng=random.Random())
        self.backends = Backends(self.reactor, settings, on_change=self._own_change, on_load=self._own_load)
        self.roster = Roster(
            ledger=self.ledger, links=self.host.links, own=self.own_record, utc_now=self.clock.utc_now,
            reactor=self.reactor, target=settings.target, path_penalty_s=settings.path_penalty_s,
        )  # fmt: skip
        self.forwarder = Forwarder(
            self.reactor,
            settings,
            roster=self.roster,
            selector=self.selector,
            backends=self.backends,
            metrics=self.metrics,
            host_name=socket.gethostname(),
        )
        self.roster.on_change = self.forwarder.roster_changed
        self.journal = Journal(name_of=self.name_of, utc_of=self.clock.utc_of)
        self.forwarder.on_ending = self.journal.ended
        self.gossip = Gossip(
            host=self.host, token=token, ledger=self.ledger, describe=self._describe, utc_now=self.clock.utc_now,
            on_change=self._ledger_changed, interval_s=settings.announce_interval_s, metrics=self.metrics,
        )  # fmt: skip
        self.probe = Probe(self.host)
        self._nursery: trio.Nursery | None = None
        self.finding = Finding(
            self.host, self.ledger, settings, state, token=lambda: self.token, addresses=lambda: self.addresses
        )

    @property
    def token(self) -> Token:
        return self.rotation.keyring.token

    @property
    def peer_id(self) -> str:
        return self.host.peer_id

    @property
    def addresses(self) -> list[PeerAddress]:
        return self.paths.addresses

    # Life

    def stop(self) -> None:
        """Leave the network, then end."""
        self._stop.set()

    async def run(self, on_ready: Callable[[schemas.Status], None]) -> None:
        """Raises ListenFailed before anything was announced."""
        probe = GpuProbe(fixed_bytes=self.settings.vram_bytes)
        try:
            self.p2p = await self.host.listen(self.settings.p2p_listen)
            self.paths.listens(self.p2p)
            for endpoint in self.settings.listens:
                host, port = self.forwarder.listen(endpoint)
                self.listens.setdefault(endpoint.service, HostPort(host, port))
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.reactor.run)
                nursery.start_soon(self.journal.run)
                self.control = await nursery.start(self._serve_control, self, self.settings.control)
                async with self.host.running():
                    self.gpu = await probe.read()
                    await nursery.start(self.backends.run)
                    await nursery.start(self.gossip.run)
                    nursery.start_soon(self.rotation.run)
                    nursery.start_soon(self._read_gpu_forever, probe)
                    nursery.start_soon(self.paths.run)
                    nursery.start_soon(self._watch_traffic)
                    await nursery.start(self.finding.run)
                    self.state.save_daemon(self._daemon_facts())
                    gc.collect()
                    gc.freeze()  # what lives now lives for good: later collections need not walk it
                    gc.set_threshold(*GC_THRESHOLD)
                    on_ready(self.status())
                    self._look_for_owner_key()
                    await self._stop.wait()
                    await self._leave()
                nursery.cancel_scope.cancel()
        finally:
            self.forwarder.held.clear()  # nobody is told any more: this is the end, in order or not
            self.forwarder.stop_listening()
            self.forwarder.abort_all("this node stops")
            self.journal.write()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await self.host.stop_listening()
                await probe.aclose()
            if self._forget_network:
                self.state.forget_network(self.token.is_same_network)
            self.state.remove_daemon()

    async def _leave(self) -> None:
        """Good-bye first, so that nobody new is sent here; then those who are here may finish."""
        self.draining = self.backends.draining = True
        self.host.relay.close()
        self.roster.changed()
        self.forwarder.stop_listening()
        await self.host.stop_listening()
        await self.gossip.leave()
        await self.finding.save()
        clients, served = len(self.forwarder.active), self.backends.in_flight
        if clients or served:
            patience_s = self.settings.drain_timeout_s
            log.info("leaving: waiting for open connections", clients=clients, served=served, at_most_s=patience_s)
        with trio.move_on_after(self.settings.drain_timeout_s) as patience:
            await self.forwarder.idle.wait()
            await self.backends.idle.wait()
        if patience.cancelled_caught:
            log.warning("connections were still open and are cut", open=len(self.forwarder.active))
            self.forwarder.abort_all("this node stops")
        await self.host.flushed(GOODBYE_S)

    def reload(self, settings: Settings) -> None:
        """Take over what can change while the node runs (config.RELOADABLE), and say what cannot."""
        changed = [field for field in NAMES if getattr(settings, field) != getattr(self.settings, field)]
        new = {field: getattr(settings, field) for field in changed if field in RELOADABLE}
        if new:
            self.settings = self.settings.model_copy(update=new)
            self.forwarder.configure(self.settings)
            self.backends.configure(self.settings)
            self._own_change()
        late = [NAMES[field] for field in changed if field not in RELOADABLE and not field.startswith("token")]
        log.info("settings read again", changed=[NAMES[field] for field in new], take_a_restart=late)

    # What runs beside

    async def _read_gpu_forever(self, probe: GpuProbe) -> None:
        while True:
            await trio.sleep(GPU_EVERY_S)
            self.gpu = await probe.read()
            self.gossip.stir()

    async def _watch_traffic(self) -> None:
        while True:
            self.rates.sample(trio.current_time(), status.traffic(self))
            self.forwarder.count_picks()
            await trio.sleep(SAMPLE_EVERY_S)

    def _token_changed(self) -> None:
        self.host.token_retired_at = None
        now, end = self.clock.utc_now(), self.rotation.keyring.grace_end(self.clock.utc_now())
        self.finding.token_changed((end - now).total_seconds() if end else 0.0)

    def _look_for_owner_key(self) -> None:
        """Others say where it is, to a person who looks for it."""
        try:
            self.has_owner_key = owner_key(self.token, self.state) is not None
        except FederationError as error:
            log.warning("the network's owner key cannot be used", why=str(error))
        if self.has_owner_key:
            self._own_change()

    # Our record

    def own_record(self, in_flight: int = 0) -> NodeData:
        gpu = self.gpu
        return NodeData(
            peer_id=self.host.peer_id, name=self.settings.name, version=__version__, incarnation=self._incarnation,
            last_seen=self.clock.utc_now(), available_vram=gpu.available_vram, total_vram=gpu.total_vram, gpus=gpu.gpus,
            in_flight=in_flight, capacity=self.settings.capacity, services=self.backends.services(),
            draining=self.draining, addresses=tuple(str(PeerAddress(a.host, a.port)) for a in self.addresses),
            relays=self.paths.relays, via=self.paths.reach.via, owner=self.has_owner_key,
        )  # fmt: skip

    def _describe(self) -> NodeData:
        """For gossip: the load that lasted. While it is not what is in flight now, gossip is to look again."""
        in_flight = self.backends.sample_load()
        if in_flight != self.backends.in_flight:
            self.gossip.stir()
        return self.own_record(in_flight)

    def _own_change(self) -> None:
        self.roster.changed()
        self.gossip.stir()

    def _own_load(self) -> None:
        self.forwarder.own_load_is_news = True
        self.gossip.stir()

    # What the network tells (HostEvents)

    def tunnel_opened(self, link: Link, channel: Channel, service: str) -> None:
        self.backends.tunnel_opened(link, channel, service)

    def peer_up(self, link: Link) -> None:
        name, address = self.name_of(link.peer), link.remote_address
        _say(self._links_said, "peer connected", peer=link.peer, name=name, address=address, path=link.path)
        self.rotation.peer_up(link)
        self.roster.forgive(link.peer)
        self.roster.changed()
        self.paths.peer_up(link)
        if link.is_initiator and self._nursery is not None:
            self._nursery.start_soon(talk, link, self.gossip.sync)

    def peer_down(self, peer: str, reason: str) -> None:
        _say(self._links_said, "peer disconnected", peer=peer, name=self.name_of(peer), why=reason)
        self.roster.changed()
        self.paths.reach.look()

    def peer_suspect(self, link: Link) -> None:
        if link.suspect:
            log.warning("peer does not answer; nobody is sent there until it does", peer=link.peer)
            self.forwarder.peer_suspect(link.peer)
        else:
            log.info("peer answers again", peer=link.peer)
            self.roster.forgive(link.peer)
        self.roster.changed()

    def _ledger_changed(self, change: Change) -> None:
        record = change.after
        gone = [change.peer_id] if record is None else []
        gone += [change.evicted.peer_id] if change.evicted is not None else []
        for peer_id in gone:
            self.selector.forget(peer_id)
            self.book.forget(peer_id)
        if record is not None:
            if change.before is None:
                _say(self._joins_said, "peer joined the network", peer=record.peer_id, name=record.name)
            elif record.left and not change.before.left:
                _say(self._joins_said, "peer left the network", peer=record.peer_id, name=record.name)
            self._take_record(record, change.before)
        self.roster.changed()

    def _take_record(self, record: NodeData, before: NodeData | None) -> None:
        self.selector.report(record.peer_id, record.in_flight)
        if record.left:
            self.book.forget(record.peer_id)
            return
        addresses = parsed(record.addresses, whose=record.peer_id)
        news = self.book.update(record.peer_id, addresses, source="record")
        if before is not None and before.incarnation < record.incarnation:
            self.book.refresh(record.peer_id)
            news = True
        if self.paths.record_changed(record, before):
            news = True
        if news:
            self.finding.learnt()
            self.host.look_at_book()

    def name_of(self, peer: str) -> str:
        entry = self.ledger.get(peer)
        return entry.record.name if entry is not None else ""

    # What people ask (control.ControlledNode)

    def invite_addresses(self) -> list[str]:
        """What goes into a newcomer's token: addresses of this node and of a few other members."""
        online = self.ledger.online(self.clock.utc_now())
        others = [record.peer_id for record in online if record.peer_id in self.host.links][:INVITE_OTHERS]
        addresses = self.addresses[:INVITE_ADDRESSES]
        addresses += [address for peer in others for address in self._sure_addresses(peer)[:1]]
        return [str(address) for address in addresses]

    def _sure_addresses(self, peer: str) -> list[PeerAddress]:
        """Those of a linked peer that are more than its word: a token's reader takes them for a person's."""
        at = self.host.links[peer].remote_address
        known = self.book.addresses(peer)
        return [a for a in known if self.book.has_answered(a) or (at is not None and a.host == at[0])]

    def metrics_text(self, accept: str) -> tuple[bytes, str]:
        return self.metrics.exposition(accept)

    def connections(self, most: int) -> schemas.OpenConnections:
        return status.connections(self, most)

    def control_hosts(self) -> tuple[str, ...]:
        return self.settings.control_hosts

    def control_key(self) -> str:
        return self.state.control_key()

    def control_socket(self) -> socket.socket | None:
        return self.state.listen_control()

    def status(self) -> schemas.Status:
        return status.status(self)

    def peers(self) -> list[schemas.Peer]:
        return status.peers(self)

    def explain(self, last: int, connection: int | None = None) -> list[schemas.Decision]:
        return status.explain(self, last, connection)

    def turned_away(self, last: int, connection: int | None = None) -> list[schemas.TurnedAway]:
        return status.turned_away(self, last, connection)

    def log_lines(self, after: int, last: int) -> schemas.LogLines:
        return diagnose.log_lines(after, last)

    async def ping(self, peer: str, count: int, bulk_bytes: int) -> schemas.Ping:
        return await diagnose.ping(self, peer, count, bulk_bytes)

    async def examine(self) -> schemas.Examination:
        return {"findings": await doctor.examine(self)}

    def invite(self) -> schemas.Invite:
        return status.invite(self)

    def drained(self) -> schemas.Draining:
        return status.draining(self)

    def drain(self) -> None:
        """Nothing new for this node's backends, here and, as soon as gossip has it, from anywhere; what is open goes on.

        Clients of this node's own ports are served by the other nodes, so that nobody who points there notices.
        """
        self._set_draining(True)

    def undrain(self) -> None:
        self._set_draining(False)

    def _set_draining(self, draining: bool) -> None:
        if self._stop.is_set() or self.draining == draining:
            return  # who is leaving stays so
        self.draining = self.backends.draining = draining
        log.info("draining: the backends take no new connections" if draining else "no longer draining")
        self.roster.changed()
        self.gossip.stir()

    def banned(self) -> schemas.Banned:
        return {"banned": self.bans.rows()}

    def ban(self, peer: str) -> None:
        """Keep away whom `peer` names (see bans.find_peer). Raises NotFound or UsageError."""
        names = {record.peer_id: record.name for record in self.ledger.records()}
        peer_id = find_peer(peer, names, among="the nodes of this network")
        if peer_id == self.peer_id:
            raise UsageError("this is the node itself")
        self.bans.ban(peer_id, names.get(peer_id, ""))
        log.info("peer banned", peer=peer_id, name=names.get(peer_id, ""))
        self.host.cut(peer_id, "banned here")
        self.roster.changed()

    def unban(self, peer: str) -> None:
        """Raises NotFound."""
        names = {peer_id: self.name_of(peer_id) or name for peer_id, name in self.bans.names.items()}
        peer_id = find_peer(peer, names, among="those that are banned here")
        if peer_id not in self.bans:
            raise NotFound("it is not banned here")
        self.bans.unban(peer_id)
        log.info("peer no longer banned", peer=peer_id)
        self.book.refresh(peer_id)
        self.host.look_at_book()

    async def rotate(self, wish: ownership.Wish) -> schemas.Rotated:
        return await ownership.rotate(self, wish)

    def prepare_rotation(self, wish: ownership.Wish) -> schemas.PreparedRotation:
        return ownership.prepare(self, wish)

    async def carry_out_rotation(self, signature: str) -> schemas.Rotated:
        return await ownership.carry_out(self, signature)

    def leave(self) -> None:
        """Stop, and forget the network: the next start without a token begins a new one."""
        self._forget_network = True
        self.stop()

    def _daemon_facts(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "control": str(self.control),
            "listens": {service: str(address) for service, address in self.listens.items()},
            "p2p": str(self.p2p),
        }


def _say(bucket: Bucket, event: str, **details: object) -> None:
    """At info while there is something left in the bucket, then for those who debug only."""
    (log.info if bucket.take(trio.current_time()) else log.debug)(event, **details)
