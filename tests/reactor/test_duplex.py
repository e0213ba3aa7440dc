"""The contract of Duplex: who keeps it here, and the double that other tests trust to."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from federation.reactor.duplex import NullDuplex, join
from federation.reactor.loop import Reactor
from federation.reactor.sockets import SocketDuplex
from tests.support.duplex import Caller, End, Rig, check_duplex
from tests.support.links import socket_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager


@asynccontextmanager
async def a_socket() -> AsyncIterator[Rig]:
    ours, theirs = socket_pair()
    arrived, end, stopped = bytearray(), [""], [False]

    def move() -> None:
        if stopped[0] or end[0] or theirs.fileno() < 0:
            return
        try:
            while data := theirs.recv(1 << 20):
                arrived.extend(data)
            end[0] = "EOF"
        except BlockingIOError:
            pass
        except ConnectionResetError:
            end[0] = "RST"

    def break_off() -> None:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()

    async with trio.open_nursery() as nursery:
        reactor = Reactor()
        await nursery.start(reactor.run)
        caller = Caller()
        duplex = SocketDuplex(reactor, ours, lambda _: None)
        join(duplex, caller)
        duplex.start()
        yield Rig(
            duplex, caller, arrived=lambda: bytes(arrived), ended=lambda: end[0], say=lambda data: theirs.sendall(data),
            say_eof=lambda: theirs.shutdown(socket.SHUT_WR), break_off=break_off, move=move,
            stop=lambda: stopped.__setitem__(0, True), go=lambda: stopped.__setitem__(0, False),
        )  # fmt: skip
        duplex.abort("the test is over")
        theirs.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("make", [a_socket])
async def test_it_keeps_the_contract(make: Callable[[], AbstractAsyncContextManager[Rig]]) -> None:
    await check_duplex(make)


def test_nobody_takes_nothing_and_says_nothing() -> None:
    nobody, end = NullDuplex(), End()
    assert nobody.writable() == 0
    nobody.send(b"x")
    nobody.send_eof()
    nobody.abort("why")
    nobody.acknowledge(1)
    nobody.resume_writing()
    assert end.heard == []
