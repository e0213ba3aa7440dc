"""The small HTTP client: what it takes, and what it makes of servers that are none."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from federation.forward.models import asking
from federation.forward.models.asking import MAX_ANSWER, Asker
from federation.units import HostPort
from tests.support.model_servers import serving


async def answered(answer: bytes, *, paths: tuple[str, ...] = ("/x",)) -> tuple[Asker, list[bytes]]:
    """What an asker makes of a server that reads a request, says this, and hangs up; and the requests."""
    requests: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            requests.append(await stream.receive_some())
            with suppress(trio.BrokenResourceError):  # the asker has seen enough
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        asker = Asker(HostPort("127.0.0.1", listener.socket.getsockname()[1]))
        for path in paths:
            await asker.get(path)
        nursery.cancel_scope.cancel()
    return asker, requests


HEAD = b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\n"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (HEAD + b"Content-Length: 2\r\n\r\n{}", b"{}"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n", b"{}"),
        (HEAD + b"\r\n{}", b"{}"),  # until it hangs up
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}", b"{}"),
        (b"HTTP/1.0 200 OK\r\nserver: llama.cpp\r\n\r\n{}", b"{}"),
    ],
)
async def test_framings(answer: bytes, body: bytes) -> None:
    asker, (request,) = await answered(answer)
    got = await asker.get("/x")
    assert got is not None
    assert (got.status, got.server, got.body, got.json()) == (200, "llama.cpp", body, {})
    assert asker.speaks_http is True
    assert request.startswith(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nConnection: close\r\n" in request


@pytest.mark.parametrize(
    ("answer", "speaks_http"),
    [
        (b"", False),
        (b"-ERR unknown command 'GET'\r\n", False),
        (b"SSH-2.0-OpenSSH_9.6\r\n", False),
        (b"\x16\x03\x01" + bytes(300), False),
        (b"x" * 100_000, False),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, False),
        (HEAD + b"Content-Length: 9\r\n\r\n{}", True),
        (HEAD + b"Content-Length: %d\r\n\r\n" % (2 * MAX_ANSWER) + bytes(2 * MAX_ANSWER), True),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", True),
    ],
)
async def test_what_is_no_answer(answer: bytes, speaks_http: bool) -> None:
    asker, _ = await answered(answer)
    assert await asker.get("/x") is None
    assert asker.speaks_http is speaks_http


async def test_a_server_of_another_protocol_is_asked_once() -> None:
    asker, requests = await answered(b"-ERR\r\n", paths=("/x", "/y", "/x"))
    assert len(requests) == 1
    assert await asker.json("/z") is None
    assert await asker.text("/z") == ""


async def test_each_path_is_asked_once() -> None:
    asked: list[str] = []
    with serving({"/x": {"a": 1}, "/t": "text"}, asked=asked) as port:
        asker = Asker(HostPort("127.0.0.1", port))
        assert await asker.json("/x") == await asker.json("/x") == {"a": 1}
        assert await asker.text("/t") == "text"
        assert await asker.json("/t") is await asker.json("/gone") is None
    assert asked == ["/x", "/t", "/gone"]


async def test_silence_takes_a_bounded_time_and_nobody_none() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    asker = Asker(HostPort("127.0.0.1", port), timeout_s=0.05)
    with trio.fail_after(20):
        assert await asker.get("/x") is await asker.get("/y") is None
    assert asker.speaks_http is None
    await listener.aclose()
    assert await Asker(HostPort("127.0.0.1", port)).get("/") is None


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_json(body: bytes) -> None:
    assert asking.Answer(200, "", body).json() is None
