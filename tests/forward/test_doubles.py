"""The doubles that stand for tunnels in tests keep the contract that a real channel keeps."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from federation.forward.counters import Flow
from tests.support.client_duplexes import ClientSocket
from tests.support.duplex import Caller, End, EntrySide, FakeChannel, Rig, check_duplex, ending
from tests.support.entries import Tunnel
from tests.support.hosts import Reservation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@asynccontextmanager
async def a_tunnel() -> AsyncIterator[Rig]:
    caller: Any = Caller()
    caller._entry = caller._client = SimpleNamespace(client_name="client", flow=Flow())
    tunnel = caller.other = Tunnel("peer", "default", caller, caller)
    tunnel.answers()
    caller.heard.clear()
    yield Rig(
        caller, arrived=lambda: tunnel.data, ended=lambda: "RST" if tunnel.reset else "EOF" if tunnel.eof else "",
        say=tunnel.sends, say_eof=tunnel.ends, break_off=tunnel.breaks, go=lambda: tunnel.grants(1 << 20),
        acknowledges=False, asks=False,
    )  # fmt: skip


@asynccontextmanager
async def an_end(kind: Callable[..., End]) -> AsyncIterator[Rig]:
    """What it hears stays with it; the test speaks for it."""
    caller = Caller()
    end = caller.other = kind(other=caller)

    def ended() -> str:
        """It records what a closed end ignores: the first counts."""
        return ending(End(heard=end.heard[::-1]))

    def go() -> None:
        end.credit = True
        caller.acknowledge(len(end.data))

    yield Rig(
        caller, arrived=lambda: end.data, ended=ended, say=caller.send, say_eof=caller.send_eof,
        break_off=lambda: caller.abort("broken"), stop=lambda: setattr(end, "credit", False), go=go,
        has_room=False, asks=False,
    )  # fmt: skip


def a_client_socket(other: Caller) -> ClientSocket:
    with socket.socket() as sock:  # it is never used
        end = ClientSocket(None, sock, lambda _: None)
    end.other = other
    return end


@asynccontextmanager
async def a_reservation() -> AsyncIterator[Rig]:
    caller = Caller()
    holder: Any = SimpleNamespace(host=SimpleNamespace(links={"relay": None}, reserve=lambda *_: caller))
    relay: Any = SimpleNamespace(id="relay")
    caller.other = Reservation(holder, relay)
    yield Rig(caller, has_room=False, carries=False)


async def test_the_tunnel_of_entries() -> None:
    await check_duplex(Tunnel, a_tunnel)


async def test_the_recording_ends() -> None:
    await check_duplex(End, partial(an_end, End))
    await check_duplex(Caller, partial(an_end, Caller))
    await check_duplex(EntrySide, partial(an_end, EntrySide))


async def test_the_channel_of_exits() -> None:
    await check_duplex(FakeChannel, partial(an_end, FakeChannel))


async def test_a_place_at_a_relay() -> None:
    await check_duplex(Reservation, a_reservation)


async def test_a_clients_socket() -> None:
    await check_duplex(ClientSocket, partial(an_end, a_client_socket))
