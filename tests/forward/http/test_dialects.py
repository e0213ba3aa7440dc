from __future__ import annotations

import json
from typing import Any

import h11
import pytest

from federation.forward.http.dialects import MAX_MESSAGE, Dialect, dialect_of, error_answer, error_body, phrase, stream_error
from federation.forward.http.head import ResponseHead, parse_request, parse_response

ASKED = parse_request(b"POST / HTTP/1.1\r\nHost: box\r\n\r\n")


@pytest.mark.parametrize(
    ("target", "dialect"),
    [
        ("/v1/chat/completions", Dialect.OPENAI),
        ("/v1/chat/completions?api-version=1", Dialect.OPENAI),
        ("/v1/v1/chat/completions", Dialect.OPENAI),
        ("/v1", Dialect.OPENAI),
        ("/v1/models/org/name", Dialect.OPENAI),
        ("/chat/completions", Dialect.OPENAI),
        ("/engines/x/completions", Dialect.OPENAI),
        ("/openai/deployments/x/chat/completions", Dialect.OPENAI),
        ("/v1/responses", Dialect.RESPONSES),
        ("/v1/responses/resp_1", Dialect.RESPONSES),
        ("/responses", Dialect.RESPONSES),
        ("/v1/messages", Dialect.ANTHROPIC),
        ("/v1/messages?beta=true", Dialect.ANTHROPIC),
        ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
        ("/v1/v1/messages", Dialect.ANTHROPIC),
        ("/api/chat", Dialect.OLLAMA),
        ("/api/api/chat", Dialect.OLLAMA),
        ("/api/tags/", Dialect.OLLAMA),
        ("/api/blobs/sha256:1", Dialect.OLLAMA),
        ("/api/v1/models", Dialect.PLAIN),  # LM Studio
        ("/api/chatter", Dialect.PLAIN),
        ("/v1x", Dialect.PLAIN),
        ("/", Dialect.PLAIN),
        ("*", Dialect.PLAIN),
        ("/props", Dialect.PLAIN),
    ],
)
def test_dialects(target: str, dialect: Dialect) -> None:
    assert dialect_of(target) is dialect


def test_a_client_of_anthropic_says_so_on_shared_paths() -> None:
    assert dialect_of("/v1/models", is_anthropic=True) is Dialect.ANTHROPIC
    assert dialect_of("/api/tags", is_anthropic=True) is Dialect.OLLAMA


def body(dialect: Dialect, status: int, **more: Any) -> Any:
    return json.loads(error_body(dialect, status, "no", **more))


def test_errors_of_each_dialect() -> None:
    for dialect in (Dialect.OPENAI, Dialect.RESPONSES):
        assert body(dialect, 404, code="model_not_found", param="model") == {
            "error": {
                "message": "federation: no",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
        }
    assert body(Dialect.OPENAI, 503)["error"]["type"] == "server_error"
    assert body(Dialect.OPENAI, 401)["error"]["code"] == "invalid_api_key"
    assert body(Dialect.OPENAI, 429)["error"]["code"] == "rate_limit_exceeded"
    assert body(Dialect.ANTHROPIC, 404) == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "federation: no"},
    }
    kinds = [body(Dialect.ANTHROPIC, status)["error"]["type"] for status in (400, 401, 403, 413, 429, 500, 503)]
    assert kinds == [
        "invalid_request_error", "authentication_error", "permission_error", "request_too_large", "rate_limit_error",
        "api_error", "overloaded_error",]  # fmt: skip
    assert body(Dialect.OLLAMA, 404) == {"error": "federation: no"}
    assert body(Dialect.PLAIN, 503) == {"error": {"message": "federation: no", "type": "service_unavailable", "code": 503}}


def test_a_message_is_bounded_and_ends_no_line() -> None:
    for dialect in Dialect:
        found = error_body(dialect, 404, "m\r\n\u2028" * 1000)
        assert found.isascii()
        assert b"\n" not in found
        assert len(found) < 10 * MAX_MESSAGE


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 414, 417, 429, 431, 500, 501, 502, 503, 505, 529])
def test_a_client_reads_the_answer(dialect: Dialect, status: int) -> None:
    for method in ("GET", "HEAD"):
        raw = error_answer(dialect, status, "no", retry_after_s=0, is_head=method == "HEAD", more=b"X-More: 1\r\n")
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("Host", "box")]))
        client.send(h11.EndOfMessage())
        client.receive_data(raw)
        response = client.next_event()
        assert isinstance(response, h11.Response)
        assert response.status_code == status
        headers = dict(response.headers)
        assert headers[b"content-type"] == b"application/json"
        assert headers[b"retry-after"] == b"1"
        assert headers[b"connection"] == b"close"
        assert headers[b"x-more"] == b"1"
        if method == "GET":
            data = client.next_event()
            assert isinstance(data, h11.Data)
            assert json.loads(data.data) == body(dialect, status)
        assert isinstance(client.next_event(), h11.EndOfMessage)
        assert client.trailing_data == (b"", False)


def test_an_answer_that_keeps_the_connection() -> None:
    raw = error_answer(Dialect.OPENAI, 404, "no", keep_alive=True)
    assert b"\r\nConnection: keep-alive\r\n" in raw
    assert b"Retry-After" not in raw


def test_phrases() -> None:
    assert phrase(404) == "Not Found"
    assert phrase(413) == "Content Too Large"
    assert phrase(529) == "Error"


# A stream that died


def answer(content_type: str, *lines: str) -> ResponseHead:
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {content_type}", *lines, "", ""])
    return parse_response(head.encode(), ASKED)


SSE = answer("text/event-stream; charset=utf-8")
LINES = answer("application/x-ndjson")


def event(data: bytes | None) -> tuple[str, Any]:
    assert data is not None
    assert data.endswith(b"\n\n")
    lines = data.decode().strip("\n").split("\n")
    name = lines[0].removeprefix("event: ") if len(lines) == 2 else ""
    return name, json.loads(lines[-1].removeprefix("data: "))


def test_the_event_of_each_dialect() -> None:
    name, error = event(stream_error(Dialect.OPENAI, SSE, b"", "gone"))
    assert (name, error["error"]["message"], error["error"]["type"]) == ("", "federation: gone", "server_error")
    name, error = event(stream_error(Dialect.RESPONSES, SSE, b"", "gone"))
    assert (name, error["type"], error["message"]) == ("error", "error", "federation: gone")
    assert error["error"]["message"] == "federation: gone"
    name, error = event(stream_error(Dialect.ANTHROPIC, SSE, b"", "gone"))
    assert (name, error["type"], error["error"]["type"]) == ("error", "error", "api_error")
    name, error = event(stream_error(Dialect.PLAIN, SSE, b"", "gone"))
    assert (name, error["error"]["code"]) == ("error", 502)
    assert json.loads(stream_error(Dialect.OLLAMA, LINES, b"", "gone") or b"") == {"error": "federation: gone"}


@pytest.mark.parametrize(
    ("tail", "between"),
    [
        (b"", True),
        (b"data: x\n\n", True),
        (b"data: x\r\n\r\n", True),
        (b"data: x\r\r", True),
        (b": ping\n\n", True),
        (b"data: x\n", False),
        (b'data: {"cho', False),
        (b"\n\ndata: x\r\n", False),
    ],
)
def test_an_event_that_was_begun_is_ended_first(tail: bytes, between: bool) -> None:
    found = stream_error(Dialect.OPENAI, SSE, tail)
    assert found is not None
    assert found.startswith(b"data: " if between else b"\n\ndata: ")


def test_a_line_that_was_begun_is_ended_first() -> None:
    assert (stream_error(Dialect.OLLAMA, LINES, b'{"a":1}\n') or b"").startswith(b'{"error"')
    assert (stream_error(Dialect.OLLAMA, LINES, b'{"a":') or b"").startswith(b'\n{"error"')


def test_a_stream_that_has_said_its_last_word_gets_no_error() -> None:
    assert stream_error(Dialect.OPENAI, SSE, b'data: {"x":1}\n\ndata: [DONE]\n\n') == b""
    assert stream_error(Dialect.ANTHROPIC, SSE, b'event: message_stop\ndata: {"type":"message_stop"}\n\n') == b""
    assert stream_error(Dialect.OLLAMA, LINES, b'{"message":{},"done":true,"total_duration":5}\n') == b""
    assert stream_error(Dialect.OPENAI, SSE, b"data: [DONE]") != b""
    assert stream_error(Dialect.OPENAI, SSE, b'data: "[DONE]"\n\n') != b""


def test_an_answer_that_is_no_stream_or_cannot_be_read_here() -> None:
    assert stream_error(Dialect.OPENAI, answer("application/json"), b"") is None
    assert stream_error(Dialect.OPENAI, answer("audio/mpeg"), b"") is None
    assert stream_error(Dialect.OPENAI, answer("text/event-stream", "Content-Encoding: gzip"), b"") is None
    assert stream_error(Dialect.OPENAI, answer("text/event-stream", "Content-Encoding: identity"), b"") is not None
    assert stream_error(Dialect.OPENAI, parse_response(b"HTTP/1.1 200 OK\r\n\r\n", ASKED), b"") is None
