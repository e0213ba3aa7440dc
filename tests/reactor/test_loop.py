"""The set over both pollers: who is called, in which order, and that nobody's mistake ends it."""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio
import trio.testing

from federation.net.link.carrier import RECV_BYTES
from federation.net.link.seal import MAX_CIPHERTEXT
from federation.reactor import loop as reactor_module
from federation.reactor.loop import (
    BROKEN,
    EXTRA_POLLS,
    FULL_BATCH,
    MAX_EVENTS,
    MAX_TURN_S,
    READ,
    SCRATCH_BYTES,
    SPIN_S,
    WRITE,
    Reactor,
)
from tests.support.links import socket_pair, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")
POLLERS = [pytest.param(True, id="epoll", marks=needs_epoll), pytest.param(False, id="selectors")]


@pytest.fixture(params=POLLERS)
def idle(request: pytest.FixtureRequest) -> Iterator[Reactor]:
    """A reactor that does not run yet."""
    reactor = Reactor(use_epoll=request.param)
    yield reactor
    reactor._poller.close()


@pytest.fixture
async def reactor(idle: Reactor, nursery: trio.Nursery) -> Reactor:
    await nursery.start(idle.run)
    return idle


@pytest.fixture
def pairs() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Connected sockets, closed at the end."""
    made: list[socket.socket] = []

    def make() -> tuple[socket.socket, socket.socket]:
        pair = socket_pair()
        made.extend(pair)
        return pair

    yield make
    for sock in made:
        sock.close()


Pairs = Any


def settled(*socks: socket.socket) -> None:
    """Wait until the kernel has brought each what was sent to it: the next batch has them all."""
    for sock in socks:
        assert select.select([sock], [], [], 5)[0]


# Descriptors


async def test_a_readable_socket_calls_its_handler_until_it_is_read(reactor: Reactor, pairs: Pairs) -> None:
    ours, theirs = pairs()
    heard: list[Any] = []

    def on_events(mask: int) -> None:
        heard.append(mask)
        if len(heard) == 3:
            heard.append(ours.recv(100))

    reactor.add(ours.fileno(), READ, on_events)
    theirs.send(b"hello")
    await until(lambda: len(heard) == 4)
    assert heard == [READ, READ, READ, b"hello"]


async def test_masks_are_what_was_asked_for(reactor: Reactor, pairs: Pairs) -> None:
    ours, theirs = pairs()
    heard: list[int] = []

    def on_events(mask: int) -> None:
        heard.append(mask)
        reactor.change(ours.fileno(), 0)

    reactor.add(ours.fileno(), READ, on_events)
    theirs.send(b"x")
    for asked, told in ((READ, READ), (WRITE, WRITE), (READ | WRITE, READ | WRITE)):
        heard.clear()
        reactor.change(ours.fileno(), asked)
        await until(lambda: heard)
        assert heard == [told]


async def test_who_asked_for_nothing_or_was_dropped_hears_nothing(reactor: Reactor, pairs: Pairs) -> None:
    (silenced, one), (dropped, two), (ours, three) = pairs(), pairs(), pairs()
    heard: list[str] = []
    reactor.add(silenced.fileno(), READ, lambda _: heard.append("silenced"))
    reactor.add(dropped.fileno(), READ, lambda _: heard.append("dropped"))
    reactor.change(silenced.fileno(), 0)
    reactor.drop(dropped.fileno())
    reactor.add(ours.fileno(), READ, lambda _: heard.append(ours.recv(9).decode()))
    for end in (one, two, three):
        end.send(b"x")
    await until(lambda: heard)
    assert heard == ["x"]
    reactor.change(silenced.fileno(), READ)
    reactor.add(dropped.fileno(), READ, lambda _: heard.append("again"))
    await until(lambda: {"silenced", "again"} <= set(heard))


async def test_an_end_is_told_as_something_to_read(reactor: Reactor, pairs: Pairs) -> None:
    ours, theirs = pairs()
    heard: list[int] = []

    def on_events(mask: int) -> None:
        heard.append(mask)
        reactor.drop(ours.fileno())

    reactor.add(ours.fileno(), READ, on_events)
    theirs.close()
    await until(lambda: heard)
    assert heard[0] & READ
    assert ours.recv(1) == b""


@needs_epoll
async def test_epoll_tells_of_a_reset_whatever_was_asked_for(nursery: trio.Nursery, pairs: Pairs) -> None:
    reactor = Reactor(use_epoll=True)
    await nursery.start(reactor.run)
    ours, theirs = pairs()
    heard: list[int] = []

    def on_events(mask: int) -> None:
        heard.append(mask)
        reactor.drop(ours.fileno())

    reactor.add(ours.fileno(), 0, on_events)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    theirs.close()
    await until(lambda: heard)
    assert heard[0] & BROKEN


async def test_dropping_what_is_unknown_is_fine_and_counted_is_what_is_there(reactor: Reactor, pairs: Pairs) -> None:
    ours, theirs = pairs()
    assert len(reactor) == 0
    reactor.drop(ours.fileno())
    reactor.add(ours.fileno(), READ, lambda _: None)
    reactor.add(theirs.fileno(), 0, lambda _: None)
    assert len(reactor) == 2
    reactor.drop(ours.fileno())
    reactor.drop(ours.fileno())
    reactor.drop(theirs.fileno())
    assert len(reactor) == 0


async def test_close_forgets_and_closes_and_its_number_may_be_used_again(reactor: Reactor, pairs: Pairs) -> None:
    (ours, theirs), (fresh, other) = pairs(), pairs()
    heard: list[str] = []
    number = ours.fileno()
    reactor.add(number, READ, lambda _: heard.append("old"))
    reactor.close(ours)
    assert ours.fileno() == -1
    assert len(reactor) == 0
    settled(theirs)
    assert theirs.recv(1) == b""
    reactor.close(theirs)  # which it never knew
    assert theirs.fileno() == -1
    os.dup2(fresh.fileno(), number)
    reactor.add(number, READ, lambda _: heard.append(os.read(number, 9).decode()))
    other.send(b"new")
    await until(lambda: heard)
    assert heard == ["new"]
    reactor.drop(number)
    os.close(number)


def test_what_was_dropped_leaves_the_kernels_set(idle: Reactor, pairs: Pairs) -> None:
    """It would be told of what nobody reads, again and again."""
    ours, theirs = pairs()
    idle.add(ours.fileno(), READ, lambda _: None)
    theirs.send(b"x")
    settled(ours)
    assert idle._poller.poll(0, 9) == [(ours.fileno(), READ)]
    idle.drop(ours.fileno())
    assert idle._poller.poll(0, 9) == []


def test_many_ready_ones_get_their_turn_in_batches(idle: Reactor, pairs: Pairs) -> None:
    """More are ready than a batch takes, and none of them reads: the next batch has others."""
    sockets = [pairs() for _ in range(11)]
    for ours, theirs in sockets:
        idle.add(ours.fileno(), READ, lambda _: None)
        theirs.send(b"x")
    settled(*(ours for ours, _ in sockets))
    seen: set[int] = set()
    for _ in range(3):
        batch = idle._poller.poll(0, 4)
        assert len(batch) == 4
        assert {mask for _, mask in batch} == {READ}
        seen |= {fd for fd, _ in batch}
    assert seen == {ours.fileno() for ours, _ in sockets}


# One batch


async def test_who_was_dropped_by_an_earlier_callback_of_the_batch_hears_nothing(idle: Reactor, pairs: Pairs) -> None:
    sockets = [pairs() for _ in range(3)]
    heard: list[int] = []

    def on_events(n: int) -> None:
        heard.append(n)
        for ours, _ in sockets:
            idle.drop(ours.fileno())

    for n, (ours, theirs) in enumerate(sockets):
        idle.add(ours.fileno(), READ, lambda _mask, n=n: on_events(n))
        theirs.send(b"x")
    settled(*(ours for ours, _ in sockets))
    idle._run_events()
    assert len(heard) == 1


async def test_an_event_of_a_closed_socket_is_not_told_to_who_got_its_number(idle: Reactor, pairs: Pairs) -> None:
    """A tunnel is reset and the next one dials, both in one record: the new socket gets the number of the old one, whose
    event waits in the same batch. Taken for its own, it would say that the backend has accepted."""
    (first, one), (second, two) = pairs(), pairs()
    heard: list[Any] = []
    fresh, _ = pairs()
    socks = {first.fileno(): first, second.fileno(): second}

    def on_events(fd: int) -> None:
        heard.append(fd)
        other = next(n for n in socks if n != fd)
        idle.drop(fd)
        idle.drop(other)
        os.dup2(fresh.fileno(), other)  # closes it, and puts another in its place
        idle.add(other, READ, lambda mask: heard.append(("fresh", mask)))

    for fd in socks:
        idle.add(fd, READ, lambda _mask, fd=fd: on_events(fd))
    one.send(b"x")
    two.send(b"x")
    settled(first, second)
    idle._run_events()
    assert len(heard) == 1


async def test_who_was_added_in_a_batch_hears_of_what_is_ready_in_the_next(reactor: Reactor, pairs: Pairs) -> None:
    (first, one), (second, two) = pairs(), pairs()
    heard: list[Any] = []
    two.send(b"waits already")

    def on_first(_mask: int) -> None:
        first.recv(9)
        reactor.add(second.fileno(), READ, lambda _mask: heard.append(second.recv(99)))

    reactor.add(first.fileno(), READ, on_first)
    one.send(b"x")
    await until(lambda: heard)
    assert heard == [b"waits already"]


async def test_a_flush_runs_once_after_all_events_of_the_batch(idle: Reactor, pairs: Pairs) -> None:
    said: list[str] = []
    queued = False

    def flush() -> None:
        nonlocal queued
        queued = False
        said.append("flush")

    def on_events(sock: socket.socket) -> None:
        nonlocal queued
        said.append(sock.recv(9).decode())
        if not queued:
            queued = True
            idle.flush_soon(flush)
        assert said[-1] != "flush"

    for _ in range(3):
        ours, theirs = pairs()
        idle.add(ours.fileno(), READ, lambda _mask, ours=ours: on_events(ours))
        theirs.send(b"event")
        settled(ours)
    idle._run_events()
    assert said == ["event", "event", "event", "flush"]


@pytest.mark.parametrize(
    ("sockets", "first_flush_after"), [(1, 1), (2, 2 * (1 + EXTRA_POLLS)), (FULL_BATCH + 1, FULL_BATCH + 1)]
)
async def test_a_flush_takes_those_along_that_come_meanwhile(
    idle: Reactor, pairs: Pairs, sockets: int, first_flush_after: int
) -> None:
    """Nobody reads, so all are ready for ever: several are looked for again, one alone and a crowd are flushed at once."""
    said: list[str] = []

    def on_events(_mask: int) -> None:
        if not said:
            idle.flush_soon(lambda: said.append("flush"))
        said.append("event")

    for _ in range(sockets):
        ours, theirs = pairs()
        idle.add(ours.fileno(), READ, on_events)
        theirs.send(b"event")
        settled(ours)
    idle._run_events()
    assert said.index("flush") == first_flush_after


@pytest.mark.parametrize("how", ["a socket was added", "the turn is over"])
async def test_a_flush_waits_for_nobody_where(
    idle: Reactor, pairs: Pairs, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "the turn is over":
        monkeypatch.setattr("federation.reactor.loop.MAX_TURN_S", 0.0)
    said: list[str] = []
    silent, _ = pairs()

    def on_events(_mask: int) -> None:
        if not said:
            idle.flush_soon(lambda: said.append("flush"))
            if how == "a socket was added":
                idle.add(silent.fileno(), READ, lambda _mask: None)
        said.append("event")

    for _ in range(2):
        ours, theirs = pairs()
        idle.add(ours.fileno(), READ, on_events)
        theirs.send(b"event")
        settled(ours)
    idle._run_events()
    assert said[:3] == ["event", "event", "flush"]


async def test_a_late_flush_waits_for_the_set_to_have_nothing_else_to_do(idle: Reactor, pairs: Pairs) -> None:
    said: list[str] = []
    ours, theirs = pairs()

    def on_events(_mask: int) -> None:
        said.append(ours.recv(5).decode())
        if said == ["event"]:
            idle.flush_late(lambda: said.append("late"))
            idle.flush_soon(lambda: (theirs.send(b"again"), said.append("flush")))  # type: ignore[func-returns-value, arg-type, return-value]

    idle.add(ours.fileno(), READ, on_events)
    theirs.send(b"event")
    settled(ours)
    idle._spins = True  # it asks once more before it sleeps
    idle._run_events()
    assert said == ["event", "flush", "again", "late"]


async def test_a_late_flush_does_not_wait_longer_than_trio(
    idle: Reactor, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federation.reactor.loop.MAX_TURN_S", 0.0)
    said: list[str] = []
    ours, theirs = pairs()
    idle.add(ours.fileno(), READ, lambda _mask: idle.flush_late(lambda: said.append("late")))
    theirs.send(b"never read: the set is never empty")
    settled(ours)
    idle._run_events()
    assert said == ["late"]


async def test_late_flushes_of_one_are_one(idle: Reactor, pairs: Pairs) -> None:
    said: list[str] = []
    ours, theirs = pairs()

    def late() -> None:
        said.append("late")

    def on_events(_mask: int) -> None:
        ours.recv(9)
        idle.flush_late(late)
        idle.flush_late(late)

    idle.add(ours.fileno(), READ, on_events)
    theirs.send(b"event")
    settled(ours)
    idle._run_events()
    assert said == ["late"]


async def test_outside_a_batch_a_late_flush_is_one_like_any_other(reactor: Reactor) -> None:
    said: list[str] = []
    reactor.flush_late(lambda: said.append("late"))
    await until(lambda: said)


async def test_what_a_flush_queues_runs_in_the_same_go(reactor: Reactor, pairs: Pairs) -> None:
    said: list[int] = []

    def flush(n: int) -> None:
        said.append(n)
        if n < 5:
            reactor.flush_soon(lambda: flush(n + 1))

    ours, theirs = pairs()

    def on_events(_mask: int) -> None:
        ours.recv(9)
        reactor.flush_soon(lambda: flush(0))

    reactor.add(ours.fileno(), READ, on_events)
    theirs.send(b"x")
    await until(lambda: said)
    assert said == [0, 1, 2, 3, 4, 5]


async def test_a_task_may_ask_for_a_flush_without_any_event(reactor: Reactor) -> None:
    said: list[str] = []
    for word in ("one", "two"):
        reactor.flush_soon(lambda word=word: said.append(word))  # type: ignore[misc]
    assert said == []  # not within the call
    await until(lambda: len(said) == 2)
    reactor.flush_soon(lambda: said.append("three"))
    await until(lambda: len(said) == 3)
    assert said == ["one", "two", "three"]


async def test_also_after_a_batch_of_events(reactor: Reactor, pairs: Pairs) -> None:
    ours, theirs = pairs()
    said: list[str] = []
    reactor.add(ours.fileno(), READ, lambda _: said.append(ours.recv(9).decode()))
    theirs.send(b"event")
    await until(lambda: said)
    reactor.flush_soon(lambda: said.append("flush"))
    await until(lambda: len(said) == 2)
    assert said == ["event", "flush"]


async def test_what_was_queued_before_the_reactor_ran_is_not_forgotten(idle: Reactor, nursery: trio.Nursery) -> None:
    said: list[str] = []
    idle.flush_soon(lambda: said.append("flush"))
    idle.call_later(0, lambda: said.append("timer"))
    await nursery.start(idle.run)
    await until(lambda: len(said) == 2)


async def test_one_event_costs_two_looks_and_an_idle_set_none(
    reactor: Reactor, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    poll = reactor._poller.poll

    class Poller:
        def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
            looks.append(timeout)
            return poll(timeout, maxevents)

        def __getattr__(self, name: str) -> Any:
            return getattr(wrapped, name)

    wrapped = reactor._poller
    monkeypatch.setattr(reactor, "_poller", Poller())
    ours, theirs = pairs()
    heard: list[bytes] = []
    reactor.add(ours.fileno(), READ, lambda _: heard.append(ours.recv(9)))
    for n in range(1, 4):
        theirs.send(b"x")
        await until(lambda: len(heard) == n)  # noqa: B023
        with trio.move_on_after(0.02):
            await trio.sleep_forever()  # an idle set would look again now, if it did
    assert len(looks) <= 6
    assert looks[0] == 0  # who is ready is served at once


async def test_a_busy_set_leaves_trio_its_turn(reactor: Reactor, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is always ready, as its handler does not read; a batch takes a millisecond."""
    ticks = count()
    monkeypatch.setattr("federation.reactor.loop.clock", lambda: next(ticks) / 1000)
    ours, theirs = pairs()
    calls = 0

    def on_events(_mask: int) -> None:
        nonlocal calls
        calls += 1

    reactor.add(ours.fileno(), READ, on_events)
    theirs.send(b"x")
    await until(lambda: calls)
    for _ in range(10):
        before = calls
        await trio.lowlevel.checkpoint()
        assert calls - before <= 2 * (MAX_TURN_S * 1000 + 1)


def test_where_events_come_fast_it_asks_before_it_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only while that pays off."""
    now = due = 0.0
    asked = 0

    class Poller:
        """An event at `due`. To ask takes 10 us, to sleep as long as it takes."""

        def poll(self, timeout: float, _max: int) -> list[tuple[int, int]]:
            nonlocal now, asked
            asked += not timeout
            now = max(now, due) if timeout else now + 1e-5
            return [(0, READ)] if now >= due else []

    def next_event(gap: float) -> int:
        """How often it asked for it before it slept."""
        nonlocal due, asked
        due, asked = now + gap, 0
        assert reactor._next_events(now) == [(0, READ)]
        return asked

    reactor = Reactor()
    reactor._poller.close()
    monkeypatch.setattr("federation.reactor.loop.clock", lambda: now)
    monkeypatch.setattr(reactor, "_poller", Poller())
    assert next_event(4 * SPIN_S) == 0
    assert next_event(SPIN_S / 2) == 0  # now it knows that they come fast
    for _ in range(3):
        assert 0 < next_event(SPIN_S / 2) <= SPIN_S / 2 * 1e5 + 2
    assert 0 < next_event(4 * SPIN_S) <= SPIN_S * 1e5 + 2
    assert next_event(4 * SPIN_S) == 0


# Mistakes


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as logs:
        yield logs


async def test_a_handler_that_raises_is_logged_and_dropped_and_the_others_go_on(
    reactor: Reactor, pairs: Pairs, logged: list[Any]
) -> None:
    (bad, one), (good, two) = pairs(), pairs()
    heard: list[bytes] = []
    calls: list[int] = []

    def fail(mask: int) -> None:
        calls.append(mask)
        reactor.flush_soon(lambda: heard.append(b"flushed all the same"))
        raise RuntimeError("ours")

    reactor.add(bad.fileno(), READ, fail)
    reactor.add(good.fileno(), READ, lambda _: heard.append(good.recv(9)))
    one.send(b"x")
    two.send(b"fine")
    await until(lambda: len(heard) == 2)
    assert set(heard) == {b"fine", b"flushed all the same"}
    one.send(b"y")
    two.send(b"still")
    await until(lambda: len(heard) == 3)
    assert len(calls) == 1
    assert len(reactor) == 1
    assert [(entry["log_level"], entry["fd"]) for entry in logged] == [("error", bad.fileno())]


async def test_a_handler_that_closed_its_socket_and_raises_does_not_end_the_set(
    reactor: Reactor, pairs: Pairs, logged: list[Any]
) -> None:
    (bad, one), (good, two) = pairs(), pairs()
    heard: list[bytes] = []

    def fail(_mask: int) -> None:
        bad.close()  # without a drop
        raise RuntimeError("ours")

    reactor.add(bad.fileno(), READ, fail)
    reactor.add(good.fileno(), READ, lambda _: heard.append(good.recv(9)))
    one.send(b"x")
    await until(lambda: logged)
    two.send(b"fine")
    await until(lambda: heard)
    assert len(reactor) == 1


async def test_a_flush_or_timer_that_raises_is_logged_and_the_others_run(reactor: Reactor, logged: list[Any]) -> None:
    said: list[str] = []

    def fail() -> None:
        raise RuntimeError("ours")

    reactor.flush_soon(fail)
    reactor.flush_soon(lambda: said.append("flush"))
    reactor.call_later(0, fail)
    reactor.call_later(0, lambda: said.append("timer"))
    await until(lambda: len(said) == 2)
    reactor.flush_soon(lambda: said.append("flush again"))
    reactor.call_later(0, lambda: said.append("timer again"))
    await until(lambda: len(said) == 4)
    assert [entry["log_level"] for entry in logged] == ["error", "error"]


# Timers. Nothing is real here but the set, so the clock may jump.


async def test_timers_run_in_the_order_of_their_time_and_on_time(
    autojump_clock: object, idle: Reactor, nursery: trio.Nursery
) -> None:
    start = trio.current_time()
    said: list[tuple[str, float]] = []

    def later(delay: float, word: str) -> None:
        idle.call_later(delay, lambda: said.append((word, trio.current_time() - start)))

    later(3, "three")
    later(1, "one")
    later(2, "two")
    later(1, "one too")  # in the order in which they were asked for
    await nursery.start(idle.run)
    await trio.sleep(1.5)
    assert said == [("one", 1), ("one too", 1)]
    later(0.1, "soon")  # the set sleeps towards a later one
    later(60, "late")
    later(-1, "at once")
    await trio.sleep(10)
    assert said[2:] == [("at once", 1.5), ("soon", pytest.approx(1.6)), ("two", 2), ("three", 3)]
    await trio.sleep(100)
    assert said[-1] == ("late", 61.5)


async def test_a_cancelled_timer_does_not_run(autojump_clock: object, reactor: Reactor) -> None:
    said: list[str] = []
    cancelled = reactor.call_later(1, lambda: said.append("cancelled"))
    reactor.call_later(2, lambda: said.append("kept"))
    assert cancelled.cancel()
    assert not cancelled.cancel()
    assert [len(queue) for queue in reactor._timers.values()] == [0, 1]  # thousands a second are: it is not kept till then
    await trio.sleep(3)
    assert said == ["kept"]
    assert not reactor._timers  # and is not kept for good


async def test_a_timer_may_cancel_one_of_the_same_moment(autojump_clock: object, reactor: Reactor) -> None:
    said: list[str] = []
    timers: list[Any] = []
    reactor.call_later(1, lambda: (said.append("first"), timers[0].cancel()))  # type: ignore[func-returns-value, arg-type, return-value]
    timers.append(reactor.call_later(1, lambda: said.append("second")))
    await trio.sleep(2)
    assert said == ["first"]


async def test_a_timer_may_ask_for_the_next_one(autojump_clock: object, reactor: Reactor) -> None:
    start, said = trio.current_time(), []

    def tick() -> None:
        said.append(trio.current_time() - start)
        if len(said) < 4:
            reactor.call_later(0.5, tick)

    reactor.call_later(0.5, tick)
    await trio.sleep(10)
    assert said == [0.5, 1, 1.5, 2]


async def test_what_a_timer_queues_is_flushed_behind_it(autojump_clock: object, reactor: Reactor) -> None:
    said: list[str] = []
    reactor.call_later(1, lambda: reactor.flush_soon(lambda: said.append("flush")))
    reactor.call_later(1, lambda: said.append("timer"))
    await trio.sleep(1.1)
    assert said == ["timer", "flush"]


async def test_a_timer_asked_for_in_a_socket_s_callback_runs(reactor: Reactor, pairs: Pairs) -> None:
    ours, theirs = pairs()
    said: list[str] = []
    reactor.call_later(3600, lambda: said.append("far"))
    reactor.add(
        ours.fileno(),
        READ,
        lambda _: (ours.recv(9), reactor.call_later(0.001, lambda: said.append("near"))),  # type: ignore[arg-type, return-value]
    )
    theirs.send(b"x")
    await until(lambda: said)
    assert said == ["near"]


# The end


def descriptors() -> set[int]:
    numbers = set()
    for number in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the listing's own
            os.fstat(number)
            numbers.add(number)
    return numbers


@pytest.mark.parametrize("use_epoll", POLLERS)
async def test_a_cancelled_set_leaves_no_descriptor_behind(use_epoll: bool, pairs: Pairs) -> None:
    before = descriptors()
    reactor = Reactor(use_epoll=use_epoll)
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        ours, theirs = pairs()
        reactor.add(ours.fileno(), READ, lambda _: None)
        nursery.cancel_scope.cancel()
    assert len(reactor) == 0
    reactor.drop(ours.fileno())  # an owner that is late
    ours.close()
    theirs.close()
    assert descriptors() <= before


def test_the_poller_is_the_kernels_best() -> None:
    reactor = Reactor()
    assert isinstance(reactor._poller, select.epoll if hasattr(select, "epoll") else reactor_module._SelectorPoller)
    reactor._poller.close()


def test_the_scratch_holds_a_read_behind_the_longest_half_record() -> None:
    assert SCRATCH_BYTES >= RECV_BYTES + 2 + MAX_CIPHERTEXT
    assert MAX_EVENTS > 1
