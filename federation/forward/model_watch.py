"""Which models this node's backends have, asked beside the health check: at the start, then every 5 s, at once when asked.

HTTP goes only to a backend that is known to speak it. A server of another protocol (redis, postgres) would take it for an
attack or for garbage. Known to speak it is a backend

* whose address is written http://HOST:PORT, or that --health-path checks;
* whose port is the usual one of a model server (servers.USUAL_PORTS), as are those that `join` finds;

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
OTHER_EVERY_S = 60.0
SILENT_EVERY_S = 300.0
LEAST_S = 0.5  # between two looks, however often somebody asks
FIRST_LOOK_S = 1.0  # what the node's start waits at most


class Shown:
    """One backend and what it said of itself."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.kind: Kind | None = None
        self.said: Said | None = None
        self.next_s = EVERY_S
        self.misses = 0  # in a row, of its own paths


class ModelWatch:
    """`on_change()` is called when the models of a backend changed; `queue` of a `Said` changes without that."""

    def __init__(self, backends: Backends, *, on_change: Callable[[], None]) -> None:
        self._backends = backends
        self._on_change = on_change
        self._shown: dict[Backend, Shown] = {}
        self._nursery: trio.Nursery | None = None
        self.packed = b""  # for the node's record

    def catalogs(self) -> dict[str, Catalog]:
        """Service -> the models of its backend; services without a model server are not in it."""
        return {
            backend.endpoint.service: shown.said.catalog for backend, shown in self._shown.items() if shown.said is not None
        }

    def said(self, backend: Backend) -> Said | None:
        shown = self._shown.get(backend)
        return None if shown is None else shown.said

    def look(self, service: str) -> None:
        """Ask the service's backends soon: one of them said that it lacks a model, or loaded one."""
        for backend in self._backends.all:
            if backend.endpoint.service == service:
                backend.came_up.set()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started when each backend was asked once, or after FIRST_LOOK_S."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            with trio.move_on_after(FIRST_LOOK_S) as scope:
                async with trio.open_nursery() as first:
                    for backend in self._backends.all:
                        first.start_soon(self._look_at, self._show(backend))
            for backend in self._backends.all:
                if scope.cancelled_caught:
                    backend.came_up.set()
                nursery.start_soon(self._follow, self._show(backend))
            task_status.started()
            await trio.sleep_forever()

    def follow(self, backend: Backend) -> None:
        """One more backend; while `run` runs."""
        assert self._nursery is not None
        self._nursery.start_soon(self._follow, self._show(backend))

    def _show(self, backend: Backend) -> Shown:
        return self._shown.setdefault(backend, Shown(backend))

    async def _follow(self, shown: Shown) -> None:
        while True:
            with trio.move_on_after(shown.next_s):
                await trio.sleep(LEAST_S)
                await shown.backend.came_up.wait()
            await self._look_at(shown)

    async def _look_at(self, shown: Shown) -> None:
        backend = shown.backend
        backend.came_up = trio.Event()  # before the look: a wish during the look causes another one
        if not backend.healthy or not self._may_ask(backend):
            return
        asker = Asker(backend.endpoint.address)
        if shown.kind is None:
            shown.kind = await recognise(asker)
        said = None if shown.kind is None else await shown.kind.describe(asker)
        if said is not None:
            self._heard(shown, said)
        elif shown.kind is not None:
            shown.misses += 1
            if asker.speaks_http and shown.misses > 1:
                shown.kind = None  # another server by now, or one that still loads: recognised anew by the next look
        elif asker.speaks_http:
            shown.next_s = OTHER_EVERY_S
            self._lost(shown)
        elif shown.said is None:
            shown.next_s = SILENT_EVERY_S if asker.speaks_http is False else min(2 * shown.next_s, SILENT_EVERY_S)

    def _heard(self, shown: Shown, said: Said) -> None:
        before, shown.said, shown.next_s, shown.misses = shown.said, said, EVERY_S, 0
        if before is not None and before.catalog == said.catalog:
            return
        endpoint = shown.backend.endpoint
        if before is None or before.catalog.kind != said.catalog.kind:
            log.info("backend has models", service=endpoint.service, kind=said.catalog.kind, models=len(said.catalog.models))
        self._changed()

    def _lost(self, shown: Shown) -> None:
        """It answers, and is no model server."""
        shown.misses = 0
        if shown.said is not None:
            shown.said = None
            self._changed()

    def _changed(self) -> None:
        packed = pack(self.catalogs())
        if packed != self.packed:
            self.packed = packed
            self._on_change()

    def _may_ask(self, backend: Backend) -> bool:
        endpoint = backend.endpoint
        if endpoint.protocol:
            return endpoint.protocol == "http"
        return self._backends.are_checked_by_http or endpoint.address.port in USUAL_PORTS
