"""Who has room, and who comes first: one test a tier, then precedence, a full tie, and who does not fit."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from federation.ops.placement import COLD, NO, UNKNOWN, WARM, Place, rank

GIB = 1 << 30


def place(peer_id: str, **fields: Any) -> Place:
    return Place(**{"peer_id": peer_id, "state": "online", "available_vram": 16 * GIB, "total_vram": 24 * GIB} | fields)


def order(*places: Place, need: int = 8 * GIB) -> list[str]:
    """The same, in whatever order they are given."""
    (found,) = {tuple(ranked.place.peer_id for ranked in rank(given, need)) for given in permutations(places)}
    return list(found)


def test_the_model_in_memory_then_on_disk_then_the_others() -> None:
    warm, cold, no = place("w", model=WARM, in_flight=9), place("c", model=COLD, in_flight=5), place("n", model=NO)
    assert order(warm, cold, no) == ["w", "c", "n"]
    assert order(place("b", model=UNKNOWN), place("a", model=NO)) == ["a", "b"]  # who may have it is not ahead for that


def test_least_in_flight() -> None:
    assert order(place("a", in_flight=2, idle_s=100.0), place("b", in_flight=1, idle_s=1.0)) == ["b", "a"]


def test_least_recently_used_and_not_the_fattest_gpu() -> None:
    fat = place("fat", available_vram=80 * GIB, total_vram=80 * GIB, idle_s=1.0)
    assert order(fat, place("old", idle_s=60.0), place("new")) == ["new", "old", "fat"]


def test_a_full_tie_is_settled_by_the_id() -> None:
    assert order(place("b"), place("a"), place("c", available_vram=80 * GIB)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"available_vram": 8 * GIB - 1}, "too little VRAM is free"),
        ({"available_vram": 0, "total_vram": 0}, "it tells no VRAM"),
        ({"state": "draining"}, "it is draining"),
        ({"state": "no backend"}, "it has no backend"),
        ({"state": "offline"}, "it is offline"),
        ({"capacity": 2, "in_flight": 2}, "it is at its capacity of 2"),
    ],
)
def test_who_does_not_fit(fields: dict[str, Any], why: str) -> None:
    first, second = rank([place("a", **fields), place("b", in_flight=99)], 8 * GIB)
    assert (first.place.peer_id, first.fits) == ("b", True)
    assert (second.fits, second.why) == (False, why)


def test_who_has_it_in_memory_needs_no_more_and_without_a_need_all_have_room() -> None:
    assert rank([place("a", available_vram=0, model=WARM)], 8 * GIB)[0].fits
    assert rank([place("a", available_vram=0, total_vram=0)], 0)[0].fits
    assert rank([], 1) == []


def test_the_reason_is_the_first_difference_to_the_next() -> None:
    ranked = rank(
        [
            place("a", model=WARM),
            place("b", model=COLD, in_flight=1),
            place("c", model=COLD, in_flight=2),
            place("d", model=COLD, in_flight=2, idle_s=5.0),
            place("e", model=COLD, in_flight=2, idle_s=4.0),
            place("f", model=COLD, in_flight=2, idle_s=4.0),
        ],
        0,
    )
    assert [(row.place.peer_id, row.why) for row in ranked] == [
        ("a", "has the model in memory"),
        ("b", "has the model on disk, less in flight than the next"),
        ("c", "has the model on disk, not used yet"),
        ("d", "has the model on disk, used longer ago than the next"),
        ("e", "has the model on disk, like the next"),
        ("f", "has the model on disk"),
    ]
