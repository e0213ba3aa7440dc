"""Helpers for tests: a Duplex that records, and `check_duplex`, the conformance test of every Duplex that we have."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from federation.reactor.duplex import Duplex

WAIT_S = 30.0  # for what takes milliseconds
PIECE = 16 * 1024
MOST_BUFFERED = 64 * 1024 * 1024  # no end, nor a kernel behind it, holds so much


@dataclass
class End:
    """A Duplex that records what it hears. `space` bytes are writable; `credit` False keeps what arrives unacknowledged."""

    heard: list[Any] = field(default_factory=list)
    space: int = 1 << 30
    credit: bool = True
    other: Any = None

    def writable(self) -> int:
        return self.space

    def send(self, data: bytes | memoryview) -> None:
        self.heard.append(bytes(data))
        if self.credit and self.other is not None:
            self.other.acknowledge(len(data))

    def send_eof(self) -> None:
        self.heard.append("EOF")

    def abort(self, reason: str) -> None:
        self.heard.append(f"RST {reason}")

    def acknowledge(self, n: int) -> None: ...

    def resume_writing(self) -> None:
        self.heard.append("resume_writing")

    def opened(self) -> None:
        self.heard.append("OPENED")

    def refused(self, reason: str) -> None:
        self.heard.append(f"REFUSED {reason}")

    @property
    def data(self) -> bytes:
        return b"".join(item for item in self.heard if isinstance(item, bytes))


@dataclass
class Caller(End):
    """The end that `check_duplex` joins to the one under test. Counts what it was told that the other side took."""

    acknowledged: int = 0

    def acknowledge(self, n: int) -> None:
        self.acknowledged += n

    @property
    def ends(self) -> list[str]:
        """What it heard of ends: "EOF" and "RST"."""
        return [item[:3] for item in self.heard if item == "EOF" or (isinstance(item, str) and item.startswith("RST"))]


@dataclass
class Rig:
    """A Duplex under test, joined to `caller`, and what the test knows of the side behind it.

    `arrived()`: the bytes that came out there; `ended()`: "", "EOF" or "RST", as seen there. `say`, `say_eof` and
    `break_off` make that side send, finish or break. `stop` and `go`: it takes no more for now, it takes again. `move` is
    called whenever the test waits. `has_room`: it is `writable` that holds the caller back. `acknowledges`: the caller hears
    `acknowledge`, so that it grants again what went on; a mux's channel buffers and acknowledges nothing.
    """

    end: Duplex
    caller: Caller
    arrived: Callable[[], bytes]
    ended: Callable[[], str]
    say: Callable[[bytes], None]
    say_eof: Callable[[], None]
    break_off: Callable[[], None]
    stop: Callable[[], None]
    go: Callable[[], None]
    move: Callable[[], None] = lambda: None
    has_room: bool = True
    acknowledges: bool = True

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "it did not come to that"
            self.move()
            await trio.sleep(0.001)

    async def settle(self) -> None:
        """Let everything happen that is going to."""
        for _ in range(3):
            self.move()
            await trio.testing.wait_all_tasks_blocked(0.005)

    async def send(self, data: bytes) -> None:
        """With a memoryview that is valid during the call only."""
        await self.until(lambda: not self.has_room or self.end.writable() >= len(data))
        view = memoryview(bytearray(data))
        self.end.send(view)
        view.release()


async def check_duplex(make: Callable[[], AbstractAsyncContextManager[Rig]]) -> None:
    """Whether the Duplex that `make` builds, anew each time, keeps the contract of reactor/duplex.py."""
    checks = _carries_both_ways, _ends_ours_first, _ends_theirs_first, _aborts, _hears_a_break, _holds_back
    for check in checks:
        async with make() as rig:
            await check(rig)


async def _carries_both_ways(rig: Rig) -> None:
    await rig.send(b"one ")
    await rig.send(b"two")
    await rig.until(lambda: rig.arrived() == b"one two")
    await rig.until(lambda: not rig.acknowledges or rig.caller.acknowledged == len(b"one two"))
    rig.say(b"three ")
    rig.say(b"four")
    await rig.until(lambda: rig.caller.data == b"three four")
    assert rig.caller.ends == []
    assert rig.ended() == ""


async def _ends_ours_first(rig: Rig) -> None:
    await rig.send(b"all of it")
    rig.end.send_eof()
    await rig.until(lambda: rig.ended() == "EOF")
    assert rig.arrived() == b"all of it"
    rig.say(b"the answer")
    await rig.until(lambda: rig.caller.data == b"the answer")
    assert rig.caller.ends == []
    rig.say_eof()
    await rig.until(lambda: rig.caller.ends == ["EOF"])
    await _is_silent(rig)


async def _ends_theirs_first(rig: Rig) -> None:
    rig.say(b"the greeting")
    rig.say_eof()
    await rig.until(lambda: rig.caller.ends == ["EOF"])
    assert rig.caller.data == b"the greeting"
    await rig.send(b"and ours")
    await rig.until(lambda: rig.arrived() == b"and ours")
    assert rig.ended() == ""
    rig.end.send_eof()
    await rig.until(lambda: rig.ended() == "EOF")
    await _is_silent(rig)


async def _aborts(rig: Rig) -> None:
    await rig.send(b"half")
    await rig.until(lambda: rig.arrived() == b"half")
    rig.end.abort("the caller broke")
    await _is_silent(rig)
    await rig.until(lambda: rig.ended() == "RST")
    await _is_silent(rig)


async def _hears_a_break(rig: Rig) -> None:
    rig.say(b"half")
    await rig.until(lambda: rig.caller.data == b"half")
    rig.break_off()
    await rig.until(lambda: rig.caller.ends == ["RST"])
    await _is_silent(rig)


async def _is_silent(rig: Rig) -> None:
    """An end that is closed says nothing any more, whatever a caller that is closed too may still say."""
    await rig.settle()
    before = list(rig.caller.heard), rig.caller.acknowledged
    rig.end.resume_writing()
    rig.end.acknowledge(1)
    rig.end.abort("again")
    rig.end.abort("and again")
    await rig.settle()
    assert (rig.caller.heard, rig.caller.acknowledged) == before


async def _holds_back(rig: Rig) -> None:
    rig.stop()
    sent, stalls = 0, 0
    while stalls < 2:
        room = min(rig.end.writable(), PIECE) if rig.has_room else PIECE if sent < 4 * PIECE else 0
        if room > 0:
            rig.end.send(bytes(room))
            sent += room
            assert sent < MOST_BUFFERED, "it takes without end"
        else:
            await rig.settle()
            stalls += 1
    assert sent > 0
    assert rig.caller.acknowledged < sent if rig.acknowledges else not rig.caller.acknowledged
    rig.caller.heard.clear()
    rig.go()
    if rig.has_room:
        await rig.until(lambda: "resume_writing" in rig.caller.heard)
    await rig.until(lambda: len(rig.arrived()) == sent)
    await rig.until(lambda: not rig.acknowledges or rig.caller.acknowledged == sent)
    assert rig.end.writable() > 0 or not rig.has_room
    assert rig.caller.ends == []
