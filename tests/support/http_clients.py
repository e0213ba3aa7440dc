"""Helpers for tests of HTTP: requests to send, and answers read as h11 reads them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import h11
import trio

if TYPE_CHECKING:
    from tests.support.entries import Net


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes
    interim: tuple[int, ...]

    @property
    def message(self) -> str:
        """Of an error, in any dialect."""
        error = json.loads(self.body)["error"]
        text: str = error if isinstance(error, str) else error["message"]
        return text


class HttpTalk:
    """A client's connection. It reads answers one after the other, and fails where one is malformed or cut off."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.rest = b""  # came behind the last answer
        self.has_ended = False

    async def answer(self, method: str = "GET") -> Answer:
        """The next one, which was asked for with `method`."""
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
        connection.send(h11.EndOfMessage())
        rest, self.rest = self.rest, b""
        if rest:
            connection.receive_data(rest)
        head: Any = None
        body, interim = b"", []
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                with trio.fail_after(60):
                    data = await self.stream.receive_some()
                self.has_ended = not data
                connection.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise AssertionError(f"the connection ended: {event}")
        self.rest = connection.trailing_data[0]
        fields = {name.decode(): value.decode() for name, value in head.headers}
        return Answer(head.status_code, fields, body, tuple(interim))

    async def ends(self) -> bytes:
        """Until EOF, behind all answers."""
        return self.rest + b"".join([chunk async for chunk in self.stream])


def get(target: str = "/x", *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/{version}", "Host: localhost", *lines, "", ""]).encode()


def post(body: bytes, target: str = "/v1/chat/completions", *lines: str, version: str = "1.1") -> bytes:
    head = [f"POST {target} HTTP/{version}", "Host: localhost", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def chunked(body: bytes, size: int = 10) -> bytes:
    pieces = [body[n : n + size] for n in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def post_chunked(body: bytes, target: str = "/v1/chat/completions", *lines: str, size: int = 10) -> bytes:
    head = [f"POST {target} HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", *lines, "", ""]
    return "\r\n".join(head).encode() + chunked(body, size)


def ok(body: bytes = b"ok", *lines: str) -> bytes:
    """A backend's answer."""
    return "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *lines, "", ""]).encode() + body


def ok_chunked(body: bytes, *lines: str, size: int = 10) -> bytes:
    head = ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", *lines, "", ""]
    return "\r\n".join(head).encode() + chunked(body, size)


def body_of(sent: bytes) -> bytes:
    """The body of a request, as its backend got it."""
    return sent.partition(b"\r\n\r\n")[2]


async def ask(net: Net, request: bytes, **options: Any) -> HttpTalk:
    """A client whose request is at the entry."""
    return HttpTalk(await net.connect(sends=request, **options))
