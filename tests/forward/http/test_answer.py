"""One answer, read in pieces of any size."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import HttpInvalid
from federation.forward.http.answer import AnswerReader
from federation.forward.http.dialects import Dialect
from federation.forward.http.head import parse_request
from federation.forward.http.usage import Tokens

if TYPE_CHECKING:
    from federation.forward.http.head import RequestHead

CHAT = "/v1/chat/completions"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\n\r\n"


def request(method: str = "POST", target: str = CHAT, version: str = "1.1") -> RequestHead:
    return parse_request(f"{method} {target} HTTP/{version}\r\nHost: h\r\n\r\n".encode())


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Read(NamedTuple):
    statuses: list[int]
    content: bytes
    made: list[str]
    reader: AnswerReader
    rest: int  # bytes behind the answer


def read(data: bytes, *, step: int = 1 << 20, head: RequestHead | None = None, names_model: bool = True) -> Read:
    asked = head or request()
    reader = AnswerReader(asked)
    statuses, content, made, rest = [], b"", [], 0
    for at in range(0, len(data), step):
        view = memoryview(data[at : at + step])
        while len(view):
            if reader.body is None:
                used, found = reader.feed_head(view)
                if found is not None:
                    statuses.append(found.status)
                    if found.status >= 200:
                        reader.begin_body(found, names_model=names_model, target=asked.target)
            elif reader.body.is_over:
                rest += len(view)
                break
            else:
                used, parts, name = reader.feed_body(view, float(at))
                content += b"".join(parts)
                made += [name] if name else []
            view = view[used:]
    return Read(statuses, content, made, reader, rest)


USAGE = json.dumps({"id": "resp_1", "usage": {"prompt_tokens": 9, "completion_tokens": 2}}).encode()
WHOLE = EARLY + SSE + chunk(b"data: one\n\n") + chunk(b"data: " + USAGE + b"\n\n") + b"0\r\n\r\n"


@given(st.integers(1, len(WHOLE)))
def test_pieces_of_any_size_are_one_answer(step: int) -> None:
    got = read(WHOLE + b"more", step=step)
    assert got.statuses == [103, 200]
    assert got.content == b"data: one\n\ndata: " + USAGE + b"\n\n"
    assert (got.reader.size, got.reader.body is not None and got.reader.body.is_over) == (len(WHOLE), True)
    assert got.rest >= 1
    assert got.reader.meter is not None
    assert got.reader.meter.tokens() == Tokens(9, 2)


def test_content_is_read_only_where_somebody_wants_it() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    assert read(answer).content == b""
    assert read(answer).reader.size == len(answer)
    old = read(answer.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked")[:-5] + chunk(b"hello") + b"0\r\n\r\n",
               head=request(version="1.0"), names_model=False)  # fmt: skip
    assert (old.reader.is_unchunked, old.content, old.reader.meter) == (True, b"hello", None)


def test_the_thing_that_was_made_is_told_once() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(USAGE), USAGE)
    for step in (3, 1000):
        assert read(answer, step=step, head=request(target="/v1/responses")).made == ["responses/resp_1"]
    assert read(answer).made == []


def test_a_stream_that_dies_has_last_words_where_it_stopped() -> None:
    got = read(SSE + chunk(b"data: one\n\n") + b"100\r\ndata: half")
    words = got.reader.last_words(Dialect.OPENAI)
    assert words is not None
    assert b"data: " in words
    assert words.endswith(b"0\r\n\r\n")
    assert got.reader.comment() == b"", "a comment would stand in the middle of an event"


@pytest.mark.parametrize("answer", [b"", EARLY, SSE[:20], b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal"])
def test_no_last_words_where_there_is_no_place(answer: bytes) -> None:
    reader = read(answer).reader
    assert reader.last_words(Dialect.OPENAI) is None
    assert reader.comment() == b""


def test_a_comment_stands_between_events() -> None:
    assert read(SSE + chunk(b"data: one\n\n")).reader.comment() == chunk(b":\n\n")


@pytest.mark.parametrize("answer", [b"\0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", SSE + b"zz\r\n"])
def test_what_is_no_answer(answer: bytes) -> None:
    with pytest.raises(HttpInvalid):
        read(answer)
