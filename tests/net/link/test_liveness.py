"""Liveness is a function of times: a table."""

from __future__ import annotations

from typing import Any

import pytest

from federation.net.link.liveness import (
    DEAD_AFTER_S,
    LATE_TICK_S,
    PING_AFTER_S,
    PING_EVERY_S,
    RTT_INTERVALS,
    SUSPECT_AFTER_S,
    Liveness,
    ping_interval,
)

NOW = 1000.0
ANSWERED = {"last_heard": NOW - 0.1, "last_ping": NOW - 0.2}  # lately


@pytest.mark.parametrize(
    ("times", "has_tunnels", "step"),
    [
        # Nothing is owed: an end pings after ping_every_s of silence, counted from either end's PING.
        ({"last_heard": NOW - PING_EVERY_S}, False, ""),
        ({"last_heard": NOW - PING_EVERY_S - 0.1, "last_ping": NOW - PING_EVERY_S - 0.1}, False, "ping"),
        ({"last_heard": NOW - PING_EVERY_S - 0.1, "last_ping": NOW - 1}, False, ""),
        ({"last_heard": NOW - 1, "last_ping": NOW - RTT_INTERVALS * PING_EVERY_S}, False, ""),
        ({"last_heard": NOW - 1, "last_ping": NOW - RTT_INTERVALS * PING_EVERY_S - 0.1}, False, "ping"),
        # A tunnel waits for an answer.
        ({"last_heard": NOW - PING_AFTER_S - 0.1, "sent_since_heard": True}, True, "ping"),
        ({"last_heard": NOW - PING_AFTER_S - 0.1, "sent_since_heard": True}, False, ""),
        ({"last_heard": NOW - PING_AFTER_S - 0.1, "sent_since_heard": False}, True, ""),
        ({"last_heard": NOW - PING_AFTER_S, "sent_since_heard": True}, True, ""),
        # A PING waits for an answer: one is enough.
        ({"pinged_at": NOW - SUSPECT_AFTER_S, "last_heard": NOW - 60, "sent_since_heard": True}, True, ""),
        ({"pinged_at": NOW - SUSPECT_AFTER_S - 0.1}, False, "suspect"),
        ({"pinged_at": NOW - DEAD_AFTER_S}, True, "suspect"),
        ({"pinged_at": NOW - DEAD_AFTER_S - 0.1}, True, "dead"),
        # Our own process slept.
        ({"pinged_at": NOW - DEAD_AFTER_S - 0.1, "last_tick": NOW - LATE_TICK_S - 0.1}, True, ""),
        ({"pinged_at": NOW - DEAD_AFTER_S - 0.1, "last_tick": NOW - LATE_TICK_S}, True, "dead"),
    ],
)
def test_what_is_to_be_done(times: dict[str, Any], has_tunnels: bool, step: str) -> None:
    liveness = Liveness(NOW - 0.25)
    for name, value in times.items():
        assert hasattr(liveness, name)
        setattr(liveness, name, value)
    assert liveness.step(NOW, PING_EVERY_S, has_tunnels=has_tunnels) == step


def test_our_sleep_starts_the_wait_for_the_answer_again() -> None:
    liveness = Liveness(NOW)
    liveness.pinged(NOW)
    awake = NOW + 60
    steps = [
        liveness.step(awake + after_s, PING_EVERY_S, has_tunnels=True)
        for after_s in (0, 1, 1.6, 3, 5, 7, 9, 11, 13, 15, 15.1)
    ]
    assert steps == ["", "", *["suspect"] * 8, "dead"]


def test_anything_heard_is_an_answer_but_old_until_the_pong() -> None:
    liveness = Liveness(NOW)
    assert not liveness.is_fenced
    liveness.pinged(NOW + 2)
    liveness.pinged(NOW + 3)
    assert (liveness.pinged_at, liveness.last_ping) == (NOW + 2, NOW + 3)
    liveness.sent_since_heard = True
    liveness.heard(NOW + 4)
    assert (liveness.last_heard, liveness.pinged_at, liveness.sent_since_heard) == (NOW + 4, None, False)
    assert liveness.is_fenced
    assert liveness.ponged(NOW + 2, NOW + 4) is None  # not the latest PING: something older may still come
    assert liveness.is_fenced
    assert liveness.ponged(NOW + 3, NOW + 4) == 1
    assert not liveness.is_fenced


@pytest.mark.parametrize("made_up", [0.0, float("nan"), float("inf"), NOW + 1])
def test_a_made_up_pong_is_no_round_trip(made_up: float) -> None:
    liveness = Liveness(NOW)
    liveness.pinged(NOW)
    assert liveness.ponged(made_up, NOW + 1) is None


def test_pings_take_no_more_however_many_links_there_are() -> None:
    assert [ping_interval(n) for n in (0, 1, 33)] == [PING_EVERY_S] * 3
    assert max(n * 66 / ping_interval(n) for n in range(1, 5000)) < 1101
