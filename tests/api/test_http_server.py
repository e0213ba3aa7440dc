"""The HTTP server over real sockets: what clients that do not read, or are too many, cost."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from starlette.responses import Response
from structlog.testing import capture_logs

from federation import unixsocket
from federation.api import http_server, server
from federation.reactor.tls import server_context
from tests.support.certificates import self_signed, trusting
from tests.support.control import ANYWHERE, KEY, FakeNode, get_of, raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

    from federation.units import HostPort
    from tests.support.certificates import Pair

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 64 * 1024 * 1024  # more than the kernel takes for a client that does not read


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http_server.serve, app, listener)
        with trio.fail_after(20):
            yield address
        nursery.cancel_scope.cancel()


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(b"hello")(scope, receive, send)


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(b"x" * LARGE)(scope, receive, send)


async def connect(address: tuple[str, int], request: bytes = GET) -> trio.SocketStream:
    stream = await trio.open_tcp_stream(*address)
    await stream.send_all(request)
    return stream


async def first_bytes(address: tuple[str, int], request: bytes = GET) -> bytes:
    async with await connect(address, request) as stream:
        return bytes(await stream.receive_some(1000))


async def rest(stream: trio.SocketStream) -> int:
    """Bytes until the end, be it in order or a reset."""
    size = 0
    with suppress(trio.BrokenResourceError):
        async for chunk in stream:
            size += len(chunk)
    await stream.aclose()
    return size


async def test_who_does_not_read_keeps_nobody_from_ending() -> None:
    async with serving(large) as address:
        stream = await connect(address)
        assert await stream.receive_some(1)
        stopped_at = trio.current_time()
    assert trio.current_time() - stopped_at < 1
    assert await rest(stream) < LARGE


async def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "WRITE_TIMEOUT_S", 0.2)
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await large(scope, receive, send)
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    async with serving(app) as address:
        stream = await connect(address)
        assert await stream.receive_some(1)
        await ended.wait()
        assert await rest(stream) < LARGE


async def test_who_reads_slowly_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "WRITE_TIMEOUT_S", 0.4)
    async with serving(large) as address:
        stream = await connect(address, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        size = 0
        for _ in range(12):  # 0.6 s in all
            size += len(await stream.receive_some(1024 * 1024))
            await trio.sleep(0.05)
        assert size + await rest(stream) > LARGE


@pytest.mark.parametrize(
    "first",
    [b"", b"GET / HTTP/1.1\r\nHo", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_who_has_not_asked_yet_gives_way(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 3)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await hello(scope, receive, send)

    async with serving(app) as address, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(await connect(address, first)) for _ in range(3)]
        for _ in range(3):
            await answered(await stack.enter_async_context(await connect(address)))
        assert [await rest(stream) for stream in idle] == [0, 0, 0]


async def answered(stream: trio.SocketStream) -> None:
    seen = b""
    while not seen.endswith(b"hello"):
        seen += await stream.receive_some(1000)


async def test_so_does_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (large if scope["path"] == "/large" else hello)(scope, receive, send)

    async with serving(app) as address, AsyncExitStack() as stack:
        for _ in range(2):
            deaf = await stack.enter_async_context(await connect(address, GET.replace(b"/ ", b"/large ")))
            assert await deaf.receive_some(1)
        await answered(await stack.enter_async_context(await connect(address)))


async def test_then_who_was_answered_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 3)
    async with serving(hello) as address, AsyncExitStack() as stack:
        one, two, three = [await stack.enter_async_context(await connect(address)) for _ in range(3)]
        for stream in (two, three, one):
            await answered(stream)
        for stream in (three, one, two):
            await stream.send_all(GET)
            await answered(stream)
        for gone in (three, one):
            newcomer = await stack.enter_async_context(await connect(address))
            await answered(newcomer)
            assert await rest(gone) == 0
        await two.send_all(GET)
        await answered(two)


async def test_requests_that_run_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    go_on = trio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"ended"})

    async with serving(slow) as address:
        here = [await connect(address) for _ in range(2)]
        for stream in here:
            assert b" 200 " in await stream.receive_some(1000)
        assert await rest(await connect(address)) == 0
        go_on.set()
        for stream in here:
            seen = b""
            while b"ended" not in seen:
                seen += await stream.receive_some(1000)
        assert await first_bytes(address)  # one of them is idle now
        for stream in here:
            await stream.aclose()


async def test_who_is_not_admitted_says_nothing() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(http_server.serve, hello, listener, admits=lambda client: bool(asked.append(client))))
        with trio.fail_after(20):
            assert await rest(await connect(listener.getsockname())) == 0
        nursery.cancel_scope.cancel()
    assert len(asked) == 1


async def test_a_unix_socket_is_served_too(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http_server.serve, hello, unixsocket.listen(tmp_path, "s"))
        with trio.fail_after(20):
            async with await trio.open_unix_socket(tmp_path / "s") as stream:
                await stream.send_all(GET)
                assert b" 200 " in await stream.receive_some(1000)
        nursery.cancel_scope.cancel()


async def test_an_application_s_error_ends_its_own_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bad":
            raise RuntimeError("a bug of ours")
        await Response(b"hello")(scope, receive, send)

    with capture_logs():
        async with serving(app) as address:
            assert b" 500 " in await first_bytes(address, GET.replace(b"/ ", b"/bad "))
            assert b" 200 " in await first_bytes(address)


@pytest.mark.parametrize("garbage", [b"\x00" * 100, b"A" * 100_000 + b"\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000])
async def test_garbage_is_refused(garbage: bytes) -> None:
    async with serving(large) as address:
        stream = await trio.open_tcp_stream(*address)
        with suppress(trio.BrokenResourceError):
            await stream.send_all(garbage)
        assert await rest(stream) < 1000


@pytest.mark.parametrize(
    "request_",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04\x00" + bytes(4),
        GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n"),
    ],
    ids=["prior knowledge", "upgrade"],
)
async def test_http_2_is_not_spoken(request_: bytes) -> None:
    async with serving(hello) as address:
        assert (await first_bytes(address, request_)).startswith(b"HTTP/1.1 ")
        assert b" 101 " not in await first_bytes(address, request_)


@pytest.mark.parametrize("behind", [b"", b"x", b"\x81\x05hello"])
async def test_a_websocket_is_an_ordinary_request(behind: bytes) -> None:
    """With bytes behind it, too (pgjones/hypercorn#225): an answer, and no line in the log."""
    ask = GET.replace(
        b"\r\n\r\n",
        b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    with capture_logs() as logs:
        async with serving(hello) as address:
            assert b" 200 " in await first_bytes(address, ask + behind)
    assert not logs


# TLS


@asynccontextmanager
async def tls_server(directory: Path) -> AsyncIterator[tuple[HostPort, Pair]]:
    pair = self_signed(directory)
    context = server_context(*pair)
    async with trio.open_nursery() as nursery:
        app = server.create_app(FakeNode(), KEY)
        address: HostPort = await nursery.start(partial(server.serve, app, ANYWHERE, tls=lambda: context))
        with trio.fail_after(20):
            yield address, pair
        nursery.cancel_scope.cancel()


async def test_over_tls(tmp_path: Path) -> None:
    async with tls_server(tmp_path) as (address, pair):
        stream = await trio.open_tcp_stream(address.host, address.port)
        tls = trio.SSLStream(stream, trusting(pair.cert), server_hostname="localhost", https_compatible=True)
        answer = b""
        await tls.send_all(get_of(address, "/api/v1/peers"))
        async for chunk in tls:
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b'{"peers": [{"peer_id": "a", "self": true}]}')
        await tls.aclose()


async def test_plain_http_and_nonsense_at_a_tls_port(tmp_path: Path) -> None:
    async with tls_server(tmp_path) as (address, _):
        assert (await raw(address, get_of(address, "/"))).startswith(b"HTTP/1.1 400 ")
        for said in (b"\x16\x03\x01\x00\x05hello", b"\x00" * 100):
            with suppress(trio.BrokenResourceError):
                assert not (await raw(address, said)).startswith(b"HTTP")
