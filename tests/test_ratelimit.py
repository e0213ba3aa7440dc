from __future__ import annotations

import pytest

from federation.ratelimit import Bucket, Buckets


class TestBucket:
    def test_gives_its_burst_and_then_its_rate(self) -> None:
        bucket = Bucket(rate=2, burst=3)
        assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
        assert not bucket.take(10.4)
        assert bucket.take(10.5)
        assert not bucket.take(10.5)

    def test_never_holds_more_than_its_burst(self) -> None:
        bucket = Bucket(rate=2, burst=3)
        bucket.take(0.0)
        assert bucket.left(1000.0) == 3

    def test_refuses_without_taking(self) -> None:
        bucket = Bucket(rate=1, burst=2)
        assert not bucket.take(0.0, 3)
        assert bucket.left(0.0) == 2

    def test_a_clock_that_steps_back_gives_nothing_away(self) -> None:
        bucket = Bucket(rate=1, burst=1)
        assert bucket.take(10.0)
        assert not bucket.take(5.0)
        assert not bucket.take(10.5)
        assert bucket.take(11.0)

    def test_spend_says_how_long_to_wait(self) -> None:
        bucket = Bucket(rate=10, burst=5)
        assert bucket.spend(0.0, 5) == 0
        assert bucket.spend(0.0) == pytest.approx(0.1)
        assert bucket.spend(0.0) == pytest.approx(0.2)
        assert bucket.spend(0.2) == pytest.approx(0.1)
        assert not bucket.take(0.2)


class TestBuckets:
    def test_each_key_has_its_own(self) -> None:
        buckets = Buckets[str](1, 1, max_keys=10)
        assert buckets.of("a").take(0.0)
        assert not buckets.of("a").take(0.0)
        assert buckets.of("b").take(0.0)

    def test_the_one_longest_unused_gives_way(self) -> None:
        buckets = Buckets[str](1, 1, max_keys=2)
        for key in ("a", "b", "a", "c"):
            buckets.of(key).take(0.0)
        assert len(buckets) == 2
        assert not buckets.of("a").take(0.0)
        assert buckets.of("b").take(0.0)

    def test_forgets(self) -> None:
        buckets = Buckets[str](1, 1, max_keys=2)
        buckets.of("a").take(0.0)
        buckets.forget("a")
        buckets.forget("never seen")
        assert len(buckets) == 0
        assert buckets.of("a").take(0.0)
