"""The differential test: a request that the entry takes, h11 takes too, and both see the same message end at the same byte.

h11 is no part of the entry; it is the oracle here, since it was written independently of llhttp, and strictly."""

from __future__ import annotations

from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.errors import HttpInvalid
from federation.forward.http.framing import body_of
from federation.forward.http.head import HeadBuffer, parse_request, parse_response
from tests.support.smuggling import ANSWERS, ATTACKS, BAD_ANSWERS, BAD_CHUNKS, GET, POST, TE

SIX = b"Content-Length: 6\r\n"


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
        used, head = HeadBuffer().feed(data)
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


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name: str) -> None:
    assert compare(ATTACKS[name][1]).is_refused


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks(name: str) -> None:
    assert compare(POST + TE + b"\r\n" + BAD_CHUNKS[name]).is_refused


@pytest.mark.parametrize(
    "data",
    [
        GET + b"\r\n",
        GET + b"\r\n" + GET,
        POST + SIX + b"\r\nabcdef" + GET,
        POST + SIX + b"\r\nabc",
        POST + TE + b"\r\n5\r\nhello\r\n0\r\n\r\n" + GET,
        POST + TE + b"\r\n00005;a=b\r\nhello\r\n0;c\r\nX: y\r\n\r\n" + GET,
        POST + TE + b"\r\n5\r\nhel",
        POST + b"Expect: 100-continue\r\n" + SIX + b"\r\nabcdef",
        b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nab",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_sound_requests_pass(data: bytes) -> None:
    assert not compare(data).is_refused


lines = st.sampled_from(
    [
        b"GET / HTTP/1.1",
        b"POST /v1/x?y HTTP/1.1",
        b"HEAD / HTTP/1.0",
        b"OPTIONS * HTTP/1.1",
        b"POST / HTTP/1.0",
        b"GET  / HTTP/1.1",
    ]
)
fields = st.lists(
    st.sampled_from(
        [b"Host: box", b"Content-Length: 5", b"Content-Length: 0", b"Transfer-Encoding: chunked",
         b"Connection: close", b"X: y", b"X:", b"X:  y\t z \t", b"X: \xe9", b" folded", b"X : y",
         b"Transfer-Encoding: CHUNKED", b"content-length:5 ", b"Expect: 100-continue", b"Upgrade: websocket",
         b"Connection: upgrade", b"X: \x01", b"X", b"Content-Length: 05", b"Host: "]
    ),
    max_size=6,
)  # fmt: skip
ends = st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r"])
bodies = st.lists(
    st.sampled_from(
        [b"5\r\nhello\r\n", b"0\r\n\r\n", b"5;x=\"y\"\r\nhello\r\n", b"0\r\nX: y\r\n\r\n", b"hello",
         b"a\r\n0123456789\r\n", b"5 \r\nhello\r\n", b"\r\n", b"\n", b"GET / HTTP/1.1\r\nHost: box\r\n\r\n",
         b"0;\r\n\r\n", b"0\r\nX:y", b"5", b"FFFFFFFFFFFFFFFF\r\n", b"005\r\nhello\r\n"]
    ),
    max_size=6,
).map(b"".join)  # fmt: skip


@given(lines, fields, st.lists(ends, min_size=8, max_size=8), bodies)
@settings(max_examples=400)
def test_requests_with_faults(line: bytes, headers: list[bytes], line_ends: list[bytes], body: bytes) -> None:
    compare(b"".join(a + b for a, b in zip([line, b"Host: box", *headers], line_ends, strict=False)) + b"\r\n" + body)


@given(
    st.binary(max_size=60),
    st.integers(0, 200),
    st.sampled_from([POST + TE + b"\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n", GET + b"X: y\r\n\r\n"]),
)
@settings(max_examples=300)
def test_sound_requests_with_any_bytes_in_them(noise: bytes, where: int, sound: bytes) -> None:
    compare(sound[:where] + noise + sound[where:])
    compare(sound[:where] + noise + sound[where + len(noise) :])


@pytest.mark.parametrize("name", ANSWERS)
def test_real_answers(name: str) -> None:
    """The entry takes all of them; of those that h11 takes, both make one thing."""
    method, data = ANSWERS[name]
    mine, oracle = ours(data, method), h11s(data, method)
    assert not mine.is_refused
    if not oracle.is_refused:
        assert (mine.line, mine.content, mine.end) == (oracle.line, oracle.content, oracle.end)


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_bad_answers(name: str) -> None:
    assert ours(BAD_ANSWERS[name], "GET").is_refused
