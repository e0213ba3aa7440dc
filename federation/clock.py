"""UTC: of this node's own durations, and of the wall clock for people. Deadlines of tasks go by trio's clock, or the
reactor's, which stand still while the machine sleeps.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_S = 0.5  # less is the wall clock's drift against trio's, which is followed without a note
STEPS_KEPT = 64  # sleeps and steps of the wall clock

# Counts the time asleep too: on Linux a clock of its own, on macOS CLOCK_MONOTONIC, which is not Python's monotonic().
_WITH_SLEEP = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def time_asleep() -> float:
    """Seconds that this machine slept, less a constant."""
    return time.clock_gettime(_WITH_SLEEP) - time.monotonic()


class Clock:
    """`utc_now`: the start's UTC plus the time since, with the time asleep: no step of the wall clock touches it.

    `utc_of`: what the wall clock said at a time of trio's clock, as the log has it.
    """

    def __init__(self, *, wall: Callable[[], float] = time.time, asleep: Callable[[], float] = time_asleep) -> None:
        self._wall = wall
        self._asleep = asleep
        self._asleep_s = asleep()
        self._start = _utc(wall()) - timedelta(seconds=trio.current_time() + self._asleep_s)
        # The wall clock less trio's, from a time of trio's clock on.
        self._steps = [(float("-inf"), self._ahead_s())]
        self._looked_at = trio.current_time()

    def utc_now(self) -> datetime:
        self._look()
        self._asleep_s = max(self._asleep_s, self._asleep())  # two clocks are read for it: never back by a microsecond
        return self._start + timedelta(seconds=trio.current_time() + self._asleep_s)

    def utc_of(self, seconds: float) -> datetime:
        """Convert a time of trio's clock, past or future, to the wall clock's."""
        self._look()
        _, ahead_s = self._steps[bisect_right(self._steps, seconds, key=lambda step: step[0]) - 1]
        return _utc(seconds + ahead_s)

    def by_the_wall(self, time: datetime) -> datetime:
        """Convert a time of `utc_now`, past or future, to the wall clock as it is now: for people."""
        return time + (_utc(self._wall()) - self.utc_now())

    def _look(self) -> None:
        """Note a step of the wall clock, or a sleep, since the last look."""
        ahead_s = self._ahead_s()
        if abs(ahead_s - self._steps[-1][1]) > STEP_S:
            self._steps = [*self._steps, (self._looked_at, ahead_s)][-STEPS_KEPT:]
        else:
            self._steps[-1] = (self._steps[-1][0], ahead_s)
        self._looked_at = trio.current_time()

    def _ahead_s(self) -> float:
        return self._wall() - trio.current_time()


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
