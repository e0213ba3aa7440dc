from __future__ import annotations

import contextlib

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federation.errors import HttpInvalid
from federation.forward.http.framing import CHUNKED, NO_BODY, UNTIL_EOF, Framing, Kind
from federation.forward.http.head import (
    MAX_FIELDS,
    MAX_HEAD,
    MAX_REQUEST_LINE,
    HeadBuffer,
    Opening,
    RequestHead,
    ResponseHead,
    opening,
    parse_request,
    parse_response,
)
from tests.support.smuggling import ANSWERS, ATTACKS, BAD_ANSWERS, GET, POST, TE

OPENAI = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8484\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\nUser-Agent: OpenAI/Python 2.8.0\r\nX-Stainless-Lang:python\r\n"
    b"Authorization: Bearer sk-1 \t\r\nX-Empty:\r\nX-Name: caf\xc3\xa9\r\nContent-Length: 8123\r\n\r\n"
)


def read(data: bytes, *sizes: int) -> tuple[int, RequestHead | None]:
    """Feed `data` in pieces of these sizes, then the rest; how many bytes were the head's, and the head."""
    buffer, at, used = HeadBuffer(), 0, 0
    for size in [*sizes, len(data)]:
        piece = memoryview(data)[at : at + size]
        at += len(piece)
        n, head = buffer.feed(piece)
        used += n
        if head is not None:
            return used, parse_request(head)
    return used, None


def verdict(data: bytes, *sizes: int) -> object:
    try:
        return read(data, *sizes)
    except HttpInvalid as error:
        return error.status


def request(*lines: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: box") -> RequestHead:
    return parse_request(b"\r\n".join([line, *([host] if host else []), *lines, b"", b""]))


def test_a_request_of_an_official_client() -> None:
    used, head = read(OPENAI + b'{"model"')
    assert used == len(OPENAI)
    assert head is not None
    assert (head.method, head.target, head.version) == ("POST", "/v1/chat/completions", "1.1")
    assert head.framing == Framing(Kind.LENGTH, 8123)
    assert head.keep_alive
    assert head.upgrade is None
    assert not head.expects_continue
    assert head.fields[0] == (b"host", b"Host", b"127.0.0.1:8484")
    assert [name for _, name, _ in head.fields[3:5]] == [b"User-Agent", b"X-Stainless-Lang"]  # order and case
    assert head.get(b"authorization") == b"Bearer sk-1"
    assert head.get(b"x-empty") == b""
    assert head.get(b"x-name") == b"caf\xc3\xa9"
    assert head.get(b"x-none") is None
    assert head.all(b"host") == [b"127.0.0.1:8484"]
    with pytest.raises(AttributeError):
        head.method = "GET"  # type: ignore[misc]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name: str) -> None:
    status, data = ATTACKS[name]
    assert verdict(data) == status


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_however_it_is_split(name: str) -> None:
    status, data = ATTACKS[name]
    whole = data if len(data) < 1000 else data[: MAX_HEAD + 10]
    assert verdict(whole, *([1] * len(whole))) == status
    assert verdict(whole, len(whole) // 2) == verdict(whole, len(whole) - 1) == status


def test_the_attacks_are_refused_for_what_they_are() -> None:
    """Without its fault each part of them passes."""
    for sound in (
        POST + b"Content-Length: 6\r\n\r\n",
        POST + TE + b"\r\n",
        GET + b"X: y\r\n\r\n",
        GET + b"X: y\r\n" * 99 + b"\r\n",
    ):
        assert isinstance(verdict(sound), tuple)
    assert isinstance(verdict(b"GET /" + b"a" * (MAX_REQUEST_LINE - 20) + b" HTTP/1.1\r\nHost: box\r\n\r\n"), tuple)
    sound = GET + b"X: " + b"y" * (MAX_HEAD - len(GET) - 7) + b"\r\n\r\n"
    assert len(sound) == MAX_HEAD
    assert isinstance(verdict(sound), tuple)
    assert verdict(sound.replace(b"X: ", b"X: y")) == verdict(sound.replace(b"X: ", b"X: y"), MAX_HEAD) == 431


def test_a_long_head_is_not_kept() -> None:
    buffer = HeadBuffer()
    with pytest.raises(HttpInvalid):
        buffer.feed(GET + b"X: " + b"y" * 10_000_000)
    assert len(buffer) == MAX_HEAD + 1


def test_llhttp_is_as_strict_as_we_take_it_to_be() -> None:
    """This module does not check these by itself: a later httptools that allows them by default is no longer enough."""

    class Silent:
        pass

    for line in (
        b"X : y",
        b"X(y): z",
        b"X\xc3: y",
        b": y",
        b"X",
        b"Content-Length: 6 6",
        b"Content-Length: 6\r\nContent-Length: 6",
    ):
        with pytest.raises(httptools.HttpParserError):
            httptools.HttpRequestParser(Silent()).feed_data(GET + line + b"\r\n\r\n")


def test_framing_of_requests() -> None:
    assert request().framing is NO_BODY
    assert request(b"Content-Length: 0").framing == Framing(Kind.LENGTH, 0)
    assert request(b"content-length:007 ").framing == Framing(Kind.LENGTH, 7)
    assert request(b"Content-Length: 999999999999999999").framing.length == 10**18 - 1
    assert request(b"transfer-encoding: Chunked").framing is CHUNKED


def test_keeping_a_connection_alive() -> None:
    old = b"GET / HTTP/1.0"
    assert request().keep_alive
    assert not request(b"Connection: close").keep_alive
    assert not request(b"Connection: X-Hop,\tCLOSE").keep_alive
    assert not request(b"Connection: keep-alive", b"Connection: close").keep_alive
    assert not request(line=old).keep_alive
    assert not request(line=old, host=b"").keep_alive
    assert request(b"Connection: Keep-Alive", line=old).keep_alive
    assert request(b"Connection: X-Hop, te").options == {b"x-hop", b"te"}


def test_an_upgrade() -> None:
    asked = (b"Upgrade: WebSocket", b"Connection: keep-alive, Upgrade")
    assert request(*asked).upgrade == b"websocket"
    assert request(*asked, b"Content-Length: 3").upgrade is None  # where would the other protocol begin?
    assert request(*asked, line=b"POST / HTTP/1.1").upgrade is None
    assert request(*asked, line=b"GET / HTTP/1.0").upgrade is None
    assert request(asked[0]).upgrade is request(asked[1]).upgrade is None
    assert request(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAM").upgrade is None


def test_what_follows_an_upgrade_is_not_the_heads() -> None:
    data = GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    used, head = read(data + b"\x81\x05hello\r\n\r\n")
    assert used == len(data)
    assert head is not None


def test_expecting_to_be_told_to_go_on() -> None:
    assert request(b"Expect: 100-Continue", b"Content-Length: 3").expects_continue
    assert not request(b"Expect: 100-continue", line=b"POST / HTTP/1.0").expects_continue


def test_targets() -> None:
    for line in (
        b"OPTIONS * HTTP/1.1",
        b'GET /?a=b&c=%20;[]{}|^`"<>\\ HTTP/1.1',
        b"GET //x HTTP/1.1",
        b"DELETE /v1/models/a%2Fb HTTP/1.1",
    ):
        assert request(line=line).target == line.split()[1].decode()


def test_pipelined_requests_are_cut_one_by_one() -> None:
    one, two = GET + b"\r\n", POST + b"\r\n"
    buffer = HeadBuffer()
    used, head = buffer.feed(one + two)
    assert (used, head) == (len(one), one)
    assert HeadBuffer().feed((one + two)[used:]) == (len(two), two)


# Any bytes

heads = st.lists(
    st.sampled_from(
        [b"GET ", b"POST", b" /", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"Host: x",
         b"Content-Length: ", b"Transfer-Encoding: chunked", b"Connection: close", b"Upgrade: websocket", b":", b" ",
         b"\t", b"0", b"5", b"X", b"\x00", b"\xff", b"Expect: 100-continue", b"GET / HTTP/1.1\r\nHost: x\r\n"]
    ) | st.binary(max_size=3),
    max_size=20,
).map(b"".join)  # fmt: skip


@given(heads | st.binary(max_size=200), st.lists(st.integers(1, 30), max_size=20))
@example(GET + b"X: y\r\r\n\r\n", [len(GET) + 5])
@example(GET + b"\r\n", [len(GET) + 1])
def test_any_split_has_the_same_verdict(data: bytes, sizes: list[int]) -> None:
    assert verdict(data) == verdict(data, *sizes) == verdict(data, *([1] * len(data)))


names = st.from_regex(rb"X-[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True)
values = st.from_regex(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]{0,20}[!-~\x80-\xff])?)?", fullmatch=True)


@given(st.lists(st.tuples(names, values), max_size=MAX_FIELDS - 1), st.binary(max_size=50), st.data())
def test_fields_come_out_as_they_went_in(fields: list[tuple[bytes, bytes]], rest: bytes, data: st.DataObject) -> None:
    raw = GET + b"".join(name + b": " + value + b"\r\n" for name, value in fields) + b"\r\n"
    cut = data.draw(st.integers(0, len(raw)))
    used, head = read(raw + rest, cut)
    assert used == len(raw)
    assert head is not None
    assert [(name, value) for _, name, value in head.fields[1:]] == fields


# What begins a connection


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\n", Opening.HTTP),
        (b"BREW / HTTP/1.1\r\nX", Opening.HTTP),
        (b"get http://x/ http/1.1\n", Opening.HTTP),
        (b"GET /\r\n", Opening.HTTP),  # HTTP/0.9
        (b"GET\t/ HTTP/1.1\r\n", Opening.HTTP),
        (b"CONNECT box:443 HTTP/1.1\r\n", Opening.HTTP),
        (b"\r\nGET", Opening.HTTP),
        (b" GET", Opening.HTTP),
        (b"GET / HTTP/3.0\r\n", Opening.HTTP),
        (b"A" * MAX_REQUEST_LINE, Opening.HTTP),
        (b"GET /" + b"a" * MAX_REQUEST_LINE, Opening.HTTP),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Opening.OTHER),
        (b"\x16\x03\x01\x02\x00", Opening.OTHER),
        (b"\x00\x00\x00\x17\x00\x03", Opening.OTHER),
        (b"PING\r\n", Opening.OTHER),
        (b"EHLO box\r\n", Opening.OTHER),
        (b"*1\r\n$4\r\nPING\r\n", Opening.OTHER),
        (b'{"jsonrpc"', Opening.OTHER),
        (b"", Opening.MORE),
        (b"G", Opening.MORE),
        (b"GET", Opening.MORE),
        (b"GET / HTTP/1.1\r", Opening.MORE),
        (b"PRI * HTTP/2.0\r", Opening.MORE),
        (b"EHLO box", Opening.MORE),
    ],
)
def test_openings(data: bytes, expected: Opening) -> None:
    assert opening(data) is expected


@given(heads | st.binary(max_size=40))
def test_what_is_served_begins_as_http(data: bytes) -> None:
    if isinstance(found := verdict(data), tuple) and found[1] is not None:
        assert opening(data) is Opening.HTTP
    seen = [opening(data[:n]) for n in range(len(data) + 1)]
    begun = [kind for kind in seen if kind is not Opening.MORE]
    assert set(begun) <= {opening(data)}, "a word once given stands"


# Answers


def answer(data: bytes, method: str = "GET") -> ResponseHead:
    _, head = HeadBuffer(is_answer=True).feed(data)
    assert head is not None
    return parse_response(head, parse_request(method.encode() + b" / HTTP/1.1\r\nHost: box\r\n\r\n"))


@pytest.mark.parametrize(
    ("name", "status", "framing", "keep_alive"),
    [
        ("Ollama, a stream", 200, CHUNKED, True),
        ("Ollama, its root", 200, NO_BODY, True),
        ("llama.cpp", 200, CHUNKED, True),
        ("llama.cpp, loading", 503, Framing(Kind.LENGTH, 85), False),
        ("vLLM on uvicorn", 200, CHUNKED, True),
        ("uvicorn with a length", 200, Framing(Kind.LENGTH, 2), True),
        ("nginx", 304, NO_BODY, True),
        ("Python's http.server", 200, UNTIL_EOF, False),
        ("no reason", 200, Framing(Kind.LENGTH, 0), True),
        ("empty reason", 200, Framing(Kind.LENGTH, 0), True),
        ("reason beyond ASCII", 404, Framing(Kind.LENGTH, 0), True),
        ("one length twice", 200, Framing(Kind.LENGTH, 2), True),
        ("chunked twice", 200, CHUNKED, True),
        ("blank before the colon", 200, Framing(Kind.LENGTH, 2), True),
        ("early hints", 103, NO_BODY, True),
        ("no content", 204, NO_BODY, True),
    ],
)
def test_answers_of_real_backends(name: str, status: int, framing: Framing, keep_alive: bool) -> None:
    method, data = ANSWERS[name]
    head = answer(data, method)
    assert (head.status, head.framing, head.keep_alive) == (status, framing, keep_alive)
    assert all(key == name.lower() and not name.endswith(b" ") for key, name, _ in head.fields)


def test_fields_of_an_answer() -> None:
    head = answer(ANSWERS["llama.cpp"][1])
    assert head.reason == b"OK"
    assert head.get(b"access-control-allow-origin") == b""
    assert head.all(b"server") == [b"llama.cpp"]


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_that_is_refused(name: str) -> None:
    with pytest.raises(HttpInvalid) as refused:
        answer(BAD_ANSWERS[name])
    assert refused.value.status == 502


def test_the_answer_to_an_upgrade() -> None:
    asked = parse_request(GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    head = parse_response(BAD_ANSWERS["101 that nobody asked for"], asked)
    assert (head.status, head.framing, head.keep_alive) == (101, NO_BODY, False)


def test_an_old_backend_that_chunks_all_the_same() -> None:
    head = answer(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n")
    assert head.framing is CHUNKED
    assert not head.keep_alive


@given(st.binary(max_size=200).map(lambda data: b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n"))
def test_any_answer_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(HttpInvalid):
        answer(data)


def test_no_request_is_another_protocol_because_its_line_is_odd() -> None:
    """A tunnel would be a way round the entry's rules."""
    for line in (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: box\r\n\r\n", b"G(T / HTTP/1.1\r\nHost: box\r\n\r\n"):
        assert opening(line) is Opening.HTTP
        assert all(opening(line[:size]) is not Opening.OTHER for size in range(1, 40))


@pytest.mark.parametrize("method", ["PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH"])
def test_methods_of_file_servers_are_served(method: str) -> None:
    assert parse_request(f"{method} /d/ HTTP/1.1\r\nHost: box\r\nDepth: 1\r\n\r\n".encode()).method == method
