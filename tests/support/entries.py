"""Helpers for tests of the entry: a frontend with real clients and real backends of its own, between them peers and
tunnels whose every answer the test gives. Time is trio's mock clock where a test has one: it moves only when told to."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from federation.config import Settings
from federation.errors import PeerUnavailable
from federation.forward.backends import Backends
from federation.forward.frontend import Frontend
from federation.forward.roster import catalogs_of, has_model, is_unheard_of, model_of
from federation.forward.route import Route
from federation.forward.selection import Policy, Selector
from federation.mesh.records import NodeData
from federation.metrics import Metrics
from federation.net.link.channel import INITIAL_WINDOW
from federation.reactor.duplex import Keepable
from federation.units import Endpoint
from tests.support.links import MAX_WAIT_S, SLACK
from tests.support.sockets import CountingReactor, Listener, reset, running, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from federation.forward.client_keys import ClientKeys
    from federation.mesh.models import Catalog, Model
    from federation.net.link.mux import RequestObserver
    from federation.reactor.duplex import Duplex

OWN = "own"


async def settled(condition: Callable[[], Any] = lambda: True, *, seconds: float = 5.0) -> None:
    """Wait until everybody has done what there was to do, and `condition()`. In real time: the clock is a mock."""
    deadline = time.monotonic() + SLACK * seconds
    while True:
        await trio.testing.wait_all_tasks_blocked(0.001)
        if condition():
            return
        assert time.monotonic() < deadline, "it did not come to that"


class Tunnel(Keepable):
    """What an entry holds of a tunnel; it keeps the rules of net.mux.Channel and the test plays the exit."""

    is_unheard = False  # type: ignore[assignment]  # the test says so when the link is gone

    def __init__(self, peer_id: str, service: str, opener: RequestObserver, other: Duplex) -> None:
        self.peer_id = peer_id
        self.service = service
        self.opener: RequestObserver | None = opener
        self.other = other
        asker = getattr(other, "_client", None) or other._exchange  # type: ignore[attr-defined]  # layer 4, or a request
        self.keeps = self.takes_kept = False
        self.kept: int | None = None  # the entry's KEEP: how long the answer was
        self.client_name, self.flow = asker.client_name, asker.flow
        self.data = b""  # sent by the entry
        self.credit = INITIAL_WINDOW
        self.taken_bytes = 0
        self.said_bytes = 0
        self.waiting = False
        self.eof = False  # the entry's
        self.ended = False  # ours
        self.reset: str | None = None  # the entry's reason
        self.closed = False

    # For the entry

    def writable(self) -> int:
        if self.closed or self.credit <= 0:
            self.waiting = True
            return 0
        return self.credit

    def send(self, data: bytes | memoryview) -> None:
        if self.closed:
            return
        assert not self.eof, "bytes behind the EOF"
        assert len(data) <= self.credit, "more than was granted: the peer would close the whole connection for that"
        self.credit -= len(data)
        self.data += bytes(data)

    def send_eof(self) -> None:
        if not self.closed and not self.eof:
            self.eof = True
            self._finish()

    def abort(self, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self.reset = reason

    def keep(self, answered: int) -> None:
        assert self.keeps
        if not self.closed:
            self.closed = True
            self.kept = answered

    def acknowledge(self, n: int) -> None:
        self.taken_bytes += n
        assert self.closed or self.taken_bytes <= self.said_bytes, "more was acknowledged than delivered"

    def resume_writing(self) -> None: ...

    # For the test; a closed tunnel hears nothing, as with the mux

    def answers(self) -> None:
        """OPENED."""
        if not self.closed and self.opener is not None:
            opener, self.opener = self.opener, None
            opener.opened()

    def refuses(self, reason: str = "no") -> None:
        if not self.closed and self.opener is not None:
            opener, self.opener = self.opener, None
            self.closed = True
            opener.refused(reason)

    def is_busier(self, others: int) -> None:
        """BUSIER; FULL where it takes no more."""
        if not self.closed and self.opener is not None:
            opener, self.opener = self.opener, None
            self.closed = True
            opener.busier(others)

    def sends(self, data: bytes) -> None:
        if not self.closed and not self.ended and self.opener is None:
            self.said_bytes += len(data)
            view = memoryview(bytearray(data))  # valid during the call only
            self.other.send(view)
            view.release()

    def ends(self) -> None:
        if not self.closed and not self.ended and self.opener is None:
            self.ended = True
            self.other.send_eof()
            self._finish()

    def breaks(self, reason: str = "gone") -> None:
        if not self.closed:
            self.closed = True
            self.other.abort(reason)

    def grants(self, n: int) -> None:
        if self.closed:
            return
        self.credit += n
        if self.waiting and self.credit > 0:
            self.waiting = False
            self.other.resume_writing()

    def _finish(self) -> None:
        self.closed = self.closed or (self.eof and self.ended)


class FakeLink:
    def __init__(self, peer_id: str, tunnels: list[Tunnel]) -> None:
        self.peer_id = peer_id
        self.tunnels = tunnels
        self.pings = 0
        self.looks: list[str] = []
        self.is_closed = False
        self.suspect = True  # whenever the frontend hears of it
        self.keeps = False  # as a former version
        self.arrived: Callable[[], None] = lambda: None  # what lies in its socket

    def read(self) -> None:
        self.arrived()

    def watch(self, now: float) -> bool:
        return False

    def unwatch(self) -> None: ...

    def open_request(self, service: str, opener: RequestObserver, other: Duplex, believed: int) -> Tunnel:
        if self.is_closed:
            raise PeerUnavailable("the connection is closed")
        tunnel = Tunnel(self.peer_id, service, opener, other)
        self.tunnels.append(tunnel)
        return tunnel

    def open_exchange(
        self, service: str, opener: RequestObserver, other: Duplex, believed: int, *, takes_kept: bool
    ) -> Tunnel:
        tunnel = self.open_request(service, opener, other, believed)
        tunnel.keeps, tunnel.takes_kept = self.keeps, takes_kept
        return tunnel

    def ping(self) -> None:
        self.pings += 1

    def look(self, service: str, now: float) -> None:
        self.looks.append(service)


class FakeRoster:
    """The test says who is eligible. Who is penalized is not, until the test says otherwise."""

    def __init__(self, services: Callable[[], dict[str, bool]]) -> None:
        self.own_id = OWN
        self.nodes: dict[str, NodeData] = {}
        self.links: dict[str, FakeLink] = {}
        self.penalties: list[tuple[str, float]] = []
        self.barred: set[str] = set()
        self.lacking: list[tuple[Route, str]] = []
        self._services = services

    def eligible(self, route: Route) -> list[NodeData]:
        own = record(OWN, services=self._services())
        nodes = [own, *self.nodes.values()]
        nodes = [node for node in nodes if node.offers(route.service) and node.peer_id not in self.barred]
        if route.target:
            return [node for node in nodes if route.target in (node.peer_id, node.name)]
        if not route.model:
            return nodes
        having = [node for node in nodes if has_model(node, route.service, route.model)]
        return having or [node for node in nodes if not node.models]

    def catalogs(self, service: str) -> list[Catalog]:
        announced = [catalogs_of(node.models).get(service) for node in self.eligible(Route(service))]
        return [catalog for catalog in announced if catalog is not None]

    def models_at(self, route: Route) -> dict[str, Model]:
        found = {node.peer_id: model_of(node, route.service, route.model) for node in self.eligible(route)}
        return {peer_id: model for peer_id, model in found.items() if model is not None}

    def speaks_http(self, service: str) -> bool:
        return any(service in node.http for node in self.nodes.values())

    def is_unheard_of(self, route: Route) -> bool:
        return not self.eligible(route) and is_unheard_of(self.nodes.values(), route)

    def is_known(self, target: str) -> bool:
        return any(target in (node.peer_id, node.name) for node in (*self.nodes.values(), record(OWN)))

    def lacks(self, route: Route, peer_id: str) -> None:
        self.lacking.append((route, peer_id))

    def distant(self, _route: Route) -> frozenset[str]:
        return frozenset()

    def link(self, peer_id: str) -> Any:
        return self.links.get(peer_id)

    def penalize(self, peer_id: str, seconds: float) -> None:
        assert peer_id, "nobody was penalized"
        self.penalties.append((peer_id, seconds))
        self.barred.add(peer_id)


def record(peer_id: str, **fields: Any) -> NodeData:
    fields = {"services": {"default": True}, "last_seen": datetime.now(timezone.utc), **fields}
    return NodeData(peer_id=peer_id, **fields)


@dataclass
class Net:
    """One entry and the world around it."""

    clock: trio.testing.MockClock | None
    reactor: CountingReactor
    frontend: Frontend
    roster: FakeRoster
    selector: Selector
    backends: Backends
    port: int
    backend: Listener | None
    metrics: Metrics
    is_http: bool = False
    tunnels: list[Tunnel] = field(default_factory=list)
    clients: list[trio.SocketStream] = field(default_factory=list)

    def add(self, *peers: str, tell: bool = True, **fields: Any) -> None:
        """Peers that serve; the first ones are picked first."""
        for n, peer_id in enumerate(peers):
            self.roster.nodes[peer_id] = record(peer_id, available_vram=(100 - len(self.roster.nodes) - n) << 30, **fields)
            self.roster.links[peer_id] = FakeLink(peer_id, self.tunnels)
            self.roster.barred.discard(peer_id)
        if tell:
            self.frontend.dispatcher.look_again()

    def forgive(self) -> None:
        self.roster.barred.clear()
        self.frontend.dispatcher.look_again()

    def own_backend_is_up(self) -> None:
        assert self.backend is not None
        self.backends.all[0].healthy = True
        self.backends.all[0].target = (socket.AF_INET, (self.backend.host, self.backend.port))

    async def connect(self, *, sends: bytes = b"", port: int | None = None) -> trio.SocketStream:
        """A client whose bytes are at the entry."""
        total = self.frontend.counters.totals.started
        sock = socket.socket()
        sock.connect(("127.0.0.1", port or self.port))
        client = stream(sock)
        self.clients.append(client)
        if self.is_http:  # nothing is counted before there is a request
            host, its_port = sock.getsockname()
            name = f"{host}:{its_port}"
            await settled(lambda: name in [client.client_name for client in self.frontend.active])
        else:
            await settled(lambda: self.frontend.counters.totals.started == total + 1)
        if sends:
            received = self.received()
            await client.send_all(sends)
            await settled(lambda: self.received() == received + len(sends))
        return client

    async def server(self) -> trio.SocketStream:
        """The next connection at our own backend."""
        assert self.backend is not None
        self.clients.append(await self.backend.accept())
        return self.clients[-1]

    def received(self) -> int:
        return sum(client.socket.received for client in self.frontend.active)

    async def passes(self, seconds: float) -> None:
        """Time."""
        assert self.clock is not None
        self.clock.jump(seconds)
        await settled()

    @property
    def tunnel(self) -> Tunnel:
        """The latest."""
        return self.tunnels[-1]

    def in_flight(self) -> dict[str, int]:
        """Whom this entry believes to have connections of its own, and how many."""
        peers = (OWN, *self.roster.nodes)
        return {peer: own for peer in peers if (own := self.selector.own_in_flight(peer))}

    def finished(self, result: str) -> float:
        return self.metric("federation_connections_finished_total", result=result)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all series with these labels."""
        return sum(
            sample.value
            for metric in self.metrics.collect()
            for sample in metric.samples
            if sample.name == name and sample.labels.items() >= labels.items()
        )


@asynccontextmanager
async def network(
    clock: trio.testing.MockClock | None = None,
    *,
    own_backend: bool = False,
    http: bool = False,
    keys: ClientKeys | None = None,
    offers: tuple[Endpoint, ...] = (),
    **settings: Any,
) -> AsyncIterator[Net]:
    """When the block ends all clients leave, and nothing may be left of them. `offers`: backends that never come up."""
    backend = Listener() if own_backend else None
    made = Settings(backends=(backend.address,) if backend else offers, **settings)
    reactor = CountingReactor()
    selector = Selector(Policy(made.policy), entry_id=OWN, rng=random.Random(1))
    backends = Backends(reactor, made, on_change=lambda: frontend.dispatcher.look_again(), on_load=lambda _entry_id: None)
    roster = FakeRoster(backends.services)
    metrics = Metrics()
    frontend = Frontend(
        reactor,
        made,
        roster=roster,
        selector=selector,
        backends=backends,
        metrics=metrics,
        keys=keys,
    )
    (at,) = frontend.listen(Endpoint.parse("http://127.0.0.1:0" if http else "127.0.0.1:0", protocols=("http",)))
    port = at.port
    net = Net(clock, reactor, frontend, roster, selector, backends, port, backend, metrics, http)
    try:
        async with running(reactor), in_real_time(MAX_WAIT_S):
            yield net
            await everybody_leaves(net)
            frontend.stop_listening()
            assert len(reactor) == 0, "a descriptor was left in the set"
    finally:
        frontend.stop_listening()
        for client in net.clients:
            client.socket.close()
        if backend is not None:
            backend.close()


@asynccontextmanager
async def in_real_time(seconds: float) -> AsyncIterator[None]:
    """A deadline that does not wait for the mock clock."""
    over = threading.Event()

    def watch() -> None:
        assert over.wait(seconds), "the test hangs"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.to_thread.run_sync, watch, abandon_on_cancel=True))
        try:
            yield
        finally:
            over.set()


async def everybody_leaves(net: Net) -> None:
    frontend = net.frontend
    for client in net.clients:
        if client.socket.fileno() >= 0:
            reset(client)
    await settled(lambda: not frontend.active)
    if net.is_http:
        for tunnel in net.tunnels:
            if tunnel.eof:
                tunnel.ends()  # a backend closes behind its answer
    net.backends.kept.drop_all()
    assert net.in_flight() == {}, "a peer's counter was not given back"
    assert frontend.idle.is_set()
    assert not frontend.dispatcher.waiting
    bodies = frontend.dispatcher.bodies
    assert (bodies.used, len(bodies)) == (0, 0), "a body that is kept no more still counts"
    await settled(lambda: net.backends.in_flight == 0)
    timers = [timer.callback for queue in net.reactor._timers.values() for timer in queue]
    assert timers == [], "a timer was left"
    assert [t.peer_id for t in net.tunnels if not t.closed and not t.eof] == [], "a tunnel was left open"
    assert net.metric("federation_connections_finished_total") == frontend.counters.totals.started


__all__ = ["OWN", "FakeLink", "FakeRoster", "Net", "Tunnel", "everybody_leaves", "network", "record", "settled"]
