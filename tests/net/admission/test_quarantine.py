"""Quarantine: kept away longer each time, never for good, and forgiven."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.net.admission import quarantine
from federation.net.admission.quarantine import FORGIVE_S, KEEP_AWAY_MAX_S, KEEP_AWAY_S, Quarantine

if TYPE_CHECKING:
    import pytest


def kept_away_for(it: Quarantine, peer: str, now: float) -> float:
    """Whole seconds."""
    return next(s for s in range(10_000) if not it.holds(peer, now + s))


def test_longer_each_time_and_news_once() -> None:
    it = Quarantine()
    assert not it.holds("p", 0.0)
    assert [it.add("p", 100.0) for _ in range(3)] == [True, False, False]
    assert kept_away_for(it, "p", 100.0) == 4 * KEEP_AWAY_S
    assert not it.holds("q", 100.0)


def test_never_for_good_and_forgiven() -> None:
    it = Quarantine()
    for _ in range(100):
        it.add("p", 0.0)
    assert kept_away_for(it, "p", 0.0) == KEEP_AWAY_MAX_S
    assert it.add("p", KEEP_AWAY_MAX_S + FORGIVE_S + 1)
    assert kept_away_for(it, "p", KEEP_AWAY_MAX_S + FORGIVE_S + 1) == KEEP_AWAY_S


def test_no_more_are_remembered_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MAX_OFFENDERS", 2)
    it = Quarantine()
    for peer in ("x", "y", "x", "z"):
        it.add(peer, 0.0)
    assert [peer for peer in "xyz" if it.holds(peer, 1.0)] == ["x", "z"]
    assert len(it) == 2


def test_whose_time_was_over_in_between() -> None:
    it = Quarantine()
    it.add("p", 0.0)
    spans = [(0.0, 4.9), (4.0, 6.0), (KEEP_AWAY_S, 6.0), (5.1, 1e6)]
    assert [it.any_back(*span) for span in spans] == [False, True, True, False]
    assert not Quarantine().any_back(0.0, 1e9)
