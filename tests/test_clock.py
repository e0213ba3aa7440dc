from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
import trio

from federation import clock as clock_module
from federation.clock import STEPS_KEPT, Clock

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Machine:
    """Its wall clock, which goes with trio's but for steps; and its sleep."""

    def __init__(self) -> None:
        self.start_s = 0.0
        self.step = timedelta(0)
        self.asleep_s = 700.0  # since its start, before ours

    def clock(self) -> Clock:
        self.start_s = trio.current_time()
        return Clock(wall=self.wall, asleep=lambda: self.asleep_s)

    def wall(self) -> float:
        return (START + self.step).timestamp() + trio.current_time() - self.start_s

    def sleep(self, seconds: float) -> None:
        """Trio's clock stands still meanwhile."""
        self.step += timedelta(seconds=seconds)
        self.asleep_s += seconds


@pytest.fixture
def machine() -> Machine:
    return Machine()


def near(one: datetime, other: datetime) -> bool:
    return abs(one - other) < timedelta(milliseconds=1)


async def test_durations_do_not_step_with_the_wall_clock(machine: Machine, autojump_clock: trio.testing.MockClock) -> None:
    clock = machine.clock()
    start = clock.utc_now()
    assert near(start, START)
    for step in (timedelta(hours=1), timedelta(days=-400)):
        machine.step += step
        await trio.sleep(30)
    assert near(clock.utc_now(), start + timedelta(seconds=60))


async def test_durations_count_the_time_asleep(machine: Machine, autojump_clock: trio.testing.MockClock) -> None:
    clock = machine.clock()
    await trio.sleep(1)
    machine.sleep(8 * 3600)
    assert near(clock.utc_now(), START + timedelta(hours=8, seconds=1))


async def test_durations_never_go_back_though_two_clocks_are_read(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    clock = machine.clock()
    first = clock.utc_now()
    machine.asleep_s -= 1e-6
    assert clock.utc_now() == first


async def test_for_people_a_time_is_what_the_wall_clock_said_then(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    clock = machine.clock()
    before = trio.current_time()
    await trio.sleep(10)
    clock.utc_now()  # as a node asks every few seconds
    machine.sleep(8 * 3600)
    await trio.sleep(5)
    assert near(clock.utc_of(before), START)
    assert near(clock.utc_of(trio.current_time()), START + timedelta(hours=8, seconds=15))
    assert near(clock.utc_of(trio.current_time() + 60), START + timedelta(hours=8, seconds=75))
    machine.step -= timedelta(hours=3)  # somebody sets the clock back
    await trio.sleep(5)
    assert near(clock.utc_of(trio.current_time()), START + timedelta(hours=5, seconds=20))
    assert near(clock.utc_of(before), START)


async def test_the_wall_clocks_drift_is_followed_without_a_note(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    clock = machine.clock()
    for _ in range(10):
        await trio.sleep(60)
        machine.step += timedelta(seconds=0.1)
        clock.utc_now()
    assert near(clock.utc_of(trio.current_time()), START + timedelta(seconds=601))
    assert len(clock._steps) == 1


async def test_the_steps_that_are_kept_have_an_end(machine: Machine, autojump_clock: trio.testing.MockClock) -> None:
    clock = machine.clock()
    for _ in range(2 * STEPS_KEPT):
        await trio.sleep(1)
        machine.step += timedelta(seconds=10)
        clock.utc_now()
    assert len(clock._steps) == STEPS_KEPT
    assert clock.utc_of(machine.start_s).tzinfo is timezone.utc  # older than all that are kept: about right


async def test_a_time_of_the_node_as_the_wall_clock_has_it(machine: Machine, autojump_clock: trio.testing.MockClock) -> None:
    clock = machine.clock()
    seen = clock.utc_now()
    machine.step += timedelta(hours=2)
    await trio.sleep(30)
    assert near(clock.by_the_wall(seen), START + timedelta(hours=2))


def test_the_time_asleep_does_not_grow_while_the_machine_is_awake() -> None:
    before = clock_module.time_asleep()
    time.sleep(0.01)
    assert abs(clock_module.time_asleep() - before) < 5
