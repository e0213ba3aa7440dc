"""The HTTP server over real sockets: what clients that do not read, or are too many, cost."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
from starlette.responses import Response
from structlog.testing import capture_logs

from federation import httpd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Receive, Scope, Send

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 64 * 1024 * 1024  # more than the kernel takes for a client that does not read


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(httpd.serve, app, listener)
        with trio.fail_after(20):
            yield address
        nursery.cancel_scope.cancel()


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
    monkeypatch.setattr(httpd, "PATIENCE_S", 0.2)
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
    monkeypatch.setattr(httpd, "PATIENCE_S", 0.4)
    async with serving(large) as address:
        stream = await connect(address, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        size = 0
        for _ in range(12):  # 0.6 s in all
            size += len(await stream.receive_some(1024 * 1024))
            await trio.sleep(0.05)
        assert size + await rest(stream) > LARGE


async def test_no_more_connections_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "MAX_CONNECTIONS", 2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"hello")(scope, receive, send)

    async with serving(app) as address:
        here = [await connect(address) for _ in range(2)]
        for stream in here:
            assert b" 200 " in await stream.receive_some(1000)
        assert await rest(await connect(address)) == 0
        await here[0].aclose()
        while not await first_bytes(address):  # until the server has noticed
            pass
        await here[1].aclose()


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


async def test_http_2_is_spoken_too() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"hello")(scope, receive, send)

    async with serving(app) as address:
        stream = await connect(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04\x00" + bytes(4))
        assert (await stream.receive_some(1000))[3] == 4  # SETTINGS
        await stream.aclose()
