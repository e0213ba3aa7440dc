from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import trio

from federation import clock as clock_module
from federation.clock import Clock

if TYPE_CHECKING:
    import pytest


class FakeWall:
    """Stands for `datetime` where the node reads the wall clock."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def now(self, _tz: object) -> datetime:
        return self.time


async def test_does_not_step_with_the_wall_clock(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = FakeWall()
    monkeypatch.setattr(clock_module, "datetime", wall)
    clock = Clock()
    start = clock.utc_now()
    assert start == wall.time
    for step in (timedelta(hours=1), timedelta(days=-400)):
        wall.time += step
        await trio.sleep(30)
    assert clock.utc_now() == start + timedelta(seconds=60)
