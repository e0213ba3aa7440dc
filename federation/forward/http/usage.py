"""What an answer says of its tokens, and when its first content came. Sans-IO: views in, a few numbers out.

| API | where the counts are |
|---|---|
| OpenAI, vLLM, SGLang | `usage` at the end: prompt_tokens, completion_tokens, prompt_tokens_details.cached_tokens |
| OpenAI's Responses | `usage` at the end: input_tokens, output_tokens, input_tokens_details.cached_tokens |
| Anthropic | `usage`; of a stream input_tokens in its first event, output_tokens in its last but one |
| Ollama | prompt_eval_count, eval_count in its last line |
| llama.cpp, a stream that was not asked for `usage` | `timings`: cache_n, prompt_n, predicted_n |

Rule 1: of each answer the first HEAD bytes and the last TAIL to twice TAIL bytes are kept, and looked at once, at its end.
Rule 2: nothing is decoded but an object behind one of these names. Inside of a text the quotes of a name are escaped, so no
model can write one.
Rule 3: a count that is no whole number from 0 to MAX_COUNT is unknown. So is all of an answer that is compressed.
Rule 4: the first content is the first byte that is no comment of a stream: servers write `: ping` while they compute.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.forward.http.head import ResponseHead

HEAD, TAIL = 1024, 2048
MAX_COUNT = 10**12
_STREAMS = (b"text/event-stream", b"application/x-ndjson", b"application/ndjson", b"application/jsonl")
# An object of numbers, with such objects in it.
_OBJECT = re.compile(rb'\s*:\s*(\{(?:[^{}"]|"[^"\\{}]*"|\{[^{}]*\})*\})')
_MOST_TRIES = 4  # names of the same kind without an object: "usage":null in each event before the last one
_OLLAMA = re.compile(rb'"(prompt_eval_count|eval_count)"\s*:\s*([0-9]{1,13})(?![0-9.eE])')
_DECODER = msgspec.json.Decoder(dict[str, Any])


class Tokens(NamedTuple):
    """Counts of one answer; None: it does not say. `cached`: those of `taken` that were found in the server's cache."""

    taken: int | None = None
    made: int | None = None
    cached: int | None = None


class Meter:
    """One answer. `first_at`: when its first content came."""

    __slots__ = ("_tail", "first_at", "head", "is_stream")

    def __init__(self, *, is_stream: bool) -> None:
        self.is_stream = is_stream
        self.first_at: float | None = None
        self.head = bytearray()
        self._tail = bytearray()

    def feed(self, content: Iterable[memoryview], now: float) -> None:
        """The next content of the answer's body, without framing."""
        head, tail = self.head, self._tail
        for part in content:
            if self.first_at is None and not (self.is_stream and _is_comment(part)):
                self.first_at = now
            if len(head) < HEAD:
                head += part[: HEAD - len(head)]
            tail += part[-TAIL:]
            if len(tail) > 2 * TAIL:
                del tail[:-TAIL]

    def tokens(self) -> Tokens | None:
        """What it said; to be called at its end."""
        tail = bytes(self._tail)
        found = _last_object(tail, b'"usage"')
        if self.is_stream and b'"message_start"' in self.head:  # Anthropic's: what is in the last event is newer
            found = {**(_last_object(bytes(self.head), b'"usage"') or {}), **(found or {})}
        if found:
            return _of_usage(found)
        if b'eval_count"' in tail:
            counts = {name: int(count) for name, count in _OLLAMA.findall(tail[tail.rstrip().rfind(b"\n") + 1 :])}
            if counts:
                return Tokens(_count(counts.get(b"prompt_eval_count", 0)), _count(counts.get(b"eval_count")))
        if (timings := _last_object(tail, b'"timings"')) is not None:
            cached, computed = _count(timings.get("cache_n")), _count(timings.get("prompt_n"))
            taken = None if computed is None else computed + (cached or 0)
            return Tokens(taken, _count(timings.get("predicted_n")), cached)
        return None


def is_stream(answer: ResponseHead) -> bool:
    """Whether the backend sends the answer's body piece by piece, as it makes it."""
    return (answer.get(b"content-type") or b"").startswith(_STREAMS)


def meter_of(answer: ResponseHead) -> Meter | None:
    """For the answer to a request that names a model; None where there is nothing to read."""
    streams = is_stream(answer)
    is_json = (answer.get(b"content-type") or b"").startswith(b"application/json")
    if not 200 <= answer.status < 300 or not (streams or is_json):
        return None
    return Meter(is_stream=streams) if answer.get(b"content-encoding") in (None, b"identity") else None


def _is_comment(part: memoryview) -> bool:
    start = bytes(part[:2])
    return start.startswith(b":") or start.isspace()


def _of_usage(usage: dict[str, Any]) -> Tokens:
    taken = _first(usage, "prompt_tokens", "input_tokens")
    cached = _first(usage, "cache_read_input_tokens", "prompt_cache_hit_tokens")
    if taken is not None and cached is not None and "cache_read_input_tokens" in usage:  # Anthropic's input is what is left
        taken += cached + (_first(usage, "cache_creation_input_tokens") or 0)
    for key in ("prompt_tokens_details", "input_tokens_details"):
        if cached is None and isinstance(details := usage.get(key), dict):
            cached = _first(details, "cached_tokens")
    return Tokens(taken, _first(usage, "completion_tokens", "output_tokens"), cached)


def _last_object(text: bytes, name: bytes) -> dict[str, Any] | None:
    """The object behind the last such name that has one."""
    at = len(text)
    for _ in range(_MOST_TRIES):
        at = text.rfind(name, 0, at)
        if at < 0:
            return None
        if (match := _OBJECT.match(text, at + len(name))) is not None:
            try:
                return _DECODER.decode(match[1])
            except (ValueError, RecursionError):
                return None
    return None


def _first(counts: dict[str, Any], *keys: str) -> int | None:
    return next((count for key in keys if (count := _count(counts.get(key))) is not None), None)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT else None
