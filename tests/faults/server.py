"""A backend whose manners can be changed while it runs: `python server.py --port N --name NAME --directory DIR`.

    GET /short/ID             the target, after 20 ms
    GET /stream/ID            a line every 0.2 s for 30 s
    GET /bulk/ID              2 MiB that follow from the target
    PUT /upload/ID            takes the same 2 MiB, answers `ok` if every byte is right
    GET /health

DIR/mode says how: `ok`; `silent` accepts and says nothing; `reset` breaks off with RST in the middle of the answer; `slow`
thinks for 3 s first. DIR/journal has `<monotonic time> <target>` for each request whose first bytes arrived, written before
anything else happens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import struct
import time
from functools import partial
from pathlib import Path

CHUNK = 1 << 16
BULK_BYTES = 2 << 20
STREAM_LINES = 150
LINE_EVERY_S = 0.2
SLOW_S = 3.0


def content(target: str) -> bytes:
    """What a GET of `target` answers, or a PUT to it brings."""
    kind = target.split("/")[1]
    if kind in ("bulk", "upload"):
        return random.Random(target).randbytes(BULK_BYTES)
    if kind == "stream":
        return "".join(f"{target} {number}\n" for number in range(STREAM_LINES)).encode()
    return target.encode()


async def answer(writer: asyncio.StreamWriter, target: str, body: bytes, *, pace_s: float, stop_after: int) -> None:
    pieces = body.splitlines(keepends=True) if pace_s else [body[at : at + CHUNK] for at in range(0, len(body), CHUNK)]
    sent = 0
    for piece in pieces:
        if sent >= stop_after:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        piece = piece[: stop_after - sent]
        writer.write(piece)
        sent += len(piece)
        await writer.drain()
        if pace_s:
            await asyncio.sleep(pace_s)


async def read_body(reader: asyncio.StreamReader, first: bytes, size: int) -> bytes:
    body = bytearray(first)
    while len(body) < size:
        data = await reader.read(CHUNK)
        if not data:
            break
        body += data
    return bytes(body)


async def serve(
    options: argparse.Namespace, journal: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    head = await reader.read(CHUNK)
    if not head:
        return  # somebody only looked whether we answer
    method, target = head.split(b" ", 2)[:2]
    target = target.decode()
    mode = (options.directory / "mode").read_text()
    if target != "/health":
        os.write(journal, f"{time.monotonic():.6f} {target}\n".encode())
    while b"\r\n\r\n" not in head:
        more = await reader.read(CHUNK)
        if not more:
            return
        head += more
    if mode == "silent":
        await reader.read()  # until the client gives up
        return
    body = content(target)
    if method == b"PUT":
        arrived = await read_body(reader, head.partition(b"\r\n\r\n")[2], len(body))
        body = b"ok" if arrived == body else b"wrong"
    await asyncio.sleep(SLOW_S if mode == "slow" and target != "/health" else 0.02)
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nX-Backend: %s\r\n\r\n" % options.name.encode())
    is_stream = target.startswith("/stream/")
    stop_after = min(len(body) // 2, 2000) if mode == "reset" else len(body) + 1
    await answer(writer, target, body, pace_s=LINE_EVERY_S if is_stream else 0, stop_after=stop_after)


async def handle(options, journal, reader, writer) -> None:
    try:
        await serve(options, journal, reader, writer)
    except (ConnectionResetError, BrokenPipeError, TimeoutError):
        pass
    finally:
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    journal = os.open(options.directory / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    server = await asyncio.start_server(partial(handle, options, journal), "127.0.0.1", options.port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
