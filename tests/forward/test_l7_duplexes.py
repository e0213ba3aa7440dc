"""The ends of an HTTP client keep the contract of a Duplex; while it is upgraded, they carry all bytes as they come."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from federation.forward import l7
from federation.forward.exchange import Behind, _AnswerSide
from federation.forward.l7 import HttpClient
from federation.reactor.loop import Reactor
from tests.support.client_duplexes import CallersLink, ClientSocket
from tests.support.duplex import Caller, Rig, TcpSide, check_duplex
from tests.support.entries import network, settled
from tests.support.http_clients import body_of, get

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UPGRADE = get("/ws", "Connection: Upgrade", "Upgrade: websocket")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@asynccontextmanager
async def a_client(replay: str) -> AsyncIterator[Rig]:
    """The caller is the client's socket; behind the client is a tunnel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(l7, "SocketDuplex", ClientSocket)
        async with network(http=True, replay=replay) as net:
            net.add("peer")
            await net.connect()
            (client,) = net.frontend.active
            caller: Any = client.socket
            client.send(UPGRADE)
            tunnel = net.tunnel
            tunnel.answers()
            tunnel.sends(SWITCH)
            caller.heard.clear()
            yield Rig(
                caller, arrived=lambda: body_of(tunnel.data),
                ended=lambda: "RST" if tunnel.reset else "EOF" if tunnel.eof else "",
                say=tunnel.sends, say_eof=tunnel.ends, break_off=tunnel.breaks, go=lambda: tunnel.grants(1 << 20),
                close=caller.close, acknowledges=False, asks=False,
            )  # fmt: skip
            net.frontend.abort_all("the test is over")


@asynccontextmanager
async def an_answer_side() -> AsyncIterator[Rig]:
    """The caller is an upstream; behind its side of the exchange is the client's real socket."""
    async with network(http=True) as net:
        net.add("peer")
        caller = Caller()
        link = net.roster.links["peer"] = CallersLink(caller)
        there = TcpSide(socket.create_connection(("127.0.0.1", net.port)))
        assert there.sock is not None
        there.sock.setblocking(False)
        there.sock.sendall(UPGRADE)
        await settled(lambda: link.attempts is not None)
        assert link.attempts is not None
        link.attempts.opened()
        caller.other.send(SWITCH)
        await settled(lambda: caller.acknowledged == len(SWITCH))
        caller.heard.clear()
        caller.acknowledged = 0
        yield there.rig(caller, arrived=lambda: body_of(there.arrived()))
        there.close()
        net.frontend.abort_all("the test is over")


@asynccontextmanager
async def an_end_behind_an_answer() -> AsyncIterator[Rig]:
    caller = Caller()
    Behind(Reactor(), caller)
    caller.heard.clear()  # the EOF of the request
    yield Rig(caller, carries=False)


@pytest.mark.parametrize("replay", ["opened", "first-byte", "never"])
async def test_a_client_towards_its_socket(replay: str) -> None:
    await check_duplex(HttpClient, partial(a_client, replay))


async def test_an_exchange_towards_its_upstream() -> None:
    await check_duplex(_AnswerSide, an_answer_side)


async def test_what_is_behind_an_answer() -> None:
    await check_duplex(Behind, an_end_behind_an_answer)


async def test_bytes_behind_an_answer_end_the_upstream() -> None:
    async with an_end_behind_an_answer() as rig:
        rig.send_now(b"more")
        assert rig.caller.ends == ["RST"]
