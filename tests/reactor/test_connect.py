"""Connects that succeed, are refused, time out and are cancelled; `done` is never called from within the constructor."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from federation.reactor import connect as module
from federation.reactor import fdlimit
from federation.reactor.connect import Connect
from federation.reactor.loop import Reactor
from tests.support.links import until
from tests.support.sockets import is_reset, open_descriptors, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

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
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    found = Connect(reactor, (family, address), lambda sock, reason: heard.append((sock, reason)))
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


async def test_a_unix_socket_is_connected_too(reactor: Reactor, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        _, heard = dial(reactor, path)
        await until(lambda: heard)
        sock, reason = heard[0]
        assert sock is not None
        assert reason == ""
        sock.close()
    (tmp_path / "s").unlink()
    _, heard = dial(reactor, path)
    await until(lambda: heard)
    assert heard == [(None, "No such file or directory")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses")
async def test_a_full_queue_of_a_unix_socket_is_waited_for(reactor: Reactor, tmp_path: Path) -> None:
    """No event tells of room in it."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, ExitStack() as stack:
        server.bind(path)
        server.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(path)
        _, heard = dial(reactor, path)
        await trio.testing.wait_all_tasks_blocked()
        assert heard == []
        stack.enter_context(server.accept()[0])
        await until(lambda: heard)
        sock, _ = heard[0]
        assert sock is not None
        sock.close()
