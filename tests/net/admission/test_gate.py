"""HandshakeGate: how often an address may try, how many at once, and who gives way."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trio

from federation.net.admission import gate
from federation.net.admission.gate import (
    ACCEPT_BURST,
    ACCEPT_RATE,
    EVICT_AFTER_S,
    MAX_HANDSHAKES,
    MAX_HANDSHAKES_PER_ADDRESS,
    UPGRADE_TIMEOUT_S,
    HandshakeGate,
)

if TYPE_CHECKING:
    from trio.testing import MockClock


def test_a_burst_then_a_rate() -> None:
    it = HandshakeGate()
    assert sum(it.may_connect("192.0.2.1", 0.0) for _ in range(1000)) == ACCEPT_BURST
    assert it.may_connect("192.0.2.2", 0.0)
    assert sum(it.may_connect("192.0.2.1", 1.0) for _ in range(1000)) == ACCEPT_RATE


async def test_places_by_address_and_in_all() -> None:
    it = HandshakeGate()
    for _ in range(MAX_HANDSHAKES_PER_ADDRESS):
        assert it.evict_slowest("a", 0.0)
        it.reserve("a")
    assert not it.evict_slowest("a", 0.0)
    assert it.evict_slowest("b", 0.0)
    for n in range(MAX_HANDSHAKES - MAX_HANDSHAKES_PER_ADDRESS):
        it.reserve(f"b{n}")
    assert len(it) == MAX_HANDSHAKES
    assert not it.evict_slowest("c", 0.0)
    with it.slot("b0"):
        assert it.count("b0") == 1
    assert it.count("b0") == 0
    assert it.evict_slowest("c", 0.0)


@pytest.mark.parametrize("newcomer", ["a", "b"])
async def test_the_slowest_of_the_busiest_gives_way(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, newcomer: str
) -> None:
    monkeypatch.setattr(gate, "MAX_HANDSHAKES_PER_ADDRESS", 3)
    monkeypatch.setattr(gate, "MAX_HANDSHAKES", 3)
    it = HandshakeGate()
    gave_way: list[int] = []

    async def stay(number: int) -> None:
        it.reserve("a")
        try:
            with it.slot("a"):
                started.append(number)
                await trio.sleep_forever()
        except trio.TooSlowError:
            gave_way.append(number)

    async with trio.open_nursery() as nursery:
        started: list[int] = []
        for number in range(3):
            nursery.start_soon(stay, number)
            await trio.testing.wait_all_tasks_blocked()
        assert not it.evict_slowest(newcomer, trio.current_time())  # none is slow yet
        mock_clock.jump(EVICT_AFTER_S)
        assert it.evict_slowest(newcomer, trio.current_time())
        await trio.testing.wait_all_tasks_blocked()
        assert gave_way == [started[0]]
        mock_clock.jump(UPGRADE_TIMEOUT_S)
    assert sorted(gave_way) == [0, 1, 2]
    assert len(it) == 0


async def test_a_handshake_that_fails_gives_its_place_back() -> None:
    it = HandshakeGate()
    with ExitStack() as stack, pytest.raises(OSError, match="gone"):
        it.reserve("a")
        stack.enter_context(it.slot("a"))
        raise OSError("gone")
    assert (len(it), it.count("a")) == (0, 0)
