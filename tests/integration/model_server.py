"""A small model server to put behind a node, a process of its own: `python model_server.py --port N --name NAME`.

It is naive: it reads a head up to its blank line, a body by its length or chunks, and one request after another. Every byte
that it reads is in the file `bytes` of its directory. Its models are the lines of the file `models` there.

What a request asks for beyond its model, in its JSON:

    "stream": true, "n": 20, "pad": 0     so many events, every "every" seconds (0.05), each with so many more bytes
    "sleep": 2                            wait before the answer
    "tag": "one"                          to be found in the journal
    "raw": "HTTP/1.1 2", "then": "hang"   these bytes are the answer; then close, `hang`, `reset` or `flood` (with "x")

The file `connections` has one byte for each connection that a request with a body came on.

The journal has one line per event, `<monotonic time> <what>`: `request MODEL`, `gone` for a client that left before the
end of its answer, `half-closed` for one that only sends no more; a request with a tag is `request MODEL TAG`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import struct
from contextlib import suppress
from functools import partial
from pathlib import Path

from backends import Journal, serve_websocket

LIMIT = 1 << 20
RESET = struct.pack("ii", 1, 0)


class Tap:
    """The reader of one connection; what is read goes to the file too."""

    def __init__(self, reader: asyncio.StreamReader, fd: int) -> None:
        self._reader = reader
        self._fd = fd
        self._rest = b""

    async def read(self, n: int) -> bytes:
        if self._rest:
            data, self._rest = self._rest[:n], self._rest[n:]
            return data
        data = await self._reader.read(n)
        os.write(self._fd, data)
        return data

    async def exactly(self, n: int) -> bytes:
        parts, size = [], 0
        while size < n:
            data = await self.read(min(n - size, LIMIT))
            if not data:
                raise EOFError
            parts.append(data)
            size += len(data)
        return b"".join(parts)

    async def until(self, end: bytes) -> bytes:
        data = b""
        while end not in data:
            more = await self.read(LIMIT)
            if not more:
                raise EOFError
            data += more
        head, _, rest = data.partition(end)
        self._rest = rest + self._rest
        return head + end

    def push(self, data: bytes) -> None:
        self._rest = data + self._rest


async def body_of(tap: Tap, head: str) -> bytes:
    if "transfer-encoding: chunked" in head.lower():
        body = b""
        while size := int((await tap.until(b"\r\n")).split(b";")[0], 16):
            body += await tap.exactly(size)
            await tap.until(b"\r\n")
        while await tap.until(b"\r\n") != b"\r\n":
            pass
        return body
    length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
    return await tap.exactly(int(length[1])) if length else b""


def asked_of(body: bytes, head: str) -> dict:
    if "multipart/form-data" in head:
        field = re.search(rb'name="model"[^\n]*\r\n\r\n([^\r]*)', body)
        return {"model": field[1].decode() if field else None}
    with suppress(ValueError):
        asked = json.loads(body)
        return asked if isinstance(asked, dict) else {}
    return {}


def count_connection() -> None:
    with Path("connections").open("ab") as count:
        count.write(b"x")


class Served:
    def __init__(self, options, journal, reader, writer) -> None:
        self.options = options
        self.journal = journal
        self.reader = reader
        self.writer = writer

    @property
    def models(self) -> list[str]:
        return Path("models").read_text().split()

    async def serve(self, tap: Tap) -> None:
        is_counted = False
        while True:
            try:
                raw = await tap.until(b"\r\n\r\n")
            except EOFError:
                return
            head = raw.decode("latin-1")
            target = head.split(" ", 2)[1]
            if "upgrade: websocket" in head.lower():
                self.journal.note(f"websocket {target}")
                tap.push(raw)
                await serve_websocket(tap, self.writer, self.options, self.journal)
                return
            if not is_counted and head.startswith("POST"):
                is_counted = True
                count_connection()
            body = await body_of(tap, head)
            if not await self.answer(target, head, body) or "connection: close" in head.lower():
                return

    async def say(self, what: object, status: int = 200) -> None:
        body = json.dumps(what).encode()
        kind = b"Content-Type: application/json\r\n"
        self.writer.write(b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (status, kind, len(body), body))
        await self.writer.drain()

    async def answer(self, target: str, head: str, body: bytes) -> bool:
        if target == "/v1/models":
            await self.say({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
            return True
        asked = asked_of(body, head)
        model = asked.get("model")
        if head.startswith("POST"):
            self.journal.note(f"request {model} {asked['tag']}" if "tag" in asked else f"request {model}")
        if model is not None and model not in self.models:
            await self.say({"error": {"message": f"{self.options.name} has no {model}"}}, 404)
            return True
        if asked.get("sleep") and await self.has_left(asked["sleep"]):
            self.journal.note("gone")
            return False
        if "raw" in asked:
            await self.raw(asked)
            return False
        if asked.get("stream"):
            await self.stream(target, asked)
        elif target.startswith("/v1/messages"):
            await self.say(anthropic_message(model, self.options.name))
        elif target.startswith("/v1/responses"):
            await self.say(openai_response(model, self.options.name, "completed"))
        elif target.startswith("/api/"):
            await self.say({"model": model, "message": {"role": "assistant", "content": self.options.name}, "done": True})
        else:
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.options.name}}
            said = {"id": "c1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}
            await self.say({**said, "node": self.options.name, "size": len(body), "text": "heard", "head": head})
        return True

    async def has_left(self, seconds: float) -> bool:
        """An EOF is none: the client may read on."""
        waiting = asyncio.create_task(asyncio.sleep(seconds))
        reading = asyncio.create_task(self.reader.read(1))
        await asyncio.wait((waiting, reading), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            if reading.exception() is not None:
                return True
            self.journal.note("half-closed")
        await waiting
        reading.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await reading
        return False

    async def raw(self, asked: dict) -> None:
        self.writer.write(asked["raw"].encode("latin-1"))
        await self.writer.drain()
        then = asked.get("then")
        if then == "hang":
            await asyncio.sleep(60)
        while then == "flood":
            self.writer.write(b"x" * 65536)
            await self.writer.drain()
        if then == "reset":
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.writer.transport.abort()

    async def stream(self, target: str, asked: dict) -> None:
        is_lines = target.startswith("/api/")
        kind = b"application/x-ndjson" if is_lines else b"text/event-stream"
        self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind)
        try:
            for event in events(target, asked, self.options.name):
                self.writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await self.writer.drain()
                await asyncio.sleep(asked.get("every", 0.05))
            self.writer.write(b"0\r\n\r\n")
            await self.writer.drain()
        except OSError:
            self.journal.note("gone")
            raise


def anthropic_message(model: str, text: str) -> dict:
    usage = {"input_tokens": 1, "output_tokens": 1}
    said = {"id": "m1", "type": "message", "role": "assistant", "model": model, "content": [{"type": "text", "text": text}]}
    return {**said, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}


def openai_response(model: str, text: str, status: str) -> dict:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": content}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    said = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "status": status, "usage": usage}
    return {**said, "output": [item] if status == "completed" else []}


def response_events(model: str, name: str, n: int):
    """As Codex reads them."""
    text = " ".join(f"{i} {name}" for i in range(n))
    whole = openai_response(model, text, "completed")
    place = {"item_id": "msg_1", "output_index": 0}
    yield {"type": "response.created", "response": openai_response(model, "", "in_progress")}
    yield {"type": "response.output_item.added", **place, "item": {**whole["output"][0], "content": []}}
    for i in range(n):
        yield {"type": "response.output_text.delta", **place, "content_index": 0, "delta": f"{i} {name} "}
    yield {"type": "response.output_item.done", **place, "item": whole["output"][0]}
    yield {"type": "response.completed", "response": whole}


def events(target: str, asked: dict, name: str):
    n, pad = asked.get("n", 20), "x" * asked.get("pad", 0)
    model = asked.get("model")
    if target.startswith("/api/"):
        for i in range(n):
            message = {"role": "assistant", "content": f"{i} {pad}"}
            yield json.dumps({"model": model, "message": message, "done": i == n - 1}).encode() + b"\n"
    elif target.startswith("/v1/messages"):
        start = {"type": "message_start", "message": {**anthropic_message(model, ""), "content": [], "stop_reason": None}}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        parts = [start, block]
        for i in range(n):
            delta = {"type": "text_delta", "text": f"{i} {name}"}
            parts.append({"type": "content_block_delta", "index": 0, "delta": delta})
        usage = {"output_tokens": n}
        parts.append({"type": "content_block_stop", "index": 0})
        parts.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage})
        parts.append({"type": "message_stop"})
        for part in parts:
            yield f"event: {part['type']}\ndata: {json.dumps(part)}\n\n".encode()
    elif target.startswith("/v1/responses"):
        for part in response_events(model, name, n):
            yield f"event: {part['type']}\ndata: {json.dumps(part)}\n\n".encode()
    else:
        for i in range(n):
            end = "stop" if i == n - 1 else None
            choice = {"index": 0, "delta": {"content": f"{i} {name} {pad}"}, "finish_reason": end}
            said = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
            yield f"data: {json.dumps(said)}\n\n".encode()
        yield b"data: [DONE]\n\n"


async def handle(options, journal, fd, reader, writer) -> None:
    served = Served(options, journal, reader, writer)
    try:
        await served.serve(Tap(reader, fd))
    except (OSError, EOFError):
        pass
    finally:
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--journal")
    options = parser.parse_args()
    fd = os.open("bytes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    serve = partial(handle, options, Journal(options.journal), fd)
    async with await asyncio.start_server(serve, "127.0.0.1", options.port, limit=LIMIT, backlog=1024) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
