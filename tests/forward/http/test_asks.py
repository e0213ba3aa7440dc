"""What requests ask for: the bodies of real clients, bodies that try to be two things, and any bytes at all."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.forward.http import asks
from federation.forward.http.asks import WHOLE, Asked, Peek
from federation.forward.http.conversation import NO_KEYS
from federation.forward.http.paths import MAX_NAME

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'Hello \U0001f600 "x"'}]

texts = st.text(st.characters() | st.sampled_from('\\"{}[],:é\U0001f600\ud800'), max_size=10)  # lone surrogates too
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["model", "Model", "name", "messages", "system", "tools", "prompt", "input", "user", "session_id"])
bodies = st.lists(st.tuples(names | texts, values | st.sampled_from(["a", "b"])), max_size=6)
targets = st.sampled_from([CHAT, "/v1/messages", "/api/generate", "/api/chat", "/v1/responses", "/v1/completions", "/x"])


def asked(body: bytes, *cuts: int, target: str = CHAT, method: str = "POST", **what: bytes) -> Asked:
    peek = Peek(method, target, **what)
    for begin, end in zip((0, *cuts), (*cuts, len(body)), strict=True):
        peek.feed(body[begin:end])
    return peek.finish()


def scanned(body: bytes, **what: Any) -> Asked:
    """As if it were beyond WHOLE."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asks, "WHOLE", -1)
        return asked(body, **what)


def written(pairs: list[tuple[str, Any]], *, is_ascii: bool = True) -> bytes:
    """An object as JSON; unlike in a dict, keys may repeat."""
    parts = (f"{json.dumps(k, ensure_ascii=is_ascii)}:{json.dumps(v, ensure_ascii=is_ascii)}" for k, v in pairs)
    return ("{" + ",".join(parts) + "}").encode("utf-8", "surrogatepass")


def test_the_transcript_of_its_head() -> None:
    peek = Peek("POST", CHAT, content_type=b"application/json")
    assert peek.asked is None
    assert peek.feed(b'{"messages": [') is None
    assert peek.feed(b'{"content": "Hi"}], "model": "m"}') is None
    found = peek.finish()
    assert (found.model, found.target, found.trouble) == ("m", CHAT, "")
    assert found.keys.k0
    assert found.keys.k1
    assert peek.feed(b"more") is found


@pytest.mark.parametrize(
    ("target", "body", "model"),
    [
        (CHAT, b'{"model":"m","messages":[{"model":"x"}]}', "m"),
        (CHAT, b'{"messages":[{"content":"\\",\\"model\\":\\"x\\""}],"model":"m"}', "m"),
        (CHAT, b' \r\n{"model":"a","model":"m"}\n', "m"),
        (CHAT, b'{"mod\\u0065l":"\\u006d\\ud83d\\ude00"}', "m\U0001f600"),
        (CHAT, b'{"MODEL":"m"}', "m"),
        (CHAT, b'{"model":null}', ""),
        (CHAT, b'{"model":["m"]}', ""),
        (CHAT, b'{"name":"m"}', ""),
        (CHAT, b"{}", ""),
        (CHAT, b"", ""),
        (CHAT, b" \n ", ""),
        (CHAT, b" \x0b{}", ""),
        (CHAT, b"[1]", ""),
        (CHAT, b"\x00\xff", ""),
        (CHAT, b'{"model":"m","x":"\\ud800","n":1e999999,"deep":' + b"[" * 9999 + b"]" * 9999 + b"}", "m"),
        (CHAT, b'{"model":"m","n":NaN}', "m"),
        ("/api/show", b'{"name":"m"}', "m"),
        ("/api/show", b'{"Name":"m"}', "m"),
        ("/api/show", b'{"name":"x","model":"m"}', "m"),
        ("/api/show", b'{"name":"m","model":""}', "m"),
        ("/api/copy", b'{"source":"m","destination":"x","model":"y"}', "m"),
        ("/v1/engines/m/completions", b'{"model":"x","prompt":"p"}', "m"),
        ("/infill?model=m", b'{"prompt":"p"}', "m"),
        (CHAT + "?model=m", b'{"model":"m"}', "m"),
    ],
)
def test_the_model_of_a_body(target: str, body: bytes, model: str) -> None:
    for found in (
        asked(body, target=target),
        asked(body, *range(1, len(body)), target=target),
        scanned(body, target=target),
    ):
        assert (found.model, found.trouble) == (model, "")


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (CHAT, b'{"model":"a","Model":"b"}'),
        ("/api/chat", b'{"MODEL":"a","model":"b"}'),
        ("/api/chat", b'{"model":"a","Model":null}'),
        (CHAT + "?model=a", b'{"model":"b"}'),
        (CHAT, b'{"model":"\\ud800"}'),
        (CHAT, b'{"model":"\xff"}'),
        (CHAT, b'{"model":"' + b"m" * (MAX_NAME + 1) + b'"}'),
        (CHAT, b'{"model":"' + b"m" * 10_000 + b'"}'),
        (CHAT, b'{"model":"m"'),
        (CHAT, b'{"model":"m"}{"model":"x"}'),
        (CHAT, b'{"model":"m",}'),
        (CHAT, b"{'model':'m'}"),
        (CHAT, b"{"),
    ],
)
def test_a_body_in_trouble_names_no_model(target: str, body: bytes) -> None:
    for found in (
        asked(body, target=target),
        asked(body, *range(1, len(body)), target=target),
        scanned(body, target=target),
    ):
        assert found.model == ""
        assert found.trouble
        assert found.keys == NO_KEYS


def test_json_is_known_by_its_first_byte() -> None:
    assert asked(b'{"model":"m"}', content_type=b"application/x-www-form-urlencoded").model == "m"
    peek = Peek("POST", "/x", content_type=b"application/json")
    assert peek.feed(b"GGUF") == Asked("", "/x")


def test_without_a_body_all_is_known_at_once() -> None:
    for method, target, model in (
        ("GET", "/v1/realtime?model=m", "m"),
        ("DELETE", "/v1/models/a/b", "a/b"),
        ("GET", "/v1/models", ""),
        ("HEAD", "/", ""),
    ):
        found = Peek(method, target).asked
        assert found is not None
        assert (found.model, found.trouble) == (model, "")


def test_a_delete_may_have_a_body() -> None:
    assert asked(b'{"name":"m"}', method="DELETE", target="/api/delete").model == "m"


def form(*parts: tuple[bytes, bytes]) -> bytes:
    rows = (b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % part for part in parts)
    return b"".join(rows) + b"--b--\r\n"


@pytest.mark.parametrize(
    ("body", "model", "trouble"),
    [
        (form((b"file", b"{" * 1000), (b"model", b"m")), "m", ""),
        (form((b"model", b"m"), (b"model", b"m")), "m", ""),
        (form((b"file", b"x")), "", ""),
        (form((b"model", b"a"), (b"model", b"b")), "", "two models"),
        (form((b"model", b"\xff" * 600)), "", "characters"),
        (form((b"model", b"m"))[:-6], "", "no end"),
        (b"--b\r\n" + b"x" * 9000, "", "cannot be read"),
    ],
)
def test_a_form(body: bytes, model: str, trouble: str) -> None:
    for cuts in ((), range(1, len(body))):
        found = asked(body, *cuts, target="/v1/audio/transcriptions", content_type=b"multipart/form-data; boundary=b")
        assert found.model == model
        assert trouble in found.trouble
        assert bool(found.trouble) == bool(trouble)


def test_a_form_is_understood_at_its_end_not_at_the_end_of_the_body() -> None:
    peek = Peek("POST", "/v1/audio/transcriptions", content_type=b"multipart/form-data; boundary=b")
    assert peek.feed(form((b"model", b"m"))) is not None


def test_a_compressed_body_is_not_guessed_at() -> None:
    assert "compressed" in asked(b"\x1f\x8b", content_encoding=b"gzip").trouble
    assert asked(b'{"model":"m"}', content_encoding=b"identity").model == "m"


def test_ids_that_live_on_one_node() -> None:
    assert asked(b'{"model":"m","previous_response_id":"resp_1"}', target="/v1/responses").id == "responses/resp_1"
    assert asked(b"", method="GET", target="/v1/responses/resp_2").id == "responses/resp_2"
    assert asked(b'{"input_file_id":"file-1","endpoint":"/v1/responses"}', target="/v1/batches").id == "files/file-1"
    for written in (b'"conv_1"', b'{"id": "conv_1"}'):
        body = b'{"model":"m","previous_response_id":null,"conversation":%b}' % written
        assert asked(body, target="/v1/responses").id == "conversations/conv_1"
    for written in (b"{}", b'{"id": 7}', b'{"id": "' + b"x" * 2000 + b'"}', b"[" * 2000, b'{"a":' * 900):
        assert asked(b'{"model":"m","conversation":%b}' % written, target="/v1/responses").id == "", written[:20]


def test_what_is_known_so_far() -> None:
    peek = Peek("POST", CHAT)
    assert peek.so_far.model == ""
    peek.feed(b'{"model":"m","messages":[{"content":"')
    assert (peek.so_far.model, peek.so_far.trouble, peek.asked) == ("m", "", None)
    peek.feed(b'"}],"model":"x"}')
    assert peek.so_far.model == "x"
    assert peek.finish().model == "x"


@given(bodies, targets, st.booleans(), st.data())
def test_short_and_long_bodies_say_the_same_however_they_are_split(
    pairs: list[tuple[str, Any]], target: str, is_ascii: bool, data: st.DataObject
) -> None:
    body = written(pairs, is_ascii=is_ascii)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=4)))
    found = asked(body, target=target)
    assert asked(body, *cuts, target=target) == found
    assert scanned(body, target=target) == found
    assert scanned(body, *[], target=target) == found
    last = dict(pairs).get("model")
    if not found.trouble and isinstance(last, str) and last:
        assert found.model == last


@given(
    st.binary(max_size=100) | st.text(st.sampled_from('{}[]",:\\u0 1model'), max_size=60).map(str.encode), targets, st.data()
)
def test_any_bytes_are_borne(data: bytes, target: str, draw: st.DataObject) -> None:
    for body in (data, b'{"model":"m",' + data, b'{"messages":' + data):
        cuts = sorted(draw.draw(st.lists(st.integers(0, len(body)), max_size=3)))
        for found in (asked(body, target=target), asked(body, *cuts, target=target)):
            assert found == asked(body, target=target)
            assert not (found.trouble and found.model)


def images(mib: int) -> bytes:
    """A chat with images and, behind them, the model."""
    image = "data:image/png;base64," + random.Random(1).randbytes(1 << 19).hex()
    part = {"type": "image_url", "image_url": {"url": image}}
    return json.dumps({"messages": [*MESSAGES, {"role": "user", "content": [part] * mib}], "model": "m"}).encode()


def test_a_model_behind_100_mb_of_images_costs_little_memory_and_no_long_turn() -> None:
    body = images(100)
    assert len(body) > 100_000_000
    peek, longest = Peek("POST", CHAT), 0.0
    tracemalloc.start()
    try:
        for at in range(0, len(body), 65536):
            began = time.thread_time()
            peek.feed(body[at : at + 65536])
            longest = max(longest, time.thread_time() - began)
        found = peek.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.model == "m"
    assert found.keys == asked(images(0)).keys
    assert peak < 4 << 20
    assert longest < 0.1


def test_a_client_that_sends_byte_by_byte_costs_no_object_a_byte() -> None:
    peek = Peek("POST", CHAT)
    tracemalloc.start()
    try:
        for n in range(100_000):
            peek.feed(bytes((32, 32)) if n else b"{ ")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_chat_keeps_its_keys_when_it_grows_beyond_what_is_read_in_one_piece() -> None:
    turns = [{"role": "assistant", "content": "word " * 1000}] * (WHOLE // 5000 + 10)
    short = asked(json.dumps({"model": "m", "messages": MESSAGES}).encode())
    body = json.dumps({"model": "m", "messages": MESSAGES + turns}).encode()
    assert len(body) > WHOLE
    assert asked(body).keys == short.keys
