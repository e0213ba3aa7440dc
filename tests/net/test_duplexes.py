"""Every Duplex of net/ keeps the contract: a tunnel's channel, a libp2p stream, a relay's circuit."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset

from federation.net.link.channel import Channel
from federation.net.link.mux import Mux
from federation.net.nat.circuit import _Stream
from federation.net.nat.relay import Relay, _Circuit, _Way
from federation.net.streams import MuxStream
from federation.reactor.loop import Reactor
from tests.support.duplex import PIECE, Caller, End, Rig, check_duplex, ending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Side:
    """A mux; what the remote opens is joined to a recording end."""

    def __init__(self, *, initiator: bool) -> None:
        self.mux = Mux(initiator=initiator, handler=self, wake=lambda: None)
        self.far = End()
        self.channel: Channel | None = None

    def load_told(self, others: int) -> None:
        raise AssertionError

    def watched(self, seconds: int) -> None:
        raise AssertionError

    def look_wanted(self, service: str) -> None:
        raise AssertionError

    def tunnel_opened(self, channel: Channel, _service: str, _believed: int) -> None:
        self.far.other, channel.other, self.channel = channel, self.far, channel
        channel.accept()

    def stream_opened(self, channel: Channel) -> None:
        raise AssertionError

    def pong(self, payload: bytes) -> None:
        raise AssertionError


@asynccontextmanager
async def a_channel() -> AsyncIterator[Rig]:
    near, far = Side(initiator=True), Side(initiator=False)

    def move() -> None:
        for source, to in ((near.mux, far.mux), (far.mux, near.mux), (near.mux, far.mux)):
            while (record := source.next_record()) is not None:
                to.feed(record)

    caller = Caller()
    caller.other = near.mux.open_tunnel("default", caller, caller)
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
        caller, arrived=lambda: far.far.data, ended=lambda: ending(far.far), say=say, say_eof=there.send_eof,
        break_off=lambda: there.abort("broken"), stop=lambda: setattr(far.far, "credit", False), go=go, move=move,
        acknowledges=False, asks=False,
    )  # fmt: skip


@asynccontextmanager
async def a_stream(make: Callable[..., MuxStream] = MuxStream) -> AsyncIterator[Rig]:
    """A libp2p stream: behind it is who reads and writes."""
    caller = Caller()
    channel: Any = SimpleNamespace(
        acknowledge=caller.acknowledge, writable=caller.writable,
        send=caller.send, send_eof=caller.send_eof, abort=caller.abort,
    )  # fmt: skip
    stream = caller.other = make(channel, SimpleNamespace(muxed_conn=None))
    read, end, may_read = bytearray(), [""], [trio.Event()]
    may_read[0].set()

    async def hear() -> None:
        while not end[0]:
            await may_read[0].wait()
            try:
                read.extend(await stream.read(PIECE))
            except MuxedStreamEOF:
                end[0] = "EOF"
            except MuxedStreamReset:
                end[0] = "RST"

    words, heard = trio.open_memory_channel[Callable[[], Awaitable[None]]](math.inf)

    async def speak() -> None:
        async for word in heard:
            await word()

    async with trio.open_nursery() as nursery, words:
        nursery.start_soon(speak)
        nursery.start_soon(hear)
        yield Rig(
            caller, arrived=lambda: bytes(read), ended=lambda: end[0],
            say=lambda data: words.send_nowait(partial(stream.write, data)), say_eof=lambda: words.send_nowait(stream.close),
            break_off=lambda: words.send_nowait(stream.reset), stop=lambda: may_read.__setitem__(0, trio.Event()),
            go=lambda: may_read[0].set(), has_room=False,
        )  # fmt: skip
        nursery.cancel_scope.cancel()


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
        near, arrived=lambda: far.data, ended=lambda: ending(far), say=say, say_eof=circuit.back.send_eof,
        break_off=lambda: circuit.back.abort("broken"), stop=lambda: setattr(far, "space", 0), go=go, has_room=False,
    )  # fmt: skip
    reactor._poller.close()


async def test_a_channel_keeps_the_contract() -> None:
    await check_duplex(Channel, a_channel)


async def test_a_stream_keeps_the_contract() -> None:
    await check_duplex(MuxStream, a_stream)


async def test_the_end_of_a_circuit_keeps_the_contract_until_its_carrier_takes_over() -> None:
    await check_duplex(_Stream, partial(a_stream, partial(_Stream, on_end=lambda _reason: None)))


async def test_a_way_of_a_circuit_keeps_the_contract() -> None:
    await check_duplex(_Way, a_circuit)
