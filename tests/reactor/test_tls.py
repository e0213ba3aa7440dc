"""TLS on the reactor: the contract of a Duplex on both of its sides, handshakes of all kinds, and certificates as files."""

from __future__ import annotations

import socket
import ssl
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from federation.errors import ConfigError
from federation.reactor import tls
from federation.reactor.duplex import join
from federation.reactor.loop import Reactor
from federation.reactor.tls import Certificate, TlsDuplex, _Records, server_context
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
        rig = there.rig(caller)
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


# On a running reactor


class Server:
    """A TlsDuplex, the end that it is joined to, and the owner's news of its end."""

    def __init__(self, duplex: TlsDuplex, end: End, theirs: socket.socket) -> None:
        self.duplex = duplex
        self.end = end
        self.theirs = theirs
        self.closed = 0

    async def until(self, condition: Any, *sides: TcpSide) -> None:
        await Rig(Caller(), move=lambda: [side.move() for side in sides] and None).until(condition)  # type: ignore[func-returns-value]


@asynccontextmanager
async def serving(pair: Pair) -> AsyncIterator[Server]:
    ours, theirs = socket_pair()
    async with trio.open_nursery() as nursery:
        reactor = Reactor()
        await nursery.start(reactor.run)

        def on_close(_end: TlsDuplex) -> None:
            server.closed += 1

        duplex = TlsDuplex(reactor, ours, on_close, server_context(*pair))
        end = End()
        server = Server(duplex, end, theirs)
        join(duplex, end)
        duplex.start()
        yield server
        duplex.abort("the test is over")
        theirs.close()
        await trio.testing.wait_all_tasks_blocked()
        assert server.closed == 1
        assert len(reactor) == 0
        nursery.cancel_scope.cancel()


def client_of(server: Server, pair: Pair, version: ssl.TLSVersion | None = None) -> TlsSide:
    return TlsSide(server.theirs, trusting(pair.cert, version))


@pytest.mark.parametrize("version", VERSIONS)
async def test_many_bytes_both_ways_with_ends_that_stop(pair: Pair, version: ssl.TLSVersion) -> None:
    data = bytes(range(256)) * 8192  # 2 MiB
    async with serving(pair) as server:
        duplex, end = server.duplex, server.end
        client = client_of(server, pair, version)
        end.space = 10_000
        for at in range(0, len(data), 50_000):
            client.say(data[at : at + 50_000])
        await server.until(lambda: len(end.data) > 100_000, client)
        end.space = 0
        await server.until(lambda: duplex.wants() == 0, client)
        end.space = 7
        duplex.resume_writing()
        end.space = 1 << 30
        duplex.resume_writing()
        await server.until(lambda: len(end.data) == len(data), client)
        assert end.data == data
        assert duplex.received == len(data)
        sent = 0

        def pump() -> bool:
            nonlocal sent
            while sent < len(data) and (room := duplex.writable()) > 0:
                part = data[sent : sent + min(room, 70_000)]
                duplex.send(memoryview(part))
                sent += len(part)
            return len(client.read) == len(data)

        for sock, option in ((duplex.sock, socket.SO_SNDBUF), (server.theirs, socket.SO_RCVBUF)):
            sock.setsockopt(socket.SOL_SOCKET, option, 16 * 1024)
        client.stop()
        pump()
        assert sent < len(data)
        client.go()
        await server.until(pump, client)
        assert client.arrived() == data
        await server.until(lambda: duplex.delivered == len(data), client)


async def test_what_was_said_before_the_handshake_waits_for_it(pair: Pair) -> None:
    async with serving(pair) as server:
        server.duplex.send(b"this entry is full")
        assert server.duplex.writable() == tls.EARLY - 18
        server.duplex.send_eof()
        client = client_of(server, pair)
        await server.until(lambda: client.ended() == "EOF", client)
        assert client.arrived() == b"this entry is full"


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_eof_loses_nothing_that_has_come_before_it(pair: Pair, version: ssl.TLSVersion) -> None:
    """OpenSSL gives up a connection whose close_notify is sent while bytes wait to be read."""
    async with serving(pair) as server:
        client = client_of(server, pair, version)
        server.end.space = 0
        await server.until(lambda: client.is_ready, client)
        client.say(b"a" * 30_000)
        client.say(b"b" * 30_000)
        await server.until(lambda: server.duplex._wire.received > 0 and server.duplex.wants() == 0, client)
        server.duplex.send_eof()
        await server.until(lambda: client.ended() == "EOF", client)
        server.end.space = 1 << 30
        server.duplex.resume_writing()
        client.say(b"c")
        client.say_eof()
        await server.until(lambda: "EOF" in server.end.heard, client)
        assert server.end.data == b"a" * 30_000 + b"b" * 30_000 + b"c"


async def test_a_client_that_leaves_without_a_word_was_cut(pair: Pair) -> None:
    async with serving(pair) as server:
        client = client_of(server, pair)
        client.say(b"half")
        await server.until(lambda: server.end.data == b"half", client)
        server.theirs.shutdown(socket.SHUT_WR)
        await server.until(lambda: ending(server.end) == "RST")
        assert server.duplex.error == "the client left without a word"
        assert server.closed == 1


async def test_plain_http_gets_a_line(pair: Pair) -> None:
    async with serving(pair) as server:
        plain = TcpSide(server.theirs)
        server.theirs.setblocking(False)
        plain.say(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await server.until(lambda: plain.ended() == "EOF", plain)
        assert plain.arrived().startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert plain.arrived().endswith(b"use https://\n")
        assert server.end.data == b""
        plain.say(b"more")
        plain.say_eof()
        await server.until(lambda: server.closed == 1, plain)
        assert server.duplex.error == "it speaks no TLS"


@pytest.mark.parametrize("said", [b"\x00\x01\x02", b"\x16\x03\x01\x00\x05hello", b"\x16" + b"\xff" * 3000])
async def test_what_is_no_tls_is_refused(pair: Pair, said: bytes) -> None:
    async with serving(pair) as server:
        server.theirs.setblocking(False)
        other = TcpSide(server.theirs)
        other.say(said)
        await server.until(lambda: other.ended() == "EOF", other)
        assert server.end.data == b""
        other.say_eof()
        await server.until(lambda: server.closed == 1, other)


def test_old_versions_of_tls_are_refused(pair: Pair) -> None:
    assert server_context(*pair).minimum_version == ssl.TLSVersion.TLSv1_2


async def test_alpn_is_http_1_1(pair: Pair) -> None:
    async with serving(pair) as server:
        context = trusting(pair.cert)
        context.set_alpn_protocols(["h2", "http/1.1"])
        client = TlsSide(server.theirs, context)
        await server.until(lambda: client.is_ready, client)
        assert client.tls.selected_alpn_protocol() == "http/1.1"


async def test_a_handshake_has_its_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_S", 0.05)
    async with serving(pair) as server:
        server.theirs.setblocking(False)
        silent = TcpSide(server.theirs)
        await server.until(lambda: silent.ended() == "RST", silent)
        assert server.duplex.error == "no TLS handshake"
        assert ending(server.end) == "RST"


async def test_a_client_that_says_both_ends_and_stays_is_left(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LEAVE_S", 0.05)
    async with serving(pair) as server:
        client = client_of(server, pair)
        client.say_eof()
        await server.until(lambda: "EOF" in server.end.heard, client)
        server.duplex.send_eof()
        await server.until(lambda: server.closed == 1, client)
        assert server.duplex.error is None


# Certificates


def refusal(cert: Path, key: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        server_context(cert, key)
    return str(refused.value)


def test_files_that_are_no_pair_are_refused_in_one_line(tmp_path: Path, pair: Pair) -> None:
    other, locked = self_signed(tmp_path, "other"), self_signed(tmp_path, "locked", passphrase=b"secret")
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.write_text("")
    assert refusal(missing, pair.key).endswith(f"--tls-cert {missing}: No such file or directory")
    assert refusal(pair.cert, missing).endswith(f"--tls-key {missing}: No such file or directory")
    assert refusal(pair.cert, tmp_path).endswith(f"--tls-key {tmp_path}: Is a directory")
    assert refusal(pair.cert, other.key).endswith(f"--tls-key {other.key} is not the key of --tls-cert {pair.cert}")
    assert refusal(pair.key, pair.key).endswith("no certificate and key in PEM form")
    assert refusal(empty, pair.key).endswith("no certificate and key in PEM form")
    assert refusal(*locked).endswith("give one without: openssl pkey -in KEY -out PLAIN")
    assert "\n" not in refusal(*locked)


def test_a_certificate_that_ends_is_told(tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    for days, said in ((-1, ["has expired"]), (3, ["expires soon"]), (30, [])):
        with capture_logs() as lines:
            Certificate().load(*self_signed(tmp_path, f"c{days}", days=days), now)
        assert [line["event"].partition("certificate ")[2].partition(":")[0] for line in lines] == said


def test_files_that_cannot_be_used_leave_the_former_in_force(tmp_path: Path, pair: Pair) -> None:
    certificate, now = Certificate(), datetime.now(timezone.utc)
    certificate.load(*pair, now)
    before = certificate.context
    with pytest.raises(ConfigError):
        certificate.load(pair.cert, tmp_path / "missing", now)
    assert certificate.context is before is not None
    certificate.load(*pair, now)
    assert certificate.context is not before
    assert certificate.names == ("localhost", "127.0.0.1")
    certificate.load(None, None, now)
    assert certificate.context is None
    assert certificate.names == ()
