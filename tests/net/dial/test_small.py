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
    assert paths.begin("a")
    assert not paths.begin("a")
    assert paths.begin("b")
    paths.ended("a")
    assert paths.begin("a")


def test_the_number_is_bounded_and_old_ones_make_room(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert MAX_PEERS == 4096
    monkeypatch.setattr(small, "MAX_PEERS", 2)
    paths = SmallPaths()
    for peer in "abc":
        paths.add(peer, NOW)
    assert [paths.holds(peer, NOW) for peer in "abc"] == [True, True, False]
    paths.add("c", NOW + KEPT_S)
    assert paths.holds("c", NOW + KEPT_S)
