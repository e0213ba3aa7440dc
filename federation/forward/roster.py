"""The peers that may serve a new connection now: online and healthy by the ledger, linked here, and not penalised.

Kept as a list per service until something changes, since every new connection asks. No I/O; the clocks are passed in.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import structlog
import trio

from federation.forward.route import Route
from federation.forward.selection import distant_peers
from federation.mesh.models import is_called, unpack
from federation.units import is_peer_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from federation.mesh.ledger import Ledger
    from federation.mesh.models import Catalog, Model
    from federation.mesh.records import NodeData
    from federation.net.link.link import Link
    from federation.reactor.loop import Reactor

log = structlog.get_logger(__name__)

MAX_LISTS = 1000  # a client may ask for models that nobody has, without end
LACKS_S = 6.0  # a node looks at its models every 5 s (model_watch.EVERY_S), and the news takes some 10 ms
MAX_LACKING = 1000
SAME_PENALTY = 0.1  # a penalty that would last so little longer than the one that runs, as a share, is that one
REFRESH_S = 1.0  # no event tells when a record grows too old to be online


class Roster:
    """`own()` is this node's record as of now, with the health of its own backends; `on_change` hears of every change."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        links: Mapping[str, Link],
        own: Callable[[], NodeData],
        utc_now: Callable[[], datetime],
        reactor: Reactor,
        target: str | None = None,
        path_penalty_s: float = 0.0,
    ) -> None:
        self._ledger = ledger
        self._links = links
        self._own = own
        self._utc_now = utc_now
        self._reactor = reactor
        self._target = target
        self._namesakes_said = False
        self._path_penalty_s = path_penalty_s
        self._distant: dict[str, frozenset[str]] = {}  # by service, for as long as its list
        self._penalties: dict[str, float] = {}
        self._lists: dict[tuple[str, str], list[NodeData]] = {}  # by service and model
        self._models: dict[tuple[str, str], dict[str, Model]] = {}  # likewise: the model at each node that announces it
        self._lists_until = 0.0
        self._lacking: dict[tuple[str, str, str], float] = {}  # peer, service and model: until when it is asked last
        self._http: frozenset[str] | None = None  # the services that speak it, for as long as the lists
        self.own_id = own().peer_id
        self.on_change: Callable[[], None] = _noop

    def eligible(self, route: Route) -> list[NodeData]:
        """The nodes that may serve; do not change the list. With a model: those that announce it, else those that announce
        no models at all, or not all of them. With a kind of server: those that have one, else all."""
        now = self._refreshed()
        service, model = route.service, route.model
        if route.target:
            return [node for node in self.eligible(Route(service)) if route.target in (node.peer_id, node.name)]
        if route.kind and not model:
            able = self.eligible(Route(service))
            return [node for node in able if _kind(node, service) == route.kind] or able
        nodes = self._lists.get((service, model))
        if nodes is None:
            nodes = self._find(service, now) if not model else self._having(service, model, now)
            self._lists[service, model] = nodes
            if not model:
                self._distant[service] = self._find_distant(nodes)
        return nodes

    def catalogs(self, service: str) -> list[Catalog]:
        """The models of the nodes that serve, as far as they announce any: also of those that are left alone for a moment,
        or a list would lack their models for as long."""
        announced = (catalogs_of(node.models).get(service) for node in self._serving(service))
        return [catalog for catalog in announced if catalog is not None]

    def speaks_http(self, service: str) -> bool:
        """Whether a node of the network says so: also one that is away, so that clients hear of that in HTTP."""
        self._refreshed()
        if self._http is None:
            records = [*self._ledger.records(), self._own()]
            self._http = frozenset(name for record in records if not record.left for name in record.http)
        return service in self._http

    def is_unheard_of(self, route: Route) -> bool:
        """Whether all nodes with that service tell which models they have, online or not, and none has this one."""
        if self.eligible(route):
            return False
        records = [record for record in self._ledger.records() if record.peer_id != self.own_id and not record.left]
        return is_unheard_of((*records, self._own()), route)

    def models_at(self, route: Route) -> Mapping[str, Model]:
        """Peer id -> the route's model as that node has it; of the eligible nodes those that announce it."""
        key = service, model = route.service, route.model
        nodes, models = self.eligible(Route(service, model)), self._models.get(key)
        if models is None:
            found = {node.peer_id: model_of(node, service, model) for node in nodes}
            models = self._models[key] = {peer_id: model for peer_id, model in found.items() if model is not None}
        return models

    def _having(self, service: str, model: str, now: float) -> list[NodeData]:
        nodes = self.eligible(Route(service))
        having = [node for node in nodes if has_model(node, service, model)]
        if having:
            lacking = self._lacking
            return [node for node in having if lacking.get((node.peer_id, service, model), 0.0) <= now] or having
        return [node for node in nodes if (its := catalogs_of(node.models).get(service)) is None or not its.is_whole]

    def distant(self, route: Route) -> frozenset[str]:
        """The eligible peers that are much further away than the nearest, by peer id."""
        return self._distant.get(route.service, frozenset())

    def _find_distant(self, nodes: list[NodeData]) -> frozenset[str]:
        paths = {self.own_id: (0.0, False)} if any(node.peer_id == self.own_id for node in nodes) else {}
        for node in nodes:
            if (link := self._links.get(node.peer_id)) is not None:
                paths[node.peer_id] = (link.least_rtt_s or 0.0, link.path == "relayed")
        return distant_peers(paths, self._path_penalty_s)

    def _find(self, service: str, now: float) -> list[NodeData]:
        self._say_namesakes()
        return [node for node in self._serving(service) if self._penalties.get(node.peer_id, 0.0) <= now]

    def _serving(self, service: str) -> list[NodeData]:
        own = self._own()
        others = [record for record in self._ledger.online(self._utc_now()) if record.peer_id != self.own_id]
        return [
            record
            for record in (own, *others)
            if record.offers(service) and self._is_wanted(record) and (record is own or self._reaches(record.peer_id))
        ]

    def _is_wanted(self, record: NodeData) -> bool:
        if self._target is None or record.peer_id == self._target:
            return True
        return record.name == self._target and not is_peer_id(self._target)  # a name is its node's own choice

    def namesakes(self) -> list[str]:
        """The nodes that --target means, where it is the name of several."""
        if self._target is None or is_peer_id(self._target):
            return []
        nodes = {record.peer_id: record for record in (*self._ledger.online(self._utc_now()), self._own())}
        named = sorted(peer_id for peer_id, record in nodes.items() if record.name == self._target)
        return named if len(named) > 1 else []

    def _say_namesakes(self) -> None:
        if not self._namesakes_said and (nodes := self.namesakes()):
            self._namesakes_said = True
            log.warning("--target is the name of several nodes, which all get connections", name=self._target, nodes=nodes)

    def _reaches(self, peer_id: str) -> bool:
        link = self._links.get(peer_id)
        return link is not None and not link.suspect

    def lacks(self, route: Route, peer_id: str) -> None:
        """The peer's backend says that it has no such model: ask it last, until its node has looked again."""
        if len(self._lacking) >= MAX_LACKING:
            self._lacking.clear()
        self._lacking[peer_id, route.service, route.model] = self._reactor.now() + LACKS_S
        self._lists.pop((route.service, route.model), None)

    def is_known(self, target: str) -> bool:
        """Whether a node of the network, online or not, has that name or peer id."""
        records = (self._own(), *self._ledger.records())
        return any(target in (record.peer_id, record.name) for record in records if not record.left)

    def link(self, peer_id: str) -> Link | None:
        return self._links.get(peer_id)

    def penalize(self, peer_id: str, seconds: float) -> None:
        """Send no client to the peer for `seconds`. Thousands may leave one peer in one turn, each with a penalty: the
        first makes the lists anew."""
        now = trio.current_time()
        if self._penalties.get(peer_id, 0.0) > now + seconds * (1 - SAME_PENALTY):
            return
        self._penalties[peer_id] = now + seconds
        self._reactor.call_later(seconds, self.changed)
        self._forget_lists()

    def forgive(self, peer_id: str) -> None:
        """End the penalty: the peer has restarted, so it is a new one under the old id."""
        if self._penalties.pop(peer_id, None) is not None:
            self.changed()

    def changed(self) -> None:
        """A record, a link, or the health of an own backend changed."""
        self._forget_lists()
        self.on_change()

    def _refreshed(self) -> float:
        """Now, with no list that is older than REFRESH_S."""
        now = self._reactor.now()
        if now >= self._lists_until or len(self._lists) > MAX_LISTS:
            self._forget_lists()
            self._lists_until = now + REFRESH_S
        return now

    def _forget_lists(self) -> None:
        self._lists.clear()
        self._models.clear()
        self._http = None


@lru_cache(maxsize=1024)
def catalogs_of(models: bytes) -> Mapping[str, Catalog]:
    """The models in a record, by service."""
    return unpack(models)


def _kind(node: NodeData, service: str) -> str:
    catalog = catalogs_of(node.models).get(service)
    return "" if catalog is None else catalog.kind


def has_model(node: NodeData, service: str, model: str) -> bool:
    """Whether the node announces it for that service, be it by two bytes of its name."""
    catalog = catalogs_of(node.models).get(service)
    return catalog is not None and (model_of(node, service, model) is not None or catalog.may_have(model))


def model_of(node: NodeData, service: str, model: str) -> Model | None:
    """The model of that name as the node announces it for that service."""
    catalog = catalogs_of(node.models).get(service)
    if catalog is None:
        return None
    return next((known for known in catalog.models if is_called(known.name, model, catalog.kind)), None)


def is_unheard_of(records: Iterable[NodeData], route: Route) -> bool:
    """Whether all of them that have the service tell which models they have, and none has this one. Where a backend does
    not tell, as one that has not been checked yet, or none is known at all, the model may turn up."""
    telling = [record for record in records if route.service in record.services]
    listed = [catalogs_of(record.models).get(route.service) for record in telling]
    if not listed or not all(catalog is not None and catalog.is_whole for catalog in listed):
        return False
    return not any(has_model(record, route.service, route.model) for record in telling)


def _noop() -> None:
    """Until the frontend listens."""
