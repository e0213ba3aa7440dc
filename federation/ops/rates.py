"""Rates of counters: per second, over the last seconds. No clock: callers pass `now`."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0
SAMPLE_EVERY_S = 1.0


class Rates:
    """The rates of several counters, always given in the same order."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque()

    def sample(self, now: float, totals: tuple[float, ...]) -> None:
        """Take a sample, once every SAMPLE_EVERY_S or so."""
        self._samples.append((now, totals))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()

    def per_second(self, now: float, totals: tuple[float, ...]) -> tuple[float, ...]:
        """The rates since the oldest sample that is at least one interval old; zeros before there is one."""
        if not self._samples or now - self._samples[0][0] < SAMPLE_EVERY_S / 2:
            return (0.0,) * len(totals)
        then, before = self._samples[0]
        return tuple((total - old) / (now - then) for total, old in zip(totals, before, strict=True))
