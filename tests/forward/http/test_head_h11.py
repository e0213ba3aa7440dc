"""The differential test: a request that the entry takes, h11 takes too, and both see one message that ends at one byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.h11_oracle import compare, h11s, ours
from tests.support.smuggling import ANSWERS, ATTACKS, BAD_ANSWERS, BAD_CHUNKS, GET, POST, TE

SIX = b"Content-Length: 6\r\n"


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
