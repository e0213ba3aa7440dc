"""Which of many candidates one entry looks at. No clock but `now`."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.forward.sample import SAMPLE, WATCHES_A_SECOND, WATCHES_AT_ONCE, Sample

OWN = "own"
SLOW_S = 1.0  # between two picks, so that none is too soon


@dataclass(frozen=True)
class Box:
    peer_id: str
    available_vram: int = 0
    capacity: int = 0


def boxes(*names: object) -> list[Box]:
    return [Box(str(name)) for name in names]


def sample(seed: int = 1) -> Sample:
    return Sample(OWN, random.Random(seed))


def ids(nodes: object) -> list[str]:
    return [node.peer_id for node in nodes]  # type: ignore[attr-defined]


def test_of_a_few_all_are_looked_at_as_they_come() -> None:
    few, nodes = sample(), boxes(OWN, *range(SAMPLE))
    first = few.look(nodes, 0.0)
    assert first.nodes is nodes
    assert (set(first.joined), list(first.left)) == (set(map(str, range(SAMPLE))), [])
    second = few.look(nodes, 1.0)
    assert second.nodes is nodes
    assert (list(second.joined), list(second.left)) == ([], [])
    assert few.is_all


def test_the_window_slides_by_one_behind_each_pick() -> None:
    """So that a newcomer has told its load by the time of the next one."""
    many, nodes = sample(), boxes(OWN, *range(30))
    many.look(nodes, 0.0)
    for n in range(1, 100):
        before = list(many.peer_ids)
        look = many.look(nodes, n * SLOW_S)
        assert ids(look.nodes) == [OWN, *before]
        assert list(look.left) == [before[0]]
        assert list(many.peer_ids) == [*before[1:], *look.joined]
        assert len(set(many.peer_ids)) == SAMPLE


def test_an_entry_that_serves_nothing_looks_at_others_only() -> None:
    look = sample().look(boxes(*range(30)), 0.0)
    assert len(look.nodes) == SAMPLE


@pytest.mark.parametrize("others", [SAMPLE + 1, 12, 16, 17, 50])
@pytest.mark.parametrize("is_new", [False, True], ids=["the list stays", "a new list at each pick"])
def test_all_have_their_turn_before_anybody_has_a_second_one(others: int, is_new: bool) -> None:
    """A new list at each pick is what an entry sees that picks less than once a second, or in a busy network."""
    many, nodes = sample(), boxes(*range(others))
    many.look(nodes, 0.0)
    turns: Counter[str] = Counter(many.peer_ids)
    for n in range(1, 10 * others - SAMPLE + 1):
        many.look(list(nodes) if is_new else nodes, n * SLOW_S)
        turns[many.peer_ids[-1]] += 1
    assert set(turns.values()) == {10}


def test_two_entries_look_at_different_peers() -> None:
    nodes = boxes(*range(200))
    seen = [frozenset(ids(sample(seed).look(nodes, 0.0).nodes)) for seed in range(20)]
    assert len(set(seen)) == 20


def test_newcomers_are_watched_no_faster_than_that_has_its_pace_and_looked_at_all_the_same() -> None:
    many, nodes = sample(), boxes(*range(1000))
    looks = [many.look(nodes, n / 10_000) for n in range(20_000)]
    watched = sum(len(look.joined) for look in looks) - SAMPLE
    assert watched == pytest.approx(WATCHES_AT_ONCE + 2 * WATCHES_A_SECOND, abs=1)
    turns = Counter(peer_id for look in looks for peer_id in ids(look.nodes))
    assert all(160 - SAMPLE <= times <= 160 + SAMPLE for times in turns.values())
    assert len(turns) == 1000


def test_a_peer_that_goes_leaves_its_place_to_another() -> None:
    many, nodes = sample(), boxes(*range(30))
    gone = many.look(nodes, 0.0).nodes[3].peer_id
    look = many.look([node for node in nodes if node.peer_id != gone], 1.0)
    assert list(look.left).count(gone) <= 1  # it may just have slid out
    assert gone not in ids(look.nodes)
    assert gone not in many.peer_ids
    assert len(look.nodes) == SAMPLE


def test_a_list_that_shrinks_below_the_window_and_grows_again() -> None:
    some, nodes = sample(), boxes(*range(30))
    some.look(nodes, 0.0)
    few = nodes[:5]
    look = some.look(few, 1.0)
    assert (look.nodes, set(some.peer_ids)) == (few, set(ids(few)))
    assert set(look.joined).isdisjoint(look.left)
    look = some.look(nodes, 2.0)
    assert len(look.nodes) == SAMPLE
    assert set(ids(few)) <= set(ids(look.nodes))
    empty = some.look([], 3.0)
    assert (list(empty.nodes), set(empty.left), list(some.peer_ids)) == ([], set(ids(look.nodes)), [])


lists = st.lists(st.lists(st.integers(0, 25), unique=True, max_size=26), min_size=1, max_size=30)


@given(lists, st.integers(1, 3), st.integers(0, 5))
def test_only_who_is_eligible_is_looked_at_and_joins_and_leaves_add_up(
    lists: list[list[int]], picks: int, seed: int
) -> None:
    """25 is the entry itself. A caller that keeps `joined` and `left` watches none but those in the window."""
    many, now = Sample("25", random.Random(seed)), 0.0
    watched: set[str] = set()
    for names in lists:
        nodes = boxes(*names)
        for _ in range(picks):
            now += 0.001
            look = many.look(nodes, now)
            seen, others = ids(look.nodes), set(map(str, names)) - {"25"}
            assert len(seen) == len(set(seen)) == min(len(others), SAMPLE) + (25 in names)
            assert set(seen) <= set(map(str, names))
            assert ("25" in seen) == (25 in names)
            assert watched.isdisjoint(look.joined)
            watched = (watched | set(look.joined)) - set(look.left)
            assert watched <= set(many.peer_ids) <= others
            assert len(set(many.peer_ids)) == min(len(others), SAMPLE)
