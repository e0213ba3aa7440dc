"""Warnings: the same one once in a while, and no more different ones than fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from structlog.testing import capture_logs

from federation.net.admission import warnings
from federation.net.admission.warnings import REFUSALS_KEPT, REMIND_EVERY_S, WARN_EVERY_S, Warnings

if TYPE_CHECKING:
    import pytest
    from trio.testing import MockClock


async def test_the_same_one_once_in_a_while(mock_clock: MockClock) -> None:
    it = Warnings()
    with capture_logs() as logs:
        for _ in range(5):
            it.warn("stranger", "192.0.2.1")
        it.warn("banned", "192.0.2.1", REMIND_EVERY_S)
        it.warn("stranger", "192.0.2.2", why="no proof")
        assert [(entry["event"], entry["where"]) for entry in logs] == [
            ("stranger", "192.0.2.1"), ("banned", "192.0.2.1"), ("stranger", "192.0.2.2"),
        ]  # fmt: skip
        mock_clock.jump(WARN_EVERY_S)
        it.warn("stranger", "192.0.2.1")
        it.warn("banned", "192.0.2.1", REMIND_EVERY_S)
        assert len(logs) == 4
        mock_clock.jump(REMIND_EVERY_S)
        it.warn("banned", "192.0.2.1", REMIND_EVERY_S)
        assert len(logs) == 5


async def test_no_more_different_ones_than_so_many(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "MAX_WARNINGS", 3)
    it = Warnings()
    with capture_logs() as logs:
        for n in range(10):
            it.warn("stranger", f"2001:db8::{n}")
        assert len(logs) == 3
        mock_clock.jump(WARN_EVERY_S)
        it.warn("stranger", "2001:db8::a")
        assert len(logs) == 4


async def test_doctor_is_told_of_the_latest(mock_clock: MockClock) -> None:
    it = Warnings()
    mock_clock.jump(7)
    with capture_logs():
        it.warn("refused", "192.0.2.9", why="no proof")
        assert list(it.refusals) == [(trio.current_time(), "192.0.2.9", "refused (no proof)")]
        for n in range(2 * REFUSALS_KEPT):
            it.warn("refused", str(n))
    assert len(it.refusals) == REFUSALS_KEPT
    assert it.refusals[-1].what == "refused"
