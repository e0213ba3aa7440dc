"""Relays that bring others: from where, how fast, and until when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from federation.net.admission.inbound_circuits import FREE_OFFENCES, SOURCE_BURST, SOURCE_RATE, InboundCircuits
from federation.net.admission.quarantine import KEEP_AWAY_S

if TYPE_CHECKING:
    from federation.net.link.channel import Channel


class Place:
    closed = False


@pytest.fixture
def circuits() -> InboundCircuits:
    return InboundCircuits()


def test_only_where_there_is_a_reservation(circuits: InboundCircuits) -> None:
    link: Any = object()
    assert not circuits.has_reservation(link)
    place: Any = Place()
    circuits.reserved(link, place)
    assert circuits.has_reservation(link)
    assert not circuits.has_reservation(object())  # type: ignore[arg-type]
    place.closed = True
    assert not circuits.has_reservation(link)
    newer: Channel = Place()  # type: ignore[assignment]
    circuits.reserved(link, newer)
    assert circuits.has_reservation(link)
    circuits.forget(link)
    assert not circuits.has_reservation(link)
    circuits.forget(link)


def test_one_member_does_not_use_up_what_all_have(circuits: InboundCircuits) -> None:
    assert [circuits.may_bring("relay", "m", 0.0) for _ in range(20)].count(True) == SOURCE_BURST
    assert circuits.may_bring("relay", "other", 0.0)
    assert circuits.may_bring("another relay", "m", 0.0)
    assert circuits.may_bring("relay", "m", 1.0 / SOURCE_RATE)


def test_a_few_offences_are_their_own_and_then_nobody_comes_by_it_for_a_while(circuits: InboundCircuits) -> None:
    assert [circuits.brought_offender("relay", 0.0) for _ in range(int(FREE_OFFENCES))] == [False] * int(FREE_OFFENCES)
    assert circuits.may_bring("relay", "m", 0.0)
    assert circuits.brought_offender("relay", 0.0)
    assert not circuits.may_bring("relay", "m", KEEP_AWAY_S - 0.1)
    assert circuits.may_bring("another relay", "m", 0.0)
    assert circuits.may_bring("relay", "m", KEEP_AWAY_S)
    assert circuits.brought_offender("relay", KEEP_AWAY_S)
    assert not circuits.may_bring("relay", "m", 2 * KEEP_AWAY_S + 0.1)  # longer each time


def test_a_relay_of_many_may_bring_a_bad_one_now_and_then(circuits: InboundCircuits) -> None:
    assert not any(circuits.brought_offender("relay", hour * 3600.0) for hour in range(100))
