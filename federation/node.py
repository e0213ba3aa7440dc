"""The composition root: builds every part, runs them in one nursery, and stops them in order.

Start: reactor, clients' ports, p2p port, control API; then the network, gossip, health checks, GPU probe, mDNS.
Stop: clients' ports closed and good-bye said at once; open connections get `drain_timeout_s`; then everything is cut.
"""

from __future__ import annotations

import gc
import os
import random
import signal
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import structlog
import trio
from prometheus_client import CollectorRegistry

from federation import __version__, control
from federation.backends import Backends
from federation.errors import FederationError
from federation.forwarder import Forwarder
from federation.gossip import Gossip
from federation.gpu import GpuProbe, GpuReading
from federation.ledger import Change, Ledger
from federation.metrics import Metrics
from federation.net.addresses import AddressBook, PeerAddress
from federation.net.discovery import Mdns, local_addresses
from federation.net.host import Host
from federation.reactor import Reactor
from federation.records import NodeData
from federation.roster import Roster
from federation.selection import Policy, Selector
from federation.values import HostPort

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.config import Settings
    from federation.net.link import Link
    from federation.net.mux import Channel
    from federation.state import StateDir
    from federation.tokens import Token

log = structlog.get_logger(__name__)

GPU_EVERY_S = 5.0
ADDRESSES_EVERY_S = 5.0  # how old a change of this machine's addresses may get
SAVE_PEERS_EVERY_S = 60.0
GOODBYE_S = 0.5  # for the tombstone to leave this machine
INVITE_ADDRESSES = 6  # of this node; a token stays short enough to paste
INVITE_OTHERS = 4  # members that let a newcomer in while this node is off


class Clock:
    """UTC that no step of the wall clock touches: the start's UTC plus the monotonic time since."""

    def __init__(self) -> None:
        self._start = datetime.now(timezone.utc)
        self._start_s = trio.current_time()

    def utc_now(self) -> datetime:
        return self._start + timedelta(seconds=trio.current_time() - self._start_s)


class Node:
    """One daemon. Build it inside trio; `run` serves until `stop` was called and everything has ended."""

    def __init__(self, settings: Settings, state: StateDir, token: Token) -> None:
        self._settings = settings
        self._state = state
        self._token = token
        self._clock = Clock()
        self._started_at = trio.current_time()
        self._incarnation = state.next_incarnation()
        self._stop = trio.Event()
        self._draining = False
        self._gpu = GpuReading((), "none", "not read yet")
        self._listens: dict[str, HostPort] = {}
        self._p2p = settings.p2p_listen
        self._control = settings.control
        self._addresses: list[PeerAddress] = []

        self.metrics = Metrics(CollectorRegistry())
        self.reactor = Reactor()
        self.ledger = Ledger()
        self.book = AddressBook()
        seed = state.identity()
        self.host = Host(
            seed=seed, reactor=self.reactor, events=self, book=self.book, admission_keys=lambda: [token.admission_key()]
        )
        self.selector = Selector(Policy(settings.policy), entry_id=self.host.peer_id, rng=random.Random())
        self.backends = Backends(self.reactor, settings, on_change=self._own_change, on_load=self._own_load)
        self.roster = Roster(
            ledger=self.ledger, links=self.host.links, own=self._own_record, utc_now=self._clock.utc_now,
            reactor=self.reactor, target=settings.target,
        )  # fmt: skip
        self.forwarder = Forwarder(
            self.reactor, settings, roster=self.roster, selector=self.selector, backends=self.backends, metrics=self.metrics
        )
        self.roster.on_change = self.forwarder.roster_changed
        self.gossip = Gossip(
            host=self.host, token=token, ledger=self.ledger, describe=self._describe, utc_now=self._clock.utc_now,
            on_change=self._ledger_changed, interval_s=settings.announce_interval_s, metrics=self.metrics,
        )  # fmt: skip
        self._remember_bootstrap()
        self._nursery: trio.Nursery | None = None

    @property
    def peer_id(self) -> str:
        return self.host.peer_id

    # Life

    def stop(self) -> None:
        """Leave the network, then end."""
        self._stop.set()

    async def run(self, on_ready: Callable[[dict[str, Any]], None]) -> None:
        """Raises ListenFailed before anything was announced."""
        self._p2p = await self.host.listen(self._settings.p2p_listen)
        self._read_addresses()
        for endpoint in self._settings.listens:
            host, port = self.forwarder.listen(endpoint)
            self._listens.setdefault(endpoint.service, HostPort(host, port))
        probe = GpuProbe(fixed_bytes=self._settings.vram_bytes)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.reactor.run)
                self._control = await nursery.start(control.serve, control.create_app(self), self._settings.control)
                async with self.host.running():
                    self._gpu = await probe.read()
                    await nursery.start(self.backends.run)
                    await nursery.start(self.gossip.run)
                    nursery.start_soon(self._read_gpu_forever, probe)
                    nursery.start_soon(self._watch_addresses)
                    nursery.start_soon(self._save_peers_forever)
                    if self._settings.mdns:
                        await nursery.start(self._mdns().run)
                    self._state.save_daemon(self._daemon_facts())
                    gc.collect()
                    gc.freeze()  # what lives now lives for good: later collections need not walk it
                    on_ready(self.status())
                    await self._stop.wait()
                    await self._leave()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await probe.aclose()
            self._state.remove_daemon()

    async def _leave(self) -> None:
        """Good-bye first, so that nobody new is sent here; then those who are here may finish."""
        self._draining = self.backends.draining = True
        self.roster.changed()
        self.forwarder.stop_listening()
        await self.host.stop_listening()
        await self.gossip.leave()
        self._save_peers()
        open_now = len(self.forwarder.active) + self.backends.in_flight
        if open_now:
            log.info("leaving: waiting for open connections", open=open_now, at_most_s=self._settings.drain_timeout_s)
        with trio.move_on_after(self._settings.drain_timeout_s) as patience:
            await self.forwarder.idle.wait()
            await self.backends.idle.wait()
        if patience.cancelled_caught:
            log.warning("connections were still open and are cut", open=len(self.forwarder.active))
            self.forwarder.abort_all("this node stops")
        await self.host.flushed(GOODBYE_S)

    # What runs beside

    async def _read_gpu_forever(self, probe: GpuProbe) -> None:
        while True:
            await trio.sleep(GPU_EVERY_S)
            self._gpu = await probe.read()
            self.gossip.stir()

    async def _watch_addresses(self) -> None:
        while True:
            await trio.sleep(ADDRESSES_EVERY_S)
            if self._read_addresses():
                log.info("this machine's addresses changed", addresses=[str(address) for address in self._addresses])
                self.gossip.stir()

    def _read_addresses(self) -> bool:
        """Whether they changed."""
        if self._settings.announce:
            texts = [address.multiaddr for address in self._settings.announce]
        else:
            texts = local_addresses(self._p2p.host, self._p2p.port)
        addresses = [PeerAddress(a.host, a.port, self.peer_id) for a in map(PeerAddress.parse, texts)]
        before, self._addresses = self._addresses, addresses
        return before != addresses

    async def _save_peers_forever(self) -> None:
        while True:
            await trio.sleep(SAVE_PEERS_EVERY_S)
            self._save_peers()

    def _save_peers(self) -> None:
        """Members' addresses, so that a restart finds the network without the token's."""
        members = [r.peer_id for r in self.ledger.records() if r.peer_id != self.peer_id and not r.left]
        peers = {peer_id: [str(a) for a in self.book.addresses(peer_id)] for peer_id in members}
        self._state.save_peers({peer_id: addresses for peer_id, addresses in peers.items() if addresses})

    def _remember_bootstrap(self) -> None:
        for text in self._token.addresses:
            self.book.add(PeerAddress.parse(text), source="token")
        for text in self._settings.peers:
            self.book.add(PeerAddress.parse(text), source="peer")
        for addresses in self._state.load_peers().values():
            for text in addresses:
                try:
                    self.book.add(PeerAddress.parse(text), source="saved")
                except FederationError as error:
                    log.warning("a remembered address is not one", why=error.detail)

    def _mdns(self) -> Mdns:
        return Mdns(
            rendezvous=self._token.rendezvous(), peer_id=self.peer_id, addresses=lambda: self._addresses,
            on_found=self._found,
        )  # fmt: skip

    def _found(self, address: PeerAddress) -> None:
        if address.peer_id != self.peer_id and self.book.add(address, source="mdns"):
            self.host.look_at_book()

    # Our record

    def _own_record(self, in_flight: int = 0) -> NodeData:
        gpu = self._gpu
        return NodeData(
            peer_id=self.host.peer_id, name=self._settings.name, version=__version__, incarnation=self._incarnation,
            last_seen=self._clock.utc_now(), available_vram=gpu.available_vram, total_vram=gpu.total_vram, gpus=gpu.gpus,
            in_flight=in_flight, capacity=self._settings.capacity, services=self.backends.services(),
            draining=self._draining, addresses=tuple(str(address) for address in self._addresses),
        )  # fmt: skip

    def _describe(self) -> NodeData:
        """For gossip: the load that lasted. While it is not what is in flight now, gossip is to look again."""
        in_flight = self.backends.sample_load()
        if in_flight != self.backends.in_flight:
            self.gossip.stir()
        return self._own_record(in_flight)

    def _own_change(self) -> None:
        self.roster.changed()
        self.gossip.stir()

    def _own_load(self) -> None:
        self.selector.report(self.host.peer_id, self.backends.in_flight)
        self.gossip.stir()

    # What the network tells (HostEvents)

    def tunnel_opened(self, link: Link, channel: Channel, service: str) -> None:
        self.backends.tunnel_opened(link, channel, service)

    def peer_up(self, link: Link) -> None:
        log.info("peer connected", peer=link.peer, name=self._name_of(link.peer), address=link.remote_address)
        self.roster.forgive(link.peer)
        self.roster.changed()
        if link.is_initiator and self._nursery is not None:
            self._nursery.start_soon(self.gossip.sync, link)

    def peer_down(self, peer: str, reason: str) -> None:
        log.info("peer disconnected", peer=peer, name=self._name_of(peer), why=reason)
        self.roster.changed()

    def peer_suspect(self, link: Link) -> None:
        if link.suspect:
            log.warning("peer does not answer; nobody is sent there until it does", peer=link.peer)
            self.forwarder.peer_suspect(link.peer)
        self.roster.changed()

    def _ledger_changed(self, change: Change) -> None:
        record = change.after
        for gone in (change.peer_id if record is None else None, change.evicted and change.evicted.peer_id):
            if gone is not None:
                self.selector.forget(gone)
                self.book.forget(gone)
        if record is not None:
            if change.before is None:
                log.info("peer joined the network", peer=record.peer_id, name=record.name)
            elif record.left and not change.before.left:
                log.info("peer left the network", peer=record.peer_id, name=record.name)
            self._take_record(record, change.before)
        self.roster.changed()

    def _take_record(self, record: NodeData, before: NodeData | None) -> None:
        self.selector.report(record.peer_id, record.in_flight)
        self.metrics.ledger_records.set(len(self.ledger))
        if record.left:
            self.book.forget(record.peer_id)
            return
        addresses = []
        for text in record.addresses:
            try:
                addresses.append(PeerAddress.parse(text))
            except FederationError as error:
                log.debug("a record has an address that is none", peer=record.peer_id, why=error.detail)
        news = self.book.update(record.peer_id, addresses, source="record")
        if before is not None and before.incarnation < record.incarnation:
            self.book.refresh(record.peer_id)
            news = True
        if news:
            self.host.look_at_book()

    def _name_of(self, peer: str) -> str:
        entry = self.ledger.get(peer)
        return entry.record.name if entry is not None else ""

    # What people ask (ControlledNode)

    def invite(self) -> str:
        """The token with addresses of this node and of a few other members."""
        now = self._clock.utc_now()
        others = [record.peer_id for record in self.ledger.online(now) if record.peer_id in self.host.links]
        addresses = [str(address) for address in self._addresses[:INVITE_ADDRESSES]]
        addresses += [str(a) for peer in others[:INVITE_OTHERS] for a in self.book.addresses(peer)[:1]]
        return self._token.with_addresses(tuple(addresses)).encode()

    def status(self) -> dict[str, Any]:
        now = self._clock.utc_now()
        counts = self.forwarder.counts
        online = [r for r in self.ledger.online(now) if r.peer_id == self.peer_id or r.peer_id in self.host.links]
        return {
            "node": {
                "peer_id": self.peer_id,
                "name": self._settings.name,
                "version": __version__,
                "addresses": [str(address) for address in self._addresses],
                "listens": {service: str(address) for service, address in self._listens.items()},
                "p2p": str(self._p2p),
                "control": str(self._control),
                "services": self.backends.services(),
                "gpu": {
                    "source": self._gpu.source,
                    "note": self._gpu.note,
                    "total_vram": self._gpu.total_vram,
                    "available_vram": self._gpu.available_vram,
                },
                "in_flight": self.backends.in_flight,
                "draining": self._draining,
                "uptime_s": round(trio.current_time() - self._started_at, 3),
                "state_dir": str(self._state.path),
                "pid": os.getpid(),
            },
            "network": {
                "id": self._token.network_id,
                "name": self._token.name,
                "peers_online": len(online),
                "peers_known": len(self.ledger),
            },
            "connections": {
                "now": len(self.forwarder.active),
                "total": counts.total,
                "failed": counts.failed,
                "retried": counts.retried,
            },
            "warnings": self._warnings(),
        }

    def peers(self) -> list[dict[str, Any]]:
        """This node first, then the others by name."""
        records = sorted(self.ledger.records(), key=lambda r: (r.peer_id != self.peer_id, r.name, r.peer_id))
        return [self._peer_row(record) for record in records]

    def explain(self, last: int) -> list[dict[str, Any]]:
        now = trio.current_time()
        utc_now = self._clock.utc_now()
        return [
            {
                "at": (utc_now - timedelta(seconds=now - decision.at)).isoformat(),
                "service": decision.service,
                "client": decision.client,
                "attempt": decision.attempt,
                "chosen": decision.pick.chosen.peer_id,
                "name": self._name_of(decision.pick.chosen.peer_id),
                "tier": decision.pick.tier,
                "candidates": [
                    {
                        "peer_id": c.peer_id,
                        "name": self._name_of(c.peer_id),
                        "in_flight": c.in_flight,
                        "last_used_age_s": round(decision.at - c.last_used, 3) if c.last_used >= 0 else None,
                        "available_vram": c.available_vram,
                        "served": c.served,
                    }
                    for c in decision.pick.candidates
                ],
            }
            for decision in list(self.forwarder.decisions)[-last:]
        ]

    def _peer_row(self, record: NodeData) -> dict[str, Any]:
        now = self._clock.utc_now()
        is_self = record.peer_id == self.peer_id
        if is_self:
            record = self._own_record(self.backends.in_flight)
        link = self.host.links.get(record.peer_id)
        state = self._state_of(record, now, link)
        return {
            "peer_id": record.peer_id,
            "name": record.name,
            "self": is_self,
            "online": record.is_online_at(now) and (is_self or link is not None),
            "state": state,
            "last_seen": record.last_seen.isoformat(),
            "last_seen_age_s": round((now - record.last_seen).total_seconds(), 3),
            "available_vram": record.available_vram,
            "total_vram": record.total_vram,
            "gpus": [gpu.model_dump() for gpu in record.gpus],
            "in_flight": record.in_flight,
            "in_flight_here": self.selector.own_in_flight(record.peer_id),
            "served": self.selector.total_served(record.peer_id),
            "capacity": record.capacity,
            "services": record.services,
            "draining": record.draining,
            "path": "self" if is_self else "direct" if link is not None else "none",
            "rtt_ms": round(link.rtt_s * 1000, 3) if link is not None and link.rtt_s is not None else None,
            "version": record.version,
            "addresses": list(record.addresses),
        }

    def _state_of(self, record: NodeData, now: datetime, link: Link | None) -> str:
        """In order: the worst thing that keeps connections away from it."""
        if record.left:
            return "left"
        if not record.is_online_at(now):
            return "offline"
        if record.peer_id != self.peer_id:
            if link is None:
                return "unreachable"
            if link.suspect:
                return "suspect"
        if record.draining:
            return "draining"
        if not record.services:
            return "no backend"
        return "online" if any(record.services.values()) else "backend down"

    def _warnings(self) -> list[str]:
        warnings = [
            f"backend {b.endpoint.address} ({b.endpoint.service}) does not answer: {b.why}"
            for b in self.backends.all
            if b.healthy is False
        ]
        unreachable = [r.name or r.peer_id for r in self.ledger.online(self._clock.utc_now())
                       if r.peer_id != self.peer_id and r.peer_id not in self.host.links]  # fmt: skip
        if unreachable:
            warnings.append(f"known but not reachable from here: {', '.join(unreachable[:5])}")
        if refused := self.host.rejected["other token"]:
            warnings.append(f"{refused} connections from nodes with another token were refused")
        return warnings

    def _daemon_facts(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "control": str(self._control),
            "listens": {service: str(address) for service, address in self._listens.items()},
            "p2p": str(self._p2p),
        }


def serve(settings: Settings, state: StateDir, token: Token, *, on_ready: Callable[[dict[str, Any]], None]) -> int:
    """Run a node until SIGTERM or SIGINT; a second signal ends it at once. Returns the exit code. Raises FederationError."""
    try:
        return trio.run(_serve, settings, state, token, on_ready)
    except BaseException as error:
        if (ours := _our_error(error)) is not None:
            raise ours from error
        raise


async def _serve(
    settings: Settings, state: StateDir, token: Token, on_ready: Callable[[dict[str, Any]], None]
) -> int:
    node = Node(settings, state, token)
    code = 0
    async with trio.open_nursery() as nursery:

        async def watch_signals() -> None:
            nonlocal code
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                first = True
                async for number in signals:
                    if not first:
                        log.warning("second signal: ending now")
                        code = 1
                        nursery.cancel_scope.cancel()
                        return
                    first = False
                    log.info("signal received: leaving the network", signal=signal.Signals(number).name)
                    node.stop()

        nursery.start_soon(watch_signals)
        await node.run(on_ready)
        nursery.cancel_scope.cancel()
    return code


def _our_error(error: BaseException) -> FederationError | None:
    """The FederationError in what trio's nurseries wrap around it."""
    if isinstance(error, FederationError):
        return error
    for part in getattr(error, "exceptions", ()):
        if (found := _our_error(part)) is not None:
            return found
    return None
