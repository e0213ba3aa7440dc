"""Tokens and first content of answers, as servers write them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.forward.http.framing import NO_BODY
from federation.forward.http.head import ResponseHead
from federation.forward.http.usage import HEAD, MAX_COUNT, TAIL, Meter, Tokens, meter_of

OPENAI = {
    "prompt_tokens": 9,
    "completion_tokens": 12,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
}
RESPONSES = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 12,
    "output_tokens_details": {"reasoning_tokens": 0},
}
ANTHROPIC = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 2,
    "cache_read_input_tokens": 4,
    "output_tokens": 12,
    "service_tier": "standard",
}
COUNTED = Tokens(9, 12, 4)


def read(*chunks: bytes, is_stream: bool = False) -> Meter:
    meter = Meter(is_stream=is_stream)
    for n, chunk in enumerate(chunks):
        buffer = bytearray(chunk)
        with memoryview(buffer) as view:
            meter.feed([view], float(n))
        buffer[:] = bytes(len(buffer))  # valid during the call only
    return meter


def whole(**members: Any) -> bytes:
    return json.dumps(members).encode()


def events(*data: Any) -> bytes:
    return b"".join(b"data: " + (d.encode() if isinstance(d, str) else json.dumps(d).encode()) + b"\n\n" for d in data)


@pytest.mark.parametrize(
    ("usage", "said"), [(OPENAI, COUNTED), (RESPONSES, COUNTED), (ANTHROPIC, COUNTED), ({}, None), (None, None)]
)
def test_a_whole_answer(usage: Any, said: Tokens | None) -> None:
    before = "x" * 10_000
    for separators in (None, (",", ":")):
        body = json.dumps({"id": "c", "choices": [{"text": before}], "usage": usage, "timings": None}, separators=separators)
        assert read(body.encode()).tokens() == said
        assert read(*(body[n : n + 7].encode() for n in range(0, len(body), 7))).tokens() == said


def test_a_stream_of_openai() -> None:
    chunk = {"choices": [{"delta": {"content": "a"}}], "usage": None}
    body = events(*[chunk] * 40, {"choices": [], "usage": OPENAI}, "[DONE]")
    assert read(body, is_stream=True).tokens() == COUNTED
    assert read(events(*[chunk] * 40, "[DONE]"), is_stream=True).tokens() is None


def test_a_stream_of_responses() -> None:
    done = {
        "type": "response.completed",
        "response": {"output": [{"text": "x" * 9000}], "usage": RESPONSES, "user": None, "metadata": {}},
    }
    assert read(events({"type": "response.created", "response": {"usage": None}}, done), is_stream=True).tokens() == COUNTED


def test_a_stream_of_anthropic() -> None:
    """The prompt is counted in the first event, the answer in the last but one."""
    start = {"type": "message_start", "message": {"content": [], "usage": {**ANTHROPIC, "output_tokens": 1}}}
    delta = {"type": "content_block_delta", "delta": {"text": "x" * 3000}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 12}}
    assert read(events(start, delta, delta, end, {"type": "message_stop"}), is_stream=True).tokens() == COUNTED


def test_ollama() -> None:
    done = {
        "model": "m",
        "done": True,
        "context": [1] * 2000,
        "total_duration": 5,
        "prompt_eval_count": 9,
        "eval_count": 12,
        "eval_duration": 1,
    }
    lines = whole(message={"content": "a"}, done=False) + b"\n"
    assert read(lines * 50, whole(**done) + b"\n", is_stream=True).tokens() == Tokens(9, 12)
    assert read(whole(**done)).tokens() == Tokens(9, 12)
    del done["prompt_eval_count"]  # all of it was in the cache
    assert read(whole(**done)).tokens() == Tokens(0, 12)


def test_llama_cpp_says_it_by_timings() -> None:
    timings = {"cache_n": 4, "prompt_n": 5, "prompt_ms": 12.5, "predicted_n": 12, "predicted_per_second": 1e2}
    assert read(events({"choices": [], "timings": timings}, "[DONE]"), is_stream=True).tokens() == COUNTED
    assert read(events({"choices": [], "usage": OPENAI, "timings": {}}), is_stream=True).tokens() == COUNTED


def test_a_text_that_looks_like_counts_is_none() -> None:
    text = 'so "usage": {"prompt_tokens": 7}, "eval_count": 3, "timings": {"prompt_n": 1} he said'
    assert read(whole(choices=[{"text": text}])).tokens() is None
    assert read(whole(usage=OPENAI, text=text)).tokens() == COUNTED


@pytest.mark.parametrize("odd", [-1, 2**63, MAX_COUNT + 1, 1e308, 1.5, True, "9", None, [], {"a": 1}])
def test_a_count_that_is_none_is_unknown(odd: Any) -> None:
    assert read(whole(usage={**OPENAI, "prompt_tokens": odd})).tokens() == Tokens(None, 12, 4)
    odd_details = {"cached_tokens": None if isinstance(odd, dict) else odd}
    assert read(whole(usage={**OPENAI, "prompt_tokens_details": odd_details})).tokens() == Tokens(9, 12)
    assert read(b'{"usage": {"prompt_tokens": NaN}}').tokens() is None
    assert read(b'{"prompt_eval_count": 99999999999999, "eval_count": 1e308}').tokens() is None


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=300), st.sampled_from([b'"usage"', b'"usage":{', b'"timings":{"a":{', b'eval_count"', b"}}"])
        )
    )
)
def test_any_bytes_are_some_answer(chunks: list[bytes]) -> None:
    for is_stream in (True, False):
        read(*chunks, is_stream=is_stream).tokens()


@pytest.mark.parametrize(
    "evil", [b'"usage":{' * 400, b'"usage":{"a":{' * 300, b'"usage":' + b'{"a":' * 500, b'"usage":{"' + b"x" * 4000]
)
def test_no_expression_backtracks_without_end(evil: bytes) -> None:
    assert read(evil, is_stream=True).tokens() is None


def test_what_is_kept_is_bounded() -> None:
    meter = read(*[b"x" * 1500] * 1000, b"y" * 1_000_000)
    assert len(meter.head) == HEAD
    assert len(meter._tail) <= 2 * TAIL


def test_the_first_content_is_no_comment() -> None:
    assert read(b": ping\n\n", b"\n", b": ping\n\n", events("a"), events("b"), is_stream=True).first_at == 3.0
    assert read(b"{", b"}").first_at == 0.0
    assert read(is_stream=True).first_at is None


def head(status: int = 200, **fields: str) -> ResponseHead:
    named = tuple((k.replace("_", "-").encode(), k.encode(), v.encode()) for k, v in fields.items())
    return ResponseHead(status, b"", "1.1", named, NO_BODY, True)


def test_which_answers_are_read() -> None:
    assert meter_of(head(content_type="application/json; charset=utf-8")).is_stream is False  # type: ignore[union-attr]
    assert meter_of(head(content_type="text/event-stream")).is_stream is True  # type: ignore[union-attr]
    assert meter_of(head(content_type="application/json", content_encoding="gzip")) is None
    assert meter_of(head(content_type="audio/mpeg")) is None
    assert meter_of(head(404, content_type="application/json")) is None
    assert meter_of(head()) is None
