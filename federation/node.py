"""The composition root: builds every part, runs them in one nursery, and stops them in order.

Start: reactor, clients' ports, p2p port, control API; then the network, gossip, health checks, GPU probe, mDNS.
Stop: clients' ports closed and good-bye said at once; open connections get `drain_timeout_s`; then everything is cut.

Events that concern more than one part are handled here. Requests of people are handled in ops/operator.py.
"""

from __future__ import annotations

import gc
import os
import random
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import structlog
import trio

from federation import __version__
from federation.api.door import serve_node
from federation.clock import Clock
from federation.config import NAMES, RELOADABLE
from federation.errors import FederationError
from federation.forward.backends import Backends
from federation.forward.client_keys import ClientKeys
from federation.forward.exit import serve_tunnel
from federation.forward.frontend import Frontend
from federation.forward.model_watch import ModelWatch
from federation.forward.models import finding
from federation.forward.pushing import Pushing
from federation.forward.roster import Roster
from federation.forward.selection import Policy, Selector
from federation.mesh.bans import Bans
from federation.mesh.connectivity import Connectivity, relay_limits
from federation.mesh.discovery import Discovery, parsed
from federation.mesh.gossip import Gossip
from federation.mesh.gpu import GpuProbe
from federation.mesh.key_exchange import KeyExchange
from federation.mesh.key_use import KeyUse
from federation.mesh.keyring import Keyring
from federation.mesh.ledger import Change, Ledger
from federation.mesh.newcomers import Newcomers
from federation.mesh.probe import Probe
from federation.mesh.records import MAX_COPIED, NodeData
from federation.mesh.remote import Load as RemoteLoad
from federation.mesh.remote import Remote
from federation.mesh.rotation import Rotation
from federation.mesh.token_store import owner_key
from federation.mesh.whereabouts import Whereabouts
from federation.metrics import Metrics
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import AddressBook
from federation.net.host import Host
from federation.net.link.link import talk
from federation.net.link.mux import Load
from federation.ops import invitation, lately, status
from federation.ops.access_log import AccessLog
from federation.ops.alerts.notices import Notices
from federation.ops.history import History
from federation.ops.operator import Operator
from federation.ops.parts import Facts, Parts
from federation.ops.rates import SAMPLE_EVERY_S, Rates
from federation.ratelimit import Bucket
from federation.reactor.loop import Reactor
from federation.reactor.sockets import watch
from federation.reactor.tls import Certificate
from federation.units import HostPort

if TYPE_CHECKING:
    from federation.config import Settings
    from federation.mesh.invites import Refusal
    from federation.mesh.tokens import Token
    from federation.net.link.channel import Channel
    from federation.net.link.link import Link
    from federation.ops import schemas
    from federation.state import StateDir

log = structlog.get_logger(__name__)

GPU_EVERY_S = 5.0
FIND_EVERY_S = 15.0  # a person who starts a server behind its node does not wait long; nobody listens: four refused dials
OWNER_KEY_EVERY_S = 5.0  # `owner show` is right soon after a person moved it
# A member may invent nodes, and come and go itself, without end: it shall not fill the disk with lines about that.
NEWS_A_SECOND, JOINS_AT_ONCE, LINKS_AT_ONCE = 1.0, 64.0, 256.0
GC_THRESHOLD = (10_000, 20, 20)  # a connection allocates some hundred objects, and leaves no cycles behind
GOODBYE_S = 0.5  # for the tombstone to leave this machine

# As api.door.serve_node: `nursery.start` it with the operator and the address; it starts with the bound one.
ControlServer = Callable[..., Awaitable[None]]


class Node:
    """One daemon. Build it inside trio; `run` serves until `stop` was called and everything has ended."""

    def __init__(self, settings: Settings, state: StateDir, token: Token, serve_control: ControlServer = serve_node) -> None:
        self._serve_control = serve_control
        self.state = state
        self.clock = Clock()
        self.facts = Facts(settings, trio.current_time(), p2p=settings.p2p_listen, control=settings.control)
        self._incarnation = state.next_incarnation()
        self._stop = trio.Event()
        self._joins_said = Bucket(NEWS_A_SECOND, JOINS_AT_ONCE)
        self._links_said = Bucket(NEWS_A_SECOND, LINKS_AT_ONCE)

        self.rates = Rates()
        self.history = History(lately.TOTALS)
        self.metrics = Metrics()
        self.metrics.snapshot = lambda: status.metrics(self.parts)
        self.reactor = Reactor()
        self.ledger = Ledger(is_linked=lambda peer: peer in self.host.links or peer == self.host.peer_id)
        self.book = AddressBook()
        self.bans = Bans(state)
        load = Load()
        self.host = Host(
            seed=state.identity(), reactor=self.reactor, events=self, book=self.book,
            admission_keys=lambda: self.rotation.valid_keys(), retired_keys=lambda: self.rotation.retired_keys(),
            is_banned=self.bans.__contains__, relay=relay_limits(settings), load=load,
        )  # fmt: skip
        self.rotation = Rotation(
            host=self.host, keyring=Keyring.from_saved(token, state.load_rotation()), state=state,
            utc_now=self.clock.utc_now, on_change=self._token_changed,
        )  # fmt: skip
        self.connectivity = Connectivity(
            self.host, self.ledger, settings, on_change=self._own_change, utc_now=self.clock.utc_now,
            is_banned=self.bans.__contains__,
            own_ports=lambda: (
                self.facts.control,
                *(at for _, at in self.facts.listeners if isinstance(at, HostPort)),
                *(listen.address for listen in settings.listens if isinstance(listen.address, HostPort)),
            ),
        )  # fmt: skip
        self.selector = Selector(Policy(settings.policy), entry_id=self.host.peer_id, rng=random.Random())
        self.backends = Backends(self.reactor, settings, load=load, on_change=self._own_change, on_load=self._own_load)
        self.models = ModelWatch(self.backends, on_change=self._models_changed)
        self.pushing = Pushing(self.reactor, self.host.links.get, self.backends)
        self.roster = Roster(
            ledger=self.ledger, links=self.host.links, own=self.own_record, utc_now=self.clock.utc_now,
            reactor=self.reactor, target=settings.target, path_penalty_s=settings.path_penalty_s,
        )  # fmt: skip
        self.keys = KeyExchange(
            host=self.host, token=token, state=state, utc_now=self.clock.utc_now,
            on_change=lambda: self.client_keys.changed(),
        )  # fmt: skip
        self.client_keys = ClientKeys(self.keys.table, now=self.reactor.now, now_ms=lambda: self.keys.now_ms)
        self.key_use = KeyUse(self.host, self.client_keys.uses)
        self.newcomers = Newcomers(
            host=self.host, state=state, network_id=token.network_id, name=lambda: self.facts.settings.name,
            token=lambda: invitation.token(self.parts), is_barred=self._barred, utc_now=self.clock.utc_now,
        )  # fmt: skip
        self.certificate = Certificate()
        self.certificate.load(settings.tls_cert, settings.tls_key, self.clock.utc_now())
        self.frontend = Frontend(
            self.reactor,
            settings,
            roster=self.roster,
            selector=self.selector,
            backends=self.backends,
            metrics=self.metrics,
            host_name=socket.gethostname(),
            name_of=lambda peer_id: self.parts.name_of(peer_id),
            keys=self.client_keys,
            certificate=self.certificate,
        )
        self.roster.on_change = self.frontend.dispatcher.look_again
        self.frontend.dispatcher.look_for_models = self.models.look
        self.frontend.dispatcher.ways_of_others = lambda: self.pushing.ways(self.backends.bearable_way_s)
        self.frontend.dispatcher.ask_others = self._ask_others
        self.whereabouts = Whereabouts(self.host, self.frontend.dispatcher.maker_by)
        self.gossip = Gossip(
            host=self.host, token=token, ledger=self.ledger, describe=self._describe, utc_now=self.clock.utc_now,
            on_change=self._ledger_changed, interval_s=settings.announce_interval_s, metrics=self.metrics,
        )  # fmt: skip
        self.probe = Probe(self.host)
        self.remote = Remote(
            host=self.host, token=lambda: self.rotation.keyring.token,
            carry_out=lambda order: self.operator.drain() if order == "drain" else self.operator.undrain(),
            load=lambda: RemoteLoad(self.facts.draining, self.backends.in_flight, self.frontend.busy),
        )  # fmt: skip
        self._nursery: trio.Nursery | None = None
        self.discovery = Discovery(
            self.host, self.ledger, settings, state,
            token=lambda: self.rotation.keyring.token, addresses=lambda: self.connectivity.addresses,
        )  # fmt: skip
        self.parts = Parts(
            facts=self.facts, stop=self._stop, own_record=self.own_record, clock=self.clock, state=state, host=self.host,
            book=self.book, ledger=self.ledger, bans=self.bans, rotation=self.rotation, connectivity=self.connectivity,
            gossip=self.gossip, discovery=self.discovery, probe=self.probe, selector=self.selector, backends=self.backends,
            models=self.models, roster=self.roster, frontend=self.frontend, rates=self.rates, metrics=self.metrics,
            history=self.history, remote=self.remote,
            keys=self.keys, client_keys=self.client_keys, key_use=self.key_use,
            certificate=self.certificate, newcomers=self.newcomers,
        )  # fmt: skip
        self.notices = Notices(self.parts)
        self.operator = Operator(self.parts, self.notices)
        self.host.on_copy = self._own_change
        self.access_log = AccessLog(name_of=self.parts.name_of, utc_of=self.clock.utc_of)
        self.frontend.counters.on_ending = self.access_log.ended

    # Life

    def stop(self) -> None:
        """Leave the network, then end."""
        self._stop.set()

    async def run(self, on_ready: Callable[[schemas.Status], None]) -> None:
        """Serve until `stop`. Raises ListenFailed before anything was announced."""
        facts, settings = self.facts, self.facts.settings
        probe = GpuProbe(fixed_bytes=settings.vram_bytes, only=settings.gpus)
        try:
            facts.p2p = await self.host.listen(settings.p2p_listen)
            self.connectivity.listens(facts.p2p)
            for endpoint in settings.listens:
                facts.listeners += [(endpoint.service, at) for at in self.frontend.listen(endpoint)]
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.reactor.run)
                nursery.start_soon(watch, self.reactor)
                nursery.start_soon(self.access_log.run)
                facts.control = await nursery.start(self._serve_control, self.operator, settings.control)
                async with self.host.running():
                    facts.gpu = await probe.read(is_needed=bool(self.backends.all))
                    await nursery.start(self.backends.run)
                    await nursery.start(self.models.run)
                    await nursery.start(self.gossip.run)
                    nursery.start_soon(self.rotation.run)
                    nursery.start_soon(self.keys.run)
                    nursery.start_soon(self.newcomers.run)
                    nursery.start_soon(self._read_gpu_forever, probe)
                    nursery.start_soon(self.connectivity.run)
                    nursery.start_soon(self._watch_traffic)
                    nursery.start_soon(lately.keep, self.parts)
                    nursery.start_soon(self.notices.run)
                    if settings.detect:
                        nursery.start_soon(self._find_servers)
                    self.state.save_daemon(self._daemon_facts())
                    gc.freeze()  # objects that live now live for good: collections need not walk them
                    gc.set_threshold(*GC_THRESHOLD)
                    on_ready(self.operator.status())
                    facts.serves.set()
                    nursery.start_soon(self.discovery.run)  # behind it: multicast takes its time
                    nursery.start_soon(self._watch_owner_key)
                    await self._stop.wait()
                    await self._leave()
                nursery.cancel_scope.cancel()
        finally:
            self.frontend.dispatcher.forget_waiting()  # they hear no more: this is the end, in order or not
            self.frontend.stop_listening()
            self.frontend.abort_all("this node stops")
            self.access_log.write()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await self.host.stop_listening()
                await probe.aclose()
            if facts.forgets_network:
                self.state.forget_network(self.parts.token.is_same_network)
            self.state.remove_daemon()

    async def _leave(self) -> None:
        """Say good-bye first, so that no new clients are sent here; then let the present ones finish."""
        self.facts.draining = self.backends.draining = True
        self.host.relay.close()
        self.roster.changed()
        self.frontend.stop_listening()
        await self.host.stop_listening()
        await self.gossip.leave()
        await self.discovery.save()
        clients, served = len(self.frontend.active), self.backends.in_flight
        if clients or served:
            patience_s = self.facts.settings.drain_timeout_s
            log.info("leaving: waiting for open connections", clients=clients, served=served, at_most_s=patience_s)
        with trio.move_on_after(self.facts.settings.drain_timeout_s) as scope:
            await self.frontend.idle.wait()
            await self.backends.idle.wait()
        if scope.cancelled_caught:
            log.warning("connections were still open and are cut", open=len(self.frontend.active))
            self.frontend.abort_all("this node stops")
        await self.host.flushed(GOODBYE_S)

    def reload(self, settings: Settings) -> None:
        """Take over settings that can change while the node runs (config.RELOADABLE), and name the others; and read the
        certificate again. Raises ConfigError, and changes nothing, if that cannot be used."""
        self.certificate.load(settings.tls_cert, settings.tls_key, self.clock.utc_now())
        changed = [field for field in NAMES if getattr(settings, field) != getattr(self.facts.settings, field)]
        new = {field: getattr(settings, field) for field in changed if field in RELOADABLE}
        if new:
            self.facts.settings = self.facts.settings.model_copy(update=new)
            self.frontend.configure(self.facts.settings)
            self.backends.configure(self.facts.settings)
            self.pushing.changed()
            self._own_change()
        late = [NAMES[field] for field in changed if field not in RELOADABLE and not field.startswith(("token", "invite"))]
        log.info("settings read again", changed=[NAMES[field] for field in new], take_a_restart=late)

    # Background tasks

    async def _read_gpu_forever(self, probe: GpuProbe) -> None:
        while True:
            await trio.sleep(GPU_EVERY_S)
            self.facts.gpu = await probe.read(is_needed=bool(self.backends.all))
            self.gossip.stir()

    async def _find_servers(self) -> None:
        """A server that starts after its node is found and offered, as `join` would have."""
        facts = self.facts
        own = {address.port for address in (*(at for _, at in facts.listeners), facts.p2p, facts.control)}
        while not self.backends.all:
            await trio.sleep(FIND_EVERY_S)
            for endpoint in finding.offers(await finding.find(without=own)):
                log.info("found a server and offers it", service=endpoint.service, backend=str(endpoint.address))
                self.models.follow(self.backends.offer(endpoint))

    async def _watch_traffic(self) -> None:
        while True:
            self.rates.sample(trio.current_time(), status.traffic(self.parts))
            self.frontend.counters.count_picks()
            await trio.sleep(SAMPLE_EVERY_S)

    def _barred(self, peer_id: str) -> Refusal | None:
        """Why a peer is kept out whatever invite it has."""
        if peer_id == self.host.peer_id:
            return "copy"
        if peer_id in self.bans:
            return "banned"
        return "left out" if peer_id in self.rotation.left_out() else None

    def _ask_others(self, digest: bytes, told: Callable[[str], None]) -> None:
        async def ask() -> None:
            peer_id = await self.whereabouts.ask(digest)
            self.reactor.call_later(0.0, lambda: told(peer_id))  # a fault there costs its client, and not this node

        if self._nursery is None:
            told("")
        else:
            self._nursery.start_soon(ask)

    def _token_changed(self) -> None:
        self.host.token_retired_at = None
        now, end = self.clock.utc_now(), self.rotation.keyring.grace_end(self.clock.utc_now())
        self.discovery.token_changed((end - now).total_seconds() if end else 0.0)

    async def _watch_owner_key(self) -> None:
        """Look for the owner's key now and then: a person may move it, and other nodes tell people its place."""
        facts, told = self.facts, ""
        while True:
            problem = ""
            had, facts.has_owner_key = facts.has_owner_key, False
            try:
                facts.has_owner_key = owner_key(self.parts.token, self.state) is not None
            except FederationError as error:
                problem = str(error)
            if problem and problem != told:
                log.warning("the network's owner key cannot be used", why=problem)
            told = problem
            if facts.has_owner_key != had:
                self._own_change()
            await trio.sleep(OWNER_KEY_EVERY_S)

    # Our record

    def own_record(self, in_flight: int = 0) -> NodeData:
        gpu = self.facts.gpu
        return NodeData(
            peer_id=self.host.peer_id, name=self.facts.settings.name, version=__version__, incarnation=self._incarnation,
            last_seen=self.clock.utc_now(), available_vram=gpu.available_vram, total_vram=gpu.total_vram, gpus=gpu.gpus,
            in_flight=in_flight, capacity=self.backends.capacity, services=self.backends.services(),
            draining=self.facts.draining,
            addresses=tuple(str(PeerAddress(a.host, a.port)) for a in self.connectivity.addresses),
            relays=self.connectivity.relays, via=self.connectivity.reachability.via, owner=self.facts.has_owner_key,
            models=self.models.packed, http=self.models.http,
            copied=tuple(self.host.copies.present(trio.current_time())[:MAX_COPIED]), notifies=self.facts.notifies,
        )  # fmt: skip

    def _describe(self) -> NodeData:
        """For gossip: the load that lasted. While the present load differs, gossip is to look again."""
        in_flight = self.backends.sample_load()
        if in_flight != self.backends.in_flight:
            self.gossip.stir()
        return self.own_record(in_flight + self.backends.outside)

    def _own_change(self) -> None:
        self.roster.changed()
        self.gossip.stir()

    def _models_changed(self) -> None:
        """Or the slots of a backend, and so perhaps whether this node is full."""
        self.pushing.changed()
        self._own_change()

    def _own_load(self, entry_id: str) -> None:
        self.frontend.dispatcher.own_load_changed(entry_id)
        self.pushing.changed(entry_id)
        self.gossip.stir()

    # Events of the network (HostEvents)

    def tunnel_opened(self, link: Link, channel: Channel, service: str, believed: int) -> None:
        serve_tunnel(self.backends, link, channel, service, believed)

    def load_told(self, link: Link, others: int) -> None:
        self.selector.told(link.peer_id, others, is_fresh=link.is_watching(self.reactor.now()))
        self.frontend.dispatcher.look_again()

    def load_watched(self, link: Link, seconds: int) -> None:
        self.pushing.watched(link, seconds)

    def look_wanted(self, link: Link, service: str) -> None:
        self.models.look(service)

    def peer_up(self, link: Link) -> None:
        name, address = self.parts.name_of(link.peer_id), link.remote_address
        _say(self._links_said, "peer connected", peer=link.peer_id, name=name, address=address, path=link.path)
        self.rotation.peer_up(link)
        self.keys.peer_up(link)
        self.newcomers.peer_up(link)
        self.notices.met(link.peer_id)
        self.roster.forgive(link.peer_id)
        self.roster.changed()
        self.connectivity.peer_up(link)
        if link.is_initiator and self._nursery is not None:
            self._nursery.start_soon(talk, link, self.gossip.sync)

    def peer_down(self, peer_id: str, reason: str) -> None:
        _say(self._links_said, "peer disconnected", peer=peer_id, name=self.parts.name_of(peer_id), why=reason)
        self.selector.lost(peer_id)
        self.pushing.peer_down(peer_id)
        self.roster.changed()
        self.connectivity.reachability.look()

    def peer_suspect(self, link: Link) -> None:
        if link.retired:  # who still waits there for an answer goes elsewhere; the peer's present link says how it is
            if link.suspect:
                self.frontend.peer_suspect(link.peer_id)
            return
        if link.suspect:
            log.warning("peer does not answer; nobody is sent there until it does", peer=link.peer_id)
            self.frontend.peer_suspect(link.peer_id)
        else:
            log.info("peer answers again", peer=link.peer_id)
            self.roster.forgive(link.peer_id)
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
                self.notices.met(record.peer_id)
            elif record.left and not change.before.left:
                _say(self._joins_said, "peer left the network", peer=record.peer_id, name=record.name)
            self._take_record(record, change.before)
        self.roster.changed()

    def _take_record(self, record: NodeData, before: NodeData | None) -> None:
        if self.host.peer_id in record.copied:
            self.host.report_copied()
        link = self.host.links.get(record.peer_id)
        if link is None or not link.is_watching(self.reactor.now()):
            self.selector.stale(record.peer_id)
        self.selector.reported(record.peer_id, record.in_flight)
        if record.left:
            self.book.forget(record.peer_id)
            return
        addresses = parsed(record.addresses, whose=record.peer_id)
        news = self.book.update(record.peer_id, addresses, source="record")
        if before is not None and before.incarnation < record.incarnation:
            self.book.refresh(record.peer_id)
            news = True
        if self.connectivity.record_changed(record, before):
            news = True
        if news:
            self.discovery.learnt()
            self.host.look_at_book()

    def _daemon_facts(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "control": str(self.facts.control),
            **({"control_tls": True} if self.certificate.context and not self.facts.control.is_loopback else {}),
            "listens": {service: str(address) for service, address in self.facts.listens.items()},
            "p2p": str(self.facts.p2p),
        }


def _say(bucket: Bucket, event: str, **details: object) -> None:
    """Log at info while there is something left in the bucket, then at debug."""
    (log.info if bucket.take(trio.current_time()) else log.debug)(event, **details)
