"""The entry's reading of HTTP/1 beside that of h11, which was written independently of llhttp, and strictly. h11 is no part
of the entry."""

from __future__ import annotations

from dataclasses import dataclass, field

import h11

from federation.errors import HttpInvalid
from federation.forward.http.framing import body_of
from federation.forward.http.head import HeadBuffer, parse_request, parse_response


@dataclass
class Message:
    """What a reader makes of the bytes. `end` only where the message is whole."""

    line: tuple[bytes, ...] = ()
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    content: bytes = b""
    end: int | None = None
    is_refused: bool = False


def ours(data: bytes, method: str | None = None) -> Message:
    """`method`: the data are an answer to it."""
    message = Message()
    try:
        used, head = HeadBuffer(is_answer=method is not None).feed(data)
        if head is None:
            return message
        if method is None:
            request = parse_request(head)
            message.line = (request.method.encode(), request.target.encode(), request.version.encode())
            fields, framing = request.fields, request.framing
        else:
            answer = parse_response(head, parse_request(method.encode() + b" / HTTP/1.1\r\nHost: box\r\n\r\n"))
            message.line = (str(answer.status).encode(),)
            fields, framing = answer.fields, answer.framing
        message.fields = [(key, value) for key, _, value in fields]
        body, content = body_of(framing), list[memoryview]()
        used += body.feed(data[used:], content)
        message.content = b"".join(content)
        message.end = used if body.is_over else None
    except HttpInvalid:
        message.is_refused = True
    return message


def h11s(data: bytes, method: str | None = None) -> Message:
    message = Message()
    connection = h11.Connection(h11.SERVER if method is None else h11.CLIENT, max_incomplete_event_size=200_000)
    if method is not None:
        connection.send(h11.Request(method=method, target="/", headers=[("Host", "box")]))
        connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                message.line = (event.method, event.target, event.http_version)
                message.fields = list(event.headers)
            elif isinstance(event, h11.InformationalResponse | h11.Response):
                message.line = (str(event.status_code).encode(),)
                message.fields = list(event.headers)
                if isinstance(event, h11.InformationalResponse):
                    message.end = len(data) - len(connection.trailing_data[0])
                    return message
            elif isinstance(event, h11.Data):
                message.content += event.data
            elif isinstance(event, h11.EndOfMessage):
                message.end = len(data) - len(connection.trailing_data[0])
                return message
            else:
                return message
    except h11.RemoteProtocolError:
        message.is_refused = True
    return message


def compare(data: bytes) -> Message:
    mine = ours(data)
    if mine.is_refused:
        return mine
    oracle = h11s(data)
    assert not oracle.is_refused, "the entry takes what h11 refuses"
    assert mine.line == oracle.line
    assert [name for name, _ in mine.fields] == [name for name, _ in oracle.fields]
    lengths = [value for name, value in mine.fields if name == b"content-length"]
    assert lengths == [value for name, value in oracle.fields if name == b"content-length"]
    assert [(n, v) for n, v in mine.fields if n != b"transfer-encoding"] == [
        (n, v)
        for n, v in oracle.fields
        if n != b"transfer-encoding"  # whose value h11 puts in lower case
    ]
    assert (mine.content, mine.end) == (oracle.content, oracle.end)
    return mine
