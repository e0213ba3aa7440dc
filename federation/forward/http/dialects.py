"""Errors that the entry itself gives, in the dialect of the path: official clients show the message and know whether to try
again. Sans-IO.

    dialect      paths                                       body of an error
    OPENAI       /v1/..., /openai/..., /chat/completions     {"error": {"message", "type", "param", "code"}}
    ANTHROPIC    /v1/messages..., or anthropic-version sent  {"type": "error", "error": {"type", "message"}}
    OLLAMA       /api/chat, /api/tags and its other ones     {"error": message}
    PLAIN        any other                                   {"error": {"message", "type", "code": status}}

A stream that has begun has its status behind it. What its backend cannot end any more, the entry ends with an error that the
stream's reader understands (`stream_error`), never in silence:

    data: {"error": {"message": "federation: the node that answered is gone", ...}}            OpenAI, server-sent events
    event: error / data: {"type": "error", "error": {"type": "api_error", "message": ...}}     Anthropic
    {"error": "federation: the node that answered is gone"}                                    Ollama, a line of JSON

`framing.Body.ending` puts it where the body stopped. A body of a known length, or one that is no stream, has no place
for it: the entry cuts the connection.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federation.forward.http.head import ResponseHead

DIED = "the node that answered is gone, and the answer is not complete"
TAIL = 512  # bytes of a stream that tell whether it had said its last word: Ollama's last line counts tokens and times
MAX_MESSAGE = 1000  # characters; a message may quote a model's name

_DOUBLED = re.compile(r"(?:/v1){2,}(?=/)|(?:/api){2,}(?=/)")  # by a base URL that ends in what the client adds
_OLLAMA = re.compile(
    r"/api/(?:generate|chat|embed|embeddings|show|pull|push|delete|create|copy|tags|ps|version|blobs)(?:/|$)"
)
_ANTHROPIC = re.compile(r"(?:/v1)?/(?:messages|complete)(?:/|$)")
_OPENAI = re.compile(
    r"/(?:v1|openai|v1beta)(?:/|$)"
    r"|/(?:engines/[^/]+/)?(?:chat/completions|completions|embeddings|responses|models|audio|images|moderations|rerank)(?:/|$)"
)
_RESPONSES = re.compile(r"(?:/v1|/openai)*/responses(?:/|$)")
_JSON_LINES = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl")
_LAST_EVENT = re.compile(rb"data: ?\[DONE\]\s*\Z|\"type\": ?\"message_stop\"\s*}\s*\Z")
_LAST_LINE = re.compile(rb"\"done\": ?true[^\n]*}\n\Z")


class Dialect(Enum):
    OPENAI = auto()
    RESPONSES = auto()  # OpenAI's, whose streams have events of their own
    ANTHROPIC = auto()
    OLLAMA = auto()
    PLAIN = auto()


def dialect_of(target: str, *, is_anthropic: bool = False) -> Dialect:
    """`is_anthropic`: the request has a field anthropic-version, which asks for that dialect on shared paths."""
    path = target.partition("?")[0]
    path = _DOUBLED.sub(lambda match: "/v1" if match[0].startswith("/v1") else "/api", path, count=1)
    if _OLLAMA.match(path):
        return Dialect.OLLAMA
    if is_anthropic or _ANTHROPIC.match(path):
        return Dialect.ANTHROPIC
    if _RESPONSES.match(path):
        return Dialect.RESPONSES
    return Dialect.OPENAI if _OPENAI.match(path) else Dialect.PLAIN


_OPENAI_TYPES = {403: "permission_error", 429: "rate_limit_error", 501: "invalid_request_error"}
_OPENAI_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded", 503: "service_unavailable"}
_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 502: "api_error", 503: "overloaded_error",
}  # fmt: skip
_PHRASES = {413: "Content Too Large", 414: "URI Too Long"}  # as RFC 9110 has them; Python's names differ with its version


def error_body(dialect: Dialect, status: int, message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """`code` and `param` are OpenAI's: what is wrong (model_not_found), and with which part of the request."""
    message = f"federation: {message}"[:MAX_MESSAGE]
    error: dict[str, object]
    if dialect is Dialect.OLLAMA:
        error = {"error": message}
    elif dialect is Dialect.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        error = {"type": "error", "error": {"type": kind, "message": message}}
    elif dialect is Dialect.PLAIN:
        error = {"error": {"message": message, "type": code or _plain_type(status), "code": status}}
    else:
        kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        code = code or _OPENAI_CODES.get(status)
        error = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return json.dumps(error).encode()  # ASCII: nothing in it ends a line


def error_answer(
    dialect: Dialect, status: int, message: str, *, code: str | None = None, param: str | None = None,
    retry_after_s: int | None = None, keep_alive: bool = False, is_head: bool = False, more: bytes = b"",
) -> bytes:  # fmt: skip
    """A whole answer. Without `keep_alive` the entry closes behind it. `is_head`: to a HEAD, which gets no body. `more` are
    whole lines that are added to the head (WWW-Authenticate, Access-Control-Allow-Origin)."""
    body = error_body(dialect, status, message, code=code, param=param)
    retry = b"" if retry_after_s is None else b"Retry-After: %d\r\n" % max(1, retry_after_s)
    head = f"HTTP/1.1 {status} {phrase(status)}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    connection = b"Connection: keep-alive\r\n" if keep_alive else b"Connection: close\r\n"
    return head.encode() + retry + more + connection + b"\r\n" + (b"" if is_head else body)


def stream_error(dialect: Dialect, answer: ResponseHead, tail: bytes, message: str = DIED) -> bytes | None:
    """The last content of a stream that died: an error in its dialect. None if the answer is no stream that could say so,
    and nothing if the stream has said its last word. Else the result ends in a line end.

    `tail` are the last TAIL bytes of content that the client has: where the stream stopped in the middle of an event, that
    event is ended first."""
    kind = (answer.get(b"content-type") or b"").partition(b";")[0].strip().lower()
    if answer.get(b"content-encoding") not in (None, b"identity"):
        return None
    if kind in _JSON_LINES:
        if _LAST_LINE.search(tail):
            return b""
        return (b"" if not tail or tail.endswith(b"\n") else b"\n") + error_body(Dialect.OLLAMA, 502, message) + b"\n"
    if kind != b"text/event-stream":
        return None
    is_between = _is_between(tail)
    if is_between and _LAST_EVENT.search(tail):
        return b""
    body = error_body(dialect, 502, message)
    if dialect is Dialect.RESPONSES:  # an event of that API; and `error` makes OpenAI's client raise it
        error = json.loads(body)
        error |= {"type": "error", "code": "server_error", "message": error["error"]["message"], "param": None}
        body = json.dumps(error).encode()
    name = b"" if dialect is Dialect.OPENAI else b"event: error\n"
    return (b"" if is_between else b"\n\n") + name + b"data: " + body + b"\n\n"


def is_between_events(answer: ResponseHead, tail: bytes) -> bool:
    """Whether the answer is a stream of server-sent events in which a comment may stand next."""
    kind = (answer.get(b"content-type") or b"").partition(b";")[0].strip().lower()
    return kind == b"text/event-stream" and answer.get(b"content-encoding") in (None, b"identity") and _is_between(tail)


def _is_between(tail: bytes) -> bool:
    return not tail or tail.replace(b"\r\n", b"\n").endswith((b"\n\n", b"\r\r"))


def phrase(status: int) -> str:
    """The reason phrase of a status."""
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _plain_type(status: int) -> str:
    return phrase(status).lower().replace(" ", "_")
