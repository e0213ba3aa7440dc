"""Every Duplex of net/ keeps the contract: a tunnel's channel, a libp2p stream, a relay's circuit."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.net.link.channel import Channel
from federation.net.link.mux import Mux
from federation.net.nat.relay import Relay, _Circuit
from federation.net.streams import MuxStream
from federation.reactor.loop import Reactor
from tests.support.duplex import Caller, End, Rig, check_duplex

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager


class Side:
    """A mux; what the remote opens is joined to a recording end."""

    def __init__(self, *, initiator: bool) -> None:
        self.mux = Mux(initiator=initiator, handler=self, wake=lambda: None)
        self.far = End()
        self.channel: Channel | None = None

    def load_told(self, in_flight: int, unseen: int) -> None:
        raise AssertionError

    def watched(self, seconds: int) -> None:
        raise AssertionError

    def tunnel_opened(self, channel: Channel, _service: str, _believed: int) -> None:
        self.far.other, channel.other, self.channel = channel, self.far, channel
        channel.accept()

    def stream_opened(self, channel: Channel) -> None:
        raise AssertionError

    def pong(self, payload: bytes) -> None:
        raise AssertionError


def ending(end: End) -> str:
    return next((item[:3] for item in reversed(end.heard) if isinstance(item, str) and item[:3] in ("RST", "EOF")), "")


@asynccontextmanager
async def a_channel() -> AsyncIterator[Rig]:
    near, far = Side(initiator=True), Side(initiator=False)

    def move() -> None:
        for source, to in ((near.mux, far.mux), (far.mux, near.mux), (near.mux, far.mux)):
            while (record := source.next_record()) is not None:
                to.feed(record)

    caller = Caller()
    channel = caller.other = near.mux.open_tunnel("default", caller, caller)
    move()
    there = far.channel
    assert there is not None
    caller.heard.clear()

    def go() -> None:
        far.far.credit = True
        there.acknowledge(len(far.far.data))

    def say(data: bytes) -> None:
        assert there.writable() >= len(data)
        there.send(data)

    yield Rig(
        channel, caller, arrived=lambda: far.far.data, ended=lambda: ending(far.far), say=say, say_eof=there.send_eof,
        break_off=lambda: there.abort("broken"), stop=lambda: setattr(far.far, "credit", False), go=go, move=move,
        acknowledges=False,
    )  # fmt: skip


@asynccontextmanager
async def a_stream() -> AsyncIterator[Rig]:
    """A libp2p stream: behind it is who reads and writes."""
    caller = Caller()
    channel: Any = SimpleNamespace(
        acknowledge=caller.acknowledge, writable=caller.writable,
        send=caller.send, send_eof=caller.send_eof, abort=caller.abort,
    )  # fmt: skip
    stream = MuxStream(channel, link=SimpleNamespace(muxed_conn=None))  # type: ignore[arg-type]
    caller.other = stream
    read, end, stopped = bytearray(), [""], [False]

    def move() -> None:
        """What is there is read, or that nothing follows."""
        unread, why = (b"", None) if stopped[0] else stream.take_unread()
        if unread:
            read.extend(unread)
            caller.acknowledge(len(unread))
        end[0] = end[0] or ("" if why is None else "EOF" if "finished" in why else "RST")

    words, heard = trio.open_memory_channel[Callable[[], Awaitable[None]]](math.inf)

    async def speak() -> None:
        async for word in heard:
            await word()

    async with trio.open_nursery() as nursery, words:
        nursery.start_soon(speak)
        yield Rig(
            stream, caller, arrived=lambda: bytes(read), ended=lambda: end[0],
            say=lambda data: words.send_nowait(partial(stream.write, data)), say_eof=lambda: words.send_nowait(stream.close),
            break_off=lambda: words.send_nowait(stream.reset), stop=lambda: stopped.__setitem__(0, True),
            go=lambda: stopped.__setitem__(0, False), move=move, has_room=False,
        )  # fmt: skip


@asynccontextmanager
async def a_circuit() -> AsyncIterator[Rig]:
    """One direction of a circuit at its relay, between two recording tunnels."""
    reactor = Reactor()
    relay = Relay(reactor, {}, None, lambda *_, **__: None)
    circuit = _Circuit(relay, reactor, "source", 0)
    near, far = Caller(), Caller()
    near.other, far.other = circuit.there, circuit.back
    relay._circuits["source"] += 1
    circuit.start(near, far)  # type: ignore[arg-type]

    def say(data: bytes) -> None:
        circuit.back.send(data)

    def go() -> None:
        far.space = 1 << 30
        circuit.back.resume_writing()

    yield Rig(
        circuit.there, near, arrived=lambda: far.data, ended=lambda: ending(far), say=say, say_eof=circuit.back.send_eof,
        break_off=lambda: circuit.back.abort("broken"), stop=lambda: setattr(far, "space", 0), go=go, has_room=False,
    )  # fmt: skip
    reactor._poller.close()


@pytest.mark.parametrize("make", [a_channel, a_stream, a_circuit])
async def test_it_keeps_the_contract(make: Callable[[], AbstractAsyncContextManager[Rig]]) -> None:
    await check_duplex(make)
