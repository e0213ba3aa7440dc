"""Connects that succeed, are refused, time out and are cancelled; `done` is never called from within the constructor."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.reactor import connect as module
from federation.reactor import fdlimit
from federation.reactor.connect import Connect
from federation.reactor.loop import Reactor
from tests.support.links import until
from tests.support.sockets import is_reset, open_descriptors, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Heard = list[tuple[socket.SocketType | None, str]]


@pytest.fixture
async def reactor() -> AsyncIterator[Reactor]:
    reactor = Reactor()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        yield reactor
        nursery.cancel_scope.cancel()


def dial(reactor: Reactor, address: Any) -> tuple[Connect, Heard]:
    heard: Heard = []
    found = Connect(reactor, (socket.AF_INET, address), lambda sock, reason: heard.append((sock, reason)))
    assert heard == []
    return found, heard


async def test_connects(reactor: Reactor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, heard = dial(reactor, server.getsockname())
        await until(lambda: heard)
        ((sock, reason),) = heard
        assert sock is not None
        assert reason == ""
        with closing(sock):
            assert sock.getpeername() == server.getsockname()
            assert sock.getblocking() is False
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert len(reactor) == 0


async def test_refused(reactor: Reactor) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        _, heard = dial(reactor, unused.getsockname())
        await until(lambda: heard)
        assert heard == [(None, "Connection refused")]
        assert len(reactor) == 0


async def test_the_last_descriptors_are_not_for_it(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fdlimit, "is_reserve", lambda _fd: True)
    files = open_descriptors()
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, heard = dial(reactor, server.getsockname())
        await until(lambda: heard)
        assert heard == [(None, fdlimit.REASON)]
    assert open_descriptors() == files


async def test_no_answer(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.1)
    with socket.socket() as server, socket.socket() as first:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        first.connect(server.getsockname())  # the backlog is full: the next SYN is not answered
        _, heard = dial(reactor, server.getsockname())
        await until(lambda: heard)
        assert heard == [(None, "no answer within 0.1 s")]
        assert len(reactor) == 0


async def test_cancelled_is_silent(reactor: Reactor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        cancelled, heard = dial(reactor, server.getsockname())
        cancelled.cancel()
        cancelled.cancel()
        _, later = dial(reactor, server.getsockname())
        await until(lambda: later)
        assert heard == []
        assert later[0][0] is not None
        later[0][0].close()


async def test_a_server_that_has_accepted_hears_that_it_is_cancelled_as_a_reset(reactor: Reactor) -> None:
    """An EOF would tell a server of a protocol without heads that the request was empty."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        cancelled, _ = dial(reactor, server.getsockname())
        async with stream(server.accept()[0]) as accepted:
            cancelled.cancel()
            assert await is_reset(accepted)
