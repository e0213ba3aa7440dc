"""Relays that bring others: from where, how fast, and until when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from federation.net.admission.inbound_circuits import FREE_OFFENCES, SOURCE_BURST, SOURCE_RATE, Carriers
from federation.net.admission.quarantine import KEEP_AWAY_S

if TYPE_CHECKING:
    from federation.net.link.mux import Channel


class Place:
    closed = False


@pytest.fixture
def carriers() -> Carriers:
    return Carriers()


def test_only_where_there_is_a_place(carriers: Carriers) -> None:
    link: Any = object()
    assert not carriers.has_place(link)
    place: Any = Place()
    carriers.took_place(link, place)
    assert carriers.has_place(link)
    assert not carriers.has_place(object())  # type: ignore[arg-type]
    place.closed = True
    assert not carriers.has_place(link)
    newer: Channel = Place()  # type: ignore[assignment]
    carriers.took_place(link, newer)
    assert carriers.has_place(link)
    carriers.forget(link)
    assert not carriers.has_place(link)
    carriers.forget(link)


def test_one_member_does_not_use_up_what_all_have(carriers: Carriers) -> None:
    assert [carriers.may_carry("relay", "m", 0.0) for _ in range(20)].count(True) == SOURCE_BURST
    assert carriers.may_carry("relay", "other", 0.0)
    assert carriers.may_carry("another relay", "m", 0.0)
    assert carriers.may_carry("relay", "m", 1.0 / SOURCE_RATE)


def test_a_few_offences_are_their_own_and_then_nobody_comes_by_it_for_a_while(carriers: Carriers) -> None:
    assert [carriers.carried_offender("relay", 0.0) for _ in range(int(FREE_OFFENCES))] == [False] * int(FREE_OFFENCES)
    assert carriers.may_carry("relay", "m", 0.0)
    assert carriers.carried_offender("relay", 0.0)
    assert not carriers.may_carry("relay", "m", KEEP_AWAY_S - 0.1)
    assert carriers.may_carry("another relay", "m", 0.0)
    assert carriers.may_carry("relay", "m", KEEP_AWAY_S)
    assert carriers.carried_offender("relay", KEEP_AWAY_S)
    assert not carriers.may_carry("relay", "m", 2 * KEEP_AWAY_S + 0.1)  # longer each time


def test_a_relay_of_many_may_carry_a_bad_one_now_and_then(carriers: Carriers) -> None:
    assert not any(carriers.carried_offender("relay", hour * 3600.0) for hour in range(100))
