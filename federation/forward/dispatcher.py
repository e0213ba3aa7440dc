"""The dispatcher of a node picks a peer for each attempt, by roster and selector, knows the links, and dials own backends.

The attempts of all clients share it. It also knows which of them wait for a peer, and sends them on when the roster changes.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Protocol

from federation.forward.counters import Decision
from federation.forward.exit import Serving
from federation.forward.http.homes import Homes
from federation.forward.http.ids import Ids, digest_of
from federation.forward.http.kept_bodies import KeptBodies
from federation.forward.retry_budget import RetryBudget
from federation.forward.sample import SAMPLE
from federation.forward.warmth import NONE_COLD, Warmth
from federation.forward.watching import Watching
from federation.ratelimit import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set

    from federation.config import Settings
    from federation.forward.attempts import Attempts, Dialling, PeerLink, Request
    from federation.forward.backends import Backends
    from federation.forward.counters import Counters, Flow
    from federation.forward.exit import Done
    from federation.forward.route import Route
    from federation.forward.selection import Candidate, Node, Selector
    from federation.forward.warmth import Cold
    from federation.mesh.models import Catalog, Model
    from federation.reactor.loop import Reactor

BROKE_OFF_PENALTY_S = 1.0
# A place of this node is free: so long it is left to other entries if it is their turn. They hear of it after 5 ms
# (pushing.COALESCE_S); the way there and back comes on top.
OTHERS_TURN_S = 0.01
QUESTIONS_A_SECOND, QUESTIONS_AT_ONCE = 2.0, 20.0  # a client can name any ids, and each question goes to all peers
RAREST_TURN = 1 / 16  # after turns that nobody used: of near entries, that costs less than a millisecond a connection


class Roster(Protocol):
    """The peers that may serve now; see roster.py, over ledger, links, health and penalties."""

    own_id: str

    def eligible(self, route: Route) -> Sequence[Node]: ...
    def distant(self, route: Route) -> Set[str]: ...
    def catalogs(self, service: str) -> Sequence[Catalog]: ...
    def models_at(self, route: Route) -> Mapping[str, Model]: ...
    def speaks_http(self, service: str) -> bool: ...
    def is_unheard_of(self, route: Route) -> bool: ...
    def is_known(self, target: str) -> bool: ...
    def lacks(self, route: Route, peer_id: str) -> None: ...
    def link(self, peer_id: str) -> PeerLink | None: ...
    def penalize(self, peer_id: str, seconds: float) -> None: ...


class Place(NamedTuple):
    """A request among those that wait for a peer: the order is that in which they came to this entry."""

    started_at: float
    flow: Flow
    number: int  # of the wait: no two places are equal
    route: Route
    attempts: Attempts


class Replica(NamedTuple):
    """A node, as the search for a home sees it."""

    peer_id: str
    load: int
    weight: float = 1.0


class RosterDispatcher:
    """The attempts.Dispatcher of a node."""

    def __init__(
        self,
        reactor: Reactor,
        settings: Settings,
        *,
        roster: Roster,
        selector: Selector,
        backends: Backends,
        counters: Counters,
        rng: random.Random | None = None,
        name_of: Callable[[str], str] = str,
    ) -> None:
        """`name_of(peer_id)`: a node's name for people."""
        self.own_id = roster.own_id
        self.name_of = name_of
        self.counters = counters
        self.catalogs = roster.catalogs
        self.is_unheard_of = roster.is_unheard_of
        self.is_known = roster.is_known
        self.lacks = roster.lacks
        self.link = roster.link
        self.accepted = selector.accepted
        self.penalize = roster.penalize
        self.call_later = reactor.call_later
        self.waiting: dict[Attempts, Place] = {}
        self._queues: dict[Route, list[Place]] = {}  # of those who wait, each in its order; none is empty
        self._numbers = count()
        self._is_retrying = False
        self.own_load_is_news = False  # the own backends' load changed since the selector heard of it
        self._reactor = reactor
        self._roster = roster
        self._selector = selector
        self._backends = backends
        self._rng = rng or random.Random()
        self.look_for_models: Callable[[str], None] = _noop  # of a service's own backend, now
        self.ways_of_others: Callable[[], Sequence[float]] = tuple  # round trips to the entries that watch this node
        self._own_load = 0  # of the own backends
        self._is_others_turn = self._is_turn_used = False
        self._turns_used = 1.0  # as a share
        self._watching = Watching(roster.own_id, selector, roster.link, self._rng)
        self._homes = Homes()
        self._warmth = Warmth()
        self._ids = Ids()
        self._questions = Bucket(QUESTIONS_A_SECOND, QUESTIONS_AT_ONCE)
        self.ask_others: Callable[[bytes, Callable[[str], None]], None] = _nobody  # which node has made a thing
        self.retries = RetryBudget()
        self.bodies = KeptBodies(settings.http_buffer_bytes, reactor.flush_soon)
        self._retry_is_queued = False
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Set limits for the next step of every request."""
        self.hold_s = settings.hold_s
        self.open_timeout_s = settings.open_timeout_s
        self.replay = settings.replay
        self.replay_buffer_bytes = settings.replay_buffer_bytes
        self.bodies.each = settings.http_buffer_bytes
        self.has_affinity = settings.affinity == "on"

    def now(self) -> float:
        return self._reactor.now()

    def pick(self, request: Request, tried: Set[str], attempt: int, again: int = 0) -> Candidate | None:
        route, now = request.route, self._reactor.now()
        if self._queues and route in self._queues and not self._is_retrying:
            self.look_again()  # others came before
            return None
        nodes: Sequence[Node] = self._roster.eligible(route)
        seen = self._watching.look(route, nodes, now)
        if tried:
            nodes = [node for node in nodes if node.peer_id not in tried]
            seen = [node for node in seen if node.peer_id not in tried]
        if self.own_load_is_news and not self._is_others_turn:
            self.own_load_is_news = False
            self._selector.told(self.own_id, self._backends.load.by_others(""))
        distant = self._roster.distant(route)
        home, cold = "", NONE_COLD
        if route.model or request.keys.k0:
            home, cold, seen = self._wishes(request, nodes, seen, now)
        pick = self._selector.pick(
            seen, now=now, route=route, distant=distant, home=home, cold=cold.all, left_cold=cold.left
        )  # fmt: skip
        if pick is None and len(seen) < len(nodes):  # those that it looks at are full
            pick = self._selector.pick(nodes, now=now, route=route, distant=distant, cold=cold.all, left_cold=cold.left)
        if pick is None:
            return None
        self.counters.decisions.append(Decision(now, route, request.client_name, pick, attempt, request.flow, again))
        return pick.chosen

    def _wishes(
        self, request: Request, nodes: Sequence[Node], seen: Sequence[Node], now: float
    ) -> tuple[str, Cold, Sequence[Node]]:
        """The home of the request's conversation, the nodes where its model is cold, and whom to pick from: those that are
        seen, and whom these two ask for."""
        route = request.route
        models = self._roster.models_at(route) if route.model else {}
        cold = self._warmth.judge(route, nodes, models, self._selector, now) if models else NONE_COLD
        warm = [node for node in nodes if node.peer_id not in cold.left] if cold.left else nodes
        home = self._home(request, warm, models, now) if request.keys.k0 and self.has_affinity else ""
        if len(seen) < len(nodes):
            if home:
                seen = [*(node for node in seen if node.peer_id != home), *(n for n in nodes if n.peer_id == home)]
            elif cold.left and all(node.peer_id in cold.left for node in seen):
                seen = [*seen, *warm[:SAMPLE]]
        return home, cold, seen

    def _home(self, request: Request, nodes: Sequence[Node], models: Mapping[str, Model], now: float) -> str:
        """The peer that has the beginning of the request's prompt in its cache, and not too much to do."""
        loads = self._selector.in_flight
        slots = [models[node.peer_id].slots if node.peer_id in models else 0 for node in nodes]
        weights = slots if all(slots) else [1] * len(nodes)
        replicas = [Replica(n.peer_id, loads(n.peer_id) or 0, weight) for n, weight in zip(nodes, weights, strict=True)]
        found = self._homes.choose(request.keys, replicas, now)
        return "" if found is None else found.peer_id

    def look(self, route: Route, peer_id: str) -> None:
        if peer_id == self.own_id:
            self.look_for_models(route.service)
        elif (link := self.link(peer_id)) is not None:
            link.look(route.service, self._reactor.now())

    def made(self, route: Route, name: str, peer_id: str) -> None:
        self._ids.made(route.service, name, peer_id, self._reactor.now())

    def route_to(self, route: Route, name: str) -> Route | None:
        maker = self._ids.maker(route.service, name, self._reactor.now())
        if maker:
            return route._replace(target=maker)
        return route if len(self._roster.eligible(route)) < 2 else None

    def find_maker(self, route: Route, name: str, done: Callable[[Route | None], None]) -> None:
        def told(peer_id: str) -> None:
            if peer_id and self._roster.is_known(peer_id):
                self.made(route, name, peer_id)
            done(self.route_to(route, name))

        if self._questions.take(self._reactor.now()):
            self.ask_others(digest_of(route.service, name), told)
        else:
            done(None)

    def maker_by(self, digest: bytes) -> str:
        """What another entry asks."""
        return self._ids.maker_by(digest, self._reactor.now())

    def release(self, peer_id: str) -> None:
        self._selector.release(peer_id)
        if not self._is_retrying:  # a retry looks by itself; a peer that cannot be opened must not cause another one
            self.look_again()

    def has_other(self, route: Route, tried: Set[str]) -> bool:
        return any(node.peer_id not in tried for node in self._roster.eligible(route))

    def dial(self, route: Route, done: Done, *, takes_kept: bool | None = None) -> Dialling:
        backends = self._backends
        self.own_load_is_news = True  # also where it does not rise: the pick has counted
        backend = backends.choose(route.service)
        return Serving(backends, backend, done, keeps=takes_kept is not None, takes_kept=bool(takes_kept))

    def spare_descriptors(self) -> None:
        """Others need them more than idle connections of backends do."""
        self._backends.kept.drop_all()

    def broke_off(self, route: Route, peer_id: str) -> None:
        """A backend that fails fast looks least loaded and would attract every new client, so its peer pauses."""
        eligible = [node.peer_id for node in self._roster.eligible(route)]
        if peer_id in eligible and len(eligible) > 1:
            self._roster.penalize(peer_id, BROKE_OFF_PENALTY_S)

    def sent_back(self, peer_id: str, *, is_full: bool) -> None:
        if is_full:
            self._selector.full(peer_id)
        if (rest_s := self._selector.sent_back(peer_id, self._reactor.now())) > 0:
            self.penalize(peer_id, rest_s)

    def own_load_changed(self, entry_id: str) -> None:
        """The own backends serve one more or one less, of that peer or of this node's clients ("").

        This node sees a free place before its peers can, and its own clients would take every one. If own clients wait,
        chance gives the place to them or to one of the entries that watch, as if each of these entries stood in a line.
        """
        load, before = self._backends.in_flight, self._own_load
        self._own_load = load
        self.own_load_is_news = True
        if self._is_others_turn:
            self._is_turn_used |= load > before and bool(entry_id)
        elif load < before and self.waiting and (ways := self.ways_of_others()) and self._is_for_others(len(ways)):
            self._is_others_turn, self._is_turn_used = True, False
            self._selector.full(self.own_id)
            self.call_later(OTHERS_TURN_S + max(ways), self._own_turn)
        else:
            self.look_again()

    def _is_for_others(self, entries: int) -> bool:
        return self._rng.random() < entries / (entries + 1) * self._turns_used

    def _own_turn(self) -> None:
        self._is_others_turn = False
        self.own_load_is_news = True
        self._turns_used = 1.0 if self._is_turn_used else max(self._turns_used / 2, RAREST_TURN)
        self.look_again()

    # Requests that wait

    def why_none(self, request: Request) -> str:
        nodes = self._roster.eligible(request.route)
        if not nodes or any(self._selector.has_room(node) for node in nodes):
            return "no peer is available"
        is_layer_4 = request.takes_kept is None
        counts = ", where a connection that its client only keeps (idle, keep-alive) counts too" if is_layer_4 else ""
        return f"no peer is available: all are at their capacity{counts}"

    def wait(self, attempts: Attempts, request: Request) -> None:
        if attempts not in self.waiting:
            place = Place(request.started_at, request.flow, next(self._numbers), request.route, attempts)
            self.waiting[attempts] = place
            insort(self._queues.setdefault(request.route, []), place)

    def stop_waiting(self, attempts: Attempts) -> None:
        place = self.waiting.pop(attempts, None)
        if place is not None:
            queue = self._queues[place.route]
            del queue[bisect_left(queue, place)]
            if not queue:
                del self._queues[place.route]

    def look_again(self) -> None:
        """The roster or a load changed: requests that wait for a peer look again, once for many changes."""
        if self.waiting and not self._retry_is_queued:
            self._retry_is_queued = True
            self._reactor.flush_soon(self._retry_waiting)

    def _retry_waiting(self) -> None:
        """In their order; where one of a route finds no peer, those behind it would not either."""
        self._retry_is_queued = False
        self._is_retrying = True
        try:
            for route in list(self._queues):
                while queue := self._queues.get(route):
                    attempts = queue[0].attempts
                    attempts.try_again()
                    if attempts in self.waiting:
                        break
        finally:
            self._is_retrying = False

    def reject_waiting(self, why: str) -> None:
        for attempts in list(self.waiting):
            attempts.reject(why)  # which ends its wait

    def forget_waiting(self) -> None:
        """Nobody is told any more."""
        self.waiting.clear()
        self._queues.clear()


def _nobody(_digest: bytes, told: Callable[[str], None]) -> None:
    told("")


def _noop(_service: str) -> None:
    """Until the node watches its backends' models."""
