"""Which models this node's backends have, asked beside the health check: at the start, then every 5 s, at once when asked.

HTTP goes only to a backend that is known to speak it. A server of another protocol (redis, postgres) would take it for an
attack or for garbage. Known to speak it is a backend

* whose address is written http://HOST:PORT, or that --health-path checks;
* whose port is the usual one of a model server (servers.USUAL_PORTS), as are those that `join` finds;
* that answered a client of its own in HTTP (models/overhearing.py): it is asked at once, then more and more rarely;

and none that is written tcp://HOST:PORT. A backend at such a port that does not answer in HTTP gets one more question in
SILENT_EVERY_S, or when it comes up again; a web server without models one in OTHER_EVERY_S.

What a backend said last stands while it does not answer: a server that loads a model is silent for a while, and its service
is not offered while it is down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from federation.forward.models.asking import Asker
from federation.forward.models.overhearing import Protocol
from federation.forward.models.servers import USUAL_PORTS, recognise
from federation.mesh.models import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_typing import TaskStatus

    from federation.forward.backends import Backend, Backends
    from federation.forward.models.servers import Kind, Said
    from federation.mesh.models import Catalog

log = structlog.get_logger(__name__)

EVERY_S = 5.0
BUSY_EVERY_S = 1.0  # while a server has requests of others: their end is known from it alone
OTHER_EVERY_S = 60.0
SILENT_EVERY_S = 300.0
LEAST_S = 0.5  # between two looks, however often somebody asks
FIRST_LOOK_S = 1.0  # what the node's start waits at most


class Known:
    """One backend and what it said of itself."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.kind: Kind | None = None
        self.said: Said | None = None
        self.next_s = EVERY_S
        self.misses = 0  # in a row, of its own paths
        self.had = 0  # of this network in flight when it was asked last
        self.outside = 0  # requests of others, by the last look alone


class ModelWatch:
    """`on_change()` is called when the models of a backend changed; `queue` of a `Said` changes without that."""

    def __init__(self, backends: Backends, *, on_change: Callable[[], None]) -> None:
        self._backends = backends
        self._on_change = on_change
        self._known: dict[Backend, Known] = {}
        self._nursery: trio.Nursery | None = None
        backends.on_repute = self._overheard
        self.packed = b""  # for the node's record
        self.http = self._speaking_http()  # services, for the record too

    def catalogs(self) -> dict[str, Catalog]:
        """Service -> the models of its backend; services without a model server are not in it."""
        return {
            backend.endpoint.service: known.said.catalog for backend, known in self._known.items() if known.said is not None
        }

    def said(self, backend: Backend) -> Said | None:
        known = self._known.get(backend)
        return None if known is None else known.said

    def look(self, service: str) -> None:
        """Ask the service's backends soon: one of them said that it lacks a model, or loaded one."""
        for backend in self._backends.all:
            if backend.endpoint.service == service:
                backend.came_up.set()

    def _overheard(self, backend: Backend) -> None:
        endpoint = backend.endpoint
        if backend.repute.speaks is Protocol.HTTP:
            log.info(
                "backend and clients speak HTTP and keep connections: each request of later ones goes its own way; "
                "tcp:// before the backend's address keeps connections whole",
                service=endpoint.service, backend=str(endpoint.address),
            )  # fmt: skip
            backend.came_up.set()
        else:
            log.info("backend speaks HTTP no more", service=endpoint.service, backend=str(endpoint.address))
        self._changed()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started when each backend was asked once, or after FIRST_LOOK_S."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            with trio.move_on_after(FIRST_LOOK_S) as scope:
                async with trio.open_nursery() as first:
                    for backend in self._backends.all:
                        first.start_soon(self._look_at, self._known_of(backend))
            for backend in self._backends.all:
                if scope.cancelled_caught:
                    backend.came_up.set()
                nursery.start_soon(self._follow, self._known_of(backend))
            task_status.started()
            await trio.sleep_forever()

    def follow(self, backend: Backend) -> None:
        """One more backend; while `run` runs."""
        assert self._nursery is not None
        self._nursery.start_soon(self._follow, self._known_of(backend))

    def _known_of(self, backend: Backend) -> Known:
        return self._known.setdefault(backend, Known(backend))

    async def _follow(self, known: Known) -> None:
        while True:
            with trio.move_on_after(known.next_s):
                await trio.sleep(LEAST_S)
                await known.backend.came_up.wait()
            await self._look_at(known)

    async def _look_at(self, known: Known) -> None:
        backend = known.backend
        backend.came_up = trio.Event()  # before the look: a wish during the look causes another one
        known.had = backend.in_flight
        if not backend.healthy or not self._may_ask(backend):
            return
        asker = Asker(backend.endpoint.address)
        if known.kind is None:
            known.kind = await recognise(asker)
        said = None if known.kind is None else await known.kind.describe(asker)
        if said is not None and asker.is_silent and known.said is not None:
            return  # half of an answer, which would call models cold that are warm
        if said is not None:
            self._heard(known, said)
        elif known.kind is not None:
            known.misses += 1
            if asker.speaks_http and known.misses > 1:
                known.kind = None  # another server by now, or one that still loads: recognised anew by the next look
        elif asker.speaks_http:
            known.next_s = OTHER_EVERY_S if self._is_told(backend) else min(2 * known.next_s, SILENT_EVERY_S)
            self._lost(known)
        elif known.said is None:
            known.next_s = SILENT_EVERY_S if asker.speaks_http is False else min(2 * known.next_s, SILENT_EVERY_S)

    def _heard(self, known: Known, said: Said) -> None:
        before, known.said, known.next_s, known.misses = known.said, said, EVERY_S, 0
        self._count(known, said)
        backend, endpoint = known.backend, known.backend.endpoint
        had_slots, backend.slots = backend.slots, said.slots
        if before is not None and before.catalog == said.catalog and had_slots == said.slots:
            return
        if before is None or before.catalog.kind != said.catalog.kind:
            log.info("backend has models", service=endpoint.service, kind=said.catalog.kind, models=len(said.catalog.models))
        self._changed(is_news=had_slots != said.slots)

    def _count(self, known: Known, said: Said) -> None:
        """What a server says of its requests is some milliseconds old: there are others where two looks in a row say so."""
        backend, queue = known.backend, said.queue
        seen = 0 if queue is None else queue.running + queue.waiting - max(known.had, backend.in_flight)
        last, known.outside = known.outside, max(0, seen)
        self._backends.has_outside(backend, min(last, known.outside))
        if known.outside:
            known.next_s = BUSY_EVERY_S

    def _lost(self, known: Known) -> None:
        """It answers, and is no model server."""
        known.misses = 0
        if known.said is not None:
            known.said = None
            known.backend.slots = 0
            self._backends.has_outside(known.backend, 0)
            self._changed()

    def _speaking_http(self) -> tuple[str, ...]:
        """Services with a backend that a person called http://, that answers as a model server does, or its clients in
        HTTP."""
        known = [backend.endpoint.service for backend, its in self._known.items() if its.said is not None]
        told = [backend.endpoint.service for backend in self._backends.all if backend.endpoint.protocol == "http"]
        heard = [b.endpoint.service for b in self._backends.all if b.repute.speaks is Protocol.HTTP]
        return tuple(sorted({*known, *told, *heard}))

    def _changed(self, *, is_news: bool = False) -> None:
        """`is_news`: also if the models are those that were told."""
        packed, http = pack(self.catalogs()), self._speaking_http()
        if (packed, http) != (self.packed, self.http) or is_news:
            self.packed, self.http = packed, http
            self._on_change()

    def _may_ask(self, backend: Backend) -> bool:
        return self._is_told(backend) or backend.repute.speaks is Protocol.HTTP

    def _is_told(self, backend: Backend) -> bool:
        """By a person, or by its port."""
        endpoint = backend.endpoint
        if endpoint.protocol:
            return endpoint.protocol == "http"
        return self._backends.are_checked_by_http or endpoint.address.port in USUAL_PORTS
