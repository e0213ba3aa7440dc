"""Which of two links with one peer stays: a table, without a connection."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from federation.net.link_table import LOST_S, MAX_SPARES, STALE_S, LinkTable, goes_before, has_lost

NOW = 1000.0
LOWER, HIGHER = "a", "b"


@dataclass(eq=False)
class FakeLink:
    peer_id: str = HIGHER
    is_initiator: bool = True
    path: str = "direct"
    opened_at: float = NOW
    heard: float = NOW
    is_closed: bool = False
    retired: bool = False
    is_stuck: bool = False

    @property
    def liveness(self) -> Any:
        return SimpleNamespace(last_heard=self.heard)


def link(**fields: Any) -> Any:
    return FakeLink(**fields)


@pytest.mark.parametrize(
    ("us", "new", "known", "is_new"),
    [
        # Both dialled at once: the one that the lower id dialled stays, as both sides see it.
        (LOWER, {"is_initiator": True}, {"is_initiator": False}, True),
        (LOWER, {"is_initiator": False}, {"is_initiator": True}, False),
        (HIGHER, {"peer_id": LOWER, "is_initiator": True}, {"peer_id": LOWER, "is_initiator": False}, False),
        (HIGHER, {"peer_id": LOWER, "is_initiator": False}, {"peer_id": LOWER, "is_initiator": True}, True),
        # One side dialled twice: the latest.
        (LOWER, {"is_initiator": True}, {"is_initiator": True}, True),
        (HIGHER, {"peer_id": LOWER, "is_initiator": False}, {"peer_id": LOWER, "is_initiator": False}, True),
        # A direct or punched link goes before a relayed one, whoever dialled.
        (LOWER, {"is_initiator": False}, {"path": "relayed"}, True),
        (LOWER, {"is_initiator": False, "path": "punched"}, {"path": "relayed"}, True),
        (LOWER, {"path": "relayed"}, {"is_initiator": False}, False),
        (LOWER, {"is_initiator": False, "path": "relayed"}, {"path": "relayed"}, False),
        # The known one was silent.
        (LOWER, {"is_initiator": False}, {"heard": NOW - STALE_S}, False),
        (LOWER, {"is_initiator": False}, {"heard": NOW - STALE_S - 0.1}, True),
        (LOWER, {"path": "relayed"}, {"heard": NOW - STALE_S - 0.1}, True),
        # What is sent on the known one does not arrive.
        (LOWER, {"is_initiator": False}, {"is_stuck": True}, True),
    ],
)
def test_the_rule(us: str, new: dict[str, Any], known: dict[str, Any], is_new: bool) -> None:
    assert goes_before(link(**new), link(**known), us=us, now=NOW) is is_new


@pytest.mark.parametrize(
    ("new", "known", "lost"),
    [
        ({"is_initiator": False}, {"opened_at": NOW - LOST_S - 0.1}, True),
        ({"is_initiator": False}, {"opened_at": NOW - LOST_S}, False),
        ({"is_initiator": True}, {"opened_at": NOW - LOST_S - 0.1}, False),
    ],
)
def test_a_peer_that_dials_though_we_have_long_had_a_link_has_lost_it(
    new: dict[str, Any], known: dict[str, Any], lost: bool
) -> None:
    assert has_lost(link(**known), link(**new)) is lost
    table = LinkTable(LOWER)
    old = link(**known)
    table.settle(old, NOW)
    assert table.lost_to(link(**new)) is (old if lost else None)
    assert table.lost_to(link(peer_id="c", **new)) is None


def test_the_first_the_better_and_the_worse() -> None:
    table = LinkTable(LOWER)
    first, better, worse = link(is_initiator=False), link(), link(is_initiator=False)
    assert table.settle(first, NOW) == (True, None)
    assert table.settle(better, NOW) == (True, first)
    assert table.settle(worse, NOW) == (False, worse)
    assert table.current == {HIGHER: better}
    assert worse not in table
    table.retire(worse)
    assert list(table) == [better, worse]
    assert len(table) == 2
    assert worse in table


def test_a_closed_one_is_none() -> None:
    table = LinkTable(LOWER)
    table.settle(link(is_closed=True), NOW)
    assert table.settle(link(is_initiator=False), NOW) == (True, None)


def test_the_oldest_of_too_many_duplicates_is_to_be_closed() -> None:
    table = LinkTable(LOWER)
    spares = [link(opened_at=NOW + n) for n in range(MAX_SPARES + 1)]
    table.retire(link(peer_id="c", opened_at=0.0))
    assert [table.retire(spare) for spare in spares] == [None] * MAX_SPARES + [spares[0]]


def test_a_duplicate_has_the_place_of_the_one_that_ended() -> None:
    table = LinkTable(LOWER)
    current, spare, other = link(), link(retired=True), link(peer_id="c")
    for one in (current, other):
        table.settle(one, NOW)
    table.retire(spare)
    assert table.ended(link()) == (False, None)
    assert table.ended(current) == (True, spare)
    assert (table.current[HIGHER], spare.retired, table.retired) == (spare, False, set())
    assert table.ended(spare) == (True, None)
    assert table.ended(other) == (True, None)
    assert len(table) == 0
