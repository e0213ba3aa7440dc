"""Local sockets joined over the reactor: real connections on loopback, the test holds the two outer ends."""

from __future__ import annotations

import gc
import random
import select
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio
from structlog.testing import capture_logs

from federation.reactor import keepalive
from federation.reactor.duplex import join
from federation.reactor.sockets import CHUNK, OUT_BUFFER, SocketDuplex, watch
from tests.support.links import End, socket_pair, until
from tests.support.sockets import (
    CountingReactor,
    events_while_idle,
    fill,
    is_reset,
    quiet,
    read_all,
    reset,
    running,
    small_buffers,
    stream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class Spliced:
    """client <-> a | b <-> server, where a and b are the joined ends under test."""

    reactor: CountingReactor
    client: trio.SocketStream
    a: SocketDuplex
    b: SocketDuplex
    server: trio.SocketStream
    closed: list[SocketDuplex] = field(default_factory=list)

    def both_closed(self) -> bool:
        return self.a.closed and self.b.closed


@asynccontextmanager
async def spliced(*, small: bool = False, start: bool = True, epoll: bool | None = None) -> AsyncIterator[Spliced]:
    reactor = CountingReactor(use_epoll=epoll)
    client, near = socket_pair()
    far, server = socket_pair()
    if small:
        small_buffers(client, near, far, server)
    closed: list[SocketDuplex] = []
    a = SocketDuplex(reactor, near, closed.append)
    b = SocketDuplex(reactor, far, closed.append)
    join(a, b)
    async with running(reactor), stream(client) as outer_client, stream(server) as outer_server:
        if start:
            a.start()
            b.start()
        yield Spliced(reactor, outer_client, a, b, outer_server, closed)
        for end in (a, b):
            end.abort("the test is over")
        assert len(reactor) == 0, "a descriptor was left in the set"


def lone_end(
    sock: socket.socket, other: End, *, epoll: bool | None = None
) -> tuple[CountingReactor, SocketDuplex, list[SocketDuplex]]:
    """One end whose other side is only recorded."""
    reactor, closed = CountingReactor(use_epoll=epoll), []
    end = SocketDuplex(reactor, sock, closed.append)
    end.other = other
    return reactor, end, closed


def noise(n: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(n)


either_poller = pytest.mark.parametrize("epoll", [None, False], ids=["default", "selectors"])


# Bytes


@either_poller
async def test_bytes_arrive_exactly_in_both_directions_at_once(epoll: bool | None) -> None:
    up, down = noise(3_000_000, 1), noise(2_500_000, 2)
    async with spliced(epoll=epoll) as s:
        got: dict[str, bytes] = {}

        async def write(sink: trio.SocketStream, data: bytes, seed: int) -> None:
            dice, at = random.Random(seed), 0
            while at < len(data):
                n = dice.choice([1, 100, 5000, CHUNK - 1, CHUNK + 1, 200_000])
                await sink.send_all(data[at : at + n])
                at += n
            await sink.send_eof()

        async def read(name: str, source: trio.SocketStream) -> None:
            got[name] = await read_all(source)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, s.client, up, 3)
            nursery.start_soon(write, s.server, down, 4)
            nursery.start_soon(read, "server", s.server)
            nursery.start_soon(read, "client", s.client)
        assert got == {"server": up, "client": down}
        await until(s.both_closed)
        assert (s.a.received, s.a.delivered) == (len(up), len(down))
        assert (s.b.received, s.b.delivered) == (len(down), len(up))
        assert s.a.error is None
        assert s.b.error is None
        assert sorted(map(id, s.closed)) == sorted([id(s.a), id(s.b)])  # each told once


async def test_what_was_sent_before_start_is_read_at_start() -> None:
    """A client's first bytes are usually there before the entry has picked anybody."""
    async with spliced(start=False) as s:
        await s.client.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await quiet()
        assert s.reactor.events == 0
        s.a.start()
        assert s.a.received == 18  # no event was needed
        assert await s.server.receive_some() == b"GET / HTTP/1.1\r\n\r\n"


async def test_no_more_is_read_than_the_other_side_has_room_for() -> None:
    ours, theirs = socket_pair()
    sink = End(space=10)
    reactor, end, _ = lone_end(ours, sink)
    async with running(reactor), stream(theirs) as remote:
        await remote.send_all(b"0123456789abcdefghij")
        end.start()
        await until(lambda: sink.data == b"0123456789abcdefghij")
        assert sink.heard == [b"0123456789", b"abcdefghij"]
        end.abort("over")


async def test_credit_is_given_for_what_has_left_and_for_no_more() -> None:
    """A tunnel on the other side grants what is acknowledged: too early bounds nothing, too late stalls it."""
    ours, theirs = socket_pair()
    small_buffers(ours, theirs)
    counted: list[int] = []
    sink = End()
    sink.acknowledge = counted.append  # type: ignore[method-assign]
    reactor, end, _ = lone_end(ours, sink)
    async with running(reactor), stream(theirs) as remote:
        end.start()
        end.send(bytes(1_000_000))
        await quiet()
        assert sum(counted) == end.delivered < 1_000_000
        received = 0
        while received < 1_000_000:
            received += len(await remote.receive_some())
        await until(lambda: sum(counted) == 1_000_000)
        assert end.delivered == 1_000_000
        end.abort("over")


async def test_what_waits_when_an_end_is_started_still_goes_out() -> None:
    """The exit hands over what came early, the kernel takes half of it, then the end is started."""
    ours, theirs = socket_pair()
    small_buffers(ours, theirs)
    reactor, end, _ = lone_end(ours, End())
    data = noise(1_000_000, 5)
    async with running(reactor), stream(theirs) as remote:
        end.send(data)
        assert end.delivered < len(data)
        end.send_eof()
        end.start()
        assert await read_all(remote) == data
        end.abort("over")


async def test_a_connection_that_broke_before_start_is_not_started() -> None:
    """The backend accepts and resets at once, between two chunks of what came early."""
    ours, theirs = socket_pair()
    sink = End()
    reactor, end, closed = lone_end(ours, sink)
    reset(theirs)
    with capture_logs() as logs:
        async with running(reactor):
            end.send(b"early")
            end.send(b"more")
            end.send_eof()
            end.start()
            await quiet()
    assert closed == [end]
    assert [heard for heard in sink.heard if str(heard).startswith("RST")] == [f"RST {end.error}"]
    assert len(reactor) == 0
    assert logs == []


# The end of one direction


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="kqueue tells of an end by the read behind it")
async def test_an_eof_that_lies_behind_the_bytes_makes_one_trip_with_them() -> None:
    client, near = socket_pair()
    peer = End()
    reactor, end, _ = lone_end(near, peer)
    end.start()
    client.send(b"all")
    client.shutdown(socket.SHUT_WR)
    reactor._run_events()
    assert peer.heard == [b"all", "EOF"]
    assert reactor.events == 1
    end.abort("the test is over")
    client.close()


@either_poller
@pytest.mark.parametrize("first", ["client", "server"])
async def test_half_close_leaves_the_other_direction_open(first: str, epoll: bool | None) -> None:
    async with spliced(epoll=epoll) as s:
        ending, going_on = (s.client, s.server) if first == "client" else (s.server, s.client)
        await ending.send_all(b"question")
        await ending.send_eof()
        assert await read_all(going_on) == b"question"
        await quiet()
        assert not s.a.closed
        assert not s.b.closed
        answer = noise(500_000, 6)
        async with trio.open_nursery() as nursery:

            async def reply() -> None:
                await going_on.send_all(answer)
                await going_on.send_eof()

            nursery.start_soon(reply)
            assert await read_all(ending) == answer
        await until(s.both_closed)
        assert s.a.error is None
        assert s.b.error is None


async def test_eof_comes_behind_all_that_was_queued() -> None:
    ours, theirs = socket_pair()
    small_buffers(ours, theirs)
    reactor, end, _ = lone_end(ours, End())
    data = noise(1_000_000, 7)
    async with running(reactor), stream(theirs) as remote:
        end.start()
        end.send(data)
        end.send_eof()
        assert end.delivered < len(data)
        assert await read_all(remote) == data
        end.abort("over")


async def test_a_closed_connection_without_a_byte_closes_the_other() -> None:
    async with spliced() as s:
        await s.client.aclose()
        assert await read_all(s.server) == b""
        await s.server.aclose()
        await until(s.both_closed)
        assert s.a.error is None


# Resets


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("when", ["idle", "after its EOF", "after the other's EOF", "while it is being sent to"])
async def test_a_reset_is_passed_on(who: str, when: str) -> None:
    async with spliced(small=True) as s:
        breaking, other = (s.client, s.server) if who == "client" else (s.server, s.client)
        end, other_end = (s.a, s.b) if who == "client" else (s.b, s.a)
        if when == "after its EOF":
            await breaking.send_eof()
            assert await read_all(other) == b""
        elif when == "after the other's EOF":
            await other.send_eof()
            assert await read_all(breaking) == b""
        elif when == "while it is being sent to":
            await fill(other, bytes(5_000_000), until=lambda: other_end._paused)
        reset(breaking)
        await until(s.both_closed)
        assert end.error is not None
        assert other_end.error == end.error  # both say why
        await until(lambda: other.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0)  # an EOF leaves it 0


async def test_bytes_in_front_of_a_reset_arrive() -> None:
    """A server that refuses an upload answers, then resets: the answer is what the person needs."""
    async with spliced() as s:
        await s.server.send_all(b"413 too large")
        await until(lambda: s.a.delivered == 13)
        reset(s.server)
        assert await s.client.receive_some() == b"413 too large"
        assert await is_reset(s.client)


async def test_a_reset_is_noticed_while_reading_is_paused() -> None:
    """The server does not read, so nothing is read from the client either; that it broke off must show all the same."""
    async with spliced(small=True) as s:
        await fill(s.client, bytes(5_000_000), until=lambda: s.a._paused)
        reset(s.client)
        await until(s.both_closed)
        assert s.b.error == s.a.error
        assert s.a.error is not None
        assert await is_reset(s.server)


async def test_abort_resets_and_does_not_call_back() -> None:
    ours, theirs = socket_pair()
    sink = End()
    reactor, end, closed = lone_end(ours, sink)
    async with running(reactor), stream(theirs) as remote:
        end.start()
        end.abort("the tunnel broke")
        end.abort("again")
        end.send(b"too late")
        end.send_eof()
        end.resume_writing()
        assert (closed, end.error, sink.heard) == ([end], "the tunnel broke", [])
        assert await is_reset(remote)


async def test_an_abort_after_the_orderly_end_changes_nothing() -> None:
    async with spliced() as s:
        await s.client.aclose()
        await s.server.aclose()
        await until(s.both_closed)
        s.a.abort("too late")
        assert s.a.error is None
        assert len(s.closed) == 2


# Slow readers


@either_poller
async def test_a_reader_that_stops_stops_the_writer_and_nobody_spins(epoll: bool | None) -> None:
    data = noise(4_000_000, 8)
    async with spliced(small=True, epoll=epoll) as s:
        sent = await fill(s.client, data, until=lambda: s.a._paused)
        held = s.b._out_size
        assert 0 < held <= OUT_BUFFER
        assert sum(map(len, s.b._out)) == held
        assert sent < OUT_BUFFER + 1_000_000, "more than the buffer and what the kernel holds"
        assert await events_while_idle(s.reactor) < 5

        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.client.send_all, data[sent:])
            while len(received) < len(data):
                received += await s.server.receive_some(7000)
                assert s.b._out_size <= OUT_BUFFER
        assert bytes(received) == data
        assert await events_while_idle(s.reactor) < 5  # a socket with room for more is no news to who has nothing to send


async def test_a_slow_reader_does_not_stop_the_other_direction() -> None:
    async with spliced(small=True) as s:
        await fill(s.client, bytes(5_000_000), until=lambda: s.a._paused)
        await s.server.send_all(b"still")
        assert await s.client.receive_some() == b"still"
        await s.server.send_eof()
        assert await read_all(s.client) == b""


async def test_both_directions_may_stop_and_go_on() -> None:
    up, down = noise(3_000_000, 9), noise(3_000_000, 10)
    async with spliced(small=True) as s:
        sent_up = await fill(s.client, up, until=lambda: s.a._paused)
        sent_down = await fill(s.server, down, until=lambda: s.b._paused)
        async with trio.open_nursery() as nursery:

            async def finish(sink: trio.SocketStream, rest: bytes) -> None:
                await sink.send_all(rest)
                await sink.send_eof()

            async def check(source: trio.SocketStream, data: bytes) -> None:
                assert await read_all(source) == data

            nursery.start_soon(finish, s.client, up[sent_up:])
            nursery.start_soon(finish, s.server, down[sent_down:])
            nursery.start_soon(check, s.server, up)
            nursery.start_soon(check, s.client, down)
        await until(s.both_closed)


@either_poller
async def test_both_ended_in_front_of_what_was_not_read_yet(epoll: bool | None) -> None:
    """FIN sent and FIN received is HUP to the kernel, for as long as what was received waits there."""
    ours, theirs = socket_pair()
    sink = End(space=0)
    reactor, end, closed = lone_end(ours, sink, epoll=epoll)
    async with running(reactor), stream(theirs) as remote:
        end.start()
        end.send_eof()
        assert await read_all(remote) == b""
        await remote.send_all(b"last words")
        await remote.send_eof()
        assert await events_while_idle(reactor) < 5
        assert closed == []
        sink.space = 100
        end.resume_writing()
        await until(lambda: closed)
        assert sink.heard == [b"last words", "EOF"]
        assert end.error is None


async def test_what_is_closed_waits_for_no_garbage_collector() -> None:
    """Thousands of connections a second: cycles would cost a tenth of the time, and pauses."""
    gc.collect()
    gc.disable()
    try:
        async with spliced() as s:
            await s.client.send_eof()
            await s.server.send_eof()
            await until(s.both_closed)
        del s
        await trio.testing.wait_all_tasks_blocked()
        assert [end for end in gc.get_objects() if isinstance(end, SocketDuplex)] == []
    finally:
        gc.enable()


@either_poller
async def test_both_ended_while_paused_waits_in_silence_and_loses_nothing(epoll: bool | None) -> None:
    data = noise(4_000_000, 11)
    async with spliced(small=True, epoll=epoll) as s:
        await s.server.send_eof()
        assert await read_all(s.client) == b""
        sent = await fill(s.client, data, until=lambda: s.a._paused)
        await s.client.send_eof()
        assert not s.a.closed
        assert await events_while_idle(s.reactor) < 5
        assert await read_all(s.server) == data[:sent]
        await until(s.both_closed)
        assert s.a.error is None
        assert s.b.error is None


@either_poller
async def test_an_ended_reader_that_is_still_sent_to_does_not_spin(epoll: bool | None) -> None:
    """Its EOF was passed on, its socket stays readable for ever: nobody may ask for that."""
    async with spliced(small=True, epoll=epoll) as s:
        await s.client.send_eof()
        assert await read_all(s.server) == b""
        await fill(s.server, bytes(5_000_000), until=lambda: s.b._paused)
        assert await events_while_idle(s.reactor) < 5
        assert s.a._out_size <= OUT_BUFFER


async def test_a_machine_that_has_gone_ends_like_a_reset(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    reactor = CountingReactor()
    client, near = socket_pair()
    other, closed = End(), list[SocketDuplex]()
    end = SocketDuplex(reactor, near, closed.append)
    end.other = other
    monkeypatch.setattr(keepalive, "has_vanished", lambda sock: gone)
    gone = False
    with client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, reactor)
            assert not near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            await trio.sleep(2.5 * keepalive.LOOK_EVERY_S)
            assert not end.closed
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == keepalive.PROBE_EVERY_S
            gone = True
            await trio.sleep(keepalive.LOOK_EVERY_S)
            nursery.cancel_scope.cancel()
    assert closed == [end]
    assert end.error == "Connection timed out"
    assert other.heard == ["RST Connection timed out"]
    assert not reactor.sockets
