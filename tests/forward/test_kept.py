"""Idle connections of backends: which are kept, for whom and for how long, and the requests that go on them."""

from __future__ import annotations

import gc
import socket
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.forward import kept as kept_module
from federation.forward.exit import HELD, STALE_S, ExitFlow, RequestEnd, Serving, _Unanswered
from federation.forward.kept import KEEP_S, MOST, MOST_OF_ENTRY, Kept, _Idle
from federation.net.link.channel import INITIAL_WINDOW
from federation.reactor import fdlimit
from federation.reactor.duplex import NullDuplex
from federation.reactor.sockets import QUICKACK, SocketDuplex
from tests.support.duplex import Caller, EntrySide, FakeChannel, Rig, TcpSide, check_duplex, ending
from tests.support.entries import settled
from tests.support.exits import Tunnels, believe, checking, make_exit, serve, tunnels
from tests.support.links import End, socket_pair, until
from tests.support.sockets import CountingReactor, Listener, quiet, read_all, reset, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

A, B = "backend a", "backend b"


# The connections that are kept


class Pool:
    def __init__(self) -> None:
        self.reactor = CountingReactor()
        self.kept = Kept(self.reactor)
        self.servers: list[socket.socket] = []
        self.owners: list[SocketDuplex] = []  # those that closed while their owner had them

    def connection(self) -> SocketDuplex:
        ours, theirs = socket_pair()
        self.servers.append(theirs)
        end = SocketDuplex(self.reactor, ours, self.owners.append)
        end.other = End(space=0)
        end.start(read=False)
        return end

    def add(self, backend: str = A, entry: str = "entry") -> SocketDuplex | None:
        end = self.connection()
        if self.kept.add(backend, entry, end):
            return end
        end.abort("not kept")
        return None


@asynccontextmanager
async def a_pool() -> AsyncIterator[Pool]:
    pool = Pool()
    async with running(pool.reactor):
        yield pool
        pool.kept.drop_all()
        assert len(pool.kept) == 0
        assert pool.kept._idle == {}
        assert not any(pool.reactor._timers.values())
    for sock in pool.servers:
        sock.close()


async def test_what_was_used_last_is_taken_first_and_by_its_own_entry_alone() -> None:
    async with a_pool() as pool:
        first, second, other = pool.add(), pool.add(), pool.add(entry="other")
        elsewhere = pool.add(backend=B)
        assert len(pool.kept) == 4
        assert pool.kept.take(A, "entry") is second
        assert pool.kept.take(A, "entry") is first
        assert pool.kept.take(A, "entry") is None
        assert pool.kept.take(A, "nobody") is None
        assert pool.kept.take(A, "other") is other
        assert pool.kept.take(B, "entry") is elsewhere
        for end in (first, second, other, elsewhere):
            assert end is not None
            end.abort("over")
        assert pool.owners == []  # a former owner hears nothing


@pytest.mark.parametrize("how", ["it closes", "it resets", "it says something", "all three steps in one turn"])
async def test_a_backend_that_stirs_loses_its_connection(how: str) -> None:
    async with a_pool() as pool:
        end = pool.add()
        assert end is not None
        (server,) = pool.servers
        if how == "it closes":
            server.close()
        elif how == "it resets":
            reset(server)
        else:
            server.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        if how.startswith("all"):
            server.close()
            assert pool.kept.take(A, "entry") is None  # before the reactor had a turn
        await until(lambda: end.closed)
        assert len(pool.kept) == 0
        assert len(pool.reactor) == 0


async def test_a_connection_in_which_something_waits_is_not_kept() -> None:
    async with a_pool() as pool:
        for spoil in (
            lambda server: server.sendall(b"more"),
            lambda server: server.shutdown(socket.SHUT_WR),
            reset,
        ):
            end = pool.connection()
            spoil(pool.servers[-1])
            assert not pool.kept.add(A, "entry", end)
            end.abort("over")
        end = pool.connection()
        end.send_eof()
        assert not pool.kept.add(A, "entry", end)
        end.abort("over")


async def test_an_idle_connection_is_closed_after_a_while_in_order(mock_clock: MockClock) -> None:
    async with a_pool() as pool:
        end = pool.add()
        assert end is not None
        mock_clock.jump(KEEP_S - 0.1)
        await settled()
        assert not end.closed
        mock_clock.jump(0.2)
        await settled(lambda: end.closed)
        assert len(pool.kept) == 0
        assert pool.servers[0].recv(1) == b""


async def test_idle_connections_are_bounded_for_an_entry_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_OF_ENTRY < MOST
    monkeypatch.setattr(kept_module, "MOST_OF_ENTRY", 2)
    monkeypatch.setattr(kept_module, "MOST", 3)
    async with a_pool() as pool:
        assert [bool(pool.add()) for _ in range(3)] == [True, True, False]
        assert [bool(pool.add(entry="other")) for _ in range(2)] == [True, False]
        assert len(pool.kept) == 3


async def test_where_descriptors_are_short_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_pool() as pool:
        monkeypatch.setattr(fdlimit, "is_reserve", lambda _fd: True)
        assert pool.add() is None


async def test_a_backends_connections_are_dropped_alone() -> None:
    async with a_pool() as pool:
        pool.add(), pool.add(entry="other")
        b = pool.add(backend=B)
        pool.kept.drop(A)
        assert len(pool.kept) == 1
        assert pool.kept.take(B, "entry") is b
        assert b is not None
        b.abort("over")


# Requests of an entry


async def test_the_next_request_of_an_entry_goes_on_the_same_connection() -> None:
    async with tunnels(keeps=True) as t:
        server = await t.exchange()
        for _ in range(5):
            assert await t.exchange(server) is server
            assert len(t.exit.backends.kept) == 1
        assert t.listener.waiting() == 0
        t.exit.backends.kept.drop_all()
        assert await read_all(server) == b""


async def test_one_that_asks_for_a_connection_of_its_own_gets_it() -> None:
    async with tunnels(keeps=True) as t:
        await t.exchange()
        await t.exchange(takes_kept=False)
        assert len(t.exit.backends.kept) == 2


async def test_idle_connections_are_no_load_and_hold_nobody_up() -> None:
    async with tunnels(keeps=True, capacity=1) as t:
        await t.exchange()
        backends = t.exit.backends
        assert backends.in_flight == 0
        assert t.exit.backend.in_flight == 0
        assert not backends.is_full
        assert backends.idle.is_set()
        assert not backends.load.by_entry


async def test_a_node_that_drains_keeps_none() -> None:
    async with tunnels(keeps=True) as t:
        channel, end = t.request()
        channel.send(b"question")
        server = await t.accept()
        assert await server.receive_some() == b"question"
        t.exit.backends.draining = True
        await server.send_all(b"answer")
        await until(lambda: end.data == b"answer")
        channel.keep(6)
        assert await read_all(server) == b""
        assert len(t.exit.backends.kept) == 0


@pytest.mark.parametrize("told", [5, 7])
async def test_where_entry_and_exit_count_different_bytes_the_connection_is_not_kept(told: int) -> None:
    async with tunnels(keeps=True) as t:
        channel, end = t.request()
        channel.send(b"question")
        server = await t.accept()
        assert await server.receive_some() == b"question"
        await server.send_all(b"answer")
        await until(lambda: end.data == b"answer")
        channel.keep(told)
        assert await read_all(server) == b""
        assert len(t.exit.backends.kept) == 0


async def test_a_backend_that_closes_behind_its_answer_is_closed() -> None:
    async with tunnels(keeps=True) as t:
        channel, end = t.request()
        channel.send(b"question")
        server = await t.accept()
        assert await server.receive_some() == b"question"
        await server.send_all(b"answer")
        await server.aclose()
        await until(lambda: end.heard[-1] == "EOF")
        channel.keep(6)
        await until(lambda: t.exit.backends.in_flight == 0)
        assert len(t.exit.backends.kept) == 0


async def test_a_backend_that_is_down_or_elsewhere_loses_its_connections() -> None:
    async with tunnels(keeps=True) as t, checking(t.exit):
        await t.exchange()
        t.exit.backends.refused(t.exit.backend, "no")
        assert len(t.exit.backends.kept) == 0
        await until(lambda: t.exit.backend.healthy)
        t.listener.waiting()  # checks
        await t.exchange()
        t.exit.backend.target = (socket.AF_INET, ("127.0.0.1", 1))  # as a name would that has moved
        t.exit.backend.recheck.set()
        await until(lambda: len(t.exit.backends.kept) == 0)


async def test_where_a_dial_lacks_descriptors_idle_connections_give_theirs_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tunnels(keeps=True) as t:
        await t.exchange()
        assert len(t.exit.backends.kept) == 1
        monkeypatch.setattr(fdlimit, "is_reserve", lambda _fd: True)
        _, end = t.request(takes_kept=False)
        await until(lambda: end.heard)
        assert fdlimit.REASON in end.heard[0]
        assert len(t.exit.backends.kept) == 0
        assert t.exit.backend.healthy


async def test_a_request_that_goes_away_before_it_was_sent_spoils_no_kept_connection() -> None:
    reactor = CountingReactor()
    with Listener() as listener:
        exit_ = make_exit(listener.address, reactor=reactor)
        believe(exit_, listener)
        async with running(reactor):
            ours, theirs = socket_pair()
            end = SocketDuplex(reactor, ours, lambda _end: None)
            end.other = End(space=0)
            end.start(read=False)
            assert exit_.backends.kept.add(exit_.backend, "", end)
            serving = serve(exit_.backends, "default", lambda _end, _why: pytest.fail("it went away"), takes_kept=True)
            serving.cancel()
            await quiet()
            assert exit_.backends.in_flight == 0
            assert exit_.backends.kept.take(exit_.backend, "") is end
            end.abort("over")
            theirs.close()


async def test_a_request_leaves_no_cycles_to_the_garbage_collector() -> None:
    async with tunnels(keeps=True) as t:
        server = await t.exchange()
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await t.exchange(server)
            await quiet()
            left = [type(thing) for thing in gc.get_objects() if isinstance(thing, (RequestEnd, Serving, ExitFlow))]
        finally:
            gc.enable()
        assert left == []


# A kept connection that the backend is closing


async def closes_under_a_request(t: Tunnels, server: trio.SocketStream, how: str) -> None:
    """The backend closes the idle connection, and the exit sends a request into it before it hears of that."""
    if how == "it closes unread":
        reset(server)  # which a close with bytes unread is
    elif how == "it closes":
        await server.aclose()
    else:
        await server.send_eof()


@pytest.mark.parametrize("how", ["it closes", "it closes unread", "it sends no more"])
@pytest.mark.parametrize("size", [8, INITIAL_WINDOW * 3])
async def test_a_request_on_a_connection_that_is_being_closed_is_sent_again(how: str, size: int) -> None:
    question = b"question" * (size // 8)
    async with tunnels(keeps=True) as t:
        server = await t.exchange()
        channel, end = t.request()
        await until(lambda: end.heard == ["OPENED"])
        assert t.listener.waiting() == 0
        await closes_under_a_request(t, server, how)
        at = 0
        again: trio.SocketStream | None = None
        heard = b""
        while len(heard) < size:
            if at < size and (room := channel.writable()) > 0:
                channel.send(question[at : at + room])
                at += room
            again = again or await t.accept()
            heard += await again.receive_some()
        assert heard == question
        assert again is not None
        await again.send_all(b"answer")
        await until(lambda: end.data == b"answer")
        assert end.heard[0] == "OPENED"
        channel.keep(6)
        await until(lambda: t.exit.backends.in_flight == 0)
        await t.exchange(again)  # it is kept as any other
        await server.aclose()


async def test_it_is_sent_again_once_alone() -> None:
    async with tunnels(keeps=True) as t:
        server = await t.exchange()
        channel, end = t.request()
        await until(lambda: end.heard == ["OPENED"])
        await server.aclose()
        channel.send(b"question")
        again = await t.accept()
        assert await again.receive_some() == b"question"
        reset(again)
        await until(lambda: str(end.heard[-1]).startswith("RST"))
        assert t.listener.waiting() == 0


async def test_it_is_not_sent_again_behind_a_byte_of_an_answer() -> None:
    async with tunnels(keeps=True) as t:
        server = await t.exchange()
        channel, end = t.request()
        channel.send(b"question")
        assert await server.receive_some() == b"question"
        await server.send_all(b"H")
        await until(lambda: end.data == b"H")
        reset(server)
        await until(lambda: str(end.heard[-1]).startswith("RST"))
        assert t.listener.waiting() == 0


@pytest.mark.parametrize("how", ["it closes", "it closes unread"])
async def test_a_backend_that_had_time_to_work_on_it_is_not_asked_again(how: str) -> None:
    async with tunnels(keeps=True) as t:
        server = await t.exchange()
        channel, end = t.request()
        channel.send(b"question")
        assert await server.receive_some() == b"question"
        now = t.exit.reactor.now
        t.exit.reactor.now = lambda: now() + STALE_S  # type: ignore[method-assign]
        await closes_under_a_request(t, server, how)
        await until(lambda: end.heard[-1] == "EOF" or str(end.heard[-1]).startswith("RST"))
        channel.abort("no answer")
        assert t.listener.waiting() == 0


async def test_a_backend_that_is_gone_altogether_breaks_the_request() -> None:
    async with tunnels(keeps=True) as t:
        server = await t.exchange()
        channel, end = t.request()
        await until(lambda: end.heard == ["OPENED"])
        t.listener.close()
        await server.aclose()
        channel.send(b"question")
        await until(lambda: end.heard[-1].startswith("RST backend "))
        assert t.exit.backends.in_flight == 0
        assert not t.exit.backend.healthy


async def test_an_entry_that_gives_up_while_it_is_sent_again_leaves_nothing() -> None:
    async with tunnels(keeps=True, backlog=0) as t:
        server = await t.exchange()
        channel, end = t.request()
        await until(lambda: end.heard == ["OPENED"])
        t.listener.clog()
        await server.aclose()
        channel.send(b"question")
        await until(lambda: any(t.exit.reactor._timers.values()))  # of the connect
        channel.abort("the client has gone")
        await until(lambda: t.exit.backends.in_flight == 0)


async def test_a_request_that_is_longer_than_what_is_held_is_not_sent_again() -> None:
    async with tunnels(keeps=True) as t:
        server = await t.exchange()
        channel, end = t.request()
        sent = heard = 0
        while heard <= HELD:
            if (room := channel.writable()) > 0:
                channel.send(bytes(room))
                sent += room
            heard += len(await server.receive_some())
        reset(server)
        await until(lambda: str(end.heard[-1]).startswith("RST"))
        assert t.listener.waiting() == 0


@pytest.mark.skipif(QUICKACK is None, reason="the kernel has no such option")
async def test_the_first_bytes_on_a_kept_connection_are_acknowledged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with Nagle's algorithm that writes head and body apart waits for that."""
    done: list[str] = []
    monkeypatch.setattr(SocketDuplex, "acknowledge_now", lambda _end: done.append("acknowledged"))
    async with tunnels(keeps=True) as t:
        server = await t.exchange()
        assert done == []  # of a new connection the kernel does it
        await t.exchange(server)
        assert done == ["acknowledged"]


async def test_an_answer_that_is_here_as_soon_as_its_end_is_joined_may_be_its_end() -> None:
    """The own backend's: `start` reads, and the request is over in it."""
    reactor = CountingReactor()
    ours, theirs = socket_pair()
    async with running(reactor):
        stub: Any = Stub()
        stub.keep = lambda _end: True
        request = RequestEnd(stub, stub, SocketDuplex(reactor, ours, lambda _end: None))

        class Side(NullDuplex):
            def writable(self) -> int:
                return 100

            def send(self, data: bytes | memoryview) -> None:
                request.keep(len(data))

        request.other = Side()
        theirs.sendall(b"answer")
        request.start()
        assert request._end is None
        reactor.drop(ours.fileno())
    ours.close()
    theirs.close()


# As Duplexes


class Stub:
    """A backend's SocketDuplex, a serving and backends, as a RequestEnd sees them."""

    def __init__(self) -> None:
        self.reactor = SimpleNamespace(now=lambda: 0.0)

    def release(self) -> None: ...


@asynccontextmanager
async def a_request(*, is_kept: bool) -> AsyncIterator[Rig]:
    """The caller is a channel; behind the request's end is a backend, which has begun its answer."""
    reactor = CountingReactor()
    ours, theirs = socket_pair()
    there, channel = TcpSide(theirs), FakeChannel()
    async with running(reactor):
        backends: Any = Stub()
        backends.reactor = reactor
        socket_end = SocketDuplex(reactor, ours, lambda _end: None)
        end = RequestEnd(backends, backends, socket_end, is_kept=is_kept)
        channel.other, end.other = end, channel
        end.start()
        if is_kept:
            there.say(b"H")
            there.move()
            await until(lambda: channel.data == b"H")
            channel.heard.clear()
        yield there.rig(channel)
        end.abort("the test is over")
        there.close()
        assert len(reactor) == 0


@asynccontextmanager
async def an_unanswered_one() -> AsyncIterator[Rig]:
    """The caller is a backend's socket; behind the end is an entry that records. What was sent is not held any more."""
    there, caller = EntrySide(), Caller()
    socket_end: Any = caller
    socket_end.received = 0
    socket_end.hand_over = lambda _on_close: None
    socket_end.acknowledge_now = lambda: None
    stub: Any = Stub()
    request = RequestEnd(stub, stub, socket_end, is_kept=True)
    request._held = None
    request.other = there

    def say_eof() -> None:
        there.has_ended = True
        request.send_eof()

    yield Rig(
        caller, arrived=lambda: there.data, ended=lambda: ending(there), say=request.send, say_eof=say_eof,
        break_off=lambda: request.abort("gone"), asks=False, acknowledges=False, holds_back=False,
    )  # fmt: skip


@asynccontextmanager
async def an_idle_one() -> AsyncIterator[Rig]:
    reactor = CountingReactor()
    async with running(reactor):
        ours, theirs = socket_pair()
        there, caller = TcpSide(theirs), Caller()
        socket_end: Any = caller
        socket_end.hand_over = socket_end.leave = lambda *_: None
        socket_end.sock, socket_end.is_silent = ours, lambda: True
        kept = Kept(reactor)
        assert kept.add(A, "entry", socket_end)
        caller.heard.clear()
        yield Rig(caller, carries=False, move=there.move)
        kept.drop_all()
        there.close()
        ours.close()


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_requests_end_keeps_the_contract_of_a_duplex(is_kept: bool) -> None:
    await check_duplex(RequestEnd, partial(a_request, is_kept=is_kept))


async def test_an_unanswered_one_keeps_it() -> None:
    await check_duplex(_Unanswered, an_unanswered_one)


async def test_an_idle_one_keeps_it() -> None:
    await check_duplex(_Idle, an_idle_one)
