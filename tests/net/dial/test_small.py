"""Which peers get small packets."""

from __future__ import annotations

from federation.net.dial import small
from federation.net.dial.small import KEPT_S, MAX_PEERS, SmallPaths

NOW = 1000.0


def test_a_path_is_small_for_an_hour() -> None:
    paths = SmallPaths()
    assert not paths.holds("a", NOW)
    paths.add("a", NOW)
    assert paths.holds("a", NOW + KEPT_S - 1)
    assert not paths.holds("a", NOW + KEPT_S)
    assert not paths.holds("b", NOW)


def test_one_dial_a_peer_at_a_time() -> None:
    paths = SmallPaths()
    assert paths.begin("a", NOW)
    assert not paths.begin("a", NOW)
    assert paths.begin("b", NOW)
    paths.ended("a")
    assert paths.begin("a", NOW)


def test_a_link_that_pretends_to_be_stuck_causes_few_dials() -> None:
    paths = SmallPaths()
    dials = 0
    for look in range(300):  # for a minute, five times a second
        if paths.begin("a", NOW + look / 5):
            dials += 1
            paths.ended("a")
    assert dials <= 32


def test_the_number_is_bounded_and_old_ones_make_room(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert MAX_PEERS == 4096
    monkeypatch.setattr(small, "MAX_PEERS", 2)
    paths = SmallPaths()
    for peer in "abc":
        paths.add(peer, NOW)
    assert [paths.holds(peer, NOW) for peer in "abc"] == [True, True, False]
    paths.add("c", NOW + KEPT_S)
    assert paths.holds("c", NOW + KEPT_S)
