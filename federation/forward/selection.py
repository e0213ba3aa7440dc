"""The choice of the peer for the next connection. No I/O and no clock: callers pass `now`.

Least loaded, in ordered tiers; the first difference wins (the policy of LocalAI's replica routing):

0. for a request that names a model: in memory before on disk, while warmth.py says so;
   for one of a conversation: its home, which http/homes.py names only while its load is within a bound;
1. least in flight, from all entries: what this entry has there, and what the peer said last of the others;
2. a near path before one that is slower by more than --path-penalty: only a large difference counts, see `distant_peers`;
3. least recently used by this entry, for the model if one is named. Without this tier the fattest GPU wins every tie and
   the others sit idle;
4. most free VRAM.

Above them: a peer at its capacity comes after every peer with room; where all are full and say so themselves, nobody is
picked. Below them, for a full tie: a hash that differs from entry to entry, so that entries that know nothing of each other
do not all agree on one peer.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from heapq import nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from federation.forward.route import Route
from federation.ratelimit import Bucket

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence, Set

ANY_ROUTE = Route("default")
NEVER = float("-inf")  # last_used of a peer that this entry has not used yet

# A peer that sends all requests back, and always tells of a free place, would have this entry ask without end. An honest one
# does so where other entries are faster, once for each place that gets free.
BACK_A_SECOND, BACK_AT_ONCE = 100.0, 32.0
LONGEST_REST_S = 1.0  # as after a request that was refused

MAX_MODELS = 1024  # whose use is remembered: a client may ask for more than there are

_MOST_IN_FLIGHT = 1_000_000  # a report is at most what a node can be set to take


class Policy(str, Enum):
    LEAST_LOADED = "least-loaded"
    LEAST_REQUESTS = "least-requests"  # for backends that take equally long for each
    RANDOM = "random"


class Node(Protocol):
    """A node, as a pick uses it; records.NodeData implements this."""

    @property
    def peer_id(self) -> str: ...
    @property
    def available_vram(self) -> int: ...
    @property
    def capacity(self) -> int: ...


class Candidate(NamedTuple):
    """One peer as a pick saw it. VRAM in bytes; `last_used` on the caller's clock; capacity 0 is no limit."""

    peer_id: str
    in_flight: int
    last_used: float
    available_vram: int
    served: int = 0
    tiebreak: int = 0
    capacity: int = 0
    is_distant: bool = False  # its path is slower than the nearest one's by more than the penalty
    others: int = 0  # of those in flight: not this entry's
    says_full: bool = False
    is_away: bool = False  # another one is the home of the request's conversation
    is_cold: bool = False  # the model is on disk there
    is_left_cold: bool = False  # and stays there if others can take the request

    @property
    def is_full(self) -> bool:
        return self.says_full or 0 < self.capacity <= self.in_flight

    @property
    def missing_vram(self) -> int:
        """Smaller is better, as everywhere in an order."""
        return -self.available_vram


class Order:
    """Candidates compared by tiers of (name, attribute of Candidate), smallest first: the first difference decides."""

    def __init__(self, *tiers: tuple[str, str]) -> None:
        self.tiers = tuple(name for name, _ in tiers)
        self.key: Callable[[Candidate], tuple[Any, ...]] = attrgetter(*(a for _, a in tiers), "tiebreak", "peer_id")


BY_LOAD = Order(
    ("capacity", "is_full"),
    ("warm", "is_left_cold"),
    ("home", "is_away"),
    ("in_flight", "in_flight"),
    ("path", "is_distant"),
    ("last_used", "last_used"),
    ("available_vram", "missing_vram"),
)
BY_REQUESTS = Order(
    ("capacity", "is_full"),
    ("warm", "is_left_cold"),
    ("served", "served"),
    ("path", "is_distant"),
    ("available_vram", "missing_vram"),
)


_ORDERS = {Policy.LEAST_LOADED: BY_LOAD, Policy.LEAST_REQUESTS: BY_REQUESTS, Policy.RANDOM: None}


def pick_best(candidates: Sequence[Candidate], order: Order) -> Candidate | None:
    """The first candidate in that order; None if there are none."""
    return min(candidates, key=order.key, default=None)


def pick_random(candidates: Sequence[Candidate], rng: random.Random) -> Candidate | None:
    """A random candidate that has room and loads no model without need, or any if none has; None if there are none."""
    if not candidates:
        return None
    able = [c for c in candidates if not c.is_full] or candidates
    return rng.choice([c for c in able if not c.is_left_cold] or able)


def distant_peers(paths: Mapping[str, tuple[float, bool]], penalty_s: float) -> frozenset[str]:
    """The peers whose path is slower than the nearest one's by more than `penalty_s`; 0 switches it off.

    `paths`: peer -> (round trip in seconds, is it relayed). A relay costs half the penalty beside its round trip: it
    takes the bandwidth of another node.
    """
    if not penalty_s or len(paths) < 2:
        return frozenset()
    costs = {peer: rtt_s + (penalty_s / 2 if relayed else 0.0) for peer, (rtt_s, relayed) in paths.items()}
    nearest = min(costs.values())
    return frozenset(peer for peer, cost in costs.items() if cost - nearest > penalty_s)


class Pick(NamedTuple):
    """A choice, and by which order it was made; None: by chance."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    order: Order | None

    @property
    def tier(self) -> str:
        """The first tier in which the chosen is ahead of the runner-up. Found on demand: picks are many."""
        if len(self.candidates) < 2:
            return "only"
        if self.order is None:
            return "random"
        keys = nsmallest(2, map(self.order.key, self.candidates))
        tier = next((t for t, best, second in zip(self.order.tiers, *keys, strict=False) if best != second), "tiebreak")
        return "cold" if tier == "warm" and self.chosen.is_cold else tier


@dataclass(slots=True)
class _Load:
    """The load of one peer, as far as this entry knows.

    `own` is exact: connections of this entry from the pick to the release. `others` is what the peer said last of all other
    entries, and its own clients. So a lie of the peer draws no more connections than an idle honest one gets. A peer that
    `tells` has said so itself, by the present link. A peer that `is_fresh` tells each change. One that `is_full` has said
    so, and says when it has room.
    """

    tiebreak: int
    own: int = 0
    others: int = 0
    tells: bool = False
    is_fresh: bool = False
    is_full: bool = False
    last_used: float = NEVER
    served: int = 0
    turns: int = 0  # `served`, levelled: see Selector._level
    sent_back: Bucket | None = None  # requests since the last one that it took

    @property
    def in_flight(self) -> int:
        return self.own + self.others

    def use(self, now: float) -> None:
        self.own += 1
        self.last_used = now
        self.served += 1
        self.turns += 1

    def release(self) -> None:
        if not self.own:
            raise ValueError("released more often than picked")
        self.own -= 1


class Selector:
    """The picks of one entry. Its `entry_id`, a peer id, only settles full ties, differently for each entry.

    Nothing is guessed of other entries. Exits tell their load as it changes (`told`), and compare it with what the entry
    believed when they are asked; where that was too little, the entry hears it and picks again.
    """

    def __init__(self, policy: Policy = Policy.LEAST_LOADED, *, entry_id: str = "", rng: random.Random) -> None:
        self.policy = policy
        self._order: Order | None = _ORDERS[policy]
        self._entry_id = entry_id
        self._rng = rng
        self._loads: dict[str, _Load] = {}
        self._last_round: dict[str, frozenset[str]] = {}  # service -> the candidates of its last pick
        self._used: OrderedDict[str, dict[str, float]] = OrderedDict()  # model -> peer id -> when

    def pick(
        self,
        nodes: Sequence[Node],
        *,
        now: float,
        route: Route = ANY_ROUTE,
        distant: Set[str] = frozenset(),
        home: str = "",
        cold: Set[str] = frozenset(),
        left_cold: Set[str] = frozenset(),
    ) -> Pick | None:
        """Choose among `nodes` and count the connection there, in one step: no two picks see the same load.

        `distant`: peer ids, of `distant_peers`. `home`: a peer id, "" where there is none. `cold`, `left_cold`: peer ids, of
        warmth.py.

        The caller must `release` the pick, also if the connection comes to nothing. None if there are no nodes, or if all
        are full and have told so themselves.
        """
        loads = self._loads
        if self.policy is Policy.LEAST_REQUESTS:
            self._level(route.service, {node.peer_id: self._load(node.peer_id) for node in nodes})
        used = self._used_for(route.model) if route.model else None
        seen = []
        for node in nodes:
            peer_id = node.peer_id
            load = loads.get(peer_id) or self._load(peer_id)
            seen.append(
                Candidate(
                    peer_id, load.own + load.others, load.last_used if used is None else used.get(peer_id, NEVER),
                    node.available_vram, load.turns, load.tiebreak, node.capacity, peer_id in distant,
                    load.others, load.is_full,
                    home != "" and peer_id != home, peer_id in cold, peer_id in left_cold,
                )
            )  # fmt: skip
        candidates = tuple(seen)
        pick = self._choose(candidates)
        if pick is not None and pick.chosen.is_full:  # so all are; of a peer that never told, that may be old news
            pick = self._choose(tuple([c for c in candidates if not loads[c.peer_id].tells]))
        if pick is not None:
            loads[pick.chosen.peer_id].use(now)
            if used is not None:
                used[pick.chosen.peer_id] = now
        return pick

    def release(self, peer_id: str) -> None:
        """A connection that `pick` counted is over."""
        self._loads[peer_id].release()

    def accepted(self, peer_id: str) -> None:
        """The peer's backend has a request."""
        self._loads[peer_id].sent_back = None

    def sent_back(self, peer_id: str, now: float) -> float:
        """The peer sent a request back for its load. Returns for how many seconds it is not to be asked."""
        load = self._loads[peer_id]
        if load.sent_back is None:
            load.sent_back = Bucket(BACK_A_SECOND, BACK_AT_ONCE)
        return min(load.sent_back.spend(now), LONGEST_REST_S)

    def told(self, peer_id: str, others: int, *, is_fresh: bool = True) -> None:
        """The peer says what it serves now, but for this entry's connections. It has room, as far as that says.

        `is_fresh`: the peer will tell each change, too.
        """
        load = self._load(peer_id)
        load.others = min(others, _MOST_IN_FLIGHT)
        load.tells, load.is_fresh, load.is_full = True, is_fresh, False

    def full(self, peer_id: str) -> None:
        """The peer says that it takes no more for now; `told` follows when it does."""
        load = self._load(peer_id)
        load.tells = load.is_full = True

    def reported(self, peer_id: str, in_flight: int) -> None:
        """The peer's record says what it served some time ago. It counts unless the peer tells each change."""
        load = self._load(peer_id)
        if not load.is_fresh:
            load.others = max(0, min(in_flight, _MOST_IN_FLIGHT) - load.own)

    def stale(self, peer_id: str) -> None:
        """The peer tells its load no more."""
        if peer_id in self._loads:
            self._loads[peer_id].is_fresh = False

    def lost(self, peer_id: str) -> None:
        """The link to the peer is gone, and what it said with it."""
        if peer_id in self._loads:
            load = self._loads[peer_id]
            load.others, load.tells, load.is_fresh, load.is_full = 0, False, False, False

    def forget(self, peer_id: str) -> None:
        """The peer is gone for good. Connections still open to it stay counted until they are released."""
        self.lost(peer_id)
        for used in self._used.values():
            used.pop(peer_id, None)
        if not self.own_in_flight(peer_id):
            self._loads.pop(peer_id, None)

    def in_flight(self, peer_id: str) -> int | None:
        """The load of the peer as this entry believes it; None if the entry has never heard of the peer."""
        return self._loads[peer_id].in_flight if peer_id in self._loads else None

    def has_room(self, node: Node) -> bool:
        """Whether the node takes one more, as far as this entry knows."""
        load = self._loads.get(node.peer_id)
        return load is None or not (load.is_full or 0 < node.capacity <= load.in_flight)

    def last_used(self, peer_id: str, model: str = "") -> float:
        """When this entry picked it last, for that model if one is given; NEVER if it did not."""
        if model:
            return self._used.get(model, {}).get(peer_id, NEVER)
        return self._loads[peer_id].last_used if peer_id in self._loads else NEVER

    def own_in_flight(self, peer_id: str) -> int:
        return self._loads[peer_id].own if peer_id in self._loads else 0

    def total_served(self, peer_id: str) -> int:
        """Picks so far, those included that came to nothing and were retried elsewhere."""
        return self._loads[peer_id].served if peer_id in self._loads else 0

    def _load(self, peer_id: str) -> _Load:
        load = self._loads.get(peer_id)
        if load is None:
            digest = blake2b(f"{self._entry_id} {peer_id}".encode(), digest_size=8).digest()
            load = self._loads[peer_id] = _Load(tiebreak=int.from_bytes(digest, "big"))
        return load

    def _used_for(self, model: str) -> dict[str, float]:
        used = self._used.get(model)
        if used is None:
            used = self._used[model] = {}
            if len(self._used) > MAX_MODELS:
                self._used.popitem(last=False)
        self._used.move_to_end(model)
        return used

    def _level(self, service: str, loads: dict[str, _Load]) -> None:
        """A peer that joins, or comes back, starts level with the one furthest behind of the last round's candidates.

        Or else it would get everything until its count has caught up.
        """
        last_round = self._last_round.get(service, frozenset())
        regulars = [load for peer_id, load in loads.items() if peer_id in last_round]
        regulars = regulars or [load for load in loads.values() if load.served]
        level = min((load.turns for load in regulars), default=0)
        for load in loads.values():
            load.turns = max(load.turns, level)
        self._last_round[service] = frozenset(loads)

    def _choose(self, candidates: tuple[Candidate, ...]) -> Pick | None:
        order = self._order
        chosen = pick_random(candidates, self._rng) if order is None else pick_best(candidates, order)
        return None if chosen is None else Pick(chosen, candidates, order)
