"""UTC for people. Durations and deadlines go by trio's clock, or the reactor's."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import trio


class Clock:
    """UTC that no step of the wall clock touches: the start's UTC plus the monotonic time since."""

    def __init__(self) -> None:
        self._start = datetime.now(timezone.utc)
        self._start_s = trio.current_time()

    def utc_now(self) -> datetime:
        return self.utc_of(trio.current_time())

    def utc_of(self, seconds: float) -> datetime:
        """Convert a time of trio's clock, past or future, in seconds, to UTC."""
        return self._start + timedelta(seconds=seconds - self._start_s)
