"""Which node made what, and how an entry sees that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.forward.http.framing import NO_BODY
from federation.forward.http.head import ResponseHead
from federation.forward.http.ids import FIRST, KEPT_S, MAX_IDS, Ids, Maker, digest_of, maker_of


def read(body: bytes, *, size: int = 10_000, is_stream: bool = False) -> str:
    maker = Maker("responses", is_stream=is_stream)
    for n in range(0, len(body), size):
        maker.feed([memoryview(body[n : n + size])])
    return maker.name


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_id_of_an_answer(size: int) -> None:
    whole = {"id": "resp_1", "object": "response", "output": [{"id": "msg_1"}], "text": "x" * 9000}
    assert read(json.dumps(whole).encode(), size=size) == "responses/resp_1"
    nested = {"output": [{"id": "msg_1"}], "error": {"id": "no"}, "id": "resp_\u00e9"}
    assert read(json.dumps(nested).encode(), size=size) == "responses/resp_\u00e9"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_id_of_a_stream(size: int) -> None:
    long = {"type": "response.created", "response": {"id": "resp_1", "instructions": "x" * 9000}}
    assert (
        read(b"event: response.created\ndata: %b\n\n" % json.dumps(long).encode(), size=size, is_stream=True)
        == "responses/resp_1"
    )
    other = {"type": "response.created", "sequence_number": 0, "response": {"object": "response", "id": "resp_2"}}
    assert read(b": ping\n\ndata: %b\n\n" % json.dumps(other).encode(), size=size, is_stream=True) == "responses/resp_2"


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"id": 7}', b'{"id": ""}', b'{"id": "a\\nb"}', b'{"x": {"id": "a"}}', b'{"id": "%b"}' % (b"x" * 257)],
)  # fmt: skip
def test_what_has_no_id(body: bytes) -> None:
    assert read(body) == ""


def test_no_more_than_the_beginning_is_looked_at() -> None:
    assert read(b'{"x": "' + b"x" * FIRST + b'", "id": "resp_1"}', size=100) == ""
    assert read(b": ping\n" * FIRST + b'data: {"response": {"id": "resp_1"}}', size=100, is_stream=True) == ""


@given(st.lists(st.binary(max_size=50)), st.booleans())
def test_any_bytes_have_some_id_or_none(chunks: list[bytes], is_stream: bool) -> None:
    maker = Maker("files", is_stream=is_stream)
    for chunk in chunks:
        name = maker.feed([memoryview(chunk)])
        assert name == "" or name.startswith("files/")


def head(status: int = 200, **fields: str) -> ResponseHead:
    named = tuple((k.replace("_", "-").encode(), k.encode(), v.encode()) for k, v in fields.items())
    return ResponseHead(status, b"", "1.1", named, NO_BODY, True)


def test_which_answers_are_looked_at() -> None:
    sound: Any = {"content_type": "application/json"}
    for target in (
        "/v1/responses",
        "/v1/files",
        "/v1/batches?x=1",
        "/v1/messages/batches",
        "/v1/fine_tuning/jobs",
        "/threads/",
    ):
        assert maker_of("POST", target, head(**sound)) is not None, target
    for method, target in (
        ("GET", "/v1/responses"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("POST", "/v1/filesystem"),
    ):
        assert maker_of(method, target, head(**sound)) is None, target
    assert maker_of("POST", "/v1/files", head(404, **sound)) is None
    assert maker_of("POST", "/v1/files", head(content_type="text/html")) is None
    assert maker_of("POST", "/v1/files", head(**sound, content_encoding="gzip")) is None


def test_a_maker_is_remembered_for_a_while_since_its_last_use() -> None:
    ids = Ids()
    ids.made("default", "files/f", "a", 0.0)
    assert ids.maker("default", "files/f", KEPT_S - 1) == "a"
    assert ids.maker("default", "files/f", 2 * KEPT_S - 2) == "a"
    assert ids.maker("default", "files/f", 3 * KEPT_S) == ""
    assert ids._makers == {}
    assert ids.maker("tts", "files/f", 0.0) == ""


def test_nobody_takes_over_what_another_node_made() -> None:
    ids = Ids()
    ids.made("default", "files/f", "a", 0.0)
    ids.made("default", "files/f", "evil", 1.0)
    assert ids.maker("default", "files/f", 2.0) == "a"
    ids.made("default", "files/f", "b", 3 * KEPT_S)
    assert ids.maker("default", "files/f", 3 * KEPT_S) == "b"


def test_the_newest_of_use_are_kept() -> None:
    ids = Ids()
    for n in range(MAX_IDS):
        ids.made("default", f"files/{n}", "a", 0.0)
    assert ids.maker("default", "files/0", 1.0) == "a"
    ids.made("default", "files/new", "a", 1.0)
    assert ids.maker("default", "files/1", 1.0) == ""
    assert ids.maker("default", "files/0", 1.0) == "a"
    assert len(ids._makers) == MAX_IDS


def test_another_entry_asks_by_a_hash() -> None:
    ids = Ids()
    ids.made("default", "responses/r", "a", 0.0)
    digest = digest_of("default", "responses/r")
    assert len(digest) == 32
    assert ids.maker_by(digest, 1.0) == "a"
    assert ids.maker_by(digest_of("other", "responses/r"), 1.0) == ids.maker_by(b"", 1.0) == ""
    assert ids.maker_by(digest, 2 * KEPT_S + 2) == ""
    for i in range(MAX_IDS + 10):
        ids.made("default", f"responses/{i}", "b", 0.0)
    assert len(ids._digests) == len(ids._makers) == MAX_IDS
    assert ids.maker_by(digest_of("default", "responses/0"), 1.0) == ""
