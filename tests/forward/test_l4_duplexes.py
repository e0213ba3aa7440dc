"""Both sides of a client keep the contract of a Duplex: towards its socket, and towards its upstream."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from federation.forward import l4
from federation.forward.attempts import State
from federation.forward.l4 import L4Client, _UpstreamSide
from tests.support.client_duplexes import CallersLink, ClientSocket
from tests.support.duplex import Caller, Rig, TcpSide, check_duplex
from tests.support.entries import network, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# What follows is its body: the client stays between its socket and the upstream as long as that lasts.
BROWSER = b"POST / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Mozilla/5.0\r\nContent-Length: 1000000000\r\n\r\n"
KINDS: dict[str, dict[str, Any]] = {
    "no check": {"browser_check": False},
    "checked": {},
    "first-byte": {"replay": "first-byte"},
    "browser": {},
}


@asynccontextmanager
async def a_client(kind: str) -> AsyncIterator[Rig]:
    """The caller is the client's socket; behind the client is a tunnel, which opens when the test first waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(l4, "SocketDuplex", ClientSocket)
        async with network(**KINDS[kind]) as net:
            net.add("peer")
            await net.connect()
            (client,) = net.frontend.active
            caller: Any = client.socket
            tunnel = net.tunnel
            head = BROWSER if kind == "browser" else b""
            if head:
                client.send(head)
            is_stopped = [False]

            def move() -> None:
                if not is_stopped[0]:
                    tunnel.answers()

            def say(data: bytes) -> None:
                tunnel.answers()
                tunnel.sends(data)

            def say_eof() -> None:
                tunnel.answers()
                tunnel.ends()

            def break_off() -> None:
                say(b"!")  # before the first byte it would be another peer's turn
                tunnel.breaks()

            def go() -> None:
                is_stopped[0] = False
                tunnel.grants(1 << 20)

            yield Rig(
                caller, arrived=lambda: tunnel.data[len(head) :],
                ended=lambda: "RST" if tunnel.reset else "EOF" if tunnel.eof else "",
                say=say, say_eof=say_eof, break_off=break_off, stop=lambda: is_stopped.__setitem__(0, True), go=go,
                move=move, close=caller.close, acknowledges=False, asks=False,
            )  # fmt: skip
            net.frontend.abort_all("the test is over")


@asynccontextmanager
async def an_upstream_side(*, is_browser: bool) -> AsyncIterator[Rig]:
    """The caller is an upstream; behind its side of the client is the client's real socket."""
    async with network() as net:
        net.add("peer")
        caller = Caller()
        link = net.roster.links["peer"] = CallersLink(caller)
        there = TcpSide(socket.create_connection(("127.0.0.1", net.port)))
        assert there.sock is not None
        there.sock.setblocking(False)
        head = BROWSER if is_browser else b""
        there.sock.sendall(head)
        await settled(lambda: link.attempts is not None and caller.data == head)
        assert link.attempts is not None
        link.attempts.opened()
        caller.heard.clear()
        yield there.rig(caller)
        there.close()
        net.frontend.abort_all("the test is over")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_towards_its_socket(kind: str) -> None:
    await check_duplex(L4Client, partial(a_client, kind))


@pytest.mark.parametrize("is_browser", [False, True])
async def test_a_client_towards_its_upstream(is_browser: bool) -> None:
    await check_duplex(_UpstreamSide, partial(an_upstream_side, is_browser=is_browser))


async def test_an_upstream_that_broke_twice_costs_one_attempt() -> None:
    async with network(replay="first-byte") as net:
        net.add("one", "two")
        await net.connect(sends=b"request")
        first = net.tunnel
        side = first.other
        first.answers()
        first.breaks()
        second = net.tunnel
        assert second is not first
        second.answers()
        side.abort("again")
        (client,) = net.frontend.active
        assert (client.attempts.state, client.attempts.count) == (State.OPENED, 2)
        assert second.reset is None
