"""Twenty-four hours of numbers in a bounded space."""

from __future__ import annotations

import sys

import pytest

from federation.ops.history import MACHINES, MIB, SLOTS, STEP_S, History, Ring, Sample

TOTALS = ("connections", "bytes")


def sample(peer_id: str, load: int = 0, *, is_well: bool = True) -> Sample:
    return Sample(peer_id, peer_id.upper(), load, is_well, 5 * MIB)


def test_a_slot_is_the_mean_or_the_sum_of_its_samples() -> None:
    ring = Ring()
    for value in (1.0, 2.0, 6.0):
        ring.mean(7, value)
    ring.mean(9, 4.0)
    assert ring.read(6, 9) == [None, 3.0, None, 4.0]
    total = Ring()
    for value in (1.0, 2.0, 6.0):
        total.add(7, value)
    assert total.read(7, 8) == [9.0, None]


def test_a_ring_forgets_what_is_older_than_a_day_and_what_it_slept_through() -> None:
    ring = Ring()
    ring.mean(0, 1.0)
    ring.mean(SLOTS - 1, 2.0)
    assert ring.read(0, SLOTS - 1) == [1.0, *[None] * (SLOTS - 2), 2.0]
    ring.mean(SLOTS, 3.0)
    assert ring.read(1, SLOTS) == [*[None] * (SLOTS - 2), 2.0, 3.0]
    ring.mean(5 * SLOTS, 4.0)
    assert ring.read(4 * SLOTS + 1, 5 * SLOTS) == [*[None] * (SLOTS - 1), 4.0]


def test_counters_grow_and_machines_have_their_own_numbers() -> None:
    history = History(TOTALS)
    history.sample(0.0, (10, 1000), 1, [sample("a", 2), sample("b")])  # what was counted before the first look is not new
    history.sample(10.0, (14, 1500), 3, [sample("a", 4), sample("b", is_well=False)])
    history.sample(STEP_S + 1.0, (15, 1400), 5, [sample("a", 1)])
    assert (history.first, history.last) == (0, 1)
    assert history.growth["connections"].read(0, 1) == [4.0, 1.0]
    assert history.growth["bytes"].read(0, 1) == [500.0, 0.0]  # a counter that falls has not grown
    assert history.open.read(0, 1) == [2.0, 5.0]
    assert history.machines["a"].load.read(0, 1) == [3.0, 1.0]
    assert history.machines["b"].well.read(0, 1) == [0.5, None]
    assert history.machines["a"].free_mib.read(0, 0) == [5.0]
    assert history.machines["a"].name == "A"
    assert history.busiest(1) == ["a"]


def test_a_clock_that_goes_back_a_little_fills_the_newest_slot() -> None:
    history = History(TOTALS)
    history.sample(10 * STEP_S, (0, 0), 1, [])
    history.sample(9 * STEP_S, (0, 0), 3, [])
    assert (history.first, history.last) == (10, 10)
    assert history.open.read(10, 10) == [2.0]


def test_many_machines_over_a_day_have_a_bound() -> None:
    history = History(TOTALS)
    for slot in range(0, SLOTS + 50, 50):
        history.sample(slot * STEP_S, (0, 0), 0, [sample(f"m{n}", n) for n in range(MACHINES + 20)])
    assert len(history.machines) == MACHINES
    assert history.bytes == (3 * MACHINES + 1 + len(TOTALS)) * 4 * SLOTS < 2_300_000
    assert history.last - history.first == SLOTS - 1
    taken = sum(sys.getsizeof(ring._values) for m in history.machines.values() for ring in (m.load, m.well, m.free_mib))
    assert taken == pytest.approx(3 * MACHINES * 4 * SLOTS, rel=0.05)


def test_one_that_is_away_gives_its_place_and_is_forgotten_after_a_day() -> None:
    history = History(TOTALS)
    history.sample(0.0, (0, 0), 0, [sample(f"m{n}") for n in range(MACHINES)])
    history.sample(5.0 * STEP_S, (0, 0), 0, [sample("new")])
    assert "new" in history.machines
    assert len(history.machines) == MACHINES
    history.sample((SLOTS + 4.0) * STEP_S, (0, 0), 0, [sample("newer")])
    assert set(history.machines) == {"new", "newer"}
