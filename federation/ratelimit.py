"""Rate limits: token buckets. Rule 1: no clock; callers pass `now`, seconds of a monotonic one.

A bucket holds `burst` at most and gets `rate` a second. Callers refuse requests beyond that, or make them wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

K = TypeVar("K", bound="Hashable")


class Bucket:
    """One bucket, full at first."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate  # a second
        self.burst = burst
        self._left = burst
        self._at: float | None = None  # when `_left` was right

    def left(self, now: float) -> float:
        """The amount that can be taken at once; negative after `spend` took more than there was."""
        if self._at is not None and now > self._at:
            self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now if self._at is None else max(self._at, now)
        return self._left

    def take(self, now: float, n: float = 1.0) -> bool:
        """Take `n` if they are there. Returns whether they were."""
        if self.left(now) < n:
            return False
        self._left -= n
        return True

    def spend(self, now: float, n: float = 1.0) -> float:
        """Take `n`, there or not. Returns the seconds to wait before going on."""
        left = self.left(now) - n
        self._left = left
        return max(0.0, -left / self.rate)


class Buckets(Generic[K]):
    """A bucket for each key, `max_keys` at most: a further key replaces the one that was used longest ago."""

    def __init__(self, rate: float, burst: float, *, max_keys: int) -> None:
        self._rate = rate
        self._burst = burst
        self._max_keys = max_keys
        self._buckets: dict[K, Bucket] = {}  # in the order of their last use

    def __contains__(self, key: object) -> bool:
        return key in self._buckets

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: K) -> Bucket:
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            bucket = Bucket(self._rate, self._burst)
            if len(self._buckets) >= self._max_keys:
                del self._buckets[next(iter(self._buckets))]
        self._buckets[key] = bucket
        return bucket

    def forget(self, key: K) -> None:
        self._buckets.pop(key, None)
