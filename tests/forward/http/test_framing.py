from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import HttpInvalid
from federation.forward.http.framing import (
    CHUNKED,
    MAX_LINE,
    MAX_PADDING,
    MAX_TRAILERS,
    NO_BODY,
    UNTIL_EOF,
    Body,
    ChunkedBody,
    Framing,
    Kind,
    body_of,
)
from tests.support.smuggling import BAD_CHUNKS


def run(body: Body, data: bytes, *sizes: int) -> tuple[int, bytes]:
    """Feed `data` in pieces; how many bytes were the message's, and its content."""
    at = used = 0
    content: list[memoryview] = []
    for size in [*sizes, len(data)]:
        piece = memoryview(data)[at : at + size]
        at += len(piece)
        n = body.feed(piece, content)
        used += n
        if body.is_over or at == len(data):
            break
        assert n == len(piece), "all is the message's until it is over"
    return used, b"".join(content)


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def test_no_body() -> None:
    for framing in (NO_BODY, Framing(Kind.LENGTH, 0)):
        body = body_of(framing)
        assert body.is_over
        assert body.feed(b"GET / HTTP/1.1") == 0
        assert body.eof()
        assert body.ending(b"x") is None


def test_a_counted_body() -> None:
    body = body_of(Framing(Kind.LENGTH, 5))
    assert run(body, b"helloGET", 2) == (5, b"hello")
    assert body.is_over
    body = body_of(Framing(Kind.LENGTH, 5))
    assert run(body, b"hell") == (4, b"hell")
    assert not body.is_over
    assert not body.eof()


def test_a_body_until_the_end() -> None:
    body = body_of(UNTIL_EOF)
    assert run(body, b"hello", 2) == (5, b"hello")
    assert not body.is_over
    assert body.ending(b"\n\nx\n") == b"\n\nx\n"
    assert body.eof()
    assert body.is_over


def test_the_transcript_of_the_docstring() -> None:
    body = ChunkedBody()
    for view, used, is_over, content in (
        (b"4;x=y\r\nab", 9, False, b"ab"),
        (b"cd\r\n0\r\n", 7, False, b"cd"),
        (b"A: b\r\n\r\nGET", 8, True, b""),
    ):
        parts: list[memoryview] = []
        assert (body.feed(view, parts), body.is_over, b"".join(parts)) == (used, is_over, content)
    assert body.feed(b"GET") == 0


def test_content_is_not_copied() -> None:
    view = memoryview(chunked(b"a" * 1000))
    content: list[memoryview] = []
    ChunkedBody().feed(view, content)
    assert content[0].obj is view.obj


@pytest.mark.parametrize("name", BAD_CHUNKS)
@pytest.mark.parametrize("size", [1, 3, 100_000])
def test_a_bad_chunk_is_refused(name: str, size: int) -> None:
    body = body_of(CHUNKED)
    data = BAD_CHUNKS[name]
    with pytest.raises(HttpInvalid):
        run(body, data, *([size] * len(data)))


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_no_byte_that_is_wrong_was_passed_on(name: str) -> None:
    """What passed may be the begin of a sound body: h11 takes it without a word."""
    body, passed = ChunkedBody(), 0
    data = BAD_CHUNKS[name]
    with pytest.raises(HttpInvalid):
        for passed in range(len(data)):
            body.feed(data[passed : passed + 1])
    begun = ChunkedBody()
    assert begun.feed(data[:passed]) == passed
    end = begun.ending(b"x")
    if end is not None:
        oracle = h11.Connection(h11.SERVER)
        oracle.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + data[:passed] + end)
        while not isinstance(event := oracle.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Request | h11.Data)


def test_extensions_and_trailers_pass_within_bounds() -> None:
    line = b"5;" + b"x" * (MAX_LINE - 4) + b"\r\n"
    assert len(line) == MAX_LINE
    trailers = b"X: " + b"y" * (MAX_TRAILERS - 7) + b"\r\n\r\n"
    assert len(trailers) == MAX_TRAILERS
    whole = line + b'hello\r\n0;a="b\xe9"\r\n' + trailers
    assert run(ChunkedBody(), whole) == (len(whole), b"hello")
    assert run(ChunkedBody(), whole, *([1] * len(whole))) == (len(whole), b"hello")
    for longer in (whole.replace(b";x", b";xx"), whole.replace(b": y", b": yy")):
        with pytest.raises(HttpInvalid):
            ChunkedBody().feed(longer)


def test_long_lines_pass_while_their_chunks_outweigh_them() -> None:
    signed = b"400;chunk-signature=" + b"0" * 64 + b"\r\n" + b"a" * 1024 + b"\r\n"  # as AWS clients write
    data = signed * 1000 + b"0\r\n\r\n"
    assert run(ChunkedBody(), data)[0] == len(data)


sizes = st.lists(st.integers(1, 40), max_size=30)
chunks = st.lists(st.binary(min_size=1, max_size=50), max_size=10)
begun = [b"5", b"\r\n", b"hello", b"0", b";x", b"\r", b"\n", b"X: y", b" ", b"a", b"0\r\n", b"\x00"]
pieces = st.lists(st.sampled_from(begun) | st.binary(max_size=2), max_size=12).map(b"".join)


@given(chunks, st.binary(max_size=20), sizes)
def test_any_split_of_a_sound_body_gives_its_content(parts: list[bytes], rest: bytes, cuts: list[int]) -> None:
    data = chunked(*parts)
    body = ChunkedBody()
    assert run(body, data + rest, *cuts) == (len(data), b"".join(parts))
    assert body.is_over


@given(pieces, sizes)
def test_any_split_of_any_bytes_has_the_same_verdict(data: bytes, cuts: list[int]) -> None:
    def verdict(*how: int) -> object:
        try:
            return run(ChunkedBody(), data, *how)
        except HttpInvalid as error:
            return error.status

    assert verdict() == verdict(*cuts) == verdict(*([1] * len(data)))


# An end that the backend did not write


def content_for_a_client(data: bytes) -> bytes:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "box")]))
    client.send(h11.EndOfMessage())
    client.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    content = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Response | h11.Data)
        content += event.data if isinstance(event, h11.Data) else b""
    assert client.trailing_data == (b"", False)
    return content


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), st.data())
def test_a_dead_stream_is_ended_wherever_it_stopped(parts: list[bytes], data: st.DataObject) -> None:
    raw = chunked(*parts, end=b"")
    cut = data.draw(st.integers(0, len(raw)))
    body = ChunkedBody()
    _, sent = run(body, raw[:cut]) if cut else (0, b"")
    end = body.ending(b"error\n")
    assert end is not None
    got = content_for_a_client(raw[:cut] + end)
    assert got.startswith(sent + b"error\n")
    assert not got[len(sent) + 6 :].strip(b"\n")


@pytest.mark.parametrize(
    ("begun", "end"),
    [
        (b"", b"2\r\n!\n\r\n0\r\n\r\n"),
        (b"5\r\nhello\r\n", b"2\r\n!\n\r\n0\r\n\r\n"),
        (b"5\r\nhello", b"\r\n2\r\n!\n\r\n0\r\n\r\n"),
        (b"5\r\nhello\r", b"\n2\r\n!\n\r\n0\r\n\r\n"),
        (b"5\r\nhel", b"!\n\r\n0\r\n\r\n"),
        (b"5\r\nhell", b"!\r\n1\r\n\n\r\n0\r\n\r\n"),
        (b"5\r\nh", b"!\n\n\n\r\n0\r\n\r\n"),
        (b"1", b"\r\n!\r\n1\r\n\n\r\n0\r\n\r\n"),
        (b"0", b"1\r\n!\r\n1\r\n\n\r\n0\r\n\r\n"),
        (b"2;x", b"\r\n!\n\r\n0\r\n\r\n"),
        (b"2\r", b"\n!\n\r\n0\r\n\r\n"),
        (b"0\r", None),  # all content is there, or nearly: cut the connection
        (b"0;x", None),
        (b"000000000000000", None),
        (b"0\r\n", None),
        (b"0\r\nX: y\r\n", None),
        (b"0\r\n\r\n", None),
        (b"%x\r\n" % (MAX_PADDING + 3), None),
    ],
)
def test_endings(begun: bytes, end: bytes | None) -> None:
    body = ChunkedBody()
    body.feed(begun)
    assert body.ending(b"!\n") == end


def test_an_ending_without_content() -> None:
    for begun, end in (
        (b"5\r\nhello\r\n", b"0\r\n\r\n"),
        (b"5\r\nhello", b"\r\n0\r\n\r\n"),
        (b"5\r\nhell", None),
        (b"5", None),
    ):
        body = ChunkedBody()
        body.feed(begun)
        assert body.ending(b"") == end
