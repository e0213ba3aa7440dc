"""Helpers for tests: a Duplex that records, and `check_duplex`, the conformance test of every Duplex that we have."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from federation.reactor.sockets import NO_LINGER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
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
    is_unheard: bool = False

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

    def busier(self, others: int) -> None:
        self.heard.append(f"BUSIER {others}")

    @property
    def data(self) -> bytes:
        return b"".join(item for item in self.heard if isinstance(item, bytes))


@dataclass
class Caller(End):
    """The end that `check_duplex` joins to the one under test. Counts what it was told that the other side took."""

    acknowledged: int = 0

    def send(self, data: bytes | memoryview) -> None:
        assert len(data) <= self.space, "more than the caller takes"
        super().send(data)

    def acknowledge(self, n: int) -> None:
        self.acknowledged += n

    @property
    def ends(self) -> list[str]:
        """What it heard of ends: "EOF" and "RST"."""
        return [item[:3] for item in self.heard if item == "EOF" or (isinstance(item, str) and item.startswith("RST"))]


class EntrySide(End):
    """The entry's side of a connection; where both directions have ended it hears no more."""

    has_ended = False

    def abort(self, reason: str) -> None:
        if not (self.has_ended and "EOF" in self.heard):
            super().abort(reason)


@dataclass
class FakeChannel(Caller):
    """A tunnel's channel on the side that answers. The remote may give up when it hears that."""

    gives_up_at: str = ""
    keeps = takes_kept = False

    def accept(self) -> None:
        self.heard.append("OPENED")
        if self.gives_up_at == "OPENED":
            self.other.abort("the link broke")

    def refuse(self, reason: str) -> None:
        self.heard.append(f"REFUSED {reason}")

    def refuse_as_busier(self, others: int) -> None:
        self.busier(others)


def ending(end: End) -> str:
    """How it ended for a recording end, as `Rig.ended` tells it."""
    return next((item[:3] for item in reversed(end.heard) if isinstance(item, str) and item[:3] in ("RST", "EOF")), "")


def _nothing(*_: object) -> None:
    """A rig has no such side, or nothing is to be done there."""


class TcpSide:
    """The test's side of a TCP connection whose other side stands behind a Duplex under test. `move` reads."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        """Without a socket, `connected` brings one; what is said until then waits for it."""
        self.sock = sock
        self.read = bytearray()
        self.how = ""
        self.is_stopped = False
        self._words: list[Callable[[socket.socket], None]] = []

    def arrived(self) -> bytes:
        return bytes(self.read)

    def ended(self) -> str:
        return self.how

    def connected(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    def say(self, data: bytes) -> None:
        self._words.append(lambda sock: sock.sendall(data))

    def say_eof(self) -> None:
        self._words.append(lambda sock: sock.shutdown(socket.SHUT_WR))

    def break_off(self) -> None:
        def reset(sock: socket.socket) -> None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            sock.close()

        self._words.append(reset)

    def stop(self) -> None:
        self.is_stopped = True

    def go(self) -> None:
        self.is_stopped = False

    def move(self) -> None:
        if self.sock is None:
            return
        words, self._words = self._words, []
        for word in words:
            word(self.sock)
        if self.is_stopped or self.how or self.sock.fileno() < 0:
            return
        try:
            while data := self.sock.recv(1 << 20):
                self.read += data
            self.how = "EOF"
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.how = "RST"

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()

    def rig(self, caller: Caller, **other: Any) -> Rig:
        """For a Duplex that stands between `caller` and this; `other` is what it does otherwise."""
        ours: dict[str, Any] = {
            "arrived": self.arrived, "ended": self.ended, "say": self.say, "say_eof": self.say_eof,
            "break_off": self.break_off, "stop": self.stop, "go": self.go, "move": self.move,
        }  # fmt: skip
        return Rig(caller, **(ours | other))


@dataclass
class Rig:
    """A Duplex under test, which is `caller.other` at any moment, and what the test knows of the side behind it.

    `arrived()`: the bytes that came out there; `ended()`: "", "EOF" or "RST", as seen there. `say`, `say_eof` and
    `break_off` make that side send, finish or break. `stop` and `go`: it takes no more for now, it takes again. `move` is
    called whenever the test waits. `later`: so much time passes that whatever the end had planned happens. `close`: the
    caller is closed, and its owner hears of it, and why if not in order. `wrap`: the form in which the caller sends.

    Not every Duplex does everything. `has_room`: it is `writable` that holds the caller back. `holds_back`: a reader that
    stops holds the caller back; behind a circuit each channel has its own credit. `acknowledges`: the caller hears
    `acknowledge`, so that it grants again what went on; a mux's channel buffers and acknowledges nothing. `asks`: the end
    asks `caller.writable()` before it sends; for a mux's channel the credit bounds that. `half_closes`: an EOF ends one
    direction, and not all. `carries`: there is a side behind it; else the end drops what it takes.
    """

    caller: Caller
    arrived: Callable[[], bytes] = bytes
    ended: Callable[[], str] = str
    say: Callable[[bytes], None] = _nothing
    say_eof: Callable[[], None] = _nothing
    break_off: Callable[[], None] = _nothing
    stop: Callable[[], None] = _nothing
    go: Callable[[], None] = _nothing
    move: Callable[[], None] = _nothing
    later: Callable[[], None] = _nothing
    close: Callable[[str], None] = _nothing
    wrap: Callable[[bytes], bytes] = bytes
    has_room: bool = True
    holds_back: bool = True
    acknowledges: bool = True
    asks: bool = True
    half_closes: bool = True
    carries: bool = True
    sent: int = 0

    @property
    def end(self) -> Duplex:
        end: Duplex = self.caller.other
        return end

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
        await self.until(lambda: not self.has_room or self.end.writable() >= len(data))
        self.send_now(data)

    def send_now(self, data: bytes) -> None:
        """With a memoryview that is valid during the call only."""
        wrapped = bytearray(self.wrap(data))
        self.sent += len(wrapped)
        view = memoryview(wrapped)
        self.end.send(view)
        view.release()

    def abort(self) -> None:
        """The caller breaks."""
        end = self.end
        self.close("the caller broke")
        end.abort("the caller broke")


async def check_duplex(of: type, make: Callable[[], AbstractAsyncContextManager[Rig]]) -> None:
    """Whether the Duplex that `make` builds, anew each time, keeps the contract of reactor/duplex.py; it is one `of`.

    test_duplex.py reads from these calls which classes are checked.
    """
    checks: list[Callable[[Rig], Awaitable[None]]] = []
    async with make() as rig:
        assert type(rig.end) is of
        await _aborts_at_once(rig)
        if not rig.carries:
            checks += [_drops_what_it_takes]
        else:
            checks += [_carries_both_ways, _aborts, _hears_a_break]
            checks += [_ends_ours_first, _ends_theirs_first, _breaks_behind_an_eof, _aborts_behind_an_eof] * rig.half_closes
            checks += [_ends_altogether] * (not rig.half_closes)
            checks += [_holds_back] * rig.holds_back + [_waits_for_its_caller] * rig.asks
    for check in checks:
        async with make() as rig:
            await check(rig)


async def _carries_both_ways(rig: Rig) -> None:
    await rig.send(b"one ")
    await rig.send(b"two")
    await rig.until(lambda: rig.arrived() == b"one two")
    await rig.until(lambda: not rig.acknowledges or rig.caller.acknowledged == rig.sent)
    rig.say(b"three ")
    rig.say(b"four")
    await rig.until(lambda: rig.caller.data == b"three four")
    assert rig.caller.ends == []
    assert rig.ended() == ""


async def _ends_ours_first(rig: Rig) -> None:
    await rig.send(b"all of it")
    rig.end.send_eof()
    rig.end.send_eof()
    await rig.until(lambda: rig.ended() == "EOF")
    assert rig.arrived() == b"all of it"
    rig.say(b"the answer")
    await rig.until(lambda: rig.caller.data == b"the answer")
    assert rig.caller.ends == []
    rig.say_eof()
    await rig.until(lambda: rig.caller.ends == ["EOF"])
    await _is_over(rig)


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
    await _is_over(rig)


async def _is_over(rig: Rig) -> None:
    """Both directions have ended in order, which no reset follows."""
    rig.close("")
    await _is_silent(rig)
    assert "RST" not in rig.caller.ends
    assert rig.ended() == "EOF"


async def _aborts(rig: Rig) -> None:
    await rig.send(b"half")
    await rig.until(lambda: rig.arrived() == b"half")
    await _breaks(rig)
    await rig.until(lambda: rig.ended() == "RST")
    await _is_silent(rig)


async def _breaks(rig: Rig) -> None:
    """The caller does, and hears at most a reset in return."""
    rig.abort()
    before = len(rig.caller.heard)
    await _is_silent(rig)
    assert all(str(item).startswith("RST") for item in rig.caller.heard[before:])


async def _aborts_at_once(rig: Rig) -> None:
    """What had not gone on yet may be lost; an EOF would say that it was all."""
    if rig.carries:
        rig.send_now(b"half")
    await _breaks(rig)
    assert rig.ended() != "EOF"


async def _aborts_behind_an_eof(rig: Rig) -> None:
    rig.say_eof()
    await rig.until(lambda: rig.caller.ends == ["EOF"])
    await _breaks(rig)
    await rig.until(lambda: rig.ended() == "RST")
    await _is_silent(rig)


async def _hears_a_break(rig: Rig) -> None:
    rig.say(b"half")
    await rig.until(lambda: rig.caller.data == b"half")
    rig.break_off()
    await rig.until(lambda: rig.caller.ends == ["RST"])
    await _is_silent(rig)


async def _breaks_behind_an_eof(rig: Rig) -> None:
    await rig.send(b"all of it")
    rig.end.send_eof()
    await rig.until(lambda: rig.ended() == "EOF")
    rig.break_off()
    await rig.until(lambda: rig.caller.ends == ["RST"])
    await _is_silent(rig)


async def _ends_altogether(rig: Rig) -> None:
    await rig.send(b"all of it")
    await rig.until(lambda: rig.arrived() == b"all of it")
    rig.end.send_eof()
    rig.end.send_eof()
    await rig.until(lambda: rig.ended() == "RST")
    await rig.until(lambda: rig.caller.ends == ["RST"])
    await _is_silent(rig)


async def _drops_what_it_takes(rig: Rig) -> None:
    if not rig.has_room or rig.end.writable() > 0:
        rig.send_now(b"nobody asked for this")
    rig.end.send_eof()
    rig.end.send_eof()
    await _is_silent(rig)
    assert rig.caller.data == b""
    assert rig.ended() != "RST"


async def _is_silent(rig: Rig) -> None:
    """An end that is closed says nothing any more, whatever a caller that is closed too may still say."""
    await rig.settle()
    before = list(rig.caller.heard), rig.caller.acknowledged
    end = rig.end
    end.resume_writing()
    end.acknowledge(1)
    end.abort("again")
    end.abort("and again")
    rig.later()
    await rig.settle()
    assert (rig.caller.heard, rig.caller.acknowledged) == before


async def _holds_back(rig: Rig) -> None:
    rig.stop()
    stalls = 0
    while stalls < 2:
        room = min(rig.end.writable(), PIECE) if rig.has_room else PIECE if rig.sent < 4 * PIECE else 0
        if room > 0:
            rig.send_now(bytes(room))
            assert rig.sent < MOST_BUFFERED, "it takes without end"
        else:
            await rig.settle()
            stalls += 1
    assert rig.sent > 0
    assert rig.caller.acknowledged < rig.sent if rig.acknowledges else not rig.caller.acknowledged
    rig.caller.heard.clear()
    rig.go()
    if rig.has_room:
        await rig.until(lambda: "resume_writing" in rig.caller.heard)
    await rig.until(lambda: len(rig.arrived()) == rig.sent)
    await rig.until(lambda: not rig.acknowledges or rig.caller.acknowledged == rig.sent)
    await rig.until(lambda: not rig.has_room or rig.end.writable() > 0)
    assert rig.caller.ends == []


async def _waits_for_its_caller(rig: Rig) -> None:
    await rig.send(b"go ahead")
    await rig.until(lambda: rig.arrived() == b"go ahead")
    rig.caller.space = 0
    rig.say(bytes(PIECE))
    await rig.settle()
    assert rig.caller.data == b""
    rig.caller.space = 100
    rig.end.resume_writing()
    await rig.until(lambda: len(rig.caller.data) == PIECE)
    assert rig.caller.ends == []
