"""Warm before cold: which of a model's replicas a request is to leave on disk. No I/O and no clock: callers pass `now`.

A replica is warm where the model is in memory, and cold where it is on disk: its first token waits for the load, and the
load may push another model out. So

1. while the least busy warm replica has at most WARM_SLACK more in flight than the least busy cold one, no cold one is used;
2. beyond that, or where none is warm, one cold replica is used, and the others are not: the *home of the model*. That is
   the first, by rendezvous hashing of the model's name, of those whose free VRAM holds it (where no size is told, or nobody
   has as much: of all). All entries find the same one without telling each other, so they do not load it twice.

The model's home stays where it is for LOADING_S, since a load takes the free VRAM by which it was chosen.
Replicas that are full count for nothing here: a request goes past them to a cold one.

    warm a: 4   cold b: 0            a
    warm a: 5   cold b: 0, c: 0      a or the model's home, by load as ever
    cold b, c, d                     the model's home
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, Protocol

from federation.forward.http.homes import rendezvous
from federation.forward.http.paths import ollama_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set

    from federation.forward.route import Route
    from federation.forward.selection import Node
    from federation.mesh.models import Model

# Simulated: one warm replica and two cold ones, requests of 4 s, loads of 5 and 30 s. At 30 % of what the warm one can do
# with its 4 slots, 4 loads nothing, 2 loads one of the cold ones, 0 both. At 150 % of that requests take as long with 4 as
# with 0, and with 16 a third longer; where there is one slot, 4 takes 1.6 times as long as 0, and 16 takes 5 times.
WARM_SLACK = 4
LOADING_S = 120.0  # large models take a minute; by then their node says that they are warm
MAX_LOADING = 256

NOBODY: Set[str] = frozenset()


class Loads(Protocol):
    """What a pick knows of loads; selection.Selector implements this."""

    def in_flight(self, peer_id: str) -> int | None: ...
    def has_room(self, node: Node) -> bool: ...


class Cold(NamedTuple):
    """Peer ids. `left`: of the cold ones those that are to stay so."""

    all: Set[str] = NOBODY
    left: Set[str] = NOBODY


NONE_COLD = Cold()


class _Drawn(NamedTuple):
    """homes.Replica, all of one weight."""

    peer_id: str
    load: int = 0
    weight: float = 1.0


class Warmth:
    """The models that are being loaded, as one entry knows them."""

    def __init__(self) -> None:
        self._loading: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()  # -> peer, until when

    def judge(self, route: Route, nodes: Sequence[Node], models: Mapping[str, Model], loads: Loads, now: float) -> Cold:
        """`nodes`: those that may take the request; `models`: the model as each of them has it, by peer id."""
        cold = [node for node in nodes if node.peer_id in models and not models[node.peer_id].warm]
        if not cold:
            return NONE_COLD
        everyone = frozenset(node.peer_id for node in cold)
        able = [node for node in cold if loads.has_room(node)]
        warm = [node for node in nodes if node.peer_id not in everyone and loads.has_room(node)]
        least = _least(warm, loads.in_flight)
        if not able or (least is not None and least <= (_least(able, loads.in_flight) or 0) + WARM_SLACK):
            return Cold(everyone, everyone if warm else NOBODY)
        return Cold(everyone, everyone - {self._home(route, able, models, now)})

    def _home(self, route: Route, able: Sequence[Node], models: Mapping[str, Model], now: float) -> str:
        key = (route.service, ollama_name(route.model))
        peer_id, until = self._loading.get(key, ("", now))
        if now < until and any(node.peer_id == peer_id for node in able):
            return peer_id
        size = max(models[node.peer_id].size for node in able)
        holding = [node for node in able if node.available_vram >= size] or able
        digest = blake2b("\0".join(key).encode("utf-8", "replace"), digest_size=16).digest()
        home = rendezvous(digest, [_Drawn(node.peer_id) for node in holding])[0].peer_id
        self._loading[key] = home, now + LOADING_S
        self._loading.move_to_end(key)
        if len(self._loading) > MAX_LOADING:
            self._loading.popitem(last=False)
        return home


def _least(nodes: Sequence[Node], in_flight: Callable[[str], int | None]) -> int | None:
    return min((in_flight(node.peer_id) or 0 for node in nodes), default=None)
