"""Which replicas a request leaves cold."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from federation.forward.route import Route
from federation.forward.selection import Policy, Selector
from federation.forward.warmth import LOADING_S, MAX_LOADING, NONE_COLD, WARM_SLACK, Cold, Warmth
from federation.mesh.models import Model

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUTE = Route("default", "m")
GIB = 1 << 30


class Box(NamedTuple):
    peer_id: str
    available_vram: int = 0
    capacity: int = 0


def boxes(names: str) -> list[Box]:
    return [Box(name) for name in names]


def models(nodes: Sequence[Box], warm: str = "", size: int = 0) -> dict[str, Model]:
    return {node.peer_id: Model("m", node.peer_id in warm, size) for node in nodes}


def loads(**in_flight: int) -> Selector:
    selector = Selector(Policy.LEAST_LOADED, rng=random.Random(1))
    for peer_id, load in in_flight.items():
        selector.told(peer_id, load)
    return selector


def used(cold: Cold, nodes: Sequence[Box]) -> str:
    """The cold replicas that may be loaded, in one word."""
    return "".join(node.peer_id for node in nodes if node.peer_id in cold.all - cold.left)


def test_nothing_is_cold_where_all_are_warm_or_nobody_tells() -> None:
    nodes = boxes("ab")
    for known in (models(nodes, warm="ab"), {}, models(nodes[:1], warm="a")):
        assert Warmth().judge(ROUTE, nodes, known, loads(), 0.0) is NONE_COLD


def test_warm_before_cold_within_the_slack() -> None:
    nodes = boxes("abc")
    for busy in range(WARM_SLACK + 1):
        assert Warmth().judge(ROUTE, nodes, models(nodes, warm="a"), loads(a=busy), 0.0) == Cold({"b", "c"}, {"b", "c"})
    assert Warmth().judge(ROUTE, nodes, models(nodes, warm="a"), loads(a=9, b=5, c=5), 0.0).left == {"b", "c"}
    over = Warmth().judge(ROUTE, nodes, models(nodes, warm="a"), loads(a=WARM_SLACK + 1), 0.0)
    assert len(used(over, nodes)) == 1, "one of the two, not both"


def test_a_warm_one_that_is_full_does_not_count() -> None:
    nodes = [Box("a", capacity=2), Box("b"), Box("c")]
    assert len(used(Warmth().judge(ROUTE, nodes, models(nodes, warm="a"), loads(a=2), 0.0), nodes)) == 1
    full = loads(b=1, c=1)
    full.full("b")
    full.full("c")
    assert used(Warmth().judge(ROUTE, nodes, models(nodes, warm="a"), full, 0.0), nodes) == ""


def test_all_entries_load_it_in_one_place_and_models_spread() -> None:
    nodes = boxes("abcdefgh")
    homes = set()
    for n in range(40):
        route = Route("default", f"m{n}")
        found = {used(Warmth().judge(route, order, models(order), loads(), 0.0), nodes) for order in (nodes, nodes[::-1])}
        assert len(found) == 1, "the order in which an entry knows them does not count"
        homes |= found
    assert len(homes) == len(nodes)
    spelt = {
        used(Warmth().judge(Route("default", name), nodes, models(nodes), loads(), 0.0), nodes) for name in ("M", "m:latest")
    }
    assert len(spelt) == 1, "two spellings of one model"


def test_the_home_has_room_for_it() -> None:
    nodes = [Box("a", 4 * GIB), Box("b", 9 * GIB), Box("c", 8 * GIB)]
    places = {
        used(Warmth().judge(Route("default", f"m{n}"), nodes, models(nodes, size=8 * GIB), loads(), 0.0), nodes)
        for n in range(40)
    }
    assert places == {"b", "c"}
    places = {
        used(Warmth().judge(Route("default", f"m{n}"), nodes, models(nodes, size=90 * GIB), loads(), 0.0), nodes)
        for n in range(40)
    }
    assert places == {"a", "b", "c"}, "nobody has room: then anybody"


def test_a_load_that_takes_the_vram_does_not_move_the_home() -> None:
    warmth, nodes = Warmth(), [Box(name, 8 * GIB) for name in "abc"]
    known = models(nodes, size=6 * GIB)
    home = used(warmth.judge(ROUTE, nodes, known, loads(), 0.0), nodes)
    fuller = [Box(n.peer_id, 0 if n.peer_id == home else n.available_vram) for n in nodes]
    assert used(warmth.judge(ROUTE, fuller, known, loads(**{home: 30}), LOADING_S - 1), nodes) == home
    assert used(warmth.judge(ROUTE, fuller, known, loads(), LOADING_S), nodes) not in ("", home)
    others = [node for node in nodes if node.peer_id != home]
    assert used(warmth.judge(ROUTE, others, known, loads(), 1.0), others) != "", "its home has gone"


def test_memory_is_bounded() -> None:
    warmth, nodes = Warmth(), boxes("ab")
    for n in range(3 * MAX_LOADING):
        warmth.judge(Route("default", f"m{n}"), nodes, models(nodes), loads(), 0.0)
    assert len(warmth._loading) == MAX_LOADING
