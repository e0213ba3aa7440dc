"""One epoll/kqueue set that a single trio task waits on: ready sockets -> callbacks, then one flush.

Rule 1: a callback never blocks and never awaits; it runs to its end before the next one.
Rule 2: writes are collected. To send data, call `flush_soon(f)`: `f` runs once, after all events of the batch and those that
came meanwhile. For data that is not urgent call `flush_late(f)`: it usually shares a later flush.
Rule 3: everything runs on the trio thread, so callers need no locks. Callbacks handle the errors that they expect. Any other
exception is a bug of ours: the reactor logs it and drops the descriptor, and the daemon goes on.

Why not two trio tasks a connection: a wake-up through trio's scheduler costs about 35 us, a callback about 2 us.
"""

from __future__ import annotations

import select
import selectors
from contextlib import suppress
from itertools import takewhile
from operator import attrgetter
from os import sched_yield
from time import perf_counter as clock
from typing import TYPE_CHECKING

import structlog
import trio

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from federation.reactor.sockets import SocketDuplex

    Handler = Callable[[int], None]
    from trio_typing import TaskStatus

log = structlog.get_logger(__name__)

READ = 1
WRITE = 4
ENDING = 0x2000  # asked for with READ: the remote has finished, and all its bytes are here (epoll only)
BROKEN = 8 | 16  # the kernel says ERR or HUP; reported whether asked for or not (epoll only)

# How long the set waits for the next event itself before it hands the thread back to trio. One wake-up through trio
# costs more than many a request's whole way, so a busy set lingers; trio's other tasks wait at most MAX_TURN_S.
# 1 ms is the smallest step that epoll_wait knows.
POLL_WAIT_S = 0.001
MAX_TURN_S = 0.008
# To sleep and be woken costs 50 us of latency on a virtual machine, a turn of asking and yielding the core about 1 us.
# Where the last events came about that soon, the set asks that long before it sleeps; longer gaps cost nothing.
SPIN_S = 0.00005
SCRATCH_BYTES = 384 * 1024  # one recv of up to 256 KiB behind a half record
SEALED_BYTES = 256 * 1024  # the records of one send
MAX_EVENTS = 256  # a batch: bounds the delay of the flush, and so of all answers
# After a batch of several events more usually follow: before the flush the set polls for more, EXTRA_POLLS times at most,
# unless it has FULL_BATCH of them. So more frames share a record and a send. A single event, or a batch that added a
# socket, is flushed at once.
EXTRA_POLLS = 2
FULL_BATCH = 64


class Timer:
    """A callback at a time, in a queue of timers. Most are cancelled, which leaves nothing behind."""

    __slots__ = ("_queue", "callback", "when")

    def __init__(self, when: float, callback: Callable[[], None], queue: dict[Timer, None]) -> None:
        self.when = when
        self.callback = callback
        self._queue = queue
        queue[self] = None

    def cancel(self) -> bool:
        """Cancel it. Returns whether it was still to run."""
        return self._queue.pop(self, self) is None


class _SelectorPoller:
    """The part of `select.epoll` that we use, over `selectors` (kqueue on macOS)."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._turn = 0

    def fileno(self) -> int:
        return self._selector.fileno()

    def register(self, fd: int, mask: int) -> None:
        self.modify(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        events = (selectors.EVENT_READ if mask & READ else 0) | (selectors.EVENT_WRITE if mask & WRITE else 0)
        known = fd in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, events)
        else:
            self._selector.register(fd, events)

    def unregister(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        ready = self._selector.select(timeout)
        if len(ready) > maxevents:  # a batch begins with descriptors that the last one left out, as epoll does by itself
            self._turn = (self._turn + maxevents) % len(ready)
            ready = (ready[self._turn :] + ready[: self._turn])[:maxevents]
        return [
            (key.fd, (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0))
            for key, events in ready
        ]

    def close(self) -> None:
        self._selector.close()


class Reactor:
    """The set. `add` and `change` take a file descriptor and a mask of READ, WRITE, ENDING; 0 keeps only BROKEN.

    Times are seconds of `trio.current_time()`; `now()` is that, two calls cheaper.
    """

    def __init__(self, *, use_epoll: bool | None = None) -> None:
        if use_epoll is None:
            use_epoll = hasattr(select, "epoll")
        self._poller: select.epoll | _SelectorPoller = select.epoll() if use_epoll else _SelectorPoller()
        self._handlers: dict[int, Handler] = {}
        self._added: set[int] = set()  # since the last batch began
        self._flushes: list[Callable[[], None]] = []
        self._late: dict[Callable[[], None], None] = {}
        self._timers: dict[float, dict[Timer, None]] = {}  # by delay, so that each queue is in the order of its times
        self._next_wake = float("inf")
        self._timer_added = trio.Event()
        self._kick = trio.Event()
        self._in_batch = False
        self._spins = False
        self.sockets: set[SocketDuplex] = set()  # those that are open
        self.now: Callable[[], float] = trio.current_time
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))  # to receive into; valid until the callback returns
        self.sealed = memoryview(bytearray(SEALED_BYTES))  # to seal into and send from; valid until the callback returns

    # Descriptors

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        self._handlers[fd] = handler
        self._added.add(fd)
        self._poller.register(fd, mask)

    def change(self, fd: int, mask: int) -> None:
        self._poller.modify(fd, mask)

    def drop(self, fd: int) -> None:
        """Forget `fd`. Unknown descriptors are fine."""
        if self._handlers.pop(fd, None) is not None:
            with suppress(OSError):  # closed already, by a callback that raised afterwards
                self._poller.unregister(fd)

    def close(self, sock: socket.SocketType) -> None:
        """Forget and close `sock`, which no other descriptor refers to: the kernel takes it out of its set by itself."""
        if self._handlers.pop(sock.fileno(), None) is not None and isinstance(self._poller, _SelectorPoller):
            self._poller.unregister(sock.fileno())
        sock.close()

    def __len__(self) -> int:
        return len(self._handlers)

    # Work

    def flush_soon(self, flush: Callable[[], None]) -> None:
        """Run `flush` after this batch of events; outside a batch, as soon as trio runs us. The caller avoids doubles."""
        if not self._in_batch and not self._flushes:
            self._kick.set()
        self._flushes.append(flush)

    def flush_late(self, flush: Callable[[], None]) -> None:
        """Run `flush` before the set sleeps or yields to trio, within MAX_TURN_S. Calling it twice schedules it once."""
        if self._in_batch:
            self._late[flush] = None
        else:
            self.flush_soon(flush)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        queue = self._timers.get(delay_s)
        if queue is None:
            queue = self._timers[delay_s] = {}
        timer = Timer(self.now() + delay_s, callback, queue)
        if timer.when < self._next_wake:
            self._timer_added.set()
        return timer

    # The task

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. The descriptors belong to their owners, who drop them."""
        self.now = trio.lowlevel.current_clock().current_time
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_timers)
                nursery.start_soon(self._run_flushes)
                task_status.started()
                while True:
                    await trio.lowlevel.wait_readable(self._poller.fileno())
                    self._run_events()
        finally:
            self._poller.close()
            self._handlers.clear()

    async def _run_flushes(self) -> None:
        """Run flushes that trio tasks queued outside a batch."""
        while True:
            await self._kick.wait()
            self._kick = trio.Event()
            self._flush()

    async def _run_timers(self) -> None:
        while True:
            self._timer_added = trio.Event()
            self._timers = {delay: queue for delay, queue in self._timers.items() if queue}
            self._next_wake = min((next(iter(queue)).when for queue in self._timers.values()), default=float("inf"))
            with trio.CancelScope(deadline=self._next_wake) as sleep:
                await self._timer_added.wait()
            if not sleep.cancelled_caught:
                continue
            for timer in self._due(trio.current_time()):
                if timer.cancel():  # else an earlier callback has cancelled it
                    self.guard(timer.callback)
            self._flush()

    def _due(self, now: float) -> list[Timer]:
        queues = self._timers.values()
        return sorted((timer for q in queues for timer in takewhile(lambda t: t.when <= now, q)), key=attrgetter("when"))

    def _run_events(self) -> None:
        """Batch after batch, until POLL_WAIT_S brings nothing or trio's other tasks have waited for MAX_TURN_S."""
        handlers, added = self._handlers, self._added
        self._in_batch = True
        leave_at = clock() + MAX_TURN_S
        polls = gathered = 0  # since the last flush
        events = self._poller.poll(0, MAX_EVENTS)
        while events:
            added.clear()
            for fd, mask in events:
                # An earlier callback of this batch may have dropped it, and another socket may have got its number.
                handler = handlers.get(fd)
                if handler is not None and fd not in added:
                    try:
                        handler(mask)
                    except Exception:  # rule 3
                        log.exception("a socket callback failed", fd=fd)
                        self.drop(fd)
            gathered += len(events)
            if polls < EXTRA_POLLS and 1 < gathered <= FULL_BATCH and self._flushes and not added and clock() < leave_at:
                polls += 1
                events = self._poller.poll(0, MAX_EVENTS)
                if events:
                    continue
            polls = gathered = 0
            self._flush()
            now = clock()
            if now > leave_at:
                break
            events = self._next_events(now)
        self._flush_late()
        self._in_batch = False

    def _next_events(self, now: float) -> list[tuple[int, int]]:
        """Events within POLL_WAIT_S. Asks without sleep at first if that paid off the last time."""
        poll = self._poller.poll
        if self._spins:
            until = now + SPIN_S
            events = poll(0, MAX_EVENTS)
            while not events and clock() < until:
                sched_yield()  # another process that wants this core has it first
                events = poll(0, MAX_EVENTS)
            if events:
                return events
        self._flush_late()
        events = poll(POLL_WAIT_S, MAX_EVENTS)
        self._spins = clock() - now < 2 * SPIN_S
        return events

    def _flush(self) -> None:
        while self._flushes:
            flushes, self._flushes = self._flushes, []
            for flush in flushes:
                self.guard(flush)

    def _flush_late(self) -> None:
        if self._late:
            self._flushes += self._late
            self._late = {}
            self._flush()

    def guard(self, callback: Callable[[], None]) -> None:
        """Run a callback under rule 3, from a task that its exception would end."""
        try:
            callback()
        except Exception:  # rule 3
            log.exception("a callback failed")
