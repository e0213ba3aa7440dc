"""TLS on the reactor: the contract of a Duplex on both of its sides, handshakes of all kinds, and certificates as files."""

from __future__ import annotations

import socket
import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.errors import ConfigError
from federation.reactor import tls
from federation.reactor.duplex import join
from federation.reactor.loop import Reactor
from federation.reactor.tls import TlsDuplex, _Records, server_context
from tests.support.certificates import Pair, TlsSide, self_signed, trusting
from tests.support.client_duplexes import ClientSocket
from tests.support.duplex import Caller, End, Rig, TcpSide, check_duplex, ending
from tests.support.sockets import socket_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return self_signed(tmp_path_factory.mktemp("certificates"))


class Closed(list[Any]):
    """The ends that were closed, by `on_close`."""


@asynccontextmanager
async def a_tls_socket(pair: Pair, version: ssl.TLSVersion | None = None) -> AsyncIterator[Rig]:
    ours, theirs = socket_pair()
    there = TlsSide(theirs, trusting(pair.cert, version))
    async with trio.open_nursery() as nursery:
        reactor = Reactor()
        await nursery.start(reactor.run)
        caller = Caller()
        duplex = TlsDuplex(reactor, ours, lambda _: None, server_context(*pair))
        join(duplex, caller)
        duplex.start()
        rig = Rig(
            caller, arrived=there.arrived, ended=there.ended, say=there.say, say_eof=there.say_eof,
            break_off=there.break_off, stop=there.stop, go=there.go, move=there.move,
        )  # fmt: skip
        await rig.until(lambda: duplex._is_ready and there.is_ready)
        caller.heard.clear()
        yield rig
        duplex.abort("the test is over")
        there.close()
        nursery.cancel_scope.cancel()


class Wire(ClientSocket):
    """In the place of the socket that carries the records; at its other end is a client, which has shaken hands."""

    context: ssl.SSLContext

    def __init__(self, reactor: Any, sock: socket.socket, on_close: Any) -> None:
        super().__init__(reactor, sock, on_close)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = self.context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.is_ready = False

    def leave(self) -> None: ...

    def send(self, data: bytes | memoryview) -> None:
        self.incoming.write(data)
        self.other.acknowledge(len(data))
        while self.is_ready:
            try:
                super().send(self.client.read(65536))
            except ssl.SSLError:
                break

    def encrypted(self, data: bytes) -> bytes:
        self.client.write(data)
        return self.outgoing.read()

    def shake_hands(self) -> None:
        while not self.is_ready:
            try:
                self.client.do_handshake()
                self.is_ready = True
            except ssl.SSLWantReadError:
                pass
            if data := self.outgoing.read():
                self.other.send(data)


@asynccontextmanager
async def records(pair: Pair) -> AsyncIterator[Rig]:
    """The caller is the socket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "SocketDuplex", Wire)
        patch.setattr(Wire, "context", trusting(pair.cert), raising=False)
        ours, theirs = socket_pair()
        duplex = TlsDuplex(Reactor(), ours, lambda _: None, server_context(*pair))
        end = End(other=duplex, credit=False)
        duplex.other = end
        wire: Any = duplex._wire
        wire.shake_hands()
        wire.heard.clear()
        end.heard.clear()
        yield Rig(
            wire, arrived=lambda: end.data, ended=lambda: ending(end), say=duplex.send,
            break_off=lambda: duplex.abort("the rest broke"), wrap=wire.encrypted, close=wire.close,
            has_room=False, holds_back=False, acknowledges=False, asks=False, half_closes=False,
        )  # fmt: skip
        wire.close("")
        theirs.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_tls_socket_keeps_the_contract(pair: Pair, version: ssl.TLSVersion) -> None:
    await check_duplex(TlsDuplex, partial(a_tls_socket, pair, version))


async def test_the_side_of_the_records_keeps_the_contract(pair: Pair) -> None:
    await check_duplex(_Records, partial(records, pair))
