"""The choice of the peer for the next connection. No I/O and no clock: callers pass `now`.

Least loaded, in ordered tiers; the first difference wins (the policy of LocalAI's replica routing):

1. least in flight: this entry's open connections there, plus the assumed ones of others;
2. a near path before one that is slower by more than --path-penalty: only a large difference counts, see `distant_peers`;
3. least recently used by this entry. Without this tier the fattest GPU wins every tie and the others sit idle;
4. most free VRAM.

Above them: a peer at its capacity comes after every peer with room. Below them, for a full tie: a hash that differs
from entry to entry, so that entries that know nothing of each other do not all agree on one peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from heapq import nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from federation.forward.route import Route

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping, Sequence, Set

ANY_ROUTE = Route("default")
NEVER = float("-inf")  # last_used of a peer that this entry has not used yet

# How the other entries behave is learnt from the reports of all peers together.
_NEWEST_WEIGHT = 1 / 8  # remembers some ten reports: a second of them, where three busy peers report four times a second
# One peer's claims must not decide the assumptions about all: its report counts as at most twice the usual surprise and
# one, and only when another peer has reported in between. So with one liar among honest peers the average stays below
# 7 connections and 8 times what it would be. A report itself is at most what a node can be set to take.
_MOST_SURPRISE = 2
_MOST_IN_FLIGHT = 1_000_000
_LEAST_PACE = 0.25  # minimum of own picks per report: avoids division by zero and over-reacting to one foreign connection


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

    @property
    def is_full(self) -> bool:
        return 0 < self.capacity <= self.in_flight

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
    ("in_flight", "in_flight"),
    ("path", "is_distant"),
    ("last_used", "last_used"),
    ("available_vram", "missing_vram"),
)
BY_REQUESTS = Order(
    ("capacity", "is_full"),
    ("served", "served"),
    ("path", "is_distant"),
    ("available_vram", "missing_vram"),
)


_ORDERS = {Policy.LEAST_LOADED: BY_LOAD, Policy.LEAST_REQUESTS: BY_REQUESTS, Policy.RANDOM: None}


def pick_best(candidates: Sequence[Candidate], order: Order) -> Candidate | None:
    """The first candidate in that order; None if there are none."""
    return min(candidates, key=order.key, default=None)


def pick_random(candidates: Sequence[Candidate], rng: random.Random) -> Candidate | None:
    """A random candidate that has room, or any if none has; None if there are none."""
    if not candidates:
        return None
    return rng.choice([c for c in candidates if not c.is_full] or candidates)


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
        return next((t for t, best, second in zip(self.order.tiers, *keys, strict=False) if best != second), "tiebreak")


@dataclass(slots=True)
class _Load:
    """The load of one peer, as far as this entry knows.

    A report is some tenths of a second old, and its number holds our own connections of then, not of now: at least the
    fewest and at most the most that we had there since the last report but one. So it only bounds the others' number
    there, and within these bounds the belief stays as it was. (Subtracting our number at its arrival takes our own
    requests that ended meanwhile for another entry's, and shuns the peer until it reports again.)
    """

    tiebreak: int
    own: int = 0
    last_used: float = NEVER
    served: int = 0
    turns: int = 0  # `served`, levelled: see Selector._level
    others: int = 0  # as of the last report
    reported: bool = False
    own_at_report: int = 0
    picks_since_report: int = 0
    fewest: int = 0  # own, since the last report
    most: int = 0
    fewest_before: int = 0  # own, from the last report but one to the last
    most_before: int = 0

    def in_flight(self, followers: float) -> int:
        """Own and others', now; `followers` is how many connections the others open while we open one."""
        drift = round((self.own - self.own_at_report) * followers)
        return self.own + max(0, self.others + drift)

    def report(self, in_flight: int) -> int:
        """Take in a report, and return by how much the belief was off; the first one is no surprise."""
        at_least = in_flight - max(self.most, self.most_before)
        at_most = in_flight - min(self.fewest, self.fewest_before)
        believed, self.others = self.others, max(0, min(max(self.others, at_least), at_most))
        surprise = abs(self.others - believed) if self.reported else 0
        self.reported = True
        self.fewest_before, self.most_before = self.fewest, self.most
        self.fewest = self.most = self.own_at_report = self.own
        self.picks_since_report = 0
        return surprise

    def use(self, now: float) -> None:
        self.own += 1
        self.most = max(self.most, self.own)
        self.last_used = now
        self.served += 1
        self.turns += 1
        self.picks_since_report += 1

    def release(self) -> None:
        if not self.own:
            raise ValueError("released more often than picked")
        self.own -= 1
        self.fewest = min(self.fewest, self.own)


class Selector:
    """The picks of one entry. Its `entry_id`, a peer id, only settles full ties, differently for each entry.

    Entries see each other's picks late. If each filled up the peer that was last reported idle, all would, then all
    would leave it: eight entries would balance worse than dice. Therefore an entry assumes that since the report the
    others did as it did itself, to the extent that reports have lately come as a surprise. Where no other entry is, or
    none moves, there is no surprise: in_flight is own plus reported, and nothing is assumed.
    """

    def __init__(self, policy: Policy = Policy.LEAST_LOADED, *, entry_id: str = "", rng: random.Random) -> None:
        self._policy = policy
        self._order = _ORDERS[policy]
        self._entry_id = entry_id
        self._rng = rng
        self._loads: dict[str, _Load] = {}
        self._last_round: dict[str, frozenset[str]] = {}  # service -> the candidates of its last pick
        self._surprise = 0.0  # connections by which a report changes `others`: moving average over all peers
        self._pace = 0.0  # picks that a peer gets from us between two reports: a moving average too
        self._last_reporter = ""

    def pick(
        self, nodes: Iterable[Node], *, now: float, route: Route = ANY_ROUTE, distant: Set[str] = frozenset()
    ) -> Pick | None:
        """Choose among `nodes` and count the connection there, in one step: no two picks see the same load.

        `distant`: peer ids, of `distant_peers`.

        The caller must `release` the pick, also if the connection comes to nothing. None if there are no nodes.
        """
        offered = [(node, self._load(node.peer_id)) for node in nodes]
        if self._policy is Policy.LEAST_REQUESTS:
            self._level(route.service, {node.peer_id: load for node, load in offered})
        followers = self._surprise / max(self._pace, _LEAST_PACE)
        candidates = tuple(
            [
                Candidate(
                    node.peer_id, load.in_flight(followers), load.last_used,
                    node.available_vram, load.turns, load.tiebreak, node.capacity, node.peer_id in distant,
                )
                for node, load in offered
            ]
        )  # fmt: skip
        pick = self._choose(candidates)
        if pick is None:
            return None
        self._loads[pick.chosen.peer_id].use(now)
        return pick

    def release(self, peer_id: str) -> None:
        """A connection that `pick` counted is over."""
        self._loads[peer_id].release()

    def observe_load(self, peer_id: str, in_flight: int) -> None:
        """The peer announced how many connections it serves, from all entries."""
        load = self._load(peer_id)
        picks, surprise = load.picks_since_report, load.report(min(in_flight, _MOST_IN_FLIGHT))
        if peer_id == self._last_reporter and len(self._loads) > 1:
            return
        self._last_reporter = peer_id
        self._pace += (picks - self._pace) * _NEWEST_WEIGHT
        self._surprise += (min(surprise, _MOST_SURPRISE * self._surprise + 1) - self._surprise) * _NEWEST_WEIGHT

    def forget(self, peer_id: str) -> None:
        """The peer is gone for good. Connections still open to it stay counted until they are released."""
        load = self._load(peer_id)
        load.others = 0
        if not load.own:
            del self._loads[peer_id]

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
