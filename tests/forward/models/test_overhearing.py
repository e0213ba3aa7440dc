"""A backend that nobody called HTTP is known by its clients' first words. Repute without I/O; then over a real link."""

from __future__ import annotations

import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from federation.forward.model_watch import ModelWatch
from federation.forward.models.overhearing import (
    LOOK_RARELY,
    MOST_DENIALS,
    MOST_LOOKS,
    FirstWords,
    Protocol,
    Repute,
)
from federation.reactor.duplex import join
from federation.reactor.loop import Reactor
from federation.reactor.sockets import SocketDuplex
from tests.support.duplex import Caller, Rig, TcpSide, check_duplex
from tests.support.exits import believe, make_exit, serve, tunnels
from tests.support.links import End, socket_pair, until
from tests.support.sockets import Listener, reset, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def repute(*, is_open: bool = True) -> tuple[Repute, list[Protocol]]:
    changes: list[Protocol] = []
    made = Repute(lambda: changes.append(made.speaks), is_open=is_open)
    return made, changes


@pytest.mark.parametrize(
    ("asked", "answered", "speaks"),
    [
        (GET, OK, Protocol.HTTP),
        (
            b"POST /v1/chat/completions HTTP/1.1\n\n",
            b"HTTP/1.1 404 Not Found\ntransfer-encoding: Chunked\n\n",
            Protocol.HTTP,
        ),
        (b"HEAD /" + GET[5:], b"HTTP/1.1 200 OK\r\n\r\n", Protocol.HTTP),
        (GET, b"HTTP/1.1 304 Not Modified\r\n\r\n", Protocol.HTTP),
        (GET, OK.replace(b"HTTP/1.1", b"HTTP/1.0"), Protocol.UNKNOWN),  # its connection ends with the answer
        (GET.replace(b"HTTP/1.1", b"HTTP/1.0"), OK, Protocol.UNKNOWN),
        (GET, OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), Protocol.UNKNOWN),
        (GET.replace(b"Host", b"Connection: TE, Close\r\nHost"), OK, Protocol.UNKNOWN),
        (GET, b"HTTP/1.1 200 OK\r\n\r\nwithout an end but its connection's", Protocol.UNKNOWN),
        (GET, b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: 0\r\n\r\n", Protocol.UNKNOWN),
        (b"", OK, Protocol.UNKNOWN),  # it speaks first
        (b"*1\r\n$4\r\nPING\r\n", OK, Protocol.UNKNOWN),
        (b"DESCRIBE rtsp://h/ RTSP/1.0\r\n\r\n", OK, Protocol.UNKNOWN),
        (GET.replace(b"/", b"http://h/", 1), OK, Protocol.UNKNOWN),  # a proxy's
        (b"CONNECT h:443 HTTP/1.1\r\n\r\n", OK, Protocol.UNKNOWN),
        (GET, b"RTSP/1.0 400 Bad Request", Protocol.UNKNOWN),
        (GET, b"-ERR wrong number of arguments", Protocol.UNKNOWN),  # redis
        (GET, GET, Protocol.UNKNOWN),  # an echo
        (OK, OK, Protocol.UNKNOWN),  # an echo of an answer
        (GET, b"HTTP/2 200", Protocol.UNKNOWN),
        (GET[:-2], OK, Protocol.UNKNOWN),  # it answered before the head was whole
    ],
)
def test_first_words(asked: bytes, answered: bytes, speaks: Protocol) -> None:
    made, changes = repute()
    assert made.listens()
    made.heard(asked, answered)
    assert made.speaks is speaks
    assert changes == ([Protocol.HTTP] if speaks is Protocol.HTTP else [])
    assert made.is_open is (speaks is Protocol.UNKNOWN)


def test_after_some_answers_in_another_protocol_nobody_listens_any_more() -> None:
    made, changes = repute()
    for _ in range(MOST_DENIALS):
        assert made.is_open
        made.heard(b"*1\r\n", b"+PONG\r\n")
    assert (made.is_open, made.speaks, changes) == (False, Protocol.OTHER, [])
    made.heard(GET, OK)  # of a connection from before
    assert made.speaks is Protocol.OTHER
    made.again()
    made.heard(GET, OK)
    assert (made.speaks, changes) == (Protocol.HTTP, [Protocol.HTTP])


def test_of_many_exchanges_that_told_nothing_a_few_are_heard() -> None:
    made, changes = repute()
    for _ in range(MOST_LOOKS):
        assert made.listens()
        made.heard(GET, OK.replace(b"HTTP/1.1", b"HTTP/1.0"))
    heard = 0
    for _ in range(10 * LOOK_RARELY):
        if made.listens():
            heard += 1
            made.heard(GET, OK.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert 9 <= heard <= 11
    made.heard(GET, OK)
    assert changes == [Protocol.HTTP]


def test_another_server_in_its_place_is_known_by_its_first_answer() -> None:
    made, changes = repute()
    made.heard(GET, OK)
    made.again()
    assert made.speaks is Protocol.HTTP, "it stands until something else is heard"
    made.heard(GET, OK)
    assert changes == [Protocol.HTTP]
    made.again()
    made.heard(b"*1\r\n", b"+PONG\r\n")
    assert changes == [Protocol.HTTP, Protocol.OTHER]


def test_what_a_person_called_it_stands() -> None:
    made, changes = repute(is_open=False)
    made.heard(GET, OK)
    assert (made.speaks, changes) == (Protocol.UNKNOWN, [])


@pytest.mark.parametrize("pieces", [[GET], [GET[:9], GET[9:]]], ids=["at once", "in two pieces"])
@pytest.mark.parametrize("answer", [[OK], [b"HT", b"TP/1.1 2", OK[10:30], OK[30:]]], ids=["at once", "in pieces"])
async def test_an_exchange_through_the_exit_tells_it_and_loses_no_byte(pieces: list[bytes], answer: list[bytes]) -> None:
    told: list[tuple[str, ...]] = []
    async with tunnels() as t:
        models = ModelWatch(t.exit.backends, on_change=lambda: told.append(models.http))
        channel, end = t.open()
        server = await t.accept()
        asked = b""
        for piece in pieces:
            channel.send(piece)
            while not asked.endswith(piece):
                asked += await server.receive_some()
        assert told == []
        heard = b""
        for piece in answer:
            await server.send_all(piece)
            heard += piece
            await until(lambda heard=heard: end.data == heard)
        assert told == [("default",)]
        channel.send(GET)  # and the connection goes on
        assert await server.receive_some() == GET
        await server.send_all(OK)
        await until(lambda: end.data == OK + OK)
        channel.send_eof()
        assert await server.receive_some() == b""
        await server.aclose()
        await until(lambda: end.heard[-1] == "EOF")
        again, _ = t.open()
        await t.accept()
        listeners = {end.listener for end in t.exit.reactor.sockets if isinstance(end, SocketDuplex)}
        assert listeners == {None}, "once it is known nobody listens"
        again.abort("over")


async def test_a_reset_before_the_answer_reaches_the_entry() -> None:
    async with tunnels() as t:
        channel, end = t.open()
        server = await t.accept()
        channel.send(GET)
        assert await server.receive_some() == GET
        reset(server)
        await until(lambda: "connection reset" in end.heard[-1].lower())
        assert t.exit.backend.repute.speaks is Protocol.UNKNOWN


async def test_a_backend_that_never_answers_leaves_no_cycle_and_is_known_in_the_end() -> None:
    async with tunnels() as t:
        gc.collect()
        gc.disable()
        try:
            for _ in range(MOST_DENIALS):
                assert t.exit.backend.repute.is_open
                channel, end = t.open()
                server = await t.accept()
                channel.send(b"\x16\x03\x01 no request")
                await server.receive_some()
                channel.send_eof()
                await server.aclose()
                await until(lambda end=end: end.heard[-1] == "EOF")
            assert not t.exit.backend.repute.is_open
            await until(lambda: not [thing for thing in gc.get_objects() if isinstance(thing, FirstWords)])
        finally:
            gc.enable()


async def test_an_own_client_tells_it_too() -> None:
    with Listener() as listener:
        exit_ = make_exit(listener.address)
        believe(exit_, listener)
        ends: list[SocketDuplex] = []
        async with running(exit_.reactor):
            serve(exit_.backends, "default", lambda end, _why: ends.append(end))
            async with await listener.accept() as server:
                await until(lambda: ends != [])
                (end,) = ends
                client = end.other = End()
                end.start()
                end.send(GET)
                assert await server.receive_some() == GET
                await server.send_all(OK)
                await until(lambda: client.data == OK)
                assert exit_.backend.repute.speaks is Protocol.HTTP
                end.abort("over")


@pytest.mark.parametrize(("scheme", "is_heard"), [("", True), ("http://", False), ("tcp://", False)])
def test_only_where_nobody_said_it(scheme: str, is_heard: bool) -> None:
    assert make_exit(f"{scheme}127.0.0.1:9").backend.repute.is_open is is_heard


# The contract of Duplex


@asynccontextmanager
async def an_overheard_socket() -> AsyncIterator[Rig]:
    ours, theirs = socket_pair()
    there, reactor, caller = TcpSide(theirs), Reactor(), Caller()
    async with running(reactor):
        duplex = SocketDuplex(reactor, ours, lambda _: None)
        duplex.listener = FirstWords(duplex, repute()[0])
        join(duplex, caller)
        duplex.start()
        yield there.rig(caller)
        duplex.abort("the test is over")
        there.close()


async def test_an_overheard_socket_keeps_the_contract() -> None:
    await check_duplex(SocketDuplex, an_overheard_socket)
