"""Requests as official clients send them, byte for byte but for the port and the file; the model is "gemma".

Recorded with openai 3.57, anthropic 2.14 and ollama 0.6 for Python, with aiohttp 3.14 and the paths of Open WebUI, and with
httpx 0.28.
"""

from __future__ import annotations

import json
from typing import Any

_STAINLESS = (
    "x-stainless-lang: python", "x-stainless-package-version: 3.57.0", "x-stainless-os: Linux", "x-stainless-arch: x64",
    "x-stainless-runtime: CPython", "x-stainless-runtime-version: 3.11.7", "x-stainless-async: false",
    "x-stainless-retry-count: 0", "x-stainless-read-timeout: 600",
)  # fmt: skip
_HTTPX = ("Host: 127.0.0.1:8484", "Accept-Encoding: gzip, deflate", "Connection: keep-alive")
_JSON = "content-type: application/json"
OPENAI = (*_HTTPX, "authorization: Bearer none", "accept: application/json", "user-agent: OpenAI/Python 3.57.0", *_STAINLESS)
ANTHROPIC = (
    *_HTTPX, "x-stainless-timeout: NOT_GIVEN", *_STAINLESS[-2:], "Accept: application/json",
    "User-Agent: Anthropic/Python 2.14.0", *_STAINLESS[:-3], "Authorization: Bearer none", "X-Stainless-Async: false",
    "anthropic-version: 2026-10-21",
)  # fmt: skip
OLLAMA = (*_HTTPX, _JSON, "accept: application/json", "user-agent: ollama-python/0.6.3 (x86_64 linux) Python/3.11.7")
OPEN_WEBUI = (
    "Host: 127.0.0.1:8484", "Authorization: Bearer none", "Accept: */*", "Accept-Encoding: gzip, deflate",
    "User-Agent: Python/3.11 aiohttp/3.14.5",
)  # fmt: skip

_SAID = [{"role": "user", "content": "hi"}]
_FILE = b"RIFF\0\0\r\n--x" + b"\0\r\n-" * 700_000  # more than a window or a buffer of ours


def request(method: str, target: str, lines: tuple[str, ...], body: bytes | None = None) -> bytes:
    if body is not None:
        lines = (*lines, f"Content-Length: {len(body)}")
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode() + (body or b"")


def packed(what: Any) -> bytes:
    """As httpx writes it."""
    return json.dumps(what, separators=(",", ":")).encode()


def audio(lines: tuple[str, ...], *, file_first: bool) -> bytes:
    boundary = "9cbdcee6b40202afe55a00ee53eaaab8"
    file = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/x-wav\r\n\r\n' + _FILE
    model = b'Content-Disposition: form-data; name="model"\r\n\r\ngemma'
    parts = (file, model) if file_first else (model, file)
    body = b"".join(b"--%b\r\n%b\r\n" % (boundary.encode(), part) for part in parts) + f"--{boundary}--\r\n".encode()
    kind = f"Content-Type: multipart/form-data; boundary={boundary}"
    return request("POST", "/v1/audio/transcriptions", (*lines, kind), body)


def asking(**more: Any) -> dict[str, bytes]:
    """Requests that are answered whole; `more` is in the bodies of chats."""
    chat = {"model": "gemma", "messages": _SAID, **more}
    pieces = b'12\r\n{"model": "gemma",\r\n10\r\n "messages": []}\r\n0\r\n\r\n'
    return {
        "openai chat": request("POST", "/v1/chat/completions", (*OPENAI, _JSON), packed(chat)),
        "openai responses": request("POST", "/v1/responses", (*OPENAI, _JSON), packed({"model": "gemma", "input": "hi"})),
        "openai audio": audio(OPENAI, file_first=False),
        "anthropic messages": request(
            "POST",
            "/v1/messages",
            (*ANTHROPIC, _JSON),
            packed({"max_tokens": 10, "messages": _SAID, "model": "gemma", **more}),
        ),
        "ollama chat": request("POST", "/api/chat", OLLAMA, packed({**chat, "stream": False, "tools": []})),
        "aiohttp audio": audio(OPEN_WEBUI, file_first=True),
        "httpx chunked": request("POST", "/v1/chat/completions", (*OPEN_WEBUI, _JSON, "Transfer-Encoding: chunked"))
        + pieces,
    }


def streaming(**more: Any) -> dict[str, bytes]:
    chat = {"model": "gemma", "stream": True, "messages": _SAID, **more}
    usage = {"stream_options": {"include_usage": True}}
    return {
        "openai": request("POST", "/v1/chat/completions", (*OPENAI, _JSON), packed({**chat, **usage})),
        "anthropic": request("POST", "/v1/messages", (*ANTHROPIC, _JSON), packed({"max_tokens": 10, **chat})),
        "ollama": request("POST", "/api/chat", OLLAMA, packed({**chat, "tools": []})),
        "open webui": request("POST", "/v1/chat/completions", (_JSON, *OPEN_WEBUI), json.dumps(chat).encode()),
        "open webui, ollama": request("POST", "/ollama/api/chat", (_JSON, *OPEN_WEBUI), json.dumps(chat).encode()),
    }


LISTS = {
    "openai": request("GET", "/v1/models", OPENAI),
    "anthropic": request("GET", "/v1/models", ANTHROPIC),
    "ollama": request("GET", "/api/tags", OLLAMA),
    "open webui": request("GET", "/v1/models", OPEN_WEBUI),
    "open webui, ollama": request("GET", "/ollama/api/tags", OPEN_WEBUI),
}
